"""Tells of clients whose TCP connections are refused or not answered: scans, and worms that look for victims.

A client is told of from the moment when more than `targets` different servers and ports did not take its
connections within `seconds`. Programs for file sharing do that too: give a higher limit if there are some.

Every worker process counts by itself, and a client's servers are spread over them: with several workers the
limit is reached later. At most 100,000 targets are remembered.

Off by default. Scores: flow 10, client 10, which never block by themselves: a refused connection is over when
it can be told. `verdict.host_drop_score` is what cuts a client off that goes on.
"""

from nedge.scripts import Conf, Flow, Window, status_types

title = "SYN probing"
category = "security"
l4_proto = "tcp"
default_enabled = False
default_value = {"targets": 50, "seconds": 60, "score": 10, "client_score": 10, "server_score": 0}

SYN = 0x02
failed: Window[str, tuple[str, int]] = Window()  # client -> server and port


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    # Nothing came of it, and not because we blocked it, or because its start was not seen.
    if flow.isTwhOK() or flow.getGoodputBytes() or not flow.isPassVerdict():
        return
    if not flow.getTCPStats()["tcp.flags"] & SYN:
        return
    target = (flow.getServerKey(), flow.getServerPort())
    count = failed.add(flow.getClientKey(), target, now, conf["seconds"])
    if count > conf["targets"]:
        flow.triggerStatus(
            status_types.status_suspicious_tcp_syn_probing,
            {"targets": count},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )
