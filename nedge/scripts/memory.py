"""Memory for scripts that look across flows, bounded in time and in size.

A script's variables live as long as the gateway's worker does, so what it remembers must not grow for ever:
an attacker decides how many different addresses there are. Both kinds here take about 300 bytes an entry.

Each worker process has its own copy of a script. A pair of hosts always meets the same worker, but the pairs
of one host are spread over all of them: a limit on what one host does with many others is per worker.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
I = TypeVar("I", bound=Hashable)  # noqa: E741 (for an item)
V = TypeVar("V")


class Window(Generic[K, I]):
    """Different items per key within the last seconds: servers that a client asked, names in a domain, …

    `limit`: entries kept in all; when there are more, the oldest are forgotten before their time, so that
    counts are too low rather than memory too large.
    """

    def __init__(self, limit: int = 100_000) -> None:
        self.limit = limit
        self._times: OrderedDict[tuple[K, I], int] = OrderedDict()  # oldest first
        self._counts: Counter[K] = Counter()

    def add(self, key: K, item: I, now: int, seconds: int) -> int:
        """Note an item at a time (epoch seconds); gives how many the key had in the last `seconds`."""
        times, counts = self._times, self._counts
        if times.pop((key, item), None) is None:
            counts[key] += 1
        times[key, item] = now
        while times and (len(times) > self.limit or next(iter(times.values())) <= now - seconds):
            (old, _), _ = times.popitem(last=False)
            counts[old] -= 1
            if not counts[old]:
                del counts[old]
        return counts[key]

    def __len__(self) -> int:
        return len(self._times)


class LastUsed(Generic[K, V]):
    """A dictionary of the keys that were used last; the value of a new key is made.

    `limit`: keys kept; when there are more, the one that was not used for the longest time is forgotten.
    """

    def __init__(self, make: Callable[[], V], limit: int = 10_000) -> None:
        self.limit = limit
        self._make = make
        self._values: OrderedDict[K, V] = OrderedDict()

    def __getitem__(self, key: K) -> V:
        values = self._values
        if key in values:
            values.move_to_end(key)
        else:
            values[key] = self._make()
            if len(values) > self.limit:
                values.popitem(last=False)
        return values[key]

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)
