"""Tells of flows between two remote hosts: neither end is in `network.local`.

On a bridge between your network and the Internet there should be none. Those that are show a network missing
from `network.local`, or a host with a forged or wrong address. Broadcast and multicast do not count.

Default score: 10, which never blocks by itself.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Remote to remote"
category = "network"
needs = "isRemoteToRemote"
default_value = {"score": 10, "client_score": 10, "server_score": 10}


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    if flow.isUnicast():
        flow.triggerStatus(
            status_types.status_remote_to_remote,
            None,
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
