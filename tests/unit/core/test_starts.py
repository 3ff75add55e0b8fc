"""Connections whose SYN the kernel passed: what of them comes up first, and where their streams begin."""

from __future__ import annotations

import pytest
from core_kit import ACK, CLIENT, FIN, PSH, RST, SERVER, SYN, T0, Rig, ip4, key, tcp
from test_engine import block_names, c2s, ended, flows, s2c, the_flow
from test_shares import GET, offloading

from nedge.core.engine import MAX_OPENING
from nedge.core.events import FlowEnded
from nedge.core.flow import EndReason, Handshake, Share
from nedge.core.hooks import Hook
from nedge.core.inspection import MAX_INSPECTED
from nedge.core.limits import Limits
from nedge.core.marks import Note
from nedge.core.packet import TCP
from nedge.core.verdict import Action, Failure, Policy

SSH = b"SSH-2.0-x\r\n"
KEY = key(TCP, CLIENT, 40000, SERVER, 80)


def first(rig: Rig, data: bytes, note: Note = Note.FIRST, at: float = 0.0) -> Share:
    """A connection's first packet to come up; what the kernel is told with it."""
    rig.engine.packet(data, T0 + at, note=note)
    return rig.engine.share


def said(payload: bytes = b"", flags: int = PSH | ACK, *, ack: int, seq: int = 900) -> bytes:
    """What the server sends, with what it acknowledges."""
    return ip4(6, tcp(payload, sport=80, dport=40000, seq=seq, ack=ack, flags=flags), SERVER, CLIENT)


def fed(rig: Rig) -> list[bytes]:
    """Payloads that the latest inspection has seen, in its order."""
    return [data[40:] for data in rig.classifier.opened[-1].fed]


# The first packet


def test_the_clients_first_data_opens_a_flow_with_a_whole_handshake() -> None:
    rig, _ = offloading()
    first(rig, c2s(GET % b"a.example", PSH | ACK))
    flow = the_flow(rig)
    assert (flow.key, flow.handshake) == (KEY, Handshake.DONE)
    assert (flow.packets_sent, flow.packets_rcvd) == (2, 1)
    assert flow.tcp_flags == SYN | ACK | PSH
    assert rig.engine.counters.midstream == 0


def test_the_kernels_counters_are_the_true_ones() -> None:
    rig, _ = offloading()
    first(rig, c2s(GET % b"a.example", PSH | ACK))
    rig.engine.account(KEY, (3, 400), (2, 120), T0, gone=False)
    flow = the_flow(rig)
    assert (flow.packets_sent, flow.bytes_sent, flow.packets_rcvd, flow.bytes_rcvd) == (3, 400, 2, 120)


def test_where_the_server_speaks_first_the_client_is_the_other_end() -> None:
    rig, _ = offloading()
    first(rig, said(b"220 mail\r\n", ack=100), Note.FIRST_BACK)
    flow = the_flow(rig)
    assert (flow.key, flow.client.ip, flow.handshake) == (KEY, CLIENT, Handshake.SYN_ACK)
    assert (flow.packets_sent, flow.packets_rcvd, flow.goodput_rcvd) == (1, 2, 10)
    rig.feed(c2s(b"b", seq=101))  # the second segment comes first, and waits
    rig.feed(c2s(b"a", seq=100))
    assert fed(rig) == [b"220 mail\r\n", b"a", b"b"]
    assert flow.handshake is Handshake.DONE


def test_a_refused_connection_is_a_flow() -> None:
    rig, _ = offloading()
    first(rig, said(b"", RST | ACK, ack=100), Note.FIRST_BACK)
    flow = the_flow(rig)
    assert (flow.client.ip, flow.handshake, flow.closing) == (CLIENT, Handshake.SYN, True)
    rig.engine.advance(T0 + 20)
    assert [reason for reason, _ in ended(rig)] == [EndReason.CLOSED]


def test_the_first_packet_may_be_a_bare_fin() -> None:
    rig, _ = offloading()
    first(rig, c2s(b"", FIN | ACK))
    assert the_flow(rig).handshake is Handshake.DONE


def test_a_syns_answer_may_come_up_first_after_a_change_of_policy() -> None:
    rig, _ = offloading()
    first(rig, said(b"", SYN | ACK, ack=100), Note.FIRST_BACK)
    flow = the_flow(rig)
    assert (flow.client.ip, flow.handshake, flow.packets_rcvd) == (CLIENT, Handshake.SYN_ACK, 1)


def test_a_note_on_what_it_cannot_be_about_is_ignored() -> None:
    rig, _ = offloading()
    first(rig, c2s(b"x")[:30])  # cut within the TCP header
    assert the_flow(rig).handshake is Handshake.NONE


def test_without_a_note_it_was_picked_up_midstream() -> None:
    rig, _ = offloading(policy=Policy(failures={Failure.MIDSTREAM: Action.DROP}))
    assert rig.feed(c2s(b"x")) is Action.DROP
    assert rig.engine.packet(c2s(b"x", sport=7), T0, note=Note.FIRST) is Action.PASS


# The same ports again


def test_a_first_packet_ends_the_flow_that_had_its_ports() -> None:
    rig, _ = offloading()
    first(rig, c2s(GET % b"a.example", PSH | ACK))
    first(rig, c2s(GET % b"b.example", PSH | ACK, seq=5000), at=1.0)
    assert ended(rig) == [(EndReason.REPLACED, 1.0)]
    assert the_flow(rig).hostname == "b.example"


def test_also_where_the_server_speaks_first() -> None:
    rig, _ = offloading()
    first(rig, said(b"220 a\r\n", ack=100), Note.FIRST_BACK)
    first(rig, said(b"220 b\r\n", ack=5000), Note.FIRST_BACK)
    assert [reason for reason, _ in ended(rig)] == [EndReason.REPLACED]
    assert the_flow(rig).key == KEY


def test_a_syn_that_came_twice_and_once_to_us_opens_one_flow() -> None:
    """The first had data (RFC 7413) and was lost behind us; the second had none."""
    rig, _ = offloading()
    rig.feed(c2s(SSH, SYN, seq=99))
    first(rig, c2s(SSH, PSH | ACK))
    assert (ended(rig), len(flows(rig))) == ([], 1)


def test_parts_of_a_large_first_segment_are_of_one_flow() -> None:
    """The kernel cuts it, and each part has the whole one's mark."""
    rig, _ = offloading(block_names("bad.example"))
    request = GET % (b"bad.example\r\nX: " + b"y" * 3000)
    for at in (0, 1400, 2800):
        rig.engine.packet(c2s(request[at : at + 1400], PSH | ACK, seq=100 + at), T0, note=Note.FIRST)
    assert (ended(rig), the_flow(rig).hostname, rig.engine.share) == ([], "bad.example", Share.DROP)


def test_parts_of_a_large_first_segment_of_the_server_are_of_one_flow() -> None:
    rig, _ = offloading()
    for at in (0, 1400):
        first(rig, said(b"x" * 1400, ack=100, seq=900 + at), Note.FIRST_BACK)
    assert (ended(rig), the_flow(rig).packets_rcvd) == ([], 3)


# Where the stream begins


def test_a_flow_is_passed_once_the_server_has_what_it_is_judged_by() -> None:
    rig, _ = offloading()
    assert first(rig, c2s(SSH, PSH | ACK)) is Share.NONE
    rig.feed(said(b"", ACK, ack=100))  # it has nothing yet
    assert rig.engine.share is Share.NONE
    rig.feed(said(b"", ACK, ack=100 + len(SSH)))
    assert rig.engine.share is Share.PASS
    assert the_flow(rig).opening is None


def test_what_the_server_acknowledges_is_no_packet_to_look_into() -> None:
    """Else a client that speaks in tiny pieces, each acknowledged, would soon have been looked at enough."""
    rig, _ = offloading()
    for at in range(MAX_INSPECTED[TCP] - 3):
        rig.engine.packet(c2s(b"x", PSH | ACK, seq=100 + at), T0, note=0 if at else Note.FIRST)
        rig.feed(said(b"", ACK, ack=101 + at))
    assert the_flow(rig).packets_rcvd == 1  # what answered the SYN
    rig.feed(c2s(SSH, PSH | ACK, seq=100 + MAX_INSPECTED[TCP] - 3))
    assert fed(rig)[-1] == SSH  # it is still looked at


def test_no_flow_begins_with_an_acknowledgement() -> None:
    """A worker that is new may see one before the client says more; the server is not the client."""
    rig, _ = offloading()
    assert rig.feed(said(b"", ACK, ack=200)) is Action.PASS
    assert flows(rig) == []
    rig.feed(c2s(b"x", seq=200))
    assert the_flow(rig).client.ip == CLIENT


def test_of_a_blocked_flow_it_does_not_matter() -> None:
    rig, _ = offloading(block_names("bad.example"))
    first(rig, c2s(GET % b"bad.example", PSH | ACK))
    assert the_flow(rig).opening is None


def test_numbers_wrap_around() -> None:
    rig, _ = offloading()
    first(rig, c2s(SSH, PSH | ACK, seq=0xFFFFFFFE))
    rig.feed(said(b"", ACK, ack=len(SSH) - 2))
    assert rig.engine.share is Share.PASS


def test_a_blocked_flow_is_dropped_at_once() -> None:
    rig, _ = offloading(block_names("bad.example"))
    assert first(rig, c2s(GET % b"bad.example", PSH | ACK)) is Share.DROP


@pytest.mark.parametrize("late", [0, 1, MAX_OPENING])
def test_segments_before_the_first_are_put_in_front(late: int) -> None:
    """Lost or overtaken on their way to us: inspected in order all the same."""
    rig, _ = offloading(block_names("bad.example"))
    parts = [b"GET / HTTP/1.1\r\n", b"Host: bad", b".exa", b"mple\r\n", b"X: y\r\n", b"\r\n"]
    at = [100 + sum(map(len, parts[:index])) for index in range(len(parts))]
    order = [*range(late + 1, len(parts)), *range(late, -1, -1)]
    actions = [
        rig.engine.packet(c2s(parts[i], PSH | ACK, seq=at[i]), T0, note=Note.FIRST if not n else 0)
        for n, i in enumerate(order)
    ]
    if len(parts) - late - 1 <= MAX_OPENING:
        assert actions == [Action.PASS] * (len(parts) - 1) + [Action.DROP]
        assert the_flow(rig).hostname == "bad.example"
    else:  # what was not kept is missing, so that nothing can be judged
        assert actions == [Action.PASS] * len(parts)
        assert rig.engine.share is Share.NONE
    assert {reason for reason, _ in ended(rig)} == {EndReason.REPLACED}
    assert rig.classifier.alive <= 1


def test_a_flow_that_begins_again_ends_once_with_what_it_was_taken_for() -> None:
    rig, _ = offloading()
    first(rig, c2s(SSH, PSH | ACK, seq=200))
    rig.feed(c2s(GET % b"a.example", PSH | ACK, seq=200 - len(GET % b"a.example")))
    (event,) = rig.of(FlowEnded)
    assert event.flow.classification.app == "SSH"
    assert the_flow(rig).classification.app == "HTTP"


def test_a_request_before_the_one_that_was_let_go_is_not_passed() -> None:
    """A client may choose to send its second request first, and hope that the first is looked at no more."""
    rig, _ = offloading(block_names("bad.example"))
    evil = GET % b"bad.example"
    assert first(rig, c2s(GET % b"good.example", PSH | ACK, seq=100 + len(evil))) is Share.WATCH
    assert rig.feed(c2s(evil, PSH | ACK, seq=100)) is Action.DROP
    assert rig.engine.share is Share.NONE
    counters = rig.engine.counters
    assert (counters.early_segments, counters.dropped_packets) == (1, 1)
    assert ended(rig) == []


def test_further_requests_are_watched_as_ever() -> None:
    rig, _ = offloading(block_names("bad.example"))
    good = GET % b"good.example"
    assert first(rig, c2s(good, PSH | ACK)) is Share.WATCH
    assert rig.feed(c2s(good, PSH | ACK)) is Action.PASS  # a retransmission
    assert rig.feed(c2s(GET % b"bad.example", PSH | ACK, seq=100 + len(good))) is Action.DROP


def test_few_segments_are_kept() -> None:
    rig, _ = offloading()
    for number in range(9):
        rig.engine.packet(c2s(b"x", seq=100 + number), T0, note=Note.FIRST if not number else 0)
    assert len(the_flow(rig).opening or ()) == MAX_OPENING


# Connections that bring nothing but their start


@pytest.mark.parametrize(
    ("sent", "received", "handshake"),
    [(3, 0, Handshake.SYN), (1, 2, Handshake.SYN_ACK), (2, 1, Handshake.DONE)],
)
def test_a_silent_connection_is_recorded_when_it_is_over(
    sent: int, received: int, handshake: Handshake
) -> None:
    rig, _ = offloading()
    rig.engine.now = T0 + 120
    rig.engine.passed_in_silence(KEY, (sent, sent * 60), (received, received * 60), T0 + 112)
    (event,) = rig.of(FlowEnded)
    flow = event.flow
    assert (flow.client.ip, flow.packets_sent, flow.packets_rcvd) == (CLIENT, sent, received)
    assert (flow.handshake, event.reason) == (handshake, EndReason.IDLE)
    assert (flow.first_seen, flow.last_seen) == (T0 + 112, T0 + 112)
    engine = rig.engine
    assert (engine.counters.silent_flows, engine.counters.flows, engine.counters.midstream) == (1, 1, 0)
    assert (engine.table.count, len(engine.hosts), rig.classifier.alive) == (0, 0, 0)


def test_scripts_hear_of_silent_connections() -> None:
    hooks: list[Hook] = []
    scripts = block_names()
    rig, _ = offloading(scripts)
    rig.engine.passed_in_silence(KEY, (1, 60), (0, 0), T0)
    hooks = [hook for hook, _ in scripts.calls]
    assert hooks == [Hook.PROTOCOL_DETECTED, Hook.FLOW_END]


def test_silence_on_the_ports_of_a_flow_is_no_second_flow() -> None:
    rig, _ = offloading()
    first(rig, c2s(SSH, PSH | ACK))
    rig.engine.passed_in_silence(KEY, (1, 60), (0, 0), T0)
    assert (len(flows(rig)), ended(rig)) == (1, [])


def test_no_room_for_a_silent_connection() -> None:
    rig, _ = offloading(limits=Limits(max_flows=0))
    rig.engine.passed_in_silence(KEY, (1, 60), (0, 0), T0)
    assert (rig.engine.counters.table_full, ended(rig)) == (1, [])


def test_what_the_server_sends_later_is_not_first() -> None:
    rig, _ = offloading()
    first(rig, c2s(SSH, PSH | ACK))
    rig.feed(s2c(b"x", PSH | ACK))
    assert the_flow(rig).handshake is Handshake.DONE
