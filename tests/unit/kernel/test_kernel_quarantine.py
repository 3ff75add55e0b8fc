"""The quarantine's book and rules, with a kernel that is made up."""

from __future__ import annotations

import errno
import math

import pytest
from kernel_kit import FULL, FakeIPSet, install
from pyroute2.netlink.exceptions import NetlinkError

from nedge.core.lists import NetworkSet
from nedge.kernel import quarantine as module
from nedge.kernel.errors import KernelError
from nedge.kernel.ipsets import PER_MESSAGE, spare_name
from nedge.kernel.quarantine import LONGEST, Quarantine, set_names, sweep

V4, V6 = "198.51.100.7", "2001:db8::7"
Q4, A4 = set_names("br0", "ip")
Q6, A6 = set_names("br0", "ip6")


class Clock:
    now = 1000.0
    step = 0.0

    def monotonic(self) -> float:
        self.now += self.step
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> type[FakeIPSet]:
    return install(monkeypatch, module)


@pytest.fixture
def cut(kernel: type[FakeIPSet], clock: Clock) -> Quarantine:
    quarantine = Quarantine("br0")
    quarantine.open()
    return quarantine


def test_names_fit() -> None:
    for family in ("ip", "ip6"):
        cut, allowed = set_names("x" * 15, family)  # type: ignore[arg-type]
        assert max(map(len, (cut, spare_name(allowed)))) <= 31
    assert len({Q4, A4, Q6, A6}) == 4


def test_rules_let_the_allow_list_win() -> None:
    unless = f"-m set ! --match-set {A6} src -m set ! --match-set {A6} dst -j DROP"
    assert Quarantine("br0").rules()["ip6"] == [
        f"-m set --match-set {Q6} src {unless}",
        f"-m set --match-set {Q6} dst {unless}",
    ]


def test_hosts_come_and_go(cut: Quarantine, kernel: type[FakeIPSet], clock: Clock) -> None:
    assert cut.add(V4, 30)
    assert cut.add("2001:DB8:0:0::7", 60)
    assert kernel.sets == {Q4: {V4: 30}, Q6: {V6: 60}, A4: {}, A6: {}}
    clock.now += 10
    assert cut.hosts() == {V4: 20, V6: 50}
    assert cut.packets() == {V4: 3, V6: 3}
    clock.now += 20
    assert cut.hosts() == {V6: 30}
    assert cut.release(V6)
    assert cut.hosts() == {}
    assert not cut.release(V6)
    assert cut.failures == 0


@pytest.mark.parametrize(
    ("seconds", "timeout"), [(0.1, 1), (1, 1), (1.5, 2), (LONGEST, LONGEST), (LONGEST + 1, 0), (math.inf, 0)]
)
def test_times_are_what_a_set_can_hold(
    cut: Quarantine, kernel: type[FakeIPSet], seconds: float, timeout: float
) -> None:
    assert cut.add(V4, seconds)
    assert kernel.sets[Q4] == {V4: timeout}
    assert cut.hosts() == {V4: timeout or math.inf}


def test_a_second_does_not_become_an_eternity_by_rounding(
    cut: Quarantine, kernel: type[FakeIPSet], clock: Clock
) -> None:
    clock.step = 0.01
    assert cut.add(V4, 1)
    assert kernel.sets[Q4] == {V4: 1}


@pytest.mark.parametrize("seconds", [0, -1, math.nan])
def test_no_time_is_no_quarantine(cut: Quarantine, kernel: type[FakeIPSet], seconds: float) -> None:
    """The kernel would take 0 for ever."""
    with pytest.raises(ValueError, match="seconds"):
        cut.add(V4, seconds)
    assert kernel.sets[Q4] == {}


def test_the_latest_word_counts(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    cut.add(V4, 60)
    cut.add(V4, 10)
    assert cut.hosts() == {V4: kernel.sets[Q4][V4]} == {V4: 10}


def test_what_the_kernel_refuses_is_counted_not_raised(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    kernel.refuse = {step: NetlinkError(FULL, "full") for step in ("add", "delete", "flush")}
    assert not cut.add(V4, 60)
    assert cut.hosts() == {}
    assert not cut.release(V4)
    cut.flush()
    assert cut.failures == 4


def test_flush(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    cut.allow(["192.0.2.0/24"])
    cut.add(V4, 60)
    cut.add(V6, 60)
    cut.flush()
    assert kernel.sets == {Q4: {}, Q6: {}, A4: {"192.0.2.0/24": -1}, A6: {}}
    assert cut.hosts() == {}


@pytest.mark.parametrize(
    ("networks", "v4", "v6"),
    [
        ([], set(), set()),
        (["192.0.2.7", "2001:db8::7"], {"192.0.2.7/32"}, {"2001:db8::7/128"}),
        (["192.0.2.7/24", "192.0.2.0/25", "192.0.3.0/24"], {"192.0.2.0/23"}, set()),
        (["0.0.0.0/0", "::/0"], {"0.0.0.0/1", "128.0.0.0/1"}, {"::/1", "8000::/1"}),
    ],
)
def test_the_allow_list(
    cut: Quarantine, kernel: type[FakeIPSet], networks: list[str], v4: set[str], v6: set[str]
) -> None:
    cut.allow(["192.0.2.7", "10.0.0.0/8", "fd00::/8"])
    cut.allow(networks)
    assert (set(kernel.sets[A4]), set(kernel.sets[A6])) == (v4, v6)
    assert cut.check()


def test_an_allow_list_that_is_in_force_is_left_alone(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    ranges = list(NetworkSet(["192.0.2.0/24", "fd00::/8"]).ranges())
    cut.allow(ranges)
    kernel.refuse = {step: AssertionError(step) for step in ("add_networks", "swap", "destroy")}
    cut.allow(ranges)


def test_a_long_allow_list(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    """It takes several messages, and no more calls than these."""
    kernel.refuse = {"add": AssertionError("one at a time")}
    networks = [f"10.{n >> 8}.{n & 255}.0/25" for n in range(2 * PER_MESSAGE + 1)]
    cut.allow(networks)
    assert set(kernel.sets[A4]) == set(networks)
    assert sorted(kernel.sets) == sorted((Q4, A4, Q6, A6))


def test_an_allow_list_that_the_kernel_refuses_is_tried_again(
    cut: Quarantine, kernel: type[FakeIPSet]
) -> None:
    cut.allow(["192.0.2.0/24", "fd00::/8"])
    kernel.refuse["add_networks"] = OSError(FULL, "full")
    for step in (lambda: cut.allow(["198.51.100.0/24", "fd00::/8"]), cut.check):
        with pytest.raises(KernelError, match="full"):
            step()
        assert kernel.sets == {Q4: {}, Q6: {}, A4: {"192.0.2.0/24": -1}, A6: {"fd00::/8": -1}}
    kernel.refuse.clear()
    assert not cut.check()
    assert set(kernel.sets[A4]) == {"198.51.100.0/24"}
    assert cut.check()


def test_a_check_is_cheap(cut: Quarantine, kernel: type[FakeIPSet], clock: Clock) -> None:
    cut.add(V4, 60)
    kernel.reads = 0
    assert cut.check()
    assert kernel.reads == 0
    kernel.sets[Q4].clear()
    clock.now += 61
    assert cut.check()
    assert kernel.reads == 0


def test_a_kernel_that_tells_no_sizes_is_read(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    kernel.tells_sizes = False
    kernel.sets[Q4][V4] = 60
    assert cut.check()
    assert cut.hosts() == {V4: 60}


@pytest.mark.parametrize("tells_sizes", [True, False])
def test_what_is_missing_is_put_back_with_the_time_that_is_left(
    cut: Quarantine, kernel: type[FakeIPSet], clock: Clock, tells_sizes: bool
) -> None:
    kernel.tells_sizes = tells_sizes
    cut.allow(["192.0.2.0/24", "fd00::/8"])
    cut.add(V4, 60)
    cut.add(V6, math.inf)
    clock.now += 20
    for entries in kernel.sets.values():
        entries.clear()
    assert not cut.check()
    assert kernel.sets == {Q4: {V4: 40}, Q6: {V6: 0}, A4: {"192.0.2.0/24": -1}, A6: {"fd00::/8": -1}}
    assert cut.check()
    kernel.sets[Q4].clear()
    assert not cut.check()
    del kernel.sets[Q4], kernel.sets[A6]
    assert not cut.check()
    assert kernel.sets[Q4] == {V4: 40}
    assert kernel.sets[A6] == {"fd00::/8": -1}
    assert cut.check()


def test_a_host_added_while_the_set_is_away_is_cut_once_it_is_back(
    cut: Quarantine, kernel: type[FakeIPSet]
) -> None:
    del kernel.sets[Q4]
    assert not cut.add(V4, 60)
    assert not cut.check()
    assert kernel.sets[Q4] == {V4: 60}


def test_who_the_kernel_just_let_go_is_not_cut_again(
    cut: Quarantine, kernel: type[FakeIPSet], clock: Clock
) -> None:
    cut.add(V4, 10)
    kernel.sets[Q4].clear()
    clock.now += 8.5
    assert cut.check()
    assert kernel.sets[Q4] == {}


def test_hosts_added_by_others_are_noted_networks_are_not(
    cut: Quarantine, kernel: type[FakeIPSet], clock: Clock
) -> None:
    cut.allow([])
    kernel.sets[Q4][V4] = 60
    kernel.sets[Q4]["192.0.2.1"] = 0
    assert cut.check()
    assert cut.hosts() == {V4: 60, "192.0.2.1": math.inf}
    clock.now += 20
    kernel.sets[Q4]["192.0.2.2"] = 60
    assert cut.check()
    assert cut.hosts() == {V4: 40, "192.0.2.1": math.inf, "192.0.2.2": 60}
    kernel.sets[A4]["10.0.0.0/8"] = -1
    assert not cut.check()
    assert kernel.sets[A4] == {}


def test_what_a_crash_left_is_taken_over(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    cut.add(V4, 60)
    cut.allow(["192.0.2.0/24", "fd00::/8"])
    second = Quarantine("br0")
    second.open()
    assert second.hosts() == {V4: 60}
    assert second.check()
    second.allow(["fd00::/8"])
    assert kernel.sets == {Q4: {V4: 60}, Q6: {}, A4: {}, A6: {"fd00::/8": -1}}


def test_a_set_of_another_kind_is_replaced(kernel: type[FakeIPSet], clock: Clock) -> None:
    kernel.sets[Q4], kernel.options[Q4] = {"192.0.2.0/24": 0}, {"stype": "hash:net"}
    Quarantine("br0").open()
    assert kernel.sets[Q4] == {}
    kernel.options[Q4] = {"stype": "hash:net"}
    kernel.refuse["destroy"] = NetlinkError(errno.EBUSY, "it is in use")
    with pytest.raises(KernelError, match="it is in use"):
        Quarantine("br0").open()


def test_nothing_is_left(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    kernel.sets["another"] = {}
    del kernel.sets[A6]
    cut.close()
    cut.close()
    assert kernel.sets == {"another": {}}
    assert kernel.sockets == 0
    Quarantine("br0").close()  # never opened


def test_sweep(cut: Quarantine, kernel: type[FakeIPSet]) -> None:
    kernel.sets["nedge-br1-q4"] = {}
    assert sweep("br0")
    assert not sweep("br0")
    assert kernel.sets == {"nedge-br1-q4": {}}
    cut.close()
    assert kernel.sockets == 0


def test_a_kernel_that_cannot(kernel: type[FakeIPSet], clock: Clock) -> None:
    kernel.refuse["create"] = PermissionError(errno.EPERM, "Operation not permitted")
    quarantine = Quarantine("br0")
    with pytest.raises(KernelError, match=r"not permitted.*root"):
        quarantine.open()
    quarantine.close()
    assert kernel.sockets == 0
