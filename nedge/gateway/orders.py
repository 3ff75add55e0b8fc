"""The operator's orders on disk, so that they outlive a restart; and as messages to the workers.

One file per bridge, DIRECTORY/<bridge>.orders.json. It is replaced whole, or not at all.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any, Literal

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from nedge.core.orders import Kind, Order, OrderBook, TargetError, flow_target, parse_target
from nedge.core.packet import HEAD_LENGTH
from nedge.core.verdict import Operator

log = structlog.get_logger()


class _Entry(BaseModel):
    """An order as it is written down."""

    model_config = ConfigDict(extra="forbid", strict=True)

    id: int
    word: Literal["block", "unblock"]
    kind: Literal["flow", "host", "network", "domain"]
    target: str
    key: str = ""
    until: float = 0.0
    made: float = 0.0
    by: str = ""
    reason: str = ""

    @model_validator(mode="after")
    def _is_whole(self) -> _Entry:
        """Something may have been changed by hand: what an order is about must be as nedge writes it."""
        if self.kind == "flow":
            key = bytes.fromhex(self.key)
            if len(key) not in (HEAD_LENGTH + 12, HEAD_LENGTH + 36) or self.target != flow_target(key):
                raise ValueError(f"order {self.id}: the key is not that of flow {self.target!r}")
        elif parse_target(self.target) != (self.kind, self.target):
            raise ValueError(f"order {self.id}: {self.target!r} is no {self.kind}")
        return self


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    version: Literal[1]
    next: int
    """The number of the next order: numbers are not used twice."""
    orders: list[_Entry]


def order_message(order: Order) -> dict[str, Any]:
    """An order as JSON: in the file, to the workers, to clients."""
    return {
        "id": order.id,
        "word": order.word.name.lower(),
        "kind": str(order.kind),
        "target": order.target,
        "key": order.key.hex(),
        "until": order.until,
        "made": order.made,
        "by": order.by,
        "reason": order.reason,
    }


def order_from(message: dict[str, Any]) -> Order:
    """The order that `order_message` made this of."""
    word, kind = Operator[message["word"].upper()], Kind(message["kind"])
    return Order(**message | {"word": word, "kind": kind, "key": bytes.fromhex(message["key"])})


class OrderFile:
    """The book of orders with its file. Reading it never fails: a damaged file is set aside."""

    def __init__(self, directory: Path, bridge: str) -> None:
        self.path = directory / f"{bridge}.orders.json"
        self.book = OrderBook()
        self.next = 1
        self.damaged = 0
        """Files that were set aside."""
        self.unstored = 0
        """Times that it could not be written: what is in force then ends with this gateway, unless a later
        attempt succeeds."""
        self._is_stored = True

    def load(self) -> None:
        """Read what was ordered before. Orders that have ended since are in it, too: they have yet to end."""
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            self.damaged += 1
            log.error("orders_unreadable", path=str(self.path), error=error.strerror)
            return
        try:
            file = _File.model_validate_json(text)
        except (ValidationError, TargetError) as error:
            self._set_aside(error)
            return
        self.next = max([file.next, *(entry.id + 1 for entry in file.orders)])
        for entry in file.orders:
            self.book.add(order_from(entry.model_dump()))

    def _set_aside(self, error: ValueError) -> None:
        """Keep the damaged file for the operator, and go on without orders."""
        self.damaged += 1
        kept = self.path.with_suffix(f".damaged-{int(time.time())}")
        what = " ".join(str(error).split())[:500]
        try:
            self.path.rename(kept)
        except OSError as problem:
            what += f" (and it could not be set aside: {problem.strerror})"
        log.error("orders_damaged", path=str(self.path), kept=str(kept), error=what)

    def store_again(self) -> None:
        """Write the book down, if it could not be when it changed: there may be room on the disk again."""
        if not self._is_stored and not self.store():
            log.info("orders_stored", path=str(self.path), orders=len(self.book))

    def store(self) -> str:
        """Write the book down. Gives a sentence where that fails, else nothing."""
        orders = [_Entry(**order_message(order)) for order in self.book]
        text = _File(version=1, next=self.next, orders=orders).model_dump_json(indent=1)
        fresh = self.path.with_suffix(".new")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with fresh.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            fresh.rename(self.path)
            directory = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            self._is_stored = False
            self.unstored += 1
            if self.unstored & (self.unstored - 1) == 0:  # 1st, 2nd, 4th, 8th …
                log.error("orders_unstored", path=str(self.path), error=error.strerror, times=self.unstored)
            return f"{self.path}: cannot be written: {error.strerror}"
        self._is_stored = True
        return ""
