"""Tells of UDP flows that nobody answers: the server is down, filtered, or does not exist.

Looked at 30 seconds after the flow was detected, and at its end. Not meant are broadcast and multicast,
protocols that are one-way by nature (`ignore`, by their nDPI names), and flows that we block ourselves: no
answer can come to those. An answer that comes late clears the status again.

Default score: 10, which never blocks by itself.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Unidirectional UDP"
category = "network"
l4_proto = "udp"
periodic_update_seconds = 30
default_value = {
    "ignore": ["NetFlow", "sFlow", "Syslog", "RTP"],
    "score": 10,
    "client_score": 10,
    "server_score": 0,
}


def periodicUpdate(flow: Flow, now: int, conf: Conf) -> None:
    status = status_types.status_udp_unidirectional
    if flow.isBidirectional():
        flow.clearStatus(status)
    elif flow.isUnicast() and flow.isPassVerdict() and flow.getnDPIProtocolName() not in conf["ignore"]:
        flow.triggerStatus(status, None, conf["score"], conf["client_score"], conf["server_score"])


flowEnd = periodicUpdate
