"""Looking into packets: what a flow is, whom it asks for, and when that is known well enough to run hooks.

`Inspector.look` takes a packet of a flow that is still looked into. It updates what is known of the flow and
yields a hook each time there is news, so that hooks see the flow as it was at that request, not the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from nedge.core.facts import Classification, Classifier, Facts
from nedge.core.flow import NO_FACTS, Flow
from nedge.core.hooks import Hook
from nedge.core.lists import DomainSet
from nedge.core.packet import TCP, UDP, Packet
from nedge.core.stream import Stream
from nedge.core.verdict import Failure
from nedge.core.watch import DnsWatch, HttpWatch, Request

MAX_INSPECTED = {TCP: 32, UDP: 24}
"""Packets after which inspection ends with a guess: more change nothing (other protocols as UDP)."""

CATEGORY_MINING, CATEGORY_MALWARE, CATEGORY_ADVERTISEMENT = 99, 100, 101
"""nDPI's custom categories, which name lists set."""

_DNS_PORT = b"\x00\x35"
_HTTP_START = re.compile(rb"[A-Z][A-Z-]{2,19} ")
_NAMED = frozenset(("TLS", "QUIC", "HTTP", "DTLS", "DNS"))
"""Protocols whose clients name their server: hooks wait for that name."""
_SPEAKING = _NAMED | {"SSH"}
"""Protocols that leave facts behind, beside their name."""


class NameLists:
    """Domain lists that give a flow a category. The first list that covers a name wins."""

    def __init__(self, malware: DomainSet, mining: DomainSet, advertisement: DomainSet) -> None:
        self._lists = [
            (domains, category, name)
            for domains, category, name in (
                (malware, CATEGORY_MALWARE, "Malware"),
                (mining, CATEGORY_MINING, "Mining"),
                (advertisement, CATEGORY_ADVERTISEMENT, "Advertisement"),
            )
            if len(domains)
        ]

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
    ) -> None:
        self.classifier = classifier
        self.names = names or NameLists(DomainSet(), DomainSet(), DomainSet())
        self.detection_packets = detection_packets
        self.watch_http = watch_http

    def look(self, flow: Flow, packet: Packet, from_client: bool, time_ms: int) -> Iterator[Hook]:
        """Look into one packet; yields the hooks that there is news for."""
        streams = flow.streams
        if streams is None:
            yield from self._look_in_order(flow, packet, from_client, time_ms)
        else:
            for segment in streams[not from_client].order(packet):
                yield from self._look_in_order(flow, segment, from_client, time_ms)
        if not flow.detected and flow.packets >= self.detection_packets:
            yield from self.stop_waiting(flow)

    def _look_in_order(self, flow: Flow, packet: Packet, from_client: bool, time_ms: int) -> Iterator[Hook]:
        if flow.watch is None and from_client and not flow.detected and flow.proto == TCP:
            self._expect_requests(flow, packet)
        new = not flow.detected
        dpi = flow.dpi
        if dpi is not None:
            word = dpi.feed(packet.data, time_ms)
            known = bool(word & 0xFFFF0000)
            if word != flow.word and known:
                self._classify(flow, word)
                self._follow_watch(flow)
                if flow.detected:
                    yield Hook.PROTOCOL_UPDATED
        if flow.watch is not None and (from_client or flow.proto == UDP):
            for request in flow.watch.feed(packet):
                yield from self._request(flow, packet, request, time_ms)
        if not flow.detected and self._ready(flow, packet):
            self._match(flow, packet)
            yield Hook.PROTOCOL_DETECTED
        if flow.dpi is not None and flow.detected:
            over = flow.packets > MAX_INSPECTED.get(flow.proto, MAX_INSPECTED[UDP])
            if over or (flow.word & 0xFFFF0000 and not flow.dpi.more_possible()):
                news = list(self.finish(flow))
                if not new:  # else the hooks have just seen all there is
                    yield from news

    def stop_waiting(self, flow: Flow) -> Iterator[Hook]:
        """Detection takes too long: hooks run with what is known. Inspection itself goes on."""
        if not flow.detected:
            if not flow.word & 0xFFFF0000:
                flow.failures = (*flow.failures, Failure.UNCLASSIFIED)
            yield Hook.PROTOCOL_DETECTED

    def finish(self, flow: Flow) -> Iterator[Hook]:
        """End the inspection, guessing if need be; a watch goes on. Yields what the end of it made known."""
        dpi = flow.dpi
        if dpi is None:
            return
        streams = flow.streams
        if streams is not None and not flow.word & 0xFFFF0000:
            for stream in streams:  # segments that still wait for a gap to fill
                for segment in stream.flush():
                    flow_word = dpi.feed(segment.data, int(flow.last_seen * 1000))
                    if flow_word & 0xFFFF0000:
                        self._classify(flow, flow_word)
        guessed = False
        if not flow.word & 0xFFFF0000:
            word = dpi.give_up()
            guessed = bool(word & 0xFFFF0000)
            if guessed:
                self._classify(flow, word)
        facts_before = flow.facts
        flow.facts = self._read_facts(flow)
        flow.facts_at = -1
        flow.risks = dpi.risks()
        dpi.close()
        flow.dpi = None
        self._settle(flow)
        if not flow.detected:
            yield from self.stop_waiting(flow)
        elif guessed or flow.facts != facts_before:
            yield Hook.PROTOCOL_UPDATED

    def abandon(self, flow: Flow) -> None:
        """Inspection of this flow failed: end it without asking anything more."""
        if flow.dpi is not None:
            flow.dpi.close()
            flow.dpi = None
        flow.watch = None
        self._settle(flow)

    # What is known

    def _classify(self, flow: Flow, word: int) -> None:
        flow.word = word
        if Failure.UNCLASSIFIED in flow.failures:
            flow.failures = tuple(cause for cause in flow.failures if cause is not Failure.UNCLASSIFIED)
        if not flow.requests and flow.dpi is not None:
            flow.hostname = flow.dpi.hostname()
        self._set_classification(flow, self.classifier.describe(word))

    def _set_classification(self, flow: Flow, classification: Classification) -> None:
        if flow.hostname:
            listed = self.names.category(flow.hostname)
            if listed:
                classification = classification._replace(category_id=listed[0], category=listed[1])
                flow.blacklisted = flow.blacklisted or listed[0] == CATEGORY_MALWARE
        flow.classification = classification
        if not flow.renamed:
            flow.first_classification = classification

    def _ready(self, flow: Flow, packet: Packet) -> bool:
        """Whether enough is known to run protocolDetected: the application, and the server's name if it has one."""
        if not flow.word & 0xFFFF0000:
            return flow.proto not in (TCP, UDP)
        if flow.hostname or flow.goodput_rcvd:
            return True
        classification = flow.classification
        if classification.app not in _NAMED and classification.master not in _NAMED:
            return True
        # No name: is that because the client gave none, or because the rest of its hello is still to come?
        if flow.watch is not None:
            return False
        facts = self.facts(flow)
        return bool(facts.ja3 or facts.ja4 or facts.tls_version)

    def _match(self, flow: Flow, packet: Packet) -> None:
        if flow.word & 0xFFFF0000:
            flow.match_length = packet.payload_length
            flow.match_payload = packet.payload_bytes() if packet.payload_length else b""

    def _settle(self, flow: Flow) -> None:
        """Let go of what is no longer needed."""
        if flow.dpi is None and flow.watch is None:
            flow.looking = False
            flow.streams = None

    # Facts

    def facts(self, flow: Flow) -> Facts:
        """All facts of a flow as of its latest packet."""
        if flow.dpi is not None and flow.facts_at != flow.packets:
            flow.facts = self._read_facts(flow)
            flow.facts_at = flow.packets
        return flow.facts

    def _read_facts(self, flow: Flow) -> Facts:
        classification = flow.classification
        if flow.dpi is None or not (
            classification.app in _SPEAKING or classification.master in _SPEAKING or flow.hostname
        ):
            return flow.facts
        facts = flow.dpi.facts()
        asked = flow.facts
        if flow.requests:  # the watch's view of the request is whole, nDPI's is cut
            facts = replace(
                facts,
                hostname=asked.hostname,
                dns_query=asked.dns_query,
                dns_query_type=asked.dns_query_type,
                http_url=asked.http_url,
                http_method=asked.http_method,
                http_user_agent=asked.http_user_agent,
            )
        return facts if facts != NO_FACTS else NO_FACTS

    # Requests

    def _expect_requests(self, flow: Flow, packet: Packet) -> None:
        """Watch from a client's first bytes on: a request may be split before nDPI can name the protocol."""
        if packet.payload_length == 0 or flow.goodput_sent != packet.payload_length:
            return
        if flow.key[-2:] == _DNS_PORT:
            flow.watch = DnsWatch()
        elif self.watch_http and _HTTP_START.match(packet.payload_bytes()):
            flow.watch = HttpWatch()

    def _follow_watch(self, flow: Flow) -> None:
        """The protocol is known now: watch what needs watching, and nothing else."""
        names = (flow.classification.app, flow.classification.master)
        if "DNS" in names:
            if not isinstance(flow.watch, DnsWatch):
                flow.watch = DnsWatch()
        elif "HTTP" in names and self.watch_http and flow.proto == TCP:
            if not isinstance(flow.watch, HttpWatch):
                flow.watch = HttpWatch()
        elif not flow.requests:
            flow.watch = None

    def _request(self, flow: Flow, packet: Packet, request: Request, time_ms: int) -> Iterator[Hook]:
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
        if (not first and renamed) or not flow.word & 0xFFFF0000:
            self._inspect_anew(flow, packet, request, time_ms)
        else:
            self._set_classification(flow, self.classifier.describe(flow.word))
        if flow.word & 0xFFFF0000:
            if not flow.detected:
                self._match(flow, packet)
                yield Hook.PROTOCOL_DETECTED
            else:
                yield Hook.PROTOCOL_UPDATED

    def _inspect_anew(self, flow: Flow, packet: Packet, request: Request, time_ms: int) -> None:
        """nDPI looks at one request per state: give it a fresh one, and the request as one packet."""
        dpi = self.classifier.open()
        word = dpi.feed(_as_one_packet(packet, request.head), time_ms)
        if not word & 0xFFFF0000:  # not enough by itself: what was known stays
            dpi.close()
            self._set_classification(flow, self.classifier.describe(flow.word))
            return
        if flow.dpi is not None:
            flow.dpi.close()
        flow.dpi = dpi
        if flow.streams is None and flow.proto == TCP:
            flow.streams = (Stream(), Stream())
        flow.word = word
        self._set_classification(flow, self.classifier.describe(word))


def _as_one_packet(packet: Packet, payload: bytes) -> bytes:
    """The packet with this payload instead of its own; lengths set, checksums not."""
    headers = bytearray(packet.data[: packet.payload])
    length = min(len(headers) + len(payload), 0xFFFF)
    if headers[0] >> 4 == 4:
        headers[2:4] = length.to_bytes(2)
        headers[6:8] = b"\0\0"
    else:
        headers[4:6] = (length - 40).to_bytes(2)
    if packet.proto == UDP:
        headers[packet.l4 + 4 : packet.l4 + 6] = (length - packet.l4).to_bytes(2)
    return bytes(headers) + payload[: length - len(headers)]
