"""Tells of well-known protocols on other ports than their own: SSH on 2222, TLS on 4444, …

nDPI knows which ports a protocol has. Those who hide something, and those who are clever, use others.
`ports` has server ports that are fine all the same; `protocols`, if not empty, the only ones that count, by
nDPI's names, as master or application.

Off by default, as much of what is at home in a house does this. Score: 10, which never blocks by itself.
"""

from nedge.scripts import RISKS, Conf, Flow, status_types

title = "Known protocol on a non-standard port"
category = "network"
default_enabled = False
default_value = {
    "ports": [587, 853, 8000, 8008, 8080, 8443],
    "protocols": [],
    "score": 10,
    "client_score": 10,
    "server_score": 10,
}


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    if not flow.hasRisk(RISKS["nonstandard_port"]) or flow.getServerPort() in conf["ports"]:
        return
    protocol = flow.getnDPIProtocolName()
    if conf["protocols"] and not set(protocol.split(".")) & set(conf["protocols"]):
        return
    flow.triggerStatus(
        status_types.status_known_proto_on_non_std_port,
        {"protocol": protocol, "port": flow.getServerPort()},
        conf["score"],
        conf["client_score"],
        conf["server_score"],
    )
