"""The reference of the configuration, made from its typed model and docstrings.

    python -m nedge.config_reference deploy/CONFIG.md

writes it anew. Without a file it is printed.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
from itertools import pairwise
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel

from nedge import config
from nedge.config import SHIPPED_POLICIES, Config

HEAD = """\
<!-- Made by: python -m nedge.config_reference deploy/CONFIG.md -->
# Configuration

One TOML file, `/etc/nedge/nedge.toml` where nedge is installed. [nedge.toml](nedge.toml) is the example with
comments, every key, and the settings of all scripts that come along. A key that is left out has its default.
Relative paths are relative to the file. `nedge check --config FILE` says what is wrong with a file: the key,
what was found, and what is allowed.
"""
NAMED = (
    (config.Network, "network"),
    (config.Address, "address"),
    (config.File, "path"),
    (config.Source, "path or URL"),
    (config.Listen, "address:port"),
)
"""Types of the configuration that have a word of their own."""
PLAIN = {str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}


def reference() -> str:
    """The whole page, in Markdown."""
    parts = [HEAD]
    for name, field in Config.model_fields.items():
        model = field.annotation
        assert isinstance(model, type)
        assert issubclass(model, BaseModel)
        parts.append(f"## [{name}]\n\n{inspect.getdoc(model)}\n\n{_table(model)}\n")
    return "\n".join(parts)


def explained(model: type[BaseModel]) -> dict[str, str]:
    """Key -> what the string below it says, on one line; nothing for keys without one."""
    (node,) = (
        node
        for node in ast.parse(inspect.getsource(config)).body
        if isinstance(node, ast.ClassDef) and node.name == model.__name__
    )
    found = {}
    for item, after in pairwise(node.body):
        if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
            continue
        if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
            found[item.target.id] = " ".join(str(after.value.value).split())
    return found


def _table(model: type[BaseModel]) -> str:
    hints, texts = get_type_hints(model, include_extras=True), explained(model)
    rows = []
    for key, field in model.model_fields.items():
        default = _default(key, field.get_default(call_default_factory=True))
        rows.append((f"`{key}`", _values(hints[key]), default, texts[key]))
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join(["| key | values | default | meaning |", "|---|---|---|---|", *lines])


def _values(hint: Any) -> str:
    """What a key may have, in words."""
    for named, word in NAMED:
        if hint == named:
            return word
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{_values(arguments[0])}{_bounds(arguments[1:])}"
    if origin is Literal:
        return ", ".join(f'`"{value}"`' for value in arguments)
    if origin is list:
        return f"list: {_values(arguments[0])}"
    if origin in (Union, UnionType):
        return _values(*(argument for argument in arguments if argument is not type(None)))
    return PLAIN[hint]


def _bounds(metadata: tuple[Any, ...]) -> str:
    """The limits that an annotation sets."""
    limits = [limit for item in metadata for limit in getattr(item, "metadata", ())]
    least = next((f"{limit.ge:,}" for limit in limits if isinstance(limit, Ge)), "")
    above = next((f"more than {limit.gt:,}" for limit in limits if isinstance(limit, Gt)), "")
    most = next((f"{limit.le:,}" for limit in limits if isinstance(limit, Le)), "")
    if above:
        return f", {above}{f', up to {most}' if most else ''}"
    if least:
        return f", {least} to {most}" if most else f", {least} or more"
    return ""


def _default(key: str, value: Any) -> str:
    """A default as it stands in the file."""
    if value is None:
        return "none"
    if value == [SHIPPED_POLICIES]:
        return "the scripts that come with nedge"
    if key.endswith("_mask"):
        return f"`{value:#010x}`"
    return f"`{json.dumps(value, default=str)}`"


def write(path: Path) -> None:
    """Write the page."""
    path.write_text(reference(), encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        print(reference())
