"""The process that writes what leaves nedge: events, history, metrics. Packets never wait for it.

It reads batches of lines from all workers, and hears from the supervisor how the gateway is. When it is told
to stop, it first writes all that is still in the channel.
"""

from __future__ import annotations

import math
import selectors
import socket
import time
from collections.abc import Callable
from typing import Any, Protocol

import structlog

from nedge.config import Config
from nedge.export.eve import to_json
from nedge.export.files import EventFile
from nedge.export.history import History
from nedge.export.metrics import Metrics
from nedge.export.snapshot import Snapshot, stats_record

TICK = 1.0
HELD = ("events_lost", "history_lost")
"""What is not written yet, as it would be called if the process were killed now."""
_LARGEST_BATCH = 1 << 20
_AT_ONCE = 1 << 20
"""Bytes that are written at once, about."""

_log = structlog.get_logger(__name__)

Message = dict[str, Any]


class Link(Protocol):
    """The supervisor's other end."""

    def fileno(self) -> int: ...
    def send(self, message: Message) -> bool: ...
    def receive(self) -> list[Message] | None: ...


def event_file(config: Config) -> EventFile | None:
    """The event file that a configuration asks for, not open yet."""
    eve = config.eve
    if eve.path is None:
        return None
    return EventFile(
        eve.path,
        rotate_bytes=eve.rotate_megabytes * 1_000_000,
        rotate_seconds=eve.rotate_hours * 3600,
        keep=eve.keep,
    )


def history(config: Config) -> History | None:
    """The history that a configuration asks for; nothing is opened yet."""
    section = config.history
    if section.path is None:
        return None
    return History(section.path, max_days=section.max_days, max_bytes=section.max_megabytes * 1_000_000)


class Exporter:
    """The work of that process."""

    def __init__(self, config: Config, reader: socket.socket, link: Link, held: memoryview[int]) -> None:
        """held: where to tell what is not written yet, in the order of HELD."""
        self._held = held
        self._reader = reader
        self._link = link
        self._file = event_file(config)
        if self._file:
            self._file.reopen()
        self._history = history(config)
        self._stats_seconds = config.eve.stats_seconds if self._file else 0.0
        self._next_stats = time.monotonic() + self._stats_seconds if self._stats_seconds else math.inf
        self._next_tick = 0.0
        self._stopping = False
        self.snapshot = Snapshot()
        self._metrics = Metrics(config, self.snapshot, self.figures) if config.metrics.listen else None

    def run(self) -> None:
        """Until told to stop, or nobody is left who could."""
        with selectors.DefaultSelector() as selector:
            ready: list[tuple[Any, Callable[[], object]]] = [
                (self._reader, self._take),
                (self._link, self._hear),
            ]
            for file, step in ready:
                selector.register(file, selectors.EVENT_READ, step)
            while not self._stopping:
                now = time.monotonic()
                if now >= self._next_tick:
                    self._next_tick = now + TICK
                    self._tick(now)
                for key, _events in selector.select(max(0.0, self._next_tick - time.monotonic())):
                    key.data()
        while self._take():
            pass

    def close(self) -> None:
        """Close all files."""
        if self._file:
            self._file.close()
        if self._history:
            self._history.close()
            self._hold(1, 0)
        if self._metrics:
            self._metrics.close()

    def _take(self) -> bool:
        """Write batches that are there; whether there were any."""
        batches, size = [], 0
        while size < _AT_ONCE:
            try:
                batch = self._reader.recv(_LARGEST_BATCH)
            except BlockingIOError:
                break
            if not batch:
                break
            batches.append(batch)
            size += len(batch)
        if batches:
            lines = b"".join(batches)
            self._write(lines)
            if self._history:
                self._history.take(lines)
                self._hold(1, self._history.waiting)
                self._history.write_if_due()
                self._hold(1, self._history.waiting)
        return bool(batches)

    def _write(self, lines: bytes) -> None:
        if self._file:
            count = lines.count(b"\n")
            self._hold(0, count)
            self._file.write(lines, count)
            self._hold(0, 0)

    def _hold(self, which: int, count: int) -> None:
        self._held[which] = count

    def _hear(self) -> None:
        messages = self._link.receive()
        if messages is None:  # no supervisor any more
            self._stopping = True
            return
        for message in messages:
            self.snapshot.take(message)
            if "scores" in message and self._history:
                self._history.add_scores(time.time(), message["scores"])
            if "reopen" in message and self._file:
                self._file.reopen()
            self._stopping = self._stopping or "stop" in message

    def _tick(self, now: float) -> None:
        if self._file:
            self._file.tick()
        if self._history:
            self._history.tick()
            self._hold(1, self._history.waiting)
        if self._metrics:
            self._metrics.tick()
        if now >= self._next_stats:
            self._next_stats = now + self._stats_seconds
            self._write(to_json(stats_record(self.snapshot, time.time())))
        self._link.send({"figures": self.figures()})

    def figures(self) -> dict[str, int]:
        """Counters of what was written and lost."""
        figures: dict[str, int] = {}
        if self._file:
            figures |= {
                "events_written": self._file.written,
                "events_lost": self._file.lost,
                "eve_rotations": self._file.rotations,
                "eve_failures": self._file.failures,
            }
        if self._history:
            figures |= {
                "history_written": self._history.written,
                "history_lost": self._history.lost,
                "history_failures": self._history.failures,
            }
        if self._metrics:
            figures |= self._metrics.figures()
        return figures
