"""The control protocol, version 1: what goes over the gateway's unix socket. In full: deploy/CONTROL.md.

A request is a line of JSON, and so is each part of the answer. Further requests may go over the same
connection; they are answered in order.

    -> {"version": 1, "command": "flows", "sort": "bytes", "limit": 10}
    <- {"version": 1, "columns": ["id", "src_ip", ...], "rows": [["0-17", "10.0.0.5", ...], ...]}
    <- {"version": 1, "ok": true, "result": {"matched": 2, "looked_at": 40, "silent": []}}

Listings have any number of lines with rows before the last; all other answers are the last line alone. Where
a request fails, that is

    <- {"version": 1, "ok": false, "kind": "usage", "error": "a sentence"}
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import orjson

VERSION = 1
MAX_REQUEST = 64 * 1024
"""Bytes of a request line at most."""
MAX_LIMIT = 100_000
MAX_REASON = 200
LONGEST_ORDER = 10 * 366 * 86400.0
"""Seconds."""

Message = dict[str, Any]


class Kind(StrEnum):
    """Why a request failed."""

    USAGE = "usage"
    """The request is wrong: nothing was done."""
    PERMISSION = "permission"
    """This user may not."""
    BUSY = "busy"
    """Too many clients."""
    FAILED = "failed"
    """It was tried, and failed."""


class ControlError(Exception):
    """A request that failed. The message is a sentence, or a line for each problem."""

    def __init__(self, kind: Kind, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class FlowSort(StrEnum):
    """By what flows are sorted, the highest first."""

    START = "start"
    LAST = "last"
    SCORE = "score"
    BYTES = "bytes"
    PACKETS = "packets"
    DROPPED = "dropped"


class HostSort(StrEnum):
    """By what hosts are sorted, the highest first."""

    SCORE = "score"
    FLOWS = "flows"
    BYTES = "bytes"
    BLOCKED = "blocked"


def encode(message: Message) -> bytes:
    """A message as a line. Text that is no Unicode becomes replacement characters."""
    try:
        return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        cleaned: Message = plain(message)
        return orjson.dumps(cleaned, option=orjson.OPT_APPEND_NEWLINE)


MAX_TEXT = 1000
_MAX_ITEMS, _MAX_DEPTH = 200, 8


def plain(value: Any, depth: int = 0) -> Any:
    """Anything as something that JSON can hold, cut where it is very long or deep."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        items = list(value.items())[:_MAX_ITEMS]
        return {plain(str(key)): plain(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth < _MAX_DEPTH:
        return [plain(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
    try:
        text = str(value)
    except Exception as error:
        text = f"({type(value).__name__} that cannot be printed: {type(error).__name__})"
    text = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
    return text.encode("utf-8", "replace").decode()
