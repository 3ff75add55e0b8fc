"""Loading user scripts in Python.

An ordinary module: functions named after hooks are its hooks, variables with ntopng's names its filters.
"""

from __future__ import annotations

import ast
import inspect
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from nedge.core.hooks import Hook
from nedge.core.status import FIRST_USER_KEY, LAST_KEY, STATUS_BY_KEY, StatusType
from nedge.scripts.budget import LOAD_SECONDS, WATCH, ScriptTimeoutError
from nedge.scripts.check import ALL, NTOPNG_HOOKS, Declaration
from nedge.scripts.script import HookFunction, ScriptError

_MATCH_PACKET = "getnDPIMatchPacket"


def declare(path: Path, key: str) -> Declaration:
    """Run a script's file, and see what it declares. Raises ScriptError."""
    tree, code = _compile(path)
    module = ModuleType(f"nedge_script_{key}")
    module.__file__ = str(path)
    call(path, "while loading", partial(exec, code, vars(module)))
    values = {"description": inspect.getdoc(module) or "", **vars(module)}
    setup, teardown = values.get("setup"), values.get("teardown")
    hooks: dict[Hook, HookFunction] = {}
    declared = Declaration(
        key=key,
        path=path,
        values=values,
        lines=_lines(tree),
        hooks=lambda _conf: hooks,
        setup=partial(_set_up, path, setup) if setup is not None else None,
        teardown=partial(call, path, "in teardown()", teardown) if teardown is not None else None,
        wants_match_packet=_mentions(code, _MATCH_PACKET),
    )
    hooks |= _hooks(declared)
    declared.statuses = _user_statuses(declared)
    return declared


def _compile(path: Path) -> tuple[ast.Module, CodeType]:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
        return tree, compile(tree, str(path), "exec")
    except SyntaxError as error:
        raise ScriptError(f"syntax error: {error.msg}", error.lineno or 0) from None
    except OSError as error:
        raise ScriptError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # null bytes
        raise ScriptError(f"not Python source: {error}") from None


def _lines(tree: ast.Module) -> dict[str, int]:
    """Name of a variable or function of the script's -> where it got its value at last."""
    lines: dict[str, int] = {}
    for node in tree.body:
        named = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
        for target in named:
            name = getattr(target, "id", getattr(target, "name", None))
            if name:
                lines[name] = node.lineno
    return lines


def _set_up(path: Path, setup: Any, conf: dict[str, Any]) -> Any:
    """Call setup(), with the settings if it has a parameter for them."""
    try:
        takes_conf = callable(setup) and bool(inspect.signature(setup).parameters)
    except ValueError:  # some built-in functions do not tell
        takes_conf = False
    return call(path, "in setup()", partial(setup, conf) if takes_conf else setup)


def call(path: Path, when: str, function: Callable[[], Any]) -> Any:
    """Call into a script; what it raises becomes a ScriptError with the script's own line."""
    failure: BaseException | None = None
    result = None
    WATCH.begin(LOAD_SECONDS)
    try:
        result = function()
    except BaseException as error:
        failure = error
    if WATCH.end() or isinstance(failure, ScriptTimeoutError):
        message = f"takes longer than {LOAD_SECONDS:.0f} s {when}"
        raise ScriptError(message, script_line(failure, path) if failure else 0)
    if isinstance(failure, KeyboardInterrupt):
        raise failure
    if failure is not None:
        raise ScriptError(f"{type(failure).__name__} {when}: {failure}", script_line(failure, path))
    return result


def script_line(error: BaseException, path: Path) -> int:
    """The script's own innermost line in a traceback; 0 if it has none."""
    lines = [line for found, line in script_lines(error, path) if found == path]
    return lines[-1] if lines else 0


def script_lines(error: BaseException, path: Path) -> list[tuple[Path, int]]:
    """The script's own lines in a traceback, outermost first."""
    frames = traceback.extract_tb(error.__traceback__)
    return [(path, frame.lineno or 0) for frame in frames if frame.filename == str(path)]


def _hooks(declared: Declaration) -> dict[Hook, HookFunction]:
    found: dict[Hook, HookFunction] = {}
    for hook in Hook:
        function = declared.values.get(hook)
        if function is not None and _is_hook(declared, function, hook):
            found[hook] = function
    everything = declared.values.get(ALL)
    if inspect.isfunction(everything) and _is_hook(declared, everything, ALL):
        found |= dict.fromkeys(NTOPNG_HOOKS, everything)
    return found


def _is_hook(declared: Declaration, function: Any, name: str) -> bool:
    if not callable(function):
        declared.wrong(name, f"{name} is not a function")
        return False
    try:
        inspect.signature(function).bind(None, 0, {})
    except TypeError:
        declared.wrong(name, f"{name} must take three arguments: (flow, now, conf)")
        return False
    return True


def _user_statuses(declared: Declaration) -> tuple[StatusType, ...]:
    """The statuses that the script defines, each once, whatever its names in the module."""
    found: dict[int, StatusType] = {}
    for name, value in declared.values.items():
        if not isinstance(value, StatusType) or STATUS_BY_KEY.get(value.status_key) is value:
            continue
        key = value.status_key
        if not FIRST_USER_KEY <= key <= LAST_KEY:
            declared.wrong(
                name, f"status {key} is not the user's: allowed are {FIRST_USER_KEY} to {LAST_KEY}"
            )
        elif found.setdefault(key, value) is not value:
            declared.wrong(name, f"status {key} is defined twice")
    return tuple(found.values())


def _mentions(code: CodeType, name: str) -> bool:
    return name in code.co_names or any(
        _mentions(constant, name) for constant in code.co_consts if isinstance(constant, CodeType)
    )
