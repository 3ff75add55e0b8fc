"""How long judging a packet takes: a histogram, for metrics."""

from __future__ import annotations

from time import perf_counter_ns
from typing import Any

from nedge.kernel.queue import Judge

BOUNDS = (10e-6, 20e-6, 50e-6, 100e-6, 200e-6, 500e-6, 1e-3, 2e-3, 5e-3, 10e-3, 100e-3)
"""Upper bounds of the buckets, in seconds; the last bucket has none."""


class Latency:
    """Counts the time of every call of a judge."""

    def __init__(self) -> None:
        self._bounds = [round(bound * 1e9) for bound in BOUNDS]
        self._counts = [0] * (len(BOUNDS) + 1)
        self._nanoseconds = 0

    def around(self, judge: Judge) -> Judge:
        """The same judge, timed. It costs a third of a microsecond."""
        bounds, counts = self._bounds, self._counts

        def timed(data: bytes, mac: bytes, vlan: int, tracked: bool, port: int) -> int:
            start = perf_counter_ns()
            action = judge(data, mac, vlan, tracked, port)
            spent = perf_counter_ns() - start
            at = 0  # most are in one of the first: counting is quicker than bisecting
            while at < len(bounds) and bounds[at] < spent:
                at += 1
            counts[at] += 1
            self._nanoseconds += spent
            return action

        return timed

    def measures(self) -> dict[str, Any]:
        """Bounds in seconds; how many were within each, and not within the one before; all together."""
        return {"bounds": BOUNDS, "counts": self._counts, "seconds": self._nanoseconds / 1e9}
