"""Tells of a local host that logs in to many others: how an intruder spreads, once inside.

A client is told of from the moment when it had connections to more than `hosts` different local servers
within `seconds`, on one of `ports`: SSH, RPC, SMB, RDP, VNC, WinRM unless changed. Machines that manage
others do that too: list their addresses or networks in `managers`. Only what crosses the bridge can be seen.

Every worker process counts by itself, and a client's servers are spread over them: with several workers the
limit is reached later. At most 100,000 servers are remembered.

Default scores: flow 50, client 100, an alert. Set `score = 100` to block the connections beyond the limit.
"""

from nedge.scripts import Conf, Flow, NetworkSet, Window, status_types

title = "Lateral movement"
category = "security"
l4_proto = "tcp"
three_way_handshake_ok = True
default_value = {
    "hosts": 10,
    "seconds": 300,
    "ports": [22, 135, 139, 445, 3389, 5900, 5985, 5986],
    "managers": [],
    "score": 50,
    "client_score": 100,
    "server_score": 0,
}

managers = NetworkSet()
reached: Window[str, str] = Window()  # client -> servers


def setup(conf: Conf) -> bool:
    global managers
    managers = NetworkSet(conf["managers"])
    return True


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    if flow.getServerPort() not in conf["ports"] or not flow.isLocal() or flow.getClientIP() in managers:
        return
    count = reached.add(flow.getClientKey(), flow.getServerKey(), now, conf["seconds"])
    if count > conf["hosts"]:
        flow.triggerStatus(
            status_types.status_suspicious_tcp_probing,
            {"hosts": count, "port": flow.getServerPort()},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
