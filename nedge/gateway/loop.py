"""A worker's loop: what is readable, what has to be done now and then, and what is late.

Every packet that comes alone comes through here, mostly upon cold caches: so it is compiled, and short.
"""

from __future__ import annotations

import select
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Protocol


class Readable(Protocol):
    """Anything with a file descriptor."""

    def fileno(self) -> int: ...


class Timer:
    """A step that is due every so many seconds (inf: only when it is told), by the monotonic clock."""

    __slots__ = ("due", "seconds", "step")

    def __init__(self, seconds: float, step: Callable[[], object]) -> None:
        self.seconds = seconds
        self.step = step
        self.due = monotonic() + seconds


class Loop:
    """Goes on until `stop()`."""

    def __init__(self, late: Callable[[], bool], catch_up: Callable[[], object]) -> None:
        """`late`: whether there is work that nothing announces; `catch_up`: do a little of it."""
        self._late = late
        self._catch_up = catch_up
        self._poll = select.epoll()
        self._ready: dict[int, Callable[[], object]] = {}
        self._timers: list[Timer] = []
        self._due = inf
        """When the first of them is due."""
        self.stopping = False
        """Whether `stop()` was called."""

    def watch(self, file: Readable | int, ready: Callable[[], object]) -> None:
        """Call `ready` whenever a file, or a descriptor, is readable."""
        descriptor = file if isinstance(file, int) else file.fileno()
        self._poll.register(descriptor, select.EPOLLIN)
        self._ready[descriptor] = ready

    def every(self, seconds: float, step: Callable[[], object]) -> Timer:
        """Call `step` about every so many seconds."""
        timer = Timer(seconds, step)
        self._timers.append(timer)
        self._due = min(self._due, timer.due)
        return timer

    def soon(self, timer: Timer, seconds: float) -> None:
        """Have a timer run in so many seconds."""
        timer.due = monotonic() + seconds
        self._due = min(self._due, timer.due)

    def stop(self) -> None:
        """End after what is in hand."""
        self.stopping = True

    def run(self, seconds: float = inf) -> None:
        """Until `stop()`, or for so many seconds."""
        end = monotonic() + seconds
        while not self.stopping:
            now = monotonic()
            if now >= end:
                break
            patience = 0.0 if self._late() else max(0.0, min(self._due, end) - now)
            for descriptor, _events in self._poll.poll(patience if patience < inf else None):
                self._ready[descriptor]()
            if self._late():
                self._catch_up()
            now = monotonic()
            if now >= self._due:
                self._run_timers(now)

    def _run_timers(self, now: float) -> None:
        for timer in self._timers:
            if timer.due <= now:
                timer.due = now + timer.seconds
                timer.step()
        self._due = min(timer.due for timer in self._timers)

    def close(self) -> None:
        """Watch nothing any more."""
        self._poll.close()
