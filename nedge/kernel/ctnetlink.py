"""Messages of ctnetlink, the kernel's word on its connection table: packed, and taken apart.

By hand: at thousands of connections a second a generic decoder costs more than the firewall. Formats:
linux/netlink.h, linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.

A connection is known by our flow key (see `nedge.core.packet`), whose bytes are those of the attributes.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import NamedTuple

from nedge.core.packet import HEAD_LENGTH, SCTP, TCP, UDP

_CTNETLINK = 1 << 8
NEW, GET = 0, 1
ERROR, DONE = 2, 3
REQUEST, ACK, DUMP = 1, 4, 0x300
_NESTED = 0x8000

_TUPLE_ORIG, MARK, _COUNTERS_ORIG, _COUNTERS_REPLY, _ZONE, MARK_MASK = 1, 8, 9, 10, 18, 21
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SOURCE, _V4_TARGET, _V6_SOURCE, _V6_TARGET = 1, 2, 3, 4
_PROTO_NUMBER, _SOURCE_PORT, _TARGET_PORT = 1, 2, 3
_COUNTER_PACKETS, _COUNTER_BYTES = 1, 2

_header = struct.Struct("=IHHII")
_attribute = struct.Struct("=HH")
_be32 = struct.Struct("!I")
_be64 = struct.Struct("!Q")
_WITH_PORTS = frozenset((TCP, UDP, SCTP))

# Attributes as they nearly always are, read in one go.
_ip4_with_ports = struct.Struct("=12x4s4x4s8xB7x2s6x2s2x")
"""CTA_TUPLE_ORIG: its addresses, L4 protocol, ports."""
_both_counters = struct.Struct("!8xQ4xQ")
"""CTA_COUNTERS_*: packets, bytes."""


class Connection(NamedTuple):
    """What the kernel counted of a connection. Counters are 0 where accounting is off."""

    key: bytes
    """The flow key of its original direction. A zone is a VLAN (see `nedge.kernel.frames`)."""
    mark: int
    packets: int
    """In the original direction."""
    bytes: int
    """Of IP packets."""
    packets_back: int
    bytes_back: int
    gone: bool
    """It has ended."""


def message(kind: int, flags: int, family: int, attributes: bytes) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + attributes
    return _header.pack(16 + len(body), _CTNETLINK | kind, flags, 0, 0) + body


def _attr(kind: int, value: bytes) -> bytes:
    return _attribute.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def u32(kind: int, value: int) -> bytes:
    return _attr(kind, _be32.pack(value))


def set_mark(key: bytes, value: int, mask: int, flags: int) -> bytes:
    attributes = identity(key) + u32(MARK, value) + u32(MARK_MASK, mask)
    return message(NEW, flags, family(key), attributes)


def family(key: bytes) -> int:
    return socket.AF_INET6 if len(key) > HEAD_LENGTH + 12 else socket.AF_INET


def identity(key: bytes) -> bytes:
    """What names a connection: CTA_TUPLE_ORIG, and its zone if it has one."""
    return _tuple(key) + _attr(_ZONE, key[:2]) if key[0] or key[1] else _tuple(key)


def _tuple(key: bytes) -> bytes:
    """A flow key as CTA_TUPLE_ORIG."""
    size = len(key) - HEAD_LENGTH - 4 >> 1
    source, target = key[HEAD_LENGTH : HEAD_LENGTH + size], key[HEAD_LENGTH + size : -4]
    kinds = (_V4_SOURCE, _V4_TARGET) if size == 4 else (_V6_SOURCE, _V6_TARGET)
    addresses = _attr(kinds[0], source) + _attr(kinds[1], target)
    proto = _attr(_PROTO_NUMBER, key[2:3])
    if key[2] in _WITH_PORTS:
        proto += _attr(_SOURCE_PORT, key[-4:-2]) + _attr(_TARGET_PORT, key[-2:])
    return _attr(
        _TUPLE_ORIG | _NESTED, _attr(_TUPLE_IP | _NESTED, addresses) + _attr(_TUPLE_PROTO | _NESTED, proto)
    )


def refusals(data: bytes) -> Iterator[int]:
    """Error codes in a read."""
    at = 0
    while at + 20 <= len(data):
        length, kind, _, _, _ = _header.unpack_from(data, at)
        if kind == ERROR:
            yield -struct.unpack_from("=i", data, at + 16)[0]
        at += max(16, length + 3 & ~3)


def ends_dump(data: bytes) -> bool:
    """Whether the end of a dump is in a read, be it an error."""
    at = 0
    while at + 16 <= len(data):
        length, kind, _, _, _ = _header.unpack_from(data, at)
        if kind in (ERROR, DONE):
            return True
        at += max(16, length + 3 & ~3)
    return False


class _Layout(NamedTuple):
    """Where things are in a message, from its start; 0 if it has no such thing."""

    length: int
    """Of the message."""
    third: bytes
    """The head of what is behind both tuples: there a zone would be."""
    mark: int
    counters: int
    counters_back: int


_ORIG, _COUNTED, _COUNTED_BACK, _MARKED = (
    _attribute.pack(width, kind)
    for width, kind in (
        (_ip4_with_ports.size, _TUPLE_ORIG | _NESTED),
        (_both_counters.size, _COUNTERS_ORIG | _NESTED),
        (_both_counters.size, _COUNTERS_REPLY | _NESTED),
        (8, MARK),
    )
)
"""Heads of the attributes as they nearly always are."""
_THIRD = 20 + 2 * _ip4_with_ports.size


class Reader:
    """Takes connections out of messages. Most look like the one before, which saves looking for things."""

    def __init__(self, *, gone: bool) -> None:
        self._gone = gone
        self._layout = _Layout(0, b"", 0, 0, 0)

    def read(self, data: bytes) -> Iterator[tuple[int, Connection | None]]:
        """The messages of a read: their type, and the connection in them if there is one."""
        at, end = 0, len(data)
        while at + 16 <= end:
            length, kind, _, _, _ = _header.unpack_from(data, at)
            if length < 16:
                return
            if kind in (ERROR, DONE):
                yield kind, None
            else:
                connection = self._as_before(data, at, length) or self._searched(data, at, length)
                if connection is not None:
                    yield kind, connection
            at += length + 3 & ~3

    def _as_before(self, data: bytes, at: int, length: int) -> Connection | None:
        """The connection in a message of the known layout; None if it has another."""
        known, third, mark, counters, back = self._layout
        mark, counters, back = at + mark, at + counters, at + back
        if (
            length != known
            or data[at + 20 : at + 24] != _ORIG
            or data[at + _THIRD : at + _THIRD + 4] != third
            or data[mark : mark + 4] != _MARKED
            or data[counters : counters + 4] != _COUNTED
            or data[back : back + 4] != _COUNTED_BACK
        ):
            return None
        key = _parse_tuple(data, at + 20, _ip4_with_ports.size)
        (value,) = _be32.unpack_from(data, mark + 4)
        packets, size = _both_counters.unpack_from(data, counters)
        packets_back, size_back = _both_counters.unpack_from(data, back)
        return Connection(key, value, packets, size, packets_back, size_back, self._gone)

    def _searched(self, data: bytes, at: int, length: int) -> Connection | None:
        """The connection in any message; remembers the layout."""
        attribute = _attribute.unpack_from
        cursor, stop = at + 20, at + length
        key = zone = b""
        mark = packets = size = packets_back = size_back = 0
        mark_at = counters_at = back_at = 0
        while cursor + 4 <= stop:
            width, name = attribute(data, cursor)
            name &= 0x3FFF
            if name == _TUPLE_ORIG:
                key = _parse_tuple(data, cursor, width)
            elif name == _COUNTERS_ORIG:
                packets, size = _parse_counters(data, cursor, width)
                counters_at = cursor - at
            elif name == _COUNTERS_REPLY:
                packets_back, size_back = _parse_counters(data, cursor, width)
                back_at = cursor - at
            elif name == MARK:
                (mark,) = _be32.unpack_from(data, cursor + 4)
                mark_at = cursor - at
            elif name == _ZONE:
                zone = data[cursor + 4 : cursor + 6]
            cursor += width + 3 & ~3
            if width < 4:
                break
        if not key:
            return None
        if not zone:
            third = data[at + _THIRD : at + _THIRD + 4]
            self._layout = _Layout(length, third, mark_at, counters_at, back_at)
        return Connection(
            zone + key[2:] if zone else key, mark, packets, size, packets_back, size_back, self._gone
        )


def _parse_tuple(data: bytes, at: int, width: int) -> bytes:
    """CTA_TUPLE_ORIG, so many bytes, as a flow key."""
    if width == _ip4_with_ports.size:
        source, target, proto, *both = _ip4_with_ports.unpack_from(data, at)
        ports: bytes = b"".join(both) if proto in _WITH_PORTS else bytes(4)
        return b"".join((bytes((0, 0, proto)), source, target, ports))
    end = at + width
    at += 4
    attribute = _attribute.unpack_from
    addresses, proto, ports = b"", 0, bytes(4)
    while at + 4 <= end:
        width, name = attribute(data, at)
        if name & 0x3FFF == _TUPLE_IP:
            size = attribute(data, at + 4)[0] - 4
            second = at + 8 + size + 4  # both addresses are there, of one size, the source first
            addresses = data[at + 8 : at + 8 + size] + data[second : second + size]
        elif name & 0x3FFF == _TUPLE_PROTO:
            proto = data[at + 8]
            if proto in _WITH_PORTS:  # number, source port, target port: 8 bytes each
                ports = data[at + 16 : at + 18] + data[at + 24 : at + 26]
        at += width + 3 & ~3
        if width < 4:
            break
    return bytes((0, 0, proto)) + addresses + ports


def _parse_counters(data: bytes, at: int, width: int) -> tuple[int, int]:
    packets = size = 0
    if width == _both_counters.size:
        packets, size = _both_counters.unpack_from(data, at)
        return packets, size
    end = at + width
    at += 4
    while at + 12 <= end:
        width, name = _attribute.unpack_from(data, at)
        (value,) = _be64.unpack_from(data, at + 4)
        if name & 0x3FFF == _COUNTER_PACKETS:
            packets = value
        elif name & 0x3FFF == _COUNTER_BYTES:
            size = value
        at += width + 3 & ~3
        if width < 4:
            break
    return packets, size
