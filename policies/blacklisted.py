"""Blocks flows with a blacklisted end, or that ask for a blacklisted name.

The lists are those of the configuration: `lists.malware_hosts` (addresses and networks) and
`lists.malware_domains` (host names: TLS, QUIC, HTTP and every single DNS query are looked at).

Default scores: flow 100, client 1000, server 5. The client counts most: it talks to what it should not, so it
may be infected. Besides, status_blacklisted blocks by itself unless `verdict.block_statuses` says otherwise:
lowering the score alone does not let such flows through.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Blacklisted"
category = "security"
needs = "isBlacklisted"
default_value = {"score": 100, "client_score": 1000, "server_score": 5}


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    info = {"host": flow.getHostName(), **flow.getBlacklistedInfo()}
    flow.triggerStatus(
        status_types.status_blacklisted, info, conf["score"], conf["client_score"], conf["server_score"]
    )


protocolUpdated = protocolDetected
