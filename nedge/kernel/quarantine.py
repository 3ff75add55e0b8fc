"""Quarantine: hosts that the kernel itself cuts off, for a time.

Per bridge and family there are two ipsets, which the rules of `Quarantine.rules` refer to:

    nedge-<bridge>-q4, -q6    addresses that are cut, each with its time; the kernel lets go of them by itself
    nedge-<bridge>-a4, -a6    networks whose traffic is never cut, with whomever it is

The sets have to be there before the rules, and as long as these. So `open()` before the rules are installed,
`check()` before they are put back, `close()` after they are removed.

One process keeps them. Its book says what should be in the sets, so that what others take out is put back.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any, NamedTuple

from pyroute2 import IPSet
from pyroute2.netlink.exceptions import NetlinkError

from nedge.kernel.ipsets import errors, is_error, remove_sets, set_size
from nedge.kernel.rules import FAMILIES, Family

LONGEST = 2_147_483.0
"""Seconds (24 days): the longest that a set can hold an address. Whoever is to be cut longer, is for good."""
MAX_ADDRESSES = 1 << 18
MAX_NETWORKS = 1 << 20
_SLACK = 2.0
"""Seconds by which the kernel may be ahead of the book in letting an address go."""

_VERSIONS: dict[Family, int] = {"ip": 4, "ip6": 6}
_NOT_IN_SET = 4103  # IPSET_ERR_EXIST


def set_names(bridge: str, family: Family) -> tuple[str, str]:
    """The sets of cut addresses, and of networks that are never cut. (A name has at most 31 characters.)"""
    return f"nedge-{bridge}-q{_VERSIONS[family]}", f"nedge-{bridge}-a{_VERSIONS[family]}"


class _Entry(NamedTuple):
    """An entry of a set: address, or network in CIDR form; seconds left, infinite without a timeout."""

    name: str
    left: float
    packets: int


@dataclass
class _Side:
    """What there is of one family: names of sets, and the book."""

    cut: str
    allowed: str
    version: int
    until: dict[str, float] = field(default_factory=dict)
    """Address -> when it is let go, by the monotonic clock."""
    networks: set[str] = field(default_factory=set)

    @property
    def family(self) -> int:
        return socket.AF_INET if self.version == 4 else socket.AF_INET6

    def prune(self) -> float:
        """Forget what is over. Gives the time."""
        now = time.monotonic()
        for address in [address for address, until in self.until.items() if until <= now]:
            del self.until[address]
        return now


class Quarantine:
    """The sets of one bridge. `open`, `allow`, `check`, `packets` and `close` may raise KernelError."""

    def __init__(self, bridge: str) -> None:
        self.failures = 0
        """Addresses that the kernel did not take, or let go, when it was asked to."""
        self._sides = {family: _Side(*set_names(bridge, family), _VERSIONS[family]) for family in FAMILIES}
        self._kernel: Any = None

    def open(self) -> None:
        """Make the sets, or take over with their content those that a crash left. Then call `allow`."""
        with errors("set up"), contextlib.ExitStack() as undo:
            self._kernel = undo.enter_context(contextlib.closing(IPSet()))
            undo.callback(setattr, self, "_kernel", None)
            for side in self._sides.values():
                _make(self._kernel, side)
                self._adopt(side)
                side.networks = {entry.name for entry in self._read(side.allowed)}
            undo.pop_all()

    def close(self) -> None:
        """Destroy the sets, which lets all hosts go. The rules must be gone by now."""
        if self._kernel is not None:
            with contextlib.closing(self._kernel) as kernel, errors("removed"):
                self._kernel = None
                for side in self._sides.values():
                    remove_sets(kernel, side.cut, side.allowed)

    def rules(self) -> dict[Family, list[str]]:
        """Rules for the chain, to stand before those that let packets of decided flows pass."""
        return {family: _rules(side) for family, side in self._sides.items()}

    def add(self, address: str, seconds: float) -> bool:
        """Cut a host for so many seconds from now on. False if the kernel refused (the set is full, say)."""
        if not seconds > 0:
            raise ValueError(f"{seconds} seconds of quarantine")
        side, name = self._side(address)
        # Whole seconds, as the kernel has them.
        side.until[name] = time.monotonic() + math.ceil(seconds) if seconds <= LONGEST else math.inf
        try:
            self._cut(side, name)
        except (NetlinkError, OSError) as error:
            self.failures += 1
            if not is_error(error, errno.ENOENT):  # a set that somebody took away comes back, with this in it
                del side.until[name]
            return False
        return True

    def release(self, address: str) -> bool:
        """Let a host go. Says whether it was cut."""
        side, name = self._side(address)
        known = side.until.pop(name, 0.0) > time.monotonic()
        try:
            self._kernel.delete(side.cut, name, family=side.family)
        except (NetlinkError, OSError) as error:
            self.failures += not is_error(error, errno.ENOENT, _NOT_IN_SET)
            return known
        return True

    def flush(self) -> None:
        """Let all hosts go."""
        for side in self._sides.values():
            side.until.clear()
            try:
                self._kernel.flush(side.cut)
            except (NetlinkError, OSError) as error:
                self.failures += not is_error(error, errno.ENOENT)

    def hosts(self) -> dict[str, float]:
        """The hosts that are cut, with the seconds left to each; infinite: until it is released."""
        left = {}
        for side in self._sides.values():
            now = side.prune()
            left.update({name: until - now for name, until in side.until.items()})
        return left

    def packets(self) -> dict[str, int]:
        """How many packets from and to each host the rules met, those spared by the allow list included."""
        with errors("read"):
            entries = [entry for side in self._sides.values() for entry in self._read(side.cut)]
        return {entry.name: entry.packets for entry in entries}

    def allow(self, networks: Iterable[str]) -> None:
        """From now on the traffic of these networks and addresses is never cut, and that of no others."""
        parsed = [ip_network(network, strict=False) for network in networks]
        with errors("filled"):
            for side in self._sides.values():
                mine = [one for one in parsed if one.version == side.version]
                there, side.networks = side.networks, _canonical(mine)
                self._fit(side, there)

    def check(self) -> bool:
        """Whether the sets have the size that they should have; if not, they do now.

        That takes a few milliseconds in all; to read them would take 70 microseconds an entry."""
        with errors("put back"):
            sound = [self._check(side) for side in self._sides.values()]
        return all(sound)

    def _check(self, side: _Side) -> bool:
        try:
            sizes = set_size(self._kernel, side.cut), set_size(self._kernel, side.allowed)
        except (NetlinkError, OSError) as error:
            if not is_error(error, errno.ENOENT):
                raise
            _make(self._kernel, side)
            self._put_back(side)
            return False
        side.prune()
        return sizes == (len(side.until), len(side.networks)) or self._put_back(side)

    def _put_back(self, side: _Side) -> bool:
        """Make the sets what the book says. Who else is cut, somebody wanted that: it is noted down."""
        there = {entry.name for entry in self._read(side.cut)}
        soon = side.prune() + _SLACK
        missing = [name for name, until in side.until.items() if until > soon and name not in there]
        for name in missing:
            self._cut(side, name)
        self._adopt(side)
        return self._fit(side, {entry.name for entry in self._read(side.allowed)}) and not missing

    def _adopt(self, side: _Side) -> None:
        now = time.monotonic()
        for entry in self._read(side.cut):
            side.until.setdefault(entry.name, now + entry.left)

    def _cut(self, side: _Side, name: str) -> None:
        left = side.until[name] - time.monotonic()
        timeout = 0 if left == math.inf else round(left)
        self._kernel.add(side.cut, name, family=side.family, timeout=timeout, exclusive=False)

    def _fit(self, side: _Side, there: set[str]) -> bool:
        """Make a set that holds `there` hold what it should, new ones first; says if it did already."""
        for name in side.networks - there:
            self._kernel.add(side.allowed, name, family=side.family, etype="net", exclusive=False)
        for name in there - side.networks:
            self._kernel.delete(side.allowed, name, family=side.family, etype="net", exclusive=False)
        return side.networks == there

    def _side(self, address: str) -> tuple[_Side, str]:
        parsed = ip_address(address)
        return self._sides["ip" if parsed.version == 4 else "ip6"], str(parsed)

    def _read(self, name: str) -> list[_Entry]:
        parts = [part.get_attr("IPSET_ATTR_ADT") for part in self._kernel.list(name)]
        return [_entry(data) for part in parts if part for data in part.get_attrs("IPSET_ATTR_DATA")]


def sweep(bridge: str) -> bool:
    """Remove what a crashed gateway left, whose rules are gone. Says if there was anything."""
    with errors("removed"), IPSet() as kernel:
        return remove_sets(kernel, *(name for family in FAMILIES for name in set_names(bridge, family)))


def _rules(side: _Side) -> list[str]:
    unless = " ".join(f"-m set ! --match-set {side.allowed} {end}" for end in ("src", "dst"))
    return [f"-m set --match-set {side.cut} {end} {unless} -j DROP" for end in ("src", "dst")]


def _make(kernel: Any, side: _Side) -> None:
    cut = {"stype": "hash:ip", "timeout": 0, "counters": True, "maxelem": MAX_ADDRESSES}
    allowed = {"stype": "hash:net", "maxelem": MAX_NETWORKS}
    for name, options in ((side.cut, cut), (side.allowed, allowed)):
        options |= {"family": side.family, "exclusive": False}
        try:
            kernel.create(name, **options)
        except (NetlinkError, OSError) as error:
            if not is_error(error, errno.EEXIST):
                raise
            remove_sets(kernel, name)  # of another kind: another version's, or not ours
            kernel.create(name, **options)


def _entry(data: Any) -> _Entry:
    address = data.get_attr("IPSET_ATTR_IP_FROM")
    text = address.get_attr("IPSET_ATTR_IPADDR_IPV4") or address.get_attr("IPSET_ATTR_IPADDR_IPV6")
    name = str(ip_address(text))
    if (prefix := data.get_attr("IPSET_ATTR_CIDR")) is not None:
        name = f"{name}/{prefix}"
    left, packets = data.get_attr("IPSET_ATTR_TIMEOUT"), data.get_attr("IPSET_ATTR_PACKETS")
    return _Entry(name, left or math.inf, packets or 0)


def _canonical(networks: Iterable[IPv4Network | IPv6Network]) -> set[str]:
    """Networks without those inside others, as the kernel tells them; it takes no prefix length of 0."""
    collapsed = list(collapse_addresses(networks))  # type: ignore[type-var]
    parts = (network.subnets() if network.prefixlen == 0 else (network,) for network in collapsed)
    return {str(network) for part in parts for network in part}
