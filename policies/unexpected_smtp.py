"""Tells of mail that is sent past your mail servers, as hosts do that were made to send spam.

`servers` has the addresses or networks of the mail servers to use; while it is empty, the script is off. A
listed server may itself talk to any other. SMTP is looked at, on any port, and SMTP inside of TLS (465).

Default scores: flow 50, client 50, an alert. Set `score = 100` to block it, before any mail is sent.
"""

from nedge.scripts import Conf, Flow, NetworkSet, status_types

title = "Unexpected SMTP server"
category = "security"
l4_proto = "tcp"
default_value = {"servers": [], "score": 50, "client_score": 50, "server_score": 0}

PROTOCOLS = {"SMTP", "SMTPS"}
expected = NetworkSet()


def setup(conf: Conf) -> bool:
    global expected
    expected = NetworkSet(conf["servers"])
    return len(expected) > 0


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    protocol = flow.getnDPIProtocolName()
    if PROTOCOLS.isdisjoint(protocol.split(".")):
        return
    if flow.getServerIP() not in expected and flow.getClientIP() not in expected:
        flow.triggerStatus(
            status_types.status_unexpected_smtp,
            {"server": flow.getServerIP(), "protocol": protocol},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
