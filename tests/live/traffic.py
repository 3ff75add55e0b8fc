"""Traffic for the live tests: clients that say exactly what goes into which packet, and small servers.

Imported by the tests, and run in the lab's namespaces: `python traffic.py exchange`, `serve` and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import selectors
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from nedge.lab.host import Host
from nedge.lab.topology import CLIENT_MAC, SERVER_MAC

PATIENCE = 10.0
"""Seconds that an answer which must come may take, on a busy machine."""
SHORT = 0.8
"""Seconds to wait for an answer that must not come: enough for two retransmissions."""


# What clients say


@dataclass
class Step:
    """One request: each of `writes` is a packet of its own, then the first answer is waited for."""

    writes: list[bytes]
    answered: bool = True
    """Whether an answer is expected; only says how long to wait for it."""
    answers: int = 1
    """How many to wait for."""


@dataclass
class Exchange:
    """One socket and what goes over it. `run()` plays many of them at once."""

    proto: str
    """tcp or udp."""
    address: str
    port: int
    steps: list[Step]


@dataclass
class Outcome:
    """What came of an exchange."""

    port: int
    """Ours."""
    answers: list[list[bytes]] = field(default_factory=list)
    """Of each step; fewer steps than asked for, where the connection ended."""
    error: str = ""

    @property
    def answered(self) -> list[bool]:
        return [bool(answers) for answers in self.answers]


def run(client: Host, *exchanges: Exchange) -> list[Outcome]:
    """Play exchanges in the client's namespace, all at the same time."""
    told = json.dumps([asdict(exchange) for exchange in exchanges], default=bytes.hex)
    seconds = 5 + max(sum(_patience(step) for step in exchange.steps) for exchange in exchanges)
    done = client.run([sys.executable, __file__, "exchange"], input=told, timeout=seconds + PATIENCE)
    assert done.returncode == 0, done.stderr
    return [_outcome(outcome) for outcome in json.loads(done.stdout)]


def _outcome(told: dict[str, Any]) -> Outcome:
    answers = [[bytes.fromhex(answer) for answer in step] for step in told["answers"]]
    return Outcome(told["port"], answers, told["error"])


def _patience(step: Step) -> float:
    return PATIENCE if step.answered else SHORT


def _play(exchange: Exchange) -> Outcome:
    kind = socket.SOCK_STREAM if exchange.proto == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in exchange.address else socket.AF_INET
    with socket.socket(family, kind) as sock:
        outcome = Outcome(0)
        try:
            sock.settimeout(PATIENCE)
            sock.connect((exchange.address, exchange.port))
            outcome.port = sock.getsockname()[1]
            if kind == socket.SOCK_STREAM:
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for step in exchange.steps:
                outcome.answers.append([])
                for write in step.writes:
                    sock.sendall(write)
                _collect(sock, step, outcome.answers[-1])
        except OSError as error:
            outcome.error = repr(error)
    return outcome


def _collect(sock: socket.socket, step: Step, answers: list[bytes]) -> None:
    deadline = time.monotonic() + _patience(step)
    while len(answers) < step.answers and (left := deadline - time.monotonic()) > 0:
        sock.settimeout(left)
        try:
            data = sock.recv(65536)
        except TimeoutError:
            return
        if not data:
            raise ConnectionError("closed by the server")
        answers.append(data)


def dns_query(name: str, record: str = "A", number: int = 1) -> bytes:
    """A query as a stub resolver sends it."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    kinds = {"A": 1, "TXT": 16, "AAAA": 28}
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, kinds[record], 1)


def over_tcp(message: bytes) -> bytes:
    """A DNS message with its length in front."""
    return struct.pack(">H", len(message)) + message


def http_get(host: str, path: str = "/") -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: test\r\nAccept: */*\r\n\r\n".encode()


def client_hello(name: str) -> bytes:
    """What OpenSSL says first."""
    context = ssl.create_default_context()
    outgoing = ssl.MemoryBIO()
    connection = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        connection.do_handshake()
    return outgoing.read()


_SERVER_NAME, _SUPPORTED_GROUPS, _KEY_SHARE = 0, 10, 51
_X25519_MLKEM768 = 4588


def post_quantum_hello(name: str) -> bytes:
    """The same with a key share of X25519MLKEM768 (1216 bytes) first, and the name last: two segments.

    A server that does not know this group takes the X25519 share behind it.
    """
    hello = client_hello(name)
    start, extensions = _extensions(hello)
    share = struct.pack(">HH", _X25519_MLKEM768, 1216) + bytes(range(256)) * 4 + bytes(192)
    extensions[_KEY_SHARE] = _listed(share + extensions[_KEY_SHARE][2:])
    extensions[_SUPPORTED_GROUPS] = _listed(
        struct.pack(">H", _X25519_MLKEM768) + extensions[_SUPPORTED_GROUPS][2:]
    )
    extensions[_SERVER_NAME] = extensions.pop(_SERVER_NAME)
    body = b"".join(struct.pack(">HH", kind, len(data)) + data for kind, data in extensions.items())
    message = hello[9:start] + _listed(body)
    return hello[:3] + _listed(hello[5:6] + len(message).to_bytes(3) + message)


def _listed(data: bytes) -> bytes:
    return struct.pack(">H", len(data)) + data


def _extensions(hello: bytes) -> tuple[int, dict[int, bytes]]:
    """Where the extensions of a ClientHello start, and they (RFC 8446, 4.1.2)."""
    at = 9 + 2 + 32
    at += 1 + hello[at]
    at += 2 + int.from_bytes(hello[at : at + 2])
    at += 1 + hello[at]
    start = at
    at += 2
    found = {}
    while at < len(hello):
        kind, length = struct.unpack_from(">HH", hello, at)
        found[kind] = hello[at + 4 : at + 4 + length]
        at += 4 + length
    return start, found


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


# Segments of our own making: a TCP client on a packet socket, from an address that the kernel has not


class Segment(NamedTuple):
    """A client's segment."""

    at: int
    """Where in the stream its data belong; 0: right behind the SYN."""
    data: bytes
    kind: Literal[
        "plain", "md5", "checksum", "no ack", "urgent", "syn", "md5 syn", "rst", "fin", "reverse syn", "wait"
    ] = "plain"
    """What is odd about it. A server takes none with an MD5 signature (RFC 2385) that it did not ask for, nor
    with a wrong checksum or without an ACK. Of urgent data, the last byte is not among what it reads. A SYN
    has the number before `at`; a reverse one is sent in the server's name. To wait is no segment: for `at`
    seconds."""


def reversed_segments(parts: Sequence[bytes]) -> list[Segment]:
    """The parts of a stream, the last first."""
    ends = list(itertools.accumulate(map(len, parts)))
    return [Segment(end - len(part), part) for end, part in zip(ends, parts, strict=True)][::-1]


def run_raw(
    client: Host,
    server: Host,
    source: str,
    target: str,
    port: int,
    segments: Sequence[Segment],
    *,
    answered: bool,
    syn_data: bytes = b"",
    early: Sequence[Segment] = (),
    silence: float = 0.0,
) -> Outcome:
    """Send segments on a connection from `source`. Gives what came back.

    `syn_data`: what the SYN brings. `early`: sent before it. `silence`: seconds after the handshake.
    """
    version = ["-6"] if ":" in source else []
    server.run(
        ["ip", *version, "neigh", "replace", source, "lladdr", CLIENT_MAC, "dev", "eth0"],
        timeout=10,
        check=True,
    )
    told = json.dumps(
        {
            "source": source,
            "target": target,
            "port": port,
            "segments": [(segment.at, segment.data.hex(), segment.kind) for segment in segments],
            "early": [(segment.at, segment.data.hex(), segment.kind) for segment in early],
            "syn_data": syn_data.hex(),
            "silence": silence,
            "seconds": PATIENCE if answered else SHORT,
        }
    )
    patience = 2 * PATIENCE + sum(segment.at for segment in segments if segment.kind == "wait")
    done = client.run([sys.executable, __file__, "raw"], input=told, timeout=patience)
    assert done.returncode == 0, done.stderr
    return _outcome(json.loads(done.stdout))


_FIN, _SYN, _RST, _PSH, _ACK, _URG = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_MD5_OPTION = bytes((19, 18)) + bytes(16) + b"\1\1"


class RawClient:
    """Just enough TCP over AF_PACKET: a handshake, and segments with any sequence number."""

    def __init__(self, source: str, target: str, port: int) -> None:
        self._v6 = ":" in source
        family = socket.AF_INET6 if self._v6 else socket.AF_INET
        self._ends = [socket.inet_pton(family, address) for address in (source, target)]
        self.port = 40000 + time.monotonic_ns() // 1000 % 20000
        self._target_port = port
        self._sequence, self._acknowledged = 100_000, 0
        self.start = self._sequence + 1
        """Number of the first byte of the stream."""
        kind = 0x86DD if self._v6 else 0x0800
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
        self._socket.bind(("eth0", kind))
        macs = (SERVER_MAC, CLIENT_MAC)
        self._ethernet = b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs) + struct.pack(
            ">H", kind
        )

    def connect(self, seconds: float, data: bytes) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._send(_SYN, self._sequence, data)
            flags, sequence, _ = self._receive(min(1.0, max(0.01, deadline - time.monotonic())))
            if flags & (_SYN | _ACK) == _SYN | _ACK:
                break
            if time.monotonic() > deadline:
                raise TimeoutError("no SYN+ACK")
        self._sequence += 1
        self._acknowledged = sequence + 1
        self._send(_ACK, self._sequence)

    def send(self, segment: Segment) -> None:
        at = self.start + segment.at
        match segment.kind:
            case "plain":
                self._send(_ACK | _PSH, at, segment.data)
            case "md5":
                self._send(_ACK | _PSH, at, segment.data, options=_MD5_OPTION)
            case "checksum":
                self._send(_ACK | _PSH, at, segment.data, damage=1)
            case "no ack":
                self._send(_PSH, at, segment.data)
            case "rst":
                self._send(_RST | _ACK, at)
            case "fin":
                self._send(_FIN | _ACK, at)
            case "reverse syn":
                self._turn_round()
                self._send(_SYN, at)
                self._turn_round()
            case "wait":
                time.sleep(segment.at)
            case "urgent":
                self._send(_ACK | _PSH | _URG, at, segment.data, urgent=len(segment.data))
            case "syn":
                self._send(_SYN, at - 1, segment.data)
            case "md5 syn":
                self._send(_SYN, at - 1, segment.data, options=_MD5_OPTION)

    def _turn_round(self) -> None:
        self._ends.reverse()
        self.port, self._target_port = self._target_port, self.port

    def answer(self, seconds: float) -> bytes:
        """The first payload that comes within the time, or nothing."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            flags, _, payload = self._receive(left)
            if payload or flags & (_FIN | _RST):
                return payload
        return b""

    def _send(
        self,
        flags: int,
        sequence: int,
        payload: bytes = b"",
        *,
        options: bytes = b"",
        urgent: int = 0,
        damage: int = 0,
    ) -> None:
        tcp = struct.pack(
            ">HHIIBBHHH",
            self.port,
            self._target_port,
            sequence,
            self._acknowledged if flags & _ACK else 0,
            5 + len(options) // 4 << 4,
            flags,
            65535,
            0,
            urgent,
        )
        tcp += options
        length = len(tcp) + len(payload)
        pseudo = b"".join(self._ends) + struct.pack(">II" if self._v6 else ">HH", *self._pseudo(length))
        checksum = _checksum(pseudo + tcp + payload) ^ damage
        tcp = tcp[:16] + struct.pack(">H", checksum) + tcp[18:]
        if self._v6:
            ip = struct.pack(">IHBB", 6 << 28, length, 6, 64) + b"".join(self._ends)
        else:
            ip = struct.pack(">BBHIBBH", 0x45, 0, 20 + length, 0, 64, 6, 0) + b"".join(self._ends)
            ip = ip[:10] + struct.pack(">H", _checksum(ip)) + ip[12:]
        self._socket.send(self._ethernet + ip + tcp + payload)

    def _pseudo(self, length: int) -> tuple[int, int]:
        return (length, 6) if self._v6 else (6, length)

    def _receive(self, seconds: float) -> tuple[int, int, bytes]:
        """Flags, sequence number and payload of the next segment to us; zeros when the time is over."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                frame = self._socket.recv(65536)
            except TimeoutError:
                break
            packet = frame[14:]
            if self._v6:
                start, proto, target = 40, packet[6], packet[24:40]
                end = 40 + int.from_bytes(packet[4:6])
            else:
                start, proto, target = (packet[0] & 15) * 4, packet[9], packet[16:20]
                end = int.from_bytes(packet[2:4])
            tcp = packet[start:end]
            if proto != 6 or target != self._ends[0] or int.from_bytes(tcp[2:4]) != self.port:
                continue
            return tcp[13], int.from_bytes(tcp[4:8]), tcp[(tcp[12] >> 4) * 4 :]
        return 0, 0, b""


def _checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# What was seen on a wire


@dataclass(frozen=True)
class Seen:
    """A TCP or UDP packet of a capture."""

    proto: str
    source: str
    source_port: int
    target: str
    target_port: int
    sequence: int
    payload: bytes


def packets(capture: Path) -> list[Seen]:
    """TCP and UDP packets of a capture, in order."""
    from scapy.layers.inet import IP, TCP, UDP  # slow to import: only the tests pay, not the clients
    from scapy.layers.inet6 import IPv6
    from scapy.utils import PcapReader

    found = []
    with PcapReader(str(capture)) as reader:
        for packet in reader:
            ip = packet.getlayer(IP) or packet.getlayer(IPv6)
            l4 = ip and (ip.getlayer(TCP) or ip.getlayer(UDP))
            if not l4 or type(ip.payload) not in (TCP, UDP):
                continue
            is_tcp = isinstance(l4, TCP)
            end = ip.len if ip.version == 4 else 40 + ip.plen
            header = (ip.ihl * 4 if ip.version == 4 else 40) + (l4.dataofs * 4 if is_tcp else 8)
            payload = bytes(l4.payload)[: end - header]  # without Ethernet's padding
            proto, sequence = ("tcp", l4.seq) if is_tcp else ("udp", 0)
            found.append(Seen(proto, ip.src, l4.sport, ip.dst, l4.dport, sequence, payload))
    return found


def arrived(seen: Sequence[Seen], port: int) -> bytes:
    """What came from a client's port: all its payload, what was sent again only once."""
    by_sequence = {
        (packet.sequence, packet.payload): packet.payload for packet in seen if packet.source_port == port
    }
    return b"".join(payload for _, payload in sorted(by_sequence.items()))


# Servers of small text and binary protocols: conversations that both sides know


@dataclass(frozen=True)
class Conversation:
    """Who says what on a port. Every message waits for the one before it."""

    proto: str
    port: int
    messages: Sequence[tuple[str, bytes]]
    """`c` or `s`, and what it says."""


def _text(*lines: str) -> list[tuple[str, bytes]]:
    return [(line[0], line[2:].encode() + b"\r\n") for line in lines]


_SIP = """\
sip:{what}
Via: SIP/2.0/UDP client.example:5060;branch=z9hG4bK1
From: <sip:a@lab.example>;tag=1
To: <sip:b@lab.example>
Call-ID: 1@client.example
CSeq: 1 OPTIONS
Content-Length: 0

"""
_SNMP_GET = bytes.fromhex(
    "302902010104067075626c6963a01c02040a0b0c0d020100020100300e300c06082b060102010101000500"
)

CONVERSATIONS = {
    "ftp": Conversation(
        "tcp",
        21,
        _text(
            "s 220 ready",
            "c USER someone",
            "s 331 password required",
            "c PASS nothing",
            "s 230 logged in",
            "c QUIT",
            "s 221 bye",
        ),
    ),
    "smtp": Conversation(
        "tcp",
        25,
        _text(
            "s 220 mail.lab.example ESMTP",
            "c EHLO client.lab.example",
            "s 250-mail.lab.example\r\n250 8BITMIME",
            "c MAIL FROM:<a@lab.example>",
            "s 250 ok",
            "c RCPT TO:<b@lab.example>",
            "s 250 ok",
            "c DATA",
            "s 354 go on",
            "c Subject: hi\r\n\r\nhello\r\n.",
            "s 250 queued",
            "c QUIT",
            "s 221 bye",
        ),
    ),
    "pop3": Conversation(
        "tcp", 110, _text("s +OK ready", "c USER a", "s +OK", "c PASS b", "s +OK", "c QUIT", "s +OK bye")
    ),
    "imap": Conversation(
        "tcp",
        143,
        _text(
            "s * OK IMAP4rev1 ready",
            "c a1 CAPABILITY",
            "s * CAPABILITY IMAP4rev1\r\na1 OK done",
            "c a2 LOGIN a b",
            "s a2 OK done",
            "c a3 LOGOUT",
            "s * BYE\r\na3 OK done",
        ),
    ),
    "redis": Conversation("tcp", 6379, [("c", b"*1\r\n$4\r\nPING\r\n"), ("s", b"+PONG\r\n")]),
    "mqtt": Conversation(
        "tcp",
        1883,
        [("c", bytes.fromhex("101000044d5154540402003c0004") + b"test"), ("s", b"\x20\x02\x00\x00")],
    ),
    "ntp": Conversation("udp", 123, [("c", b"\x23" + bytes(47)), ("s", b"\x24\x02" + bytes(46))]),
    "snmp": Conversation("udp", 161, [("c", _SNMP_GET), ("s", _SNMP_GET.replace(b"\xa0\x1c", b"\xa2\x1c"))]),
    "sip": Conversation(
        "udp",
        5060,
        [
            ("c", f"OPTIONS {_SIP.format(what='b@lab.example SIP/2.0')}".replace("\n", "\r\n").encode()),
            ("s", _SIP.format(what="").replace("sip:", "SIP/2.0 200 OK").replace("\n", "\r\n").encode()),
        ],
    ),
    "mdns": Conversation("udp", 5353, [("c", dns_query("printer.local", number=0))]),
    "syslog": Conversation("udp", 514, [("c", b"<34>Oct 11 22:14:15 client su: 'su root' failed")]),
    "stun": Conversation(
        "udp",
        3478,
        [
            ("c", b"\x00\x01\x00\x00\x21\x12\xa4\x42" + bytes(range(12))),
            (
                "s",
                bytes.fromhex("0101000c2112a442")
                + bytes(range(12))
                + bytes.fromhex("0020000800011122334455 66"),
            ),
        ],
    ),
    "unknown": Conversation("tcp", 40999, [("c", b"\x9c\x01\xfe" * 9), ("s", b"\x81\x90\x05" * 7)] * 3),
}


@contextlib.contextmanager
def serving(server: Host, *arguments: str) -> Iterator[None]:
    """Run one of the servers below until the block ends; it is ready when the block begins."""
    import subprocess

    process = server.popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line == "ready\n", line + process.stdout.read()
        yield
    finally:
        server.stop(process, grace=0)


def _listening(proto: str, port: int) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    if proto == "tcp":
        sock.listen(64)
    return sock


def _serve(
    services: Sequence[tuple[str, int, Callable[[socket.socket], None], Callable[[bytes], bytes]]],
) -> None:
    """For each service: what to do with a connection, or the answer to a datagram."""
    selector = selectors.DefaultSelector()
    for proto, port, connected, answer in services:
        selector.register(_listening(proto, port), selectors.EVENT_READ, (proto, connected, answer))
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            sock: Any = key.fileobj
            proto, connected, answer = key.data
            if proto == "tcp":
                connection, _ = sock.accept()
                threading.Thread(target=connected, args=(connection,), daemon=True).start()
            else:
                data, sender, *_ = *sock.recvfrom(65536), None
                if reply := answer(data):
                    sock.sendto(reply, sender)


def serve_conversations() -> None:
    """The server's side of all conversations."""

    def side(talk: Conversation) -> Callable[[socket.socket], None]:
        def connected(connection: socket.socket) -> None:
            with connection, contextlib.suppress(OSError):
                connection.settimeout(PATIENCE)
                _talk(connection, "s", talk.messages)

        return connected

    def answer(talk: Conversation) -> Callable[[bytes], bytes]:
        return lambda _: next((data for who, data in talk.messages if who == "s"), b"")

    _serve([(talk.proto, talk.port, side(talk), answer(talk)) for talk in CONVERSATIONS.values()])


def serve_echo(port: int) -> None:
    """Gives back whatever comes, over TCP and UDP."""

    def connected(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            while data := connection.recv(65536):
                connection.sendall(data)

    _serve([("tcp", port, connected, bytes), ("udp", port, connected, bytes)])


def _talk(sock: socket.socket, side: str, messages: Sequence[tuple[str, bytes]]) -> None:
    for who, data in messages:
        if who == side:
            sock.sendall(data)
            continue
        missing = len(data)
        while missing > 0:
            received = sock.recv(missing)
            if not received:
                raise ConnectionError("closed in the middle of a conversation")
            missing -= len(received)


def converse(address: str) -> None:
    """The client's side of all conversations, one after the other."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for talk in CONVERSATIONS.values():
        kind = socket.SOCK_STREAM if talk.proto == "tcp" else socket.SOCK_DGRAM
        with socket.socket(family, kind) as sock:
            sock.settimeout(PATIENCE)
            sock.connect((address, talk.port))
            if talk.proto == "tcp":
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                _talk(sock, "c", talk.messages)
                while sock.recv(65536):  # until the server is done, too: no connection ends by a reset
                    pass
            else:
                sock.send(talk.messages[0][1])
                if len(talk.messages) > 1:
                    sock.recv(65536)


def _exchanges() -> None:
    asked = [
        Exchange(
            told["proto"],
            told["address"],
            told["port"],
            [Step([bytes.fromhex(write) for write in step.pop("writes")], **step) for step in told["steps"]],
        )
        for told in json.load(sys.stdin)
    ]
    with ThreadPoolExecutor(len(asked)) as pool:
        print(json.dumps([asdict(outcome) for outcome in pool.map(_play, asked)], default=bytes.hex))


def _raw() -> None:
    told = json.load(sys.stdin)
    client = RawClient(told["source"], told["target"], told["port"])
    outcome = Outcome(client.port)
    try:
        for at, data, kind in told["early"]:
            client.send(Segment(at, bytes.fromhex(data), kind))
        client.connect(PATIENCE, bytes.fromhex(told["syn_data"]))
        time.sleep(told["silence"])
        for at, data, kind in told["segments"]:
            client.send(Segment(at, bytes.fromhex(data), kind))
        answer = client.answer(told["seconds"])
        outcome.answers.append([answer] if answer else [])
    except TimeoutError as error:
        outcome.error = repr(error)
    print(json.dumps(asdict(outcome), default=bytes.hex))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("exchange", "raw", "serve", "echo", "converse"))
    parser.add_argument("argument", nargs="?", default="")
    asked = parser.parse_args()
    match asked.what:
        case "exchange":
            _exchanges()
        case "raw":
            _raw()
        case "serve":
            serve_conversations()
        case "echo":
            serve_echo(int(asked.argument))
        case "converse":
            converse(asked.argument)


if __name__ == "__main__":
    main()
