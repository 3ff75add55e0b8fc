"""Mappings with ntopng's key names: of everything (getFullInfo), and of parts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nedge.core.facts import Facts
from nedge.core.flow import Flow, Handshake
from nedge.core.hosts import Host
from nedge.core.packet import ICMP, ICMPV6, SCTP, TCP, UDP
from nedge.core.stream import Disorder
from nedge.core.verdict import Action

if TYPE_CHECKING:
    from nedge.scripts.api import Context

_L4_NAMES = {TCP: "TCP", UDP: "UDP", ICMP: "ICMP", ICMPV6: "ICMPv6", SCTP: "SCTP"}


def full_info(flow: Flow, context: Context) -> dict[str, Any]:
    """Everything that is known of a flow now."""
    facts = context.facts(flow)
    classification = flow.classification
    info: dict[str, Any] = {
        "vlan": flow.vlan,
        "proto.l4": _L4_NAMES.get(flow.proto, str(flow.proto)),
        "proto.l4_id": flow.proto,
        "proto.ndpi": classification.protocol,
        "proto.ndpi_id": classification.app_id,
        "proto.ndpi_app": classification.app,
        "proto.master_ndpi_id": classification.master_id,
        "proto.ndpi_breed": classification.breed,
        "proto.ndpi_cat": classification.category,
        "proto.ndpi_cat_id": classification.category_id,
        "bytes": flow.bytes,
        "goodput_bytes": flow.goodput,
        "packets": flow.packets,
        "packets.sent": flow.packets_sent,
        "packets.rcvd": flow.packets_rcvd,
        "cli2srv.bytes": flow.bytes_sent,
        "cli2srv.goodput_bytes": flow.goodput_sent,
        "cli2srv.packets": flow.packets_sent,
        "srv2cli.bytes": flow.bytes_rcvd,
        "srv2cli.goodput_bytes": flow.goodput_rcvd,
        "srv2cli.packets": flow.packets_rcvd,
        "seen.first": int(flow.first_seen),
        "seen.last": int(flow.last_seen),
        "duration": int(flow.last_seen) - int(flow.first_seen),
        "score": flow.score,
        "host_server_name": flow.hostname,
        "info": facts.http_url or facts.dns_query or flow.hostname,
        "flow.status": flow.predominant_status,
        "status_map": flow.status_map,
        "status_infos": {
            key: {"score": record.score, "script": record.script, "info": record.info}
            for key, record in (flow.statuses or {}).items()
        },
        "alerted_status": flow.alerted_status,
        "flow_risk": context.risks(flow),
        "ntopng.key": flow.id,
        "hash_entry_id": flow.id,
        "verdict.pass": context.action(flow) is Action.PASS,
    }
    info |= _end("cli", flow.client, flow.client_port, context)
    info |= _end("srv", flow.server, flow.server_port, context)
    info |= dns_info(facts) | http_info(facts) | tls_info(facts) | ssh_info(facts)
    if flow.proto == TCP:
        info |= tcp_stats(flow)
        info["tcp.closed"] = flow.closing
    if flow.icmp:
        info["icmp.type"], info["icmp.code"] = flow.icmp
    return info


def dns_info(facts: Facts) -> dict[str, Any]:
    """Of the latest DNS query; empty if there is none."""
    if not facts.dns_query:
        return {}
    return {
        "protos.dns.last_query": facts.dns_query,
        "protos.dns.last_query_type": facts.dns_query_type,
        "protos.dns.last_return_code": facts.dns_reply_code,
    }


def tls_info(facts: Facts) -> dict[str, Any]:
    """Of TLS, or QUIC; empty if it is neither."""
    if not facts.tls_version:
        return {}
    return {
        "protos.tls_version": facts.tls_version,
        "protos.tls.client_requested_server_name": facts.tls_sni,
        "protos.tls.server_names": ",".join(facts.cert_names),
        "protos.tls.ja3.client_hash": facts.ja3,
        "protos.tls.ja3.server_hash": facts.ja3s,
        "protos.tls.issuerDN": facts.cert_issuer,
        "protos.tls.subjectDN": facts.cert_subject,
        "protos.tls.notBefore": facts.cert_not_before,
        "protos.tls.notAfter": facts.cert_not_after,
        "protos.tls.client_alpn": facts.tls_alpn,
    }


def ssh_info(facts: Facts) -> dict[str, Any]:
    """Of SSH; empty if it is not."""
    if not facts.ssh_client and not facts.ssh_server:
        return {}
    return {
        "protos.ssh.client_signature": facts.ssh_client,
        "protos.ssh.server_signature": facts.ssh_server,
        "protos.ssh.hassh.client_hash": facts.hassh_client,
        "protos.ssh.hassh.server_hash": facts.hassh_server,
    }


def http_info(facts: Facts) -> dict[str, Any]:
    """Of the latest HTTP request; empty if there is none."""
    if not facts.http_url and not facts.http_method:
        return {}
    return {
        "protos.http.last_method": facts.http_method,
        "protos.http.last_url": facts.http_url,
        "protos.http.last_return_code": facts.http_code,
        "protos.http.last_user_agent": facts.http_user_agent,
        "protos.http.server_name": facts.hostname,
    }


def tcp_stats(flow: Flow) -> dict[str, Any]:
    """TCP flags, the handshake, and segments that came again or out of order; empty if it is not TCP."""
    if flow.proto != TCP:
        return {}
    (server_again, server_early), (client_again, client_early) = disorder(flow)
    return {
        "tcp.flags": flow.tcp_flags,
        "tcp.three_way_handshake_ok": flow.handshake == Handshake.DONE,
        "cli2srv.retransmissions": client_again,
        "cli2srv.out_of_order": client_early,
        "srv2cli.retransmissions": server_again,
        "srv2cli.out_of_order": server_early,
    }


def disorder(flow: Flow) -> Disorder:
    """TCP segments that came again or out of order, while the flow was looked into."""
    return flow.disorder if flow.stream is None else flow.stream.disorder


BASIC_INFO = (
    "cli.ip",
    "cli.host",
    "cli.port",
    "srv.ip",
    "srv.host",
    "srv.port",
    "vlan",
    "proto.l4",
    "proto.ndpi",
    "proto.ndpi_app",
    "proto.ndpi_cat",
    "proto.ndpi_cat_id",
    "proto.ndpi_breed",
    "cli2srv.bytes",
    "cli2srv.packets",
    "srv2cli.bytes",
    "srv2cli.packets",
    "info",
)
"""Keys of what `basic_info` gives."""


def basic_info(flow: Flow, info: str) -> tuple[str | int, ...]:
    """Who talks to whom about what, for keys `BASIC_INFO`: ntopng's flow.getInfo(), cheaper than all."""
    classification = flow.classification
    return (
        flow.client.ip,
        flow.client.ip,
        flow.client_port,
        flow.server.ip,
        flow.server.ip,
        flow.server_port,
        flow.vlan,
        _L4_NAMES.get(flow.proto, str(flow.proto)),
        classification.protocol,
        classification.app,
        classification.category,
        classification.category_id,
        classification.breed,
        flow.bytes_sent,
        flow.packets_sent,
        flow.bytes_rcvd,
        flow.packets_rcvd,
        info,
    )


def _end(side: str, host: Host, port: int, context: Context) -> dict[str, Any]:
    return {
        f"{side}.ip": host.ip,
        f"{side}.key": host.key,
        f"{side}.port": port,
        f"{side}.vlan": host.vlan,
        f"{side}.mac": host.mac.hex(":"),
        f"{side}.host": host.ip,
        f"{side}.localhost": host.local,
        f"{side}.blacklisted": host.blacklisted,
        f"{side}.country": context.directory().country(host.ip),
        f"{side}.asn": host.asn,
        f"{side}.as_name": host.as_name,
        f"{side}.pool_id": 0,
        f"{side}.score": host.score,
    }
