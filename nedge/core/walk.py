"""Going step by step through a flow table that changes meanwhile.

It is not in `table`, since that is compiled for installations: a compiled generator that is given up half way
does not run its `finally`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from nedge.core.flow import Flow


class Walk:
    """How far somebody is on the way through all flows."""

    def __init__(self) -> None:
        self.second = -1
        """Of the bucket that he is in."""
        self.called_earlier: list[Flow] = []


def every_flow(
    here: Callable[[Flow], bool], buckets: Mapping[int, tuple[int, deque[Flow]]], walks: list[Walk]
) -> Iterator[Flow]:
    """Every flow in the buckets of their timers, by the second; see `FlowTable.walk`.

    `here`: whether a flow still is in the table. `walks`: who is on the way; told of flows that are called
    earlier than they were to be.
    """
    walk = Walk()
    walks.append(walk)
    try:
        # Each flow stands in the bucket of its timer. One that is put off goes to a later bucket; one that
        # is called earlier would be missed: `wake_at` tells of it.
        while ahead := [second for second in buckets if second > walk.second]:
            walk.second = min(ahead)
            for flow in list(buckets[walk.second][1]):
                if flow.timer == walk.second and here(flow):
                    yield flow
        for flow in walk.called_earlier:
            if here(flow):
                yield flow
    finally:
        walks.remove(walk)
