"""What scripts hand over to be kept: made of nothing but what JSON can hold, and not too large."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

MAX_DEPTH = 8
MAX_ITEMS = 500
"""In all tables together."""
MAX_TEXT = 8192
"""Characters of one string."""
CUT = "…"
"""Stands where something was left out."""


def plain(value: Any) -> Any:
    """A copy of dictionaries, lists, strings, numbers, booleans and None; anything else becomes its text."""
    return Plain().value(value)


class Plain:
    """One copy; subclasses know of further kinds of values."""

    def __init__(self) -> None:
        self._left = MAX_ITEMS

    def value(self, value: Any, depth: int = 0) -> Any:
        """A copy of one value."""
        if value is None or isinstance(value, bool | int | float):
            return value
        if isinstance(value, str):
            return _cut(value)
        if isinstance(value, bytes | bytearray):
            return _cut(bytes(value[: MAX_TEXT + 1]).decode(errors="backslashreplace"))
        if isinstance(value, Mapping):
            return self.table(value.items(), depth)
        if isinstance(value, list | tuple | Set):
            return list(self.table(enumerate(value), depth).values())
        return _cut(str(value))

    def table(self, items: Any, depth: int) -> dict[Any, Any]:
        """A copy of pairs of key and value."""
        copy: dict[Any, Any] = {}
        if depth >= MAX_DEPTH:
            return {CUT: CUT} if any(True for _ in items) else copy
        for key, value in items:
            if self._left <= 0:
                copy[CUT] = CUT
                break
            self._left -= 1
            copy[self.key(key)] = self.value(value, depth + 1)
        return copy

    @staticmethod
    def key(key: Any) -> Any:
        """A key of JSON: text, or a whole number."""
        if isinstance(key, int) and not isinstance(key, bool):
            return key
        text = key.decode(errors="backslashreplace") if isinstance(key, bytes) else str(key)
        return _cut(text)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + CUT
