"""The engine: a packet and a time go in, an action comes out.

`Engine.packet` is the whole journey: decode, find or open the flow, count, look into it while that can still
change anything, and give the flow's verdict. Hooks run inside, before the packet that caused them is judged.
"""

from __future__ import annotations

from dataclasses import fields
from itertools import islice
from typing import Final

from nedge.core.events import FlowEnded, Sink, ignore
from nedge.core.flow import SEVERAL, EndReason, Flow, Handshake, Share
from nedge.core.hooks import Hook, NoScripts, ScriptRunner
from nedge.core.hosts import Directory, Host, HostBook
from nedge.core.inspection import Inspector, NameLists
from nedge.core.judge import Judge
from nedge.core.limits import Counters, Limits
from nedge.core.normalizer import Normalizer
from nedge.core.offload import Offload
from nedge.core.packet import (
    ACK,
    FIN,
    FRAGMENT,
    ICMP,
    ICMPV6,
    MAX_IP_LENGTH,
    RST,
    SYN,
    TCP,
    UDP,
    Fragment,
    Malformed,
    Packet,
    decode,
)
from nedge.core.quic import connection_id
from nedge.core.silent import Blocked, SilentConnections, Start
from nedge.core.table import FlowTable
from nedge.core.verdict import Action, Failure, Operator, Policy
from nedge.core.watch import DnsWatch, parse_dns_query

# Members of enumerations are slow to look up; these are asked for with every packet.
_NONE: Final = Share.NONE
_PASS: Final = Share.PASS
_OPENED: Final = Handshake.SYN
_DONE: Final = Handshake.DONE
_DETECTED: Final = Hook.PROTOCOL_DETECTED
_PERIODIC: Final = Hook.PERIODIC_UPDATE
_FLOW_END: Final = Hook.FLOW_END
_GOES_ON: Final = Action.PASS
_UNCLASSIFIED: Final = Failure.UNCLASSIFIED

_SYN_ACK: Final = SYN | ACK
_FIN_RST: Final = FIN | RST
_KINDS: Final = SYN | ACK | FIN | RST

TICK: Final = 30.0
"""Seconds between two periodicUpdates of a flow."""
MISSED_SECONDS: Final = 60.0
"""Between two looks whether the kernel still has a flow that it took over."""


class Engine:
    """Flows, hosts, inspection, scripts and verdicts of one worker."""

    def __init__(
        self,
        inspector: Inspector,
        *,
        scripts: ScriptRunner | None = None,
        policy: Policy | None = None,
        directory: Directory | None = None,
        limits: Limits | None = None,
        sink: Sink = ignore,
        first_id: int = 1,
    ) -> None:
        """`first_id`: flows are numbered from here; other engines may have other numbers."""
        self.inspector = inspector
        inspector.on_news = self._news
        self.limits = limits or Limits()
        self.hosts = HostBook(directory or Directory())
        self.epoch = 0
        """Counts changes of policy."""
        self.table = FlowTable(self.limits.max_flows)
        self.counters = Counters()
        self.normalizer = Normalizer(self.counters)
        self.now = 0.0
        """The latest time seen; it never goes back."""
        self.slice: int | None = None
        """How many flows' timers run at most before the next packet is judged; None: all that are due."""
        self.share = Share.NONE
        """What the kernel shall do from now on with the flow of the latest packet; NONE also if it knows."""
        self._sink = sink
        self._next_id = first_id
        self._silent = SilentConnections()
        self.verdicts = Judge(
            scripts or NoScripts(),
            policy or Policy(),
            hosts=self.hosts,
            table=self.table,
            counters=self.counters,
            quarantine_seconds=self.limits.quarantine_seconds,
            sink=lambda event: self._sink(event),
            share_changes=lambda flow: self.offload.share_changes(flow),
        )
        self.offload = Offload(
            inspector=inspector,
            verdicts=self.verdicts,
            normalizer=self.normalizer,
            table=self.table,
            gone=self._gone,
        )
        judge = self.verdicts
        self.run_hook, self.judge, self.rejudge = judge.run_hook, judge.judge, judge.rejudge
        self.give, self.forget, self.release = judge.give, judge.forget, judge.release

    def figures(self) -> dict[str, int]:
        """All counters and gauges, flat."""
        names = (field.name for field in fields(Counters))
        figures = {name: getattr(self.counters, name) for name in names if name != "malformed"}
        figures |= {f"malformed_{why}": count for why, count in self.counters.malformed.items()}
        return figures | {"live_flows": self.table.count, "live_hosts": len(self.hosts)}

    # The way of a packet

    def packet(
        self,
        data: bytes,
        now: float,
        vlan: int = 0,
        mac: bytes = b"",
        wire_length: int = MAX_IP_LENGTH,
        *,
        tracked: bool = True,
        port: int = 0,
    ) -> Action:
        """Judge one packet. If it passes, and `normalizer.rewritten` is not empty, that goes on in its place.

        `data`: from the IP header on. `now`: epoch seconds. `mac`: of its sender on this segment, if known.
        `wire_length`: bytes there were on the wire from the IP header on (see `packet.decode`).
        `tracked`: where there is a kernel, it takes the packet for one of a connection that it knows.
        `port`: of the bridge, that it came by; 0 if that is not known.
        """
        if now < self.now:
            now = self.now
        elif self.table.next_wake <= now or self.verdicts.quarantine_ends <= now:
            self.advance(now)
        self.now = now
        self.share = _NONE
        offload, normalizer = self.offload, self.normalizer
        normalizer.rewritten, normalizer.awaits_answer = b"", False
        counters = self.counters
        counters.packets += 1

        packet = decode(data, vlan, wire_length)
        if not isinstance(packet, Packet):
            return self._not_a_packet(packet)
        counters.bytes += packet.ip_length
        if packet.flaw is not None:
            counters.malformed[packet.flaw] += 1
        if packet.flags & SYN or not tracked:
            normal = normalizer.before_flow(packet, tracked=tracked)
            if normal is None:
                return self._without_flow(Action.DROP)
            packet = normal
        key, flags = packet.key, packet.flags

        flow = self.table.get(key)
        if flow is None or (
            (flags & SYN or flow.verdict.action or (flow.proto == UDP and not flow.answered))
            and self._starts_anew(flow, packet, now, port)
        ):
            if (
                flow is None
                and flags & _KINDS == ACK
                and not packet.payload_length
                and offload.remark is not None
            ):
                return _GOES_ON  # of a flow that is forgotten; who the client is, it does not tell
            start = self._silent.recall(key) if packet.proto == TCP and not self.table.full else None
            again = flow is not None or (start is not None and start.key == key)
            if (
                flags & _SYN_ACK == SYN
                and start is not None
                and not _forged_syn(packet, port, start.key, start.port, blocked=start.blocked is not None)
            ):
                start = None  # another connection, or what shall be taken for one
            flow = self._open(packet, now, port, start)
            if flow is None:
                counters.table_full += 1
                return self._without_flow(self.limits.table_full)
            if again and flags & SYN and not normalizer.opened_again(flow, packet.seq):
                return self._without_flow(Action.DROP)

        elif flow.epoch != self.epoch:
            self._judge_anew(flow, now)

        from_client = key == flow.key
        if flags & _SYN_ACK == SYN:
            if not from_client and flow.may_turn_round:
                flow.turn_round(packet.seq, port)
                from_client = True
            elif (
                from_client
                and flow.handshake is _OPENED
                and packet.seq != flow.isn
                and not normalizer.awaits_answer
                and not normalizer.opened_again(flow, packet.seq)
            ):
                return self._without_flow(Action.DROP)
        if flags & ACK and flow.handshake is not _DONE and tracked and offload.remark is not None:
            flow.infer_handshake(packet, from_client)
        flow.count(packet, from_client, now)
        tells = True
        if not from_client:
            normalizer.from_server(flow, packet, port)
            if flags & _KINDS == ACK and not packet.payload_length and offload.remark is not None:
                tells = False
        elif (
            packet.payload_length
            and flow.proto == TCP
            and (flow.looking or flow.unconfirmed is not None or flow.isn == SEVERAL)
        ):
            normal = normalizer.from_client(flow, packet)
            if normal is None:
                flow.dropped_packets += 1
                return self._without_flow(Action.DROP)
            packet = normal
        if (
            from_client
            and flow.proto == TCP
            and not (packet.payload_length or flags & SYN)
            and normalizer.inline
        ):
            tells = False  # however many there are: they must not use up inspection
        if flags & _FIN_RST and flow.timer > now + self.limits.closed_seconds:
            self.table.wake_at(flow, now + self.limits.closed_seconds)
        if flow.looking:
            if mac:
                (flow.client if from_client else flow.server).mac = mac
            if tells:
                try:
                    self.inspector.look(flow, packet, from_client, int(now * 1000))
                except Exception:
                    self._inspection_failed(flow)

        action = flow.verdict.action
        if offload.remark is not None:
            if (flow.detected or action) and packet.flaw is None and not normalizer.rewritten:
                self.share = offload.hand_over(flow)
        elif flow.unconfirmed is not None and not flow.looking:
            normalizer.allows(flow, _PASS)
        if packet.flaw is not None:
            action = action or self.limits.malformed
        if action:
            flow.dropped_packets += 1
            counters.dropped_packets += 1
        return action

    def _not_a_packet(self, why: Malformed | Fragment) -> Action:
        if why is FRAGMENT:
            self.counters.fragments += 1
            return self._without_flow(self.limits.fragment)
        assert isinstance(why, Malformed)
        self.counters.malformed[why] += 1
        return self._without_flow(self.limits.malformed)

    def _without_flow(self, action: Action) -> Action:
        """What a policy says of a packet that belongs to no flow."""
        if action:
            self.counters.dropped_packets += 1
        return action

    def _starts_anew(self, flow: Flow, packet: Packet, now: float, port: int) -> bool:
        """Whether the packet opens a new flow on a 5-tuple that has one; that one then ends."""
        if flow.proto == TCP:
            if _forged_syn(packet, port, flow.key, flow.port, blocked=bool(flow.verdict.action)):
                return False
            # A SYN of what the kernel took over comes up only if the kernel's connection is a new one, or it
            # has data. Whatever it is: which numbers count, its answer tells.
            other = packet.seq != flow.isn
            anew = packet.flags & (SYN | ACK) == SYN and (
                flow.closing
                or flow.share is not Share.NONE
                or (other and bool(flow.verdict.action))
                or (other and self.normalizer.inline and packet.key == flow.key and flow.has_begun)
            )
        elif flow.proto != UDP or flow.operator is not Operator.NONE:
            anew = False
        elif flow.verdict.action and isinstance(flow.watch, DnsWatch):
            # A blocked query does not take the next one on its socket along: each is judged by itself.
            anew = parse_dns_query(packet.payload_bytes()) is not None
        else:
            # A client that tries another connection has had no answer: the one before may not have arrived.
            quic_id = connection_id(packet.payload_bytes())
            anew = not flow.answered and quic_id not in (b"", flow.quic_id) and packet.key == flow.key
        if anew:
            self._end(flow, now, EndReason.REPLACED)
        return anew

    def _open(self, packet: Packet, now: float, port: int, start: Start | None) -> Flow | None:
        """`start`: what is remembered of the connection, if it goes on."""
        if self.table.full:
            return None
        key = packet.key
        if start is not None:
            key = start.key
        size = (len(key) - 7) >> 1
        client = self.hosts.acquire(key[3 : 3 + size], key[0] << 8 | key[1])
        server = self.hosts.acquire(key[3 + size : 3 + 2 * size], client.vlan)
        flow = self._new_flow(key, client, server, packet, now, port, start)
        blocked = start.blocked if start is not None else None
        if blocked is not None and not self._still_blocked(flow, blocked, now):
            self._take_back_scores(flow)
            blocked = None  # it goes on as one that nothing was made of
            flow = self._new_flow(key, client, server, packet, now, port, start)
        self._next_id += 1
        self.table.add(flow)
        self.table.wake_at(flow, now + min(self.limits.detection_seconds, self.limits.idle_seconds))
        self.counters.flows += 1
        if blocked is not None:
            self.inspector.let_go(flow)
            return flow
        if packet.proto == TCP and (start.spoke if start is not None else not packet.flags & SYN):
            self.counters.midstream += 1
            if self.verdicts.policy.failures.get(Failure.MIDSTREAM, Action.PASS):
                flow.failures = (Failure.MIDSTREAM,)
        elif packet.proto == UDP:
            flow.quic_id = connection_id(packet.payload_bytes())
        elif packet.proto in (ICMP, ICMPV6) and packet.flaw is None:
            flow.icmp = (packet.data[packet.l4], packet.data[packet.l4 + 1])
        try:
            flow.dpi = self.inspector.classifier.open()
        except Exception:
            self._inspection_failed(flow)
        ordered = flow.operator or client.operator or server.operator
        if ordered or flow.failures or self.verdicts.policy.host_drop_score:
            self.verdicts.judge(flow, now)
        return flow

    def _new_flow(
        self,
        key: bytes,
        client: Host,
        server: Host,
        packet: Packet,
        now: float,
        port: int,
        start: Start | None,
    ) -> Flow:
        flow = Flow(self._next_id, key, client, server, packet, now)
        flow.epoch = self.epoch
        flow.port = port
        flow.blacklisted = client.blacklisted or server.blacklisted
        flow.operator = self.verdicts.orders.word_on_flow(key)
        if start is not None:
            flow.resume(start.number, start.port, start.handshake)
        return flow

    def _still_blocked(self, flow: Flow, blocked: Blocked, now: float) -> bool:
        """Whether a flow that goes on is blocked: by what is known of the one before, and today's policy."""
        blocked.restore(flow)
        self.inspector.classify_anew(flow)
        if blocked.epoch == self.epoch:
            self.verdicts.judge(flow, now)
        else:
            self._judge_anew(flow, now)
        return bool(flow.verdict.action)

    def _inspection_failed(self, flow: Flow) -> None:
        """No more of it for this flow; the policy for inspection errors has its say."""
        self.counters.dpi_errors += 1
        self.inspector.abandon(flow)
        flow.failures = (*flow.failures, Failure.DPI_ERROR)
        if flow.detected:
            self.verdicts.judge(flow, self.now)
        else:
            self._news(flow, _DETECTED)

    # What becomes known

    def _news(self, flow: Flow, hook: Hook) -> None:
        """What is known of a flow grew."""
        now = self.now
        if hook is _DETECTED:
            flow.detected = True
            flow.detected_at_packet = flow.decided_at_packet = flow.packets
            if _UNCLASSIFIED in flow.failures:
                self.counters.unclassified += 1
            if self.verdicts.scripts.wants(_PERIODIC, flow.proto):
                flow.next_tick = now + TICK
                self.table.wake_at(flow, min(flow.timer, flow.next_tick))
        self.verdicts.run_hook(flow, hook, now)

    def set_score_elsewhere(self, ip: str, vlan: int, score: int) -> None:
        """What the flows of other workers add to a host's score."""
        self.verdicts.set_score_elsewhere(ip, vlan, score, self.now)

    # A new policy

    def renew(
        self, *, scripts: ScriptRunner, policy: Policy, directory: Directory, limits: Limits, names: NameLists
    ) -> None:
        """Everything that judges is replaced. Live flows are judged anew when their next packet comes.

        The kernel must let them come up (a new generation of marks).
        """
        self.verdicts.scripts, self.verdicts.policy, self.limits = scripts, policy, limits
        self.verdicts.statuses_by.clear()
        self.verdicts.drops_by.clear()
        self.verdicts.quarantine_seconds = limits.quarantine_seconds
        self.inspector.names = names
        self.hosts.replace_directory(directory)
        self.table.max_flows = limits.max_flows
        self.epoch += 1

    def _judge_anew(self, flow: Flow, now: float) -> None:
        flow.epoch = self.epoch
        flow.share = Share.NONE
        if flow.client_score:
            self.hosts.score_changed(flow.client)
        if flow.server_score:
            self.hosts.score_changed(flow.server)
        flow.forget_statuses()
        self.hosts.refresh(flow.client)
        self.hosts.refresh(flow.server)
        self.inspector.classify_anew(flow)
        if flow.detected:
            self.verdicts.run_hook(flow, _DETECTED, now)
        else:
            self.verdicts.judge(flow, now)

    # Time

    def advance(self, now: float) -> None:
        """Let time pass: silent detections, periodicUpdate, ends of flows and of quarantines.

        Of `slice` flows at most; those left come the next time, see `late`.
        """
        due = self.table.due(now)
        for at, flow in islice(due, self.slice):
            self.now = max(self.now, at)
            self._wake(flow, at)
        self.now = max(self.now, now)
        if self.verdicts.quarantine_ends <= self.now:
            self.verdicts.end_quarantines(self.now)

    def _wake(self, flow: Flow, now: float) -> None:
        ends = flow.last_seen + self._patience(flow)
        if flow.share is not Share.NONE:  # the kernel will say when
            ends = now + min(self.limits.idle_seconds, MISSED_SECONDS)
            if self.offload.missed(flow):
                ends = now
        if ends <= now:
            self._end(flow, now, EndReason.CLOSED if flow.closing else EndReason.IDLE)
            return
        if not flow.detected:
            silent = flow.last_seen + self.limits.detection_seconds
            if silent <= now:
                self.inspector.stop_waiting(flow)
                self._news(flow, _DETECTED)
            else:
                ends = min(ends, silent)
        if flow.next_tick and flow.next_tick <= now:
            self.verdicts.run_hook(flow, _PERIODIC, now)
            flow.tick += 1
            flow.next_tick += TICK
        if flow.next_tick:
            ends = min(ends, flow.next_tick)
        self.table.wake_at(flow, ends)

    def _patience(self, flow: Flow) -> float:
        """Seconds of silence that end the flow."""
        if flow.proto == TCP and (flow.closing or Handshake.NONE < flow.handshake < Handshake.DONE):
            return min(self.limits.closed_seconds, self.limits.idle_seconds)
        return self.limits.idle_seconds

    def _gone(self, flow: Flow) -> None:
        """The kernel says that its connection has ended."""
        if flow.proto == TCP:
            flow.closing = True
        self._end(flow, self.now, EndReason.CLOSED if flow.proto == TCP else EndReason.IDLE)

    def _end(self, flow: Flow, now: float, reason: EndReason) -> None:
        followed = flow.looking or flow.unconfirmed is not None  # else it is not known how far the client is
        blocked = bool(flow.verdict.action)  # what is found out by its end, its packets have not felt
        try:
            self.inspector.end(flow)
        except Exception:
            self._inspection_failed(flow)
        self.verdicts.run_hook(flow, _FLOW_END, now)
        self.table.remove(flow)
        # A FIN or RST may be one that the server does not take, and of what is blocked it gets none.
        goes_on = flow.has_begun if blocked else flow.share is _NONE and followed
        if goes_on and flow.proto == TCP and reason is not EndReason.REPLACED:
            self._silent.remember(flow, blocked=blocked)
        self._sink(FlowEnded(flow, now, reason))
        self._take_back_scores(flow)
        self.hosts.release(flow.client, now)
        self.hosts.release(flow.server, now)

    def _take_back_scores(self, flow: Flow) -> None:
        """What it added to its hosts' scores."""
        flow.release_scores()
        if flow.client_score:
            self.hosts.score_changed(flow.client)
        if flow.server_score:
            self.hosts.score_changed(flow.server)

    @property
    def late(self) -> bool:
        """Whether timers are due that have not run."""
        return self.table.next_wake <= self.now

    def finish(self, now: float) -> None:
        """Shut down: every flow ends."""
        self.slice = None
        self.advance(now)
        for flow in self.table:
            self._end(flow, self.now, EndReason.SHUTDOWN)


def _forged_syn(packet: Packet, port: int, key: bytes, client_port: int, *, blocked: bool) -> bool:
    """Of a SYN from the server's end, on a connection with this key: whether it opens none.

    The client may have sent it: it did if it came by the client's port. Of what is blocked, nothing may make
    another one.
    """
    return packet.key != key and (blocked or (port != 0 and port == client_port))
