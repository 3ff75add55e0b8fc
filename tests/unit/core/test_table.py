"""The flow table: lookup, bound, timers."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from core_kit import CLIENT, SERVER, decoded, ip4, tcp, udp
from hypothesis import given, settings
from hypothesis import strategies as st

from nedge.core.flow import Flow
from nedge.core.hosts import Host
from nedge.core.packet import reverse_key
from nedge.core.table import FlowTable


def flow(number: int = 1, *, src: str = CLIENT, dst: str = SERVER, dport: int = 80) -> Flow:
    packet = decoded(ip4(6, tcp(sport=number, dport=dport), src, dst))
    client, server = Host(packet.key[3:7], 0), Host(packet.key[7:11], 0)
    return Flow(number, packet.key, client, server, packet, 0.0, None)


def due(table: FlowTable, now: float) -> list[tuple[float, int]]:
    return [(when, found.id) for when, found in table.due(now)]


def ids(flows: Iterable[Flow]) -> list[int]:
    return [found.id for found in flows]


def test_found_by_the_keys_of_both_directions() -> None:
    table = FlowTable(10)
    one, two = flow(1), flow(2)
    table.add(one)
    table.add(two)
    for each in (one, two):
        assert table.get(each.key) is each
        assert table.get(reverse_key(each.key)) is each
        assert each in table
    assert table.get(flow(3).key) is None
    assert (table.count, ids(table)) == (2, [1, 2])


def test_remove() -> None:
    table = FlowTable(10)
    one, two = flow(1), flow(2)
    table.add(one)
    table.add(two)
    table.remove(one)
    assert table.get(one.key) is None
    assert table.get(reverse_key(one.key)) is None
    assert one not in table
    assert (table.count, ids(table)) == (1, [2])
    table.remove(one)  # again
    assert table.count == 1


def test_remove_of_a_replaced_flow_keeps_its_successor() -> None:
    table = FlowTable(10)
    old, new = flow(1), flow(1)
    table.add(old)
    table.remove(old)
    table.add(new)
    table.remove(old)
    assert table.get(new.key) is new
    assert table.count == 1


def test_both_ends_the_same() -> None:
    """A "land" packet: source and destination are one, so both directions are."""
    table = FlowTable(10)
    land = flow(80, src=CLIENT, dst=CLIENT)
    assert reverse_key(land.key) == land.key
    table.add(land)
    assert (table.count, ids(table)) == (1, [80])
    table.remove(land)
    assert (table.count, ids(table), table.get(land.key)) == (0, [], None)


def test_bound() -> None:
    table = FlowTable(2)
    one, two = flow(1), flow(2)
    assert not table.full
    table.add(one)
    assert not table.full
    table.add(two)
    assert table.full
    table.remove(one)
    assert not table.full


def test_may_change_while_iterated() -> None:
    table = FlowTable(10)
    flows = [flow(number) for number in range(1, 6)]
    for each in flows:
        table.add(each)
    seen = []
    for each in table:
        seen.append(each.id)
        if each.id == 2:
            table.remove(flows[2])
            table.add(flow(9))
    assert seen == [1, 2, 4, 5]


# Timers


@pytest.mark.parametrize("when", [100.0, 100.001, 100.5, 100.999])
def test_never_early_and_at_most_a_second_late(when: float) -> None:
    table = FlowTable(10)
    one = flow()
    table.add(one)
    table.wake_at(one, when)
    assert due(table, when) == []
    assert due(table, 100.99) == []
    assert table.next_wake <= when + 1
    assert due(table, when + 1) == [(101.0, 1)]
    assert due(table, 1e9) == []


def test_nothing_to_wait_for() -> None:
    table = FlowTable(10)
    assert table.next_wake == float("inf")
    assert due(table, 1e9) == []


def test_in_order_of_time() -> None:
    table = FlowTable(10)
    for number, when in ((1, 50.0), (2, 10.0), (3, 30.0), (4, 10.2), (5, 99.0)):
        each = flow(number)
        table.add(each)
        table.wake_at(each, when)
    assert table.next_wake == 11
    assert due(table, 60) == [(11.0, 2), (11.0, 4), (31.0, 3), (51.0, 1)]
    assert table.next_wake == 100


@pytest.mark.parametrize(("first", "second"), [(10.0, 20.0), (20.0, 10.0), (10.0, 10.0)])
def test_a_new_timer_replaces_the_old(first: float, second: float) -> None:
    table = FlowTable(10)
    one = flow()
    table.add(one)
    table.wake_at(one, first)
    table.wake_at(one, second)
    woken = []
    for when, found in table.due(1000):
        woken.append(when)
        table.wake_at(found, 5000)  # as its owner must
    assert woken == [second + 1]


def test_set_there_and_back() -> None:
    table = FlowTable(10)
    one = flow()
    table.add(one)
    for when in (10, 20, 10):
        table.wake_at(one, when)
    woken = []
    for when, found in table.due(1000):
        woken.append(when)
        table.wake_at(found, 5000)
    assert woken == [11.0]


def test_rearmed_within_the_time_that_passes() -> None:
    """A long silence: every timer of it is due in its turn."""
    table = FlowTable(10)
    one, two = flow(1), flow(2)
    for each, when in ((one, 10), (two, 25)):
        table.add(each)
        table.wake_at(each, when)
    woken = []
    for when, found in table.due(60):
        woken.append((when, found.id))
        table.wake_at(found, when + 9)
    assert woken == [(11, 1), (21, 1), (26, 2), (31, 1), (36, 2), (41, 1), (46, 2), (51, 1), (56, 2)]


def test_removed_flows_are_not_due() -> None:
    table = FlowTable(10)
    one, two = flow(1), flow(2)
    for each in (one, two):
        table.add(each)
        table.wake_at(each, 10)
    table.remove(one)
    assert due(table, 100) == [(11.0, 2)]


def test_the_timer_of_a_removed_flow_is_not_its_successors() -> None:
    table = FlowTable(10)
    old, new = flow(1), flow(1)
    table.add(old)
    table.wake_at(old, 10)
    table.remove(old)
    table.add(new)
    table.wake_at(new, 50)
    assert due(table, 40) == []
    assert [found is new for _, found in table.due(100)] == [True]


def test_removed_while_due() -> None:
    table = FlowTable(10)
    flows = [flow(number) for number in range(1, 4)]
    for each in flows:
        table.add(each)
        table.wake_at(each, 10)
    seen = []
    for _, found in table.due(100):
        seen.append(found.id)
        for each in flows[:2]:
            table.remove(each)
    assert seen == [1, 3]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(1, 8), st.floats(0, 50)),
            st.tuples(st.just("wake"), st.integers(1, 8), st.floats(0, 50)),
            st.tuples(st.just("remove"), st.integers(1, 8), st.just(0.0)),
            st.tuples(st.just("pass"), st.just(0), st.floats(0, 40)),
        ),
        max_size=60,
    )
)
def test_never_loses_a_flow(steps: list[tuple[str, int, float]]) -> None:
    """Against a model: every live flow is due once its time has passed, not before, and not twice."""
    table = FlowTable(1000)
    live: dict[int, tuple[Flow, float]] = {}
    now = 0.0
    for what, number, value in steps:
        if what == "add" and number not in live:
            one = flow(number)
            table.add(one)
            table.wake_at(one, now + value)
            live[number] = one, now + value
        elif what == "wake" and number in live:
            table.wake_at(live[number][0], now + value)
            live[number] = live[number][0], now + value
        elif what == "remove" and number in live:
            table.remove(live.pop(number)[0])
        elif what == "pass":
            now += value
            last = 0.0
            for when, found in table.due(now):
                assert last <= when <= now
                last = when
                one, asked = live[found.id]
                assert found is one
                assert asked < when <= asked + 1
                table.wake_at(found, now + 1 + value)
                live[found.id] = found, now + 1 + value
            assert all(asked > now - 1 for _, asked in live.values())
        assert table.count == len(live)
        assert sorted(ids(table)) == sorted(live)
        assert table.next_wake <= min((asked + 1 for _, asked in live.values()), default=float("inf"))


def test_udp_and_tcp_on_the_same_ports_are_apart() -> None:
    table = FlowTable(10)
    one = flow(5)
    table.add(one)
    assert table.get(decoded(ip4(17, udp(sport=5, dport=80))).key) is None


def test_a_walk_finds_all() -> None:
    table = FlowTable(100)
    for number in range(1, 9):
        table.add(flow(number))
    for each in list(table):
        table.wake_at(each, each.id % 3)
        table.wake_at(each, each.id % 4)  # it stands in two buckets then, and counts in one
    assert set(ids(table.walk())) == set(range(1, 9))
    assert ids(FlowTable(1).walk()) == []


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("walk"), st.just(0), st.just(0)),
        st.tuples(st.just("wake"), st.integers(1, 8), st.integers(0, 4)),
        st.tuples(st.just("due"), st.integers(0, 4), st.integers(1, 4)),
        st.tuples(st.just("add"), st.integers(11, 14), st.integers(0, 4)),
        st.tuples(st.just("remove"), st.integers(11, 14), st.just(0)),
    ),
    max_size=60,
)


@given(st.lists(st.integers(0, 4), min_size=8, max_size=8), STEPS)
@settings(max_examples=300)
def test_a_walk_never_misses_a_flow_that_stays(timers: list[int], steps: list[tuple[str, int, int]]) -> None:
    """Whatever happens between its steps: timers set earlier or later, flows that come and go."""
    table = FlowTable(100)
    staying = [flow(number) for number in range(1, 9)]
    others = {number: flow(number) for number in range(11, 15)}
    for each, timer in zip(staying, timers, strict=True):
        table.add(each)
        table.wake_at(each, timer)
    walk, seen = table.walk(), []
    for what, first, second in steps:
        if what == "walk":
            seen += [found for found in [next(walk, None)] if found]
        elif what == "wake":
            table.wake_at(staying[first - 1], second)
        elif what == "due":
            for when, found in table.due(first):
                table.wake_at(found, when + second)
        elif what == "add" and others[first] not in table:
            table.add(others[first])
            table.wake_at(others[first], second)
        elif what == "remove":
            table.remove(others[first])
    seen += list(walk)
    assert {found.id for found in staying} <= set(ids(seen))
    assert set(ids(seen)) <= {found.id for found in staying} | set(others)


def test_a_walk_that_is_given_up_leaves_nothing() -> None:
    table = FlowTable(10)
    table.add(flow(1))
    table.wake_at(next(iter(table)), 5)
    walk = table.walk()
    next(walk)
    assert len(table._walks) == 1
    walk.close()
    assert table._walks == []
