"""The flow table: flows by key, with a bound, and the timers of flows.

A flow stands under the key that its first packet had; packets of the other direction are looked up by the
reverse of theirs.

Timers cost a live flow nothing per packet: a flow waits in the bucket of the second at which it could first
be due; when that comes and packets have moved the flow's own time on, it is put off, not acted upon.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from nedge.core.flow import Flow
from nedge.core.packet import reverse_key
from nedge.core.walk import Walk, every_flow

_NEVER: Final = float("inf")


class FlowTable:
    """Live flows."""

    def __init__(self, max_flows: int) -> None:
        self.max_flows = max_flows
        self._flows: dict[bytes, Flow] = {}
        self._buckets: dict[int, tuple[int, deque[Flow]]] = {}
        """The second, again (for all flows that wait for it to share one number), and who waits."""
        self._seconds: list[int] = []  # heap of the keys of _buckets
        self.next_wake: float = _NEVER
        """When the next timer is due, in epoch seconds."""
        self._walks: list[Walk] = []

    @property
    def count(self) -> int:
        return len(self._flows)

    @property
    def full(self) -> bool:
        return len(self._flows) >= self.max_flows

    def get(self, key: bytes) -> Flow | None:
        """The flow of a key, of either direction. The per-packet lookup."""
        flow = self._flows.get(key)
        return self._flows.get(reverse_key(key)) if flow is None else flow

    def add(self, flow: Flow) -> None:
        self._flows[flow.key] = flow

    def remove(self, flow: Flow) -> None:
        """Forget a flow. Its timer, if any, finds it gone."""
        key = flow.key
        if self._flows.get(key) is not flow:
            key = reverse_key(key)  # it may have turned round
        if self._flows.get(key) is flow:
            del self._flows[key]

    def __contains__(self, flow: Flow) -> bool:
        return self.get(flow.key) is flow

    def __iter__(self) -> Iterator[Flow]:
        """Each flow, in order of arrival; the table may change meanwhile."""
        for flow in list(self._flows.values()):
            if flow in self:
                yield flow

    def walk(self) -> Iterator[Flow]:
        """Every flow, in no order, without a copy of the table: for who goes step by step through very many.

        The table may change between steps. A flow that is here all the while comes once at least.
        """
        return every_flow(self.__contains__, self._buckets, self._walks)

    def wake_at(self, flow: Flow, when: float) -> None:
        """Have `due` give the flow once `when` (epoch seconds) has passed. Replaces what was asked before."""
        second = int(when) + 1
        for walk in self._walks:
            if second <= walk.second:
                walk.called_earlier.append(flow)
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = second, deque()
            heappush(self._seconds, second)
            self.next_wake = float(self._seconds[0])
        flow.timer, flows = bucket
        flows.append(flow)

    def due(self, now: float) -> Iterator[tuple[float, Flow]]:
        """Flows that are still here and whose time has come, with that time, in order of it.

        Each wants a new `wake_at`, or `remove`. Whoever stops early gets the rest another time.
        """
        while self._seconds and self._seconds[0] <= now:
            second = self._seconds[0]
            _, flows = self._buckets[second]
            while flows:
                flow = flows.popleft()
                if flow.timer == second and flow in self:
                    yield float(second), flow
            heappop(self._seconds)
            del self._buckets[second]
            self.next_wake = float(self._seconds[0]) if self._seconds else _NEVER
