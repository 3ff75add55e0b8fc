"""Tells of data that travels inside ICMP: tunnels, and malware that hides in pings.

A ping carries a few dozen bytes, once a second. A flow is suspicious if its messages carry more than
`max_payload` bytes on average, or if one side sends more than `max_rate` bytes of payload a second over ten
seconds or more. The first packet of a flow is looked at before it leaves, then all together every 30 seconds
and at the end. ICMP errors do not count: they carry a piece of the packet that they are about.

Default scores: flow 50, client 50, an alert. Set `score = 100` to block such flows from then on.
"""

from nedge.scripts import Conf, Flow, status_types

title = "ICMP data exfiltration"
category = "security"
l4_proto = "icmp"
periodic_update_seconds = 30
default_value = {"max_payload": 1000, "max_rate": 1000, "score": 50, "client_score": 50, "server_score": 0}

HEADERS = {4: 28, 6: 48}  # IP and ICMP
ERRORS = {4: {3, 4, 5, 11, 12}, 6: set(range(128))}  # RFC 792, RFC 4443
SECONDS = 10  # in less time, a rate says nothing


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    version = 6 if ":" in flow.getServerIP() else 4
    packets = flow.getPackets()
    payload = max(0, flow.getBytes() - packets * HEADERS[version])
    most = max(
        flow.getBytesSent() - flow.getPacketsSent() * HEADERS[version],
        flow.getBytesRcvd() - flow.getPacketsRcvd() * HEADERS[version],
    )
    seconds = flow.getDuration()
    found = {}
    if payload > conf["max_payload"] * packets:
        found["payload"] = payload // packets
    if seconds >= SECONDS and most > conf["max_rate"] * seconds:
        found["rate"] = most // seconds
    if not found:
        return
    if flow.getFullInfo().get("icmp.type") not in ERRORS[version]:  # slow, so asked last
        flow.triggerStatus(
            status_types.status_data_exfiltration,
            found,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


periodicUpdate = flowEnd = protocolDetected
