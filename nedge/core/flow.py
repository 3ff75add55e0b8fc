"""A flow: its counters, TCP state, classification, statuses, scores and verdict.

Many are alive at once: slots, and no state that only undecided flows need is kept beyond that.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Final, NamedTuple

from nedge.core.facts import UNKNOWN, Classification, DpiFlow, Facts
from nedge.core.hello import Hello
from nedge.core.hosts import Host
from nedge.core.packet import ACK, FIN, HEAD_LENGTH, PSH, RST, SYN, TCP, Packet, reverse_key
from nedge.core.status import (
    MAX_CALL_SCORE,
    MAX_TOTAL_SCORE,
    StatusType,
    status_keys,
    status_names,
    status_types,
)
from nedge.core.stream import Disorder, Stream
from nedge.core.unconfirmed import Unconfirmed
from nedge.core.verdict import UNDETECTED, Failure, Operator, Verdict
from nedge.core.watch import Watch

NO_FACTS: Final = Facts()
_ORDER: Final = Disorder()
OF_SCRIPTS: Final = (Failure.SCRIPT_ERROR, Failure.SCRIPT_TIMEOUT)


class Handshake(IntEnum):
    """How far the TCP three-way handshake was seen, in order."""

    NONE = 0
    SYN = 1
    SYN_ACK = 2
    DONE = 3


_NOT_SEEN: Final = Handshake.NONE
_OPENED: Final = Handshake.SYN
_ANSWERED: Final = Handshake.SYN_ACK
_DONE: Final = Handshake.DONE
_NO_WORD: Final = Operator.NONE
_TCP_HEADER: Final = 20
_SYN_ACK: Final = SYN | ACK
_SYN_FIN_RST: Final = SYN | FIN | RST
_KINDS: Final = SYN | ACK | FIN | RST

UNSEEN: Final = -1
SEVERAL: Final = -2
"""For the number of a flow's SYN: none was seen; it is not known which of several the server took."""


class Share(IntEnum):
    """What the kernel does with a flow by itself. Two bits: they travel in the flow's mark."""

    NONE = 0
    """Nothing: every packet comes up."""
    PASS = 1
    """It passes the flow's packets."""
    DROP = 2
    """It drops them."""
    WATCH = 3
    """It passes what the server sends; what the client sends with a payload still comes up."""


_NO_SHARE: Final = Share.NONE

FLOWS_PER_WORKER = 1 << 32
"""The ids of a worker's flows begin behind a multiple of this, and are unique across workers and restarts."""


class EndReason(IntEnum):
    """Why a flow ended."""

    IDLE = 0
    CLOSED = 1
    REPLACED = 2
    """Its 5-tuple was opened anew."""
    SHUTDOWN = 3

    @property
    def label(self) -> str:
        return self.name.lower()


class StatusRecord(NamedTuple):
    """Who set a status, when, and what came with it."""

    score: int
    script: str
    info: Any
    name: str = ""
    client_score: int = 0
    server_score: int = 0
    time: float = 0.0
    """Epoch seconds."""


class Flow:
    """One flow, both directions. "Sent" is client to server."""

    __slots__ = (
        "accounted",
        "alerted_score",
        "alerted_status",
        "allowed",
        "answered",
        "blacklisted",
        "bytes_rcvd",
        "bytes_sent",
        "classification",
        "client",
        "client_score",
        "client_spoke",
        "closing",
        "decided_at",
        "decided_at_packet",
        "detected",
        "detected_at_packet",
        "disorder",
        "dpi",
        "dropped_packets",
        "epoch",
        "facts",
        "facts_at",
        "failures",
        "first_classification",
        "first_seen",
        "goodput_rcvd",
        "goodput_sent",
        "handshake",
        "hello",
        "hostname",
        "icmp",
        "id",
        "inspected",
        "isn",
        "key",
        "last_seen",
        "looking",
        "match_length",
        "match_payload",
        "next_tick",
        "operator",
        "packets_rcvd",
        "packets_sent",
        "port",
        "proto",
        "quic_id",
        "renamed",
        "requests",
        "resumed",
        "risks",
        "score",
        "server",
        "server_score",
        "share",
        "status_map",
        "statuses",
        "stream",
        "tcp_flags",
        "tick",
        "timer",
        "tls_chosen",
        "tunnelled",
        "unconfirmed",
        "verdict",
        "watch",
        "word",
    )

    def __init__(
        self,
        flow_id: int,
        key: bytes,
        client: Host,
        server: Host,
        first: Packet,
        now: float,
        dpi: DpiFlow | None = None,
    ) -> None:
        """`key`: of the client-to-server direction. `first`: the packet that opens the flow."""
        self.id = flow_id
        self.key = key
        self.proto = proto = first.proto
        self.client = client
        self.server = server
        self.first_seen = self.last_seen = now
        self.packets_sent = self.packets_rcvd = 0
        self.inspected = 0
        """Of these, packets that inspection was given: none that is empty, a copy, or waits for others."""
        self.bytes_sent = self.bytes_rcvd = 0
        """IP lengths."""
        self.goodput_sent = self.goodput_rcvd = 0
        """L4 payload of TCP, UDP and SCTP."""
        self.icmp: tuple[int, int] | None = None
        """Type and code of the first packet, for ICMP and ICMPv6."""

        self.handshake = _NOT_SEEN
        self.tunnelled = first.tunnelled
        self.closing = False
        """A FIN or RST was seen."""
        self.isn = first.seq if first.flags & _SYN_ACK == SYN else UNSEEN
        """Number of the client's SYN; of several the answered one, or SEVERAL; or UNSEEN."""
        self.port = 0
        """Of the bridge, that the client's packets come by; 0 if that is not known."""
        self.answered = False
        """Not of TCP: the server has sent something."""
        self.resumed = False
        """An earlier flow of its connection has ended; `isn` may stand for the last byte confirmed then."""
        self.quic_id = b""
        """Version and connection id of a QUIC client's first datagram."""
        self.unconfirmed: Unconfirmed | None = None
        """What the client sent and the server has not confirmed, while it matters."""
        self.tcp_flags = 0
        """All flags seen, both directions, or-ed."""
        self.stream: Stream | None = Stream() if proto == TCP else None
        """Puts segments in order; None when order no longer matters."""
        self.disorder = _ORDER
        """Of the stream, once it is over."""

        self.dpi = dpi
        """Inspection state; None once inspection is over."""
        self.hello: Hello | None = None
        """Of a TLS client, while more of it is to come."""
        self.watch: Watch | None = None
        """Finds each further name in flows that ask for many (DNS, plain HTTP)."""
        self.looking = True
        """Whether packets still have to be looked into: inspected, or watched."""
        self.word = 0
        self.detected = False
        """protocolDetected has run."""
        self.detected_at_packet = 0
        self.classification: Classification = UNKNOWN
        """Of what the flow talks about now: a watched flow's latest request."""
        self.first_classification: Classification = UNKNOWN
        """Of the flow as a whole: that of its first request."""
        self.hostname = ""
        self.requests = 0
        """Different requests that the watch has seen."""
        self.client_spoke = False
        """The client's first payload, in order, was looked at."""
        self.tls_chosen = 0
        """Version in the ServerHello."""
        self.renamed = False
        """A later request asked for another name than the first."""
        self.facts: Facts = NO_FACTS
        self.facts_at = -1
        """Packet count at which `facts` was read."""
        self.risks = 0
        self.blacklisted = False
        """By an address or name list."""
        self.allowed = False
        """By a name list; what is known of addresses is the hosts'."""
        self.match_length = 0
        self.match_payload: bytes | None = None
        """Payload of the packet on which detection completed."""

        self.status_map = 0
        self.statuses: dict[int, StatusRecord] | None = None
        self.score = 0
        self.client_score = 0
        self.server_score = 0
        self.alerted_status = 0
        self.alerted_score = 0
        self.tick = 0
        self.next_tick = 0.0
        """When the next periodicUpdate is due; 0 if none is."""

        self.timer = 0
        """The second its timer is set to; the table's."""

        self.share = _NO_SHARE
        """What the kernel was told to do with it by itself."""
        self.accounted = 0
        """Number of the latest reading of the kernel's counters that it was in."""

        self.epoch = 0
        """Of the policy that it was judged under."""
        self.operator = _NO_WORD
        self.failures: tuple[Failure, ...] = ()
        self.verdict: Verdict = UNDETECTED
        self.decided_at = 0.0
        """When its action last changed; 0 if it never did."""
        self.decided_at_packet = 0
        self.dropped_packets = 0

    @property
    def vlan(self) -> int:
        return self.client.vlan

    @property
    def client_port(self) -> int:
        key = self.key
        return key[-4] << 8 | key[-3]

    @property
    def server_port(self) -> int:
        key = self.key
        return key[-2] << 8 | key[-1]

    @property
    def packets(self) -> int:
        return self.packets_sent + self.packets_rcvd

    @property
    def bytes(self) -> int:
        return self.bytes_sent + self.bytes_rcvd

    @property
    def goodput(self) -> int:
        return self.goodput_sent + self.goodput_rcvd

    @property
    def is_v6(self) -> bool:
        return len(self.key) > HEAD_LENGTH + 12

    def count(self, packet: Packet, from_client: bool, now: float) -> None:
        """Account for one packet."""
        self.last_seen = now
        if from_client:
            self.packets_sent += 1
            self.bytes_sent += packet.ip_length
            self.goodput_sent += packet.payload_length
        else:
            self.packets_rcvd += 1
            self.bytes_rcvd += packet.ip_length
            self.goodput_rcvd += packet.payload_length
        flags = packet.flags
        if flags:
            self.tcp_flags |= flags
            if flags & _SYN_FIN_RST or self.handshake is _ANSWERED:
                self._follow_tcp(flags, from_client, packet.payload_length)

    def _follow_tcp(self, flags: int, from_client: bool, payload: int) -> None:
        if flags & (FIN | RST):
            self.closing = True
        kind = flags & _KINDS
        if kind == SYN and from_client:
            # Payload before it: picked up mid-stream. (A SYN may bring some itself: RFC 7413.)
            if self.handshake is _NOT_SEEN and self.goodput_sent + self.goodput_rcvd == payload:
                self.handshake = _OPENED
        elif kind == _SYN_ACK and not from_client:
            if self.handshake is _OPENED:
                self.handshake = _ANSWERED
        elif self.handshake is _ANSWERED and from_client and flags & ~PSH == ACK:
            self.handshake = _DONE

    def infer_handshake(self, packet: Packet, from_client: bool) -> None:
        """A segment with ACK shows that the parts of the handshake came which a kernel passed unseen."""
        flags = packet.flags
        if flags & (SYN | RST) or self.handshake is _NOT_SEEN:
            return
        if self.handshake is _OPENED:
            self.handshake = _ANSWERED
            self.tcp_flags |= _SYN_ACK
            self.packets_rcvd += 1
            self.bytes_rcvd += packet.l4 + _TCP_HEADER  # at least; the kernel's counters will say it
        if from_client:
            self.handshake = _DONE

    @property
    def has_begun(self) -> bool:
        """Whether more than the client's SYN was seen."""
        return self.handshake is not _OPENED or self.goodput_sent > 0

    @property
    def may_turn_round(self) -> bool:
        """Whether nothing was made yet of who the client is: the SYN's answer was seen first, no more."""
        return self.handshake is _NOT_SEEN and not self.detected and not self.goodput

    def turn_round(self, isn: int, port: int) -> None:
        """A SYN, of this number and by this port, shows that the client is the other end."""
        self.port = port
        self.key = reverse_key(self.key)
        self.client, self.server = self.server, self.client
        self.packets_sent, self.packets_rcvd = self.packets_rcvd, self.packets_sent
        self.bytes_sent, self.bytes_rcvd = self.bytes_rcvd, self.bytes_sent
        self.start_at(isn)

    def start_at(self, isn: int) -> None:
        """The client's stream begins behind this number."""
        self.isn, self.unconfirmed = isn, None
        if self.stream is not None:
            self.stream = Stream((isn + 1) & 0xFFFFFFFF)

    def resume(self, number: int, port: int, handshake: Handshake) -> None:
        """It goes on where an earlier flow of its connection ended; `number` may be SEVERAL."""
        self.port, self.handshake, self.resumed = port, handshake, True
        if number >= 0:
            self.start_at(number)
        else:
            self.isn = number

    # Statuses and scores

    def set_status(
        self,
        status: StatusType,
        flow_score: int = 0,
        client_score: int = 0,
        server_score: int = 0,
        script: str = "",
        info: Any = None,
        now: float = 0.0,
    ) -> bool:
        """Set a status and add its scores, each clamped to 0..1000. False, and nothing done, if it is set."""
        if self.status_map & status.bit:
            return False
        flow_score, client_score, server_score = map(clamp_score, (flow_score, client_score, server_score))
        self.status_map |= status.bit
        if self.statuses is None:
            self.statuses = {}
        self.statuses[status.status_key] = StatusRecord(
            flow_score, script, info, status.name, client_score, server_score, now
        )
        self.score = min(self.score + flow_score, MAX_TOTAL_SCORE)
        before = self.client_score
        self.client_score = min(before + client_score, MAX_TOTAL_SCORE)
        self.client.score_as_client += self.client_score - before
        before = self.server_score
        self.server_score = min(before + server_score, MAX_TOTAL_SCORE)
        self.server.score_as_server += self.server_score - before
        return True

    def clear_status(self, status: StatusType) -> None:
        """Clear the bit, and only the bit: scores stay."""
        self.status_map &= ~status.bit

    def release_scores(self) -> None:
        """The flow ends, or is judged from scratch: its hosts' live scores lose its share."""
        self.client.score_as_client -= self.client_score
        self.server.score_as_server -= self.server_score

    def add_failure(self, cause: Failure) -> None:
        """Note a failure that concerns this flow."""
        if cause not in self.failures:
            self.failures = (*self.failures, cause)

    def forget_statuses(self) -> None:
        """As if no script had seen it."""
        self.release_scores()
        self.status_map = self.score = self.client_score = self.server_score = 0
        self.statuses = None
        self.alerted_status = self.alerted_score = 0
        self.failures = tuple(cause for cause in self.failures if cause not in OF_SCRIPTS)

    @property
    def status_names(self) -> list[str]:
        """Names of the statuses set, in key order; of a user's status its own."""
        records = self.statuses or {}
        return [
            (records[key].name if key in records else "") or status_names(1 << key)[0]
            for key in status_keys(self.status_map)
        ]

    @property
    def predominant_status(self) -> int:
        """Key of the set status with the highest score, the lowest key among equals; 0 for none."""
        best, best_score = status_types.status_normal.status_key, -1
        for key in sorted(self.statuses or ()):
            if self.status_map >> key & 1 and self.statuses[key].score > best_score:  # type: ignore[index]
                best, best_score = key, self.statuses[key].score  # type: ignore[index]
        return best


def clamp_score(score: int | None) -> int:
    """One call's score: absent = 0, else within 0..1000."""
    return 0 if not score or score < 0 else min(int(score), MAX_CALL_SCORE)
