"""One worker: a queue, an engine, and the loop between them.

packet waits -> engine -> verdict        as it comes, in batches
engine.advance()                         every second at least
signal                                   ends the loop
"""

from __future__ import annotations

import contextlib
import math
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any, Literal, Protocol

import structlog

from nedge.core.flow import Flow, Share
from nedge.core.marks import Marks
from nedge.gateway.accounting import Accounting, Books
from nedge.kernel.conntrack import Conntrack
from nedge.kernel.queue import Judge, PacketQueue

Mode = Literal["inline", "monitor"]

TICK = 1.0
"""Seconds between two runs of the engine's timers."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = structlog.get_logger()


class Engine(Books, Protocol):
    """What the worker asks of the engine."""

    def packet(self, data: bytes, now: float, vlan: int = 0, mac: bytes = b"", /) -> int:
        """Judge one packet, from its IP header on: 0 is pass."""

    def advance(self, now: float, /) -> object:
        """Run what is due."""

    def finish(self, now: float, /) -> object:
        """End all flows."""

    # With a kernel that takes flows over, also:

    share: Share
    """What the kernel shall do with the flow of the latest packet."""
    remark: Callable[[Flow], None] | None
    """To be called when the share of a flow that the kernel has changes."""


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP as something to select on; from the moment it is made, none is lost."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._note) for number in STOP_SIGNALS}

    def fileno(self) -> int:
        """Readable after a signal."""
        return self._reader.fileno()

    def consume(self) -> None:
        """Make `fileno()` quiet again."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._reader.close()
        self._writer.close()

    def _note(self, number: int, _frame: object) -> None:
        self.received = number


class Worker:
    """Feeds what waits in one queue to one engine, until it is stopped."""

    def __init__(
        self,
        engine: Engine,
        *,
        number: int,
        length: int,
        mode: Mode,
        fail_open: bool,
        marks: Marks | None = None,
        gso: bool = True,
    ) -> None:
        """Bind the queue. Raises KernelError if it is taken.

        marks: the kernel takes decided flows over, by these.
        """
        self.engine = engine
        self.mode = mode
        self._marks = marks
        self._conntrack: Conntrack | None = None
        self._accounting: Accounting | None = None
        self.errors = 0
        """Exceptions out of the engine: each cost a packet its verdict, and the failure policy decided."""
        self._error_log = _OncePerSecond()
        self._stopping = False
        self._due = time.monotonic() + TICK
        self._selector = selectors.DefaultSelector()
        self.queue = PacketQueue(
            number,
            self._judge(),
            length=length,
            fail_open=fail_open,
            on_error=self._engine_failed,
            mark_mask=marks.mask if marks else 0,
            gso=gso,
        )
        self.watch(self.queue.fileno(), self.queue.drain)
        if marks:
            self._hand_over(marks)

    def _hand_over(self, marks: Marks) -> None:
        """Let the kernel take over decided flows, and keep account of them."""
        self._conntrack = conntrack = Conntrack()
        self._accounting = Accounting(self.engine, conntrack, marks)
        self.watch(conntrack.fileno(), self._accounting.ends_arrived)
        self.watch(conntrack.dump_fileno, self._accounting.dump_arrived)

        def remark(flow: Flow) -> None:
            conntrack.set_mark(flow.key, marks.value(self._as_allowed(flow.share)), marks.mask)

        self.engine.remark = remark

    def _as_allowed(self, share: Share) -> Share:
        """Who only watches drops nothing."""
        return Share.PASS if share is Share.DROP and self.mode == "monitor" else share

    def _judge(self) -> Judge:
        """Packet -> what the queue shall do with it. The hot path."""
        engine, packet, clock = self.engine, self.engine.packet, time.time
        if self._marks is None:
            if self.mode == "monitor":
                return lambda data, mac: packet(data, clock(), 0, mac) and 0
            return lambda data, mac: packet(data, clock(), 0, mac)

        values = tuple(self._marks.value(self._as_allowed(share)) for share in Share)
        monitor = self.mode == "monitor"

        def judge(data: bytes, mac: bytes) -> int:
            action = packet(data, clock(), 0, mac)
            return values[engine.share] or (0 if monitor else action)

        return judge

    def watch(self, fileobj: Any, ready: Callable[[], None]) -> None:
        """Call `ready` from the loop whenever `fileobj` is readable."""
        self._selector.register(fileobj, selectors.EVENT_READ, ready)

    def stop(self) -> None:
        """End the loop after what is in hand."""
        self._stopping = True

    @property
    def stopping(self) -> bool:
        """Whether `stop()` was called."""
        return self._stopping

    def run(self, seconds: float = math.inf) -> None:
        """The loop, until `stop()` or for so many seconds."""
        end = time.monotonic() + seconds
        while not self._stopping and (now := time.monotonic()) < end:
            for key, _events in self._selector.select(max(0.0, min(self._due, end) - now)):
                key.data()
            if time.monotonic() >= self._due:
                self._guarded(self.engine.advance)
                if self._accounting:
                    self._accounting.tick()
                self._due = time.monotonic() + TICK

    def close(self) -> None:
        """Judge what still waits, let the queue go, end the flows. The rules must be gone by now."""
        self._selector.close()
        self.queue.close()
        if self._accounting:
            self._accounting.finish()
        self._guarded(self.engine.finish)
        if self._conntrack:
            self._conntrack.close()

    def _guarded(self, step: Callable[[float], object]) -> None:
        try:
            step(time.time())
        except Exception as error:
            self._engine_failed(error)

    def _engine_failed(self, error: BaseException) -> None:
        """The engine must not raise; if it does, traffic goes on, and the log says so, not too often."""
        self.errors += 1
        if self._error_log.may():
            with contextlib.suppress(Exception):  # a log that cannot be written must not stop traffic
                log.error("engine_error", error=repr(error), errors=self.errors, exc_info=error)


class _OncePerSecond:
    def __init__(self) -> None:
        self._next = 0.0

    def may(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 1.0
        return True


@contextlib.contextmanager
def stop_signals() -> Iterator[StopSignals]:
    """Catch the stop signals for the length of a block."""
    signals = StopSignals()
    try:
        yield signals
    finally:
        signals.close()
