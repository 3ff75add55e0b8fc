"""Tells of hosts that call the same server again and again, as regularly as a clock: malware asks for orders.

The last `connections` intervals between connections of a local client to a port of a remote server are
looked at. They are a beacon if they vary by no more than `max_jitter` (standard deviation divided by mean),
last `min_interval` seconds or more on average, and if few bytes were exchanged: `max_bytes` a connection at
most, on average. Much that is harmless does this, too: `ignore` has protocols that do not count, by nDPI's
names, `domains` has names of servers, and covers what is below them.

A pair of hosts always meets the same worker process, so with several workers nothing is missed. At most
10,000 pairs are remembered, those that were heard of last. Takes user status 63.

Off by default. Scores: flow 50, client 50, an alert. Set `score = 100` to cut the connection.
"""

from itertools import pairwise
from statistics import fmean, pstdev

from nedge.scripts import Conf, DomainSet, Flow, LastUsed, define_status

title = "Beaconing"
category = "security"
default_enabled = False
default_value = {
    "connections": 10,
    "max_jitter": 0.1,
    "min_interval": 10,
    "max_bytes": 10_000,
    "ignore": ["NTP", "DNS", "DHCP", "ICMP", "ICMPV6"],
    "domains": [],
    "score": 50,
    "client_score": 50,
    "server_score": 0,
}

status_beaconing = define_status(63, "status_beaconing", "Beaconing", severity="warning")
Talk = tuple[list[int], list[int]]  # when connections began, and their bytes, the latest last
talks: LastUsed[tuple[str, str, int], Talk] = LastUsed(lambda: ([], []))
exempt = DomainSet()


def setup(conf: Conf) -> bool:
    global exempt
    exempt = DomainSet(conf["domains"])
    return True


def talk(flow: Flow, conf: Conf) -> Talk | None:
    if not flow.isLocalToRemote() or not flow.isServerUnicast():
        return None
    if not set(flow.getnDPIProtocolName().split(".")).isdisjoint(conf["ignore"]):
        return None
    return talks[flow.getClientKey(), flow.getServerKey(), flow.getServerPort()]


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    found = talk(flow, conf)
    if found is None:
        return
    starts, sizes = found
    starts.append(flow.getFirstSeen())
    del starts[: -conf["connections"] - 1]
    if len(starts) <= conf["connections"] or not sizes or fmean(sizes) > conf["max_bytes"]:
        return
    intervals = [after - before for before, after in pairwise(starts)]
    mean = fmean(intervals)
    if mean < conf["min_interval"] or pstdev(intervals) > conf["max_jitter"] * mean:
        return
    if not exempt.match(flow.getHostName()):
        info = {"interval": round(mean, 1), "jitter": round(pstdev(intervals) / mean, 3)}
        flow.triggerStatus(status_beaconing, info, conf["score"], conf["client_score"], conf["server_score"])


def flowEnd(flow: Flow, now: int, conf: Conf) -> None:
    found = talk(flow, conf)
    if found is not None:
        found[1].append(flow.getBytes())
        del found[1][: -conf["connections"]]
