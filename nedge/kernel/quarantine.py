"""Quarantine: hosts that the kernel itself cuts off, for a time.

Per bridge and family there are two ipsets, which the rules of `Quarantine.rules` refer to:

    nedge-<bridge>-q4, -q6    addresses that are cut, each with its time; the kernel lets go of them by itself
    nedge-<bridge>-a4, -a6    networks whose traffic is never cut, with whomever it is

The sets have to be there before the rules, and as long as these; so `check()` before rules are put back.

One process keeps them. Its book says what should be in the sets, so that what others take out is put back.
"""

from __future__ import annotations

import contextlib
import errno
import math
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, collapse_addresses, ip_address, ip_network
from typing import Any, NamedTuple

from pyroute2 import IPSet
from pyroute2.netlink.exceptions import NetlinkError

from nedge.kernel.errors import KernelError
from nedge.kernel.rules import FAMILIES, Family

Network = IPv4Network | IPv6Network

LONGEST = 2_147_483.0
"""Seconds, 24 days: what a set can hold. More is until released."""
_MAX_ADDRESSES = 1 << 18
_MAX_NETWORKS = 1 << 20
_LIST_HEADER = 4  # IPSET_FLAG_LIST_HEADER
_NOT_IN_SET = 4103  # IPSET_ERR_EXIST
_SLACK = 2.0
"""Seconds by which the kernel's clock and ours may differ on when an address is let go."""


def set_names(bridge: str, family: Family) -> tuple[str, str]:
    """The sets of cut addresses and of networks that are never cut. (A name has at most 31 characters.)"""
    number = 4 if family == "ip" else 6
    return f"nedge-{bridge}-q{number}", f"nedge-{bridge}-a{number}"


class _Entry(NamedTuple):
    """An entry of a set, as the kernel tells it."""

    name: str
    """Address, or network in CIDR form."""
    left: float
    """Seconds; infinite without a timeout."""
    packets: int


@dataclass
class _Side:
    """What there is of one family."""

    cut: str
    allowed: str
    family: int
    until: dict[str, float] = field(default_factory=dict)
    """The book: address -> when it is let go, by the monotonic clock."""
    networks: set[str] = field(default_factory=set)

    def prune(self, now: float) -> None:
        """Forget what is over."""
        for address in [address for address, until in self.until.items() if until <= now]:
            del self.until[address]


class Quarantine:
    """The sets of one bridge. Only `open`, `allow`, `check` and `close` raise KernelError."""

    def __init__(self, bridge: str) -> None:
        self.failures = 0
        """Addresses that the kernel did not take or let go when asked to."""
        self._sides = {
            family: _Side(*set_names(bridge, family), socket.AF_INET if family == "ip" else socket.AF_INET6)
            for family in FAMILIES
        }
        self._kernel: Any = None

    def open(self) -> None:
        """Make the sets, or take over with their content those that a crash left."""
        with _errors("be set up"):
            self._kernel = IPSet()
            for side in self._sides.values():
                _create(self._kernel, side)
                self._adopt(side)

    def close(self) -> None:
        """Destroy the sets; the rules must be gone by now. Without complaint if they are not there."""
        if self._kernel is None:
            return
        try:
            with _errors("be removed"):
                for side in self._sides.values():
                    _destroy(self._kernel, side.cut, side.allowed)
        finally:
            self._kernel.close()
            self._kernel = None

    def rules(self, family: Family) -> list[str]:
        """Rules for the chain, to stand before any that lets packets of decided flows pass."""
        side = self._sides[family]
        unless = " ".join(f"-m set ! --match-set {side.allowed} {end}" for end in ("src", "dst"))
        return [f"-m set --match-set {side.cut} {end} {unless} -j DROP" for end in ("src", "dst")]

    def add(self, address: str, seconds: float) -> bool:
        """Cut a host from now on for so many seconds. False if the kernel refused (the set is full, say)."""
        if seconds <= 0:
            raise ValueError(f"{seconds} seconds of quarantine")
        side, name = self._side(address)
        now = time.monotonic()
        side.prune(now)
        timeout = math.ceil(seconds) if seconds <= LONGEST else 0  # 0: until released
        side.until[name] = now + timeout if timeout else math.inf
        try:
            self._kernel.add(side.cut, name, family=side.family, timeout=timeout, exclusive=False)
        except (NetlinkError, OSError) as error:
            self.failures += 1
            if not _is(error, errno.ENOENT):  # a set that somebody took away comes back, with this
                del side.until[name]
            return False
        return True

    def release(self, address: str) -> bool:
        """Let a host go. Says whether it was cut."""
        side, name = self._side(address)
        side.prune(time.monotonic())
        known = side.until.pop(name, None) is not None
        try:
            self._kernel.delete(side.cut, name, family=side.family)
        except (NetlinkError, OSError) as error:
            if not _is(error, errno.ENOENT, _NOT_IN_SET):
                self.failures += 1
            return known
        return True

    def flush(self) -> None:
        """Let all hosts go."""
        for side in self._sides.values():
            side.until.clear()
            try:
                self._kernel.flush(side.cut)
            except (NetlinkError, OSError) as error:
                self.failures += not _is(error, errno.ENOENT)

    def list(self) -> dict[str, float]:
        """The hosts that are cut, with the seconds left to each; infinite: until released."""
        now = time.monotonic()
        for side in self._sides.values():
            side.prune(now)
        return {name: until - now for side in self._sides.values() for name, until in side.until.items()}

    def packets(self) -> dict[str, int]:
        """How many packets of (and to) each host the rules met since it was cut, the spared ones included."""
        return {entry.name: entry.packets for side in self._sides.values() for entry in self._read(side.cut)}

    def allow(self, networks: Iterable[str]) -> None:
        """From now on the traffic of these networks and addresses is never cut, and no other's is spared."""
        parsed = [ip_network(network, strict=False) for network in networks]
        with _errors("be filled"):
            for side in self._sides.values():
                version = 4 if side.family == socket.AF_INET else 6
                wanted = _canonical(one for one in parsed if one.version == version)
                for name in wanted - side.networks:  # first, so that nobody is cut for a moment
                    self._network(self._kernel.add, side, name)
                for name in side.networks - wanted:
                    self._network(self._kernel.delete, side, name)
                side.networks = wanted

    def check(self) -> bool:
        """Whether the sets are as they should be; if not, they are now. Costs a millisecond if they are."""
        return all([self._check(side) for side in self._sides.values()])

    def _check(self, side: _Side) -> bool:
        side.prune(time.monotonic())
        with _errors("be checked"):
            made = _create(self._kernel, side)
            sizes = self._size(side.cut), self._size(side.allowed)
            if not made and sizes == (len(side.until), len(side.networks)):
                return True
            return self._put_back(side) == 0 and not made

    def _put_back(self, side: _Side) -> int:
        """Add what is missing, and take into the book what is there besides. Gives how much was missing."""
        missing = 0
        there = {entry.name for entry in self._read(side.cut)}
        now = time.monotonic()
        for name, until in side.until.items():
            if name not in there and until > now + _SLACK:
                timeout = math.ceil(until - now) if until < math.inf else 0
                self._kernel.add(side.cut, name, family=side.family, timeout=timeout, exclusive=False)
                missing += 1
        for name in side.networks - {entry.name for entry in self._read(side.allowed)}:
            self._network(self._kernel.add, side, name)
            missing += 1
        self._adopt(side)
        return missing

    def _adopt(self, side: _Side) -> None:
        now = time.monotonic()
        for entry in self._read(side.cut):
            side.until.setdefault(entry.name, now + entry.left)
        side.networks |= {entry.name for entry in self._read(side.allowed)}

    def _side(self, address: str) -> tuple[_Side, str]:
        parsed = ip_address(address)
        return self._sides["ip" if parsed.version == 4 else "ip6"], str(parsed)

    def _network(self, step: Callable[..., object], side: _Side, name: str) -> None:
        step(side.allowed, name, family=side.family, etype="net", exclusive=False)

    def _size(self, name: str) -> int:
        for part in self._kernel.list(name, flags=_LIST_HEADER):
            if (size := part.get_attr("IPSET_ATTR_DATA").get_attr("IPSET_ATTR_ELEMENTS")) is not None:
                return int(size)
        return -1

    def _read(self, name: str) -> list[_Entry]:
        entries = []
        for part in self._kernel.list(name):
            for entry in part.get_attr("IPSET_ATTR_ADT").get_attrs("IPSET_ATTR_DATA"):
                entries.append(_entry(entry))
        return entries
