"""Tells of DHCP servers other than yours, which could send a network's traffic anywhere they like.

`servers` has the addresses or networks of the servers to expect; while it is empty, the script is off. An
offer by another server is looked at before it leaves. Requests to all servers do not count. DHCPv6 is not
looked at.

Default scores: flow 50, server 100, an alert. The server's score counts for the client of a flow that the
server opened. Set `score = 100` to block what such servers say.
"""

from nedge.scripts import Conf, Flow, NetworkSet, status_types

title = "Unexpected DHCP server"
category = "security"
l4_proto = "udp"
l7_proto = "DHCP"
default_value = {"servers": [], "score": 50, "client_score": 0, "server_score": 100}

SERVER_PORT = 67
expected = NetworkSet()


def setup(conf: Conf) -> bool:
    global expected
    expected = NetworkSet(conf["servers"])
    return len(expected) > 0


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    scores = conf["client_score"], conf["server_score"]
    if flow.getServerPort() == SERVER_PORT:
        server, unicast = flow.getServerIP(), flow.isServerUnicast()
    else:  # an offer is a flow of its own, whose client is the DHCP server
        server, unicast = flow.getClientIP(), flow.isClientUnicast()
        scores = scores[1], scores[0]
    if unicast and server not in expected:
        flow.triggerStatus(status_types.status_unexpected_dhcp, {"server": server}, conf["score"], *scores)
