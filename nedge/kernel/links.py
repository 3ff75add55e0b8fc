"""Network interfaces and sysctls as values, and the few changes that the bridge needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import IPRoute

PROC_SYS = Path("/proc/sys")
_IFF_UP = 1
_ARPHRD_LOOPBACK = 772
_SCOPE_LINK = 253
_FORWARDING = 3
# What the bridge is told on pyroute2's side, and under which name the kernel tells it back.
BRIDGE_OPTIONS = {
    "br_nf_call_iptables": "IFLA_BR_NF_CALL_IPTABLES",
    "br_nf_call_ip6tables": "IFLA_BR_NF_CALL_IP6TABLES",
}


@dataclass(frozen=True)
class Link:
    """One interface as it is now."""

    name: str
    index: int
    up: bool
    master: int
    """Index of the bridge (or bond …) that it is a port of; 0 if of none."""
    kind: str
    """`bridge`, `veth`, `vlan` …; empty for a plain network card."""
    mtu: int
    options: dict[str, int]
    """Of a bridge: the BRIDGE_OPTIONS."""
    forwarding: bool
    """Of a port: whether its bridge sends and takes packets there, which it does once the link is up."""
    loopback: bool
    carrier: bool = True
    """Of an interface that is up: a cable is in, and somebody at its other end."""


def read_links(route: Any) -> dict[str, Link]:
    """All interfaces of this network namespace, by name."""
    links = map(_link, route.get_links())
    return {link.name: link for link in links}


def links() -> dict[str, Link]:
    """As `read_links`, for a single look."""
    with IPRoute() as route:
        return read_links(route)


def addresses(index: int) -> list[str]:
    """The addresses of an interface that reach beyond its own link, as `address/length`."""
    with IPRoute() as route:
        return [
            f"{one.get_attr('IFA_ADDRESS')}/{one['prefixlen']}"
            for one in route.get_addr(index=index)
            if one["scope"] < _SCOPE_LINK
        ]


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") or "") if info else ""
    options = {}
    port = None
    if info and info.get_attr("IFLA_INFO_SLAVE_KIND") == "bridge":
        port = info.get_attr("IFLA_INFO_SLAVE_DATA")
    if kind == "bridge":
        data = info.get_attr("IFLA_INFO_DATA")
        options = {ours: int(data.get_attr(theirs) or 0) for ours, theirs in BRIDGE_OPTIONS.items()}
    return Link(
        name=message.get_attr("IFLA_IFNAME"),
        index=message["index"],
        up=bool(message["flags"] & _IFF_UP),
        master=message.get_attr("IFLA_MASTER") or 0,
        kind=kind,
        mtu=message.get_attr("IFLA_MTU") or 0,
        options=options,
        forwarding=port is not None and port.get_attr("IFLA_BRPORT_STATE") == _FORWARDING,
        loopback=message["ifi_type"] == _ARPHRD_LOOPBACK,
        carrier=bool(message.get_attr("IFLA_CARRIER")),
    )


def read_sysctl(path: str) -> str | None:
    """A sysctl's value (`net/ipv6/conf/br0/disable_ipv6`), None where the kernel has no such thing."""
    try:
        return (PROC_SYS / path).read_text().strip()
    except OSError:
        return None


def write_sysctl(path: str, value: str) -> None:
    """Set a sysctl, if it differs. One that is not there (its interface is gone) is left."""
    if read_sysctl(path) not in (None, value):
        (PROC_SYS / path).write_text(value)
