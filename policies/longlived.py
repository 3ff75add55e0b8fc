"""Tells of flows that last very long: remote control, tunnels, or just a forgotten session.

`seconds` is the duration from which a flow counts. Looked at every 30 seconds, and at the flow's end.
Broadcast and multicast do not count.

Default: 12 hours, with a score of 10, which never blocks by itself.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Long-lived flow"
category = "network"
periodic_update_seconds = 30
default_value = {"seconds": 12 * 3600, "score": 10, "client_score": 10, "server_score": 0}


def periodicUpdate(flow: Flow, now: int, conf: Conf) -> None:
    if flow.getDuration() >= conf["seconds"] and flow.isUnicast():
        flow.triggerStatus(
            status_types.status_longlived,
            {"seconds": flow.getDuration()},
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


flowEnd = periodicUpdate
