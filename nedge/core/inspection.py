"""Looking into packets: what a flow is, whom it asks for, and when that is known well enough to run hooks.

`Inspector.look` takes a packet of a flow that is still looked into. It updates what is known of the flow and
calls `on_news` each time there is news: hooks see the flow as it is at that request.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from nedge.core.facts import DETECTED, Classification, Classifier, Facts
from nedge.core.flow import Flow
from nedge.core.hello import Hello, starts_hello
from nedge.core.hooks import Hook
from nedge.core.lists import DomainSet
from nedge.core.packet import SYN, TCP, UDP, Packet, ahead
from nedge.core.rewrite import carrying, without_first
from nedge.core.stream import MAX_HELD, Stream
from nedge.core.verdict import Failure
from nedge.core.watch import REQUEST_START, DnsWatch, HttpWatch, Request

MAX_INSPECTED: Final = {TCP: 32, UDP: 24}
"""Packets after which inspection ends with a guess: more change nothing (other protocols as UDP)."""

CATEGORY_MINING: Final = 99
CATEGORY_MALWARE: Final = 100
CATEGORY_ADVERTISEMENT: Final = 101
"""nDPI's custom categories, which name lists set."""

_DETECTED: Final = Hook.PROTOCOL_DETECTED
_UPDATED: Final = Hook.PROTOCOL_UPDATED
_UNCLASSIFIED: Final = Failure.UNCLASSIFIED
_DNS_PORT: Final = b"\x00\x35"
_TLS_HANDSHAKE: Final = 22  # RFC 8446, 5.1
_SERVER_HELLO: Final = 2  # and 4
_NAMED: Final = frozenset(("TLS", "QUIC", "HTTP", "DTLS", "DNS"))
"""Protocols whose clients name their server: hooks wait for that name."""
_SPEAKING: Final = _NAMED | {"SSH", "IMAPS", "POPS", "SMTPS", "FTPS", "LDAPS", "DoH_DoT"}
"""Protocols that leave facts behind, beside their name."""


class _Traits:
    """What inspection asks of a protocol."""

    __slots__ = ("asks", "is_dns", "names_server", "speaks")

    def __init__(self, classification: Classification) -> None:
        names = {classification.app, classification.master}
        self.names_server = not names.isdisjoint(_NAMED)
        """Its clients name their server."""
        self.speaks = not names.isdisjoint(_SPEAKING)
        """It leaves facts behind."""
        self.is_dns = "DNS" in names
        self.asks = self.is_dns or any(name.startswith("HTTP") for name in names)
        """It is DNS or HTTP, proxied HTTP included."""


class NameLists:
    """Domain lists that give a flow a category. The first list that covers a name wins.

    Names on the allow-list have none of these, and their flows pass.
    """

    def __init__(
        self,
        malware: DomainSet,
        mining: DomainSet,
        advertisement: DomainSet,
        allowed: DomainSet | None = None,
    ) -> None:
        self._allowed = allowed if allowed is not None and len(allowed) else None
        self._lists = [
            (domains, category, name)
            for domains, category, name in (
                (malware, CATEGORY_MALWARE, "Malware"),
                (mining, CATEGORY_MINING, "Mining"),
                (advertisement, CATEGORY_ADVERTISEMENT, "Advertisement"),
            )
            if len(domains)
        ]

    def allows(self, name: str) -> bool:
        """Whether a host name is on the allow-list."""
        return self._allowed is not None and self._allowed.match(name) is not None

    def category(self, name: str) -> tuple[int, str] | None:
        """Category id and name for a host name, or None."""
        for domains, category, label in self._lists:
            if domains.match(name):
                return category, label
        return None


class Inspector:
    """Asks nDPI and the watches, and decides when there is news."""

    def __init__(
        self,
        classifier: Classifier,
        *,
        names: NameLists | None = None,
        detection_packets: int = 12,
        watch_http: bool = True,
        http_answers: bool = False,
        keep_match_payload: bool = False,
    ) -> None:
        """`http_answers`: look at what plain-HTTP servers send, too; else at requests alone.

        `keep_match_payload`: beyond inspection, for scripts that ask for it in later hooks.
        """
        self.classifier = classifier
        self.on_news: Callable[[Flow, Hook], None] = lambda flow, hook: None  # noqa: ARG005
        """Called with a flow and the hook that is due; the engine's."""
        self.names = names or NameLists(DomainSet(), DomainSet(), DomainSet())
        self.detection_packets = detection_packets
        self.watch_http = watch_http
        self.http_answers = http_answers
        self.keep_match_payload = keep_match_payload
        self.max_held = MAX_HELD
        """Segments that wait for a gap to fill."""
        self._traits: dict[int, _Traits] = {}
        """By classification word."""

    def look(self, flow: Flow, packet: Packet, from_client: bool, time_ms: int) -> None:
        """Look into one packet; `on_news` hears of all that it makes known."""
        stream = flow.stream
        taken: Packet | None = packet
        if from_client and flow.isn >= 0 and packet.payload_length:
            taken = _from_start(flow, packet)
        # What was there before may come again with other contents, once it is confirmed.
        stale = stream is not None and from_client and taken is not None and stream.has(taken)
        segments: tuple[Packet, ...] = ()
        if taken is not None:
            segments = (taken,) if stream is None else stream.order(taken, from_client, self.max_held)
        for segment in segments:
            new, requests = not flow.detected, flow.requests
            if segment.payload_length and stream is not None:
                if from_client:
                    if not flow.client_spoke:
                        flow.client_spoke = True
                        self._expect_requests(flow, segment)
                elif not flow.tls_chosen:
                    flow.tls_chosen = _server_hello_version(segment)
            dpi = flow.dpi
            if dpi is not None and not (stale and segment is taken):
                data = _to_feed(flow, segment, from_client)
                word = flow.word
                if data:
                    flow.inspected += 1
                    word = dpi.feed(data, time_ms)
                if word != flow.word and word & DETECTED:
                    self._classify(flow, word)
                    self._follow_watch(flow, segment)
                    if flow.detected:
                        self.on_news(flow, _UPDATED)
            watch = flow.watch
            if watch is not None and (from_client or flow.proto == UDP):
                for request in watch.feed(segment):
                    self._request(flow, segment, request, time_ms)
            classified = flow.word & DETECTED
            if classified and not flow.match_length and not flow.requests:
                self._match(flow, segment)
            if not flow.detected and (classified or flow.proto not in (TCP, UDP)) and self._ready(flow):
                self.on_news(flow, _DETECTED)
            dpi = flow.dpi
            if dpi is not None and flow.detected:
                over = flow.inspected > MAX_INSPECTED.get(flow.proto, MAX_INSPECTED[UDP])
                enough = from_client and not self.http_answers and _has_asked(flow)
                if over or (classified and (enough or not dpi.more_possible())):
                    told = new or flow.requests != requests  # the hooks have just seen all there is
                    if self._finish(flow) and not told:
                        self.on_news(flow, _UPDATED)
        if not flow.detected and flow.inspected >= self.detection_packets:
            self.stop_waiting(flow)
            self.on_news(flow, _DETECTED)

    def awaits_answer(self, flow: Flow) -> bool:
        """Whether it is plain HTTP, and what the server answers shall be looked at."""
        return self.http_answers and flow.dpi is not None and isinstance(flow.watch, HttpWatch)

    def stop_waiting(self, flow: Flow) -> None:
        """Detection takes too long: hooks shall run with what is known. Inspection itself goes on."""
        if not flow.word & DETECTED:
            flow.failures = (*flow.failures, _UNCLASSIFIED)

    def end(self, flow: Flow) -> None:
        """The flow ends: end its inspection; `on_news` hears of what that makes known."""
        grown = self._finish(flow)
        if not flow.detected:
            self.stop_waiting(flow)
            self.on_news(flow, _DETECTED)
        elif grown:
            self.on_news(flow, _UPDATED)

    def _finish(self, flow: Flow) -> bool:
        """End the inspection, guessing if need be; a watch goes on. Whether that made anything known."""
        dpi = flow.dpi
        if dpi is None:
            return False
        if flow.stream is not None and not flow.word & DETECTED:
            for segment in flow.stream.flush():  # what still waits for a gap to fill
                word = dpi.feed(segment.data, int(flow.last_seen * 1000))
                if word & DETECTED:
                    self._classify(flow, word)
        guessed = False
        if not flow.word & DETECTED:
            word = dpi.give_up()
            guessed = bool(word & DETECTED)
            if guessed:
                self._classify(flow, word)
        grown = self._read_facts(flow)
        flow.risks = dpi.risks()
        dpi.close()
        flow.dpi = None
        self._settle(flow)
        return guessed or grown

    def let_go(self, flow: Flow) -> None:
        """Nothing more of the flow will be seen: keep what is known, and no hook runs."""
        self._finish(flow)
        flow.watch = None
        self._settle(flow)

    def abandon(self, flow: Flow) -> None:
        """Inspection of this flow failed: end it without asking anything more."""
        dpi, flow.dpi, flow.watch = flow.dpi, None, None
        self._settle(flow)
        if dpi is not None:
            with suppress(Exception):
                dpi.close()

    # What is known

    def _traits_of(self, word: int) -> _Traits:
        traits = self._traits.get(word)
        if traits is None:
            traits = self._traits[word] = _Traits(self.classifier.describe(word))
        return traits

    def classify_anew(self, flow: Flow) -> None:
        """Lists have changed: whether the flow's name and ends are on them."""
        self._set_classification(flow, self.classifier.describe(flow.word))

    def _classify(self, flow: Flow, word: int) -> None:
        flow.word = word
        if _UNCLASSIFIED in flow.failures:
            flow.failures = tuple(cause for cause in flow.failures if cause is not _UNCLASSIFIED)
        if not flow.requests and flow.dpi is not None:
            flow.hostname = flow.dpi.hostname()
        self._set_classification(flow, self.classifier.describe(word))

    def _set_classification(self, flow: Flow, classification: Classification) -> None:
        flow.blacklisted = flow.client.blacklisted or flow.server.blacklisted
        flow.allowed = bool(flow.hostname) and self.names.allows(flow.hostname)
        listed = self.names.category(flow.hostname) if flow.hostname and not flow.allowed else None
        if listed:
            classification = classification._replace(category_id=listed[0], category=listed[1])
            flow.blacklisted = flow.blacklisted or listed[0] == CATEGORY_MALWARE
        flow.classification = classification
        if not flow.renamed:
            flow.first_classification = classification

    def _ready(self, flow: Flow) -> bool:
        """Whether enough is known for protocolDetected: the application, and the server's name if any.

        Other protocols than TCP and UDP have no more to tell than they do at once.
        """
        if not flow.word & DETECTED or flow.hostname or flow.goodput_rcvd:
            return True
        if not self._traits_of(flow.word).names_server:
            return True
        # No name: is that because the client gave none, or because the rest of its hello is still to come?
        if flow.watch is not None:
            return False
        facts = self.facts(flow)
        return bool(facts.ja3 or facts.ja4 or facts.tls_version)

    @staticmethod
    def _match(flow: Flow, packet: Packet) -> None:
        """This is the packet on which detection completed."""
        flow.match_length = packet.payload_length
        flow.match_payload = packet.payload_bytes() if packet.payload_length else b""

    def _settle(self, flow: Flow) -> None:
        """Let go of what is no longer needed."""
        if flow.dpi is None and flow.watch is None:
            flow.looking, flow.hello = False, None
            if flow.stream is not None:
                flow.disorder, flow.stream = flow.stream.disorder, None
            if not self.keep_match_payload:
                flow.match_payload = None

    # Facts

    def risks(self, flow: Flow) -> int:
        """nDPI's risk bitmap of a flow, as of its latest packet."""
        return flow.dpi.risks() if flow.dpi is not None else flow.risks

    def facts(self, flow: Flow) -> Facts:
        """All facts of a flow as of its latest packet."""
        if flow.dpi is not None and flow.facts_at != flow.packets:
            self._read_facts(flow)
        return flow.facts

    def _read_facts(self, flow: Flow) -> bool:
        """Ask nDPI for facts; whether there are any."""
        if flow.dpi is None or not (flow.hostname or self._traits_of(flow.word).speaks):
            return False
        flow.facts_at = flow.packets
        watch = flow.watch
        if flow.requests and isinstance(watch, DnsWatch):  # it knows all that nDPI would tell, and more
            flow.facts.dns_reply_code = watch.reply_code
            return watch.reply_code != 0
        asked = flow.facts
        if flow.requests:  # the watch's view of the request is whole, nDPI's is cut
            if not flow.goodput_rcvd:
                return True
            answer = flow.dpi.http_answer()
            if answer is not None:
                asked.http_code, asked.http_content_type = answer
                return True
        facts = flow.dpi.facts()
        if facts.tls_version and 0 < flow.tls_chosen < 0x0303:
            facts = replace(facts, tls_version=flow.tls_chosen)  # nDPI keeps the client's, but for TLS 1.3
        if flow.requests:
            facts = replace(
                facts,
                hostname=asked.hostname,
                http_url=asked.http_url,
                http_method=asked.http_method,
                http_user_agent=asked.http_user_agent,
            )
        flow.facts = facts
        return True

    # Requests

    def _expect_requests(self, flow: Flow, packet: Packet) -> None:
        """Watch from a client's first bytes on: a request may be split before nDPI can name the protocol."""
        start = (flow.isn + 1) & 0xFFFFFFFF if flow.isn >= 0 else -1
        if starts_hello(packet.payload_bytes()):
            flow.hello = Hello(start)
        if flow.key[-2:] == _DNS_PORT:
            flow.watch = DnsWatch(start)
        elif self.watch_http and REQUEST_START.match(packet.payload_bytes()):
            flow.watch = HttpWatch(start)

    def _follow_watch(self, flow: Flow, segment: Packet) -> None:
        """The protocol is known now: watch what needs watching, and nothing else."""
        traits = self._traits_of(flow.word)
        if traits.is_dns:
            if not isinstance(flow.watch, DnsWatch):
                flow.watch = DnsWatch()
        elif traits.asks and self.watch_http and flow.proto == TCP:
            if not isinstance(flow.watch, HttpWatch):
                flow.watch = HttpWatch()
        elif not flow.requests and not (isinstance(flow.watch, HttpWatch) and flow.watch.is_blank(segment)):
            flow.watch = None

    def _request(self, flow: Flow, packet: Packet, request: Request, time_ms: int) -> None:
        """The client asks for something."""
        first = flow.requests == 0
        known = flow.facts
        if not first and (request.name, request.url, request.method, request.query_type) == (
            flow.hostname,
            known.http_url,
            known.http_method,
            known.dns_query_type,
        ):
            return
        renamed = request.name != flow.hostname
        flow.requests += 1
        if request.name:
            flow.hostname = request.name
        flow.facts = Facts(
            hostname=request.name,
            dns_query=request.name if not request.method else "",
            dns_query_type=request.query_type,
            http_url=request.url,
            http_method=request.method,
            http_user_agent=request.user_agent,
        )
        flow.facts_at = -1
        flow.renamed = flow.renamed or (renamed and not first)
        if (not first and renamed) or not flow.word & DETECTED:
            self._inspect_anew(flow, packet, request, time_ms)
        else:
            self._set_classification(flow, self.classifier.describe(flow.word))
        if flow.word & DETECTED and not flow.match_length:
            self._match(flow, packet)
        # Whom the client asks for is known, even where nDPI finds no name for how it asks.
        self.on_news(flow, _UPDATED if flow.detected else _DETECTED)

    def _inspect_anew(self, flow: Flow, packet: Packet, request: Request, time_ms: int) -> None:
        """nDPI looks at one request per state: give it a fresh one, and the request as one packet."""
        dpi = self.classifier.open()
        word = dpi.feed(carrying(packet, request.head), time_ms)
        if not self._traits_of(word).asks:  # not recognised by itself: what was known stays
            dpi.close()
            self._set_classification(flow, self.classifier.describe(flow.word))
            return
        if flow.dpi is not None:
            flow.dpi.close()
        flow.dpi = dpi
        if flow.stream is None and flow.proto == TCP:
            flow.stream = Stream()
        flow.word = word
        self._set_classification(flow, self.classifier.describe(word))


def _to_feed(flow: Flow, segment: Packet, from_client: bool) -> bytes:
    """The packet that nDPI shall see: empty while a hello is not whole."""
    hello = flow.hello
    if hello is not None and from_client and segment.payload_length:
        whole = hello.take(segment)
        if not whole:
            return b""
        flow.hello = None
        return carrying(segment, whole)
    data = segment.data
    if len(data) < segment.ip_length:  # cut short: nDPI wants lengths that hold
        data = carrying(segment, segment.payload_bytes())
    return data


def _has_asked(flow: Flow) -> bool:
    """Whether it is plain HTTP, and a whole request was seen, body included."""
    watch = flow.watch
    return flow.requests > 0 and isinstance(watch, HttpWatch) and watch.between_requests


def _from_start(flow: Flow, packet: Packet) -> Packet | None:
    """A client's segment without what stands before the start of its stream; None if all of it does.

    The server throws that away, so nothing may be judged by it.
    """
    stale = ahead(flow.isn + 1, packet.seq + 1 if packet.flags & SYN else packet.seq)
    if stale <= 0 or flow.goodput_sent > 1 << 30:  # numbers come round again
        return packet
    return without_first(packet, stale) if stale < packet.payload_length else None


def _server_hello_version(packet: Packet) -> int:
    """`legacy_version` of a TLS ServerHello (RFC 8446, 4.1.3); 0 if it is none."""
    data, at = packet.data, packet.payload
    if len(data) < at + 11 or data[at] != _TLS_HANDSHAKE or data[at + 5] != _SERVER_HELLO:
        return 0
    return data[at + 9] << 8 | data[at + 10]
