"""The whole story of a flow, for `nedge explain`: what it is, what was said of it, and what became of it."""

from __future__ import annotations

from typing import Any

from nedge.control.protocol import plain
from nedge.core.engine import Engine
from nedge.core.flow import Flow
from nedge.core.hosts import Host
from nedge.core.status import STATUS_BY_KEY, status_names
from nedge.core.verdict import Operator
from nedge.export.eve import flow_record
from nedge.gateway.listing import FLOW_COLUMNS, flow_row


def tell(
    engine: Engine, flow: Flow, worker: int, now: float, kernel: dict[str, Any] | None
) -> dict[str, Any]:
    """The story. `kernel`: what it holds of the flow now. Texts are cut where they are very long."""
    judge = engine.verdicts
    facts = engine.inspector.facts(flow)  # as of now: nDPI may still be looking
    classifier = engine.inspector.classifier
    ndpi = flow_record(flow, now, classifier)["ndpi"]
    if flow.dpi is not None:
        ndpi["risks"] = classifier.risk_names(flow.dpi.risks())
    classification = flow.classification
    evidence = judge.evidence(flow, now)
    policy = judge.policy
    verdict = flow.verdict
    return {
        "flow": dict(zip(FLOW_COLUMNS, flow_row(flow, worker), strict=True))
        | {
            "handshake": flow.handshake.name.lower(),
            "closing": flow.closing,
            "goodput": flow.goodput,
            "client": _host(flow.client, now),
            "server": _host(flow.server, now),
        },
        "detection": {
            "detected": flow.detected,
            "at_packet": flow.detected_at_packet,
            "protocol": classification.protocol,
            "master_id": classification.master_id,
            "app_id": classification.app_id,
            "category": classification.category,
            "breed": classification.breed,
            "hostname": facts.hostname or flow.hostname,
            "requests": flow.requests,
            "goes_on": flow.looking,
            "facts": plain(ndpi),
        },
        "statuses": [
            {
                "status": record.name or status_names(1 << key)[0],
                "title": STATUS_BY_KEY[key].title if key in STATUS_BY_KEY else record.name,
                "set": bool(flow.status_map >> key & 1),
                "script": record.script,
                "score": record.score,
                "cli_score": record.client_score,
                "srv_score": record.server_score,
                "time": record.time,
                "info": plain(record.info),
            }
            for key, record in (flow.statuses or {}).items()
        ],
        "verdict": {
            "action": verdict.action.label,
            "rule": str(verdict.rule),
            "detail": verdict.detail,
            "at_packet": flow.decided_at_packet,
            "time": flow.decided_at,
        },
        "evidence": {
            "detected": evidence.detected,
            "operator": "" if evidence.operator is Operator.NONE else evidence.operator.name.lower(),
            "order": evidence.order,
            "allowed": evidence.allowed,
            "statuses": status_names(evidence.status_map),
            "score": evidence.score,
            "client_score": evidence.client_score,
            "server_score": evidence.server_score,
            "failures": list(evidence.failures),
        },
        "policy": {
            "block_action": policy.block_action.label,
            "block_statuses": status_names(policy.block_statuses),
            "drop_score": policy.drop_score,
            "host_drop_score": policy.host_drop_score,
            "failures": list(policy.failures),
            "epoch": engine.epoch,
        },
        "kernel": kernel,
    }


def _host(host: Host, now: float) -> dict[str, Any]:
    return {
        "ip": host.ip,
        "local": host.local,
        "flows": host.flows,
        "score": host.score,
        "forgiven": host.forgiven,
        "operator": "" if host.operator is Operator.NONE else host.operator.name.lower(),
        "allowed": host.allowed,
        "blacklisted": host.blacklisted,
        "quarantined_until": host.quarantined_until if host.quarantined_until > now else 0,
    }
