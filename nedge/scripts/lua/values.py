"""Values between Python and Lua. Lua's strings are bytes: text is UTF-8 there, other bytes pass unchanged."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lupa.lua53 import lua_type

from nedge.scripts.plain import CUT, MAX_DEPTH, Plain
from nedge.scripts.script import ScriptError

MakeTable = Callable[[Any], Any]
"""A dictionary or a list -> a Lua table."""

_MAX_NESTING = 20


def signed(number: int) -> int:
    """A 64-bit integer as Lua has it: signed."""
    return number if number < 1 << 63 else number - (1 << 64)


def to_lua(value: Any, make_table: MakeTable) -> Any:
    """A value of Python for Lua; dictionaries, lists and tuples become tables."""
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, dict):
        return make_table({to_lua(key, make_table): to_lua(item, make_table) for key, item in value.items()})
    if isinstance(value, list | tuple):
        return make_table([to_lua(item, make_table) for item in value])
    if isinstance(value, int) and not isinstance(value, bool):
        return signed(value)
    return value


def to_python(value: Any, depth: int = 0) -> Any:
    """A value of Lua, whole. Tables with keys 1 to n, and empty ones, become lists, others dictionaries.

    Raises ScriptError for what has no equivalent.
    """
    if isinstance(value, bytes):
        return value.decode(errors="surrogateescape")
    kind = lua_type(value)
    if kind is None:
        return value
    if kind != "table":
        raise ScriptError(f"a {kind} is no value of a setting")
    if depth > _MAX_NESTING:
        raise ScriptError("tables in it are too deep, or contain themselves")
    items = {to_python(key): to_python(item, depth + 1) for key, item in value.items()}
    items = dict(sorted(items.items(), key=lambda item: str(item[0])))  # Lua has no order of its own
    return [items[n + 1] for n in range(len(items))] if _is_array(items) else items


def numbered(value: Any, default: Any) -> Any:
    """A setting from TOML, whose keys are text, with numbers as keys where the default has them."""
    if not isinstance(value, dict) or not isinstance(default, dict):
        return value
    if not all(isinstance(key, int) for key in default) or not all(str(key).isdecimal() for key in value):
        return value
    return {int(key): item for key, item in value.items()}


def plain_info(value: Any) -> Any:
    """The info of a status: text, a dictionary, or None, made of what JSON can hold, and not too large."""
    info = _FromLua().value(value)
    return dict(enumerate(info, 1)) if isinstance(info, list) else info


class _FromLua(Plain):
    """Tables of Lua, too."""

    def value(self, value: Any, depth: int = 0) -> Any:
        kind = lua_type(value)
        if kind is None:
            return super().value(value, depth)
        if kind != "table":
            return str(kind)
        copy = self.table(value.items(), depth)
        if depth < MAX_DEPTH and CUT not in copy and copy and _is_array(copy):
            return [copy[n + 1] for n in range(len(copy))]
        return copy


def _is_array(items: dict[Any, Any]) -> bool:
    return all(isinstance(key, int) and 1 <= key <= len(items) for key in items)
