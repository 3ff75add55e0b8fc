"""Traffic made here, and the real engine to judge it.

Builders give lists of `Packet`: IP packets with their time. `judge` runs them through what
`nedge.assemble.assemble` builds from a configuration, with a real libndpi:

    session = Tcp(server="203.0.113.5", dport=443).handshake().client(client_hello("example.com"))
    judged = judge(session.packets, toml="[verdict]\\ndrop_score = 50")
    assert judged.flow["nedge"]["verdict"] == "pass"

`with_script` runs one script given as text; what it passes to `note` comes back as `seen`. `ask` does that
for one expression in one hook.
"""

from __future__ import annotations

import datetime as dt
import functools
import ipaddress
import random
import ssl
import struct
import tempfile
import textwrap
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from mmdb_writer import MMDBWriter
from netaddr import IPSet  # type: ignore[import-untyped]
from scapy.utils import RawPcapWriter
from support import require

from nedge.assemble import Assembly, assemble
from nedge.config import SHIPPED_POLICIES, load
from nedge.core.events import Event, FlowEnded, Sink
from nedge.core.facts import Classifier
from nedge.core.verdict import Action
from nedge.dpi import DpiError, load_library
from nedge.export.eve import event_record

T0 = 1_750_000_000
"""When traffic starts: 2025-06-15 15:06:40 UTC."""
CLIENT, SERVER = "192.168.1.10", "203.0.113.5"
"""A local host (RFC 1918), and a remote one that no nDPI release knows (RFC 5737)."""
CLIENT6, SERVER6 = "fd00::10", "2001:db8::5"
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
MSS = 1400
_CLIENT_ISN, _SERVER_ISN = 1_000, 5_000_000


class Packet(NamedTuple):
    """An IP packet and when it is seen."""

    time: float
    data: bytes
    vlan: int = 0
    mac: bytes = b""


# Layers


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(proto: int, source: str, destination: str, payload: bytes) -> bytes:
    """An IPv4 or IPv6 packet, as the addresses are."""
    src, dst = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if src.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(payload), proto, 64) + src.packed + dst.packed + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, proto, 0)
    head += src.packed + dst.packed
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload


def _with_checksum(proto: int, source: str, destination: str, segment: bytes, at: int) -> bytes:
    src, dst = ipaddress.ip_address(source).packed, ipaddress.ip_address(destination).packed
    value = _checksum(src + dst + struct.pack("!II", len(segment), proto) + segment)
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


def tcp_segment(
    source: str,
    destination: str,
    sport: int,
    dport: int,
    *,
    seq: int = 0,
    ack: int = 0,
    flags: int = ACK,
    payload: bytes = b"",
) -> bytes:
    """One TCP segment as an IP packet; a SYN has the options that Linux sends."""
    options = bytes.fromhex("02040578 0402 080a0000000100000000 01 030307") if flags & SYN else b""
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset, flags, 64240, 0, 0)
    return ip(6, source, destination, _with_checksum(6, source, destination, head + options + payload, 16))


def udp_datagram(source: str, destination: str, sport: int, dport: int, payload: bytes) -> bytes:
    """One UDP datagram as an IP packet."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    return ip(17, source, destination, _with_checksum(17, source, destination, head + payload, 6))


def icmp(source: str, destination: str, kind: int = 8, code: int = 0, payload: bytes = b"ping" * 14) -> bytes:
    """An ICMP or ICMPv6 message as an IP packet: an echo request unless told otherwise."""
    message = struct.pack("!BBHHH", kind, code, 0, 1, 1) + payload
    if ":" in source:
        return ip(58, source, destination, _with_checksum(58, source, destination, message, 2))
    return ip(1, source, destination, message[:2] + struct.pack("!H", _checksum(message)) + message[4:])


# Conversations


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


def ping(
    source: str = CLIENT, destination: str = SERVER, start: float = T0, *, reply: bool = True
) -> list[Packet]:
    """An echo request, and its reply."""
    request, answer = (128, 129) if ":" in source else (8, 0)
    packets = [Packet(start, icmp(source, destination, request))]
    if reply:
        packets.append(Packet(start + 0.01, icmp(destination, source, answer)))
    return packets


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


# TLS, QUIC


@functools.cache
def certificate(
    names: tuple[str, ...] = ("cert.example.org",), not_before: int = T0 - 86400, not_after: int = T0 + 86400
) -> tuple[bytes, bytes]:
    """A self-signed certificate and its key, in PEM, valid between two epoch seconds."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0])])
    built = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1000)
        .not_valid_before(dt.datetime.fromtimestamp(not_before, dt.UTC))
        .not_valid_after(dt.datetime.fromtimestamp(not_after, dt.UTC))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return built.public_bytes(serialization.Encoding.PEM), private


def _client_context(lowest: str, highest: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    _limit(context, lowest, highest)
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context


def _limit(context: ssl.SSLContext, lowest: str, highest: str) -> None:
    """Allow these versions ("1.0" to "1.3"), old ones too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.set_ciphers("ALL:@SECLEVEL=0")
        context.minimum_version = _version(lowest)
        context.maximum_version = _version(highest)


def _version(text: str) -> ssl.TLSVersion:
    names = {"1.0": "TLSv1", "1.1": "TLSv1_1", "1.2": "TLSv1_2", "1.3": "TLSv1_3"}
    return ssl.TLSVersion[names[text]]


def client_hello(name: str | None, lowest: str = "1.2", highest: str = "1.3") -> bytes:
    """OpenSSL's ClientHello, as one TLS record; with no server name if there is none."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = _client_context(lowest, highest).wrap_bio(incoming, outgoing, server_hostname=name)
    try:
        client.do_handshake()
    except ssl.SSLWantReadError:
        return outgoing.read()
    raise AssertionError("a handshake needs an answer")


def tls_turns(
    version: str = "1.2",
    name: str | None = "cert.example.org",
    *,
    offered: str | None = None,
    cert: tuple[bytes, bytes] | None = None,
) -> list[tuple[str, bytes]]:
    """A whole handshake of OpenSSL with itself. `offered`: the client's highest version, if it is another."""
    chain, key = cert or certificate()
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.TemporaryDirectory() as directory:
        Path(directory, "cert.pem").write_bytes(chain)
        Path(directory, "key.pem").write_bytes(key)
        server_context.load_cert_chain(Path(directory, "cert.pem"), Path(directory, "key.pem"))
    _limit(server_context, version, version)
    server_context.set_alpn_protocols(["h2"])
    client_context = _client_context(version, offered or version)

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_context.wrap_bio(to_client, to_server, server_hostname=name)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    turns: list[tuple[str, bytes]] = []
    done: set[str] = set()
    while len(done) < 2:
        for side, endpoint, outgoing in (("c", client, to_server), ("s", server, to_client)):
            if side not in done:
                try:
                    endpoint.do_handshake()
                    done.add(side)
                except ssl.SSLWantReadError:
                    pass
            if data := outgoing.read():
                turns.append((side, data))
                outgoing.write(data)  # for the other side to read
    return turns


def tls(
    version: str = "1.2",
    name: str | None = "cert.example.org",
    *,
    offered: str | None = None,
    cert: tuple[bytes, bytes] | None = None,
    dport: int = 443,
    sport: int = 40000,
    start: float = T0,
) -> Tcp:
    """A connection with a whole TLS handshake."""
    turns = tls_turns(version, name, offered=offered, cert=cert)
    return Tcp(dport=dport, sport=sport, start=start).handshake().turns(turns)


def quic_initial(name: str, client: str = CLIENT, server: str = SERVER, start: float = T0) -> list[Packet]:
    """The first datagrams of a QUIC v1 client."""
    configuration = QuicConfiguration(is_client=True, alpn_protocols=["h3"], server_name=name)
    connection = QuicConnection(configuration=configuration)
    connection.connect((server, 443), now=0.0)
    talk = Udp(client, server, dport=443, start=start)
    for data, _ in connection.datagrams_to_send(now=0.0):
        talk.client(data)
    return talk.packets


# Other means


def merge(*conversations: Iterable[Packet]) -> list[Packet]:
    """Several conversations in one, in order of time."""
    return sorted((packet for packets in conversations for packet in packets), key=lambda packet: packet.time)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no protocol starts with, the same for each seed."""
    return bytes([0xE5]) + random.Random(seed).randbytes(size - 1)


def write_pcap(path: Path, packets: Iterable[Packet]) -> Path:
    """A capture file with Ethernet frames; VLAN tags where a packet has a VLAN."""
    writer = RawPcapWriter(str(path), linktype=1)
    writer.write_header(None)
    for packet in packets:
        frame = b"\x02\0\0\0\0\x02" + (packet.mac or b"\x02\0\0\0\0\x01")
        if packet.vlan:
            frame += struct.pack("!HH", 0x8100, packet.vlan)
        frame += struct.pack("!H", 0x86DD if packet.data[0] >> 4 == 6 else 0x0800) + packet.data
        seconds, micros = divmod(round(packet.time * 1e6), 1_000_000)
        writer.write_packet(frame, sec=seconds, usec=micros)
    writer.close()
    return path


def write_countries(path: Path, countries: Mapping[str, str]) -> Path:
    """A country database in MaxMind's format: network -> ISO code."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Country", languages=["en"])
    for network, code in countries.items():
        writer.insert_network(IPSet([network]), {"country": {"iso_code": code}})
    writer.to_db_file(str(path))
    return path


def write_asns(path: Path, systems: Mapping[str, tuple[int, str]]) -> Path:
    """A database of autonomous systems in MaxMind's format: network -> number and name."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="ASN", languages=["en"])
    for network, (number, name) in systems.items():
        record = {"autonomous_system_number": number, "autonomous_system_organization": name}
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


# The engine


@dataclass
class Judged:
    """What became of some packets."""

    events: list[dict[str, Any]] = field(default_factory=list)
    """All events as EVE records, in order."""
    ended: list[float] = field(default_factory=list)
    """When each flow of `flows` ended, by the engine's clock."""
    actions: list[Action] = field(default_factory=list)
    """One for each packet."""
    seen: list[Any] = field(default_factory=list)
    """What scripts passed to `note`."""

    @property
    def flows(self) -> list[dict[str, Any]]:
        """Flow records, in the order in which flows ended."""
        return self._of("flow")

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """Alert records."""
        return self._of("alert")

    @property
    def flow(self) -> dict[str, Any]:
        """The record of the one flow there is."""
        flows = self.flows
        assert len(flows) == 1, f"{len(flows)} flows"
        return flows[0]

    @property
    def statuses(self) -> list[str]:
        """Names of the statuses of the one flow, without status_blocked."""
        names: list[str] = self.flow["nedge"]["status"]
        return [name for name in names if name != "status_blocked"]

    @property
    def scores(self) -> tuple[int, int, int]:
        """Flow, client and server score of the one flow."""
        nedge = self.flow["nedge"]
        return nedge["score"], nedge["cli_score"], nedge["srv_score"]

    @property
    def verdict(self) -> str:
        """`pass`, `drop` or `reject`: of the one flow, at its end."""
        verdict: str = self.flow["nedge"]["verdict"]
        return verdict

    def _of(self, event_type: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event_type"] == event_type]


_notes: list[Any] = []


def note(value: Any) -> None:
    """For scripts under test: hand a value out, to `Judged.seen`."""
    _notes.append(value)


Scripts = Mapping[str, str] | Sequence[str] | None
"""Key -> source text; or keys of shipped policies; or None for all shipped policies."""


class Bench:
    """An assembled engine under test."""

    def __init__(self, assembly: Assembly, judged: Judged) -> None:
        self.assembly = assembly
        self.engine = assembly.engine
        self.judged = judged

    def feed(self, packets: Iterable[Packet]) -> None:
        """Judge packets."""
        for packet in packets:
            action = self.engine.packet(packet.data, packet.time, packet.vlan, packet.mac)
            self.judged.actions.append(action)


@contextmanager
def bench(toml: str = "", scripts: Scripts = None, library: str = "auto") -> Iterator[Bench]:
    """An engine made from a configuration and scripts. At the end it is closed; `engine.finish` is yours."""
    judged = Judged()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "nedge.toml")
        path.write_text(textwrap.dedent(toml))
        config = load(path)
        if scripts is not None:
            policies = Path(directory, "policies")
            policies.mkdir()
            for key in scripts:
                source = (
                    textwrap.dedent(scripts[key])
                    if isinstance(scripts, Mapping)
                    else (SHIPPED_POLICIES / f"{key}.py").read_text()
                )
                (policies / f"{key}.py").write_text(source)
            config = config.model_copy(
                update={"scripts": config.scripts.model_copy(update={"directories": [policies]})}
            )
        config = config.model_copy(update={"dpi": config.dpi.model_copy(update={"library": library})})

        def sink_for(classifier: Classifier) -> Sink:
            def sink(event: Event) -> None:
                judged.events.append(event_record(event, classifier))
                if isinstance(event, FlowEnded):
                    judged.ended.append(event.time)

            return sink

        assembly = assemble(config, sink_for)
        _notes.clear()
        try:
            yield Bench(assembly, judged)
        finally:
            assembly.close()
            judged.seen = list(_notes)


def judge(
    packets: Iterable[Packet],
    toml: str = "",
    scripts: Scripts = None,
    library: str = "auto",
    *,
    until: float | None = None,
) -> Judged:
    """Judge packets to the end of all flows. `until`: let time pass until then before shutting down."""
    with bench(toml, scripts, library) as made:
        made.feed(packets)
        end = made.engine.now if until is None else until
        made.engine.finish(end)
    return made.judged


def with_script(
    source: str,
    packets: Iterable[Packet],
    toml: str = "",
    library: str = "auto",
    *,
    until: float | None = None,
) -> Judged:
    """Judge packets with one script, given as text; its key is `script`.

    `note` and what scripts import from `nedge.scripts` is there already.
    """
    return judge(packets, toml, {"script": PRELUDE + textwrap.dedent(source)}, library, until=until)


PRELUDE = "from kit import note; from nedge.scripts import *\n"


def ask(
    packets: Iterable[Packet],
    expression: str,
    hook: str = "protocolDetected",
    toml: str = "",
    library: str = "auto",
    *,
    until: float | None = None,
) -> list[Any]:
    """The values of an expression of `flow`, `now` and `conf`, at each call of a hook."""
    source = f"def {hook}(flow, now, conf):\n    note({expression})\n"
    return with_script(source, packets, toml, library, until=until).seen


def require_library(choice: str) -> str:
    """`system` or `nfstream`, if it is there; else the test is skipped, or fails under CI=true."""
    try:
        load_library(choice)
    except DpiError as error:
        require(False, str(error))
    return choice
