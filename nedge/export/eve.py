"""Events in Suricata's EVE JSON, a line each, with an `ndpi` and a `nedge` object beside.

`schema/` has their JSON schema. Passwords that nDPI may have seen are no part of `Facts`, so they cannot get
here.
"""

from __future__ import annotations

from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import orjson

from nedge.core.events import AlertRaised, Event, FlowEnded, HostQuarantined, VerdictChanged
from nedge.core.facts import Classification, Classifier, Facts
from nedge.core.flow import NO_FACTS, EndReason, Flow
from nedge.core.packet import GRE, ICMP, ICMPV6, IGMP, SCTP, TCP, UDP
from nedge.core.verdict import Action, Rule

_PROTO_NAMES: Final = {
    ICMP: "ICMP",
    IGMP: "IGMP",
    TCP: "TCP",
    UDP: "UDP",
    GRE: "GRE",
    ICMPV6: "IPv6-ICMP",
    SCTP: "SCTP",
}
_TLS_VERSIONS: Final = {
    0x0300: "SSLv3",
    0x0301: "TLSv1",
    0x0302: "TLSv1.1",
    0x0303: "TLSv1.2",
    0x0304: "TLSv1.3",
}
_LAST_TIME: Final = 253_402_300_799  # the end of the year 9999
_SEVERITIES: Final = {"error": 1, "warning": 2, "notice": 3, "info": 3}
_ACTIONS: Final = {action: action.label for action in Action}
_RULES: Final = {rule: rule.value for rule in Rule}
_REASONS: Final = {reason: reason.label for reason in EndReason}
_LINE: Final = orjson.OPT_APPEND_NEWLINE
_ODD_KEYS: Final = orjson.OPT_NON_STR_KEYS
_SECONDS: Final[dict[int, str]] = {}
_MAX_SECONDS: Final = 4096


def eve_time(when: float) -> str:
    """Epoch seconds -> EVE's time stamp, in UTC with microseconds; what no calendar has, as its last day."""
    seconds = int(when)
    micros = int((when - seconds) * 1e6 + 1_000_000.5)  # with a digit in front, so that zeros stay
    if micros >= 2_000_000 or not 0 <= when <= _LAST_TIME:
        seconds, micros = divmod(round(min(max(when, 0), _LAST_TIME) * 1e6), 1_000_000)
        micros += 1_000_000
    return f"{_SECONDS.get(seconds) or _second(seconds)}{str(micros)[1:]}+0000"


def _second(seconds: int) -> str:
    """The start of the time stamps of a second; kept, as most come more than once."""
    if len(_SECONDS) >= _MAX_SECONDS:
        _SECONDS.clear()
    start = _SECONDS[seconds] = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.")
    return start


def proto_name(proto: int) -> str:
    """IP protocol number -> EVE's name; a protocol without one is its number."""
    return _PROTO_NAMES.get(proto) or str(proto)


def event_record(event: Event, classifier: Classifier) -> dict[str, Any]:
    """An engine event as an EVE event."""
    if isinstance(event, FlowEnded):
        return flow_record(event.flow, event.time, classifier, _REASONS[event.reason])
    if isinstance(event, HostQuarantined):
        return {
            "timestamp": eve_time(event.time),
            "event_type": "quarantine",
            "src_ip": event.host.ip,
            "vlan": event.host.vlan,
            "nedge": {"score": event.host.score, "until": eve_time(event.until)},
        }
    flow = event.flow
    verdict: dict[str, Any] = {"verdict": {"action": _ACTIONS[flow.verdict.action]}}
    if isinstance(event, AlertRaised):
        alert, blocked = event.alert, bool(event.action)
        return (
            _head("alert", flow, event.time)
            | _so_far(flow)
            | {
                "alert": {
                    "action": "blocked" if blocked else "allowed",
                    "gid": 1,
                    "signature_id": alert.status.status_key,
                    "rev": 1,
                    "signature": alert.status.title,
                    "category": alert.status.alert_type,
                    "severity": _SEVERITIES[alert.status.severity],
                },
                "verdict": {"action": _ACTIONS[event.action]},
                "nedge": _nedge(flow) | {"script": alert.script, "info": alert.info},
            }
        )
    assert isinstance(event, VerdictChanged)
    kind = "drop" if flow.verdict.action else "pass"
    if flow.verdict.action:
        verdict["drop"] = {"reason": flow.verdict.reason}
    return (
        _head(kind, flow, event.time)
        | _so_far(flow)
        | verdict
        | {"nedge": _nedge(flow) | {"previous": event.previous.reason}}
    )


def flow_record(flow: Flow, time: float, classifier: Classifier, reason: str = "") -> dict[str, Any]:
    """A flow as EVE's flow event. `reason`: why it ended."""
    record = _head("flow", flow, time)
    classification = flow.first_classification
    record["app_proto"] = classification.protocol
    first, last = flow.first_seen, flow.last_seen
    record["flow"] = {
        "pkts_toserver": flow.packets_sent,
        "pkts_toclient": flow.packets_rcvd,
        "bytes_toserver": flow.bytes_sent,
        "bytes_toclient": flow.bytes_rcvd,
        "start": eve_time(first),
        "end": eve_time(last),
        "age": int(last) - int(first),
        "state": "closed" if flow.closing else "established" if flow.packets_rcvd else "new",
        "reason": reason,
        "alerted": flow.alerted_status != 0,
    }
    risks = flow.risks
    record["ndpi"] = ndpi = {
        **_classified(classification),
        "hostname": flow.hostname,
        "risks": classifier.risk_names(risks) if risks else [],
        "risk_map": risks,
    }
    if flow.facts is not NO_FACTS:
        _add_facts(ndpi, flow.facts)
    record["nedge"] = _nedge(flow)
    return record


def _head(event_type: str, flow: Flow, time: float) -> dict[str, Any]:
    """Who talks to whom."""
    proto = flow.proto
    return {
        "timestamp": eve_time(time),
        "flow_id": flow.id,
        "event_type": event_type,
        "vlan": flow.vlan,
        "src_ip": flow.client.ip,
        "src_port": flow.client_port,
        "dest_ip": flow.server.ip,
        "dest_port": flow.server_port,
        "proto": _PROTO_NAMES.get(proto) or str(proto),
    }


def _so_far(flow: Flow) -> dict[str, Any]:
    """What is known of a flow that goes on."""
    return {
        "app_proto": flow.classification.protocol,
        "flow": {
            "pkts_toserver": flow.packets_sent,
            "pkts_toclient": flow.packets_rcvd,
            "bytes_toserver": flow.bytes_sent,
            "bytes_toclient": flow.bytes_rcvd,
            "start": eve_time(flow.first_seen),
        },
        "ndpi": {"hostname": flow.hostname},
    }


@lru_cache(maxsize=4096)
def _classified(classification: Classification) -> dict[str, Any]:
    """Not to be changed by who gets it."""
    return {
        "proto": classification.protocol,
        "master_id": classification.master_id,
        "app_id": classification.app_id,
        "category": classification.category,
        "category_id": classification.category_id,
        "breed": classification.breed,
    }


def _nedge(flow: Flow) -> dict[str, Any]:
    verdict = flow.verdict
    record: dict[str, Any] = {
        "status": flow.status_names if flow.status_map else [],
        "status_map": flow.status_map,
        "statuses": {
            str(key): {"score": record.score, "script": record.script, "info": record.info}
            for key, record in flow.statuses.items()
        }
        if flow.statuses
        else {},
        "score": flow.score,
        "cli_score": flow.client_score,
        "srv_score": flow.server_score,
        "verdict": _ACTIONS[verdict.action],
        "reason": verdict.reason if verdict.detail else _RULES[verdict.rule],
        "decided_at_packet": flow.decided_at_packet,
        "dropped_packets": flow.dropped_packets,
    }
    client, server = flow.client, flow.server
    if client.country or server.country or client.asn or server.asn:
        for side, host in (("cli", client), ("srv", server)):
            if host.country:
                record[f"{side}_country"] = host.country
            if host.asn:
                record[f"{side}_asn"] = host.asn
            if host.as_name:
                record[f"{side}_as_name"] = host.as_name
    return record


def _add_facts(record: dict[str, Any], facts: Facts) -> None:
    """Facts that are there, under short names."""
    if facts.http_url or facts.http_method:
        _add(record, "http_url", facts.http_url)
        _add(record, "http_method", facts.http_method)
        _add(record, "http_code", facts.http_code)
        _add(record, "http_user_agent", facts.http_user_agent)
        _add(record, "http_content_type", facts.http_content_type)
    if facts.dns_query:
        _add(record, "dns_query", facts.dns_query)
        _add(record, "dns_query_type", facts.dns_query_type)
        _add(record, "dns_reply_code", facts.dns_reply_code)
    if facts.tls_version or facts.tls_sni or facts.ja3 or facts.ja4:
        if version := facts.tls_version:
            record["tls_version"] = _TLS_VERSIONS.get(version) or f"{version:#06x}"
        if facts.cert_not_after:
            record["cert_not_before"] = eve_time(facts.cert_not_before)
            record["cert_not_after"] = eve_time(facts.cert_not_after)
        _add(record, "sni", facts.tls_sni)
        _add(record, "alpn", facts.tls_alpn)
        _add(record, "tls_cipher", facts.tls_cipher)
        _add(record, "ja3", facts.ja3)
        _add(record, "ja3s", facts.ja3s)
        _add(record, "ja4", facts.ja4)
        _add(record, "cert_issuer", facts.cert_issuer)
        _add(record, "cert_subject", facts.cert_subject)
        _add(record, "cert_names", facts.cert_names)
        _add(record, "cert_sha1", facts.cert_sha1)
    if facts.ssh_client or facts.ssh_server:
        _add(record, "ssh_client", facts.ssh_client)
        _add(record, "ssh_server", facts.ssh_server)
        _add(record, "hassh_client", facts.hassh_client)
        _add(record, "hassh_server", facts.hassh_server)


def _add(record: dict[str, Any], name: str, value: str | int | tuple[str, ...]) -> None:
    if value:
        record[name] = value


def to_json(record: dict[str, Any]) -> bytes:
    """One line, newline included. What JSON cannot hold (bytes, sets of a script) becomes its text."""
    try:
        return orjson.dumps(record, default=str, option=_LINE)
    except TypeError:
        return _odd_to_json(record)


def _odd_to_json(record: dict[str, Any]) -> bytes:
    """What a script gave has keys that are no strings (to expect them takes longer), or worse."""
    try:
        return orjson.dumps(record, default=str, option=_LINE | _ODD_KEYS)
    except TypeError:  # integers beyond 64 bits, odder keys, or text that is no Unicode
        return orjson.dumps(_plain(record), option=_LINE)


def _plain(value: Any) -> Any:
    """The same of types that JSON has; what it has not is text."""
    if isinstance(value, dict):
        return {_plain(str(key)): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return value.encode(errors="replace").decode()
    small = isinstance(value, int) and -(1 << 63) <= value < 1 << 63
    return value if small or value is None or isinstance(value, float | bool) else _plain(str(value))
