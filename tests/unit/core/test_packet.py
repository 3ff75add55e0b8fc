"""decode(): tables from the RFCs, and properties over any bytes."""

from __future__ import annotations

import struct

import pytest
from core_kit import (
    ACK,
    CLIENT,
    CLIENT6,
    PSH,
    SERVER,
    SERVER6,
    SYN,
    decoded,
    ip4,
    ip6,
    key,
    tcp,
    udp,
)
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nedge.core.packet import FRAGMENT, Fragment, Malformed, Packet, decode, reverse_key

MORE, DONT = 0x2000, 0x4000
HOP, ROUTING, FRAG, ESP, AH, NO_NEXT, DEST = 0, 43, 44, 50, 51, 59, 60

# IPv4


@pytest.mark.parametrize("words", range(11))
def test_ipv4_options_are_skipped(words: int) -> None:
    packet = decoded(ip4(6, tcp(b"hello", seq=77, flags=PSH | ACK), options=b"\x01" * 4 * words))
    assert packet.l4 == 20 + 4 * words
    assert packet.payload_bytes() == b"hello"
    assert (packet.payload_length, packet.seq, packet.flags) == (5, 77, PSH | ACK)
    assert packet.key == key(6, CLIENT, 40000, SERVER, 80)


@pytest.mark.parametrize("padding", [1, 6, 46, 1000])
def test_link_padding_is_trimmed(padding: int) -> None:
    data = ip4(17, udp(b"abc"))
    packet = decoded(data + b"\xee" * padding)
    assert packet.data == data
    assert (packet.ip_length, packet.payload_length, packet.payload_bytes()) == (len(data), 3, b"abc")


@pytest.mark.parametrize("captured", [40, 41, 90, 139])
def test_lengths_of_a_cut_capture_are_the_headers(captured: int) -> None:
    """RFC 791: total length. tcpdump -s: only the start is there."""
    data = ip4(6, tcp(bytes(100)))
    packet = decode(data[:captured], 0, len(data))
    assert isinstance(packet, Packet)
    assert (packet.ip_length, packet.payload_length) == (140, 100)
    assert len(packet.payload_bytes()) == captured - 40


@pytest.mark.parametrize(
    ("data", "wire", "reason"),
    [
        (b"", None, Malformed.EMPTY),
        *[(bytes([version << 4 | 5]) + bytes(60), None, Malformed.VERSION) for version in range(16)
          if version not in (4, 6)],
        (ip4(6, tcp())[:19], None, Malformed.SHORT_IP),
        (b"\x45", None, Malformed.SHORT_IP),
        (b"\x44" + ip4(6, tcp())[1:], None, Malformed.IP_LENGTH),  # header length 16
        (b"\x40" + ip4(6, tcp())[1:], None, Malformed.IP_LENGTH),
        (ip4(6, tcp(), length=19), None, Malformed.IP_LENGTH),
        (ip4(6, tcp(), length=0), None, Malformed.IP_LENGTH),
        (ip4(6, tcp(), options=bytes(8), length=27), None, Malformed.IP_LENGTH),
        (ip4(6, tcp(), length=41), 40, Malformed.IP_LENGTH),  # longer than it was on the wire
        (ip4(6, tcp(), length=65535), 65534, Malformed.IP_LENGTH),
        (ip6(6, tcp())[:39], None, Malformed.SHORT_IP),
        (b"\x60", None, Malformed.SHORT_IP),
        (ip6(6, tcp(), length=21), 60, Malformed.IP_LENGTH),
        # L4 headers that are cut, by the capture or by the IP length
        (ip4(6, tcp())[:39], 40, Malformed.SHORT_L4),
        (ip4(6, tcp(), length=39), None, Malformed.SHORT_L4),
        (ip4(6, b""), None, Malformed.SHORT_L4),
        (ip4(17, udp())[:27], 28, Malformed.SHORT_L4),
        (ip4(17, udp(), length=27), None, Malformed.SHORT_L4),
        (ip4(132, bytes(11)), None, Malformed.SHORT_L4),
        (ip4(1, bytes(3)), None, Malformed.SHORT_L4),
        (ip6(58, bytes(3)), None, Malformed.SHORT_L4),
        (ip6(6, tcp()[:19]), None, Malformed.SHORT_L4),
        # TCP data offset: at least 5 words, and inside the packet (RFC 9293)
        *[(ip4(6, tcp(bytes(60), offset=words)), None, Malformed.L4_LENGTH) for words in range(5)],
        (ip4(6, tcp(offset=6)), None, Malformed.L4_LENGTH),
        (ip4(6, tcp(bytes(39), offset=15)), None, Malformed.L4_LENGTH),
        (ip6(6, tcp(offset=6)), None, Malformed.L4_LENGTH),
        # UDP length: at least 8, and inside the packet (RFC 768)
        *[(ip4(17, udp(b"data", length=size)), None, Malformed.L4_LENGTH) for size in (1, 7, 13, 65535)],
        (ip6(17, udp(b"data", length=13)), None, Malformed.L4_LENGTH),
    ],
)  # fmt: skip
def test_malformed(data: bytes, wire: int | None, reason: Malformed) -> None:
    found = decode(data) if wire is None else decode(data, 0, wire)
    # Where only the L4 header is wrong, it is a packet of its flow all the same, as far as it can be read.
    flaw = found.flaw if isinstance(found, Packet) else None
    assert (flaw or found) is reason
    assert (flaw is not None) == (reason in (Malformed.SHORT_L4, Malformed.L4_LENGTH))


def test_the_largest_packets() -> None:
    assert decoded(ip4(17, udp(bytes(65535 - 28)))).payload_length == 65507
    # 40 bytes of header do not count in IPv6 (RFC 8200, 3), but nothing longer than 65,535 comes this way.
    assert decoded(ip6(17, udp(bytes(65495 - 8)))).ip_length == 65535
    assert decode(ip6(17, udp(bytes(65496 - 8)))) is Malformed.IP_LENGTH


@pytest.mark.parametrize("words", range(5, 16))
def test_tcp_options(words: int) -> None:
    packet = decoded(ip4(6, tcp(b"xy", options=bytes((words - 5) * 4))))
    assert packet.payload == 20 + words * 4
    assert packet.payload_bytes() == b"xy"


def test_tcp_data_offset_of_a_cut_capture() -> None:
    """Options that were not captured: the payload starts beyond what is there."""
    data = ip4(6, tcp(b"xyz", options=bytes(20)))
    packet = decode(data[:40], 0, len(data))
    assert isinstance(packet, Packet)
    assert (packet.payload, packet.payload_length, packet.payload_bytes()) == (60, 3, b"")


@pytest.mark.parametrize("version", [4, 6])
def test_udp_length_zero(version: int) -> None:
    """RFC 2675, 4: a jumbogram's; the IP length says it."""
    build = ip4 if version == 4 else ip6
    assert decoded(build(17, udp(b"12345", length=0))).payload_length == 5


@pytest.mark.parametrize("version", [4, 6])
def test_udp_ends_where_its_length_says(version: int) -> None:
    build = ip4 if version == 4 else ip6
    packet = decoded(build(17, udp(b"12345", length=8 + 3)))
    assert packet.payload_length == 3
    assert packet.payload_bytes() == b"123"


def test_sctp() -> None:
    header = struct.pack("!HHII", 2905, 2906, 1, 0)
    packet = decoded(ip4(132, header + b"chunk123"))
    assert packet.key == key(132, CLIENT, 2905, SERVER, 2906)
    assert (packet.payload_length, packet.payload_bytes()) == (8, b"chunk123")


@pytest.mark.parametrize("proto", [proto for proto in range(256) if proto not in (4, 6, 17, 41, 132)])
def test_any_other_protocol_number_v4(proto: int) -> None:
    """ICMP, GRE, ESP and all others: no ports, and no goodput."""
    packet = decoded(ip4(proto, b"\x12\x34\x56\x78" * 3))
    assert packet.key == key(proto, CLIENT, 0, SERVER, 0)
    assert (packet.proto, packet.payload_length, packet.flags, packet.seq) == (proto, 0, 0, 0)


@pytest.mark.parametrize(
    "proto", [p for p in range(256) if p not in (4, 6, 17, 41, 132, HOP, ROUTING, FRAG, AH, DEST)]
)
def test_any_other_protocol_number_v6(proto: int) -> None:
    packet = decoded(ip6(proto, b"\x12\x34\x56\x78" * 3))
    assert packet.key == key(proto, CLIENT6, 0, SERVER6, 0)
    assert packet.l4 == 40


def test_no_next_header_needs_no_payload() -> None:
    assert decoded(ip6(NO_NEXT, b"")).proto == NO_NEXT


@pytest.mark.parametrize("vlan", [0, 1, 255, 256, 4094, 4095])
@pytest.mark.parametrize("version", [4, 6])
def test_vlan_is_part_of_the_key(vlan: int, version: int) -> None:
    data, ends = (ip4(6, tcp()), (CLIENT, SERVER)) if version == 4 else (ip6(6, tcp()), (CLIENT6, SERVER6))
    packet = decoded(data, vlan)
    assert packet.key == key(6, ends[0], 40000, ends[1], 80, vlan)
    assert packet.key[:2] == vlan.to_bytes(2)


# IPv6 extension headers (RFC 8200, 4; RFC 4302 for the authentication header)


def generic(following: int, units: int = 0) -> bytes:
    """Hop-by-hop, routing or destination options: length in units of 8 bytes, the first not counted."""
    return bytes([following, units]) + bytes(6 + units * 8)


def authentication(following: int, words: int = 6) -> bytes:
    """Length in 4-byte words, minus 2."""
    return bytes([following, words - 2]) + bytes(words * 4 - 2)


def fragment(following: int, offset: int = 0, more: bool = False) -> bytes:
    """`offset` in units of 8 bytes."""
    return struct.pack("!BBHI", following, 0, offset << 3 | more, 99)


@pytest.mark.parametrize("header", [HOP, ROUTING, DEST])
@pytest.mark.parametrize("units", [0, 1, 2, 31, 255])
def test_extension_header(header: int, units: int) -> None:
    packet = decoded(ip6(header, generic(6, units) + tcp(b"data")))
    assert packet.proto == 6
    assert packet.l4 == 40 + 8 + 8 * units
    assert packet.payload_bytes() == b"data"
    assert packet.key == key(6, CLIENT6, 40000, SERVER6, 80)


@pytest.mark.parametrize("words", [3, 4, 6, 8, 257])
def test_authentication_header(words: int) -> None:
    packet = decoded(ip6(AH, authentication(17, words) + udp(b"data")))
    assert (packet.proto, packet.l4, packet.payload_bytes()) == (17, 40 + 4 * words, b"data")


def test_chain_in_the_order_of_rfc_8200() -> None:
    chain = generic(DEST) + generic(ROUTING, 1) + generic(FRAG, 2) + fragment(AH) + authentication(DEST, 6)
    packet = decoded(ip6(HOP, chain + generic(6) + tcp(b"end")))
    assert packet.payload_bytes() == b"end"
    assert packet.l4 == 40 + len(chain) + 8


@pytest.mark.parametrize(("count", "good"), [(1, True), (8, True), (15, True), (17, False), (200, False)])
def test_chain_length_is_bounded(count: int, good: bool) -> None:
    found = decode(ip6(DEST, generic(DEST) * (count - 1) + generic(17) + udp(b"x")))
    assert (isinstance(found, Packet)) if good else (found is Malformed.EXTENSIONS)


@pytest.mark.parametrize("header", [HOP, ROUTING, FRAG, AH, DEST])
def test_cut_extension_header(header: int) -> None:
    for size in range(8):
        assert decode(ip6(header, bytes([6, 0] * 4)[:size])) is Malformed.EXTENSIONS


@pytest.mark.parametrize("header", [HOP, ROUTING, DEST])
def test_extension_header_longer_than_the_packet(header: int) -> None:
    assert decode(ip6(header, generic(6, 9)[:40] + tcp())) is Malformed.EXTENSIONS


def test_esp_hides_everything() -> None:
    packet = decoded(ip6(HOP, generic(ESP) + bytes(40)))
    assert packet.key == key(ESP, CLIENT6, 0, SERVER6, 0)


def test_padding_is_no_extension_header() -> None:
    """The chain ends with the packet, not with the frame."""
    assert decode(ip6(DEST, generic(6)[:4]) + bytes(60)) is Malformed.EXTENSIONS


# Fragments


@pytest.mark.parametrize("field", [1, 0x1FFF, MORE | 1, MORE | 0x1FFF, 0x0100, DONT | 185])
def test_later_fragment_v4(field: int) -> None:
    assert decode(ip4(6, b"\0" * 24, fragment=field)) is FRAGMENT


@pytest.mark.parametrize("field", [MORE, DONT, MORE | DONT, 0x8000])
def test_first_fragment_v4(field: int) -> None:
    packet = decoded(ip4(17, udp(b"12345678", sport=1, dport=2), fragment=field))
    assert packet.key == key(17, CLIENT, 1, SERVER, 2)


def test_first_fragment_ends_before_its_datagram_v4() -> None:
    """The UDP length is the whole datagram's; the rest comes in later fragments."""
    packet = decoded(ip4(17, udp(bytes(16), length=3000), fragment=MORE))
    assert packet.payload_length == 16
    assert decoded(ip4(17, udp(bytes(16), length=3000), fragment=DONT)).flaw is Malformed.L4_LENGTH


@pytest.mark.parametrize("offset", [1, 185, 0x1FFF])
@pytest.mark.parametrize("more", [False, True])
def test_later_fragment_v6(offset: int, more: bool) -> None:
    assert decode(ip6(FRAG, fragment(6, offset, more) + bytes(24))) is FRAGMENT
    assert decode(ip6(HOP, generic(FRAG) + fragment(DEST, offset, more) + bytes(24))) is FRAGMENT


def test_first_fragment_v6() -> None:
    packet = decoded(ip6(FRAG, fragment(17, 0, True) + udp(bytes(16), length=3000)))
    assert packet.payload_length == 16
    assert packet.key == key(17, CLIENT6, 40000, SERVER6, 53)


def test_atomic_fragment_v6() -> None:
    """RFC 6946: offset 0 and no more fragments is a whole packet."""
    assert decoded(ip6(FRAG, fragment(17) + udp(b"data"))).payload_bytes() == b"data"
    assert decoded(ip6(FRAG, fragment(17) + udp(b"data", length=3000))).flaw is Malformed.L4_LENGTH


# Tunnels


@pytest.mark.parametrize(
    ("outer", "proto", "inner"),
    [(ip4, 4, ip4), (ip4, 41, ip6), (ip6, 4, ip4), (ip6, 41, ip6)],
    ids=["ipip", "6in4", "4in6", "6in6"],
)
def test_tunnel_is_unwrapped(outer, proto, inner) -> None:  # type: ignore[no-untyped-def]
    within = inner(6, tcp(b"data", seq=5))
    packet = decoded(outer(proto, within), 12)
    ends = (CLIENT, SERVER) if inner is ip4 else (CLIENT6, SERVER6)
    assert packet.key == key(6, ends[0], 40000, ends[1], 80, 12)
    assert packet.data == within
    assert packet.ip_length == len(within)


def test_tunnel_behind_options_and_extension_headers() -> None:
    within = ip4(17, udp(b"x"))
    assert decoded(ip4(4, within, options=bytes(12))).data == within
    assert decoded(ip6(DEST, generic(4) + within)).data == within


@pytest.mark.parametrize(("depth", "good"), [(1, True), (4, True), (5, False), (60, False)])
def test_tunnel_depth_is_bounded(depth: int, good: bool) -> None:
    data = ip4(17, udp(b"x"))
    for level in range(depth):
        data = ip4(4, data) if level % 2 or data[0] >> 4 == 6 else ip6(4, data)
    found = decode(data)
    assert isinstance(found, Packet) if good else found is Malformed.TUNNELS


def test_what_is_in_a_tunnel_must_fit() -> None:
    assert decode(ip4(4, ip4(17, udp(b"x"), length=60))) is Malformed.IP_LENGTH
    assert decode(ip4(4, b"")) is Malformed.EMPTY
    assert decode(ip4(4, ip4(17, udp(b"x"), fragment=9))) is FRAGMENT


def test_tunnel_of_a_cut_capture() -> None:
    whole = ip4(4, ip4(17, udp(bytes(500))))
    packet = decode(whole[:60], 0, len(whole))
    assert isinstance(packet, Packet)
    assert packet.payload_length == 500


def test_first_fragment_of_a_tunnel() -> None:
    """The tunnelled packet is as long as its own header says; the outer fragment holds but a part of it."""
    within = ip4(17, udp(bytes(2000)))
    packet = decode(ip4(4, within[:1480], fragment=MORE))
    assert isinstance(packet, Packet)
    assert packet.key == key(17, CLIENT, 40000, SERVER, 53)


# Properties

protos = st.one_of(
    st.sampled_from([1, 4, 6, 17, 41, 47, 50, 58, 59, 132, HOP, ROUTING, FRAG, AH, DEST]), st.integers(0, 255)
)


@st.composite
def valid(draw: st.DrawFn, depth: int = 0) -> bytes:
    """A well-formed packet of any kind."""
    proto = draw(protos)
    payload = draw(st.binary(max_size=40))
    if proto in (4, 41):
        body = draw(valid(depth + 1)) if depth < 3 else ip4(17, udp(payload))
    elif proto == 6:
        body = tcp(
            payload,
            sport=draw(st.integers(0, 65535)),
            seq=draw(st.integers(0, 2**32 - 1)),
            flags=draw(st.integers(0, 255)),
            options=bytes(draw(st.sampled_from([0, 4, 40]))),
        )
    elif proto == 17:
        body = udp(payload, dport=draw(st.integers(0, 65535)))
    else:
        body = bytes(12) + payload
    if draw(st.booleans()):
        if proto in (HOP, ROUTING, FRAG, AH, DEST):
            proto = 17
            body = udp(payload)
        for header in draw(st.lists(st.sampled_from([HOP, ROUTING, FRAG, AH, DEST]), max_size=4)):
            if header == AH:
                body, proto = authentication(proto, draw(st.sampled_from([4, 6]))) + body, header
            elif header == FRAG:
                body, proto = (
                    fragment(proto, draw(st.sampled_from([0, 0, 3])), draw(st.booleans())) + body,
                    header,
                )
            else:
                body, proto = generic(proto, draw(st.sampled_from([0, 1]))) + body, header
        return ip6(proto, body)
    options = bytes(draw(st.sampled_from([0, 0, 4, 40])))
    return ip4(proto, body, options=options, fragment=draw(st.sampled_from([0, 0, DONT, MORE, 3])))


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    """A well-formed packet with bytes changed, cut, or with more behind it."""
    data = bytearray(draw(valid()))
    for _ in range(draw(st.integers(0, 4))):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return bytes(data[:cut]) + draw(st.binary(max_size=9))


def check(data: bytes, vlan: int, wire_length: int) -> None:
    found = decode(data, vlan, wire_length)
    if isinstance(found, Fragment | Malformed):
        return
    assert isinstance(found, Packet)
    assert len(found.data) <= min(found.ip_length, len(data))
    # What a tunnel's first fragment carries ends in a later one.
    assert found.ip_length <= wire_length or found.tunnelled
    assert found.ip_length <= 0xFFFF
    assert found.data in data
    assert 20 <= found.l4 <= found.payload <= found.ip_length
    room = found.ip_length - found.payload
    if found.flaw:
        assert 0 <= found.payload_length <= room
    elif found.proto in (6, 132):
        assert found.payload_length == room
    elif found.proto == 17:  # the datagram may end before the packet
        assert 0 <= found.payload_length <= room
    else:
        assert found.payload_length == 0
    assert 0 <= found.proto <= 255
    assert found.proto not in (4, 41)
    assert 0 <= found.flags <= 255
    assert 0 <= found.seq < 2**32
    size = {4: 4, 6: 16}[found.data[0] >> 4]
    assert len(found.key) == {4: 15, 16: 39}[size]
    assert found.key[:3] == vlan.to_bytes(2) + bytes([found.proto])
    assert reverse_key(reverse_key(found.key)) == found.key
    assert found.payload_bytes() == found.data[found.payload :]
    # The answer's key is the reversed one.
    at = 12 if size == 4 else 8
    back = bytearray(found.data)
    back[at : at + 2 * size] = found.data[at + size : at + 2 * size] + found.data[at : at + size]
    if found.proto in (6, 17, 132) and found.flaw is not Malformed.SHORT_L4:
        ports = found.data[found.l4 : found.l4 + 4]
        back[found.l4 : found.l4 + 4] = ports[2:] + ports[:2]
    answer = decode(bytes(back), vlan)
    assert isinstance(answer, Packet)
    assert answer.key == reverse_key(found.key)
    assert reverse_key(answer.key) == found.key


wires = st.one_of(st.just(0xFFFF), st.integers(0, 0xFFFF))


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=120), st.integers(0, 4095), wires)
@example(b"\x45" + bytes(19), 0, 0xFFFF)
@example(b"\x60" + bytes(39), 0, 0xFFFF)
def test_any_bytes(data: bytes, vlan: int, wire_length: int) -> None:
    check(data, vlan, wire_length)


@settings(max_examples=600, deadline=None)
@given(mutated(), st.sampled_from([0, 7, 4094]), wires)
def test_any_mutation(data: bytes, vlan: int, wire_length: int) -> None:
    check(data, vlan, wire_length)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=60),
    st.lists(st.sampled_from([HOP, ROUTING, AH, DEST]), max_size=6),
    st.sampled_from([0, 4, 40]),
    st.sampled_from([6, 17, 132]),
    st.binary(max_size=9),
)
def test_payload_behind_any_headers(
    payload: bytes, headers: list[int], options: int, proto: int, padding: bytes
) -> None:
    """A well-formed packet is never malformed, and its payload is found."""
    body = {6: tcp(payload, options=bytes(options)), 17: udp(payload), 132: bytes(12) + payload}[proto]
    four = decoded(ip4(proto, body, options=bytes(options)) + padding)
    first = proto
    for header in headers:
        body, first = (authentication(first) if header == AH else generic(first)) + body, header
    for packet in (four, decoded(ip6(first, body) + padding)):
        assert packet.proto == proto
        assert packet.payload_bytes() == payload
        assert packet.payload_length == len(payload)


@given(st.one_of(st.binary(min_size=15, max_size=15), st.binary(min_size=39, max_size=39)))
def test_reverse_key(some: bytes) -> None:
    half = 4 if len(some) == 15 else 16
    back = reverse_key(some)
    assert back[:3] == some[:3]
    assert back[3 : 3 + half] == some[3 + half : 3 + 2 * half]
    assert back[-4:-2] == some[-2:]
    assert reverse_key(back) == some


def test_syn_flag_and_sequence_number_are_the_headers() -> None:
    packet = decoded(ip6(6, tcp(seq=0xFFFFFFFF, flags=SYN)))
    assert (packet.seq, packet.flags) == (0xFFFFFFFF, SYN)
