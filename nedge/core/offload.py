"""Flows that the kernel has a share in: what it may do by itself, and how what it counted comes back.

It gets its share once looking on cannot change the verdict, with the verdict on a packet; what changes later,
it is told. It counts the packets that do not come up any more, and says when their connection ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nedge.core.flow import Flow, Handshake, Share
from nedge.core.hooks import Hook
from nedge.core.inspection import Inspector
from nedge.core.judge import Judge
from nedge.core.normalizer import ASK_BYTES, Normalizer
from nedge.core.packet import ICMP, ICMPV6, SCTP, TCP, UDP
from nedge.core.table import FlowTable
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
_OF_ITS_OWN: Final = frozenset((Rule.STATUS, Rule.FLOW_SCORE, Rule.FAILURE))
"""What a flow is blocked for itself. Others blame its hosts: what that ends may come up again."""
_UPDATED: Final = Hook.PROTOCOL_UPDATED
_L4_HEADERS: Final = {TCP: 32, UDP: 8, SCTP: 12}
"""Usual sizes; TCP with timestamps."""


class Offload:
    """What the kernel of one gateway has of the flows of one engine."""

    def __init__(
        self,
        *,
        inspector: Inspector,
        verdicts: Judge,
        normalizer: Normalizer,
        table: FlowTable,
        gone: Callable[[Flow], None],
    ) -> None:
        """`gone`: called when the kernel's connection of a flow has ended."""
        self.remark: Callable[[Flow], None] | None = None
        """There is a kernel that takes flows over; called when the share it was given changes."""
        self._inspector = inspector
        self._verdicts = verdicts
        self._normalizer = normalizer
        self._table = table
        self._gone = gone
        self._readings = self._last_reading = 0
        """Number of the latest reading of the kernel's counters, and of the latest that was whole."""

    # Shares

    def _share(self, flow: Flow) -> Share:
        updates = flow.dpi is not None and (
            self._verdicts.scripts.wants(_UPDATED, flow.proto) or self._inspector.awaits_answer(flow)
        )
        return share_of(flow, awaits_updates=updates)

    def share_changes(self, flow: Flow) -> None:
        """The action of a flow that the kernel has a share in changed: tell it."""
        if self.remark is not None:
            flow.share = self._share(flow)
            flow.accounted = self._readings  # the reading under way may have been past it
            self.remark(flow)

    def hand_over(self, flow: Flow) -> Share:
        """The share to tell the kernel of, with the flow's latest packet."""
        share = self._share(flow)
        if flow.looking and (share is _PASS or (share is _DROP and flow.verdict.rule in _OF_ITS_OWN)):
            self._inspector.let_go(flow)
        if share is _NONE or not self._normalizer.allows(flow, share):
            self._ask(flow, share)
            if share is not _NONE:
                return _NONE
        if share is _WATCH and flow.share is _WATCH:
            return _NONE
        if share is not flow.share:
            flow.share = share
            flow.accounted = self._readings  # the reading under way may have been past it
        return share

    def _ask(self, flow: Flow, share: Share) -> None:
        """What the server sends shall come up, for it confirms; `share`: what the kernel could have then.

        If the flow's start was not seen, another worker may have left that to the kernel.
        """
        told = share is not _NONE and flow.share is not _NONE
        unconfirmed = flow.unconfirmed
        size = 0 if share is _PASS and flow.isn < 0 else ASK_BYTES
        if told or (unconfirmed is not None and unconfirmed.shall_ask(size)):
            flow.share = _NONE
            if self.remark is not None:
                self.remark(flow)

    # Counters and ends

    def begin_reading(self) -> None:
        """A reading of all the kernel's counters begins; see `account` and `end_reading`."""
        self._readings += 1

    def account(
        self, key: bytes, sent: tuple[int, int], received: tuple[int, int], last: float, *, ended: bool
    ) -> None:
        """What the kernel counted of a connection, whose last packet was at `last` or before.

        `ended`: it has. Connections that are no flow of ours are ignored.
        """
        flow = self._table.get(key)
        if flow is None or flow.share is _NONE:
            return
        take_over(flow, key, sent, received, last)
        flow.accounted = self._readings
        if ended:
            self._gone(flow)

    def end_reading(self) -> None:
        """All counters were read: flows that two readings missed are gone, though no event said so.

        Their timers find that out; to walk all flows now would keep packets waiting.
        """
        self._last_reading = self._readings

    def missed(self, flow: Flow) -> bool:
        """Whether the latest two readings did not meet the flow's connection."""
        return flow.accounted < self._last_reading - 1


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


def take_over(flow: Flow, key: bytes, sent: tuple[int, int], received: tuple[int, int], last: float) -> None:
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
