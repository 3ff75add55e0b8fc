"""The engine with a stub for nDPI: what becomes of packets, flows, hosts and time."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from core_kit import (
    ACK,
    CLIENT,
    DNS,
    FIN,
    HTTP,
    OTHER,
    PSH,
    RST,
    SERVER,
    SSH,
    SYN,
    T0,
    Rig,
    StubClassifier,
    StubScripts,
    answer,
    ip4,
    ip6,
    query,
    tcp,
    udp,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from support import require
from test_packet import mutated, valid

from nedge.core.engine import Engine, Limits
from nedge.core.events import AlertRaised, FlowEnded, HostQuarantined, VerdictChanged
from nedge.core.flow import EndReason, Flow, Handshake
from nedge.core.hooks import Hook, HookCall
from nedge.core.hosts import Directory
from nedge.core.inspection import NameLists
from nedge.core.lists import DomainSet, NetworkSet
from nedge.core.packet import FRAGMENT, Malformed, Packet, decode
from nedge.core.status import status_types
from nedge.core.verdict import Action, Failure, Operator, Policy, Rule

PASS, DROP, REJECT = Action.PASS, Action.DROP, Action.REJECT
MINING, BLACKLISTED = status_types.status_web_mining_detected, status_types.status_blacklisted
UNNAMED = b"\xe5\x01\x02\x03"
"""A payload that the stub does not know."""


def c2s(
    payload: bytes = b"",
    flags: int = ACK,
    *,
    sport: int = 40000,
    dport: int = 80,
    seq: int = 100,
    src: str = CLIENT,
) -> bytes:
    return ip4(6, tcp(payload, sport=sport, dport=dport, seq=seq, flags=flags), src, SERVER)


def s2c(
    payload: bytes = b"",
    flags: int = ACK,
    *,
    sport: int = 40000,
    dport: int = 80,
    seq: int = 900,
    ack: int = 100,
) -> bytes:
    return ip4(6, tcp(payload, sport=dport, dport=sport, seq=seq, ack=ack, flags=flags), SERVER, CLIENT)


def handshake(sport: int = 40000, seq: int = 99) -> list[bytes]:
    return [
        c2s(b"", SYN, sport=sport, seq=seq),
        s2c(b"", SYN | ACK, sport=sport, ack=seq + 1),
        c2s(b"", ACK, sport=sport, seq=seq + 1),
    ]


def ask(text: str, *, sport: int = 40000, src: str = CLIENT) -> bytes:
    return ip4(17, udp(query(text), sport=sport), src, SERVER)


def reply(text: str, *, sport: int = 40000) -> bytes:
    return ip4(17, udp(answer(text), sport=53, dport=sport), SERVER, CLIENT)


def flows(rig: Rig) -> list[Flow]:
    return list(rig.engine.table)


def the_flow(rig: Rig) -> Flow:
    (flow,) = rig.engine.table
    return flow


def ended(rig: Rig) -> list[tuple[EndReason, float]]:
    """Why and when (seconds after T0) each flow ended."""
    return [(event.reason, event.time - T0) for event in rig.of(FlowEnded)]


def block_names(*names: str, score: int = 100) -> StubScripts:
    """A script that scores flows which ask for these names."""

    def script(call: HookCall) -> None:
        if call.hook in (Hook.PROTOCOL_DETECTED, Hook.PROTOCOL_UPDATED) and call.flow.hostname in names:
            call.trigger(MINING, None, score, score, 0, "test")

    return StubScripts(script=script)


def block_listed() -> StubScripts:
    """A script that does as policies/blacklisted.py."""

    def script(call: HookCall) -> None:
        if call.hook in (Hook.PROTOCOL_DETECTED, Hook.PROTOCOL_UPDATED) and call.flow.blacklisted:
            call.trigger(BLACKLISTED, None, 100, 100, 0, "test")

    return StubScripts(script=script)


# Flows


def test_one_flow_for_both_directions() -> None:
    rig = Rig()
    for number, data in enumerate([*handshake(), c2s(b"x" * 10, PSH | ACK), s2c(b"y" * 20, PSH | ACK)]):
        assert rig.feed(data, number) is PASS
    flow = the_flow(rig)
    assert (flow.client.ip, flow.client_port, flow.server.ip, flow.server_port) == (CLIENT, 40000, SERVER, 80)
    assert (flow.packets_sent, flow.packets_rcvd, flow.bytes_sent, flow.bytes_rcvd) == (3, 2, 130, 100)
    assert (flow.goodput_sent, flow.goodput_rcvd) == (10, 20)
    assert (flow.first_seen, flow.last_seen) == (T0, T0 + 4)
    assert flow.handshake is Handshake.DONE


def test_vlan_protocol_and_ports_make_a_flow() -> None:
    rig = Rig()
    rig.feed(c2s())
    rig.feed(c2s(), vlan=5)
    rig.feed(c2s(sport=40001))
    rig.feed(c2s(dport=81))
    rig.feed(ip4(17, udp(sport=40000, dport=80)))
    rig.feed(ip6(6, tcp()))
    assert len(flows(rig)) == rig.engine.counters.flows == 6
    assert sorted(flow.vlan for flow in flows(rig)) == [0, 0, 0, 0, 0, 5]


def test_ids_are_unique() -> None:
    rig = Rig()
    for sport in range(1, 20):
        rig.feed(c2s(sport=sport))
    assert len({flow.id for flow in flows(rig)}) == 19


def test_client_is_who_sends_first() -> None:
    rig = Rig()
    rig.feed(s2c(b"mid-stream"))
    rig.feed(c2s(b"answer"))
    assert the_flow(rig).client.ip == SERVER


def test_syn_ack_first_its_sender_is_the_client() -> None:
    """A capture that starts too late, or asymmetric routing: the source of the first packet, as ever."""
    rig = Rig()
    rig.feed(s2c(b"", SYN | ACK))
    flow = the_flow(rig)
    assert (flow.client.ip, flow.client_port, flow.server.ip, flow.server_port) == (SERVER, 80, CLIENT, 40000)
    assert (flow.packets_sent, flow.packets_rcvd) == (1, 0)
    rig.feed(c2s(b"", ACK))
    assert the_flow(rig) is flow
    assert (flow.packets_sent, flow.packets_rcvd) == (1, 1)
    assert flow.handshake is Handshake.NONE  # the SYN was not seen


def test_a_syn_decides_who_the_client_is() -> None:
    """The answer overtook the SYN in the capture."""
    rig = Rig()
    rig.feed(s2c(b"", SYN | ACK))
    rig.feed(c2s(b"", SYN))
    flow = the_flow(rig)
    assert (flow.client.ip, flow.client_port, flow.server.ip, flow.server_port) == (CLIENT, 40000, SERVER, 80)
    assert (flow.packets_sent, flow.packets_rcvd) == (1, 1)
    assert (flow.bytes_sent, flow.bytes_rcvd) == (40, 40)
    rig.feed(c2s(b"x", ACK | PSH))
    assert (the_flow(rig) is flow, flow.packets_sent) == (True, 2)


@pytest.mark.parametrize(
    "last", [c2s(b"", FIN | ACK), s2c(b"", FIN | ACK), c2s(b"", RST), s2c(b"", RST | ACK)]
)
def test_new_syn_on_a_finished_connection_is_a_new_flow(last: bytes) -> None:
    rig = Rig()
    for data in [*handshake(), last]:
        rig.feed(data)
    old = the_flow(rig)
    rig.feed(c2s(b"", SYN, seq=50_000), 1)
    new = the_flow(rig)
    assert new is not old
    assert (old.packets, new.packets) == (4, 1)
    assert (new.handshake, new.closing) == (Handshake.SYN, False)
    assert ended(rig) == [(EndReason.REPLACED, 1)]
    assert rig.engine.counters.flows == 2


def test_new_syn_from_the_other_side_turns_the_roles() -> None:
    rig = Rig()
    for data in [*handshake(), c2s(b"", RST)]:
        rig.feed(data)
    rig.feed(s2c(b"", SYN))
    assert the_flow(rig).client.ip == SERVER


@pytest.mark.parametrize(
    "data", [c2s(b"", SYN, seq=99), s2c(b"", SYN | ACK), c2s(b"late", FIN | ACK), c2s(b"", ACK)]
)
def test_other_segments_are_no_new_flow(data: bytes) -> None:
    rig = Rig()
    for each in handshake():
        rig.feed(each)
    rig.feed(data)
    assert (the_flow(rig).packets, ended(rig)) == (4, [])


def test_late_segments_of_a_finished_connection_belong_to_it() -> None:
    rig = Rig()
    for data in [*handshake(), c2s(b"", FIN | ACK), s2c(b"", FIN | ACK), c2s(b"", ACK)]:
        rig.feed(data)
    assert the_flow(rig).packets == 6


@pytest.mark.parametrize("proto", [1, 2, 47, 50, 58, 200])
def test_other_protocols_are_flows_too(proto: int) -> None:
    body = b"\x08\x00" + bytes(20)
    rig = Rig()
    rig.feed(ip4(proto, body, CLIENT, SERVER))
    rig.feed(ip4(proto, body, SERVER, CLIENT))
    flow = the_flow(rig)
    assert (flow.proto, flow.packets_sent, flow.packets_rcvd) == (proto, 1, 1)
    assert flow.icmp == ((8, 0) if proto in (1, 58) else None)


def test_macs() -> None:
    rig = Rig()
    rig.feed(c2s(), mac=b"\x02\0\0\0\0\1")
    rig.feed(s2c(), mac=b"\x02\0\0\0\0\2")
    rig.feed(c2s(), mac=b"\x02\0\0\0\0\3")
    flow = the_flow(rig)
    assert (flow.client.mac, flow.server.mac) == (b"\x02\0\0\0\0\3", b"\x02\0\0\0\0\2")


def test_land_packet() -> None:
    """Both ends are one."""
    rig = Rig()
    data = ip4(6, tcp(sport=80, dport=80, flags=SYN), CLIENT, CLIENT)
    rig.feed(data)
    rig.feed(data)
    flow = the_flow(rig)
    assert (flow.packets_sent, flow.packets_rcvd) == (2, 0)
    rig.engine.finish(T0 + 1)
    assert len(rig.engine.hosts) == 0


# Time: expiry (semantics.md: flowEnd), give-up, ticks


def open_tcp(rig: Rig, at: float = 0.0) -> None:
    for data in handshake():
        rig.feed(data, at)


@pytest.mark.parametrize(
    ("packets", "seconds", "reason"),
    [
        (handshake(), 60, EndReason.IDLE),
        ([ask("a.example")], 60, EndReason.IDLE),
        ([ip4(1, b"\x08\0" + bytes(6))], 60, EndReason.IDLE),
        ([c2s(b"mid-stream")], 60, EndReason.IDLE),
        ([*handshake(), c2s(b"", FIN | ACK)], 15, EndReason.CLOSED),
        ([*handshake(), s2c(b"", RST)], 15, EndReason.CLOSED),
        (handshake()[:1], 15, EndReason.IDLE),  # incomplete handshakes
        (handshake()[:2], 15, EndReason.IDLE),
        ([c2s(b"", RST)], 15, EndReason.CLOSED),
    ],
)
def test_expiry(packets: list[bytes], seconds: int, reason: EndReason) -> None:
    rig = Rig()
    for data in packets:
        rig.feed(data, 0.5)
    rig.engine.advance(T0 + 0.5 + seconds - 0.01)
    assert ended(rig) == []
    rig.engine.advance(T0 + 0.5 + seconds + 1)
    ((why, when),) = ended(rig)
    assert why is reason
    assert seconds <= when - 0.5 <= seconds + 1
    assert (len(flows(rig)), len(rig.engine.hosts)) == (0, 0)


def test_packets_put_expiry_off() -> None:
    rig = Rig()
    open_tcp(rig)
    for at in range(0, 600, 50):
        rig.feed(c2s(b"x"), at)
    assert (the_flow(rig).packets, ended(rig)) == (15, [])
    rig.engine.advance(T0 + 550 + 61)
    assert len(ended(rig)) == 1


@pytest.mark.parametrize("closed_at", [1.0, 7.0, 20.0, 55.0, 100.0])
def test_a_closed_flow_ends_after_15_seconds_whenever_it_closed(closed_at: float) -> None:
    rig = Rig()
    open_tcp(rig)
    at = 0.0
    while at + 5 < closed_at:
        at += 5
        rig.feed(c2s(b"x"), at)
    rig.feed(c2s(b"", FIN | ACK), closed_at)
    rig.engine.advance(T0 + closed_at + 16)
    assert [why for why, _ in ended(rig)] == [EndReason.CLOSED]


def test_limits_are_the_operators() -> None:
    rig = Rig(limits=Limits(idle_seconds=10, closed_seconds=3, detection_seconds=2))
    open_tcp(rig)
    rig.feed(ask("a.example"))
    rig.feed(c2s(b"", SYN, sport=7))
    rig.engine.advance(T0 + 4)
    assert len(ended(rig)) == 1
    rig.engine.advance(T0 + 11)
    assert len(ended(rig)) == 3


def test_expiry_happens_as_packets_of_others_come() -> None:
    rig = Rig()
    rig.feed(ask("a.example", sport=1))
    rig.feed(ask("b.example", sport=2), 30)
    rig.feed(ask("c.example", sport=3), 61)
    assert [flow.client_port for flow in flows(rig)] == [2, 3]


def test_a_late_packet_opens_a_new_flow() -> None:
    rig = Rig()
    rig.feed(ask("a.example"))
    rig.feed(ask("a.example"), 62)
    assert (rig.engine.counters.flows, the_flow(rig).packets) == (2, 1)


@pytest.mark.parametrize("proto", ["tcp", "udp"])
def test_give_up_at_12_packets(proto: str) -> None:
    scripts = StubScripts(Hook.PROTOCOL_DETECTED)
    rig = Rig(scripts=scripts)
    for number in range(11):
        rig.feed(c2s(UNNAMED, seq=100 + 4 * number) if proto == "tcp" else ip4(17, udp(UNNAMED, dport=9)))
    assert (scripts.calls, the_flow(rig).detected) == ([], False)
    assert the_flow(rig).verdict.rule is Rule.UNDETECTED
    rig.feed(c2s(UNNAMED, seq=100 + 44) if proto == "tcp" else ip4(17, udp(UNNAMED, dport=9)))
    flow = the_flow(rig)
    assert scripts.calls == [(Hook.PROTOCOL_DETECTED, int(T0))]
    assert (flow.detected, flow.decided_at_packet, flow.failures) == (True, 12, (Failure.UNCLASSIFIED,))
    assert rig.engine.counters.unclassified == 1


def test_give_up_after_5_seconds_of_silence() -> None:
    scripts = StubScripts(Hook.PROTOCOL_DETECTED)
    rig = Rig(scripts=scripts)
    for at in (0, 4, 8):  # never silent for that long
        rig.feed(ip4(17, udp(UNNAMED, dport=9)), at)
    rig.engine.advance(T0 + 12.9)
    assert scripts.calls == []
    rig.engine.advance(T0 + 14)
    assert [hook for hook, _ in scripts.calls] == [Hook.PROTOCOL_DETECTED]
    assert 13 <= scripts.calls[0][1] - T0 <= 14
    rig.engine.advance(T0 + 60)
    assert len(scripts.calls) == 1


def test_other_l4_protocols_are_detected_at_once() -> None:
    for proto in (1, 47, 50, 58, 132):
        scripts = StubScripts(Hook.PROTOCOL_DETECTED)
        Rig(scripts=scripts).feed(ip4(proto, bytes(20)))
        assert len(scripts.calls) == 1


def test_detected_once_and_before_its_packet_is_judged() -> None:
    scripts = block_names("bad.example")
    rig = Rig(scripts=scripts)
    open_tcp(rig)
    head = b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n"
    assert rig.feed(c2s(head, PSH | ACK)) is DROP
    assert [hook for hook, _ in scripts.calls if hook is Hook.PROTOCOL_DETECTED] == [Hook.PROTOCOL_DETECTED]
    assert the_flow(rig).decided_at_packet == 4
    assert rig.feed(s2c(b"late")) is DROP
    assert (the_flow(rig).dropped_packets, rig.engine.counters.dropped_packets) == (2, 2)


def test_flow_end_of_an_undetected_flow_has_detected_first() -> None:
    scripts = StubScripts(Hook.PROTOCOL_DETECTED, Hook.FLOW_END)
    rig = Rig(scripts=scripts, classifier=StubClassifier(guess=SSH << 16))
    rig.feed(c2s(UNNAMED))
    rig.engine.finish(T0 + 1)
    assert [hook for hook, _ in scripts.calls] == [Hook.PROTOCOL_DETECTED, Hook.FLOW_END]
    (event,) = rig.of(FlowEnded)
    assert event.flow.classification.protocol == "SSH"
    assert event.flow.failures == ()


def test_periodic_update_every_30_seconds_from_detection_on() -> None:
    scripts = StubScripts(Hook.PERIODIC_UPDATE)
    rig = Rig(scripts=scripts)
    for at in range(0, 100, 10):
        rig.feed(ask("a.example"), at)
    rig.engine.advance(T0 + 95)
    times = [now - T0 for _, now in scripts.calls]
    assert len(times) == 3
    for time, expected in zip(times, (30, 60, 90), strict=True):
        assert expected <= time <= expected + 1.5
    assert the_flow(rig).tick == 3


def test_status_changed_once_and_not_by_its_own_changes() -> None:
    def script(call: HookCall) -> None:
        if call.hook is Hook.PROTOCOL_DETECTED:
            call.flow.set_status(MINING)
            call.flow.set_status(BLACKLISTED)
        elif call.hook is Hook.STATUS_CHANGED:
            call.flow.set_status(status_types.status_longlived)

    scripts = StubScripts(script=script)
    rig = Rig(scripts=scripts)
    rig.feed(ask("a.example"))
    assert [hook for hook, _ in scripts.calls] == [Hook.PROTOCOL_DETECTED, Hook.STATUS_CHANGED]


def test_no_status_changed_without_a_change() -> None:
    def script(call: HookCall) -> None:
        if call.hook is Hook.PROTOCOL_DETECTED:
            call.flow.set_status(MINING)
            call.flow.clear_status(MINING)

    scripts = StubScripts(script=script)
    Rig(scripts=scripts).feed(ask("a.example"))
    assert [hook for hook, _ in scripts.calls] == [Hook.PROTOCOL_DETECTED]


def test_time_never_goes_back() -> None:
    rig = Rig()
    rig.feed(c2s(b"a"), 100)
    rig.feed(c2s(b"b", seq=101), 40)
    flow = the_flow(rig)
    assert (flow.first_seen, flow.last_seen, rig.engine.now) == (T0 + 100, T0 + 100, T0 + 100)
    rig.engine.advance(T0 + 10)
    assert rig.engine.now == T0 + 100
    rig.feed(c2s(b"c", seq=102), 101)
    assert (flow.last_seen, flow.packets) == (T0 + 101, 3)
    rig.engine.finish(T0)
    assert ended(rig) == [(EndReason.SHUTDOWN, 101)]


def test_hooks_never_see_time_go_back() -> None:
    scripts = StubScripts()
    rig = Rig(scripts=scripts)
    for at in (50, 10, 0, 90, 60, 130, 131, 20):
        rig.feed(ask("a.example", sport=at + 1), at)
    rig.engine.finish(T0 + 20)
    times = [now for _, now in scripts.calls]
    assert times == sorted(times)
    assert times[0] >= T0 + 50


def test_finish_ends_every_flow() -> None:
    rig = Rig()
    for sport in range(1, 6):
        rig.feed(c2s(UNNAMED, sport=sport))
    rig.engine.finish(T0 + 2)
    assert ended(rig) == [(EndReason.SHUTDOWN, 2)] * 5
    assert (flows(rig), len(rig.engine.hosts), rig.classifier.alive) == ([], 0, 0)
    rig.engine.finish(T0 + 3)
    assert len(ended(rig)) == 5


def test_finish_ends_flows_that_were_due_before() -> None:
    rig = Rig()
    rig.feed(ask("a.example"))
    rig.engine.finish(T0 + 100)
    ((why, when),) = ended(rig)
    assert why is EndReason.IDLE
    assert 60 <= when <= 61


def test_inspection_states_are_closed_exactly_once() -> None:
    rig = Rig()
    open_tcp(rig)
    rig.feed(c2s(b"SSH-2.0-x\r\n", PSH | ACK))
    rig.feed(ask("a.example"))
    rig.feed(c2s(UNNAMED, sport=9))
    rig.engine.finish(T0 + 200)
    assert [state.closed for state in rig.classifier.opened] == [1] * len(rig.classifier.opened)
    assert rig.classifier.alive == 0


# Named failures


@pytest.mark.parametrize("policy", [PASS, DROP])
def test_table_full(policy: Action) -> None:
    rig = Rig(limits=Limits(max_flows=2, table_full=policy))
    assert rig.feed(c2s(sport=1)) is PASS
    assert rig.feed(c2s(sport=2)) is PASS
    assert rig.feed(c2s(sport=3)) is policy
    assert rig.feed(c2s(sport=3)) is policy
    assert rig.feed(c2s(sport=1)) is PASS  # known flows go on
    assert (rig.engine.counters.table_full, rig.engine.counters.flows, len(flows(rig))) == (2, 2, 2)
    assert len(rig.engine.hosts) == 2
    rig.engine.advance(T0 + 61)
    assert rig.feed(c2s(sport=3), 62) is PASS


def test_table_full_but_the_flow_replaces_one() -> None:
    rig = Rig(limits=Limits(max_flows=1, table_full=DROP))
    for data in [*handshake(), c2s(b"", RST)]:
        rig.feed(data)
    assert rig.feed(c2s(b"", SYN, seq=7)) is PASS


@pytest.mark.parametrize("policy", [PASS, DROP])
def test_malformed(policy: Action) -> None:
    rig = Rig(limits=Limits(malformed=policy))
    assert rig.feed(b"") is policy
    assert rig.feed(b"\x00" * 40) is policy
    assert rig.feed(ip4(6, b"")) is policy
    assert rig.feed(ip4(6, b"")) is policy
    counters = rig.engine.counters
    assert counters.malformed == {Malformed.EMPTY: 1, Malformed.VERSION: 1, Malformed.SHORT_L4: 2}
    # What has an IP header belongs to a flow: one without ports, here.
    assert (counters.packets, counters.bytes, counters.flows) == (4, 40, 1)
    assert the_flow(rig).packets_sent == 2
    assert counters.dropped_packets == (4 if policy else 0)


@pytest.mark.parametrize("policy", [PASS, DROP])
def test_fragment(policy: Action) -> None:
    rig = Rig(limits=Limits(fragment=policy))
    assert rig.feed(ip4(17, bytes(20), fragment=9)) is policy
    assert (rig.engine.counters.fragments, rig.engine.counters.flows) == (1, 0)


def test_wire_length_reaches_decoding() -> None:
    rig = Rig()
    data = c2s(b"x" * 100)
    rig.engine.packet(data[:50], T0, wire_length=len(data))
    rig.engine.packet(data, T0, wire_length=len(data) - 1)
    assert the_flow(rig).goodput == 100
    assert rig.engine.counters.malformed == {Malformed.IP_LENGTH: 1}


@pytest.mark.parametrize(
    ("first", "midstream"),
    [
        (c2s(b"", SYN), False),
        (s2c(b"", SYN | ACK), False),
        (c2s(b"x", PSH | ACK), True),
        (s2c(), True),
        (c2s(b"", RST), True),
        (ask("a.example"), False),
        (ip4(47, bytes(20)), False),
    ],
)
def test_midstream_policy(first: bytes, midstream: bool) -> None:
    rig = Rig(policy=Policy(failures={Failure.MIDSTREAM: DROP}))
    assert rig.feed(first) is (DROP if midstream else PASS)
    assert rig.engine.counters.midstream == midstream
    assert Rig().feed(first) is PASS


def test_unclassified_policy() -> None:
    policy = Policy(failures={Failure.UNCLASSIFIED: DROP})
    rig = Rig(policy=policy)
    actions = [rig.feed(ip4(17, udp(UNNAMED, dport=9))) for _ in range(13)]
    assert actions == [PASS] * 11 + [DROP] * 2
    assert the_flow(rig).verdict.reason == "failure: unclassified"
    assert Rig(policy=policy).feed(ask("a.example")) is PASS
    assert Rig(policy=policy).feed(ip4(47, bytes(20))) is PASS  # ours to judge is TCP and UDP only


def test_unclassified_after_silence_then_classified() -> None:
    rig = Rig(policy=Policy(failures={Failure.UNCLASSIFIED: DROP}))
    open_tcp(rig)
    rig.engine.advance(T0 + 6)
    assert rig.feed(s2c(), 6) is DROP
    assert rig.feed(c2s(b"SSH-2.0-x\r\n", PSH | ACK), 7) is PASS
    assert the_flow(rig).failures == ()
    assert [event.flow.verdict.action for event in rig.of(VerdictChanged)] == [PASS, PASS]
    assert the_flow(rig).status_map == 0


@pytest.mark.parametrize("policy", [(), (Failure.DPI_ERROR,)])
def test_inspection_that_raises(policy: Sequence[Failure]) -> None:
    rig = Rig(
        classifier=StubClassifier(failing=["feed"]), policy=Policy(failures=dict.fromkeys(policy, DROP))
    )
    action = DROP if policy else PASS
    assert rig.feed(c2s(UNNAMED)) is action
    assert rig.feed(c2s(UNNAMED)) is action
    flow = the_flow(rig)
    assert (flow.detected, flow.failures, flow.looking) == (True, (Failure.DPI_ERROR,), False)
    assert (rig.engine.counters.dpi_errors, rig.classifier.alive) == (1, 0)


@pytest.mark.parametrize("method", ["feed", "give_up", "open"])
def test_inspection_that_raises_loses_no_flow(method: str) -> None:
    """Whatever raises, whenever: packets are judged, every flow ends once, hosts are let go."""
    rig = Rig(classifier=StubClassifier(failing=[method]))
    for sport in range(1, 5):
        for data in [*handshake(sport), c2s(UNNAMED, sport=sport)]:
            rig.feed(data, sport)
    rig.engine.advance(T0 + 40)
    rig.engine.finish(T0 + 100)
    assert len(rig.of(FlowEnded)) == rig.engine.counters.flows == 4
    assert (flows(rig), len(rig.engine.hosts), rig.classifier.alive) == ([], 0, 0)
    assert rig.engine.counters.dpi_errors == 4


@pytest.mark.parametrize("policy", [(), (Failure.SCRIPT_ERROR,)])
def test_script_error(policy: Sequence[Failure]) -> None:
    def script(call: HookCall) -> None:
        call.failed += 2

    rig = Rig(
        scripts=StubScripts(Hook.PROTOCOL_DETECTED, Hook.FLOW_END, script=script),
        policy=Policy(failures=dict.fromkeys(policy, DROP)),
    )
    assert rig.feed(ask("a.example")) is (DROP if policy else PASS)
    assert (rig.engine.counters.script_errors, the_flow(rig).failures) == (2, (Failure.SCRIPT_ERROR,))
    rig.engine.finish(T0)
    assert rig.engine.counters.script_errors == 4


@pytest.mark.parametrize("policy", [(), (Failure.SCRIPT_TIMEOUT,), (Failure.SCRIPT_ERROR,)])
def test_script_timeout(policy: Sequence[Failure]) -> None:
    def script(call: HookCall) -> None:
        call.timed_out += 1
        call.put_aside += 1

    rig = Rig(
        scripts=StubScripts(Hook.PROTOCOL_DETECTED, Hook.FLOW_END, script=script),
        policy=Policy(failures=dict.fromkeys(policy, DROP)),
    )
    assert rig.feed(ask("a.example")) is (DROP if Failure.SCRIPT_TIMEOUT in policy else PASS)
    assert the_flow(rig).failures == (Failure.SCRIPT_TIMEOUT,)
    rig.engine.finish(T0)
    figures = rig.engine.figures()
    assert (figures["script_timeouts"], figures["scripts_aside"], figures["script_errors"]) == (2, 2, 0)


# Verdicts: statuses, scores, lists, operator


def test_drop_score_at_its_boundary() -> None:
    for score, action in ((99, PASS), (100, DROP), (101, DROP)):
        assert Rig(scripts=block_names("a.example", score=score)).feed(ask("a.example")) is action


def test_a_blocking_status_whatever_its_score() -> None:
    def script(call: HookCall) -> None:
        call.flow.set_status(BLACKLISTED)

    rig = Rig(scripts=StubScripts(Hook.PROTOCOL_DETECTED, script=script))
    assert rig.feed(ask("a.example")) is DROP
    flow = the_flow(rig)
    assert flow.verdict.reason == "status: status_blacklisted"
    assert flow.status_map == BLACKLISTED.bit | status_types.status_blocked.bit


def test_reject() -> None:
    rig = Rig(scripts=block_names("a.example"), policy=Policy(block_action=REJECT))
    assert rig.feed(ask("a.example")) is REJECT
    assert the_flow(rig).dropped_packets == 1


@pytest.mark.parametrize("ip", [CLIENT, SERVER])
def test_blacklisted_addresses(ip: str) -> None:
    rig = Rig(directory=Directory(malware=NetworkSet([ip])))
    rig.feed(c2s())
    rig.feed(c2s(src=OTHER, sport=5))
    assert [flow.blacklisted for flow in flows(rig)] == [True, ip == SERVER]


def test_blacklisted_names_set_the_category() -> None:
    names = NameLists(DomainSet(["bad.example"]), DomainSet(["mine.example"]), DomainSet(["ads.example"]))
    for name, category, blacklisted in (
        ("www.bad.example", 100, True),
        ("mine.example", 99, False),
        ("ads.example", 101, False),
        ("good.example", 0, False),
    ):
        rig = Rig(names=names)
        rig.feed(ask(name))
        assert (the_flow(rig).classification.category_id, the_flow(rig).blacklisted) == (
            category,
            blacklisted,
        )


@pytest.mark.parametrize("ip", [CLIENT, SERVER])
def test_allow_listed_hosts_pass(ip: str) -> None:
    rig = Rig(directory=Directory(allowed=NetworkSet([ip])), scripts=block_names("a.example"))
    assert rig.feed(ask("a.example")) is PASS
    assert the_flow(rig).verdict.rule is Rule.ALLOW_LIST


NOBODY_BUT = NameLists(
    DomainSet(["example"]), DomainSet(), DomainSet(["good.example"]), allowed=DomainSet(["good.example"])
)


def test_allow_listed_names_beat_lists_and_scores() -> None:
    for name, action, rule in (
        ("www.good.example", PASS, Rule.ALLOW_LIST),
        ("bad.example", DROP, Rule.STATUS),
        ("good.example.bad.example", DROP, Rule.STATUS),
    ):
        rig = Rig(names=NOBODY_BUT, scripts=block_listed())
        assert rig.feed(ask(name)) is action
        flow = the_flow(rig)
        assert (flow.verdict.rule, flow.blacklisted) == (rule, action is DROP)
        assert flow.classification.category_id == (100 if action else 0)
    rig = Rig(names=NOBODY_BUT, scripts=block_names("www.good.example"))
    assert rig.feed(ask("www.good.example")) is PASS


def test_an_allow_listed_name_beats_a_blacklisted_address() -> None:
    rig = Rig(names=NOBODY_BUT, directory=Directory(malware=NetworkSet([SERVER])), scripts=block_listed())
    assert rig.feed(ask("good.example")) is PASS
    assert rig.feed(ask("other.test", sport=7)) is DROP


def test_an_allow_listed_name_does_not_take_the_next_one_along() -> None:
    rig = Rig(names=NOBODY_BUT, scripts=block_listed())
    assert rig.feed(ask("good.example")) is PASS
    assert rig.feed(ask("bad.example")) is DROP
    assert rig.feed(ask("good.example")) is PASS


def test_new_lists_reach_live_flows() -> None:
    rig = Rig(names=NOBODY_BUT, scripts=block_listed())
    nothing = DomainSet()
    assert rig.feed(ask("good.example")) is PASS
    for names, action in (
        (NameLists(DomainSet(["good.example"]), nothing, nothing), DROP),
        (NOBODY_BUT, PASS),
    ):
        engine = rig.engine
        engine.renew(
            scripts=engine.verdicts.scripts,
            policy=engine.verdicts.policy,
            directory=Directory(),
            limits=engine.limits,
            names=names,
        )
        assert rig.feed(ask("good.example")) is action


def test_operator_blocks_and_unblocks_a_flow() -> None:
    rig = Rig()
    rig.feed(c2s(b"x"))
    flow = the_flow(rig)
    flow.operator = Operator.BLOCK
    rig.engine.judge(flow, rig.engine.now)
    assert rig.feed(c2s(b"y", seq=101)) is DROP
    assert rig.feed(c2s(b"y", sport=2)) is PASS
    flow.operator = Operator.NONE
    rig.engine.judge(flow, rig.engine.now)
    assert rig.feed(c2s(b"z", seq=102)) is PASS
    assert flow.status_map == 0


def test_operator_unblocks_what_a_score_blocked() -> None:
    rig = Rig(scripts=block_names("a.example"))
    assert rig.feed(ask("a.example")) is DROP
    flow = the_flow(rig)
    flow.operator = Operator.UNBLOCK
    rig.engine.judge(flow, rig.engine.now)
    assert rig.feed(ask("a.example")) is PASS
    assert the_flow(rig) is flow


def test_operator_blocks_a_host() -> None:
    rig = Rig()
    rig.feed(c2s(sport=1))
    rig.feed(c2s(sport=2, src=OTHER))
    assert rig.order(Operator.BLOCK, CLIENT) == 1
    assert rig.feed(c2s(sport=1)) is DROP
    assert rig.feed(c2s(sport=3)) is DROP  # new flows too, at once
    assert rig.feed(c2s(sport=2, src=OTHER)) is PASS
    rig.engine.advance(T0 + 100)
    assert rig.feed(c2s(sport=4), 100) is DROP  # also after all its flows are gone
    assert sum(rig.engine.forget(1, rig.engine.now)) == 1
    assert rig.feed(c2s(sport=4), 100) is PASS


def test_operators_unblock_of_a_host_beats_a_block_of_the_other() -> None:
    rig = Rig()
    rig.feed(c2s())
    flow = the_flow(rig)
    rig.order(Operator.UNBLOCK, CLIENT)
    rig.order(Operator.BLOCK, SERVER)
    assert flow.verdict.rule is Rule.OPERATOR_UNBLOCK
    flow.operator = Operator.BLOCK  # a word on the flow itself beats both
    rig.engine.judge(flow, rig.engine.now)
    assert flow.verdict.rule is Rule.OPERATOR_BLOCK


def test_new_syn_after_a_block_is_judged_by_itself() -> None:
    """A client that was dropped tries again from the same port."""
    rig = Rig(scripts=block_names("bad.example"))
    open_tcp(rig)
    assert rig.feed(c2s(b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n", PSH | ACK)) is DROP
    assert rig.feed(c2s(b"", SYN, seq=99)) is DROP  # the old SYN again
    assert rig.feed(c2s(b"", SYN, seq=70_000)) is PASS
    assert ended(rig)[0][0] is EndReason.REPLACED


# Names that change within a flow


def test_each_dns_query_is_judged_by_itself() -> None:
    rig = Rig(scripts=block_names("bad.example"))
    steps = [
        (ask("good.example"), PASS), (reply("good.example"), PASS),
        (ask("bad.example"), DROP), (ask("bad.example"), DROP),
        (ask("other.example"), PASS), (reply("other.example"), PASS),
        (ask("bad.example"), DROP), (reply("bad.example"), DROP),
        (ask("good.example"), PASS),
    ]  # fmt: skip
    for number, (data, action) in enumerate(steps):
        assert (number, rig.feed(data, number / 10)) == (number, action)
    rig.engine.finish(T0 + 2)
    verdicts = [event.flow.verdict.action for event in rig.of(FlowEnded)]
    assert verdicts.count(DROP) == 3
    assert rig.engine.counters.dropped_packets == 4
    assert rig.classifier.alive == 0


def test_an_operators_block_holds_for_further_queries() -> None:
    rig = Rig()
    rig.feed(ask("a.example"))
    the_flow(rig).operator = Operator.BLOCK
    rig.engine.judge(the_flow(rig), T0)
    assert rig.feed(ask("b.example")) is DROP
    assert rig.engine.counters.flows == 1


def message(text: str) -> bytes:
    """A query as it goes over TCP."""
    wire = query(text)
    return len(wire).to_bytes(2) + wire


def test_each_dns_query_over_tcp_is_judged() -> None:
    rig = Rig(scripts=block_names("bad.example"))
    seq = 100
    for text, action in (
        ("a.example", PASS),
        ("b.example", PASS),
        ("bad.example", DROP),
        ("a.example", DROP),
    ):
        data = message(text)
        assert rig.feed(c2s(data, PSH | ACK, dport=53, seq=seq)) is action
        seq += len(data)
    assert the_flow(rig).requests == 4


@pytest.mark.parametrize("position", range(1, len(message("bad.example"))))
def test_dns_over_tcp_split_anywhere(position: int) -> None:
    rig = Rig(scripts=block_names("bad.example"))
    data = message("bad.example")
    assert rig.feed(c2s(data[:position], PSH | ACK, dport=53)) is PASS
    assert rig.feed(c2s(data[position:], PSH | ACK, dport=53, seq=100 + position)) is DROP


HEAD = b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n"


@pytest.mark.parametrize("position", range(1, len(HEAD)))
def test_http_split_anywhere(position: int) -> None:
    rig = Rig(scripts=block_names("bad.example"))
    open_tcp(rig)
    rig.feed(c2s(HEAD[:position], PSH | ACK))
    assert rig.feed(c2s(HEAD[position:], PSH | ACK, seq=100 + position)) is DROP


@pytest.mark.parametrize("position", [1, 2, 3, 5, 10, 20, 25])
@pytest.mark.parametrize(("data", "dport"), [(HEAD, 80), (message("bad.example"), 53)], ids=["http", "dns"])
def test_first_segments_out_of_order(position: int, data: bytes, dport: int) -> None:
    rig = Rig(scripts=block_names("bad.example"))
    rig.feed(c2s(b"", SYN, seq=99, dport=dport))
    rig.feed(c2s(data[position:], PSH | ACK, seq=100 + position, dport=dport))
    assert rig.feed(c2s(data[:position], PSH | ACK, seq=100, dport=dport)) is DROP


def test_second_host_of_a_kept_alive_connection() -> None:
    rig = Rig(scripts=block_names("bad.example"))
    open_tcp(rig)
    good = b"GET / HTTP/1.1\r\nHost: good.example\r\n\r\n"
    assert rig.feed(c2s(good, PSH | ACK)) is PASS
    assert rig.feed(s2c(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", PSH | ACK)) is PASS
    assert rig.feed(c2s(HEAD, PSH | ACK, seq=100 + len(good))) is DROP


def test_pipelined_hosts_are_judged_one_by_one() -> None:
    seen = []

    def script(call: HookCall) -> None:
        seen.append((call.hook, call.flow.hostname))

    rig = Rig(scripts=StubScripts(Hook.PROTOCOL_DETECTED, Hook.PROTOCOL_UPDATED, script=script))
    open_tcp(rig)
    heads = b"".join(b"GET / HTTP/1.1\r\nHost: %b.example\r\n\r\n" % name for name in (b"a", b"b", b"c"))
    rig.feed(c2s(heads, PSH | ACK))
    names = [name for _, name in seen]
    assert names == sorted(names)
    assert set(names) == {"a.example", "b.example", "c.example"}
    assert [hook for hook, _ in seen].count(Hook.PROTOCOL_DETECTED) == 1


# Host scores


def quarantine_rig(score: int = 60, **limits: Any) -> Rig:
    """Each flow for bad.example adds a score to its client; 100 puts it into quarantine."""

    def script(call: HookCall) -> None:
        if call.hook is Hook.PROTOCOL_DETECTED and call.flow.hostname == "bad.example":
            call.flow.set_status(MINING, 0, score, 0)

    return Rig(
        scripts=StubScripts(script=script),
        policy=Policy(host_drop_score=100),
        limits=Limits(quarantine_seconds=100, **limits),
    )


def test_host_score_puts_all_flows_of_the_host_into_quarantine() -> None:
    rig = quarantine_rig()
    assert rig.feed(ask("good.example", sport=1)) is PASS
    assert rig.feed(ask("bad.example", sport=2)) is PASS
    assert rig.feed(ask("good.example", sport=9, src=OTHER)) is PASS
    assert rig.feed(ask("bad.example", sport=3)) is DROP  # 120
    ((host, time, until),) = rig.of(HostQuarantined)
    assert (host.ip, time, until) == (CLIENT, T0, T0 + 100)
    assert rig.feed(c2s(sport=5)) is DROP  # a new flow, from its first packet
    assert rig.feed(reply("good.example", sport=1)) is DROP
    assert rig.feed(ask("good.example", sport=9, src=OTHER)) is PASS
    by_port = {flow.client_port: flow for flow in flows(rig)}
    assert {port: flow.verdict.action for port, flow in by_port.items()} == {
        1: DROP,
        2: DROP,
        3: DROP,
        9: PASS,
        5: DROP,
    }
    assert by_port[5].verdict.rule is Rule.HOST_SCORE
    assert rig.engine.counters.quarantines == 1


@pytest.mark.parametrize(("score", "action"), [(49, PASS), (50, DROP)])
def test_host_score_at_its_boundary(score: int, action: Action) -> None:
    rig = quarantine_rig(score)
    rig.feed(ask("bad.example", sport=1))
    assert rig.feed(ask("bad.example", sport=2)) is action


def test_quarantine_outlasts_the_flows_and_ends() -> None:
    rig = quarantine_rig()
    rig.feed(ask("bad.example", sport=1))
    rig.feed(ask("bad.example", sport=2))
    rig.engine.advance(T0 + 99)
    assert flows(rig) == []  # they ended at 60 and took their scores back
    assert rig.feed(c2s(sport=7), 99) is DROP
    assert rig.feed(c2s(sport=7), 99.9) is DROP
    rig.engine.advance(T0 + 100)
    assert rig.feed(c2s(sport=7), 100) is PASS
    assert rig.feed(c2s(sport=8), 100) is PASS
    assert rig.engine.counters.quarantines == 1
    rig.engine.finish(T0 + 300)
    assert len(rig.engine.hosts) == 0


def test_quarantine_is_served_once_for_an_offence() -> None:
    rig = quarantine_rig()
    for at in range(0, 101, 20):  # the two flows live on, and with them what they added
        for sport in (1, 2):
            rig.feed(ask("bad.example", sport=sport), at)
    assert [flow.verdict.action for flow in flows(rig)] == [PASS, PASS]
    host = flows(rig)[0].client
    assert (host.score, rig.engine.counters.quarantines) == (0, 1)
    assert rig.feed(ask("bad.example", sport=3), 110) is PASS
    assert rig.feed(ask("bad.example", sport=4), 111) is DROP
    assert (host.score, rig.engine.counters.quarantines) == (120, 2)
    rig.engine.finish(T0 + 112)
    assert host.score == 0


def test_what_another_worker_saw_is_forgiven_too() -> None:
    rig = quarantine_rig(100)
    rig.feed(ask("good.example"))
    rig.engine.set_score_elsewhere(CLIENT, 0, 100)
    assert rig.feed(c2s(sport=7), 1) is DROP
    rig.engine.advance(T0 + 50)
    assert rig.feed(c2s(sport=7), 99) is DROP
    assert rig.feed(c2s(sport=7), 100.5) is PASS
    rig.engine.set_score_elsewhere(CLIENT, 0, 0)  # the other one forgave as well, and says so
    rig.engine.set_score_elsewhere(CLIENT, 0, 100)
    assert rig.feed(c2s(sport=7), 101) is DROP


def test_quarantine_ends_when_it_ends() -> None:
    rig = quarantine_rig()
    rig.feed(ask("bad.example", sport=1))
    rig.feed(ask("bad.example", sport=2))
    for at in range(62, 100, 2):
        assert rig.feed(c2s(sport=7), at) is DROP
    assert rig.feed(c2s(sport=7), 100.5) is PASS


def test_quarantine_of_a_host_is_not_its_peers() -> None:
    rig = quarantine_rig(100)
    rig.feed(ask("bad.example"))
    assert rig.feed(ip4(6, tcp(sport=5), OTHER, SERVER)) is PASS


def test_operator_and_allow_list_beat_the_quarantine() -> None:
    rig = quarantine_rig(100)
    rig.feed(ask("bad.example"))
    rig.order(Operator.UNBLOCK, CLIENT)
    assert rig.feed(c2s(sport=5)) is PASS
    allowed = quarantine_rig(100)
    allowed.engine.hosts.replace_directory(Directory(allowed=NetworkSet([CLIENT])))
    assert allowed.feed(ask("bad.example")) is PASS
    assert allowed.engine.counters.quarantines == 0


def test_flows_that_end_take_their_scores_back() -> None:
    rig = quarantine_rig(90)
    rig.feed(ask("bad.example", sport=1))
    rig.engine.advance(T0 + 62)
    assert rig.feed(ask("bad.example", sport=2), 62) is PASS
    assert the_flow(rig).client.score == 90


def test_no_quarantine_unless_configured() -> None:
    rig = Rig(scripts=block_names("bad.example", score=99))
    for sport in range(1, 30):
        assert rig.feed(ask("bad.example", sport=sport)) is PASS
    assert rig.of(HostQuarantined) == []


# Events


def test_order_of_events() -> None:
    """Alert, then the verdict that came of it, then the end."""
    rig = Rig(scripts=block_names("bad.example"))
    rig.feed(ask("bad.example"), 1)
    rig.engine.finish(T0 + 2)
    assert [type(event) for event in rig.events] == [AlertRaised, VerdictChanged, FlowEnded]
    alert, changed, end = rig.events
    assert isinstance(alert, AlertRaised)
    assert (alert.time, alert.alert.status, alert.alert.score) == (T0 + 1, MINING, 100)
    assert isinstance(changed, VerdictChanged)
    assert (changed.time, changed.previous.action) == (T0 + 1, PASS)
    assert isinstance(end, FlowEnded)


def test_quarantine_comes_before_the_verdicts_it_changes() -> None:
    rig = quarantine_rig(100)
    rig.feed(c2s(sport=5))
    rig.feed(ask("bad.example"))
    kinds = [type(event) for event in rig.events]
    assert kinds == [HostQuarantined, VerdictChanged, VerdictChanged]


def test_a_verdict_event_only_where_the_action_changes() -> None:
    rig = Rig(scripts=block_names("a.example"))
    for number in range(3):
        rig.feed(ip4(6, tcp(b"SSH-", seq=4 * number, dport=22)))
    assert rig.of(VerdictChanged) == []


@pytest.mark.parametrize(
    ("scores", "alerts"),
    [
        ([(MINING, 50), (BLACKLISTED, 100)], [100]),  # one call: the highest
        ([(BLACKLISTED, 50), (MINING, 50)], [50]),
        ([(MINING, 0)], []),  # a score of 0 never alerts
        ([(MINING, -5)], []),
        ([(MINING, 5000)], [1000]),
    ],
)
def test_at_most_one_alert_per_call(scores: list[tuple[Any, int]], alerts: list[int]) -> None:
    def script(call: HookCall) -> None:
        for status, score in scores:
            call.trigger(status, None, score, 0, 0, "test")

    rig = Rig(
        scripts=StubScripts(Hook.PROTOCOL_DETECTED, script=script),
        policy=Policy(drop_score=0, block_statuses=0),
    )
    rig.feed(ask("a.example"))
    raised = rig.of(AlertRaised)
    assert [event.alert.score for event in raised] == alerts
    if scores == [(BLACKLISTED, 50), (MINING, 50)]:
        assert raised[0].alert.status is BLACKLISTED  # ties: the lowest key
    assert rig.engine.counters.alerts == len(alerts)


@pytest.mark.parametrize(
    ("scores", "alerts"), [([50, 100], [50, 100]), ([50, 50], [50]), ([100, 50, 101], [100, 101])]
)
def test_a_later_alert_needs_a_higher_score(scores: list[int], alerts: list[int]) -> None:
    statuses = [MINING, BLACKLISTED, status_types.status_longlived]
    steps = iter(zip(statuses, scores, strict=False))

    def script(call: HookCall) -> None:
        step = next(steps, None)
        if step:
            call.trigger(step[0], None, step[1], 0, 0, "test")

    rig = Rig(
        scripts=StubScripts(Hook.PERIODIC_UPDATE, script=script),
        policy=Policy(drop_score=0, block_statuses=0),
    )
    for at in range(0, 120, 10):
        rig.feed(ask("a.example"), at)
    assert [event.alert.score for event in rig.of(AlertRaised)] == alerts


# Any traffic at all


@st.composite
def traffic(draw: st.DrawFn) -> list[tuple[bytes, float]]:
    """Packets of few endpoints, many of them damaged, at times that mostly grow."""
    payloads = st.sampled_from(
        [b"", UNNAMED, HEAD, HEAD[:17], HEAD[17:], query("a.example"), answer("b.example"),
         message("c.example"), b"SSH-2.0-x\r\n", b"\x16\x03\x01\x02\x00\x01", bytes(1200)]
    )  # fmt: skip
    well_formed = st.one_of(
        st.builds(
            lambda payload, flags, sport, dport, seq, back: ip4(
                6,
                tcp(payload, sport=sport, dport=dport, seq=seq, flags=flags),
                *([SERVER, CLIENT] if back else []),
            ),
            payloads,
            st.sampled_from([SYN, SYN | ACK, ACK, PSH | ACK, FIN | ACK, RST, 0, 0xFF]),
            st.sampled_from([1, 2, 80]),
            st.sampled_from([80, 53]),
            st.one_of(st.integers(0, 200), st.integers(2**32 - 50, 2**32 - 1)),
            st.booleans(),
        ),
        st.builds(
            lambda payload, sport, dport: ip4(17, udp(payload, sport=sport, dport=dport)),
            payloads,
            st.sampled_from([1, 53]),
            st.sampled_from([53, 443]),
        ),
        valid(),
    )
    packets = draw(
        st.lists(st.one_of(well_formed, well_formed, mutated(), st.binary(max_size=80)), max_size=40)
    )
    now = 0.0
    result = []
    for data in packets:
        now += draw(st.sampled_from([0.0, 0.0, 0.01, 1.0, -3.0, 7.0, 31.0, 200.0]))
        result.append((data, now))
    return result


def check_counts(engine: Engine, packets: list[bytes], events: list[Any]) -> None:
    """Nothing is lost and nothing counted twice."""
    counters = engine.counters
    kinds = [decode(data) for data in packets]
    good = [kind for kind in kinds if isinstance(kind, Packet)]
    done = [event.flow for event in events if isinstance(event, FlowEnded)]
    assert counters.packets == len(packets)
    assert counters.fragments == sum(kind is FRAGMENT for kind in kinds)
    flaws = sum(isinstance(kind, Malformed) or getattr(kind, "flaw", None) is not None for kind in kinds)
    assert sum(counters.malformed.values()) == flaws
    assert counters.bytes == sum(packet.ip_length for packet in good)
    assert len(done) == counters.flows == len({flow.id for flow in done})
    assert sum(flow.packets for flow in done) + counters.table_full == len(good)
    assert sum(flow.dropped_packets for flow in done) == counters.dropped_packets
    if not counters.table_full:
        assert sum(flow.bytes for flow in done) == counters.bytes
        assert sum(flow.goodput for flow in done) == sum(packet.payload_length for packet in good)
    assert (engine.table.count, list(engine.table)) == (0, [])
    assert all(flow.dpi is None for flow in done)
    assert all(flow.last_seen >= flow.first_seen for flow in done)


@settings(max_examples=250, deadline=None)
@given(
    traffic(),
    st.sampled_from([[], [], [], ["feed"], ["give_up"]]),
    st.sampled_from([2, 1000]),
    st.sampled_from([0, 50]),
)
def test_any_traffic(
    packets: list[tuple[bytes, float]], failing: list[str], max_flows: int, host_score: int
) -> None:
    def script(call: HookCall) -> None:
        if call.flow.hostname.startswith(("a", "bad")) or call.flow.id % 5 == 0:
            call.trigger(MINING, None, 60, 30, 20, "test")

    rig = Rig(
        classifier=StubClassifier(failing=failing),
        scripts=StubScripts(script=script),
        policy=Policy(drop_score=60, host_drop_score=host_score),
        limits=Limits(max_flows=max_flows),
    )
    for data, at in packets:
        assert isinstance(rig.feed(data, at), Action)
    rig.engine.finish(T0 + 10_000)
    check_counts(rig.engine, [data for data, _ in packets], rig.events)
    assert rig.classifier.alive == 0
    assert all(state.closed == 1 for state in rig.classifier.opened)
    rig.engine.advance(T0 + 20_000)
    assert len(rig.engine.hosts) == 0
    for event in rig.of(FlowEnded):
        assert bool(event.flow.status_map & 8) == (event.flow.verdict.action is not PASS)
    times = [event.time for event in rig.events]
    assert times == sorted(times)


@pytest.mark.parametrize("choice", ["system", "nfstream"])
def test_any_traffic_with_the_real_library(choice: str) -> None:
    from nedge.dpi import DpiError, load_library

    try:
        load_library(choice)
    except DpiError as error:
        require(False, str(error))
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, str(here / "core_fuzz.py"), choice],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [here, *here.parents[1:3]]))},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > 500


def test_the_stub_knows_its_protocols() -> None:
    """What the tests above rest on."""
    classify = StubClassifier().classify
    assert classify(c2s(HEAD)) >> 16 == HTTP
    assert classify(ask("a")) >> 16 == classify(c2s(message("a"))) >> 16 == DNS
    assert classify(c2s(b"SSH-")) >> 16 == SSH
    assert classify(c2s(UNNAMED)) == classify(c2s(b"")) == 0
