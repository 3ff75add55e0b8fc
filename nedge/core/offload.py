"""The kernel's share of a flow: what it may do by itself, once looking on cannot change the verdict.

Here too: how what the kernel counted of such a flow gets into its books.
"""

from __future__ import annotations

from typing import Final

from nedge.core.flow import Flow, Handshake, Share
from nedge.core.packet import ICMP, ICMPV6, SCTP, TCP, UDP
from nedge.core.verdict import Action, Rule
from nedge.core.watch import DnsWatch

MAX_REJECTS: Final = 16
"""Packets of a flow that are answered with a reject; those after them are dropped, by the kernel. One is not
always enough: with data in flight a RST comes too late for its number."""

_NONE: Final = Share.NONE
_PASS: Final = Share.PASS
_DROP: Final = Share.DROP
_WATCH: Final = Share.WATCH
_REJECT: Final = Action.REJECT
_UNDETECTED: Final = Rule.UNDETECTED
_NOT_SEEN: Final = Handshake.NONE
_L4_HEADERS: Final = {TCP: 32, UDP: 8, SCTP: 12}
"""Usual sizes; TCP with timestamps."""


def share_of(flow: Flow, *, awaits_updates: bool) -> Share:
    """The kernel's share of a flow.

    `awaits_updates`: somebody wants to hear when more becomes known of it: scripts by protocolUpdated, or who
    has answers of HTTP looked at.
    """
    proto = flow.proto
    if proto in (ICMP, ICMPV6) or flow.tunnelled:
        return _NONE  # the kernel's connections are others than our flows
    verdict = flow.verdict
    if verdict.action:
        if verdict.action is _REJECT and flow.dropped_packets < MAX_REJECTS:
            return _NONE  # each packet gets its answer
        # A blocked query does not take the next one on its socket along.
        return _NONE if proto == UDP and isinstance(flow.watch, DnsWatch) else _DROP
    if not flow.detected or verdict.rule is _UNDETECTED:
        return _NONE
    if flow.dpi is not None and (awaits_updates or not flow.word):
        return _NONE
    if flow.watch is not None:
        # The kernel's idea of who asks must be ours: so the start must have been seen.
        started = proto != TCP or flow.handshake > _NOT_SEEN
        return _WATCH if started else _NONE
    return _PASS


def account(flow: Flow, key: bytes, sent: tuple[int, int], received: tuple[int, int], last: float) -> None:
    """Take over the kernel's counters: (packets, bytes) of the direction that `key` names, and of the other.

    `last`: when, at the latest, the last packet can have been.

    They count from the connection's start, so they replace ours where they are ahead. The kernel does not
    count payload: goodput grows by an estimate, as if each packet had the usual headers.
    """
    if key != flow.key:
        sent, received = received, sent
    if sent[0] + received[0] <= flow.packets:
        return
    flow.last_seen = max(flow.last_seen, last)
    header = (40 if flow.is_v6 else 20) + _L4_HEADERS.get(flow.proto, 0)
    packets, size = sent[0] - flow.packets_sent, sent[1] - flow.bytes_sent
    if packets > 0:
        flow.packets_sent, flow.bytes_sent = sent
        flow.goodput_sent += max(0, size - packets * header)
    packets, size = received[0] - flow.packets_rcvd, received[1] - flow.bytes_rcvd
    if packets > 0:
        flow.packets_rcvd, flow.bytes_rcvd = received
        flow.goodput_rcvd += max(0, size - packets * header)
