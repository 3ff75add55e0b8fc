"""Counts what no worker got to see, though the rules sent it to a queue.

With fail-open the kernel passes such packets, where a queue is full or nobody listens to it, and counts them
nowhere. So they are what the rules sent, without what the queues took and what they dropped when full.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

import structlog

from nedge.kernel.errors import KernelError
from nedge.kernel.queue import QueueStats, read_stats

LOOK_SECONDS = 5.0
"""Between two readings of the rules; queues are read at every tick, as they forget all when a worker ends."""

_log = structlog.get_logger()


class Unjudged:
    """The count, as sure as can be: what is on its way between rules and queues is not in it.

    After a worker's death it may have a few too many, those that came since the tick before. Large
    packets, which the kernel cuts up for the queue, hide as many as they have parts.
    """

    def __init__(self, sent: Callable[[], tuple[int, int]], taken: Callable[[], int], queues: range) -> None:
        """sent: the packets that the rules sent to the queues, and how often they were put in anew, which has
        them count from 0. May raise KernelError.
        taken: the packets that came to the queues by what workers said last."""
        self.packets = 0
        self._sent = sent
        self._taken = taken
        self._queues = queues
        self._latest: dict[int, QueueStats] = {}
        self._gone = 0
        """What queues took that are no more."""
        self._installed = -1
        self._surplus = 0
        """Sent, without taken, when the rules were last found new."""
        self._next_look = 0.0
        self._last_sent: int | None = None

    def tick(self) -> None:
        """To be called a few times a second."""
        if time.monotonic() < self._next_look:
            self._read_queues()
        else:
            self.look()

    def look(self) -> None:
        """Count."""
        self._next_look = time.monotonic() + LOOK_SECONDS
        try:
            sent, installed = self._sent()  # before the queues: so nothing is missed in these that it has
        except KernelError as error:
            _log.warning("unjudged_packets_not_counted", reason=str(error))
            return
        self._read_queues()
        if installed != self._installed:
            self._installed = installed
            self._surplus = sent - self._all_taken() - self.packets
        self._count(sent)

    def stop(self) -> None:
        """The rules will be gone when workers have said their last; so look at these now, and count then."""
        with contextlib.suppress(KernelError):
            sent, installed = self._sent()
            if installed == self._installed:
                self._last_sent = sent

    def figures(self) -> dict[str, int]:
        """The counter."""
        if self._last_sent is not None:
            self._count(self._last_sent)
        return {"unjudged_packets": self.packets}

    def _count(self, sent: int) -> None:
        self.packets = max(self.packets, sent - self._all_taken() - self._surplus)

    def _all_taken(self) -> int:
        return max(self._taken(), self._gone + sum(stats.taken for stats in self._latest.values()))

    def _read_queues(self) -> None:
        now = read_stats()
        for number in self._queues:
            before, stats = self._latest.get(number), now.get(number)
            if before and (stats is None or stats.port_id != before.port_id):
                self._gone += before.taken
                del self._latest[number]
            if stats:
                self._latest[number] = stats
