"""Packet decoding: bytes from the IP header on become a `Packet`, or a reason why not. Never an exception.

Formats: RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers), RFC 9293 (TCP), RFC 768 (UDP),
RFC 9260 (SCTP), RFC 2003 and RFC 4213 (IP-in-IP, 6in4).

This is the per-packet path: TCP behind a plain IPv4 header, which most packets are, is read in one go.
"""

from __future__ import annotations

from enum import StrEnum
from struct import Struct
from typing import Final

# Compiled, what is Final costs nothing to look up. So it is wherever packets pass.
ICMP: Final = 1
IGMP: Final = 2
IPIP: Final = 4
TCP: Final = 6
UDP: Final = 17
IPV6: Final = 41
GRE: Final = 47
ICMPV6: Final = 58
SCTP: Final = 132

FIN: Final = 0x01
SYN: Final = 0x02
RST: Final = 0x04
PSH: Final = 0x08
ACK: Final = 0x10

MAX_IP_LENGTH: Final = 0xFFFF
MAX_TUNNELS: Final = 4
"""Nested IP headers that are unwrapped; more are malformed."""
MAX_EXTENSION_HEADERS: Final = 16

_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION = 0, 43, 44, 51, 60
_EXTENSIONS = frozenset((_HOP_BY_HOP, _ROUTING, _FRAGMENT, _AUTHENTICATION, _DESTINATION))

_HEADS: Final = tuple(bytes((0, 0, proto)) for proto in range(256))
_NO_PORTS: Final = bytes(4)
HEAD_LENGTH: Final = 3
"""Bytes of VLAN and L4 protocol in front of a flow key."""

_tcp_fields: Final = Struct("!4xI4xBB").unpack_from  # sequence number, data offset, flags
_IP4_TCP_SIZE: Final = 40  # of both headers, without options


class Malformed(StrEnum):
    """What is wrong with bytes: they are no packet, or (the last two) one with a flaw."""

    EMPTY = "empty"
    VERSION = "ip_version"
    SHORT_IP = "ip_header_cut"
    IP_LENGTH = "ip_length"
    """Header or total length contradicts itself or the frame."""
    EXTENSIONS = "ipv6_extensions"
    TUNNELS = "tunnel_depth"
    SHORT_L4 = "l4_header_cut"
    L4_LENGTH = "l4_length"
    """The length or data offset in the L4 header contradicts the IP length."""


class Fragment:
    """A non-first fragment: it carries no ports, so it belongs to no flow."""

    __slots__ = ()


FRAGMENT: Final = Fragment()


class Packet:
    """A decoded packet. Lengths come from the headers, so they hold where only the start was captured."""

    __slots__ = (
        "data",
        "flags",
        "flaw",
        "ip_length",
        "key",
        "l4",
        "payload",
        "payload_length",
        "proto",
        "seq",
        "tunnelled",
    )

    data: bytes
    """From the (innermost) IP header on, trimmed to its total length; may be cut short by the capture."""
    key: bytes
    """VLAN, L4 protocol, source and destination address, source and destination port: see `reverse_key`."""
    proto: int
    ip_length: int
    l4: int
    """Offset of the L4 header in `data`."""
    payload: int
    """Offset of the L4 payload in `data`; may lie beyond its end."""
    payload_length: int
    """L4 payload bytes on the wire. 0 for protocols other than TCP, UDP and SCTP."""
    flags: int
    """TCP flags; 0 for other protocols."""
    seq: int
    tunnelled: bool
    """It came inside another IP packet."""
    flaw: Malformed | None
    """What is wrong with its L4 header. It is a packet of its flow all the same, with what could be read:
    without ports where even they are cut off, without payload where nobody can say where that starts."""

    def payload_bytes(self) -> bytes:
        """What was captured of the payload."""
        return self.data[self.payload :]


def ahead(number: int, other: int) -> int:
    """How far a TCP sequence number is ahead of another, -2^31 to 2^31 - 1 (RFC 9293, 3.4)."""
    return ((number - other + 0x80000000) & 0xFFFFFFFF) - 0x80000000


def acknowledged(packet: Packet) -> int:
    """The acknowledgement number of a TCP segment."""
    data, at = packet.data, packet.l4 + 8
    return data[at] << 24 | data[at + 1] << 16 | data[at + 2] << 8 | data[at + 3]


def reverse_key(key: bytes) -> bytes:
    """The key of the same flow's other direction."""
    ports = len(key) - 4
    middle = (HEAD_LENGTH + ports) >> 1
    addresses = key[middle:ports] + key[HEAD_LENGTH:middle]
    return key[:HEAD_LENGTH] + addresses + key[ports + 2 :] + key[ports : ports + 2]


def decode(
    data: bytes, vlan: int = 0, wire_length: int = MAX_IP_LENGTH, depth: int = 0
) -> Packet | Fragment | Malformed:
    """Decode one packet.

    `data` starts at the IP header and may be longer (link padding is trimmed) or shorter (a capture cut it)
    than the packet. `wire_length` is how many bytes there were on the wire from there on: a total length
    beyond it is malformed.
    """
    size = len(data)
    if size >= _IP4_TCP_SIZE and data[0] == 0x45 and data[9] == TCP:
        length = data[2] << 8 | data[3]
        payload = 20 + (data[32] >> 4 << 2)
        if not (data[6] & 0x3F or data[7]) and _IP4_TCP_SIZE <= payload <= length <= wire_length:
            packet = Packet()
            packet.data = data if size <= length else data[:length]
            packet.proto = TCP
            packet.ip_length = length
            packet.l4 = 20
            packet.tunnelled = depth > 0
            packet.flaw = None
            packet.seq = data[24] << 24 | data[25] << 16 | data[26] << 8 | data[27]
            packet.flags = data[33]
            packet.payload = payload
            packet.payload_length = length - payload
            # Addresses and ports lie side by side.
            packet.key = (_HEADS[TCP] if vlan == 0 else _head(vlan, TCP)) + data[12:24]
            return packet
    elif size == 0:
        return Malformed.EMPTY
    first = data[0]
    if first == 0x45 or (first >> 4 == 4):
        if size < 20:
            return Malformed.SHORT_IP
        l4 = (first & 0x0F) << 2
        length = data[2] << 8 | data[3]
        if l4 < 20 or length < l4 or length > wire_length:
            return Malformed.IP_LENGTH
        proto = data[9]
        if (data[6] & 0x1F) or data[7]:
            return FRAGMENT
        addresses = data[12:20]
        # A first fragment ends before its datagram does; its L4 lengths cannot be checked against it.
        whole = not data[6] & 0x20
    elif first >> 4 == 6:
        if size < 40:
            return Malformed.SHORT_IP
        length = 40 + (data[4] << 8 | data[5])
        if length > wire_length:
            return Malformed.IP_LENGTH
        proto = data[6]
        l4 = 40
        addresses = data[8:40]
        whole = True
        if proto in _EXTENSIONS:
            walked = _walk_extensions(data, proto, min(length, size))
            if not isinstance(walked, tuple):
                return walked
            proto, l4, whole = walked
    else:
        return Malformed.VERSION
    if size > length:
        data = data[:length]
        size = length

    if proto in (IPIP, IPV6):
        if depth == MAX_TUNNELS:
            return Malformed.TUNNELS
        return decode(data[l4:], vlan, length - l4 if whole else MAX_IP_LENGTH, depth + 1)

    packet = Packet()
    packet.data = data
    packet.proto = proto
    packet.ip_length = length
    packet.l4 = l4
    packet.tunnelled = depth > 0
    packet.flaw = None
    head = _HEADS[proto] if vlan == 0 else _head(vlan, proto)
    if proto == TCP:
        if size < l4 + 20:
            return _without_l4(packet, head + addresses)
        packet.seq, offset, packet.flags = _tcp_fields(data, l4)
        payload = l4 + (offset >> 4 << 2)
        if payload < l4 + 20 or payload > length:
            packet.flaw = Malformed.L4_LENGTH
            payload = length
        packet.payload = payload
        packet.payload_length = length - payload
        packet.key = head + addresses + data[l4 : l4 + 4]
        return packet
    packet.flags = packet.seq = 0
    if proto == UDP:
        if size < l4 + 8:
            return _without_l4(packet, head + addresses)
        udp_length = data[l4 + 4] << 8 | data[l4 + 5]
        # 0 is a jumbogram's or an offloaded packet's; the IP length then says it.
        if udp_length and (udp_length < 8 or (whole and udp_length > length - l4)):
            packet.flaw = Malformed.L4_LENGTH
        packet.payload = l4 + 8
        packet.payload_length = length - l4 - 8
        if 8 <= udp_length < length - l4:  # what is behind the datagram is none of it
            packet.payload_length = udp_length - 8
            packet.data = data[: l4 + udp_length]
        packet.key = head + addresses + data[l4 : l4 + 4]
        return packet
    if proto == SCTP:
        if size < l4 + 12:
            return _without_l4(packet, head + addresses)
        packet.payload = l4 + 12
        packet.payload_length = length - l4 - 12
        packet.key = head + addresses + data[l4 : l4 + 4]
        return packet
    if proto in (ICMP, ICMPV6) and size < l4 + 4:
        packet.flaw = Malformed.SHORT_L4
    packet.payload = l4
    packet.payload_length = 0
    packet.key = head + addresses + _NO_PORTS
    return packet


def _head(vlan: int, proto: int) -> bytes:
    return bytes((vlan >> 8 & 0xFF, vlan & 0xFF, proto))


def _without_l4(packet: Packet, key: bytes) -> Packet:
    """A packet whose L4 header is cut off."""
    packet.flaw = Malformed.SHORT_L4
    packet.flags = packet.seq = packet.payload_length = 0
    packet.payload = max(packet.l4, len(packet.data))
    packet.key = key + _NO_PORTS
    return packet


def _walk_extensions(data: bytes, proto: int, end: int) -> tuple[int, int, bool] | Fragment | Malformed:
    """Skip IPv6 extension headers: the L4 protocol, its offset, and whether the datagram is whole."""
    at = 40
    whole = True
    for _ in range(MAX_EXTENSION_HEADERS):
        if proto not in _EXTENSIONS:
            return proto, at, whole
        if at + 8 > end:
            return Malformed.EXTENSIONS
        if proto == _FRAGMENT:
            if data[at + 2] or data[at + 3] & 0xF8:
                return FRAGMENT
            whole = whole and not data[at + 3] & 1
            size = 8
        elif proto == _AUTHENTICATION:
            size = (data[at + 1] + 2) << 2
        else:
            size = (data[at + 1] + 1) << 3
        proto = data[at]
        at += size
        if at > end:
            return Malformed.EXTENSIONS
    return Malformed.EXTENSIONS
