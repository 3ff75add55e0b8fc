"""Blocks devices and sites by name: over TLS, QUIC, HTTP and DNS.

A name is blocked if it is in the list `domains`, or below a name in it: `example.com` covers
`www.example.com`. Every DNS query and every plain HTTP request is looked at, not only a flow's first.
While the list is empty, the script is off.

Default score: 100. Besides, status_blacklisted blocks by itself unless `verdict.block_statuses` says
otherwise: lowering the score alone does not let such flows through.
"""

from nedge.scripts import Conf, DomainSet, Flow, status_types

title = "Blocked host names"
category = "security"
default_value = {"domains": [], "score": 100, "client_score": 0, "server_score": 0}


blocked = DomainSet()


def setup(conf: Conf) -> bool:
    global blocked
    blocked = DomainSet(conf["domains"])
    return len(blocked) > 0


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    name = flow.getHostName()
    entry = blocked.match(name) if name else None
    if entry:
        flow.triggerStatus(
            status_types.status_blacklisted,
            {"host": name, "blocked_by": entry},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
