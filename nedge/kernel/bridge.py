"""The bridge that the gateway sits on: made, or adopted as it is found, and put back at the end.

Only what is needed is touched: iptables is switched on for this one bridge (not, by sysctl, for every
bridge of the machine), frames inside a VLAN or PPPoE are made to meet the rules too (a firewall that a tag
gets round would be none; the kernel looks behind one tag: frames with two pass without being judged), and
connection tracking is told to count and to forget closed connections soon.

A bridge that the gateway makes is as good as a cable:

* no spanning tree, no forwarding delay: no loop is possible with what is a cable, and traffic flows at once;
* no address, no IPv6 on bridge and ports: it says nothing on the wire of its own;
* no multicast snooping: it forwards by who joined, and hosts that are not heard to join (their report lost,
  or sent before the bridge came) would lose neighbour discovery; between two cables nothing is saved by it;
* LLDP, 802.1X and the like pass (group_fwd_mask); by default a bridge swallows them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from nedge.kernel.errors import KernelError
from nedge.kernel.links import Link, addresses, read_links, read_sysctl, write_sysctl
from nedge.kernel.state import Section, State

SECTION = "bridge"
_NEW_BRIDGE = {
    "br_stp_state": 0,
    "br_forward_delay": 0,
    "br_mcast_snooping": 0,
    "br_group_fwd_mask": 0xFFF8,  # all but spanning tree, pause and LACP, which no bridge may pass
}
_FILTERED = {"br_nf_call_iptables": 1, "br_nf_call_ip6tables": 1}
CLOSED_SECONDS = 8
"""How long connection tracking remembers a closed connection."""
SYSCTLS = {
    "net/bridge/bridge-nf-filter-vlan-tagged": "1",
    "net/bridge/bridge-nf-filter-pppoe-tagged": "1",
    # Flows that the kernel took over: it counts them, and lets go of closed ones soon, so that we hear of it.
    "net/netfilter/nf_conntrack_acct": "1",
    "net/netfilter/nf_conntrack_tcp_timeout_time_wait": str(CLOSED_SECONDS),
    "net/netfilter/nf_conntrack_tcp_timeout_close": str(CLOSED_SECONDS),
}


class Bridge:
    """One bridge between LAN and WAN ports."""

    def __init__(self, name: str, lan: Sequence[str], wan: Sequence[str], state: State) -> None:
        self.name = name
        self.ports = (*lan, *wan)
        self.made = False
        """Whether the bridge was made by the gateway (this one, or one that crashed)."""
        self._state = state

    def open(self) -> None:
        """Make or adopt the bridge, or take over a crashed gateway's. On KernelError all is as it was."""
        try:
            with IPRoute() as route:
                found = self._found(route)
                self._state.put(SECTION, found)
                self._apply(route, found)
        except (NetlinkError, OSError) as error:
            if not self._state.inherited:
                with contextlib.suppress(KernelError):  # the record stays for the next start
                    self.close()
            raise KernelError(f"bridge {self.name} could not be set up: {error}") from error

    def close(self) -> None:
        """Put everything back as it was found."""
        undo(self._state)

    def check(self) -> list[str]:
        """Put back what others changed, and say what that was. Raises KernelError if something resists.

        A port that is gone is waited for; when it comes back (plugged in again) it is taken again.
        """
        try:
            with IPRoute() as route:
                return self._restore(route)
        except (NetlinkError, OSError) as error:
            raise KernelError(f"bridge {self.name} could not be put back into order: {error}") from error

    def _restore(self, route: Any) -> list[str]:
        found = self._state.get(SECTION)
        assert found is not None, "the bridge is not open"
        links = read_links(route)
        bridge = links.get(self.name)
        restored = []
        if bridge is None or bridge.index != found["index"]:
            if not found["made"] or bridge is not None:
                raise KernelError(f"bridge {self.name} is not the one that was adopted: start nedge again")
            restored.append(f"bridge {self.name}")
            self._state.put(SECTION, found | {"index": 0})
            found = self._state.get(SECTION) or found
            self._apply(route, found, missing_ok=True)
            return restored
        if any(bridge.options.get(option) != 1 for option in _FILTERED):
            restored.append(f"iptables on {self.name}")
        sysctls = {path: SYSCTLS.get(path, "1") for path in found["sysctls"]}
        restored += [path for path, value in sysctls.items() if read_sysctl(path) not in (None, value)]
        for name in self.ports:
            port = links.get(name)
            if port is None:
                continue
            if port.index != found["ports"][name]["index"]:  # made anew
                found["ports"][name] = {"index": port.index, "up": port.up, "taken": not port.master}
                self._state.put(SECTION, found)
            if port.master != bridge.index:
                restored.append(f"port {name}")
        if restored:
            self._apply(route, found, missing_ok=True)
        return restored

    def ports_without_link(self) -> list[str]:
        """Ports that do not forward yet: no cable, or the link is still coming up (seconds, often)."""
        with IPRoute() as route:
            links = read_links(route)
        return [name for name in self.ports if name not in links or not links[name].forwarding]

    def _found(self, route: Any) -> Section:
        """What is there now, as far as it will be changed; or what was there before a crash."""
        links = read_links(route)
        bridge = links.get(self.name)
        left = self._state.get(SECTION)
        if left is not None:
            if bridge and bridge.index == left["index"] and set(left["ports"]) == set(self.ports):
                return left
            undo(self._state)  # the configuration changed, or the interfaces were made anew
            self._state.inherited = False
            links = read_links(route)
            bridge = links.get(self.name)
        if bridge and bridge.kind != "bridge":
            raise KernelError(f"interface {self.name} exists and is no bridge: choose another gateway.bridge")
        check_ports(links, self.name, self.ports)
        ports = [links[name] for name in self.ports]
        quiet = [f"net/ipv6/conf/{port.name}/disable_ipv6" for port in ports if not port.master]
        return {
            "made": bridge is None,
            "index": bridge.index if bridge else 0,
            "up": bridge.up if bridge else False,
            "options": bridge.options if bridge else {},
            "ports": {
                port.name: {"index": port.index, "up": port.up, "taken": not port.master} for port in ports
            },
            "sysctls": {path: self._original(path) for path in (*quiet, *SYSCTLS)},
        }

    def _original(self, path: str) -> str | None:
        """What a sysctl of the whole namespace was before the first of several gateways set it."""
        for other in self._state.others(SECTION):
            if path in other["sysctls"]:
                return str(other["sysctls"][path])
        return read_sysctl(path)

    def _apply(self, route: Any, found: Section, *, missing_ok: bool = False) -> None:
        self.made = found["made"]
        if self.made and not found["index"]:
            route.link("add", ifname=self.name, kind="bridge", **_NEW_BRIDGE)
            found["index"] = read_links(route)[self.name].index
            self._state.put(SECTION, found)
        if self.made:
            write_sysctl(f"net/ipv6/conf/{self.name}/disable_ipv6", "1")
        # Filter first: no packet should cross before.
        route.link("set", index=found["index"], kind="bridge", **_FILTERED)
        for path in found["sysctls"]:
            write_sysctl(path, SYSCTLS.get(path, "1"))
        links = read_links(route)
        ports = [name for name in self.ports if name in links or not missing_ok]
        for name in ports:
            if links[name].master != found["index"]:
                route.link("set", index=links[name].index, master=found["index"])
        for name in (self.name, *ports):
            if not links[name].up:
                route.link("set", index=links[name].index, state="up")


def undo(state: State) -> None:
    """Put back what a gateway changed, from its record. Interfaces that are gone or new are left alone."""
    found = state.get(SECTION)
    if found is None:
        return
    try:
        _put_back(found, state)
    except (NetlinkError, OSError) as error:
        raise KernelError(
            f"bridge {state.bridge} could not be put back as it was: {error}; the next start will try again, "
            f"{state.path} says what was there"
        ) from error
    state.drop(SECTION)


def _put_back(found: Section, state: State) -> None:
    with IPRoute() as route:
        links = read_links(route)
        for name, was in found["ports"].items():
            port = links.get(name)
            if port is None or port.index != was["index"]:
                continue
            if was["taken"] and port.master and port.master == found["index"]:
                route.link("set", index=port.index, master=0)
            if port.up and not was["up"]:
                route.link("set", index=port.index, state="down")
        bridge = links.get(state.bridge)
        if bridge and bridge.kind == "bridge" and found["index"] in (0, bridge.index):
            if found["made"]:
                route.link("del", index=bridge.index)
            else:
                route.link("set", index=bridge.index, kind="bridge", **found["options"])
                if bridge.up and not found["up"]:
                    route.link("set", index=bridge.index, state="down")
    shared = {path for other in state.others(SECTION) for path in other["sysctls"]}
    for path, value in found["sysctls"].items():
        if value is not None and path not in shared:
            write_sysctl(path, value)


def check_ports(links: dict[str, Link], bridge: str, ports: Sequence[str]) -> None:
    """Raise KernelError unless every port can be, or is, one of the bridge."""
    if len(set(ports)) != len(ports) or bridge in ports:
        raise KernelError("an interface is named twice among gateway.bridge, gateway.lan and gateway.wan")
    names = {link.index: link.name for link in links.values()}
    owner = links.get(bridge)
    for name in ports:
        link = links.get(name)
        if link is None:
            there = ", ".join(
                sorted(one.name for one in links.values() if not one.loopback and one.name != bridge)
            )
            raise KernelError(f"there is no interface {name}; this machine has: {there or 'none'}")
        if link.loopback or link.kind == "bridge":
            raise KernelError(
                f"interface {name} cannot be a port of a bridge: it is {link.kind or 'the loopback'}"
            )
        if link.master and (owner is None or link.master != owner.index):
            master = names.get(link.master, "another device")
            raise KernelError(
                f"interface {name} belongs to {master}: use gateway.bridge = {master!r}, or free it "
                f"(ip link set {name} nomaster)"
            )
        if not link.master and (held := addresses(link.index)):
            raise KernelError(
                f"interface {name} has the address {held[0]}, which a port of a bridge cannot use; "
                f"if nothing (your own login, say) depends on it, remove it: ip addr del {held[0]} dev {name}"
            )
