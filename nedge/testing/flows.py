"""Flows in tests: what became of a flow (`SeenFlow`), and flows made from one line (`make_flow`)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from itertools import count, cycle
from typing import Any

from nedge.assemble import Assembly
from nedge.core.facts import Facts
from nedge.core.flow import Flow as CoreFlow
from nedge.core.flow import Handshake
from nedge.core.hosts import ip_bytes
from nedge.core.packet import ICMP, ICMPV6, SCTP, TCP, UDP, decode
from nedge.core.packet import Packet as DecodedPacket
from nedge.core.risks import RISKS
from nedge.core.status import status_types
from nedge.dpi import NdpiClassifier
from nedge.export.eve import flow_record, proto_name
from nedge.testing import packets as build
from nedge.testing.packets import ACK, CLIENT, FIN, PSH, RST, SERVER, SYN

_L4_HEADERS = {TCP: 32, UDP: 8, SCTP: 12}
_L4 = {"tcp": TCP, "udp": UDP, "icmp": ICMP, "sctp": SCTP}
_USUAL = {
    "DHCP": ("udp", 67),
    "DHCPV6": ("udp", 547),
    "DNS": ("udp", 53),
    "FTP_CONTROL": ("tcp", 21),
    "HTTP": ("tcp", 80),
    "ICMP": ("icmp", 0),
    "ICMPV6": ("icmp", 0),
    "IMAPS": ("tcp", 993),
    "MDNS": ("udp", 5353),
    "NTP": ("udp", 123),
    "NetBIOS": ("udp", 137),
    "NetFlow": ("udp", 2055),
    "POPS": ("tcp", 995),
    "QUIC": ("udp", 443),
    "RDP": ("tcp", 3389),
    "RTP": ("udp", 5004),
    "SIP": ("udp", 5060),
    "SMBv1": ("tcp", 445),
    "SMBv23": ("tcp", 445),
    "SMTP": ("tcp", 25),
    "SMTPS": ("tcp", 465),
    "SNMP": ("udp", 161),
    "SSDP": ("udp", 1900),
    "SSH": ("tcp", 22),
    "STUN": ("udp", 3478),
    "Syslog": ("udp", 514),
    "TFTP": ("udp", 69),
    "TLS": ("tcp", 443),
    "Telnet": ("tcp", 23),
    "VNC": ("tcp", 5900),
    "WireGuard": ("udp", 51820),
}
"""L4 protocol and port of what runs on a port of its own."""
_OTHER = ("tcp", 9999)
_FACTS = tuple(field.name for field in fields(Facts))
_ids = count(1 << 40)  # far from those that the engine gives
_ports = cycle(range(50000, 60000))


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that a script raised."""

    status: str
    """Name of the status: `status_blacklisted`, …"""
    info: Any
    score: int
    script: str
    """The script's key."""
    time: float
    blocked: bool
    """Whether the flow was blocked with it."""


class SeenFlow:
    """A flow, and what became of it so far. Attributes give the state of this moment."""

    def __init__(self, core: CoreFlow, alerts: list[Alert], classifier: NdpiClassifier) -> None:
        self._core: CoreFlow | None = core
        self.alerts: list[Alert] = alerts
        """What was raised on it, in order."""
        self.ended: str = ""
        """Why it ended: idle, closed, replaced or shutdown; empty while it lives."""
        self.end_time: float = 0.0
        """When, in epoch seconds."""
        self._classifier: NdpiClassifier | None = classifier

    @property
    def core(self) -> CoreFlow:
        """The engine's own object."""
        if self._core is None:
            raise RuntimeError("nothing is known of this flow yet: give it to a script with script.run(flow)")
        return self._core

    @property
    def client(self) -> str:
        return self.core.client.ip

    @property
    def server(self) -> str:
        return self.core.server.ip

    @property
    def client_port(self) -> int:
        return self.core.client_port

    @property
    def server_port(self) -> int:
        return self.core.server_port

    @property
    def vlan(self) -> int:
        return self.core.vlan

    @property
    def l4(self) -> str:
        """`TCP`, `UDP`, `ICMP`, …"""
        return proto_name(self.core.proto)

    @property
    def protocol(self) -> str:
        """What nDPI calls it: `TLS.Google`, `DNS`, …"""
        return self.core.classification.protocol

    @property
    def hostname(self) -> str:
        return self.core.hostname

    @property
    def first_seen(self) -> float:
        """Epoch seconds."""
        return self.core.first_seen

    @property
    def last_seen(self) -> float:
        return self.core.last_seen

    @property
    def statuses(self) -> list[str]:
        """Names of the statuses that scripts set, by their numbers."""
        return [name for name in self.core.status_names if name != status_types.status_blocked.name]

    @property
    def score(self) -> int:
        return self.core.score

    @property
    def scores(self) -> tuple[int, int, int]:
        """What was added for the flow, its client and its server."""
        return self.core.score, self.core.client_score, self.core.server_score

    @property
    def verdict(self) -> str:
        """`pass` or `drop`."""
        return self.core.verdict.action.label

    @property
    def reason(self) -> str:
        """Why: `clean`, `flow_score: 120 >= 100`, …"""
        return self.core.verdict.reason

    @property
    def dropped_packets(self) -> int:
        return self.core.dropped_packets

    @property
    def record(self) -> dict[str, Any]:
        """The flow's EVE record."""
        assert self._classifier is not None
        return flow_record(self.core, self.end_time or self.core.last_seen, self._classifier, self.ended)

    def __repr__(self) -> str:
        if self._core is None:
            return "<flow that no script has seen>"
        ends = f"{self.client}:{self.client_port} -> {self.server}:{self.server_port}"
        return f"<{self.protocol} {ends} {self.verdict}, score {self.score}, {self.statuses}>"


class MadeFlow(SeenFlow):
    """A flow that `make_flow` made up. `update` changes what is known of it."""

    def __init__(self, protocol: str, given: dict[str, Any]) -> None:
        self._core = None
        self._assembly: Assembly | None = None
        self.alerts = []
        self.ended = ""
        self.end_time = 0.0
        self._protocol = protocol
        self._given = given

    def update(self, **changes: Any) -> MadeFlow:
        """From now on this is known of the flow: any argument of `make_flow`, but for who talks to whom."""
        fixed = sorted(_ENDS & changes.keys())
        if fixed:
            raise TypeError(f"update: {', '.join(fixed)} cannot change; make another flow")
        self._protocol = changes.pop("protocol", self._protocol)
        self._given |= _checked("update", changes)
        if self._core is not None:
            self._apply(self._core)
            if "duration" in changes:
                self._core.first_seen = self._core.last_seen - changes["duration"]
        return self

    def _enter(self, assembly: Assembly, now: float) -> CoreFlow:
        """Become a live flow of an engine; no hook is called. For `Bench`."""
        given, engine = self._given, assembly.engine
        first = decode(self._first_packet(self._l4_number()), given["vlan"])
        assert isinstance(first, DecodedPacket)
        if engine.table.get(first.key) is not None:
            raise ValueError("a flow between these ends is alive already: end it first, or take another port")
        _word(self._protocol, given["category"], assembly.classifier)
        client = engine.hosts.acquire(ip_bytes(given["client"]), given["vlan"])
        server = engine.hosts.acquire(ip_bytes(given["server"]), given["vlan"])
        core = CoreFlow(next(_ids), first.key, client, server, first, now)
        core.first_seen = now - given["duration"]
        core.looking = False  # what it is was told: nobody has to look
        core.stream = None
        core.epoch = engine.epoch
        self._core, self._assembly = core, assembly
        self._classifier = assembly.classifier
        self._apply(core)
        engine.table.add(core)
        engine.table.wake_at(core, now + engine.limits.idle_seconds)
        return core

    @property
    def _usual(self) -> tuple[str, int]:
        return _USUAL.get(self._protocol.partition(".")[0], _OTHER)

    def _l4_number(self) -> int:
        l4 = self._usual[0] if self._given["l4"] is None else self._given["l4"]
        if isinstance(l4, str) and l4 not in _L4:
            raise ValueError(f"l4: found {l4!r}; allowed are {', '.join(_L4)}, or a number")
        number = _L4[l4] if isinstance(l4, str) else int(l4)
        return ICMPV6 if number == ICMP and ":" in self._given["client"] else number

    def _first_packet(self, number: int) -> bytes:
        given = self._given
        ends = given["client"], given["server"]
        port = self._usual[1] if given["server_port"] is None else given["server_port"]
        if number == TCP:
            return build.tcp_segment(*ends, given["client_port"], port, flags=SYN)
        if number == UDP:
            return build.udp_datagram(*ends, given["client_port"], port, b"")
        if number in (ICMP, ICMPV6):
            return build.icmp(*ends, 8 if number == ICMP else 128)
        return build.ip(number, *ends, bytes(20))

    def _apply(self, core: CoreFlow) -> None:
        """Write what is given into the engine's object."""
        assert self._assembly is not None
        given = self._given
        core.word = _word(self._protocol, given["category"], self._assembly.classifier)
        core.facts = _facts(self._protocol, given)
        core.hostname = core.facts.hostname
        self._assembly.engine.inspector.classify_anew(core)  # lists of names have their say
        core.blacklisted = core.blacklisted or given["blacklisted"]
        core.packets_sent, core.packets_rcvd = given["packets_sent"], given["packets_rcvd"]
        core.bytes_sent, core.bytes_rcvd = given["bytes_sent"], given["bytes_rcvd"]
        if core.proto in _L4_HEADERS:
            header = (40 if core.is_v6 else 20) + _L4_HEADERS[core.proto]
            core.goodput_sent = max(0, core.bytes_sent - header * core.packets_sent)
            core.goodput_rcvd = max(0, core.bytes_rcvd - header * core.packets_rcvd)
        if core.proto == TCP:
            core.handshake = Handshake.DONE if given["handshake"] else Handshake.NONE
            core.tcp_flags = given["tcp_flags"]
            core.closing = bool(core.tcp_flags & (FIN | RST))
        core.risks = _risks(given["risks"])
        core.match_payload = given["payload"]
        core.match_length = len(given["payload"] or b"")


def make_flow(
    protocol: str = "Unknown",
    *,
    client: str = CLIENT,
    server: str = SERVER,
    client_port: int | None = None,
    server_port: int | None = None,
    l4: str | int | None = None,
    vlan: int = 0,
    hostname: str = "",
    category: str = "",
    risks: Iterable[int | str] = (),
    blacklisted: bool = False,
    handshake: bool = True,
    tcp_flags: int = SYN | ACK | PSH,
    packets_sent: int = 5,
    packets_rcvd: int = 5,
    bytes_sent: int = 1000,
    bytes_rcvd: int = 5000,
    duration: float = 0,
    payload: bytes | None = None,
    **facts: Any,
) -> MadeFlow:
    """A flow as scripts see it, with no packet behind it: `make_flow("TLS", hostname="bad.example")`.

    `protocol`: nDPI's name for it: "TLS", "DNS", or with its master: "TLS.Google". `client_port`: a new one
    for each flow unless given. `server_port` and `l4` ("tcp", "udp", "icmp", "sctp", or a protocol's number):
    what is usual for the protocol unless given; 9999 and TCP if nothing is. `category`: nDPI's name; the
    protocol's own unless given. `risks`: names or numbers of `nedge.scripts.RISKS`. `handshake`: whether the
    three-way handshake was seen. `bytes_…` are of IP packets, `duration` is the seconds that the flow has
    lasted by now. `payload`: of the packet that nDPI recognised. `facts`: fields of
    `nedge.core.facts.Facts`, such as `http_url=…` or `cert_subject=…`. From `hostname` follow `dns_query`,
    `http_url` or `tls_sni`, as the protocol is, unless they are given; the TLS version is 1.2 unless given.

    Raises TypeError for an argument that does not exist. What the engine cannot make a flow of (an unknown
    protocol, an address that is none) raises ValueError when a script gets the flow.
    """
    given = dict(locals())
    del given["protocol"], given["facts"]
    given["client_port"] = next(_ports) if client_port is None else client_port
    return MadeFlow(protocol, given | _checked("make_flow", facts, _FACTS))


_ENDS = frozenset(("client", "server", "client_port", "server_port", "l4", "vlan"))
_ARGUMENTS = frozenset(make_flow.__kwdefaults__ or ()) | frozenset(_FACTS)


def _checked(function: str, given: Mapping[str, Any], allowed: Iterable[str] = _ARGUMENTS) -> dict[str, Any]:
    for name in given:
        if name not in allowed:
            near = get_close_matches(name, _ARGUMENTS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"allowed are {', '.join(sorted(_ARGUMENTS))}"
            raise TypeError(f"{function}: there is no {name!r}; {hint}")
    return dict(given)


def _facts(protocol: str, given: Mapping[str, Any]) -> Facts:
    names = protocol.split(".")
    host = given["hostname"].lower()
    facts: dict[str, Any] = {"hostname": host}
    if "DNS" in names:
        facts["dns_query"] = host
    elif "HTTP" in names:
        facts |= {"http_url": f"{host}/", "http_method": "GET"}
    elif "TLS" in names or "QUIC" in names:
        facts |= {"tls_sni": host, "tls_version": 0x0303 if "TLS" in names else 0x0304}
    return Facts(**facts | {name: given[name] for name in _FACTS if name != "hostname" and name in given})


def _risks(given: Iterable[int | str]) -> int:
    bitmap = 0
    for risk in given:
        if risk not in (RISKS if isinstance(risk, str) else range(64)):
            raise ValueError(f"risks: found {risk!r}; allowed are {', '.join(RISKS)}, or numbers below 64")
        bitmap |= 1 << (RISKS[risk] if isinstance(risk, str) else risk)
    return bitmap


def _word(protocol: str, category: str, classifier: NdpiClassifier) -> int:
    """The classification word that nDPI would give: master id, application id << 16, category id << 32."""
    if protocol == "Unknown":
        master, app = 0, 0
    else:
        app = classifier.protocol_id(protocol) or 0
        master = 0
        if not app:
            first, _, second = protocol.partition(".")
            master, app = classifier.protocol_id(first) or 0, classifier.protocol_id(second) or 0
        if not app:
            near = get_close_matches(protocol, classifier.protocol_names(), n=3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise ValueError(
                f"protocol: nDPI {classifier.version} knows no {protocol!r}; allowed are its names, or two "
                f"of them as in TLS.Google{hint}"
            )
    number = classifier.category_id(category) if category else classifier.category_of(master, app)
    if number is None:
        raise ValueError(f"category: nDPI {classifier.version} knows no {category!r}")
    return master | app << 16 | number << 32
