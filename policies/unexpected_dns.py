"""Tells of DNS queries to other resolvers than yours.

`servers` has the addresses or networks of the resolvers to use; while it is empty, the script is off. A
listed resolver may itself ask any other. For encrypted DNS there is `encrypted_dns`.

Default scores: flow 50, client 10, an alert. Set `score = 100` to block such queries.
"""

from nedge.scripts import Conf, Flow, NetworkSet, status_types

title = "Unexpected DNS server"
category = "security"
l7_proto = "DNS"
default_value = {"servers": [], "score": 50, "client_score": 10, "server_score": 0}


expected = NetworkSet()


def setup(conf: Conf) -> bool:
    global expected
    expected = NetworkSet(conf["servers"])
    return len(expected) > 0


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    if not flow.isServerUnicast():
        return
    if flow.getServerIP() not in expected and flow.getClientIP() not in expected:
        info = {"server": flow.getServerIP(), "query": flow.getDnsQuery()}
        flow.triggerStatus(
            status_types.status_unexpected_dns,
            info,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
