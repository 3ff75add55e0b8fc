"""The flow table: flows by key, with a bound, and the timers of flows.

Every flow stands under the keys of both its directions: one slice of the packet finds it.

Timers cost a live flow nothing per packet: a flow waits in the bucket of the second at which it could first
be due; when that comes and packets have moved the flow's own time on, it is put off, not acted upon.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush

from nedge.core.flow import Flow
from nedge.core.packet import reverse_key

_NEVER = float("inf")


class _Walk:
    """How far somebody is on the way through all flows."""

    def __init__(self) -> None:
        self.second = -1
        """Of the bucket that he is in."""
        self.called_earlier: list[Flow] = []


class FlowTable:
    """Live flows. `get` is the per-packet lookup."""

    def __init__(self, max_flows: int) -> None:
        self.max_flows = max_flows
        self.count = 0
        self._flows: dict[bytes, Flow] = {}
        self.get = self._flows.get
        """Key of either direction -> Flow, or None."""
        self._buckets: dict[int, list[Flow]] = {}
        self._seconds: list[int] = []  # heap of the keys of _buckets
        self.next_wake = _NEVER
        """When the next timer is due, in epoch seconds."""
        self._walks: list[_Walk] = []

    @property
    def full(self) -> bool:
        return self.count >= self.max_flows

    def add(self, flow: Flow) -> None:
        flows = self._flows
        flows[flow.key] = flow
        flows[reverse_key(flow.key)] = flow
        self.count += 1

    def remove(self, flow: Flow) -> None:
        """Forget a flow. Its timer, if any, finds it gone."""
        flows = self._flows
        if flows.get(flow.key) is flow:
            del flows[flow.key]
            flows.pop(reverse_key(flow.key), None)  # the same key where both ends are one
            self.count -= 1

    def __contains__(self, flow: Flow) -> bool:
        return self._flows.get(flow.key) is flow

    def __iter__(self) -> Iterator[Flow]:
        """Each flow once, in order of arrival; the table may change meanwhile."""
        for key, flow in list(self._flows.items()):
            if key == flow.key and flow in self:
                yield flow

    def walk(self) -> Iterator[Flow]:
        """Every flow, in no order, without a copy of the table: for who goes step by step through very many.

        The table may change between steps. A flow that is here all the while comes once at least.
        """
        walk = _Walk()
        self._walks.append(walk)
        try:
            # Each flow stands in the bucket of its timer. One that is put off goes to a later bucket; one
            # that is called earlier would be missed: `wake_at` tells of it.
            while ahead := [second for second in self._seconds if second > walk.second]:
                walk.second = min(ahead)
                for flow in list(self._buckets[walk.second]):
                    if flow.timer == walk.second and flow in self:
                        yield flow
            for flow in walk.called_earlier:
                if flow in self:
                    yield flow
        finally:
            self._walks.remove(walk)

    def wake_at(self, flow: Flow, when: float) -> None:
        """Have `due` give the flow once `when` (epoch seconds) has passed. Replaces what was asked before."""
        flow.timer = second = int(when) + 1
        for walk in self._walks:
            if second <= walk.second:
                walk.called_earlier.append(flow)
        bucket = self._buckets.get(second)
        if bucket is None:
            bucket = self._buckets[second] = []
            heappush(self._seconds, second)
            self.next_wake = self._seconds[0]
        bucket.append(flow)

    def due(self, now: float) -> Iterator[tuple[float, Flow]]:
        """Flows that are still here and whose time has come, with that time, in order of it.

        Each wants a new `wake_at`, or `remove`.
        """
        while self._seconds and self._seconds[0] <= now:
            second = heappop(self._seconds)
            self.next_wake = self._seconds[0] if self._seconds else _NEVER
            for flow in self._buckets.pop(second):
                if flow.timer == second and flow in self:
                    yield float(second), flow
