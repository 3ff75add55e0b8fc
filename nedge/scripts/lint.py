"""What looks wrong in a script that loads: misspelt hooks and variables, settings that nobody reads.

Only the source is looked at, nothing is run. These are warnings: the script works, but perhaps not as its
author thinks.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path

from nedge.core.hooks import Hook
from nedge.scripts.check import ALL, CATEGORIES
from nedge.scripts.script import PERIODIC_DEFAULT as DEFAULT
from nedge.scripts.script import PERIODIC_STEP as STEP
from nedge.scripts.script import Problem

_HOOKS = (*Hook, ALL, "setup", "teardown")
VARIABLES = (
    "title",
    "description",
    "category",
    "default_value",
    "default_enabled",
    "l4_proto",
    "l7_proto",
    "l7_proto_id",
    "three_way_handshake_ok",
    "needs",
    "http_answers",
    "periodic_update_seconds",
    "prio",
    "nedge_only",
    "nedge_exclude",
)
_CLOSE = 0.85  # how like another a name must be to be taken for a misspelt one


def lint(path: Path) -> list[Problem]:
    """Warnings, by line. None for other languages than Python.

    None for what cannot be parsed, either: the loader says what is wrong with that.
    """
    if path.suffix == ".lua":
        return []
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError):
        return []
    found = [*_names(tree), *_values(tree), *_settings(tree)]
    return [Problem(path, line, message, fatal=False) for line, message in sorted(set(found))]


def _assignments(tree: ast.Module) -> Iterator[tuple[str, ast.expr | None, int]]:
    """Name, value and line of the script's own variables."""
    for node in tree.body:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    yield target.id, node.value, node.lineno
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.value, node.lineno


def _names(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Functions and variables whose names are nearly, but not quite, known ones."""
    functions = [(node.name, node.lineno) for node in tree.body if isinstance(node, ast.FunctionDef)]
    variables = [(name, line) for name, _, line in _assignments(tree)]
    for known, names in ((_HOOKS, functions), (VARIABLES, variables)):
        folded = {name.casefold().replace("_", ""): name for name in known}
        for name, line in names:
            near = get_close_matches(name.casefold().replace("_", ""), folded, n=1, cutoff=_CLOSE)
            if near and name not in (*_HOOKS, *VARIABLES):
                yield line, f"{name} means nothing here; did you mean {folded[near[0]]}?"


def _values(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Values that the loader takes for others."""
    for name, value, line in _assignments(tree):
        found = value.value if isinstance(value, ast.Constant) else None
        if name == "category" and isinstance(found, str) and found not in CATEGORIES:
            yield line, f"category: found {found!r}, taken for 'other'; allowed are {', '.join(CATEGORIES)}"
        if name == "periodic_update_seconds" and isinstance(found, int) and (found <= 0 or found % STEP):
            yield line, f"{name}: found {found}, taken for {DEFAULT}; allowed are multiples of {STEP}"


def _settings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Settings that are read but have no default, or have one but are not read."""
    defaults: dict[str, int] = {}
    literals: set[ast.AST] = set()
    for name, value, _ in _assignments(tree):
        if name == "default_value":
            keys = value.keys if isinstance(value, ast.Dict) else [None]
            if not all(isinstance(key, ast.Constant) and isinstance(key.value, str) for key in keys):
                return  # not written down here: nothing can be said
            literals |= {key for key in keys if key is not None}
            defaults |= {key.value: key.lineno for key in literals if isinstance(key, ast.Constant)}  # type: ignore[misc]
    confs = _conf_names(tree)
    mentioned: set[str] = set()
    dynamic = False
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in literals:
            mentioned.add(node.value)
        if not isinstance(node, ast.Subscript) or not _is_name(node.value, confs):
            continue
        if isinstance(node.slice, ast.Constant):
            key = node.slice.value
            if isinstance(key, str) and key not in defaults:
                near = get_close_matches(key, defaults, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                yield node.lineno, f"reads the setting {key!r}, which default_value has not{hint}"
        else:
            dynamic = True
    for key, line in defaults.items():
        if key not in mentioned and not dynamic:
            yield line, f"default_value has {key!r}, which the script never reads"


def _conf_names(tree: ast.Module) -> set[str]:
    """What the hooks call their settings."""
    names: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            arguments = [argument.arg for argument in node.args.args]
            if node.name in (*Hook, ALL) and len(arguments) > 2:
                names.add(arguments[2])
            elif node.name == "setup" and arguments:
                names.add(arguments[0])
    return names


def _is_name(node: ast.expr, names: set[str]) -> bool:
    return isinstance(node, ast.Name) and node.id in names
