"""Connections that end without a word: who records them, and how many."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest

from nedge.core.marks import Marks
from nedge.gateway.accounting import SILENT_PER_TICK, Accounting
from nedge.kernel.ctnetlink import Connection

MARKS = Marks()


def ended(count: int, mark: int = MARKS.started, *, gone: bool = True, back: int = 0) -> list[Connection]:
    """Connections from as many ports."""
    keys = (
        bytes((0, 0, 6, 10, 0, 0, 1, 192, 0, 2, 1)) + port.to_bytes(2) + b"\0\x50" for port in range(count)
    )
    return [Connection(key, mark, 1, 60, back, 40 * back, gone) for key in keys]


class Worker:
    """An accounting whose kernel tells of these, and what its engine heard."""

    def __init__(self, part: tuple[int, int] = (0, 1)) -> None:
        self.engine, self.kernel = Mock(), Mock(dumping=True)
        self.accounting = Accounting(self.engine, self.kernel, MARKS, lambda: 1000.0, part)

    def hear(self, connections: list[Connection]) -> list[Any]:
        self.kernel.ended.return_value = connections
        self.engine.passed_in_silence.reset_mock()
        self.accounting.ends_arrived()
        return [call.args[0] for call in self.engine.passed_in_silence.call_args_list]


def test_each_is_recorded_by_one_worker() -> None:
    connections = ended(300)
    heard = [Worker((number, 3)).hear(connections) for number in range(3)]
    assert sorted(key for one in heard for key in one) == [one.key for one in connections]
    assert all(50 < len(one) < 150 for one in heard)


def test_of_a_flood_some_are_recorded_and_the_rest_is_counted() -> None:
    worker = Worker()
    assert len(worker.hear(ended(SILENT_PER_TICK + 7))) == SILENT_PER_TICK
    assert worker.accounting.silent_unrecorded == 7
    worker.accounting.tick()
    assert len(worker.hear(ended(3))) == 3


@pytest.mark.parametrize("mark", [0, MARKS.unsure, MARKS.nobody, 0x1])
def test_other_ends_are_those_of_flows(mark: int) -> None:
    worker = Worker()
    assert worker.hear(ended(1, mark)) == []
    worker.engine.account.assert_called_once()


def test_a_refusal_comes_up_by_itself() -> None:
    worker = Worker()
    assert worker.hear(ended(1, back=1)) == []
    worker.engine.account.assert_not_called()
    assert len(worker.hear(ended(1, back=2))) == 1  # an answer that was sent again, as none came to it


def test_other_bits_do_not_matter_and_live_ones_are_not_over() -> None:
    worker = Worker()
    assert len(worker.hear(ended(1, MARKS.started | 0x5))) == 1
    assert worker.hear(ended(1, gone=False)) == []
