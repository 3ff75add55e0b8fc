"""Tells of DNS queries to other resolvers than yours.

`servers` has the addresses or networks of the resolvers to use. While it is empty, nothing happens. A listed
resolver may itself ask any other. Encrypted DNS (over TLS or HTTPS) is not looked at.

Default scores: flow 50, client 10, an alert. Set `score = 100` to block such queries.
"""

from functools import lru_cache

from nedge.core.lists import NetworkSet
from nedge.scripts import Conf, Flow, status_types

title = "Unexpected DNS server"
category = "security"
l7_proto = "DNS"
default_value = {"servers": [], "score": 50, "client_score": 10, "server_score": 0}


@lru_cache(maxsize=1)
def resolvers(servers: tuple[str, ...]) -> NetworkSet:
    return NetworkSet(servers)


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    if not conf["servers"] or not flow.isServerUnicast():
        return
    expected = resolvers(tuple(conf["servers"]))
    if flow.getServerIP() not in expected and flow.getClientIP() not in expected:
        info = {"server": flow.getServerIP(), "query": flow.getDnsQuery()}
        flow.triggerStatus(
            status_types.status_unexpected_dns,
            info,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
