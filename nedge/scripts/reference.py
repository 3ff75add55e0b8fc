"""The reference in the guide for authors, made from docstrings.

    python -m nedge.scripts.reference policies/README.md

writes it anew between its two marks. Without a file it is printed.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path
from types import ModuleType

from nedge.core import facts as core_facts
from nedge.core.risks import RISKS
from nedge.core.status import FIRST_USER_KEY, STATUS_TYPES
from nedge.scripts import api, memory
from nedge.testing import bench, flows

BEGIN = "<!-- What follows is made by: python -m nedge.scripts.reference policies/README.md -->"
END = "<!-- Here it ends. -->"


def reference() -> str:
    """The whole reference, in Markdown."""
    parts = [
        "### Functions of `flow`",
        *_functions(api, "Flow"),
        "### Facts",
        "`flow.getFacts()` gives an object with these attributes; empty, 0 or `()` where nothing is known.",
        _attributes(core_facts, "Facts"),
        "### Memory across flows",
        "From `nedge.scripts`; see [State and workers](#state-and-workers).",
        *_class(memory, "Window"),
        *_class(memory, "LastUsed"),
        "### Status types",
        "Attributes of `status_types`. " + _user_statuses(),
        _statuses(),
        "### Risks",
        "`RISKS[name]` is the number for `flow.hasRisk`. Those from 42 on came after nDPI 4.2.",
        ", ".join(f"`{name}` ({number})" for name, number in RISKS.items()) + ".",
        "### nedge.testing",
        *_function(bench, "load_script"),
        *_function(flows, "make_flow"),
        *_class(bench, "Bench"),
        *_class(flows, "MadeFlow"),
        *_class(flows, "SeenFlow"),
        *_class(flows, "Alert"),
    ]
    return "\n\n".join(part for part in parts if part)


def _source(module: ModuleType) -> str:
    """Of a compiled module, too."""
    assert module.__file__
    return Path(module.__file__).with_name(module.__name__.rpartition(".")[2] + ".py").read_text("utf-8")


def _tree(module: ModuleType) -> ast.Module:
    return ast.parse(_source(module))


def _node(module: ModuleType, name: str) -> ast.ClassDef | ast.FunctionDef:
    nodes = (node for node in _tree(module).body if getattr(node, "name", "") == name)
    found = next(nodes)
    assert isinstance(found, ast.ClassDef | ast.FunctionDef)
    return found


def _functions(module: ModuleType, name: str) -> list[str]:
    """The public methods of a class, under the headings that its comments make."""
    lines = _source(module).splitlines()
    node = _node(module, name)
    assert isinstance(node, ast.ClassDef)
    parts: list[str] = []
    at = node.lineno
    for method in node.body:
        if not isinstance(method, ast.FunctionDef) or method.name.startswith("_"):
            continue
        headings = (re.fullmatch(r"    # (.+)", line) for line in lines[at : method.lineno])
        parts += [f"**{found[1].rstrip('.')}**" for found in headings if found]
        parts.append(_entry(method))
        at = method.end_lineno or method.lineno
    return parts


def _class(module: ModuleType, name: str) -> list[str]:
    """A class: what it is, its attributes, its methods."""
    node = _node(module, name)
    assert isinstance(node, ast.ClassDef)
    made = next((item for item in node.body if getattr(item, "name", "") == "__init__"), None)
    shown = _signature(made, name) if isinstance(made, ast.FunctionDef) and module is memory else name
    parts = [f"#### `{shown}`", _text(node), _attributes(module, name)]
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__getitem__":
            continue
        if isinstance(item, ast.FunctionDef) and not item.name.startswith("_") and not item.decorator_list:
            parts.append(_entry(item))
    return parts


def _function(module: ModuleType, name: str) -> list[str]:
    node = _node(module, name)
    assert isinstance(node, ast.FunctionDef)
    return [f"#### `{_signature(node, name)}`", _text(node)]


def _entry(method: ast.FunctionDef) -> str:
    """A method as an item of a list, its docstring indented below."""
    text = _text(method)
    own = re.search(rf"\b{method.name}\([^)]*\)", text)  # where the docstring shows the call, it knows better
    call = own[0] if own and "*" in _signature(method, method.name) else _signature(method, method.name)
    result = f" → `{ast.unparse(method.returns)}`" if method.returns is not None else ""
    return f"* `{call}`{result}  \n" + "\n".join(f"  {line}".rstrip() for line in text.splitlines())


def _signature(function: ast.FunctionDef, name: str) -> str:
    arguments = ast.parse(ast.unparse(function)).body[0]
    assert isinstance(arguments, ast.FunctionDef)
    spec = arguments.args
    for argument in (*spec.args, *spec.kwonlyargs, *filter(None, (spec.vararg, spec.kwarg))):
        argument.annotation = None
    spec.args = [argument for argument in spec.args if argument.arg != "self"]
    return f"{name}({ast.unparse(spec)})"


def _text(node: ast.ClassDef | ast.FunctionDef) -> str:
    return ast.get_docstring(node) or ""


def _attributes(module: ModuleType, name: str) -> str:
    """Attributes with what the string below them says: fields, and properties."""
    node = _node(module, name)
    rows: list[tuple[str, str, str]] = []
    body = list(node.body)
    for item, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            said = ""
            if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
                said = str(after.value.value)
            rows.append((item.target.id, ast.unparse(item.annotation), said))
        elif isinstance(item, ast.FunctionDef) and item.decorator_list and not item.name.startswith("_"):
            result = ast.unparse(item.returns) if item.returns else ""
            rows.append((item.name, result, ast.get_docstring(item) or ""))
        elif isinstance(item, ast.FunctionDef) and item.name == "__init__":
            rows += _set_in_init(item)
    if not rows:
        return ""
    lines = [
        f"| `{name}` | `{kind.replace('|', chr(92) + '|')}` | {' '.join(said.split())} |"
        for name, kind, said in rows
    ]
    return "\n".join(["| attribute | type | meaning |", "|---|---|---|", *lines])


def _set_in_init(init: ast.FunctionDef) -> list[tuple[str, str, str]]:
    """Public attributes that are set, and explained, in __init__."""
    found = []
    for item, after in zip(init.body, [*init.body[1:], None], strict=True):
        target = item.target if isinstance(item, ast.AnnAssign) else None
        if isinstance(item, ast.Assign):
            target = item.targets[0]  # type: ignore[assignment]
        explained = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        if isinstance(target, ast.Attribute) and not target.attr.startswith("_") and explained:
            kind = ast.unparse(item.annotation) if isinstance(item, ast.AnnAssign) else ""
            found.append((target.attr, kind, str(after.value.value)))  # type: ignore[union-attr]
    return found


def _statuses() -> str:
    rows = [
        f"| {status.status_key} | `{status.name}` | {status.title} | `{status.alert_type}` |"
        for status in STATUS_TYPES.values()
        if 0 < status.status_key < FIRST_USER_KEY
    ]
    return "\n".join(["| number | name | meaning | alert type |", "|---|---|---|---|", *rows])


def _user_statuses() -> str:
    users = [status for status in STATUS_TYPES.values() if status.status_key >= FIRST_USER_KEY]
    return (
        f"`{users[0].name}` to `{users[-1].name}` ({users[0].status_key} to {users[-1].status_key}) are for "
        "your own problems; `define_status` gives them a name."
    )


def write(path: Path) -> None:
    """Write the reference anew in a file. Raises ValueError if its marks are not there."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{path}: the marks are not there: {BEGIN} and {END}")
    path.write_text(f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        write(Path(sys.argv[1]))
    else:
        print(reference())
