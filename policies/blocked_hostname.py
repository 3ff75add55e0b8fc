"""Blocks devices and sites by name: over TLS, QUIC, HTTP and DNS.

A name is blocked if it is in the list, or below a name in the list: `example.com` covers `www.example.com`.
Every DNS query and every plain HTTP request is looked at, not only a flow's first.
"""

from functools import lru_cache

from nedge.core.lists import DomainSet
from nedge.scripts import Conf, Flow, status_types

title = "Blocked host names"
category = "security"
default_value = {"domains": [], "score": 100}


@lru_cache(maxsize=8)
def domain_set(names: tuple[str, ...]) -> DomainSet:
    return DomainSet(names)


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    name = flow.getHostName()
    entry = domain_set(tuple(conf["domains"])).match(name) if name else None
    if entry:
        info = {"host": name, "blocked_by": entry}
        flow.triggerStatus(status_types.status_blacklisted, info, conf["score"], 0, 0)


protocolUpdated = protocolDetected
