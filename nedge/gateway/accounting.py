"""Counters and ends of flows that the kernel took over, from its connection table into the engine.

Ends come as events, with the final counters. The kernel lets go of connections that have run out only now and
then, up to a minute late; walking its table makes it do so, so it is asked every few seconds for connections
that do not exist. Live counters are read every half minute, in parts, between packets.

A reading also meets connections that are no flow here: a worker or a gateway that died left them decided in
the kernel. Where an operator's order is about such a connection, and contradicts what was decided, it loses
its mark: it comes up again and is judged by the order.
"""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable

from nedge.core.engine import Engine
from nedge.core.flow import Share
from nedge.core.marks import Marks
from nedge.core.orders import Cover, Kind, Order
from nedge.core.verdict import Operator
from nedge.kernel.bridge import CLOSED_SECONDS
from nedge.kernel.conntrack import Conntrack
from nedge.kernel.ctnetlink import Connection

EVICTION_SECONDS = 5.0
READING_SECONDS = 30.0
LAST_READING_SECONDS = 2.0
SILENCE = CLOSED_SECONDS
"""Seconds without a packet before the kernel gives up the connection that it keeps shortest."""


class Accounting:
    """Drives one conntrack handle for one engine; the worker's loop calls it."""

    def __init__(
        self, engine: Engine, conntrack: Conntrack, marks: Marks, clock: Callable[[], float]
    ) -> None:
        """`clock`: epoch seconds, as the engine is told them."""
        self._clock = clock
        self._engine = engine
        self._conntrack = conntrack
        self._marks = marks
        now = time.monotonic()
        self._next_eviction = now + EVICTION_SECONDS
        self._next_reading = now + READING_SECONDS
        self._to_read: list[tuple[int, int]] = []
        """Dumps (mark, mask) that the reading under way still needs."""
        self._reading = False
        self._recalls: list[Cover] = []
        """What the next reading is to look for, and (then) the one under way."""
        self._recalling: list[Cover] = []

    def recall(self, order: Order) -> None:
        """An order was given, or has ended: see to connections that it covers, and no flow stands for."""
        if order.kind is Kind.DOMAIN:
            return  # what names they asked for is not known any more
        self._recalls.append(Cover(order))
        self._next_reading = time.monotonic()

    def tick(self) -> None:
        """Start what is due; to be called about every second."""
        now = time.monotonic()
        if self._conntrack.dumping:
            return
        if now >= self._next_reading:
            self._next_reading = now + READING_SECONDS
            self._next_eviction = now + EVICTION_SECONDS
            self._begin()
        elif now >= self._next_eviction and self._engine.table.count:
            self._next_eviction = now + EVICTION_SECONDS
            # A generation without a share is never set.
            self._conntrack.start_dump(self._marks.mask & ~self._marks.share_mask, self._marks.mask)

    def finish(self) -> None:
        """One last reading, so that the records of flows which end now are true."""
        deadline = time.monotonic() + LAST_READING_SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self._conntrack.dump_fileno, selectors.EVENT_READ)
            started = False
            while time.monotonic() < deadline and not (started and not self._reading):
                if not self._conntrack.dumping and not self._reading:
                    started = True
                    self._begin()
                if selector.select(0.1):
                    self.dump_arrived()

    def _begin(self) -> None:
        """Begin a reading: of all connections that the kernel has a share in."""
        one_bit = Share.PASS << self._marks.shift  # PASS and WATCH have it
        self._to_read = [(one_bit, one_bit), (Share.DROP << self._marks.shift, self._marks.share_mask)]
        self._reading = True
        self._recalling, self._recalls = self._recalls, []
        self._conntrack.dump_failed = False
        self._engine.offload.begin_reading()
        self._continue()

    def _continue(self) -> None:
        if self._to_read:
            self._conntrack.start_dump(*self._to_read.pop())
        elif self._reading:
            self._reading = False
            if not self._conntrack.dump_failed:  # else nothing is known of what it did not give
                self._engine.offload.end_reading()

    def dump_arrived(self) -> None:
        """A part of a dump is there."""
        self._take(self._conntrack.dumped())
        if not self._conntrack.dumping:
            self._continue()

    def ends_arrived(self) -> None:
        """Events are there."""
        self._take(self._conntrack.ended())

    def _take(self, connections: list[Connection]) -> None:
        now = self._clock()
        for key, mark, packets, size, packets_back, size_back, gone in connections:
            last = now - (SILENCE if gone else 0)
            self._engine.offload.account(key, (packets, size), (packets_back, size_back), last, ended=gone)
            if self._recalling and not gone and self._contradicted(key, mark):
                self._conntrack.set_mark(key, 0, self._marks.mask)

    def _contradicted(self, key: bytes, mark: int) -> bool:
        """Whether a connection that is no flow here is decided otherwise than orders have it."""
        if self._engine.table.get(key) is not None or not any(cover.key(key) for cover in self._recalling):
            return False
        word, share = self._engine.verdicts.orders.word_on_connection(key), self._marks.share_of(mark)
        return share is not Share.DROP if word is Operator.BLOCK else share is Share.DROP
