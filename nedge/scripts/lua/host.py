"""What Lua scripts are allowed, and what they share."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from nedge.scripts.check import ProtocolIds

MEMORY_MB = 64
_MAX_KEYS = 10_000
_MAX_VALUE = 65536


class Cache:
    """ntopng's cache: text by key, shared by all scripts of one worker. The oldest goes when it is full."""

    def __init__(self) -> None:
        self._values: OrderedDict[bytes, tuple[bytes, int]] = OrderedDict()

    def get(self, key: bytes, now: int) -> bytes:
        """The value; empty if there is none, or not any more."""
        value, until = self._values.get(key, (b"", 0))
        if until and now >= until:
            del self._values[key]
            return b""
        return value

    def set(self, key: bytes, value: bytes | None, until: int = 0) -> None:
        """Keep a value, until a time (epoch seconds) if one is given; None forgets it."""
        self._values.pop(key, None)
        if value is None:
            return
        if len(key) + len(value) > _MAX_VALUE:
            raise ValueError(f"the cache takes keys and values of {_MAX_VALUE} bytes at most")
        self._values[key] = (value, until)
        if len(self._values) > _MAX_KEYS:
            self._values.popitem(last=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What all Lua scripts that are loaded together have in common."""

    protocol_id: ProtocolIds = lambda name: None  # noqa: ARG005
    protocol_name: Callable[[int], str] = lambda number: "Unknown"  # noqa: ARG005
    risk_name: Callable[[int], str] = lambda number: f"risk {number}"
    memory_mb: int = MEMORY_MB
    """What each runtime may take, at most."""
    allow: frozenset[str] = frozenset()
    """Libraries that scripts get whole: io, os. They reach files and processes with the rights of nedge."""
    cache: Cache = field(default_factory=Cache)
