"""Tells of clients that open TCP connections and close them without a word: who is looking for open ports.

A client is told of from the moment when it did that to more than `targets` different servers and ports within
`seconds`. Browsers do it now and then, when they race two addresses of a server.

Every worker process counts by itself, and a client's servers are spread over them: with several workers the
limit is reached later. At most 100,000 targets are remembered.

Default scores: flow 10, client 10, which never block by themselves: a probe is over when it can be told.
`verdict.host_drop_score` is what cuts a client off that goes on.
"""

from nedge.scripts import Conf, Flow, Window, status_types

title = "TCP probing"
category = "security"
l4_proto = "tcp"
three_way_handshake_ok = True
default_value = {"targets": 20, "seconds": 60, "score": 10, "client_score": 10, "server_score": 0}

FIN, RST = 0x01, 0x04
probed: Window[str, tuple[str, int]] = Window()  # client -> server and port


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    # Called when nothing has come for five seconds, as nobody said what protocol this is.
    if (
        flow.getGoodputBytes()
        or not flow.getTCPStats()["tcp.flags"] & (FIN | RST)
        or not flow.isPassVerdict()
    ):
        return
    target = (flow.getServerKey(), flow.getServerPort())
    count = probed.add(flow.getClientKey(), target, now, conf["seconds"])
    if count > conf["targets"]:
        flow.triggerStatus(
            status_types.status_suspicious_tcp_probing,
            {"targets": count},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
