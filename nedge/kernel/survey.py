"""What else there is on this machine that touches a bridge's traffic. Reads only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pyroute2 import Ethtool, IPRoute

from nedge.kernel.links import Link, read_sysctl
from nedge.kernel.problem import Problem
from nedge.kernel.rules import CHAIN_PREFIX, FAMILIES, save

SYS_NET = Path("/sys/class/net")
_NEARLY_FULL = 0.8
_NUD_KNOWN = 0xDE  # any state but incomplete, failed and none


def wireless(ports: Sequence[str], sys_net: Path = SYS_NET) -> list[Problem]:
    """WLAN cards among the ports. A client of an access point may send from its own address only."""
    return [
        Problem(
            f"interface {port} is wireless, and cannot be bridged as client of an access point; as an access "
            "point it can: have hostapd make it a port of a bridge, and name that in gateway.bridge"
        )
        for port in ports
        if (sys_net / port / "phy80211").exists() and not (sys_net / port / "brport").exists()
    ]


def large_receive(found: dict[str, Link], ports: Sequence[str]) -> Iterator[Problem]:
    """Ports with LRO, which glues packets together so that they cannot be forwarded as they were."""
    for port in ports:
        bits = _features(port).get("rx-lro")
        if not bits or not bits[0]:
            continue
        if not found[port].master:
            yield Problem(
                f"interface {port} has LRO on; the kernel turns it off in a bridge, if the driver lets it: "
                f"try ethtool -K {port} lro off",
                False,
            )
        else:
            yield Problem(
                f"interface {port} has LRO on, and forwards broken packets: ethtool -K {port} lro off"
                + ("" if bits[1] else " (its driver refuses that: use another card)")
            )


def receive_offloads(port: str) -> str:
    """GRO and LRO of an interface, in words."""
    features = _features(port)
    if not features:
        return f"{port}: its driver does not tell"
    names = {"rx-gro": "GRO", "rx-gro-hw": "GRO in hardware", "rx-lro": "LRO"}
    on = [name for feature, name in names.items() if features.get(feature, (False, False))[0]]
    return f"{port}: {', '.join(on) or 'none'}"


def _features(port: str) -> dict[str, tuple[bool, bool]]:
    """Feature -> whether it is on, and whether that can be changed. Empty where the driver tells nothing."""
    try:
        ethtool = Ethtool()
    except Exception:  # a kernel that has no ethtool over netlink raises what pyroute2 likes
        return {}
    try:
        features = ethtool.get_features(port).features.values()
        return {one.name: (bool(one.enable), bool(one.available)) for one in features}
    except OSError:
        return {}
    finally:
        ethtool.close()


def other_queues() -> list[Problem]:
    """Rules of others that send packets to a queue."""
    return [
        Problem(
            f"a rule of the {family} firewall sends packets to another's queue ({line}): have it leave "
            "bridged ones out (-m physdev ! --physdev-is-bridged), unless these shall wait there too",
            False,
        )
        for family in FAMILIES
        for line in save(family)
        if line.startswith("-A ") and not line.startswith(f"-A {CHAIN_PREFIX}") and " -j NFQUEUE" in line
    ]


def docker(found: dict[str, Link]) -> list[Problem]:
    """Docker makes filter FORWARD drop, whenever it starts, and leaves one chain to the administrator."""
    if "docker0" not in found:
        return []
    user_rules = [line for line in save("ip") if line.startswith("-A DOCKER-USER ")]
    if any("--physdev-is-bridged" in line and line.endswith("-j ACCEPT") for line in user_rules):
        return []
    return [
        Problem(
            "Docker has forwarded packets dropped whenever it starts: let bridged ones pass (iptables -I "
            "DOCKER-USER -m physdev --physdev-is-bridged -j ACCEPT)",
            False,
        )
    ]


def connection_table(max_flows: int, workers: int) -> list[Problem]:
    """Whether the kernel's table of connections holds as many as our flows, and has room now.

    max_flows: that each worker holds, at most.
    """
    limit, count = (read_sysctl(f"net/netfilter/nf_conntrack_{name}") for name in ("max", "count"))
    if limit is None or count is None:
        return []  # not loaded yet: the rules load it
    remedy = "raise net.netfilter.nf_conntrack_max (sysctl)"
    problems = []
    if 0 < int(limit) < max_flows * workers:
        each = f"limits.max_flows is {max_flows}" + (f" for each of {workers} workers" if workers > 1 else "")
        problems.append(
            Problem(
                f"the kernel holds {limit} connections, and drops packets of further ones, though "
                f"{each}: {remedy} or lower limits.max_flows",
                False,
            )
        )
    if 0 < int(limit) * _NEARLY_FULL < int(count):
        problems.append(Problem(f"{count} of {limit} connections of the kernel are in use: {remedy}", False))
    return problems


def gateway_side(bridge: str) -> str | None:
    """The port of an existing bridge behind which this machine's own router is, None if it cannot be told."""
    with IPRoute() as route:
        indexes = route.link_lookup(ifname=bridge)
        if not indexes:
            return None
        routers = {
            via
            for one in route.get_default_routes()
            if one.get_attr("RTA_OIF") == indexes[0] and (via := one.get_attr("RTA_GATEWAY"))
        }
        macs = {
            one.get_attr("NDA_LLADDR")
            for one in route.get_neighbours(ifindex=indexes[0])
            if one.get_attr("NDA_DST") in routers and one["state"] & _NUD_KNOWN
        }
        for one in route.fdb("dump"):
            if one.get_attr("NDA_LLADDR") in macs and one.get_attr("NDA_MASTER") == indexes[0]:
                (link,) = route.get_links(one["ifindex"])
                return str(link.get_attr("IFLA_IFNAME"))
    return None
