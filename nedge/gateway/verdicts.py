"""Between queue and engine: a packet goes in, what the queue shall do with it comes out. The hot path."""

from __future__ import annotations

from time import monotonic
from typing import Literal, Protocol

from nedge.core.flow import Share
from nedge.core.marks import Marks
from nedge.core.normalizer import Normalizer
from nedge.kernel.queue import REWRITE

Mode = Literal["inline", "monitor"]


class Engine(Protocol):
    """What is asked of `nedge.core.engine.Engine` here."""

    @property
    def normalizer(self) -> Normalizer: ...

    @property
    def share(self) -> int: ...

    def packet(
        self, data: bytes, now: float, vlan: int, mac: bytes, /, *, tracked: bool, port: int
    ) -> int: ...


class Verdicts:
    """Asks the engine, and says it in the queue's terms (see `nedge.kernel.queue.Judge`)."""

    def __init__(self, engine: Engine, mode: Mode, marks: Marks | None, clock_offset: float) -> None:
        """`marks`: the kernel takes decided flows over by these. `clock_offset`: epoch minus monotonic."""
        self._engine = engine
        self._monitor = mode == "monitor"
        self._clock_offset = clock_offset
        self.mark_by(marks)

    def mark_by(self, marks: Marks | None) -> None:
        """Use these marks from now on. Who only watches drops nothing."""
        self._marks = [0] * len(Share) if marks is None else [marks.value(share) for share in Share]
        self._awaits_answer = 0 if marks is None else marks.awaits_answer
        if self._monitor:
            self._marks[Share.DROP] = self._marks[Share.PASS]

    def mark(self, share: Share) -> int:
        """The mark that tells the kernel of its share."""
        return self._marks[share]

    def now(self) -> float:
        """Epoch seconds; the machine's clock may be set, this one only goes on."""
        return self._clock_offset + monotonic()

    def judge(self, data: bytes, mac: bytes, vlan: int, tracked: bool, port: int) -> int:
        """What the queue shall do with a packet."""
        engine = self._engine
        now = self._clock_offset + monotonic()
        action = engine.packet(data, now, vlan, mac, tracked=tracked, port=port)
        if self._monitor:
            return self._marks[engine.share]
        if not action:
            normalizer = engine.normalizer
            if normalizer.rewritten:
                return REWRITE
            if normalizer.awaits_answer:
                return self._awaits_answer
        return self._marks[engine.share] or action
