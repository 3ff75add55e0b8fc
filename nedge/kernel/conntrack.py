"""The kernel's connection table, over ctnetlink: marks, counters and ends of flows that it took over.

Messages are packed and parsed by hand: at thousands of connections a second a generic decoder costs more than
the firewall. Formats: linux/netfilter/nfnetlink.h and nfnetlink_conntrack.h.

A connection is known by our flow key (see `nedge.core.packet`), whose bytes are those of the attributes.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from nedge.core.flow import Share
from nedge.core.marks import Marks
from nedge.core.packet import HEAD_LENGTH, SCTP, TCP, UDP, reverse_key
from nedge.kernel.errors import KernelError

RECEIVE_BUFFER = 16 << 20
_READ = 1 << 16
_EVENTS, _EVENT_SIZE = 16, 1 << 13
"""Events that are read at once, and the largest. (One has a few hundred bytes.)"""
_BATCH = 100
"""Messages that are sent in one go."""
_DUMP_SECONDS = 2.0
_CONTROL_SECONDS = 0.5
"""The kernel answers within the call; this is for when something is very wrong."""

_NETLINK_NETFILTER = 12
_CTNETLINK = 1 << 8
_NEW, _GET = 0, 1
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_REQUEST, _ACK, _DUMP = 1, 4, 0x300
_GROUP_DESTROY = 3
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1
_NESTED = 0x8000

_TUPLE_ORIG, _MARK, _COUNTERS_ORIG, _COUNTERS_REPLY, _ZONE, _MARK_MASK = 1, 8, 9, 10, 18, 21
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


class Conntrack:
    """A control socket and an event socket."""

    def __init__(self) -> None:
        self._control = _open()
        self._events = _open()
        self._events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_DESTROY)
        self._events.setblocking(False)
        self._dumps = _open()
        self._dumps.setblocking(False)
        self._ends, self._live = _Reader(gone=True), _Reader(gone=False)
        self._dumping = False
        self.dump_failed = False
        """A dump ended with an error; the caller clears it."""
        self._control.settimeout(_CONTROL_SECONDS)
        self.lost_events = 0
        """Times that the kernel had to throw events away since we were slow."""

    def close(self) -> None:
        for sock in (self._control, self._events, self._dumps):
            sock.close()

    # Marks

    def set_mark(self, key: bytes, value: int, mask: int) -> bool:
        """Change the masked bits of a connection's mark, by either direction's key. False: there is none."""
        for candidate in (key, reverse_key(key)):
            if self._request(_set_mark(candidate, value, mask, _REQUEST | _ACK)):
                return True
        return False

    def set_marks(self, changes: Sequence[tuple[bytes, int]], mask: int) -> None:
        """Change the masked bits of many marks, by key and value; passes over connections that are gone."""
        for start in range(0, len(changes), _BATCH):
            batch = changes[start : start + _BATCH]
            # Without asking for answers: the kernel tells of those that it refuses, before `send` returns.
            self._control.send(b"".join(_set_mark(key, value, mask, _REQUEST) for key, value in batch))
            while select.select([self._control], [], [], 0)[0]:
                for code in _refusals(self._control.recv(_READ)):
                    if code != errno.ENOENT:
                        raise KernelError(f"conntrack refused a mark: {os.strerror(code)}")

    def find(self, key: bytes) -> Connection | None:
        """The connection as it is now, by either direction's key; None: there is none."""
        self._control.send(_message(_GET, _REQUEST, _family(key), _identity(key)))
        answer = self._control.recv(_READ)
        for code in _refusals(answer):
            if code != errno.ENOENT:
                raise KernelError(f"conntrack refused to tell of a connection: {os.strerror(code)}")
        return next((connection for _, connection in self._live.read(answer)), None)

    def _request(self, message: bytes) -> bool:
        self._control.send(message)
        answer = self._control.recv(_READ)
        (code,) = struct.unpack_from("=i", answer, 16)
        if code == 0:
            return True
        if -code == errno.ENOENT:
            return False
        raise KernelError(f"conntrack refused a request: {os.strerror(-code)}")

    # Ends

    def fileno(self) -> int:
        """Readable when connections have ended."""
        return self._events.fileno()

    def ended(self) -> list[Connection]:
        """Some connections that ended, with their final counters. Does not block.

        Not all at once, as packets may wait: `fileno` is readable while there are more.
        """
        found: list[Connection] = []
        for _ in range(_EVENTS):  # each comes as a message of its own
            try:
                data = self._events.recv(_EVENT_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost_events += 1
                break
            found += [connection for _, connection in self._ends.read(data) if connection is not None]
        return found

    # Dumps

    @property
    def dump_fileno(self) -> int:
        """Readable when a part of a dump has arrived."""
        return self._dumps.fileno()

    def start_dump(self, mark: int, mask: int) -> bool:
        """Ask for all connections whose masked mark is `mark`; `dumped` gives them in parts.

        As a side effect the kernel lets go of connections that have run out, which it else does late, up to
        minutes: their ends then arrive as events. False if a dump is under way.
        """
        if self._dumping:
            return False
        attributes = _u32(_MARK, mark) + _u32(_MARK_MASK, mask)
        self._dumps.send(_message(_GET, _REQUEST | _DUMP, socket.AF_UNSPEC, attributes))
        self._dumping = True
        return True

    def dumped(self) -> list[Connection]:
        """The part of the dump that is there. Does not block."""
        try:
            data = self._dumps.recv(_READ)
        except BlockingIOError:
            return []
        except OSError:
            self._dumping, self.dump_failed = False, True
            return []
        found = []
        for kind, connection in self._live.read(data):
            if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                self._dumping = False
                self.dump_failed = self.dump_failed or kind == _NLMSG_ERROR
            elif connection is not None:
                found.append(connection)
        return found

    @property
    def dumping(self) -> bool:
        return self._dumping

    def clear_marks(self, marks: Marks, *, but: int | None = None) -> int:
        """Take our bits off every connection that has a share in them; says how many. Blocks.

        `but`: leave the connections of this generation alone.
        """
        cleared = 0
        one_bit = Share.PASS << marks.shift  # PASS and WATCH have it
        for mark, mask in ((one_bit, one_bit), (Share.DROP << marks.shift, marks.share_mask)):
            self.start_dump(mark, mask)
            found: list[Connection] = []
            while self._dumping and select.select([self._dumps], [], [], _DUMP_SECONDS)[0]:
                found += self.dumped()
            if but is not None:
                found = [one for one in found if marks.generation_of(one.mark) != but]
            for start in range(0, len(found), _BATCH):
                batch = found[start : start + _BATCH]
                # Without asking for answers: one that has ended meanwhile needs nothing.
                self._control.send(b"".join(_set_mark(one.key, 0, marks.mask, _REQUEST) for one in batch))
                cleared += len(batch)
        return cleared


def _open() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        sock.bind((0, 0))
        sock.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE
    except OSError as error:
        raise KernelError(f"conntrack cannot be reached ({error.strerror}): it takes root") from error
    return sock


def _message(kind: int, flags: int, family: int, attributes: bytes) -> bytes:
    body = struct.pack("=BBH", family, 0, 0) + attributes
    return _header.pack(16 + len(body), _CTNETLINK | kind, flags, 0, 0) + body


def _attr(kind: int, value: bytes) -> bytes:
    return _attribute.pack(4 + len(value), kind) + value + bytes(-len(value) % 4)


def _u32(kind: int, value: int) -> bytes:
    return _attr(kind, _be32.pack(value))


def _set_mark(key: bytes, value: int, mask: int, flags: int) -> bytes:
    attributes = _identity(key) + _u32(_MARK, value) + _u32(_MARK_MASK, mask)
    return _message(_NEW, flags, _family(key), attributes)


def _family(key: bytes) -> int:
    return socket.AF_INET6 if len(key) > HEAD_LENGTH + 12 else socket.AF_INET


def _identity(key: bytes) -> bytes:
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


def _refusals(data: bytes) -> Iterator[int]:
    """Error codes in a read."""
    at = 0
    while at + 20 <= len(data):
        length, kind, _, _, _ = _header.unpack_from(data, at)
        if kind == _NLMSG_ERROR:
            yield -struct.unpack_from("=i", data, at + 16)[0]
        at += max(16, length + 3 & ~3)


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
        (8, _MARK),
    )
)
"""Heads of the attributes as they nearly always are."""
_THIRD = 20 + 2 * _ip4_with_ports.size


class _Reader:
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
            if kind in (_NLMSG_ERROR, _NLMSG_DONE):
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
            elif name == _MARK:
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
