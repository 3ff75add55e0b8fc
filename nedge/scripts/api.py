"""The flow object that user scripts get: the Flow User Scripts API of ntopng, 41 functions, and a few more.

Function names are ntopng's to the letter. Times are epoch seconds, sizes bytes of IP packets, "sent" is
client to server.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nedge.core.facts import Facts
from nedge.core.flow import Flow as CoreFlow
from nedge.core.flow import Handshake
from nedge.core.hooks import HookCall
from nedge.core.hosts import Directory
from nedge.core.inspection import CATEGORY_MALWARE
from nedge.core.lists import FingerprintSet
from nedge.core.status import LAST_KEY, StatusType, status_types
from nedge.core.verdict import Action
from nedge.scripts.fullinfo import disorder, dns_info, full_info, http_info, ssh_info, tcp_stats, tls_info
from nedge.scripts.plain import plain

Conf = Mapping[str, Any]
"""A script's settings: its default_value, and over it what the configuration file says."""


@dataclass(slots=True, kw_only=True)
class Context:
    """What the API needs beside the flow itself."""

    facts: Callable[[CoreFlow], Facts]
    """All facts of a flow as of its latest packet."""
    directory: Callable[[], Directory]
    risk_names: Callable[[int], list[str]]
    risks: Callable[[CoreFlow], int]
    action: Callable[[CoreFlow], Action]
    """What the verdict would be with the statuses and scores set so far."""
    fingerprints: FingerprintSet
    """Those of malware."""


class Flow:
    """One flow, for the time of one hook call. Do not keep it."""

    __slots__ = ("_call", "_context", "_flow", "_script")

    def __init__(self, call: HookCall, context: Context) -> None:
        self._call = call
        self._flow = call.flow
        self._context = context
        self._script = ""

    # Statuses and scores

    def getStatus(self) -> int:
        """The status bitmap: bit n is set while the status with `status_key` n is."""
        return self._flow.status_map

    def setStatus(
        self,
        flow_status_type: Any,
        flow_score: Any = None,
        cli_score: Any = None,
        srv_score: Any = None,
    ) -> bool:
        """Set a status and add its scores (each 0..1000) to the flow, the client host and the server host.

        False, and nothing changes, if the status is set already. Raises TypeError for what is no status type.
        """
        status = _status(flow_status_type)
        return self._flow.set_status(
            status,
            _score(flow_score),
            _score(cli_score),
            _score(srv_score),
            self._script,
            now=self._call.now,
        )

    def clearStatus(self, flow_status_type: Any) -> None:
        """Clear a status. Scores it added stay; an alert it raised stays. Setting it again adds them again.

        Raises TypeError for what is no status type.
        """
        self._flow.clear_status(_status(flow_status_type))

    def triggerStatus(self, flow_status_type: Any, *arguments: Any) -> None:
        """Set a status and raise an alert: triggerStatus(type, info, flow_score, cli_score, srv_score).

        `info` is a string, a mapping, or None; a copy is kept, of what JSON can hold. Of all statuses set in
        one hook call the one with the highest flow score alerts, if it is above the flow's alert so far.
        ntopng 4.2's form is accepted too:
        triggerStatus({"status_type": type, "alert_type_params": info}, flow, cli, srv).
        Raises TypeError, and sets nothing, for any other info.
        """
        if isinstance(flow_status_type, Mapping):
            info = flow_status_type.get("alert_type_params")
            flow_status_type = flow_status_type.get("status_type")
        else:
            info, *rest = arguments or (None,)
            arguments = tuple(rest)
        if len(arguments) > 3:
            raise TypeError("triggerStatus takes a type, an info and three scores")
        status = _status(flow_status_type)
        if info is not None and not isinstance(info, str | Mapping):
            raise TypeError(f"status info is a string or a table, not {type(info).__name__}")
        info = plain(info)
        flow_score, client_score, server_score = (*map(_score, arguments), 0, 0, 0)[:3]
        self._call.trigger(status, info, flow_score, client_score, server_score, self._script)

    def isStatusSet(self, status_key: Any) -> bool:
        """Whether a status is set, by its number (`status_types.status_blacklisted.status_key`).

        Raises TypeError for what is no number.
        """
        if not isinstance(status_key, int) or isinstance(status_key, bool):
            raise TypeError(f"isStatusSet takes the number (status_key), not {type(status_key).__name__}")
        return 0 <= status_key <= LAST_KEY and bool(self._flow.status_map >> status_key & 1)

    def getScore(self) -> int:
        """The flow's score: the sum of what its statuses added, at most 65535."""
        return self._flow.score

    def isPassVerdict(self) -> bool:
        """Whether the flow's packets pass, by the statuses and scores set so far, this call's included."""
        return self._context.action(self._flow) is Action.PASS

    # Who talks to whom

    def isClientUnicast(self) -> bool:
        """Whether the client is a unicast address: neither broadcast nor multicast."""
        return self._flow.client.unicast

    def isServerUnicast(self) -> bool:
        """Whether the server is a unicast address."""
        return self._flow.server.unicast

    def isUnicast(self) -> bool:
        """Whether both ends are unicast."""
        return self._flow.client.unicast and self._flow.server.unicast

    def isLocal(self) -> bool:
        """Whether both ends are in the local networks."""
        return self._flow.client.local and self._flow.server.local

    def isLocalToRemote(self) -> bool:
        """Whether the client is local and the server is not."""
        return self._flow.client.local and not self._flow.server.local

    def isRemoteToLocal(self) -> bool:
        """Whether the server is local and the client is not."""
        return not self._flow.client.local and self._flow.server.local

    def isRemoteToRemote(self) -> bool:
        """Whether neither end is local."""
        return not self._flow.client.local and not self._flow.server.local

    def isBlacklisted(self) -> bool:
        """Whether an end or the name asked for is on a malware list, or nDPI's category is malware (100)."""
        flow = self._flow
        return flow.blacklisted or flow.classification.category_id == CATEGORY_MALWARE

    def getClientKey(self) -> str:
        """The client as `IP@VLAN`."""
        return self._flow.client.key

    def getServerKey(self) -> str:
        """The server as `IP@VLAN`."""
        return self._flow.server.key

    def getClientCountry(self) -> str | None:
        """The client's ISO 3166 two-letter country code; None if unknown or without a database."""
        return self._context.directory().country(self._flow.client.ip)

    def getServerCountry(self) -> str | None:
        """The server's ISO 3166 two-letter country code; None if unknown or without a database."""
        return self._context.directory().country(self._flow.server.ip)

    # Counters and times

    def getKey(self) -> int:
        """A number for the flow: unique among live flows, the same in both directions."""
        return self._flow.id

    def getFirstSeen(self) -> int:
        """When the first packet was seen, in epoch seconds."""
        return int(self._flow.first_seen)

    def getLastSeen(self) -> int:
        """When the latest packet was seen, in epoch seconds."""
        return int(self._flow.last_seen)

    def getDuration(self) -> int:
        """Seconds from the first to the latest packet; 0 for one packet."""
        return int(self._flow.last_seen) - int(self._flow.first_seen)

    def getPacketsSent(self) -> int:
        """Packets from client to server."""
        return self._flow.packets_sent

    def getPacketsRcvd(self) -> int:
        """Packets from server to client."""
        return self._flow.packets_rcvd

    def getPackets(self) -> int:
        """Packets in both directions."""
        return self._flow.packets

    def getBytesSent(self) -> int:
        """Bytes of IP packets from client to server."""
        return self._flow.bytes_sent

    def getBytesRcvd(self) -> int:
        """Bytes of IP packets from server to client."""
        return self._flow.bytes_rcvd

    def getBytes(self) -> int:
        """Bytes of IP packets in both directions."""
        return self._flow.bytes

    def getGoodputBytes(self) -> int:
        """Bytes of L4 payload (TCP, UDP, SCTP) in both directions."""
        return self._flow.goodput

    def isTwhOK(self) -> bool:
        """Whether the flow is TCP and its three-way handshake was seen, in order, to the end.

        The gateway's kernel passes parts of it unseen: what the client sends next shows that they came.
        """
        return self._flow.handshake == Handshake.DONE

    def isBidirectional(self) -> bool:
        """Whether both directions had packets."""
        return self._flow.packets_sent > 0 and self._flow.packets_rcvd > 0

    # What it is

    def getnDPIProtocolName(self) -> str:
        """nDPI's `Master.App` (`TLS.Google`) or single name (`DNS`); `Unknown` until detected."""
        return self._flow.classification.protocol

    def getnDPIMasterProtoId(self) -> int:
        """nDPI's id of the master protocol; 0 until detected, or if there is only one level."""
        return self._flow.classification.master_id

    def getnDPIAppProtoId(self) -> int:
        """nDPI's id of the application protocol; 0 until detected."""
        return self._flow.classification.app_id

    def getnDPICategoryName(self) -> str:
        """nDPI's category, by name."""
        return self._flow.classification.category

    def getnDPICategoryId(self) -> int:
        """nDPI's category, by number."""
        return self._flow.classification.category_id

    def getDnsQuery(self) -> str:
        """The latest name asked for in a DNS flow, non-printable characters as `?`; else the empty string."""
        return self._context.facts(self._flow).dns_query

    def getTLSVersion(self) -> int:
        """The TLS version as on the wire: 769 (1.0) to 772 (1.3); 0 if it is not TLS."""
        return self._context.facts(self._flow).tls_version

    def getnDPIMatchPacket(self) -> dict[str, Any]:
        """`payload_len` and `payload` (bytes) of the packet on which detection completed.

        0 and None if the protocol was guessed.
        """
        return {"payload_len": self._flow.match_length, "payload": self._flow.match_payload}

    def getFullInfo(self) -> dict[str, Any]:
        """Everything, as one flat mapping with ntopng's key names. Expensive: prefer the other functions."""
        return full_info(self._flow, self._context)

    # Beyond the 41: what real scripts of ntopng call too

    def getInfo(self) -> str:
        """What the flow is about: the URL, the DNS query or the server's name; else the empty string."""
        facts = self._context.facts(self._flow)
        return facts.http_url or facts.dns_query or self._flow.hostname

    def getBlacklistedInfo(self) -> dict[str, bool]:
        """Why isBlacklisted: `blacklisted.cli`, `blacklisted.srv` and `blacklisted.cat`, if true."""
        flow = self._flow
        found = {
            "blacklisted.cli": flow.client.blacklisted,
            "blacklisted.srv": flow.server.blacklisted,
            "blacklisted.cat": flow.classification.category_id == CATEGORY_MALWARE,
        }
        return {name: True for name, value in found.items() if value}

    def isDeviceProtocolNotAllowed(self) -> bool:
        """False: there are no policies by device type here."""
        return False

    def getDeviceProtoAllowedInfo(self) -> dict[str, Any]:
        """Empty: there are no policies by device type here."""
        return {}

    def retrieveExternalAlertInfo(self) -> None:
        """None: no external IDS is attached."""

    def isNotPurged(self) -> bool:
        """False: flows end in time."""
        return False

    def hasRisk(self, risk_id: int | None = None) -> bool:
        """Whether nDPI found this risk, by its number; without one, whether it found any."""
        risks = self._context.risks(self._flow)
        if risk_id is None:
            return risks != 0
        return 0 <= risk_id < 64 and bool(risks >> risk_id & 1)

    def getRiskInfo(self) -> dict[int, str]:
        """The risks that nDPI found: number -> name."""
        risks = self._context.risks(self._flow)
        numbers = [number for number in range(64) if risks >> number & 1]
        return dict(zip(numbers, self._context.risk_names(risks), strict=True))

    def getHTTPInfo(self) -> dict[str, Any]:
        """Of an HTTP flow's latest request, with ntopng's key names; empty if it is not HTTP."""
        return http_info(self._context.facts(self._flow))

    def getTLSInfo(self) -> dict[str, Any]:
        """Of a TLS or QUIC flow, with ntopng's key names; empty if it is neither."""
        return tls_info(self._context.facts(self._flow))

    def getDNSInfo(self) -> dict[str, Any]:
        """Of a DNS flow's latest query, with ntopng's key names; empty if it is not DNS."""
        return dns_info(self._context.facts(self._flow))

    def getSSHInfo(self) -> dict[str, Any]:
        """Of an SSH flow, with ntopng's key names; empty if it is not SSH."""
        return ssh_info(self._context.facts(self._flow))

    def getTCPStats(self) -> dict[str, Any]:
        """TCP flags seen, how the handshake went, and segments with payload that came again or out of order.

        Segments count while the flow is looked into. Empty if it is not TCP.
        """
        return tcp_stats(self._flow)

    def getClientTCPIssues(self) -> int:
        """The client's segments that came again or out of order, while the flow was looked into."""
        return sum(disorder(self._flow).of_client)

    def getServerTCPIssues(self) -> int:
        """The server's segments that came again or out of order, while the flow was looked into."""
        return sum(disorder(self._flow).of_server)

    def getGoodputRatio(self) -> float:
        """Payload in percent of all bytes."""
        return self._flow.goodput * 100 / self._flow.bytes if self._flow.bytes else 0.0

    def isClientNoIP(self) -> bool:
        """Whether the client's address is the unspecified one (0.0.0.0 or ::)."""
        return not any(self._flow.client.address)

    # Ours: single facts, so that getFullInfo need not be the price of one

    def getHostName(self) -> str:
        """The server's name as the client gave it (SNI, Host, DNS query), lower case; or the empty string."""
        return self._flow.hostname

    def getFacts(self) -> Facts:
        """Everything inspection found, as an object: its attributes are listed under Facts."""
        return self._context.facts(self._flow)

    def isTLS(self) -> bool:
        """Whether TLS, DTLS or QUIC was seen: a version, a cipher, a fingerprint, or a certificate."""
        facts = self._context.facts(self._flow)
        return bool(
            facts.tls_version or facts.tls_cipher or facts.ja3 or facts.ja4 or facts.ja3s or facts.cert_sha1
        )

    def getRisks(self) -> int:
        """The risks that nDPI found, as a bitmap: bit n for the risk with that number. Cheap."""
        return self._context.risks(self._flow)

    def getListedFingerprints(self) -> dict[str, str]:
        """The client's TLS fingerprints that are on the malware list: `ja3` and `ja4`, if they are."""
        listed = self._context.fingerprints
        if not listed:
            return {}
        facts = self._context.facts(self._flow)
        return {kind: text for kind, text in (("ja3", facts.ja3), ("ja4", facts.ja4)) if text in listed}

    def getClientASN(self) -> int:
        """The number of the client's autonomous system; 0 if unknown or without a database."""
        return self._flow.client.asn

    def getServerASN(self) -> int:
        """The number of the server's autonomous system; 0 if unknown or without a database."""
        return self._flow.server.asn

    def getBreed(self) -> str:
        """nDPI's judgement of the protocol: Safe, Acceptable, Fun, Unsafe, Potentially Dangerous, …"""
        return self._flow.classification.breed

    def getServerIP(self) -> str:
        """The server's address."""
        return self._flow.server.ip

    def getClientIP(self) -> str:
        """The client's address."""
        return self._flow.client.ip

    def getServerPort(self) -> int:
        """The server's port; 0 for protocols without ports."""
        return self._flow.server_port

    def getClientPort(self) -> int:
        """The client's port; 0 for protocols without ports."""
        return self._flow.client_port

    def getL4Proto(self) -> int:
        """The IP protocol number: 6 TCP, 17 UDP, 1 ICMP, 58 ICMPv6, …"""
        return self._flow.proto


def _status(value: Any) -> StatusType:
    if not isinstance(value, StatusType):
        raise TypeError(f"a status type (status_types.status_…) is needed, not {value!r}")
    if value.status_key == status_types.status_normal.status_key:
        raise TypeError("status_normal is the absence of others: it cannot be set or cleared")
    return value


def _score(value: Any) -> int:
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a score is a number from 0 to 1000, not {value!r}")
    return int(value)
