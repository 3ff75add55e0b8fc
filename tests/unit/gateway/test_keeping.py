"""What a reload puts into the kernel, where that fails."""

from __future__ import annotations

from typing import Any
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from nedge.core.lists import NetworkSet
from nedge.core.marks import Marks
from nedge.errors import ConfigError
from nedge.gateway.keeper import Keeper
from nedge.kernel.errors import KernelError


@pytest.fixture
def keeper() -> Keeper:
    bridge = Mock()
    bridge.check.return_value = []
    return Keeper(Mock(), Mock(), bridge, Mock())


@pytest.mark.parametrize(
    "error", [KernelError("busy"), OSError(28, "No space left on device"), ConfigError("x")]
)
def test_it_is_tried_again_until_it_is_done(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    done: list[Any] = []
    refused = [error, error]

    def enforce(*what: Any, rejecting: bool) -> None:
        if refused:
            raise refused.pop()
        done.append(what)

    monkeypatch.setattr(keeper, "enforce", enforce)
    marks, exempt = Marks(0xF0000000, 3), ["192.0.2.1"]
    with capture_logs() as logs:
        assert not keeper.renew(marks, lambda: exempt, NetworkSet)
        exempt.append("192.0.2.2")  # who is unblocked meanwhile, is
        keeper.check()
        assert not done
        keeper.check()
        assert done == [(marks, ["192.0.2.1", "192.0.2.2"], NetworkSet())]
        keeper.check()
    assert len(done) == 1
    assert keeper.failures == keeper.figures()["restore_failures"] == 2
    assert [entry["event"] for entry in logs] == ["not_restored", "not_restored"]


def test_the_next_reload_comes_in_place_of_one_that_failed(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[Any] = []

    def enforce(marks: Marks, *_what: Any, rejecting: bool) -> None:
        if marks.generation == 1:
            raise KernelError("busy")
        done.append(marks.generation)

    monkeypatch.setattr(keeper, "enforce", enforce)
    with capture_logs():
        assert not keeper.renew(Marks(0xF0000000, 1), list, NetworkSet)
        assert keeper.renew(Marks(0xF0000000, 2), list, NetworkSet, then=lambda: done.append(-1))
        keeper.check()
    assert done == [2, -1]
