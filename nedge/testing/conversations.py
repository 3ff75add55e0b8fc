"""TCP connections and exchanges of datagrams, written down step by step; and what is said in them.

session = Tcp(dport=80).handshake().client(http_request("example.com")).server(http_response()).fin()
script.judge(session.packets)
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

from nedge.testing.packets import (
    ACK,
    CLIENT,
    FIN,
    PSH,
    RST,
    SERVER,
    SYN,
    T0,
    Packet,
    tcp_segment,
    udp_datagram,
)

MSS = 1400
_CLIENT_ISN, _SERVER_ISN = 1_000, 5_000_000


@dataclass
class Tcp:
    """A TCP connection, written down step by step; each step takes `gap` seconds."""

    client_ip: str = CLIENT
    server_ip: str = SERVER
    sport: int = 40000
    dport: int = 443
    start: float = T0
    gap: float = 0.01
    vlan: int = 0
    packets: list[Packet] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = self.start
        self._seq = {"c": _CLIENT_ISN, "s": _SERVER_ISN}

    def handshake(self) -> Self:
        """SYN, SYN+ACK, ACK."""
        return self.segment("c", SYN).segment("s", SYN | ACK).segment("c", ACK)

    def client(self, data: bytes, size: int = MSS) -> Self:
        """The client sends data, in segments of `size`."""
        return self._send("c", data, size)

    def server(self, data: bytes, size: int = MSS) -> Self:
        """The server sends data, in segments of `size`."""
        return self._send("s", data, size)

    def turns(self, turns: Iterable[tuple[str, bytes]], size: int = MSS) -> Self:
        """What both sides say: ("c" or "s", data) each."""
        for side, data in turns:
            self._send(side, data, size)
        return self

    def fin(self) -> Self:
        """An orderly end, begun by the client."""
        return self.segment("c", FIN | ACK).segment("s", FIN | ACK).segment("c", ACK)

    def rst(self, side: str = "c") -> Self:
        """A reset."""
        return self.segment(side, RST | ACK)

    def wait(self, seconds: float) -> Self:
        """Nothing happens for a while."""
        self.now += seconds
        return self

    def segment(self, side: str, flags: int, payload: bytes = b"") -> Self:
        """One segment, whatever it is."""
        seq, ack = self._seq[side], self._seq["s" if side == "c" else "c"]
        first, second = (self.client_ip, self.sport), (self.server_ip, self.dport)
        source, target = (first, second) if side == "c" else (second, first)
        data = tcp_segment(
            source[0],
            target[0],
            source[1],
            target[1],
            seq=seq,
            ack=ack if flags & ACK else 0,
            flags=flags,
            payload=payload,
        )
        self.packets.append(Packet(self.now, data, self.vlan))
        self.now += self.gap
        self._seq[side] = (seq + len(payload) + bool(flags & (SYN | FIN))) & 0xFFFFFFFF
        return self

    def _send(self, side: str, data: bytes, size: int) -> Self:
        for start in range(0, len(data), size):
            self.segment(side, PSH | ACK, data[start : start + size])
        return self


@dataclass
class Udp:
    """Datagrams between two endpoints, written down step by step; each step takes `gap` seconds."""

    client_ip: str = CLIENT
    server_ip: str = SERVER
    sport: int = 40000
    dport: int = 53
    start: float = T0
    gap: float = 0.01
    vlan: int = 0
    packets: list[Packet] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.now = self.start

    def client(self, data: bytes) -> Self:
        """The client sends a datagram."""
        return self._add(udp_datagram(self.client_ip, self.server_ip, self.sport, self.dport, data))

    def server(self, data: bytes) -> Self:
        """The server sends a datagram."""
        return self._add(udp_datagram(self.server_ip, self.client_ip, self.dport, self.sport, data))

    def wait(self, seconds: float) -> Self:
        """Nothing happens for a while."""
        self.now += seconds
        return self

    def _add(self, data: bytes) -> Self:
        self.packets.append(Packet(self.now, data, self.vlan))
        self.now += self.gap
        return self


# HTTP, DNS, SSH


def http_request(host: str, path: str = "/", method: str = "GET", body: bytes = b"") -> bytes:
    """A request of a browser."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: Mozilla/5.0 (X11; Linux)\r\nAccept: */*\r\n"
    )
    if body:
        head += f"Content-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def http_response(body: bytes = b"ok", code: int = 200) -> bytes:
    """An answer of a web server."""
    head = f"HTTP/1.1 {code} OK\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def dns_query(name: str | Sequence[bytes], kind: int = 1, number: int = 0x1234) -> bytes:
    """A query's payload; a name of labels in bytes may hold anything."""
    return struct.pack("!HHHHHH", number, 0x0100, 1, 0, 0, 0) + _labels(name) + struct.pack("!HH", kind, 1)


def dns_answer(
    name: str | Sequence[bytes], address: str = SERVER, number: int = 0x1234, code: int = 0
) -> bytes:
    """The answer to that query: one address, or an error code."""
    packed = ipaddress.ip_address(address).packed
    kind = 1 if len(packed) == 4 else 28
    record = b"" if code else b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 60, len(packed)) + packed
    head = struct.pack("!HHHHHH", number, 0x8180 | code, 1, 1 if record else 0, 0, 0)
    return head + _labels(name) + struct.pack("!HH", kind, 1) + record


def _labels(name: str | Sequence[bytes]) -> bytes:
    parts = name.encode().split(b".") if isinstance(name, str) else name
    return b"".join(bytes([len(part)]) + part for part in parts) + b"\0"


def dns(
    *names: str, sport: int = 40000, start: float = T0, client: str = CLIENT, server: str = SERVER
) -> Udp:
    """Queries on one 5-tuple, each answered."""
    talk = Udp(client, server, sport, 53, start)
    for number, name in enumerate(names):
        talk.client(dns_query(name, number=number)).server(dns_answer(name, number=number))
    return talk


def ssh_turns() -> list[tuple[str, bytes]]:
    """Banners, and the key exchange offers of both sides."""

    def kexinit() -> bytes:
        lists = [b"curve25519-sha256", b"ssh-ed25519", b"aes128-ctr", b"aes128-ctr", b"hmac-sha2-256"]
        lists += [b"hmac-sha2-256", b"none", b"none", b"", b""]
        payload = b"\x14" + bytes(16) + b"".join(struct.pack("!I", len(x)) + x for x in lists) + bytes(5)
        padding = 8 - (5 + len(payload)) % 8 + 4
        return struct.pack("!IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)

    client, server = b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"
    return [("c", client), ("s", server), ("c", kexinit()), ("s", kexinit())]
