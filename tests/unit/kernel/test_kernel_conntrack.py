"""What ctnetlink says of connections, read from messages as the kernel packs them."""

from __future__ import annotations

import random
import select
import socket
import struct
import threading

import pytest

from nedge.kernel import conntrack, ctnetlink
from nedge.kernel.conntrack import Conntrack
from nedge.kernel.ctnetlink import Connection

# linux/netfilter/nfnetlink_conntrack.h
TUPLE_ORIG, TUPLE_REPLY, STATUS, MARK, COUNTERS_ORIG, COUNTERS_REPLY, ID, ZONE, TIMEOUT = (
    1,
    2,
    3,
    8,
    9,
    10,
    12,
    18,
    7,
)
IP, PROTO = 1, 2
NEW, DESTROY = 0, 2
DONE, ERROR = 3, 2
NESTED = 0x8000
TCP, UDP, ICMP, GRE, SCTP = 6, 17, 1, 47, 132


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def nest(kind: int, *attributes: bytes) -> bytes:
    return attribute(kind | NESTED, b"".join(attributes))


def number(value: int, size: str = "I") -> bytes:
    return struct.pack(f"!{size}", value)


def ends(kind: int, proto: int, source: str, target: str, ports: tuple[int, int] | None) -> bytes:
    v6 = ":" in source
    family, first = (socket.AF_INET6, 3) if v6 else (socket.AF_INET, 1)
    addresses = [
        attribute(first + n, socket.inet_pton(family, address)) for n, address in enumerate((source, target))
    ]
    l4 = [attribute(1, bytes([proto]))]
    if ports:
        l4 += [attribute(2 + n, number(port, "H")) for n, port in enumerate(ports)]
    elif proto == ICMP:  # id, type, code
        l4 += [attribute(4, number(7, "H")), attribute(5, b"\x08"), attribute(6, b"\x00")]
    return nest(kind, nest(IP, *addresses), nest(PROTO, *l4))


def counters(kind: int, packets: int, size: int, *, padded: bool = False) -> bytes:
    pad = attribute(3, b"") if padded else b""  # where 64-bit numbers have to be aligned
    return nest(kind, pad, attribute(1, number(packets, "Q")), pad, attribute(2, number(size, "Q")))


def message(*attributes: bytes, kind: int = 1 << 8 | DESTROY) -> bytes:
    body = struct.pack("=BBH", socket.AF_INET, 0, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def connection(
    proto: int = TCP,
    source: str = "192.0.2.1",
    target: str = "198.51.100.2",
    ports: tuple[int, int] | None = (4711, 80),
    *more: bytes,
    padded: bool = False,
) -> bytes:
    return message(
        ends(TUPLE_ORIG, proto, source, target, ports),
        ends(TUPLE_REPLY, proto, target, source, ports and ports[::-1]),
        *more,
        attribute(ID, number(99)),
        attribute(STATUS, number(0x18E)),
        counters(COUNTERS_ORIG, 5, 700, padded=padded),
        counters(COUNTERS_REPLY, 4, 80_000_000_000, padded=padded),
        attribute(MARK, number(0xD0000001)),
    )


class Given(Conntrack):
    """A handle whose sockets give what a test says."""

    def __init__(self, *datagrams: bytes) -> None:
        given = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(3)]
        sockets = iter([ours for ours, _ in given])
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(conntrack, "_open", lambda: next(sockets))
            patch.setattr(conntrack, "_SOL_NETLINK", socket.SOL_SOCKET)
            patch.setattr(conntrack, "_ADD_MEMBERSHIP", socket.SO_KEEPALIVE)
            super().__init__()
        self._theirs = [theirs for _, theirs in given]
        for datagram in datagrams:
            for theirs in self._theirs[1:]:
                theirs.send(datagram)

    def __enter__(self) -> Given:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
        for theirs in self._theirs:
            theirs.close()

    def dump(self) -> list[list[Connection]]:
        """The parts of a dump, to its end."""
        parts = []
        assert self.start_dump(1, 1)
        while self.dumping:
            assert select.select([self.dump_fileno], [], [], 10)[0], "nothing comes any more"
            parts.append(self.dumped())
        return parts


def read(*datagrams: bytes) -> list[Connection]:
    with Given(*datagrams) as given:
        return given.ended()


def key(vlan: int, proto: int, source: str, target: str, ports: tuple[int, int]) -> bytes:
    family = socket.AF_INET6 if ":" in source else socket.AF_INET
    addresses = socket.inet_pton(family, source) + socket.inet_pton(family, target)
    return struct.pack("!HB", vlan, proto) + addresses + struct.pack("!HH", *ports)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("proto", "source", "target", "ports"),
    [
        (TCP, "192.0.2.1", "198.51.100.2", (4711, 80)),
        (UDP, "192.0.2.1", "198.51.100.2", (65535, 53)),
        (SCTP, "192.0.2.1", "198.51.100.2", (1, 2)),
        (TCP, "2001:db8::1", "2001:db8::2", (4711, 443)),
        (UDP, "2001:db8::1", "2001:db8::2", (4711, 443)),
    ],
)
def test_a_connection(proto: int, source: str, target: str, ports: tuple[int, int], padded: bool) -> None:
    expected = Connection(
        key(0, proto, source, target, ports), 0xD0000001, 5, 700, 4, 80_000_000_000, gone=True
    )
    assert read(connection(proto, source, target, ports, padded=padded)) == [expected]


@pytest.mark.parametrize(("proto", "ports"), [(ICMP, None), (GRE, (1, 2)), (GRE, None), (50, None)])
def test_protocols_that_have_no_ports_for_us(proto: int, ports: tuple[int, int] | None) -> None:
    (found,) = read(connection(proto, ports=ports))
    assert found.key == key(0, proto, "192.0.2.1", "198.51.100.2", (0, 0))
    assert (found.packets, found.bytes_back) == (5, 80_000_000_000)


def test_messages_that_differ_from_the_one_before() -> None:
    """Whatever the order they come in, each is read for itself."""
    made = [
        connection(ports=(1, 80)),
        connection(ports=(2, 80)),
        connection(TCP, "192.0.2.1", "198.51.100.2", (3, 80), attribute(ZONE, number(300, "H"))),
        connection(TCP, "2001:db8::1", "2001:db8::2", (4, 443)),
        connection(ports=(5, 80), padded=True),
        message(ends(TUPLE_ORIG, TCP, "192.0.2.1", "198.51.100.2", (6, 80)), attribute(MARK, number(7))),
        message(ends(TUPLE_ORIG, TCP, "192.0.2.1", "198.51.100.2", (7, 80)), attribute(ID, number(7))),
        connection(GRE, ports=(8, 8)),
        connection(ICMP, ports=None),
        # As long as those with a zone, and everything in the same place.
        connection(TCP, "192.0.2.1", "198.51.100.2", (9, 80), attribute(TIMEOUT, number(300))),
    ]
    alone = [read(datagram)[0] for datagram in made]
    generator = random.Random(1)
    for _ in range(200):
        order = [generator.randrange(len(made)) for _ in range(12)]
        assert read(*(made[number] for number in order)) == [alone[number] for number in order]
        assert read(b"".join(made[number] for number in order)) == [alone[number] for number in order]


def test_a_zone_is_a_vlan() -> None:
    (found,) = read(
        connection(TCP, "192.0.2.1", "198.51.100.2", (4711, 80), attribute(ZONE, number(300, "H")))
    )
    assert found.key == key(300, TCP, "192.0.2.1", "198.51.100.2", (4711, 80))


def test_without_accounting_counters_are_zero() -> None:
    plain = message(ends(TUPLE_ORIG, TCP, "192.0.2.1", "198.51.100.2", (4711, 80)))
    (found,) = read(plain)
    assert found[1:] == (0, 0, 0, 0, 0, True)


def test_several_messages_in_one_datagram_and_several_datagrams() -> None:
    one, two, three = (connection(ports=(port, 80)) for port in (1, 2, 3))
    assert [found.key[-4:-2] for found in read(one + two, three)] == [b"\0\1", b"\0\2", b"\0\3"]


def test_packets_do_not_wait_for_all_ends_that_are_there() -> None:
    count = 40
    with Given(*(connection(ports=(port, 80)) for port in range(count))) as given:
        parts = []
        while part := given.ended():
            parts.append(len(part))
    assert sum(parts) == count
    assert len(parts) > 1


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"\x03\0\0\0" + bytes(16)])
def test_what_is_no_message_is_passed_over(damage: bytes) -> None:
    assert read(damage or b"\xff") == []


def test_attributes_without_a_length_end_the_message() -> None:
    assert read(message(bytes(8), ends(TUPLE_ORIG, TCP, "192.0.2.1", "198.51.100.2", (1, 2)))) == []


END = message(kind=DONE)


def test_a_dump() -> None:
    with Given(connection() + connection(ports=(5, 80)), connection(ports=(6, 80)), END) as given:
        assert [[found.key[-3] for found in part] for part in given.dump()] == [[0x67, 5], [6], []]
        assert not given.dump_failed
        (request,) = (given._theirs[2].recv(1000),)
        assert struct.unpack_from("=IHH", request) == (len(request), 1 << 8 | 1, 0x301)


def test_a_dump_ends_within_a_part() -> None:
    with Given(connection() + END) as given:
        assert [len(part) for part in given.dump()] == [1]


def test_a_dump_of_more_parts_than_are_read_ahead() -> None:
    with Given(*[connection()] * 40, END) as given:
        assert [len(part) for part in given.dump()] == [1] * 40 + [0]
        for theirs in given._theirs[1:]:
            theirs.send(END)
        assert given.dump() == [[]]


@pytest.mark.parametrize("ends", [[message(kind=ERROR)], [connection(), message(kind=ERROR)]])
def test_a_dump_fails(ends: list[bytes]) -> None:
    with Given(*ends) as given:
        given.dump()
        assert given.dump_failed


def test_a_dump_that_breaks_off_fails() -> None:
    with Given(connection()) as given:
        given._dumps.settimeout(0.1)
        broken = given._dumps
        assert [len(part) for part in given.dump()] == [1, 0]
        assert (given.dump_failed, given.failed_dumps) == (True, 1)
        assert given._dumps is not broken, "the rest of it is not taken for a part of the next"


def test_a_dump_that_cannot_be_made_is_made_later(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with Given(connection(), END) as given:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none_left)
            assert not given.start_dump(1, 1)
        assert (given.dumping, given.failed_dumps) == (False, 1)
        assert [len(part) for part in given.dump()][-1:] == [0]
        assert given.failed_dumps == 1


def test_nothing_of_a_dump_is_there_yet() -> None:
    with Given() as given:
        assert given.dumped() == []
        assert given.start_dump(1, 1)
        assert not given.start_dump(1, 1)
        assert given.dumped() == []
        assert given.dumping
        given._theirs[2].send(END)
        assert select.select([given.dump_fileno], [], [], 10)[0]
        assert given.dumped() == []
        assert not given.dumping


def test_reading_gives_back_what_is_written() -> None:
    """The tuples that marks are set by are those that are read."""
    for made in (
        key(0, TCP, "192.0.2.1", "198.51.100.2", (4711, 80)),
        key(12, UDP, "2001:db8::1", "2001:db8::2", (4711, 53)),
    ):
        (found,) = read(ctnetlink.set_mark(made, 0x30000000, 0xF0000000, 1))
        assert (found.key, found.mark) == (made, 0x30000000)


def test_closing_does_not_wait_for_a_dump_that_nobody_takes() -> None:
    with Given(*[connection()] * 40) as given:
        given._dumps.settimeout(0.1)
        assert given.start_dump(1, 1)
        assert select.select([given.dump_fileno], [], [], 10)[0]
        reader = given._reader
    assert reader is not None
    assert not reader.is_alive()
