"""The count of packets that no worker got to see."""

from __future__ import annotations

import pytest

from nedge.gateway import unjudged
from nedge.gateway.unjudged import Unjudged
from nedge.kernel.errors import KernelError
from nedge.kernel.queue import QueueStats


class Kernel:
    """What rules and queues have counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sent, self.installed = 0, 1
        self.queues = {7: queue(7, port=1), 9: queue(9, port=2, last_id=1_000)}
        self.broken = False
        monkeypatch.setattr(unjudged, "read_stats", lambda: self.queues)
        self.said = 0
        self.unjudged = Unjudged(self.rules, lambda: self.said, range(7, 9))
        self.unjudged.look()

    def rules(self) -> tuple[int, int]:
        if self.broken:
            raise KernelError("iptables-save was not found")
        return self.sent, self.installed

    def count(self) -> int:
        self.unjudged.look()
        return self.unjudged.figures()["unjudged_packets"]


def queue(number: int, port: int, last_id: int = 0, full: int = 0) -> QueueStats:
    return QueueStats(number, port, waiting=0, dropped_full=full, dropped_user=0, last_id=last_id)


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


def test_what_queues_took_or_dropped_is_not_in_it(kernel: Kernel) -> None:
    kernel.sent = 30
    kernel.queues = {7: queue(7, 1, last_id=20, full=5), 8: queue(8, 3, last_id=5)}
    assert kernel.count() == 0
    kernel.sent = 40
    assert kernel.count() == 10
    kernel.queues[7] = queue(7, 1, last_id=22, full=5)  # were on their way
    assert kernel.count() == 10
    kernel.sent = 43
    assert kernel.count() == 11


def test_what_a_worker_took_that_is_gone_still_counts(kernel: Kernel) -> None:
    kernel.sent, kernel.queues = 20, {7: queue(7, 1, last_id=20)}
    kernel.unjudged.tick()
    kernel.sent, kernel.queues = 25, {}
    assert kernel.count() == 5
    kernel.sent, kernel.queues = 28, {7: queue(7, 8, last_id=3)}
    assert kernel.count() == 5


def test_what_workers_say_at_their_end_counts(kernel: Kernel) -> None:
    kernel.sent, kernel.queues = 20, {7: queue(7, 1, last_id=15)}
    kernel.unjudged.tick()
    kernel.queues = {}
    kernel.unjudged.stop()
    kernel.said = 19
    assert kernel.unjudged.figures() == {"unjudged_packets": 1}


def test_new_rules_count_from_0(kernel: Kernel) -> None:
    kernel.sent, kernel.queues = 20, {7: queue(7, 1, last_id=15)}
    assert kernel.count() == 5
    kernel.sent, kernel.installed = 2, 2
    kernel.queues = {7: queue(7, 1, last_id=17)}
    assert kernel.count() == 5
    kernel.sent = 6
    assert kernel.count() == 9


def test_rules_that_cannot_be_read(kernel: Kernel) -> None:
    kernel.sent, kernel.broken = 9, True
    assert kernel.count() == 0
    kernel.broken = False
    assert kernel.count() == 9
