"""Rejections, packet by packet: scapy, which has no part in making them, builds the originals and checks."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, UDPerror
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
)
from scapy.layers.inet6 import (
    UDPerror as UDPerror6,
)
from scapy.packet import Packet, Raw

from nedge.kernel import reject
from nedge.kernel.errors import KernelError
from nedge.kernel.reject import Frame, Injector, answer_to, rejection, reset_for

A, B = "192.0.2.1", "198.51.100.2"
A6, B6 = "2001:db8::1", "2001:db8::2"
MAC_A, MAC_B = b"\2\0\0\0\0\1", b"\2\0\0\0\0\2"
LAN, WAN = 5, 6
SEQ, ACKED = 0xFFFFFFF0, 777
FAMILIES = pytest.mark.parametrize("family", [4, 6])


def head(family: int, **fields: Any) -> Packet:
    """From A to B."""
    if family == 4:
        return IP(**{"src": A, "dst": B, "ttl": 57, **fields})
    return IPv6(**{"src": A6, "dst": B6, "hlim": 57, **fields})


def segment(family: int, flags: str, payload: bytes = b"", **fields: Any) -> bytes:
    fields = {"options": [("MSS", 1460), ("NOP", None)], **fields}
    tcp = TCP(sport=40000, dport=443, seq=SEQ, ack=ACKED if "A" in flags else 0, flags=flags, **fields)
    return bytes(head(family) / tcp / Raw(payload))


def datagram(family: int, size: int) -> bytes:
    return bytes(head(family) / UDP(sport=40000, dport=53) / Raw(b"x" * size))


def parsed(data: bytes | None) -> Packet:
    """The packet; all its lengths and checksums are what scapy makes them."""
    assert data
    packet = IP(data) if data[0] >> 4 == 4 else IPv6(data)
    fresh = packet.copy()
    layer = fresh
    while layer and not isinstance(layer, IPerror) and layer.name not in ("IPv6 in ICMPv6", "Raw"):
        for field in ("len", "plen", "chksum", "cksum", "ihl", "dataofs"):
            if field in layer.fields:
                delattr(layer, field)
        layer = layer.payload
    assert bytes(fresh) == data
    return packet


def ends(packet: Packet) -> tuple[str, str]:
    return packet.src, packet.dst


def there(family: int) -> tuple[str, str]:
    return (A, B) if family == 4 else (A6, B6)


def back(family: int) -> tuple[str, str]:
    return (B, A) if family == 4 else (B6, A6)


# TCP


@FAMILIES
@pytest.mark.parametrize(
    ("flags", "payload", "number", "confirmed", "kind"),
    [
        ("S", b"", 0, SEQ + 1, "RA"),
        ("S", b"early", 0, SEQ + 6, "RA"),
        ("", b"abc", 0, SEQ + 3, "RA"),
        ("F", b"abc", 0, SEQ + 4, "RA"),
        ("SA", b"", ACKED, 0, "R"),
        ("A", b"", ACKED, 0, "R"),
        ("PA", b"hello" * 20, ACKED, 0, "R"),
        ("FA", b"", ACKED, 0, "R"),
        ("", b"x" * 20, 0, SEQ + 20, "RA"),  # the number goes round
    ],
)
def test_the_sender_of_a_segment_gets_a_reset(
    family: int, flags: str, payload: bytes, number: int, confirmed: int, kind: str
) -> None:
    answer = parsed(answer_to(segment(family, flags, payload)))
    assert ends(answer) == back(family)
    tcp = answer[TCP]
    assert (tcp.sport, tcp.dport) == (443, 40000)
    assert (tcp.seq, tcp.ack, str(tcp.flags)) == (number, confirmed & 0xFFFFFFFF, kind)
    assert not tcp.options
    assert not bytes(tcp.payload)


@FAMILIES
@pytest.mark.parametrize(
    ("flags", "number", "confirmed", "kind"),
    [
        ("SA", SEQ + 1, ACKED, "RA"),
        ("PA", SEQ, ACKED, "RA"),
        ("FA", SEQ, ACKED, "RA"),
        ("RA", SEQ, ACKED, "RA"),
        ("R", SEQ, 0, "R"),
        ("P", SEQ, 0, "R"),
    ],
)
def test_the_destination_gets_a_reset_in_the_segments_place(
    family: int, flags: str, number: int, confirmed: int, kind: str
) -> None:
    reset = parsed(reset_for(segment(family, flags, b"" if "S" in flags else b"payload")))
    assert ends(reset) == there(family)
    assert (reset.ttl if family == 4 else reset.hlim) == 57
    tcp = reset[TCP]
    assert (tcp.sport, tcp.dport) == (40000, 443)
    assert (tcp.seq, tcp.ack, str(tcp.flags)) == (number, confirmed, kind)
    assert not tcp.options
    assert not bytes(tcp.payload)


@FAMILIES
def test_what_is_not_there_yet_is_not_reset(family: int) -> None:
    assert reset_for(segment(family, "S")) is None
    assert reset_for(datagram(family, 10)) is None


@FAMILIES
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_a_reset_is_not_answered(family: int, flags: str) -> None:
    assert answer_to(segment(family, flags)) is None


def test_large_segments_are_captured_in_part_and_their_length_is_in_the_header() -> None:
    whole = segment(4, "P", b"x" * 60000)
    assert parsed(answer_to(whole[:2048]))[TCP].ack == (SEQ + 60000) & 0xFFFFFFFF
    assert answer_to(whole[:2048]) == answer_to(whole)
    assert reset_for(whole[:2048]) == reset_for(whole)


def test_extension_headers_and_options_are_left_out() -> None:
    tcp = TCP(sport=40000, dport=443, seq=SEQ, ack=ACKED, flags="PA")
    extensions = IPv6ExtHdrHopByHop(options=[PadN(optdata=b"1234")]) / IPv6ExtHdrDestOpt()
    assert answer_to(bytes(head(6) / extensions / tcp / b"hello")) == answer_to(
        bytes(head(6) / tcp / b"hello")
    )
    with_options = bytes(head(4, options=[b"\x94\x04\0\0"]) / tcp / b"hello")
    assert with_options[0] == 0x46
    assert answer_to(with_options) == answer_to(bytes(head(4) / tcp / b"hello"))
    assert reset_for(with_options) == reset_for(bytes(head(4) / tcp / b"hello"))


# Others


@pytest.mark.parametrize("size", [0, 1, 11, 100, 520, 521, 1400, 9000])
def test_a_datagrams_port_is_unreachable(size: int) -> None:
    original = datagram(4, size)
    answer = parsed(answer_to(original[:2048]))
    assert ends(answer) == (B, A)
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 3)
    assert bytes(answer[ICMP])[8:] == original[:548]
    assert len(answer) <= 576
    assert (answer[UDPerror].sport, answer[UDPerror].dport) == (40000, 53)


@pytest.mark.parametrize("size", [0, 1, 11, 100, 1184, 1185, 1400, 9000])
def test_a_datagrams_port_is_unreachable_v6(size: int) -> None:
    original = datagram(6, size)
    answer = parsed(answer_to(original[:2048]))
    assert ends(answer) == (B6, A6)
    assert answer[ICMPv6DestUnreach].code == 4
    assert bytes(answer[ICMPv6DestUnreach])[8:] == original[:1232]
    assert len(answer) <= 1280
    assert (answer[UDPerror6].sport, answer[UDPerror6].dport) == (40000, 53)


def test_a_ping_is_prohibited() -> None:
    answer = parsed(answer_to(bytes(head(4) / ICMP(id=7, seq=9) / b"ping")))
    assert (answer[ICMP].type, answer[ICMP].code) == (3, 13)
    answer = parsed(answer_to(bytes(head(6) / ICMPv6EchoRequest(id=7, seq=9) / b"ping")))
    assert answer[ICMPv6DestUnreach].code == 1


def test_other_protocols_are_prohibited() -> None:
    assert parsed(answer_to(bytes(head(4, proto=50) / b"12345678")))[ICMP].code == 13
    assert parsed(answer_to(bytes(head(6, nh=50) / b"12345678")))[ICMPv6DestUnreach].code == 1


UDP_OVER = UDP(sport=1, dport=2) / b"x"
AUTHENTICATION = Raw(bytes((44, 4)) + bytes(22))
"""A header whose length is counted unlike that of all others; a fragment header follows."""


@pytest.mark.parametrize(
    "original",
    [
        *(head(4) / ICMP(type=kind) / b"12345678" for kind in (0, 3, 4, 5, 11, 12, 14, 200)),
        head(4, dst="224.0.0.251") / UDP_OVER,
        head(4, dst="255.255.255.255") / UDP_OVER,
        head(4, src="0.0.0.0") / UDP_OVER,
        head(4, src="127.0.0.1") / UDP_OVER,
        head(4, src="239.1.1.1") / UDP_OVER,
        head(4, flags="MF") / UDP_OVER,
        head(4, frag=100) / UDP_OVER,
        head(4) / IP(src=A, dst=B) / UDP_OVER,  # in a tunnel
        head(4) / IPv6(src=A6, dst=B6) / UDP_OVER,
        head(4, proto=58) / b"\x08\0\0\0",
        head(6) / ICMPv6DestUnreach() / b"12345678",
        head(6) / ICMPv6TimeExceeded() / b"12345678",
        head(6) / ICMPv6EchoReply(),
        head(6) / ICMPv6ND_NS(),
        head(6) / IPv6ExtHdrDestOpt() / ICMPv6TimeExceeded() / b"12345678",
        head(6, nh=1) / b"\x80\0\0\0",
        head(6, dst="ff02::fb") / UDP_OVER,
        head(6, src="ff02::1") / UDP_OVER,
        head(6, src="::") / UDP_OVER,
        head(6, src="::1") / UDP_OVER,
        head(6) / IPv6ExtHdrFragment(m=1) / UDP_OVER,
        head(6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrFragment(m=1) / UDP_OVER,
        head(6, nh=51) / AUTHENTICATION / IPv6ExtHdrFragment(m=1) / UDP_OVER,
        head(6) / IPv6ExtHdrFragment(offset=10) / UDP_OVER,
        head(6) / IPv6ExtHdrRouting(addresses=["2001:db8::3"], segleft=1) / UDP_OVER,
    ],
    ids=lambda packet: packet.summary(),
)
def test_what_is_never_answered(original: Packet) -> None:
    assert answer_to(bytes(original)) is None
    assert rejection(bytes(original), LAN, WAN, MAC_A, MAC_B) == []


def test_a_routing_header_at_its_end_is_no_obstacle() -> None:
    original = head(6) / IPv6ExtHdrRouting(addresses=["2001:db8::3"], segleft=0) / UDP_OVER
    assert parsed(answer_to(bytes(original)))[ICMPv6DestUnreach].code == 4


# Frames


@FAMILIES
def test_both_ends_of_a_connection_are_told(family: int) -> None:
    data = segment(family, "PA", b"hello")
    assert rejection(data, LAN, WAN, MAC_A, MAC_B, 5) == [
        Frame(LAN, MAC_A, MAC_B, answer_to(data) or b"", 5),
        Frame(WAN, MAC_B, MAC_A, reset_for(data) or b"", 5),
    ]


@FAMILIES
def test_who_cannot_be_addressed_is_not_told(family: int) -> None:
    data = segment(family, "PA", b"hello")
    assert rejection(data, LAN, WAN, MAC_A) == [Frame(LAN, MAC_A, b"", answer_to(data) or b"")]
    assert rejection(data, LAN, WAN, b"", MAC_B) == [Frame(WAN, MAC_B, b"", reset_for(data) or b"")]
    assert rejection(data, LAN, WAN, b"") == []


@FAMILIES
def test_the_receiver_of_a_rejected_datagram_hears_of_its_own(family: int) -> None:
    answer, notice = rejection(datagram(family, 100), LAN, WAN, MAC_A, MAC_B)
    assert answer.packet == answer_to(datagram(family, 100))
    assert notice[:3] == (WAN, MAC_B, MAC_A)
    packet = parsed(notice.packet)
    assert ends(packet) == there(family)
    message = packet[ICMP] if family == 4 else packet[ICMPv6DestUnreach]
    assert (message.type, message.code) == ((3, 3) if family == 4 else (1, 4))
    quoted = IP(bytes(message)[8:]) if family == 4 else IPv6(bytes(message)[8:])
    assert ends(quoted) == back(family)
    assert (quoted[UDP].sport, quoted[UDP].dport) == (53, 40000)


@given(st.binary(max_size=200), st.integers(0, 255))
def test_no_bytes_make_it_raise(data: bytes, proto: int) -> None:
    rejection(data, LAN, WAN, MAC_A, MAC_B)
    for start in (bytes(head(4, proto=proto, len=20 + len(data))), bytes(head(6, nh=proto, plen=len(data)))):
        for frame in rejection(start + data, LAN, WAN, MAC_A, MAC_B):
            parsed(frame.packet)


# The injector


class Port:
    """A port that keeps what is sent through it."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.error: OSError | None = None

    def send(self, frame: bytes) -> int:
        if self.error:
            raise self.error
        self.frames.append(frame)
        return len(frame)

    def close(self) -> None:
        pass


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, rate: float = 10) -> None:
        self.ports = {LAN: Port(), WAN: Port()}
        self.now = 100.0
        monkeypatch.setattr(reject, "_open", lambda port: (self.ports[port], bytes((2, 0, 0, 0, 0, port))))
        monkeypatch.setattr(reject.time, "monotonic", lambda: self.now)
        self.injector = Injector(self.ports, rate)

    def counts(self) -> tuple[int, int, int]:
        return self.injector.sent, self.injector.failed, self.injector.limited


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


V4, V6 = b"\x45" + bytes(19), b"\x60" + bytes(59)
PADDING = bytes(60 - 14 - len(V4))


def test_frames_go_out_by_their_ports(bench: Bench) -> None:
    assert bench.injector.send(
        [Frame(LAN, MAC_A, MAC_B, V4), Frame(WAN, MAC_B, b"", V6), Frame(WAN, MAC_B, MAC_A, V4, 0x2005)]
    )
    assert bench.ports[LAN].frames == [MAC_A + MAC_B + b"\x08\0" + V4 + PADDING]
    assert bench.ports[WAN].frames == [
        MAC_B + b"\2\0\0\0\0\6" + b"\x86\xdd" + V6,
        MAC_B + MAC_A + b"\x81\0\x20\5\x08\0" + V4 + PADDING[4:],
    ]
    assert bench.counts() == (1, 0, 0)
    assert not bench.injector.send([])
    assert bench.counts() == (1, 0, 0)


def test_a_port_that_fails_does_not_keep_the_other_end_from_hearing(bench: Bench) -> None:
    bench.ports[LAN].error = OSError("down")
    assert not bench.injector.send([Frame(LAN, MAC_A, MAC_B, V4), Frame(WAN, MAC_B, MAC_A, V4)])
    assert len(bench.ports[WAN].frames) == 1
    assert not bench.injector.send([Frame(99, MAC_A, MAC_B, V4)])
    assert bench.counts() == (0, 2, 0)


def test_a_flood_is_not_answered_by_another(bench: Bench) -> None:
    frames = [Frame(LAN, MAC_A, MAC_B, V4)]
    assert [bench.injector.send(frames) for _ in range(15)] == [True] * 10 + [False] * 5
    assert bench.counts() == (10, 0, 5)
    bench.now += 0.35
    assert [bench.injector.send(frames) for _ in range(5)] == [True] * 3 + [False] * 2
    bench.now += 1000  # what was not used is not kept
    assert sum(bench.injector.send(frames) for _ in range(15)) == 10


def test_a_port_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "socket", refuse)
    with pytest.raises(KernelError, match="CAP_NET_RAW"):
        Injector([5])
