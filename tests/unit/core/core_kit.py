"""What the tests of the core share: packets built by hand, and an inspector that is no nDPI.

Checksums are left out: the core looks only at those of packets of no connection.
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Callable, Sequence
from typing import Any

from nedge.core.engine import Engine, Limits
from nedge.core.events import Event
from nedge.core.facts import Classification, Facts
from nedge.core.hooks import Hook, HookCall
from nedge.core.hosts import Directory
from nedge.core.inspection import Inspector, NameLists
from nedge.core.orders import Order, parse_target
from nedge.core.packet import Packet, decode
from nedge.core.verdict import Operator, Policy

CLIENT, SERVER, OTHER = "10.0.0.1", "198.51.100.2", "10.0.0.9"
CLIENT6, SERVER6 = "fd00::1", "2001:db8::2"
FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = 1, 2, 4, 8, 16, 32, 64, 128
T0 = 1_700_000_000.0

# Layers


def ip4(
    proto: int,
    payload: bytes,
    src: str = CLIENT,
    dst: str = SERVER,
    *,
    options: bytes = b"",
    length: int | None = None,
    fragment: int = 0,
) -> bytes:
    """An IPv4 packet. `fragment`: the flags and offset field as it stands in the header."""
    words = 5 + len(options) // 4
    total = words * 4 + len(payload) if length is None else length
    head = struct.pack("!BBHHHBBH", 0x40 | words, 0, total, 7, fragment, 64, proto, 0)
    ends = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    return head + ends + options + payload


def ip6(
    proto: int, payload: bytes, src: str = CLIENT6, dst: str = SERVER6, *, length: int | None = None
) -> bytes:
    """An IPv6 packet; extension headers are part of the payload."""
    size = len(payload) if length is None else length
    ends = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    return struct.pack("!IHBB", 6 << 28, size, proto, 64) + ends + payload


def tcp(
    payload: bytes = b"",
    *,
    sport: int = 40000,
    dport: int = 80,
    seq: int = 0,
    ack: int = 0,
    flags: int = ACK,
    options: bytes = b"",
    offset: int | None = None,
) -> bytes:
    """A TCP segment, without an IP header. `offset`: data offset in words, if it is to be a wrong one."""
    words = 5 + len(options) // 4 if offset is None else offset
    head = struct.pack(
        "!HHIIBBHHH", sport, dport, seq & 0xFFFFFFFF, ack & 0xFFFFFFFF, words << 4, flags, 8192, 0, 0
    )
    return head + options + payload


def udp(payload: bytes = b"", *, sport: int = 40000, dport: int = 53, length: int | None = None) -> bytes:
    """A UDP datagram, without an IP header."""
    size = 8 + len(payload) if length is None else length
    return struct.pack("!HHHH", sport, dport, size, 0) + payload


def key(proto: int, src: str, sport: int, dst: str, dport: int, vlan: int = 0) -> bytes:
    """A flow key, by its definition."""
    ends = ipaddress.ip_address(src).packed + ipaddress.ip_address(dst).packed
    return struct.pack("!HB", vlan, proto) + ends + struct.pack("!HH", sport, dport)


def decoded(data: bytes, vlan: int = 0) -> Packet:
    """The packet that the bytes are."""
    packet = decode(data, vlan)
    assert isinstance(packet, Packet), packet
    return packet


def segment(
    payload: bytes = b"", seq: int = 0, flags: int = ACK, *, sport: int = 40000, dport: int = 80
) -> Packet:
    """A decoded TCP segment from client to server."""
    return decoded(ip4(6, tcp(payload, seq=seq, flags=flags, sport=sport, dport=dport)))


# DNS


def name(text: str) -> bytes:
    """A domain name on the wire (RFC 1035, 3.1)."""
    labels = [label.encode() for label in text.split(".") if label]
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


def query(text: str | bytes, kind: int = 1, *, questions: int = 1, flags: int = 0x0100) -> bytes:
    """A DNS message with one question; a name in bytes stands as it is."""
    wire = name(text) if isinstance(text, str) else text
    return struct.pack("!6H", 0x1234, flags, questions, 0, 0, 0) + wire + struct.pack("!HH", kind, 1)


def answer(text: str, code: int = 0) -> bytes:
    """The answer to that query, without records."""
    return query(text, flags=0x8180 | code)


# Inspection

TLS, HTTP, DNS, SSH = 91, 7, 5, 92
_NAMES = {TLS: "TLS", HTTP: "HTTP", DNS: "DNS", SSH: "SSH"}


def by_payload(packet: bytes) -> int:
    """The classification word for a packet, as simple as can be: 0 if it says nothing."""
    found = decode(packet)
    if not isinstance(found, Packet):
        return 0
    payload = found.payload_bytes()
    for start, app in ((b"SSH-", SSH), (b"GET ", HTTP), (b"POST ", HTTP)):
        if payload.startswith(start):
            return app << 16
    message = payload[2:] if found.proto == 6 else payload
    return DNS << 16 if message.startswith((b"\x12\x34\x01", b"\x12\x34\x81")) else 0


class StubFlow:
    """An inspection state that remembers what it was fed."""

    def __init__(self, owner: StubClassifier) -> None:
        self.owner = owner
        self.fed: list[bytes] = []
        self.word = 0
        self.closed = 0

    def feed(self, packet: bytes, time_ms: int) -> int:
        assert not self.closed, "fed after close"
        if "feed" in self.owner.failing:
            raise RuntimeError("inspection failed")
        self.fed.append(packet)
        self.word = self.word or self.owner.classify(packet)
        return self.word

    def more_possible(self) -> bool:
        return not self.word

    def give_up(self) -> int:
        assert not self.closed, "asked after close"
        if "give_up" in self.owner.failing:
            raise RuntimeError("inspection failed")
        self.word = self.word or self.owner.guess
        return self.word

    def hostname(self) -> str:
        return ""

    def risks(self) -> int:
        assert not self.closed, "asked after close"
        return 0

    def facts(self) -> Facts:
        assert not self.closed, "asked after close"
        return Facts()

    def http_answer(self) -> tuple[int, str] | None:
        assert not self.closed, "asked after close"
        return None

    def close(self) -> None:
        self.closed += 1
        self.owner.alive -= 1


class StubClassifier:
    """A classifier that counts its states. `failing`: names of the methods that raise."""

    version = "stub"

    def __init__(
        self, classify: Callable[[bytes], int] = by_payload, *, guess: int = 0, failing: Sequence[str] = ()
    ) -> None:
        self.classify = classify
        self.guess = guess
        self.failing = failing
        self.alive = 0
        self.opened: list[StubFlow] = []

    def open(self) -> StubFlow:
        if "open" in self.failing:
            raise RuntimeError("no state")
        self.alive += 1
        self.opened.append(StubFlow(self))
        return self.opened[-1]

    def describe(self, word: int) -> Classification:
        app = word >> 16 & 0xFFFF
        label = _NAMES.get(app, "Unknown")
        return Classification(0, app, label, "", label, 0, "Unspecified", "Acceptable")

    def protocol_id(self, name: str) -> int | None:
        return next((app for app, label in _NAMES.items() if label.lower() == name.lower()), None)

    def risk_names(self, risks: int) -> list[str]:
        return []


class StubScripts:
    """A script runner whose one script is a function; remembers every call."""

    wants_match_packet = False

    def __init__(self, *hooks: Hook, script: Callable[[HookCall], Any] = lambda call: None) -> None:
        self.hooks = hooks or tuple(Hook)
        self.script = script
        self.calls: list[tuple[Hook, int]] = []

    def run(self, call: HookCall) -> None:
        self.calls.append((call.hook, call.now))
        self.script(call)

    def wants(self, hook: Hook, proto: int) -> bool:
        return hook in self.hooks


class Rig:
    """An engine with everything around it under test."""

    def __init__(
        self,
        *,
        classifier: StubClassifier | None = None,
        scripts: StubScripts | None = None,
        policy: Policy | None = None,
        limits: Limits | None = None,
        directory: Directory | None = None,
        names: NameLists | None = None,
    ) -> None:
        self.events: list[Event] = []
        self.orders = 0
        """The number of the latest order."""
        self.classifier = classifier or StubClassifier()
        self.scripts = scripts
        self.engine = Engine(
            Inspector(self.classifier, names=names),
            scripts=scripts,
            policy=policy,
            limits=limits,
            directory=directory,
            sink=self.events.append,
        )

    def feed(self, data: bytes, at: float = 0.0, vlan: int = 0, mac: bytes = b"") -> int:
        """Judge one packet, `at` seconds after T0."""
        return self.engine.packet(data, T0 + at, vlan, mac)

    def order(self, word: Operator, target: str, **fields: Any) -> int:
        """The operator orders; gives how many flows that changed. Targets as the operator types them."""
        kind, spelling = parse_target(target)
        self.orders += 1
        order = Order(id=self.orders, word=word, kind=kind, target=spelling, **fields)
        return sum(self.engine.give(order, self.engine.now))

    def of(self, kind: type) -> list[Any]:
        """The events of a kind, so far."""
        return [event for event in self.events if isinstance(event, kind)]
