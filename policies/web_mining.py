"""Tells of cryptocurrency mining: mining protocols, and names on the `lists.mining_domains` lists.

Default scores: flow 50, client 50, server 10. Mining alone does not block; mining by a host that has other
problems too does. Set `score = 100` to block it.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Web mining"
category = "security"
default_value = {"score": 50, "client_score": 50, "server_score": 10}

CATEGORY_MINING = 99  # the same in every nDPI, and what the list of names sets


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    if flow.getnDPICategoryId() == CATEGORY_MINING:
        info = {"host": flow.getHostName(), "protocol": flow.getnDPIProtocolName()}
        flow.triggerStatus(
            status_types.status_web_mining_detected,
            info,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


protocolUpdated = protocolDetected
