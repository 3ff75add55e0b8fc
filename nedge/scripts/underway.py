"""The call of a script that is under way, as the time budget sees it. Compiled, as every call notes it."""

from __future__ import annotations

from types import FrameType


class CallUnderWay:
    """Filled in by who calls into a script."""

    __slots__ = ("base", "deadline", "fired", "resting")

    def __init__(self) -> None:
        self.base: FrameType | None = None
        """The frame of ours that calls into scripts: only what it calls may be interrupted."""
        self.deadline = 0
        """When the call must be over, by perf_counter_ns; 0 between calls."""
        self.fired = False
        """A call was interrupted, whatever the script made of it. Who asks takes it back."""
        self.resting = False
        """There is a timer, and it has to be woken for the next call."""
