"""What a client sends twice with different contents, and what its server never takes, gets nobody past."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from core_kit import (
    ACK,
    CLIENT,
    CLIENT6,
    FIN,
    PSH,
    RST,
    SERVER,
    SERVER6,
    SYN,
    T0,
    URG,
    Rig,
    decoded,
    ip4,
    ip6,
    segment,
    tcp,
    udp,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_engine import block_names

from nedge.core.flow import Flow, Share
from nedge.core.packet import Packet, ahead
from nedge.core.rewrite import checksum_holds, with_payload
from nedge.core.unconfirmed import MAX_KEPT, MAX_PIECES, WINDOW, Unconfirmed
from nedge.core.verdict import Action

BAD = b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n"
GOOD = b"GET / HTTP/1.1\r\nHost: fine.example\r\n\r\n"
LAN, WAN = 2, 3
SERVER_ISN = 900


def client(payload: bytes = b"", flags: int = ACK | PSH, *, seq: int = 100, ack: int = 901) -> bytes:
    return ip4(6, tcp(payload, seq=seq, ack=ack, flags=flags), CLIENT, SERVER)


def server(payload: bytes = b"", flags: int = ACK, *, seq: int = 901, ack: int = 100) -> bytes:
    return ip4(6, tcp(payload, sport=80, dport=40000, seq=seq, ack=ack, flags=flags), SERVER, CLIENT)


class Gateway:
    """An engine with a kernel that has the rules of a gateway, as far as they are about TCP."""

    def __init__(self, *, inline: bool = True) -> None:
        self.rig = Rig(scripts=block_names("bad.example"))
        engine = self.rig.engine
        engine.inspector.detection_packets = 1000
        engine.offload.remark = self._remark
        engine.normalizer.inline = inline
        self.engine = engine
        self.share = Share.NONE
        self.awaits_answer = False

    def _remark(self, flow: Flow) -> None:
        self.share = flow.share

    def passes(self, data: bytes, port: int, *, tracked: bool = True) -> bytes | None:
        """What goes on of a packet that came by a port. `tracked`: the kernel knows its connection."""
        packet = decoded(data)
        from_client = packet.key[3:7] == bytes((10, 0, 0, 1))
        if tracked:
            if self.share is Share.DROP:
                return None
            if self.share is Share.PASS or (
                self.share is Share.WATCH
                and (not from_client or not (packet.payload_length or packet.flags & SYN))
            ):
                return data
            answers = packet.flags & (SYN | ACK) == SYN | ACK and not from_client
            if answers and not self.awaits_answer and not packet.payload_length:
                return data
            if from_client and packet.flags == ACK and not packet.payload_length:
                return data
        else:
            data = with_payload(packet, packet.payload_bytes())
        action = self.engine.packet(data, T0, port=port, tracked=tracked)
        if self.engine.normalizer.awaits_answer and tracked and not action:
            self.awaits_answer, self.share = True, Share.NONE
        if self.engine.share and tracked:
            self.share = self.engine.share
        if action or self.share is Share.DROP:
            return None
        return self.engine.normalizer.rewritten or data


class Server:
    """A TCP receiver. `first`: of two copies it keeps the first, else the last; but what it has delivered."""

    def __init__(self, isn: int, *, first: bool) -> None:
        self.isn = isn
        self.first = first
        self.bytes: dict[int, int] = {}
        self.delivered = b""
        self.open = False

    def take(self, data: bytes) -> None:
        packet = decoded(data)
        at = ahead(packet.seq, self.isn + 1)
        for place, byte in enumerate(packet.payload_bytes(), at):
            if place >= len(self.delivered) and not (self.first and place in self.bytes):
                self.bytes[place] = byte
        while len(self.delivered) in self.bytes:
            self.delivered += bytes([self.bytes[len(self.delivered)]])

    @property
    def expected(self) -> int:
        return (self.isn + 1 + len(self.delivered)) & 0xFFFFFFFF


STREAMS = {
    "bad": BAD,
    "good": GOOD.ljust(len(BAD) + 8, b"z"),
    "ssh": b"SSH-2.0-x\r\n".ljust(len(BAD) + 8, b"y"),
    "post": b"POST / HTTP/1.1\r\nHost: fine.example\r\nContent-Length: 9999\r\n\r\n",
    "junk": bytes(len(BAD) + 8),
    "lines": b"\r\n" * (len(BAD) // 2 + 4),
}
FORGED = {
    "forged ack": ACK,
    "fin": FIN | ACK,
    "rst": RST,
    "syn": SYN,
    "syn with data": SYN,
    "syn ack with data": SYN | ACK | PSH,
    "far ahead": ACK | PSH,
    "old": ACK | PSH,
}
Step = tuple[str, int, int, bool, int]
"""Stream or what else, from, to, whether the server takes it, by which of the client's SYNs it is numbered. A
negative number: as before, but the kernel says that it belongs to no connection."""
a_step = st.tuples(
    st.sampled_from(["bad", "bad", *STREAMS, *FORGED]),
    st.one_of(st.just(0), st.integers(0, 60)),
    st.one_of(st.just(100), st.integers(1, 70)),
    st.booleans(),
    st.integers(-2, 1),
)


def attack(
    isns: Sequence[int], taken: int, steps: Sequence[Step], *, first: bool, early: Sequence[Step] = ()
) -> tuple[Gateway, Server]:
    """A client that does whatever it likes; `early`: before its last SYN."""
    gateway, far = Gateway(), Server(isns[taken], first=first)
    for number, isn in enumerate(isns):
        if number == len(isns) - 1:
            for step in early:
                act(gateway, far, isns, step)
        seen = gateway.passes(client(b"", SYN, seq=isn, ack=0), LAN)
        if number == taken and seen:
            far.open = True
            gateway.passes(server(b"", SYN | ACK, seq=SERVER_ISN, ack=isn + 1), WAN)
    for step in steps:
        act(gateway, far, isns, step)
    return gateway, far


def act(gateway: Gateway, far: Server, isns: Sequence[int], step: Step) -> None:
    name, start, end, is_taken, by = step
    isn, tracked = isns[by % len(isns)], by >= 0
    at = (isn + 1 + start) & 0xFFFFFFFF
    if name == "forged ack":
        gateway.passes(server(b"", ACK, ack=(isn + 1 + end) & 0xFFFFFFFF), LAN, tracked=tracked)
        return
    if name in FORGED:
        data = STREAMS["ssh"][: max(end, 1)] if name.endswith("data") or name in ("far ahead", "old") else b""
        if name == "far ahead":
            at = (isn + 2**31 - start) & 0xFFFFFFFF
        if name == "old":
            at = (isn + 1 - len(data)) & 0xFFFFFFFF
        gateway.passes(client(data, FORGED[name], seq=at), LAN, tracked=tracked)
    else:
        data = STREAMS[name][start:end]
        if not data:
            return
        passed = gateway.passes(client(data, seq=at), LAN, tracked=tracked)
        if passed is not None and is_taken and far.open:
            far.take(passed)
    if far.open:
        gateway.passes(server(b"", ACK, ack=far.expected), WAN)


WHOLE = 100


@settings(max_examples=4000, deadline=None)
@given(
    isns=st.sampled_from([(99,), (99, 5000), (5000, 99), (99, 140), (140, 99), (4294967290,)]),
    taken=st.integers(0, 1),
    steps=st.lists(a_step, max_size=10),
    first=st.booleans(),
    early=st.lists(a_step, max_size=2),
)
@example((99,), 0, [("ssh", 0, WHOLE, False, 0), ("bad", 0, WHOLE, True, 0)], True, ())
@example((99,), 0, [("good", 0, WHOLE, False, 0), ("bad", 0, WHOLE, True, 0)], True, ())
@example((99,), 0, [("ssh", 0, 9, False, 0), ("bad", 0, WHOLE, True, 0)], False, ())
@example(
    (99,),
    0,
    [("ssh", 0, 9, False, 0), ("forged ack", 0, 40, False, 0), ("bad", 0, WHOLE, True, 0)],
    True,
    (),
)
@example(
    (99, 5000),
    1,
    [("ssh", 0, 9, True, 0), ("forged ack", 0, 9, True, 1), ("bad", 0, WHOLE, True, 1)],
    True,
    (),
)
@example((5000, 99), 0, [("ssh", 0, WHOLE, True, 1), ("bad", 0, WHOLE, True, 0)], True, ())
@example((99,), 0, [("junk", 20, 30, False, 0), ("bad", 0, WHOLE, True, 0)], False, ())
@example(
    (99,), 0, [("bad", 20, WHOLE, True, 0), ("good", 0, 40, False, 0), ("bad", 0, 20, True, 0)], True, ()
)
@example(
    (99,), 0, [("good", 0, 100, False, 0), ("far ahead", 0, 10, False, 0), ("bad", 0, 100, True, 0)], True, ()
)
@example((99,), 0, [("fin", 0, 0, False, -1), ("syn", 60, 0, False, 0), ("bad", 0, 100, True, 0)], True, ())
@example((99,), 0, [("syn ack with data", 60, 11, False, -1), ("bad", 0, 100, True, 0)], True, ())
@example((99, 4999), 1, [("bad", 0, 100, True, 1)], True, [("ssh", 0, 11, False, -2)])
@example((99, 4999), 1, [("bad", 0, 100, True, 1)], True, [("ssh", 0, 11, False, 0)])
def test_a_server_never_gets_what_is_blocked(
    isns: Sequence[int], taken: int, steps: Sequence[Step], first: bool, early: Sequence[Step]
) -> None:
    _, far = attack(isns, taken % len(isns), steps, first=first, early=early)
    assert not far.delivered.startswith(BAD)


@pytest.mark.parametrize("name", ["good", "ssh"])
def test_what_is_not_blocked_arrives_and_the_kernel_takes_over(name: str) -> None:
    data = STREAMS[name]
    gateway, far = attack((99,), 0, [(name, 0, 20, True, 0), (name, 20, WHOLE, True, 0)], first=True)
    assert far.delivered == data
    assert gateway.share is (Share.PASS if name == "ssh" else Share.WATCH)
    assert not gateway.engine.counters.other_copies
    flow = next(iter(gateway.engine.table))
    assert (flow.unconfirmed is None) == (name == "ssh")


def test_retransmissions_arrive() -> None:
    pieces = [(0, 20), (0, 20), (0, 30), (10, 30), (40, 45), (30, 45), (5, 100)]
    gateway, far = attack((99,), 0, [("good", *piece, True, 0) for piece in pieces], first=True)
    assert far.delivered == STREAMS["good"]
    assert not gateway.engine.counters.other_copies


def test_a_keep_alive_with_a_byte_of_rubbish_arrives() -> None:
    """Such as RFC 9293, 3.8.4 has for old systems: it must be answered."""
    gateway, far = attack((99,), 0, [("good", 0, WHOLE, True, 0)], first=True)
    passed = gateway.passes(client(b"\0", seq=far.expected - 1), LAN)
    assert passed is not None
    assert decoded(passed).payload_bytes() == b"z"  # as it was


# A long connection that is watched


def test_a_watched_flow_asks_the_server_now_and_then() -> None:
    gateway, far = Gateway(), Server(99, first=True)
    gateway.passes(client(b"", SYN, seq=99), LAN)
    came_up = 0
    for number in range(400):
        passed = gateway.passes(client(GOOD, seq=100 + number * len(GOOD)), LAN)
        assert passed is not None
        far.take(passed)
        before = gateway.engine.counters.packets
        gateway.passes(server(b"ok", ACK, ack=far.expected), WAN)
        came_up += gateway.engine.counters.packets - before
        flow = next(iter(gateway.engine.table))
        assert flow.unconfirmed is not None
        assert flow.unconfirmed.kept < 9000
    assert 1 <= came_up <= 3
    assert gateway.share is Share.WATCH


def test_a_connection_that_another_worker_left_watched_asks_the_server_too() -> None:
    """After a restart: the mark is there, but nobody knows who began."""
    gateway, far = Gateway(), Server(99, first=True)
    gateway.share = Share.WATCH
    for number in range(400):
        passed = gateway.passes(client(GOOD, seq=100 + number * len(GOOD)), LAN)
        assert passed is not None
        far.take(passed)
        gateway.passes(server(b"ok", ACK, ack=far.expected), WAN)
    (flow,) = gateway.engine.table
    assert flow.unconfirmed is not None
    assert flow.unconfirmed.kept < 9000


def test_a_body_is_not_kept() -> None:
    gateway = Gateway()
    gateway.passes(client(b"", SYN, seq=99), LAN)
    head = b"POST / HTTP/1.1\r\nHost: fine.example\r\nContent-Length: 1000000\r\n\r\n"
    gateway.passes(client(head), LAN)
    for at in range(0, 900_000, 1000):
        assert gateway.passes(client(bytes(1000), seq=100 + len(head) + at), LAN)
    flow = next(iter(gateway.engine.table))
    assert flow.unconfirmed is not None
    assert flow.unconfirmed.kept == len(head)
    changed = gateway.passes(client(BAD.ljust(len(head)), seq=100), LAN)
    assert changed is not None
    assert decoded(changed).payload_bytes() == head


def test_a_pass_comes_with_what_the_flow_was_judged_by() -> None:
    """Not with all that came since: a client that never pauses would wait for ever."""
    gateway = Gateway()
    gateway.passes(client(b"", SYN, seq=99), LAN)
    hello = b"SSH-2.0-x\r\n"
    gateway.passes(client(hello), LAN)
    for at in range(0, 5000, 1000):
        gateway.passes(client(bytes(1000), seq=111 + at), LAN)
    assert gateway.share is Share.NONE
    gateway.passes(server(b"", ack=110), WAN)
    assert gateway.share is Share.NONE
    gateway.passes(server(b"", ack=111), LAN)  # forged: it came by the client's port
    assert gateway.share is Share.NONE
    gateway.passes(server(b"", ack=111), WAN)
    assert gateway.share is Share.PASS


# The bytes


def kept(*segments: tuple[int, bytes], isn: int = 99) -> tuple[Unconfirmed, list[bytes | None]]:
    unconfirmed = Unconfirmed(isn)
    return unconfirmed, [unconfirmed.take(segment(data, seq), telling=True) for seq, data in segments]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        ([(100, b"abc"), (103, b"def")], [None, None]),
        ([(100, b"abc"), (100, b"abc")], [None, None]),
        ([(100, b"abc"), (100, b"xbc")], [None, b"abc"]),
        ([(100, b"abc"), (101, b"xxyy")], [None, b"bcyy"]),
        ([(103, b"def"), (100, b"abcxyzghi")], [None, b"abcdefghi"]),
        ([(103, b"d"), (106, b"g"), (100, b"0123456789")], [None, None, b"012d45g789"]),
        ([(103, b"d"), (106, b"g"), (100, b"abcdefgh"), (100, b"ABCDEFGH")], [None, None, None, b"abcdefgh"]),
        ([(100, b"abc"), (98, b"xxabc")], [None, None]),  # what is before the start is nobody's
        ([(100, b"abc"), (98, b"xxAbc")], [None, b"xxabc"]),
        ([(110, b"x"), (100, b"abc"), (100, b"Abc")], [None, None, b"abc"]),
    ],
)
@pytest.mark.parametrize("isn", [99, 0xFFFFFFFD])
def test_first_copies(segments: list[tuple[int, bytes]], expected: list[bytes | None], isn: int) -> None:
    moved = [((seq - 99 + isn) & 0xFFFFFFFF, data) for seq, data in segments]
    assert kept(*moved, isn=isn)[1] == expected


def test_what_is_confirmed_is_no_more_compared() -> None:
    unconfirmed, _ = kept((100, b"abc"), (103, b"def"))
    unconfirmed.confirm(104)
    assert unconfirmed.take(segment(b"XXXX", 100), telling=True) is None
    assert unconfirmed.take(segment(b"XXXXXX", 100), telling=True) == b"XXXXef"
    unconfirmed.confirm(106)
    assert unconfirmed.kept == 0
    assert unconfirmed.take(segment(b"XXXXXX", 100), telling=True) is None


def test_more_than_can_be_kept_has_to_wait() -> None:
    unconfirmed, taken = kept(*((100 + at, bytes(1000)) for at in range(0, MAX_KEPT + 2000, 1000)))
    full = MAX_KEPT // 1000
    assert taken == [None] * full + [b""] * (len(taken) - full)
    unconfirmed.confirm(2100)
    assert unconfirmed.kept == (full - 2) * 1000
    assert unconfirmed.take(segment(bytes(1000), 100 + full * 1000), telling=True) is None


def test_pieces_with_gaps_are_few() -> None:
    unconfirmed, taken = kept(*((100 + 2 * at, b"x") for at in range(MAX_PIECES + 10)))
    assert taken == [None] * MAX_PIECES + [b""] * 10
    unconfirmed.confirm(110)
    assert unconfirmed.take(segment(b"y", 100 + 2 * MAX_PIECES), telling=True) is None


def test_what_no_window_reaches_is_nobodys() -> None:
    unconfirmed, taken = kept((100, b"abc"), (100 + 2**31 - 1, b"x"), (100 + WINDOW, b"x"), (100, b"xbc"))
    assert taken == [None, b"", b"", b"abc"]
    assert unconfirmed.span == 3


def test_what_was_not_captured_cannot_be_compared() -> None:
    unconfirmed, _ = kept((100, b"abcdef"))
    cut = decoded(ip4(6, tcp(b"abcdef", seq=100))[:43])
    assert unconfirmed.take(cut, telling=True) == b""
    unconfirmed = Unconfirmed(99)
    assert [unconfirmed.take(cut, telling=True) for _ in range(3)] == [None] * 3  # as often as it comes


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.binary(min_size=1, max_size=20), st.integers(0, 50)), max_size=12
    )
)
def test_first_copies_by_a_simple_model(steps: list[tuple[int, bytes, int]]) -> None:
    unconfirmed, model, confirmed = Unconfirmed(99), dict[int, int](), 0
    for at, data, number in steps:
        expected = bytes(
            data[place - at] if place < confirmed else model.setdefault(place, data[place - at])
            for place in range(at, at + len(data))
        )
        taken = unconfirmed.take(segment(data, 100 + at), telling=True)
        assert taken == (None if expected == data else expected)
        if number > 40:
            confirmed = max(confirmed, number - 30)
            unconfirmed.confirm(100 + confirmed)
    places = [place for place in model if place >= confirmed]
    pieces = unconfirmed._pieces
    assert {ahead(number, 100) + at for number, piece in pieces for at in range(len(piece))} >= set(places)
    assert sum(len(piece) for _, piece in pieces) == unconfirmed.kept


# Packets changed, and checksums


def whole(payload: bytes, *, v6: bool, options: bytes = b"") -> Packet:
    build, source, target = (ip6, CLIENT6, SERVER6) if v6 else (ip4, CLIENT, SERVER)
    return decoded(build(6, tcp(payload, seq=7, flags=PSH | ACK | URG, options=options), source, target))


@pytest.mark.parametrize("v6", [False, True])
@pytest.mark.parametrize("payload", [b"", b"a", b"ab", bytes(1400), b"\xff" * 1399])
@pytest.mark.parametrize("options", [b"", b"\1" * 12])
def test_with_payload(payload: bytes, v6: bool, options: bytes) -> None:
    scapy = pytest.importorskip("scapy.layers.inet6" if v6 else "scapy.layers.inet")
    packet = whole(b"something else", v6=v6, options=options)
    assert not checksum_holds(packet)
    changed = decoded(with_payload(packet, payload))
    assert checksum_holds(changed)
    assert changed.payload_bytes() == payload
    assert (changed.seq, changed.flags, changed.key) == (7, PSH | ACK, packet.key)
    # Another's idea of these checksums
    layer = (scapy.IPv6 if v6 else scapy.IP)(changed.data)
    for part in (layer, layer["TCP"]):
        if hasattr(part, "chksum"):
            del part.chksum
    assert bytes(layer) == changed.data
    damaged = bytearray(changed.data)
    damaged[-1] ^= 1
    assert not checksum_holds(decoded(bytes(damaged)))


def test_checksums_that_cannot_be_told_hold() -> None:
    assert checksum_holds(decoded(ip4(17, udp(b"x"))))  # none was made
    assert checksum_holds(decoded(whole(bytes(100), v6=False).data[:100]))  # cut short
    assert checksum_holds(decoded(ip4(1, bytes(8))))


# In the engine


@pytest.mark.parametrize("tracked", [True, False])
def test_a_wrong_checksum_tells_nothing(tracked: bool) -> None:
    rig = Rig()
    rig.feed(client(b"", SYN, seq=99))
    before = next(iter(rig.engine.table)).packets
    action = rig.engine.packet(client(b"SSH-2.0-x\r\n"), T0, tracked=tracked)
    assert action is (Action.PASS if tracked else Action.DROP)
    assert next(iter(rig.engine.table)).packets == before + tracked
    assert rig.engine.counters.bad_checksums == (not tracked)


@pytest.mark.parametrize("inline", [True, False])
def test_data_in_a_syn(inline: bool) -> None:
    rig = Rig()
    rig.engine.normalizer.inline = inline
    assert not rig.feed(client(GOOD, SYN, seq=99, ack=0))
    changed = rig.engine.normalizer.rewritten
    assert bool(changed) is inline
    if changed:
        assert decoded(changed).payload_length == 0
        assert checksum_holds(decoded(changed))
    assert rig.engine.counters.syn_data == inline
    assert next(iter(rig.engine.table)).goodput_sent == (0 if inline else len(GOOD))


def test_urgent_data_become_usual_ones() -> None:
    rig = Rig()
    rig.feed(client(b"", SYN, seq=99))
    rig.feed(client(GOOD, ACK | PSH | URG))
    changed = decoded(rig.engine.normalizer.rewritten)
    assert changed.flags == ACK | PSH
    assert changed.payload_bytes() == GOOD
    assert rig.engine.counters.urgent_data == 1


def test_what_cannot_be_changed_is_dropped() -> None:
    rig = Rig()
    rig.engine.normalizer.inline = True
    rig.feed(client(b"", SYN, seq=99))
    rig.feed(client(GOOD[:20]))
    cut = client(b"X" * 60)[:80]
    assert rig.feed(cut) is Action.DROP
    assert rig.engine.counters.dropped_packets == 1
