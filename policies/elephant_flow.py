"""Tells of flows that move very much data between a local and a remote host.

`local_to_remote` and `remote_to_local` are the bytes from which a flow counts, by the way that the data goes,
whoever opened the flow; 0 = never. Looked at every 30 seconds, and at the flow's end.

Default: 1 GiB out, 5 GiB in, with a score of 10 each, which never blocks by itself.
"""

from nedge.scripts import Conf, Flow, status_types

title = "Elephant flow"
category = "network"
periodic_update_seconds = 30
default_value = {
    "local_to_remote": 1 << 30,
    "remote_to_local": 5 << 30,
    "score": 10,
    "client_score": 10,
    "server_score": 0,
}


def periodicUpdate(flow: Flow, now: int, conf: Conf) -> None:
    if flow.isLocalToRemote():
        out, back = flow.getBytesSent(), flow.getBytesRcvd()
    elif flow.isRemoteToLocal():
        out, back = flow.getBytesRcvd(), flow.getBytesSent()
    else:
        return
    for status, count, limit in (
        (status_types.status_elephant_local_to_remote, out, conf["local_to_remote"]),
        (status_types.status_elephant_remote_to_local, back, conf["remote_to_local"]),
    ):
        if 0 < limit <= count:
            flow.triggerStatus(
                status, {"bytes": count}, conf["score"], conf["client_score"], conf["server_score"]
            )


flowEnd = periodicUpdate
