"""Events in Suricata's EVE JSON, a line each, with an `ndpi` and a `nedge` object beside.

Passwords that nDPI may have seen are no part of `Facts`, so they cannot get here.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import orjson
import structlog

from nedge.core.events import AlertRaised, Event, FlowEnded, HostQuarantined, VerdictChanged
from nedge.core.facts import Classifier, Facts
from nedge.core.flow import Flow
from nedge.core.packet import GRE, ICMP, ICMPV6, IGMP, SCTP, TCP, UDP

_PROTO_NAMES = {
    ICMP: "ICMP",
    IGMP: "IGMP",
    TCP: "TCP",
    UDP: "UDP",
    GRE: "GRE",
    ICMPV6: "IPv6-ICMP",
    SCTP: "SCTP",
}
_TLS_VERSIONS = {0x0300: "SSLv3", 0x0301: "TLSv1", 0x0302: "TLSv1.1", 0x0303: "TLSv1.2", 0x0304: "TLSv1.3"}
_LAST_TIME = 253_402_300_799  # the end of the year 9999
_SEVERITIES = {"error": 1, "warning": 2, "notice": 3, "info": 3}

_log = structlog.get_logger(__name__)


def eve_time(when: float) -> str:
    """Epoch seconds -> EVE's time stamp, in UTC with microseconds; what no calendar has, as its last day."""
    return datetime.fromtimestamp(min(max(when, 0), _LAST_TIME), UTC).strftime("%Y-%m-%dT%H:%M:%S.%f+0000")


def proto_name(proto: int) -> str:
    """IP protocol number -> EVE's name; a protocol without one is its number."""
    return _PROTO_NAMES.get(proto, str(proto))


def event_record(event: Event, classifier: Classifier) -> dict[str, Any]:
    """An engine event as an EVE event."""
    match event:
        case FlowEnded(flow, time, reason):
            return flow_record(flow, time, classifier, reason.label)
        case AlertRaised(flow, time, alert, action):
            return _head("alert", flow, time) | {
                "alert": {
                    "action": "blocked" if action else "allowed",
                    "signature_id": alert.status.status_key,
                    "signature": alert.status.title,
                    "category": alert.status.alert_type,
                    "severity": _SEVERITIES[alert.status.severity],
                },
                "nedge": _nedge(flow) | {"script": alert.script, "info": alert.info},
            }
        case VerdictChanged(flow, time, previous):
            return _head("drop" if flow.verdict.action else "pass", flow, time) | {
                "nedge": _nedge(flow) | {"previous": previous.reason}
            }
        case HostQuarantined(host, time, until):
            return {
                "timestamp": eve_time(time),
                "event_type": "quarantine",
                "src_ip": host.ip,
                "vlan": host.vlan,
                "nedge": {"score": host.score, "until": eve_time(until)},
            }


def flow_record(flow: Flow, time: float, classifier: Classifier, reason: str = "") -> dict[str, Any]:
    """A flow as EVE's flow event. `reason`: why it ended."""
    classification = flow.first_classification
    return _head("flow", flow, time) | {
        "app_proto": classification.protocol,
        "flow": {
            "pkts_toserver": flow.packets_sent,
            "pkts_toclient": flow.packets_rcvd,
            "bytes_toserver": flow.bytes_sent,
            "bytes_toclient": flow.bytes_rcvd,
            "start": eve_time(flow.first_seen),
            "end": eve_time(flow.last_seen),
            "age": int(flow.last_seen) - int(flow.first_seen),
            "state": "closed" if flow.closing else "established" if flow.packets_rcvd else "new",
            "reason": reason,
            "alerted": bool(flow.alerted_status),
        },
        "ndpi": {
            "proto": classification.protocol,
            "master_id": classification.master_id,
            "app_id": classification.app_id,
            "category": classification.category,
            "category_id": classification.category_id,
            "breed": classification.breed,
            "hostname": flow.hostname,
            "risks": classifier.risk_names(flow.risks),
            "risk_map": flow.risks,
        }
        | _facts(flow.facts),
        "nedge": _nedge(flow),
    }


def _head(event_type: str, flow: Flow, time: float) -> dict[str, Any]:
    return {
        "timestamp": eve_time(time),
        "flow_id": flow.id,
        "event_type": event_type,
        "vlan": flow.vlan,
        "src_ip": flow.client.ip,
        "src_port": flow.client_port,
        "dest_ip": flow.server.ip,
        "dest_port": flow.server_port,
        "proto": proto_name(flow.proto),
    }


def _nedge(flow: Flow) -> dict[str, Any]:
    return {
        "status": flow.status_names,
        "status_map": flow.status_map,
        "statuses": {
            str(key): {"score": record.score, "script": record.script, "info": record.info}
            for key, record in (flow.statuses or {}).items()
        },
        "score": flow.score,
        "cli_score": flow.client_score,
        "srv_score": flow.server_score,
        "verdict": flow.verdict.action.label,
        "reason": flow.verdict.reason,
        "decided_at_packet": flow.decided_at_packet,
        "dropped_packets": flow.dropped_packets,
    }


def _facts(facts: Facts) -> dict[str, Any]:
    """Facts that are there, under short names."""
    found: dict[str, Any] = {
        "dns_query": facts.dns_query,
        "dns_query_type": facts.dns_query_type,
        "http_url": facts.http_url,
        "http_method": facts.http_method,
        "http_code": facts.http_code,
        "http_user_agent": facts.http_user_agent,
        "http_content_type": facts.http_content_type,
        "tls_version": _TLS_VERSIONS.get(facts.tls_version, f"{facts.tls_version:#06x}"),
        "sni": facts.tls_sni,
        "alpn": facts.tls_alpn,
        "tls_cipher": facts.tls_cipher,
        "ja3": facts.ja3,
        "ja3s": facts.ja3s,
        "ja4": facts.ja4,
        "cert_issuer": facts.cert_issuer,
        "cert_subject": facts.cert_subject,
        "cert_names": facts.cert_names,
        "cert_sha1": facts.cert_sha1,
        "ssh_client": facts.ssh_client,
        "ssh_server": facts.ssh_server,
        "hassh_client": facts.hassh_client,
        "hassh_server": facts.hassh_server,
    }
    if not facts.tls_version:
        del found["tls_version"]
    if facts.cert_not_after:
        found["cert_not_before"] = eve_time(facts.cert_not_before)
        found["cert_not_after"] = eve_time(facts.cert_not_after)
    return {name: value for name, value in found.items() if value}


def to_json(record: dict[str, Any]) -> bytes:
    """One line, newline included. What JSON cannot hold (bytes, sets of a script) becomes its text."""
    try:
        return orjson.dumps(record, default=str, option=orjson.OPT_APPEND_NEWLINE | orjson.OPT_NON_STR_KEYS)
    except TypeError:  # a script's integers beyond 64 bits, odd keys, or text that is no Unicode
        return json.dumps(_plain(record), default=str).encode() + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple | set) else value


class EveFile:
    """An event sink that appends to a file. A failing disk never stops the firewall: losses are counted."""

    def __init__(self, path: Path, classifier: Classifier) -> None:
        """Raises OSError if the file cannot be opened."""
        self.lost = 0
        """Events that could not be written."""
        self.written = 0
        self._classifier = classifier
        self._file: BinaryIO = path.open("ab", buffering=0)
        self._path = path

    def __call__(self, event: Event) -> None:
        line = to_json(event_record(event, self._classifier))
        try:
            done = self._file.write(line)
            if done != len(line):  # the disk took a part: take it back, so that lines stay whole
                self._file.truncate(self._file.tell() - done)
                raise OSError(28, "No space left on device")
        except OSError as error:
            self.lost += 1
            if self.lost & (self.lost - 1) == 0:  # 1st, 2nd, 4th, 8th …
                _log.error("eve_write_failed", path=str(self._path), error=error.strerror, lost=self.lost)
        else:
            self.written += 1

    def close(self) -> None:
        self._file.close()
