"""Tells of time servers other than yours.

`servers` has the addresses or networks of the time servers to use; while it is empty, the script is off. A
listed server may itself ask any other. Who sets a host's clock can make it take certificates that have
expired, and spoil its logs.

Default scores: flow 30, client 10, an alert. Set `score = 100` to block such requests.
"""

from nedge.scripts import Conf, Flow, NetworkSet, status_types

title = "Unexpected NTP server"
category = "security"
l4_proto = "udp"
l7_proto = "NTP"
default_value = {"servers": [], "score": 30, "client_score": 10, "server_score": 0}

expected = NetworkSet()


def setup(conf: Conf) -> bool:
    global expected
    expected = NetworkSet(conf["servers"])
    return len(expected) > 0


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    if not flow.isServerUnicast() or flow.getServerIP() in expected or flow.getClientIP() in expected:
        return
    flow.triggerStatus(
        status_types.status_unexpected_ntp,
        {"server": flow.getServerIP()},
        conf["score"],
        conf["client_score"],
        conf["server_score"],
    )
