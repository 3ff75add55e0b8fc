"""Listed networks, with a kernel that is made up."""

from __future__ import annotations

import pytest
from kernel_kit import FULL, FakeIPSet, install

from nedge.core.lists import NetworkSet
from nedge.kernel import listed as module
from nedge.kernel.errors import KernelError
from nedge.kernel.ipsets import PER_MESSAGE, spare_name
from nedge.kernel.listed import Listed, listed_name, sweep_listed

D4, D6 = listed_name("br0", "ip"), listed_name("br0", "ip6")
FIRST, SECOND = NetworkSet(["192.0.2.0/24", "2001:db8::/32"]), NetworkSet(["198.51.100.0/24", "fd00::/8"])
Sets = dict[str, dict[str, float]]
IN_FORCE: Sets = {D4: {"192.0.2.0/24": -1}, D6: {"2001:db8::/32": -1}}
NEWER: Sets = {D4: {"198.51.100.0/24": -1}, D6: {"fd00::/8": -1}}


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[FakeIPSet]:
    return install(monkeypatch, module)


@pytest.fixture
def listed(kernel: type[FakeIPSet]) -> Listed:
    made = Listed("br0")
    made.open()
    made.take(FIRST)
    fill(made)
    assert kernel.sets == IN_FORCE
    return made


def fill(listed: Listed) -> None:
    while listed.step():
        pass


def test_names_fit() -> None:
    assert len(spare_name(listed_name("x" * 15, "ip6"))) <= 31


def test_the_old_list_is_in_force_until_the_new_one_is_there(listed: Listed, kernel: type[FakeIPSet]) -> None:
    networks = [f"10.{n >> 8}.{n & 255}.0/25" for n in range(2 * PER_MESSAGE + 1)]
    listed.take(NetworkSet(networks))
    for _ in range(3):
        assert listed.step()
        assert kernel.sets[D4] == IN_FORCE[D4]
    fill(listed)
    assert kernel.sets == {D4: dict.fromkeys(networks, -1), D6: {}}
    assert kernel.sockets == 0


def test_a_list_that_is_in_force_is_left_alone(listed: Listed) -> None:
    listed.take(NetworkSet(FIRST.ranges()))
    assert not listed.step()


def test_a_fill_that_failed_is_tried_again(listed: Listed, kernel: type[FakeIPSet]) -> None:
    kernel.refuse["add_networks"] = OSError(FULL, "full")
    listed.take(SECOND)
    for _ in range(3):
        with pytest.raises(KernelError, match=r"filled.*full"):
            listed.step()
        assert not listed.step(), "not at once again"
        assert kernel.sets == IN_FORCE, "and nothing is left of it"
        assert not listed.check()
    kernel.refuse.clear()
    fill(listed)
    assert kernel.sets == NEWER
    assert listed.check()
    assert not listed.step()
    assert kernel.sockets == 0


def test_a_fill_that_failed_halfway_can_be_taken_back(listed: Listed, kernel: type[FakeIPSet]) -> None:
    listed.take(SECOND)
    while kernel.sets[D4] != NEWER[D4]:
        assert listed.step()
    kernel.refuse["add_networks"] = OSError(FULL, "full")
    with pytest.raises(KernelError):
        fill(listed)
    assert kernel.sets == {D4: NEWER[D4], D6: IN_FORCE[D6]}
    kernel.refuse.clear()
    listed.take(FIRST)
    fill(listed)
    assert kernel.sets == IN_FORCE


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_what_others_take_out_comes_back(listed: Listed, kernel: type[FakeIPSet], tells_sizes: bool) -> None:
    kernel.tells_sizes = tells_sizes
    assert listed.check()
    for harm in (lambda: kernel.sets[D4].clear(), lambda: kernel.sets.pop(D6)):
        harm()
        assert not listed.check()
        fill(listed)
        assert kernel.sets == IN_FORCE
    assert listed.check()


def test_a_kernel_that_tells_no_sizes_is_believed_where_sets_are_large(
    listed: Listed, kernel: type[FakeIPSet]
) -> None:
    """To read a hundred thousand takes seconds, and would be due every five."""
    listed.take(NetworkSet(f"10.{n >> 8}.{n & 255}.0/25" for n in range(5000)))
    fill(listed)
    kernel.tells_sizes = False
    kernel.reads = 0
    assert listed.check()
    assert not listed.step()
    assert kernel.reads <= 1  # of the other family, which is empty
    del kernel.sets[D4]
    assert not listed.check()
    fill(listed)
    assert len(kernel.sets[D4]) == 5000


def test_nothing_is_left(listed: Listed, kernel: type[FakeIPSet]) -> None:
    kernel.sets |= {spare_name(D4): {}, "another": {}}
    assert sweep_listed("br0")
    assert not sweep_listed("br0")
    assert kernel.sets == {"another": {}}
