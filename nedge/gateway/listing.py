"""Rows of flows, hosts and scripts, as the control API lists them.

The work goes step by step (a generator's `next` looks at one flow or host), so that the worker can judge
packets between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from heapq import heappush, heappushpop
from typing import Any

from nedge.control.protocol import MAX_TEXT, ControlError, FlowSort, Kind
from nedge.control.requests import Filter, Flows, Hosts
from nedge.core.engine import Engine
from nedge.core.flow import FLOWS_PER_WORKER, Flow
from nedge.core.hosts import Host
from nedge.core.lists import DomainSet
from nedge.core.orders import Cover, Order, TargetError, parse_target
from nedge.core.orders import Kind as Target
from nedge.core.status import STATUS_TYPES, StatusType
from nedge.core.verdict import Action, Operator
from nedge.export.eve import proto_name
from nedge.scripts.script import PERIODIC_STEP, Script

FLOW_COLUMNS = (
    "id", "src_ip", "src_port", "dest_ip", "dest_port", "proto", "vlan", "app_proto", "category", "hostname",
    "status", "score", "cli_score", "srv_score", "verdict", "reason", "kernel",
    "pkts_toserver", "pkts_toclient", "bytes_toserver", "bytes_toclient", "dropped_packets", "start", "last",
)  # fmt: skip
HOST_COLUMNS = (
    "ip", "vlan", "local", "flows_as_client", "flows_as_server", "blocked_flows", "bytes_sent", "bytes_rcvd",
    "score", "operator", "allowed", "blacklisted", "quarantined_until",
)  # fmt: skip
SCRIPT_COLUMNS = (
    "script", "title", "category", "hooks", "filters", "calls", "time_ns", "p99_ns", "errors",
    "timeouts", "last_error", "last_error_at", "aside", "statuses_set", "flows_dropped",
)  # fmt: skip

Row = list[Any]
Rows = Iterator[Row | None]
"""A row, or None after a step that gave none."""
Statuses = Mapping[str, StatusType]
"""By name."""

_SORT_KEYS: dict[FlowSort, Callable[[Flow], float]] = {
    FlowSort.START: lambda flow: flow.first_seen,
    FlowSort.LAST: lambda flow: flow.last_seen,
    FlowSort.SCORE: lambda flow: flow.score,
    FlowSort.BYTES: lambda flow: flow.bytes,
    FlowSort.PACKETS: lambda flow: flow.packets,
    FlowSort.DROPPED: lambda flow: flow.dropped_packets,
}


def flow_row(flow: Flow, worker: int) -> Row:
    """A flow in FLOW_COLUMNS. `worker`: the number that is part of its id."""
    classification, verdict = flow.classification, flow.verdict
    return [
        flow_id(flow, worker),
        flow.client.ip,
        flow.client_port,
        flow.server.ip,
        flow.server_port,
        proto_name(flow.proto),
        flow.vlan,
        classification.protocol,
        classification.category,
        flow.hostname[:MAX_TEXT],
        flow.status_names if flow.status_map else [],
        flow.score,
        flow.client_score,
        flow.server_score,
        verdict.action.label,
        verdict.reason,
        flow.share.name.lower(),
        flow.packets_sent,
        flow.packets_rcvd,
        flow.bytes_sent,
        flow.bytes_rcvd,
        flow.dropped_packets,
        flow.first_seen,
        flow.last_seen,
    ]


def flow_id(flow: Flow, worker: int) -> str:
    """`WORKER-NUMBER`: unique as long as the gateway runs, and short; events have `Flow.id`."""
    return f"{worker}-{flow.id % FLOWS_PER_WORKER}"


def list_flows(
    engine: Engine, wanted: Flows, statuses: Statuses, worker: int, count: Callable[[bool], None]
) -> Rows:
    """The flows that are wanted; the first `limit` of them by the sort key, in no order.

    `count` is told of every flow looked at whether it matches. A flow may come twice.
    """
    matches = matcher(wanted, statuses)
    limit, sort = wanted.limit, _SORT_KEYS[wanted.sort]
    best: list[tuple[float, int, int, Flow]] = []
    for looked_at, flow in enumerate(engine.table.walk()):
        matching = matches(flow)
        count(matching)
        if not matching:
            yield None
        elif not limit:
            yield flow_row(flow, worker)
        else:
            value = -sort(flow) if wanted.reverse else sort(flow)
            entry = value, flow.id, looked_at, flow
            if len(best) < limit:
                heappush(best, entry)
            else:
                heappushpop(best, entry)
            yield None
    for _value, _id, _looked_at, flow in best:
        yield flow_row(flow, worker)


def list_hosts(engine: Engine, wanted: Hosts, statuses: Statuses, now: float) -> Rows:
    """The hosts that are wanted, with what the flows of this worker add to them."""
    matches, is_host = matcher(wanted, statuses, of_host=True), _host_test(wanted.host)
    narrowed = any((wanted.protocol, wanted.category, wanted.verdict, wanted.status))
    sums: dict[Host, list[int]] = {}
    for flow in engine.table.walk():
        if matches(flow):
            blocked = bool(flow.verdict.action)
            for host, as_client, sent, rcvd in (
                (flow.client, True, flow.bytes_sent, flow.bytes_rcvd),
                (flow.server, False, flow.bytes_rcvd, flow.bytes_sent),
            ):
                entry = sums.get(host)
                if entry is None:
                    entry = sums[host] = [0, 0, 0, 0, 0]
                entry[not as_client] += 1
                entry[2] += blocked
                entry[3] += sent
                entry[4] += rcvd
        yield None
    if not narrowed:
        for host in engine.verdicts.quarantined:  # all others there are have flows
            sums.setdefault(host, [0, 0, 0, 0, 0])
    for host, entry in sums.items():
        until = host.quarantined_until if host.quarantined_until > now else 0
        if (wanted.quarantined and not until) or host.score < wanted.min_score or not is_host(host):
            yield None
            continue
        yield [
            host.ip,
            host.vlan,
            host.local,
            *entry,
            host.score,
            "" if host.operator is Operator.NONE else host.operator.name.lower(),
            host.allowed,
            host.blacklisted,
            until,
        ]


def matcher(wanted: Filter, statuses: Statuses, *, of_host: bool = False) -> Callable[[Flow], bool]:
    """Whether a flow is wanted. Raises ControlError for a filter that cannot be met.

    `of_host`: hosts are listed: `host` and `min_score` are about them, not about flows.
    """
    tests: list[Callable[[Flow], bool]] = []
    if wanted.verdict == "blocked":
        tests.append(lambda flow: flow.verdict.action is not Action.PASS)
    elif wanted.verdict:
        action = Action[wanted.verdict.upper()]
        tests.append(lambda flow: flow.verdict.action is action)
    if wanted.min_score and not of_host:
        score = wanted.min_score
        tests.append(lambda flow: flow.score >= score)
    if wanted.status:
        bit = _status_bit(wanted.status, statuses)
        tests.append(lambda flow: bool(flow.status_map & bit))
    if wanted.protocol:
        tests.append(_protocol_test(wanted.protocol.lower()))
    if wanted.category:
        category = wanted.category.lower()
        tests.append(lambda flow: flow.classification.category.lower() == category)
    if wanted.host and not of_host:
        tests.append(_ends_test(wanted.host))

    def matches(flow: Flow) -> bool:
        return all(test(flow) for test in tests)

    return matches if tests else lambda flow: True  # noqa: ARG005


def _protocol_test(name: str) -> Callable[[Flow], bool]:
    def matches(flow: Flow) -> bool:
        found = flow.classification
        return name in (
            found.protocol.lower(),
            found.app.lower(),
            found.master.lower(),
            proto_name(flow.proto).lower(),
        )

    return matches


def _ends_test(text: str) -> Callable[[Flow], bool]:
    kind, target = _target(text)
    if kind is Target.DOMAIN:
        names = DomainSet([target])
        return lambda flow: names.match(flow.hostname) is not None
    cover = _cover(kind, target)
    return lambda flow: cover.address(flow.client.address) or cover.address(flow.server.address)


def _host_test(text: str | None) -> Callable[[Host], bool]:
    if text is None:
        return lambda host: True  # noqa: ARG005
    kind, target = _target(text)
    if kind is Target.DOMAIN:
        raise ControlError(Kind.USAGE, f"host: found {text!r}; allowed is an address or a network")
    cover = _cover(kind, target)
    return lambda host: cover.address(host.address)


def _target(text: str) -> tuple[Target, str]:
    try:
        return parse_target(text)
    except TargetError:
        raise ControlError(
            Kind.USAGE, f"host: found {text!r}; allowed is an address, a network or a domain"
        ) from None


def _cover(kind: Target, target: str) -> Cover:
    return Cover(Order(id=0, word=Operator.NONE, kind=kind, target=target))


def known_statuses(scripts: list[Script]) -> Statuses:
    """All statuses there are: the built-in ones, and those that scripts define."""
    return STATUS_TYPES | {status.name: status for script in scripts for status in script.statuses}


def _status_bit(name: str, statuses: Statuses) -> int:
    status = statuses.get(name) or statuses.get(f"status_{name}")
    if status is None:
        allowed = ", ".join(known.removeprefix("status_") for known in list(statuses)[1:])
        raise ControlError(Kind.USAGE, f"status: found {name!r}; allowed are {allowed}")
    return status.bit


def script_row(script: Script, engine: Engine) -> Row:
    """A script in SCRIPT_COLUMNS: what it is, and what it did since it was loaded."""
    judge, describe = engine.verdicts, engine.inspector.classifier.describe
    filters = {
        "l4": sorted(proto_name(proto) for proto in script.l4),
        "l7": "" if script.l7 is None else describe(script.l7 << 16).app,
        "three_way_handshake_ok": script.three_way_handshake_ok,
        "needs": script.needs,
        "http_answers": script.http_answers,
        "periodic_update_seconds": script.periodic_ticks * PERIODIC_STEP,
        "prio": script.prio,
    }
    return [
        script.key,
        script.title,
        script.category,
        [str(hook) for hook in script.hooks],
        filters,
        script.calls,
        script.time_ns,
        script.time_quantile(0.99),
        script.errors,
        script.timeouts,
        script.last_error,
        script.last_error_at,
        script.aside,
        judge.statuses_by[script.key],
        judge.drops_by[script.key],
    ]
