"""Running hooks and judging flows: from what scripts set, and what is known of hosts, to verdicts.

The verdict itself is `verdict.decide`; here is what it is made from, and what follows from it: alerts, hosts
put in quarantine, and flows judged anew since a host of theirs was.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from nedge.core.events import AlertRaised, HostQuarantined, Sink, VerdictChanged
from nedge.core.flow import Flow, Share, StatusRecord
from nedge.core.hooks import Hook, HookCall, ScriptRunner
from nedge.core.hosts import Host, HostBook
from nedge.core.limits import Counters
from nedge.core.orders import Cover, Kind, Order, OrderBook
from nedge.core.status import status_types
from nedge.core.table import FlowTable
from nedge.core.verdict import Action, Evidence, Failure, Operator, Policy, Rule, Verdict, decide

_BLOCKED: Final = status_types.status_blocked
_NO_SHARE: Final = Share.NONE
_STATUS_CHANGED: Final = Hook.STATUS_CHANGED
_NEVER: Final = float("inf")


class Judge:
    """Scripts and policy, and whom they concern. Replaceable: `scripts`, `policy`, `quarantine_seconds`."""

    def __init__(
        self,
        scripts: ScriptRunner,
        policy: Policy,
        *,
        hosts: HostBook,
        table: FlowTable,
        counters: Counters,
        quarantine_seconds: float,
        sink: Sink,
        share_changes: Callable[[Flow], None],
    ) -> None:
        """`share_changes`: called when the action changes of a flow that the kernel has a share in."""
        self.scripts = scripts
        self.policy = policy
        self.quarantine_seconds = quarantine_seconds
        self.quarantine_ends = _NEVER
        """When the next quarantine does."""
        self._hosts = hosts
        self._table = table
        self._counters = counters
        self._sink = sink
        self._share_changes = share_changes
        self.cut: Callable[[Host, float], None] | None = None
        """Has the kernel cut a host off for so many seconds."""
        self.orders = OrderBook()
        """The operator's orders in force. Change them by `give` and `forget`."""
        self.statuses_by: Counter[str] = Counter()
        """Script -> statuses that it set."""
        self.drops_by: Counter[str] = Counter()
        """Script -> flows blocked for a status or a score that it set. Several may share in one."""
        hosts.word_on = lambda ip: self.orders.word_on_address(ip)
        self._quarantined: list[Host] = []
        self._newly_cut: list[Host] = []
        self._cutting = False

    def run_hook(self, flow: Flow, hook: Hook, now: float) -> None:
        """Call the scripts, raise their alert, and judge the flow anew."""
        wants = self.scripts.wants
        if wants(hook, flow.proto):
            before, client_score, server_score = flow.status_map, flow.client_score, flow.server_score
            self._call(flow, hook, now)
            if flow.status_map != before and wants(_STATUS_CHANGED, flow.proto):
                self._call(flow, _STATUS_CHANGED, now)
            if flow.status_map != before:
                for key, record in (flow.statuses or {}).items():
                    if (flow.status_map & ~before) >> key & 1:
                        self.statuses_by[record.script] += 1
            if flow.client_score != client_score:
                self._hosts.score_changed(flow.client)
            if flow.server_score != server_score:
                self._hosts.score_changed(flow.server)
        self.judge(flow, now)

    def _call(self, flow: Flow, hook: Hook, now: float) -> None:
        call = HookCall(flow, hook, int(now))
        self.scripts.run(call)
        if call.failed:
            self._counters.script_errors += call.failed
            flow.add_failure(Failure.SCRIPT_ERROR)
        if call.timed_out:
            self._counters.script_timeouts += call.timed_out
            flow.add_failure(Failure.SCRIPT_TIMEOUT)
        self._counters.scripts_aside += call.put_aside
        candidate = call.candidate
        if candidate is not None and candidate.score > flow.alerted_score:
            flow.alerted_status = candidate.status.status_key
            flow.alerted_score = candidate.score
            self._counters.alerts += 1
            self._sink(AlertRaised(flow, now, candidate, self.action(flow, now)))

    def judge(self, flow: Flow, now: float) -> None:
        """Recompute the flow's verdict from all that is known now."""
        client, server = flow.client, flow.server
        if self.policy.host_drop_score:
            self._check_scores((client, server), now)
        verdict = decide(self.evidence(flow, now), self.policy)
        previous = flow.verdict
        if verdict == previous:
            return
        flow.verdict = verdict
        if verdict.action:
            flow.statuses = flow.statuses or {}
            flow.statuses[_BLOCKED.status_key] = StatusRecord(0, "", verdict.reason, time=now)
        if verdict.action == previous.action:
            return
        flow.decided_at_packet, flow.decided_at = flow.packets, now
        if flow.share is not _NO_SHARE:
            self._share_changes(flow)
        if verdict.action:
            self._hold_to_account(flow, verdict)
            flow.status_map |= _BLOCKED.bit
        else:
            flow.status_map &= ~_BLOCKED.bit
        self._sink(VerdictChanged(flow, now, previous))

    def evidence(self, flow: Flow, now: float) -> Evidence:
        """What the verdict is made from."""
        client, server, orders = flow.client, flow.server, self.orders
        name = orders.word_on_name(flow.hostname)
        operator = _strongest(flow.operator, client.operator, server.operator, name)
        order = orders.speaker(flow, operator) if operator else None
        limited = self.policy.host_drop_score
        return Evidence(
            flow.detected,
            operator,
            client.allowed or server.allowed or flow.allowed,
            flow.status_map,
            flow.score,
            self._host_score(client, now) if limited else 0,
            self._host_score(server, now) if limited else 0,
            flow.failures,
            order.text if order else "",
        )

    def _host_score(self, host: Host, now: float) -> int:
        """The live gauge; while in quarantine not less than the limit that put the host there."""
        if host.quarantined_until > now:
            return max(host.held_score, self.policy.host_drop_score)
        return host.held_score

    def _check_scores(self, hosts: Iterable[Host], now: float) -> None:
        """Quarantine hosts whose live score meets the limit: all their flows are judged anew."""
        for host in hosts:
            if host.held_score < self.policy.host_drop_score or host.allowed or host.quarantined_until > now:
                continue
            if host.operator is Operator.UNBLOCK:
                continue
            host.quarantined_until = now + self.quarantine_seconds
            self._quarantined.append(host)
            self._note_quarantine_end()
            self._counters.quarantines += 1
            self._sink(HostQuarantined(host, now, host.quarantined_until))
            if self.cut is not None:
                self.cut(host, self.quarantine_seconds)
            self._newly_cut.append(host)
        if self._cutting:
            return
        self._cutting = True  # judging its flows may cut more hosts: one after the other, however many
        try:
            while self._newly_cut:
                self.rejudge(self._newly_cut.pop(), now)
        finally:
            self._cutting = False

    def set_score_elsewhere(self, ip: str, vlan: int, score: int, now: float) -> None:
        """What the flows of other workers add to a host's score."""
        host = self._hosts.set_score_elsewhere(ip, vlan, score)
        if host is not None and self.policy.host_drop_score:
            self._check_scores((host,), now)

    def rejudge(self, host: Host | None, now: float) -> None:
        """Judge every live flow anew, or those of one host."""
        for flow in self._table:
            if host is None or flow.client is host or flow.server is host:
                self.judge(flow, now)

    def action(self, flow: Flow, now: float) -> Action:
        """What the verdict would be, by what is known now."""
        return decide(self.evidence(flow, now), self.policy).action

    def end_quarantines(self, now: float) -> None:
        """Let those hosts come back whose time is over."""
        over = [host for host in self._quarantined if host.quarantined_until <= now]
        self._quarantined = [host for host in self._quarantined if host.quarantined_until > now]
        self._note_quarantine_end()
        for host in over:
            for _ in self._let_go({host}, now):
                pass

    def _note_quarantine_end(self) -> None:
        self.quarantine_ends = min((host.quarantined_until for host in self._quarantined), default=_NEVER)

    def _hold_to_account(self, flow: Flow, verdict: Verdict) -> None:
        """Count the blocked flow with the scripts whose statuses or scores blocked it."""
        records = (flow.statuses or {}).items()
        if verdict.rule is Rule.STATUS:
            blocking = flow.status_map & self.policy.block_statuses
            self.drops_by.update({record.script for key, record in records if blocking >> key & 1})
        elif verdict.rule is Rule.FLOW_SCORE:
            self.drops_by.update({record.script for _key, record in records if record.score})

    # The operator

    def give(self, order: Order, now: float) -> Iterator[bool]:
        """An order is in force from now on. Exhaust what this gives: see `_obey`."""
        self.orders.add(order)
        return self._obey(order, now)

    def forget(self, number: int, now: float) -> Iterator[bool]:
        """An order is in force no more. Exhaust what this gives: see `_obey`."""
        order = self.orders.remove(number)
        return self._obey(order, now) if order else iter(())

    def release(self, ip: str, now: float) -> Iterator[bool]:
        """Let a host out of quarantine, in all VLANs, and forgive it the score that it has.

        Exhaust what this gives: see `_obey`.
        """
        self._hosts.forgive(ip)  # also one that has no flows here
        return self._let_go(self._hosts.of_address(ip), now)

    @property
    def quarantined(self) -> list[Host]:
        """The hosts in quarantine."""
        return self._quarantined

    def _let_go(self, hosts: set[Host], now: float) -> Iterator[bool]:
        """Hosts have been in quarantine for what their flows added to their scores: these take it back."""
        for host in hosts:
            host.quarantined_until = now
            self._hosts.forgive(host.ip, host.vlan)  # at once; the flows follow
        self._quarantined = [host for host in self._quarantined if host not in hosts]
        self._note_quarantine_end()
        return self._take_back(hosts, now)

    def _take_back(self, hosts: set[Host], now: float) -> Iterator[bool]:
        yield from self._sweep(lambda flow: _pardoned(flow, hosts), now)
        for host in hosts:
            host.forgiven = min(host.forgiven, host.score_elsewhere)  # other workers do the same
            self._hosts.score_changed(host)
            self._hosts.forget_if_idle(host, now)

    def _obey(self, order: Order, now: float) -> Iterator[bool]:
        """Judge anew what an order covers, step by step, so that packets can be judged between.

        Each step looks at one flow, and gives whether its action changed.
        """
        if order.kind is Kind.FLOW:
            flow = self._table.get(order.key)
            if flow is not None:
                flow.operator = self.orders.word_on_flow(order.key)
                yield self._rejudged(flow, now)
            return
        cover = Cover(order)
        if not cover.by_address:
            yield from self._sweep(lambda flow: cover.name(flow.hostname), now)
            return

        def obeys(host: Host) -> bool:  # hosts that come meanwhile know the order
            covered = cover.address(host.address)
            if covered:
                host.operator = self.orders.word_on_address(host.ip)
            return covered

        free = {host for host in self._quarantined if obeys(host) and host.operator is Operator.UNBLOCK}
        if free:
            yield from self._let_go(free, now)
        yield from self._sweep(lambda flow: obeys(flow.client) | obeys(flow.server), now)

    def _sweep(self, covers: Callable[[Flow], bool], now: float) -> Iterator[bool]:
        for flow in self._table.walk():
            yield covers(flow) and self._rejudged(flow, now)

    def _rejudged(self, flow: Flow, now: float) -> bool:
        """Judge a flow anew; whether its action changed."""
        before = flow.verdict.action
        self.judge(flow, now)
        return flow.verdict.action is not before


def _pardoned(flow: Flow, hosts: set[Host]) -> bool:
    """Take back what a flow added to the scores of hosts that are forgiven; whether it is one of theirs."""
    client, server = flow.client, flow.server
    if client in hosts:
        client.score_as_client -= flow.client_score
        client.forgiven = max(0, client.forgiven - flow.client_score)
        flow.client_score = 0
    if server in hosts:
        server.score_as_server -= flow.server_score
        server.forgiven = max(0, server.forgiven - flow.server_score)
        flow.server_score = 0
    return client in hosts or server in hosts


def _strongest(flow: Operator, client: Operator, server: Operator, name: Operator) -> Operator:
    """A word on the flow itself beats those on its hosts and its name; of these unblock beats block."""
    return flow or (max(client, server, name) if client or server or name else client)
