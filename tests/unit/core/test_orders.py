"""The operator's orders: what they are about, who speaks for a flow, and that live flows follow at once."""

from __future__ import annotations

import pytest
from core_kit import (
    ACK,
    CLIENT,
    CLIENT6,
    OTHER,
    PSH,
    SERVER,
    SERVER6,
    T0,
    Rig,
    StubScripts,
    ip4,
    ip6,
    key,
    tcp,
)
from test_engine import ask, block_names, c2s, open_tcp, s2c, the_flow

from nedge.core.flow import Flow, Share
from nedge.core.hooks import Hook, HookCall
from nedge.core.hosts import Directory, ip_bytes
from nedge.core.inspection import NameLists
from nedge.core.limits import Limits
from nedge.core.lists import DomainSet
from nedge.core.orders import Cover, Kind, Order, OrderBook, TargetError, flow_target, parse_target
from nedge.core.packet import reverse_key
from nedge.core.status import status_types
from nedge.core.verdict import Action, Operator, Policy, Rule

PASS, DROP = Action.PASS, Action.DROP
BLOCK, UNBLOCK, NONE = Operator.BLOCK, Operator.UNBLOCK, Operator.NONE

# Targets


@pytest.mark.parametrize(
    ("text", "kind", "spelling"),
    [
        ("10.0.0.5", Kind.HOST, "10.0.0.5"),
        (" 10.0.0.5 ", Kind.HOST, "10.0.0.5"),
        ("10.0.0.5/32", Kind.HOST, "10.0.0.5"),
        ("2001:DB8:0::1", Kind.HOST, "2001:db8::1"),
        ("2001:db8::1/128", Kind.HOST, "2001:db8::1"),
        ("10.0.0.0/8", Kind.NETWORK, "10.0.0.0/8"),
        ("0.0.0.0/0", Kind.NETWORK, "0.0.0.0/0"),
        ("10.0.0.0/255.0.0.0", Kind.NETWORK, "10.0.0.0/8"),
        ("2001:db8::/32", Kind.NETWORK, "2001:db8::/32"),
        ("Ads.Example", Kind.DOMAIN, "ads.example"),
        ("*.ads.example.", Kind.DOMAIN, "ads.example"),
        (".ads.example", Kind.DOMAIN, "ads.example"),
        ("example", Kind.DOMAIN, "example"),
        ("_dmarc.ads-2.example", Kind.DOMAIN, "_dmarc.ads-2.example"),
        ("münchen.example", Kind.DOMAIN, "xn--mnchen-3ya.example"),
    ],
)
def test_targets(text: str, kind: Kind, spelling: str) -> None:
    assert parse_target(text) == (kind, spelling)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("10.0.0.5/8", "did you mean 10.0.0.0/8?"),
        ("2001:db8::1/32", "did you mean 2001:db8::/32?"),
        ("10.0.0.0/33", "not a network"),
        ("/", "not a network"),
        ("fe80::1%eth0", "without a zone, please: fe80::1"),
        ("", "neither"),
        (".", "neither"),
        ("10.0.0", "neither"),
        ("10.0.0.256", "neither"),
        ("a..example", "neither"),
        ("-a.example", "neither"),
        ("a b.example", "neither"),
        ("a" * 64 + ".example", "neither"),
        (".".join(["a" * 60] * 5), "neither"),
        ("ü" * 70, "neither"),
        ("https:ads.example", "neither"),
    ],
)
def test_what_is_no_target(text: str, said: str) -> None:
    with pytest.raises(TargetError, match=said.replace("?", r"\?")) as error:
        parse_target(text)
    assert repr(text) in str(error.value)


def test_a_flow_in_words() -> None:
    assert flow_target(key(6, CLIENT, 40000, SERVER, 443)) == f"tcp {CLIENT}:40000 > {SERVER}:443"
    six = key(17, CLIENT6, 5, SERVER6, 53, vlan=7)
    assert flow_target(six) == f"udp [{CLIENT6}]:5 > [{SERVER6}]:53 vlan 7"
    assert flow_target(key(1, CLIENT, 0, SERVER, 0)) == f"proto-1 {CLIENT}:0 > {SERVER}:0"


# The book


def order(number: int, text: str, word: Operator = BLOCK, **fields: object) -> Order:
    kind, target = parse_target(text)
    return Order(id=number, word=word, kind=kind, target=target, **fields)  # type: ignore[arg-type]


def test_the_narrowest_network_and_the_longest_name_speak() -> None:
    book = OrderBook(
        [
            order(1, "0.0.0.0/0"), order(2, "10.0.0.0/8", UNBLOCK), order(3, "10.0.0.5"),
            order(4, "::/0", UNBLOCK), order(5, "2001:db8::1"),
            order(6, "example", UNBLOCK), order(7, "ads.example"),
        ]
    )  # fmt: skip
    words = {
        ip: book.word_on_address(ip) for ip in ("9.9.9.9", "10.0.0.6", "10.0.0.5", "fe80::1", "2001:db8::1")
    }
    assert list(words.values()) == [BLOCK, UNBLOCK, BLOCK, UNBLOCK, BLOCK]
    names = ("www.example", "WWW.Ads.example.", "ads.example", "bads.example", "example.org", "")
    assert [book.word_on_name(name) for name in names] == [UNBLOCK, BLOCK, BLOCK, UNBLOCK, NONE, NONE]
    for number in (3, 5, 7):
        assert book.remove(number) == order(
            number, {3: "10.0.0.5", 5: "2001:db8::1", 7: "ads.example"}[number]
        )
    assert (book.word_on_address("10.0.0.5"), book.word_on_address("2001:db8::1")) == (UNBLOCK, UNBLOCK)
    assert book.word_on_name("ads.example") is UNBLOCK
    assert book.remove(3) is None
    assert [one.id for one in book] == [1, 2, 4, 6]


def test_an_empty_book_says_nothing() -> None:
    book = OrderBook()
    assert (book.word_on_address("10.0.0.1"), book.word_on_address("::1")) == (NONE, NONE)
    assert (book.word_on_name("a.example"), book.word_on_flow(b"")) == (NONE, NONE)
    assert (len(book), list(book), book.get(1)) == (0, [], None)


@pytest.mark.parametrize("text", ["10.0.0.5", "2001:db8::/32", "ads.example"])
def test_a_new_order_takes_the_place_of_the_old_one(text: str) -> None:
    book = OrderBook([order(1, text)])
    book.add(order(2, text, UNBLOCK))
    assert [one.id for one in book] == [2]
    kind, target = parse_target(text)
    found = book.find(kind, target)
    assert found is book.get(2)
    assert book.get(1) is None
    book.remove(2)
    assert book.find(kind, target) is None
    book.add(order(3, text))  # and nothing is left of either
    assert len(book) == 1


def test_an_order_on_a_flow_goes_for_both_directions() -> None:
    one = key(6, CLIENT, 40000, SERVER, 443)
    book = OrderBook([Order(id=1, word=BLOCK, kind=Kind.FLOW, target=flow_target(one), key=one)])
    assert book.word_on_flow(one) is book.word_on_flow(reverse_key(one)) is BLOCK
    assert book.word_on_flow(key(6, CLIENT, 40001, SERVER, 443)) is NONE
    book.remove(1)
    assert book.word_on_flow(one) is book.word_on_flow(reverse_key(one)) is NONE


def test_a_flow_whose_ends_are_one() -> None:
    one = key(6, CLIENT, 5, CLIENT, 5)
    book = OrderBook([Order(id=1, word=BLOCK, kind=Kind.FLOW, target=flow_target(one), key=one)])
    book.remove(1)
    assert book.word_on_flow(one) is NONE


def test_which_orders_are_over() -> None:
    book = OrderBook(
        [order(1, "10.0.0.1"), order(2, "10.0.0.2", until=T0), order(3, "10.0.0.3", until=T0 + 5)]
    )
    for at, over in ((-1, []), (0, [2]), (4.9, [2]), (5, [2, 3])):
        assert [one.id for one in book.over(T0 + at)] == over
    assert len(book) == 3  # it only says so


@pytest.mark.parametrize(
    ("text", "covered", "not_covered"),
    [
        ("10.0.0.5", ["10.0.0.5"], ["10.0.0.4", "10.0.0.6", "2001:db8::1"]),
        ("10.0.0.0/31", ["10.0.0.0", "10.0.0.1"], ["10.0.0.2", "9.255.255.255"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::", "::1"]),
        ("2001:db8::/33", ["2001:db8::", "2001:db8:7fff::1"], ["2001:db8:8000::", "10.0.0.1"]),
    ],
)
def test_what_an_order_covers(text: str, covered: list[str], not_covered: list[str]) -> None:
    cover = Cover(order(1, text))
    assert [cover.address(ip_bytes(ip)) for ip in covered] == [True] * len(covered)
    assert [cover.address(ip_bytes(ip)) for ip in not_covered] == [False] * len(not_covered)


# Live flows


def ssh(rig: Rig) -> Flow:
    """An SSH flow that is decided, and that the kernel has."""
    open_tcp(rig)
    rig.feed(c2s(b"SSH-2.0-x\r\n", PSH | ACK))
    rig.feed(s2c(b"", ack=111))
    return the_flow(rig)


def test_live_flows_of_a_host_follow_and_the_kernel_is_told() -> None:
    rig = Rig()
    told: list[tuple[int, Share]] = []
    rig.engine.offload.remark = lambda flow: told.append((flow.client_port, flow.share))
    flow = ssh(rig)
    assert flow.share is Share.PASS
    assert rig.order(BLOCK, OTHER) == 0
    assert rig.order(BLOCK, SERVER, reason="infected") == 1
    assert told == [(40000, Share.DROP)]
    assert flow.verdict.reason == f"operator_block: order 2 on host {SERVER} (infected)"
    assert flow.decided_at == rig.engine.now
    assert rig.feed(c2s(b"more", PSH | ACK, seq=200)) is DROP
    assert sum(rig.engine.forget(2, T0 + 9)) == 1
    assert told == [(40000, Share.DROP), (40000, Share.PASS)]
    assert (flow.verdict.rule, flow.decided_at) == (Rule.CLEAN, T0 + 9)


def test_domains_cover_what_is_below_them_now_and_later() -> None:
    rig = Rig()
    rig.feed(ask("www.ads.example", sport=1))
    rig.feed(ask("good.example", sport=2))
    assert rig.order(BLOCK, "ads.example") == 1
    assert rig.feed(ask("ads.example", sport=3)) is DROP
    assert rig.feed(ask("bads.example", sport=4)) is PASS
    assert rig.order(UNBLOCK, "www.ads.example") == 1
    assert rig.feed(ask("www.ads.example", sport=5)) is PASS
    assert rig.feed(ask("api.ads.example", sport=6)) is DROP


def test_queries_on_one_socket_are_still_judged_one_by_one() -> None:
    rig = Rig()
    rig.order(BLOCK, "ads.example")
    names = ("good.example", "ads.example", "good.example", "x.ads.example", "other.example")
    assert [rig.feed(ask(name), n / 10) for n, name in enumerate(names)] == [PASS, DROP, PASS, DROP, PASS]


def test_a_flow_by_its_key_and_again_when_it_comes_back() -> None:
    rig = Rig()
    rig.feed(c2s(b"x"))
    target = the_flow(rig).key
    block = Order(id=1, word=BLOCK, kind=Kind.FLOW, target=flow_target(target), key=reverse_key(target))
    assert sum(rig.engine.give(block, rig.engine.now)) == 1
    assert rig.feed(c2s(b"y", seq=101)) is DROP
    assert rig.feed(c2s(b"y", sport=2)) is PASS
    rig.engine.advance(T0 + 200)
    assert rig.feed(c2s(b"z", seq=102), 200) is DROP  # its first packet, in mid-stream
    assert sum(rig.engine.forget(1, rig.engine.now)) == 1
    assert rig.feed(c2s(b"z", seq=103), 200) is PASS


def test_unblock_wins_over_lists_scores_and_a_block_of_the_other_end() -> None:
    rig = Rig(scripts=block_names("bad.example"))
    assert rig.feed(ask("bad.example")) is DROP
    assert rig.order(BLOCK, SERVER) == 0  # dropped before and after
    assert rig.order(UNBLOCK, "bad.example") == 1
    flow = the_flow(rig)
    assert flow.verdict.reason == "operator_unblock: order 2 on domain bad.example"
    assert rig.feed(ask("bad.example")) is PASS


def test_an_order_on_a_flow_beats_an_unblock_of_its_hosts() -> None:
    rig = Rig()
    rig.feed(c2s(b"x"))
    rig.order(UNBLOCK, CLIENT)
    target = the_flow(rig).key
    sum(rig.engine.give(Order(id=9, word=BLOCK, kind=Kind.FLOW, target="f", key=target), T0))
    assert the_flow(rig).verdict.reason == "operator_block: order 9 on flow f"


def test_ipv6() -> None:
    rig = Rig()
    packet = ip6(6, tcp(b"x"))
    assert rig.feed(packet) is PASS
    assert rig.order(BLOCK, "2001:db8::/32") == 1
    assert rig.feed(packet) is DROP
    assert rig.feed(ip4(6, tcp(b"x"))) is PASS


def test_orders_survive_a_new_policy() -> None:
    rig = Rig()
    rig.feed(ask("ads.example", sport=1))
    rig.feed(c2s(b"x", src=OTHER))
    rig.order(BLOCK, "ads.example")
    rig.order(BLOCK, OTHER)
    rig.engine.renew(
        scripts=StubScripts(),
        policy=Policy(),
        directory=Directory(),
        limits=Limits(),
        names=NameLists(DomainSet(), DomainSet(), DomainSet()),
    )
    assert rig.feed(ask("ads.example", sport=1)) is DROP
    assert rig.feed(c2s(b"y", src=OTHER, seq=101)) is DROP


def test_packets_can_be_judged_between_the_steps() -> None:
    """The sweep is done step by step: what comes or goes meanwhile does not disturb it."""
    rig = Rig()
    for sport in range(1, 6):
        rig.feed(c2s(b"x", sport=sport))
    kind, target = parse_target(CLIENT)
    steps = rig.engine.give(Order(id=1, word=BLOCK, kind=kind, target=target), T0)
    next(steps)
    assert rig.feed(c2s(b"x", sport=77)) is DROP  # a new flow of the host, at once
    assert rig.feed(c2s(b"x", sport=1, src=OTHER)) is PASS
    rig.engine.finish(T0)
    assert sum(steps) == 0


# Quarantine


def cut_rig() -> Rig:
    """A rig that cuts who asks for bad.example."""

    def script(call: HookCall) -> None:
        if call.flow.hostname == "bad.example":
            call.flow.set_status(status_types.status_web_mining_detected, 10, 100, 0, "mining")

    scripts = StubScripts(Hook.PROTOCOL_DETECTED, script=script)
    return Rig(scripts=scripts, policy=Policy(host_drop_score=100))


def test_a_released_host_is_free_though_its_score_is_still_there() -> None:
    rig = cut_rig()
    assert rig.feed(ask("bad.example", sport=1)) is DROP
    assert rig.feed(c2s(sport=2)) is DROP
    assert [host.ip for host in rig.engine.verdicts.quarantined] == [CLIENT]
    assert sum(rig.engine.release(CLIENT, rig.engine.now)) == 2
    assert rig.engine.verdicts.quarantined == []
    assert rig.feed(c2s(sport=2), 1) is PASS
    assert rig.feed(c2s(sport=3), 1) is PASS
    assert rig.engine.verdicts.quarantine_ends == float("inf")
    assert rig.feed(ask("bad.example", sport=4), 2) is DROP  # what comes on top counts
    assert rig.engine.counters.quarantines == 2


def test_release_of_a_host_without_flows_lets_it_be_forgotten() -> None:
    rig = cut_rig()
    rig.feed(ask("bad.example", sport=1))
    rig.engine.advance(T0 + 100)
    assert [host.ip for host in rig.engine.hosts] == [CLIENT]
    sum(rig.engine.release(CLIENT, rig.engine.now))
    assert list(rig.engine.hosts) == []


def test_release_of_others_changes_nothing() -> None:
    rig = cut_rig()
    rig.feed(ask("bad.example", sport=1))
    assert sum(rig.engine.release(OTHER, rig.engine.now)) == 0
    assert rig.feed(c2s(sport=2)) is DROP


def test_unblock_lets_a_quarantined_host_go_for_good() -> None:
    rig = cut_rig()
    rig.feed(ask("bad.example", sport=1))
    assert rig.order(UNBLOCK, "10.0.0.0/8") == 1
    assert rig.engine.verdicts.quarantined == []
    assert rig.feed(c2s(sport=2)) is PASS


# What scripts are held to account for


def test_statuses_and_drops_are_counted_by_script() -> None:
    def script(call: HookCall) -> None:
        types = status_types
        call.flow.set_status(types.status_longlived, 0, 0, 0, "quiet")
        if call.flow.hostname == "bad.example":
            call.flow.set_status(types.status_web_mining_detected, 60, 0, 0, "one")
            call.flow.set_status(types.status_low_goodput, 40, 0, 0, "two")
        if call.flow.hostname == "worse.example":
            call.flow.set_status(types.status_blacklisted, 0, 0, 0, "list")

    rig = Rig(scripts=StubScripts(Hook.PROTOCOL_DETECTED, script=script))
    for sport, name in enumerate(("bad.example", "worse.example", "good.example"), 1):
        rig.feed(ask(name, sport=sport))
    rig.order(BLOCK, "good.example")
    judge = rig.engine.verdicts
    assert judge.statuses_by == {"quiet": 3, "one": 1, "two": 1, "list": 1}
    assert judge.drops_by == {"one": 1, "two": 1, "list": 1}  # the operator's are nobody's


def test_a_status_knows_when_it_was_set_and_with_which_scores() -> None:
    def script(call: HookCall) -> None:
        call.trigger(status_types.status_longlived, None, 2000, 20, 5, "a")

    rig = Rig(scripts=StubScripts(Hook.PROTOCOL_DETECTED, script=script))
    rig.feed(c2s(b"x"), 0.7)
    rig.feed(c2s(b"SSH-2.0-x\r\n", PSH | ACK, seq=101), 3.9)
    flow = the_flow(rig)
    records = flow.statuses or {}
    record = records[status_types.status_longlived.status_key]
    assert (record.score, record.client_score, record.server_score, record.time) == (1000, 20, 5, T0 + 3)
    assert records[status_types.status_blocked.status_key].time == T0 + 3.9
    assert (flow.detected_at_packet, flow.decided_at_packet) == (2, 2)
    flow_block = Order(id=1, word=UNBLOCK, kind=Kind.FLOW, target="f", key=flow.key)
    rig.feed(c2s(b"y", PSH | ACK, seq=200), 4)
    sum(rig.engine.give(flow_block, T0 + 5))
    assert (flow.detected_at_packet, flow.decided_at_packet, flow.decided_at) == (2, 3, T0 + 5)
