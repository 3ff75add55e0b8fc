"""Where IP starts in a frame, for every link type."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from core_kit import ip4, ip6, tcp, udp
from hypothesis import given, settings
from hypothesis import strategies as st

from nedge.core.link import LINK_TYPES, Located

LOOP, ETHERNET, PPP, RAW_BSD, RAW_OPENBSD, PPP_HDLC, RAW, C_HDLC = 0, 1, 9, 12, 14, 50, 101, 104
WIFI, LOOP_OPENBSD, SLL, RADIOTAP, IPV4, IPV6, SLL2 = 105, 108, 113, 127, 228, 229, 276

DESTINATION, SENDER = b"\x02\0\0\0\0\x02", b"\x02\0\0\0\0\x01"
MACS = DESTINATION + SENDER
FOUR, SIX = ip4(17, udp(b"payload")), ip6(6, tcp(b"payload"))
V4, V6 = b"\x08\x00", b"\x86\xdd"
SNAP = b"\xaa\xaa\x03\0\0\0"


def tag(vlan: int, kind: int = 0x8100, priority: int = 0) -> bytes:
    """EtherType and tag control (IEEE 802.1Q); the next EtherType follows."""
    return struct.pack("!HH", kind, priority << 13 | vlan)


def label(number: int, bottom: bool) -> bytes:
    """An MPLS label stack entry (RFC 3032)."""
    return struct.pack("!I", number << 12 | bottom << 8 | 64)


def pppoe(protocol: int) -> bytes:
    """A PPPoE session header and the PPP protocol (RFC 2516)."""
    return struct.pack("!BBHHH", 0x11, 0, 5, 100, protocol)


def sll(protocol: bytes, kind: int = 1, size: int = 6) -> bytes:
    """LINKTYPE_LINUX_SLL: packet type, ARPHRD, address length, address, protocol."""
    return struct.pack("!HHH", 0, kind, size) + SENDER + b"\0\0" + protocol


def sll2(protocol: bytes, size: int = 6) -> bytes:
    """LINKTYPE_LINUX_SLL2: protocol, reserved, interface, ARPHRD, packet type, address length, address."""
    return protocol + bytes(2) + struct.pack("!IHBB", 3, 1, 0, size) + SENDER + b"\0\0"


def wifi(control: int = 0x08, flags: int = 0x01) -> bytes:
    """An 802.11 data frame's header, LLC and SNAP without the EtherType."""
    head = bytes([control, flags, 0, 0]) + DESTINATION + SENDER + DESTINATION + b"\0\0"
    head += bytes(6) if flags & 3 == 3 else b""
    head += bytes(2) if control & 0x80 else b""
    return head + SNAP


FRAMES = [
    # link type, header, packet, VLAN, sender
    (ETHERNET, MACS + V4, FOUR, 0, SENDER),
    (ETHERNET, MACS + V6, SIX, 0, SENDER),
    (ETHERNET, MACS + tag(5) + V4, FOUR, 5, SENDER),
    (ETHERNET, MACS + tag(4094, priority=7) + V6, SIX, 4094, SENDER),
    (ETHERNET, MACS + tag(0) + V4, FOUR, 0, SENDER),  # priority tag
    (ETHERNET, MACS + tag(100, 0x88A8) + tag(7) + V4, FOUR, 7, SENDER),  # QinQ (IEEE 802.1ad)
    (ETHERNET, MACS + tag(100) + tag(7) + V6, SIX, 7, SENDER),
    (ETHERNET, MACS + tag(100, 0x9100) + tag(7) + V4, FOUR, 7, SENDER),
    (ETHERNET, MACS + tag(1) + tag(2) + tag(3) + V4, FOUR, 3, SENDER),
    (ETHERNET, MACS + b"\x88\x47" + label(16, True), FOUR, 0, SENDER),
    (ETHERNET, MACS + b"\x88\x47" + label(16, False) + label(17, False) + label(18, True), SIX, 0, SENDER),
    (ETHERNET, MACS + b"\x88\x48" + label(16, True), FOUR, 0, SENDER),
    (ETHERNET, MACS + tag(9) + b"\x88\x47" + label(16, True), FOUR, 9, SENDER),
    (ETHERNET, MACS + b"\x88\x64" + pppoe(0x0021), FOUR, 0, SENDER),
    (ETHERNET, MACS + b"\x88\x64" + pppoe(0x0057), SIX, 0, SENDER),
    (ETHERNET, MACS + tag(7) + b"\x88\x64" + pppoe(0x0021), FOUR, 7, SENDER),
    (ETHERNET, MACS + struct.pack("!H", 8 + len(FOUR)) + SNAP + V4, FOUR, 0, SENDER),
    (ETHERNET, MACS + struct.pack("!H", 8 + len(SIX)) + SNAP + V6, SIX, 0, SENDER),
    (SLL, sll(V4), FOUR, 0, SENDER),
    (SLL, sll(V6), SIX, 0, SENDER),
    (SLL, sll(tag(44)[:2]) + tag(44)[2:] + V4, FOUR, 44, SENDER),
    (SLL, sll(V4, kind=65534, size=0), FOUR, 0, b""),  # a tun interface has no address
    (SLL2, sll2(V4), FOUR, 0, SENDER),
    (SLL2, sll2(V6), SIX, 0, SENDER),
    (SLL2, sll2(tag(44)[:2]) + tag(44)[2:] + V6, SIX, 44, SENDER),
    (SLL2, sll2(V4, size=0), FOUR, 0, b""),
    *[(kind, b"", FOUR, 0, b"") for kind in (RAW_BSD, RAW_OPENBSD, RAW, IPV4, IPV6)],
    *[(kind, b"", SIX, 0, b"") for kind in (RAW_BSD, RAW_OPENBSD, RAW, IPV4, IPV6)],
    # The address family: 2 for IPv4; 24, 28 or 30 for IPv6; in the byte order of who captured, or big-endian
    *[(LOOP, struct.pack(order + "I", 2), FOUR, 0, b"") for order in "<>"],
    *[(LOOP, struct.pack(order + "I", family), SIX, 0, b"") for order in "<>" for family in (24, 28, 30)],
    (LOOP_OPENBSD, struct.pack("!I", 2), FOUR, 0, b""),
    (LOOP_OPENBSD, struct.pack("!I", 24), SIX, 0, b""),
    (PPP, b"\x00\x21", FOUR, 0, b""),
    (PPP, b"\x00\x57", SIX, 0, b""),
    (PPP, b"\xff\x03\x00\x21", FOUR, 0, b""),
    (PPP_HDLC, b"\xff\x03\x00\x21", FOUR, 0, b""),
    (PPP_HDLC, b"\xff\x03\x00\x57", SIX, 0, b""),
    (C_HDLC, b"\x0f\x00" + V4, FOUR, 0, b""),
    (C_HDLC, b"\x8f\x00" + V6, SIX, 0, b""),
    (WIFI, wifi() + V4, FOUR, 0, SENDER),
    (WIFI, wifi(0x88) + V6, SIX, 0, SENDER),  # QoS data
    (WIFI, wifi(0x08, 0x03) + V4, FOUR, 0, SENDER),  # four addresses
    (RADIOTAP, struct.pack("<BBHI", 0, 0, 8, 0) + wifi() + V4, FOUR, 0, SENDER),
    (RADIOTAP, struct.pack("<BBHI", 0, 0, 18, 1) + bytes(10) + wifi() + V6, SIX, 0, SENDER),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "header", "packet", "vlan", "mac"), FRAMES)
def test_found(kind: int, header: bytes, packet: bytes, vlan: int, mac: bytes) -> None:
    assert LINK_TYPES[kind](header + packet) == Located(len(header), vlan, mac)


def test_every_link_type_has_a_frame_here() -> None:
    assert {frame[0] for frame in FRAMES} == LINK_TYPES.keys()


OTHER = [
    (ETHERNET, MACS + b"\x08\x06" + bytes(46)),  # ARP
    (ETHERNET, MACS + b"\x88\xcc" + bytes(46)),  # LLDP
    (ETHERNET, MACS + b"\x88\x63" + pppoe(0x0021) + FOUR),  # PPPoE discovery
    (ETHERNET, MACS + b"\x88\x64" + pppoe(0xC021) + bytes(30)),  # LCP in a PPPoE session
    (ETHERNET, MACS + b"\x00\x26\x42\x42\x03" + bytes(43)),  # spanning tree: LLC without SNAP
    (ETHERNET, MACS + b"\x00\x40" + SNAP + b"\x08\x06" + bytes(50)),  # ARP in SNAP
    (ETHERNET, MACS + tag(5) + b"\x08\x06" + bytes(46)),
    (ETHERNET, MACS + b"\x88\x47" + label(16, True) + b"\x00\x00" + bytes(50)),  # a pseudo wire
    (SLL, sll(b"\x08\x06") + bytes(28)),
    (SLL2, sll2(b"\x08\x06") + bytes(28)),
    (RAW, b"\x00" * 40),
    (LOOP, struct.pack("<I", 2) + b"\x10" * 40),
    (PPP, b"\xc0\x21" + bytes(40)),
    (PPP_HDLC, b"\xff\x03\xc0\x21" + bytes(40)),
    (C_HDLC, b"\x8f\x00\x80\x35" + bytes(40)),  # keepalive
    (WIFI, wifi(0x80, 0)[:24] + bytes(60)),  # a beacon
    (WIFI, wifi(0xB4) + V4 + FOUR),  # a control frame
    (WIFI, wifi(0x08, 0x41) + V4 + FOUR),  # encrypted
    (RADIOTAP, struct.pack("<BBHI", 0, 0, 60000, 0) + wifi() + V4 + FOUR),  # a length beyond the frame
]


@pytest.mark.parametrize(("kind", "frame"), OTHER)
def test_other_traffic(kind: int, frame: bytes) -> None:
    assert LINK_TYPES[kind](frame) is None


@pytest.mark.parametrize(("kind", "header"), sorted({(frame[0], frame[1]) for frame in FRAMES if frame[1]}))
def test_frames_cut_inside_the_link_header(kind: int, header: bytes) -> None:
    """A frame that ends before the IP packet begins has none."""
    for size in range(len(header)):
        assert LINK_TYPES[kind](header[:size]) is None


@pytest.mark.parametrize(("kind", "header"), sorted({(frame[0], frame[1]) for frame in FRAMES}))
def test_frames_that_end_with_the_link_header(kind: int, header: bytes) -> None:
    assert LINK_TYPES[kind](header) is None


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(LINK_TYPES)), st.sampled_from(FRAMES), st.data())
def test_any_bytes(kind: int, frame: tuple[int, bytes, bytes, int, bytes], data: st.DataObject) -> None:
    """Never an exception; what is found lies inside the frame."""
    whole = bytearray(frame[1] + frame[2][:30])
    for at in data.draw(st.lists(st.integers(0, len(whole) - 1), max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    mutated = bytes(whole[: data.draw(st.integers(0, len(whole)))])
    for bytes_ in (mutated, data.draw(st.binary(max_size=60))):
        found = LINK_TYPES[kind](bytes_)
        if found is not None:
            assert 0 <= found.offset <= len(bytes_)
            assert 0 <= found.vlan <= 4095
            assert len(found.mac) in (0, 6)


def test_endless_tags_and_labels() -> None:
    """A jumbo frame that is nothing but tags ends, and is not IP."""
    assert LINK_TYPES[ETHERNET](MACS + tag(5) * 2000) is None
    assert LINK_TYPES[ETHERNET](MACS + b"\x88\x47" + label(16, False) * 2000) is None


def test_the_table_is_in_order() -> None:
    assert all(first < second for first, second in pairwise(LINK_TYPES))
