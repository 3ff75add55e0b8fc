"""A blocked name is found however its client sends it, with the real nDPI. Servers understand all of it.

For each way, the same with another name passes: what blocks is the name.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from kit import (
    ACK,
    PSH,
    SYN,
    Packet,
    Tcp,
    Udp,
    client_hello,
    dns_query,
    http_request,
    http_response,
    judge,
    quic_initial,
    require_library,
)

TOML = '[scripts.blocked_hostname]\ndomains = ["bad.example"]\n'


def connection(dport: int = 80) -> Tcp:
    return Tcp(dport=dport).handshake()


def tcp_query(name: str) -> bytes:
    message = dns_query(name)
    return len(message).to_bytes(2) + message


def split(data: bytes, at: int, dport: int = 80) -> Tcp:
    return connection(dport).client(data[:at]).client(data[at:])


def swapped(talk: Tcp, count: int = 2) -> Tcp:
    """The last segments come in reverse order."""
    times = [packet.time for packet in talk.packets[-count:]]
    last = talk.packets[: -count - 1 : -1]
    talk.packets[-count:] = [packet._replace(time=time) for packet, time in zip(last, times, strict=True)]
    return talk


def second(first: bytes, name: str, between: Callable[[Tcp], object] = lambda talk: None) -> Tcp:
    """A harmless request, its answer, perhaps something else, and the request."""
    talk = connection().client(first).server(http_response())
    between(talk)
    return talk.client(http_request(name))


def stray(flags: int, ahead: int) -> Callable[[Tcp], object]:
    """A segment without payload; the server ignores what is outside its window (RFC 9293, 3.10.7.4)."""

    def send(talk: Tcp) -> None:
        at = talk._seq["c"]
        talk._seq["c"] = (at + ahead) & 0xFFFFFFFF
        talk.segment("c", flags)
        talk._seq["c"] = at

    return send


def nowhere(talk: Tcp) -> None:
    """Segments with a payload that no server takes: they are 2^30 bytes ahead."""
    at = talk._seq["c"]
    for number in range(20):
        talk._seq["c"] = (at + 2**30 + 10 * number) & 0xFFFFFFFF
        talk.segment("c", PSH | ACK, b"nothing")
    talk._seq["c"] = at


def old(talk: Tcp, data: bytes, rest: bytes = b"", *, syn: int | None = None) -> Tcp:
    """A segment whose first part, `data`, stands before the start. `syn`: behind a SYN so far ahead."""
    if syn is not None:
        stray(SYN, syn)(talk)
    talk._seq["c"] = (talk._seq["c"] - len(data)) & 0xFFFFFFFF
    talk.segment("c", PSH | ACK, data + rest)
    return talk


def overlapping(dport: int, data: bytes, parts: Sequence[tuple[int, int]]) -> Tcp:
    """Parts of the data, and then all of them."""
    talk = connection(dport)
    start = talk._seq["c"]
    for begin, end in [*parts, (0, len(data))]:
        talk._seq["c"] = start + begin
        talk.segment("c", PSH | ACK, data[begin:end])
    return talk


GOOD = http_request("good.example")


def good(headers: str) -> bytes:
    return GOOD[:-2] + headers.encode() + b"\r\n\r\n"


WAYS: dict[str, Callable[[str], Tcp]] = {
    "plain": lambda name: connection().client(http_request(name)),
    "byte by byte": lambda name: connection().client(http_request(name), size=1),
    "five bytes each": lambda name: connection().client(http_request(name), size=5),
    **{f"split at {at}": lambda name, at=at: split(http_request(name), at) for at in (1, 2, 3, 4, 15, 20)},
    **{
        f"split at {at}, swapped": lambda name, at=at: swapped(split(http_request(name), at))
        for at in (1, 3, 4, 15, 20, 25)
    },
    "empty line first": lambda name: connection().client(b"\r\n" + http_request(name)),  # RFC 9112, 2.2
    "empty line in its own segment": lambda name: connection().client(b"\r\n").client(http_request(name)),
    **{
        f"{count} empty lines in their own segment": lambda name, count=count: connection()
        .client(b"\r\n" * count)
        .client(http_request(name))
        for count in (10, 40, 80)
    },
    "bare LF": lambda name: connection().client(http_request(name).replace(b"\r\n", b"\n")),
    "a method nobody knows": lambda name: connection().client(http_request(name, method="FROB")),
    "absolute form": lambda name: connection().client(http_request("good.example", f"http://{name}/")),
    "Host, and another in absolute form": lambda name: connection().client(
        http_request(name, "http://good.example/")
    ),
    "absolute form without a name": lambda name: connection().client(http_request(name, "http:///x")),
    "Host on the next line": lambda name: connection().client(
        http_request(name).replace(b"Host: ", b"Host:\r\n ")
    ),
    "Host behind an empty one": lambda name: connection().client(
        http_request(name).replace(b"Host: ", b"Host:\r\nHost: ")
    ),
    "second, behind two codings": lambda name: second(
        good("Content-Length: 9999\r\nTransfer-Encoding: identity\r\nTransfer-Encoding: chunked")
        + b"0\r\n\r\n",
        name,
    ),
    "two spaces, second": lambda name: connection()
    .client(GOOD)
    .client(http_request(name).replace(b" / ", b"  /  ")),
    "port 8080": lambda name: connection(8080).client(http_request(name)),
    "port 8080, second": lambda name: connection(8080).client(GOOD).client(http_request(name)),
    "port 3128, absolute form, second": lambda name: connection(3128)
    .client(http_request("good.example", "http://good.example/"))
    .client(http_request("good.example", f"http://{name}/")),
    "second": lambda name: second(GOOD, name),
    "pipelined": lambda name: connection().client(GOOD + http_request(name)),
    "second, behind a stray ACK": lambda name: second(GOOD, name, stray(ACK, 5000)),
    "second, behind a keep-alive": lambda name: second(GOOD, name, stray(ACK, -1)),
    "second, behind a SYN again": lambda name: second(GOOD, name, stray(SYN, -len(GOOD) - 1)),
    "second, behind a stray SYN": lambda name: second(GOOD, name, stray(SYN, 7000)),
    # Data outside the window of the server
    "second, behind segments from nowhere": lambda name: second(GOOD, name, nowhere),
    "pipelined behind an Upgrade": lambda name: connection().client(good("Upgrade: x") + http_request(name)),
    "second, behind an Upgrade": lambda name: second(good("Upgrade: x"), name),
    "second, behind many zeros": lambda name: second(good("Content-Length: " + "0" * 5000), name),
    "DNS over TCP": lambda name: connection(53).client(tcp_query(name)),
    **{f"DNS split at {at}": lambda name, at=at: split(tcp_query(name), at, 53) for at in (1, 2, 3, 14, 20)},
    **{
        f"DNS split at {at}, swapped": lambda name, at=at: swapped(split(tcp_query(name), at, 53))
        for at in (1, 2, 3, 14, 20)
    },
    "DNS, second": lambda name: connection(53).client(tcp_query("good.example")).client(tcp_query(name)),
    **{f"TLS split at {at}": lambda name, at=at: split(client_hello(name), at, 443) for at in (1, 5, 43)},
    # Bytes before the start of the stream, which the server throws away
    **{
        f"{size} old bytes first{', ' + after if after else ''}": lambda name, size=size, syn=syn: old(
            connection(), b"x" * size, syn=syn
        ).client(http_request(name))
        for size in (1, 40)
        for after, syn in (("", None), ("behind a stray SYN", 7000), ("behind an old SYN", -7000))
    },
    "an old greeting first": lambda name: old(connection(), b"SSH-2.0-x\r\n").client(http_request(name)),
    "an old request first": lambda name: old(connection(), GOOD).client(http_request(name)),
    "old bytes in front": lambda name: old(connection(), GOOD, http_request(name)),
    **{
        f"TLS, {size} old bytes first": lambda name, size=size: old(connection(443), b"x" * size)
        .client(client_hello(name))
        for size in (1, 40)
    },
    "TLS, an old hello first": lambda name: old(connection(443), client_hello("good.example"))
    .client(client_hello(name)),
    "TLS, an old hello in front": lambda name: old(
        connection(443), client_hello("good.example"), client_hello(name)
    ),
    # Bytes that come twice, the second time with more behind them
    **{
        f"TLS, {at} bytes and then all": lambda name, at=at: overlapping(443, client_hello(name), [(0, at)])
        for at in (1, 5, 9, 43, 60)
    },
    "TLS, from the middle and then all": lambda name: overlapping(443, client_hello(name), [(9, 40)]),
    "TLS, growing": lambda name: overlapping(443, client_hello(name), [(0, 5), (0, 20), (0, 60)]),
    "TLS, overlapping": lambda name: overlapping(443, client_hello(name), [(20, 60), (0, 30)]),
    **{
        f"{at} bytes and then all": lambda name, at=at: overlapping(80, http_request(name), [(0, at)])
        for at in (1, 3, 20)
    },
    "TLS reversed": lambda name: swapped(connection(443).client(client_hello(name), 100), 4),
}  # fmt: skip


def in_order_of_time(packets: list[Packet]) -> bool:
    return all(first.time <= after.time for first, after in pairwise(packets))


@pytest.mark.parametrize("library", ["system", "nfstream"])
@pytest.mark.parametrize("way", WAYS)
def test_blocked_name_is_found(way: str, library: str) -> None:
    require_library(library)
    for name, verdict in (("bad.example", "drop"), ("fine.example", "pass")):
        talk = WAYS[way](name)
        assert in_order_of_time(talk.packets)
        judged = judge(talk.packets, TOML, ["blocked_hostname"], library)
        assert (name, [judged.actions[-1].label, judged.verdict]) == (name, [verdict, verdict])


def udp_datagram(payload: bytes, time: float) -> Packet:
    talk = Udp(dport=443, start=time).client(payload)
    return talk.packets[0]


@pytest.mark.parametrize("library", ["system", "nfstream"])
@pytest.mark.parametrize("decoy", ["another connection", "junk", "NTP"])
def test_a_quic_client_that_tries_again_is_judged_again(decoy: str, library: str) -> None:
    """Its server may never have got the first."""
    require_library(library)
    for name, verdict in (("bad.example", "drop"), ("fine.example", "pass")):
        real = quic_initial(name)
        first = {
            "another connection": quic_initial("good.example"),
            "junk": [real[0]._replace(data=udp_datagram(bytes(60), 0).data)],
            "NTP": [real[0]._replace(data=udp_datagram(b"\x23" + bytes(47), 0).data)],
        }[decoy]
        packets = [*first, *(packet._replace(time=packet.time + 1) for packet in real)]
        ports = {packet.data[20:24] for packet in packets}
        assert len(ports) == 1, ports
        judged = judge(packets, TOML, ["blocked_hostname"], library)
        assert judged.actions[-1].label == verdict


@pytest.mark.parametrize("flags", [PSH | ACK])
def test_the_ways_carry_the_name(flags: int) -> None:
    """What the client sends, put together, has the name."""
    for way, build in WAYS.items():
        if "reversed" in way:
            continue
        talk = build("bad.example")
        sent: dict[int, int] = {}
        for packet in talk.packets:
            if packet.data[20:22] == (40000).to_bytes(2):
                payload = packet.data[20 + (packet.data[32] >> 4) * 4 :]
                seq = int.from_bytes(packet.data[24:28])
                sent |= {seq + at: byte for at, byte in enumerate(payload)}
        assert re.search(rb"bad(\.|\x07)example", bytes(sent[seq] for seq in sorted(sent))), way
