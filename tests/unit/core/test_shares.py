"""What of a flow the kernel takes over, by which marks, and how its counters and ends come back."""

from __future__ import annotations

import pytest
from core_kit import (
    ACK,
    CLIENT,
    FIN,
    PSH,
    RST,
    SERVER,
    SSH,
    SYN,
    T0,
    Rig,
    StubClassifier,
    StubScripts,
    ip4,
    udp,
)
from test_engine import ask, block_names, c2s, ended, handshake, open_tcp, s2c, the_flow

from nedge.core.engine import Engine
from nedge.core.flow import EndReason, Flow, Handshake, Share
from nedge.core.hooks import Hook
from nedge.core.hosts import Directory
from nedge.core.inspection import NameLists
from nedge.core.limits import Limits
from nedge.core.lists import DomainSet
from nedge.core.marks import Marks, is_mask
from nedge.core.packet import Packet, decode, reverse_key
from nedge.core.quic import connection_id
from nedge.core.rewrite import with_payload
from nedge.core.verdict import Operator, Policy

HELLO = c2s(b"SSH-2.0-x\r\n", PSH | ACK)
CONFIRMED = s2c(b"", ACK, ack=111)
"""The server has all of it."""
GET = b"GET / HTTP/1.1\r\nHost: %b\r\n\r\n"


def offloading(scripts: StubScripts | None = None, **options: object) -> tuple[Rig, list[tuple[int, Share]]]:
    """A rig with a kernel, and what that is told outside of packets."""
    rig = Rig(scripts=scripts, **options)  # type: ignore[arg-type]
    told: list[tuple[int, Share]] = []
    rig.engine.offload.remark = lambda flow: told.append((flow.id, flow.share))
    return rig, told


def share(rig: Rig, data: bytes, at: float = 0.0) -> Share:
    """What the kernel is told with a packet."""
    rig.feed(data, at)
    return rig.engine.share


def test_without_a_kernel_there_are_no_shares() -> None:
    rig = Rig()
    for data in [*handshake(), c2s(b"SSH-2.0-x\r\n", PSH | ACK)]:
        assert share(rig, data) is Share.NONE
    assert the_flow(rig).share is Share.NONE


def test_a_decided_flow_is_passed_by_the_kernel() -> None:
    rig, _ = offloading()
    for data in handshake():
        assert share(rig, data) is Share.NONE
    assert share(rig, HELLO) is Share.NONE
    assert the_flow(rig).looking is False
    assert share(rig, CONFIRMED) is Share.PASS


def test_a_blocked_flow_is_dropped_by_the_kernel_and_forgets_its_inspection() -> None:
    rig, _ = offloading(block_names("bad.example"))
    open_tcp(rig)
    assert share(rig, c2s(GET % b"bad.example", PSH | ACK)) is Share.DROP
    assert rig.classifier.alive == 0


class Growing(StubClassifier):
    """What it inspects is named at once, but never complete."""

    def open(self):  # type: ignore[no-untyped-def]
        state = super().open()
        state.more_possible = lambda: True
        return state


def test_what_a_script_waits_for_is_waited_for() -> None:
    for hooks, expected in (((Hook.PROTOCOL_DETECTED,), Share.PASS), ((Hook.PROTOCOL_UPDATED,), Share.NONE)):
        rig, _ = offloading(StubScripts(*hooks), classifier=Growing())
        open_tcp(rig)
        rig.feed(HELLO)
        assert share(rig, CONFIRMED) is expected


def test_http_is_watched_and_told_once() -> None:
    rig, _ = offloading(block_names("bad.example"))
    open_tcp(rig)
    first, second = GET % b"good.example", GET % b"bad.example"
    assert share(rig, c2s(first, PSH | ACK)) is Share.WATCH
    assert share(rig, c2s(first, PSH | ACK, seq=100 + len(first))) is Share.NONE  # the kernel knows
    assert share(rig, c2s(second, PSH | ACK, seq=100 + 2 * len(first))) is Share.DROP


@pytest.mark.parametrize(("answers", "expected"), [(False, Share.WATCH), (True, Share.NONE)])
def test_the_kernel_passes_what_http_servers_answer_unless_it_is_looked_at(
    answers: bool, expected: Share
) -> None:
    scripts = StubScripts(Hook.PROTOCOL_UPDATED)
    rig, _ = offloading(scripts, classifier=Growing())
    rig.engine.inspector.http_answers = answers
    open_tcp(rig)
    request = GET % b"good.example"
    assert share(rig, c2s(request, PSH | ACK)) is expected
    calls = len(scripts.calls)
    share(rig, c2s(GET % b"other.example", PSH | ACK, seq=100 + len(request)))
    assert len(scripts.calls) == calls + 1  # once for each request, though each ends an inspection


def test_an_answer_that_is_looked_at_comes_up_though_no_script_hears_of_it() -> None:
    rig, _ = offloading(StubScripts(Hook.PROTOCOL_DETECTED), classifier=Growing())
    rig.engine.inspector.http_answers = True
    open_tcp(rig)
    assert share(rig, c2s(GET % b"good.example", PSH | ACK)) is Share.NONE


def test_a_request_is_inspected_with_its_body_and_scripts_hear_of_it() -> None:
    scripts = StubScripts(Hook.PROTOCOL_UPDATED)
    rig, _ = offloading(scripts, classifier=Growing())
    open_tcp(rig)
    head = b"POST / HTTP/1.1\r\nHost: good.example\r\nContent-Length: 6\r\n\r\n"
    assert share(rig, c2s(head, PSH | ACK)) is Share.NONE
    assert share(rig, c2s(b"abc", PSH | ACK, seq=100 + len(head))) is Share.NONE
    assert not scripts.calls
    assert share(rig, c2s(b"def", PSH | ACK, seq=103 + len(head))) is Share.WATCH
    assert len(scripts.calls) == 1


NTP = b"\x23" + bytes(47)


def test_udp_is_left_to_the_kernel_once_its_server_has_answered() -> None:
    rig, _ = offloading(classifier=StubClassifier(lambda packet: SSH << 16))
    there = ip4(17, udp(NTP, dport=123))
    back = ip4(17, udp(NTP, sport=123, dport=40000), SERVER, CLIENT)
    for data, port, expected in (
        (there, 3, Share.NONE),
        (back, 3, Share.NONE),  # forged: it came by the client's port
        (there, 3, Share.NONE),
        (back, 4, Share.PASS),
    ):
        rig.engine.packet(data, T0, port=port)
        assert rig.engine.share is expected


def test_udp_that_nobody_answers_is_left_to_the_kernel_in_the_end() -> None:
    rig, _ = offloading(classifier=StubClassifier(lambda packet: SSH << 16))
    shares = [share(rig, ip4(17, udp(NTP, dport=123))) for _ in range(30)]
    assert shares == [Share.NONE] * 24 + [Share.PASS] * 6


LONG = b"\xc3\0\0\0\x01\x08"


def test_another_quic_connection_is_a_new_flow_until_there_is_an_answer() -> None:
    rig, _ = offloading(classifier=StubClassifier(lambda packet: SSH << 16))
    for ids in (b"a" * 8, b"a" * 8, b"b" * 8):
        rig.feed(ip4(17, udp(LONG + ids + bytes(50), dport=443)))
    assert ended(rig) == [(EndReason.REPLACED, 0.0)]
    rig.feed(ip4(17, udp(LONG + b"c" * 8 + bytes(50), sport=443, dport=40000), SERVER, CLIENT))
    rig.feed(ip4(17, udp(LONG + b"c" * 8 + bytes(50), dport=443)))  # it goes by the server's id now
    assert len(ended(rig)) == 1


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (LONG + b"12345678rest", LONG[1:] + b"12345678"),
        (b"\xc0\x6b\x33\x43\xcf\x00rest", b"\x6b\x33\x43\xcf\x00"),
        (b"\xc0\xff\0\0\x1d\x01x", b"\xff\0\0\x1d\x01x"),
        (b"\xc3\0\0\0\x01\x15" + bytes(40), b""),  # no such long ids
        (b"\xc3\0\0\0\x01", b""),
        (b"\x43\0\0\0\x01\x08" + bytes(40), b""),  # a short header
        (b"\x80\x60\x12\x34\0\0" + bytes(40), b""),  # RTP
        (b"", b""),
    ],
)
def test_quic_connection_ids(payload: bytes, expected: bytes) -> None:
    assert connection_id(payload) == expected


def test_dns_answers_are_looked_at() -> None:
    rig, _ = offloading(StubScripts(Hook.PROTOCOL_UPDATED), classifier=Growing())
    assert share(rig, ask("good.example")) is Share.NONE


def test_http_without_its_start_is_not_left_to_the_kernels_idea_of_who_asks() -> None:
    rig, _ = offloading()
    assert share(rig, c2s(GET % b"good.example", PSH | ACK)) is Share.NONE


def test_a_blocked_query_is_dropped_alone() -> None:
    rig, _ = offloading(block_names("bad.example"))
    assert share(rig, ask("good.example")) is Share.WATCH
    assert share(rig, ask("bad.example")) is Share.NONE
    assert share(rig, ask("good.example")) is Share.WATCH


@pytest.mark.parametrize(
    "data", [ip4(1, b"\x08\0\0\0\0\0\0\1"), ip4(4, ip4(6, b"\0" * 12 + b"\x50\x02" + bytes(6)))]
)
def test_icmp_and_tunnels_stay_here(data: bytes) -> None:
    rig, _ = offloading(policy=Policy(host_drop_score=1))
    assert share(rig, data) is Share.NONE


def test_a_verdict_that_changes_is_changed_in_the_kernel() -> None:
    rig, told = offloading()
    open_tcp(rig)
    rig.feed(HELLO)
    rig.feed(CONFIRMED)
    flow = the_flow(rig)
    flow.operator = Operator.BLOCK
    rig.engine.rejudge(None, T0 + 1)
    flow.operator = Operator.UNBLOCK
    rig.engine.rejudge(None, T0 + 2)
    assert told == [(flow.id, Share.DROP), (flow.id, Share.PASS)]


def test_a_syn_on_a_flow_that_the_kernel_has_is_a_new_flow() -> None:
    """The kernel's connection, and its mark, would have kept it there."""
    rig, _ = offloading()
    open_tcp(rig)
    rig.feed(HELLO)
    rig.feed(CONFIRMED)
    rig.feed(c2s(b"", SYN, seq=5000), 1)
    assert ended(rig) == [(EndReason.REPLACED, 1.0)]


# What the kernel passes unseen of a handshake


def handshakes(rig: Rig) -> tuple[Handshake, int, int]:
    flow = the_flow(rig)
    return flow.handshake, flow.packets_sent, flow.packets_rcvd


def test_what_the_client_sends_shows_that_the_handshake_is_done() -> None:
    rig, _ = offloading()
    rig.feed(c2s(b"", SYN, seq=99))
    assert handshakes(rig) == (Handshake.SYN, 1, 0)
    rig.feed(HELLO)
    assert handshakes(rig) == (Handshake.DONE, 2, 1)
    flow = the_flow(rig)
    assert flow.bytes_rcvd == 40  # both headers, until the kernel says it better
    rig.feed(CONFIRMED)
    assert flow.share is Share.PASS
    rig.engine.offload.account(flow.key, (4, 300), (3, 180), T0 + 1, ended=False)
    assert (flow.packets_rcvd, flow.bytes_rcvd) == (3, 180)


def test_who_sees_all_infers_nothing() -> None:
    rig = Rig()
    for data in (c2s(b"", SYN, seq=99), HELLO):
        rig.feed(data)
    assert handshakes(rig) == (Handshake.SYN, 2, 0)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (s2c(b"220 mail\r\n", PSH | ACK), (Handshake.SYN_ACK, 1, 2)),  # a server that speaks first
        (s2c(b"", RST | ACK), (Handshake.SYN, 1, 1)),  # refused
        (c2s(b"", RST), (Handshake.SYN, 2, 0)),  # a scanner's kernel, which asked for no answer
        (c2s(b"", RST | ACK), (Handshake.SYN, 2, 0)),  # may come without an answer, too
        (c2s(b"", FIN | ACK), (Handshake.DONE, 2, 1)),
        (c2s(b"", SYN, seq=99), (Handshake.SYN, 2, 0)),
    ],
)
def test_only_what_could_not_be_without_an_answer_shows_that_there_was_one(
    second: bytes, expected: tuple[Handshake, int, int]
) -> None:
    rig, _ = offloading()
    rig.feed(c2s(b"", SYN, seq=99))
    rig.feed(second)
    assert handshakes(rig) == expected


def test_what_belongs_to_no_connection_shows_nothing() -> None:
    rig, _ = offloading()
    rig.feed(c2s(b"", SYN, seq=99))
    packet = decode(HELLO)
    assert isinstance(packet, Packet)
    rig.engine.packet(with_payload(packet, packet.payload_bytes()), T0, tracked=False)
    assert handshakes(rig) == (Handshake.SYN, 2, 0)


def test_no_handshake_is_made_up_for_a_flow_whose_start_was_not_seen() -> None:
    rig, _ = offloading()
    rig.feed(HELLO)
    assert handshakes(rig) == (Handshake.NONE, 1, 0)


# Counters and ends


def offloaded() -> tuple[Engine, Flow, Rig]:
    rig, _ = offloading()
    open_tcp(rig)
    rig.feed(HELLO)
    rig.feed(CONFIRMED)
    return rig.engine, the_flow(rig), rig


@pytest.mark.parametrize("turned", [False, True])
def test_the_kernels_counters_replace_ours(turned: bool) -> None:
    engine, flow, _ = offloaded()
    sent, received = (10, 1000), (20, 20_000)
    before = flow.goodput_sent
    sent_before = flow.bytes_sent
    counts = (received, sent) if turned else (sent, received)
    engine.offload.account(reverse_key(flow.key) if turned else flow.key, *counts, T0 + 9, ended=False)
    assert (flow.packets_sent, flow.bytes_sent, flow.packets_rcvd, flow.bytes_rcvd) == (10, 1000, 20, 20_000)
    assert flow.last_seen == T0 + 9
    # An estimate: 20 bytes of IPv4 and 32 of TCP header for each of 7 packets that did not come up.
    assert flow.goodput_sent - before == 1000 - sent_before - 7 * 52


def test_counters_that_are_behind_ours_change_nothing() -> None:
    engine, flow, _ = offloaded()
    before = (flow.packets, flow.bytes, flow.last_seen)
    engine.offload.account(flow.key, (1, 40), (0, 0), T0 + 9, ended=False)
    assert (flow.packets, flow.bytes, flow.last_seen) == before


def test_the_kernel_says_when_it_is_over() -> None:
    engine, flow, rig = offloaded()
    engine.advance(T0 + 1000)
    assert ended(rig) == []
    engine.offload.account(flow.key, (10, 1000), (20, 2000), T0 + 900, ended=True)
    assert ended(rig) == [(EndReason.CLOSED, 1000.0)]
    assert flow.last_seen == T0 + 900
    assert (engine.table.count, len(engine.hosts)) == (0, 0)


def test_other_connections_are_none_of_ours() -> None:
    engine, flow, rig = offloaded()
    key = flow.key[:-1] + b"\xff"
    engine.offload.account(key, (1, 40), (0, 0), T0, ended=True)
    undecided = c2s(b"", SYN, sport=7)
    rig.feed(undecided)
    (other,) = (one for one in engine.table if one is not flow)
    engine.offload.account(other.key, (5, 400), (0, 0), T0, ended=True)
    assert ended(rig) == []
    assert other.packets == 1


def test_what_two_readings_miss_is_gone() -> None:
    engine, flow, rig = offloaded()
    for reading, left in enumerate([[], [], [EndReason.IDLE]]):
        engine.offload.begin_reading()
        if reading == 0:
            engine.offload.account(flow.key, (10, 1000), (20, 2000), T0, ended=False)
        engine.offload.end_reading()
        engine.advance(T0 + 100 * (reading + 1))
        assert [reason for reason, _ in ended(rig)] == left


def test_a_reading_that_is_not_whole_proves_nothing() -> None:
    engine, _, rig = offloaded()
    for reading in range(5):
        engine.offload.begin_reading()
        engine.advance(T0 + 100 * (reading + 1))
    assert ended(rig) == []


def test_what_is_taken_over_during_a_reading_is_not_missed_by_it() -> None:
    rig, _ = offloading()
    for _ in range(3):
        rig.engine.offload.begin_reading()
        rig.engine.offload.end_reading()
    rig.engine.offload.begin_reading()
    assert share(rig, ask("a.example")) is Share.WATCH
    rig.engine.offload.end_reading()
    rig.engine.offload.begin_reading()
    rig.engine.offload.end_reading()
    rig.engine.advance(T0 + 100)
    assert ended(rig) == []


# A new policy


def renew(engine: Engine, scripts: StubScripts, **policy: int) -> None:
    nothing = DomainSet()
    engine.renew(
        scripts=scripts,
        policy=Policy(**policy),  # type: ignore[arg-type]
        directory=Directory(),
        limits=Limits(),
        names=NameLists(nothing, nothing, nothing),
    )


def test_live_flows_are_judged_anew_with_their_next_packet() -> None:
    rig, _ = offloading(block_names("bad.example"))
    open_tcp(rig)
    bad = GET % b"bad.example"
    assert share(rig, c2s(bad, PSH | ACK)) is Share.DROP
    renew(rig.engine, StubScripts())
    flow = the_flow(rig)
    assert flow.verdict.action  # until its next packet
    assert rig.feed(s2c(b"x", PSH | ACK)) == 0
    assert (flow.score, flow.status_map, flow.client_score) == (0, 0, 0)
    assert rig.engine.share is not Share.DROP
    renew(rig.engine, block_names("bad.example"))
    assert rig.feed(s2c(b"x", PSH | ACK)) == 1
    assert rig.engine.share is Share.DROP


def test_a_new_policy_starts_scores_from_nothing() -> None:
    rig, _ = offloading(block_names("bad.example", score=60), policy=Policy(drop_score=100))
    rig.feed(ask("bad.example"))
    for _ in range(3):
        renew(rig.engine, block_names("bad.example", score=60))
        rig.feed(ip4(17, udp(b"no query", sport=40000)))
    assert the_flow(rig).score == 60
    assert not the_flow(rig).verdict.action


# Marks


@pytest.mark.parametrize("mask", [0xF0000000, 0x70, 0xFF0, 0x00FF0000, 0x38])
def test_marks_stay_within_their_mask_and_apart(mask: int) -> None:
    marks, seen = Marks(mask), set()
    for _ in range(1 << (mask.bit_count() - 2)):
        for each in (Share.PASS, Share.DROP, Share.WATCH):
            value = marks.value(each)
            assert 0 < value <= mask
            assert value & ~mask == 0
            assert (value & marks.share_mask) >> marks.shift == each
            seen.add(value)
        assert marks.value(Share.NONE) == 0
        marks = marks.next()
    assert len(seen) == 3 << (mask.bit_count() - 2)
    assert marks == Marks(mask)  # the generations go round


@pytest.mark.parametrize("mask", [0, 1, 3, 0x5, 0xF000F000, 0x1FF, 1 << 32, 0x1F0000000, -8])
def test_what_is_no_mask(mask: int) -> None:
    assert not is_mask(mask)
    with pytest.raises(ValueError, match="run of 3 to 8 bits"):
        Marks(mask)


def test_a_fin_does_not_end_what_the_kernel_has() -> None:
    engine, _, rig = offloaded()
    rig.feed(c2s(b"", FIN | ACK, seq=111), 1)
    engine.advance(T0 + 17)
    assert ended(rig) == []
