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
from ipaddress import ip_address
from typing import Any, NamedTuple

from pyroute2 import IPSet
from pyroute2.netlink.exceptions import NetlinkError

from nedge.core.lists import NetworkSet, Range
from nedge.kernel.ipsets import (
    VERSIONS,
    errors,
    has_size,
    is_error,
    make_networks,
    remove_sets,
    replace_networks,
    set_size,
    spare_name,
)
from nedge.kernel.rules import FAMILIES, Family

LONGEST = 2_147_483.0
"""Seconds (24 days): the longest that a set can hold an address. Whoever is to be cut longer, is for good."""
MAX_ADDRESSES = 1 << 18
MAX_NETWORKS = 1 << 20
_SLACK = 2.0
"""Seconds by which the kernel may be ahead of the book in letting an address go."""

_NOT_IN_SET = 4103  # IPSET_ERR_EXIST


def set_names(bridge: str, family: Family) -> tuple[str, str]:
    """The sets of cut addresses, and of networks that are never cut. (A name has at most 31 characters.)"""
    return f"nedge-{bridge}-q{VERSIONS[family]}", f"nedge-{bridge}-a{VERSIONS[family]}"


class _Entry(NamedTuple):
    """An address that is cut; seconds left, infinite without a timeout."""

    name: str
    left: float
    packets: int


@dataclass
class _Side:
    """What there is of one family: names of sets, and the book."""

    cut: str
    allowed: str
    family: Family
    until: dict[str, float] = field(default_factory=dict)
    """Address -> when it is let go, by the monotonic clock."""
    size: int | None = None
    """How many networks are allowed; None: the set has yet to be filled."""

    @property
    def number(self) -> int:
        return socket.AF_INET if self.family == "ip" else socket.AF_INET6

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
        self._sides = {family: _Side(*set_names(bridge, family), family) for family in FAMILIES}
        self._networks: NetworkSet | None = None
        """Those that are never cut; None: those that a crash left, if any."""
        self._kernel: Any = None

    def open(self) -> None:
        """Make the sets, or take over with their content those that a crash left. Then call `allow`."""
        with errors("set up"), contextlib.ExitStack() as undo:
            self._kernel = undo.enter_context(contextlib.closing(IPSet()))
            undo.callback(setattr, self, "_kernel", None)
            for side in self._sides.values():
                _make(self._kernel, side)
                make_networks(self._kernel, side.allowed, side.family, MAX_NETWORKS)
                self._adopt(side)
            undo.pop_all()

    def close(self) -> None:
        """Destroy the sets, which lets all hosts go. The rules must be gone by now."""
        if self._kernel is not None:
            with contextlib.closing(self._kernel) as kernel, errors("removed"):
                self._kernel = None
                for side in self._sides.values():
                    remove_sets(kernel, side.cut, side.allowed, spare_name(side.allowed))

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
            self._kernel.delete(side.cut, name, family=side.number)
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

    def allow(self, networks: Iterable[str | Range]) -> None:
        """From now on the traffic of these networks and addresses is never cut, and that of no others."""
        wanted = NetworkSet(networks)
        if wanted != self._networks:
            self._networks = wanted
            for side in self._sides.values():
                side.size = None
        with errors("filled"):
            for side in self._sides.values():
                if side.size is None:
                    self._fill(side, wanted)

    def check(self) -> bool:
        """Whether the sets have the size that they should have; if not, they do now.

        That takes a few milliseconds in all; to read the addresses would take 70 microseconds each."""
        with errors("put back"):
            sound = [self._check(side) for side in self._sides.values()]
        return all(sound)

    def _check(self, side: _Side) -> bool:
        sound = True
        if self._networks is None:
            make_networks(self._kernel, side.allowed, side.family, MAX_NETWORKS)
        elif side.size is None or not has_size(self._kernel, side.allowed, side.size):
            sound = False
            self._fill(side, self._networks)
        try:
            size = set_size(self._kernel, side.cut)
        except (NetlinkError, OSError) as error:
            if not is_error(error, errno.ENOENT):
                raise
            _make(self._kernel, side)
            self._put_back(side)
            return False
        side.prune()
        return (size == len(side.until) or self._put_back(side)) and sound

    def _put_back(self, side: _Side) -> bool:
        """Cut whom the book says; says if all were. Who else is cut, somebody wanted that: it is noted."""
        there = {entry.name for entry in self._read(side.cut)}
        soon = side.prune() + _SLACK
        missing = [name for name, until in side.until.items() if until > soon and name not in there]
        for name in missing:
            self._cut(side, name)
        self._adopt(side)
        return not missing

    def _fill(self, side: _Side, networks: NetworkSet) -> None:
        side.size = None
        for count in replace_networks(self._kernel, side.allowed, side.family, networks, MAX_NETWORKS):
            size = count
        side.size = size

    def _adopt(self, side: _Side) -> None:
        now = time.monotonic()
        for entry in self._read(side.cut):
            side.until.setdefault(entry.name, now + entry.left)

    def _cut(self, side: _Side, name: str) -> None:
        left = side.until[name] - time.monotonic()
        timeout = 0 if left == math.inf else round(left)
        self._kernel.add(side.cut, name, family=side.number, timeout=timeout, exclusive=False)

    def _side(self, address: str) -> tuple[_Side, str]:
        parsed = ip_address(address)
        return self._sides["ip" if parsed.version == 4 else "ip6"], str(parsed)

    def _read(self, name: str) -> list[_Entry]:
        parts = [part.get_attr("IPSET_ATTR_ADT") for part in self._kernel.list(name)]
        return [_entry(data) for part in parts if part for data in part.get_attrs("IPSET_ATTR_DATA")]


def sweep(bridge: str) -> bool:
    """Remove what a crashed gateway left, whose rules are gone. Says if there was anything."""
    with errors("removed"), IPSet() as kernel:
        names = [set_names(bridge, family) for family in FAMILIES]
        return remove_sets(
            kernel, *(name for cut, allowed in names for name in (cut, allowed, spare_name(allowed)))
        )


def _rules(side: _Side) -> list[str]:
    unless = " ".join(f"-m set ! --match-set {side.allowed} {end}" for end in ("src", "dst"))
    return [f"-m set --match-set {side.cut} {end} {unless} -j DROP" for end in ("src", "dst")]


def _make(kernel: Any, side: _Side) -> None:
    options = {
        "stype": "hash:ip", "family": side.number, "timeout": 0, "counters": True, "maxelem": MAX_ADDRESSES,
        "exclusive": False,
    }  # fmt: skip
    try:
        kernel.create(side.cut, **options)
    except (NetlinkError, OSError) as error:
        if not is_error(error, errno.EEXIST):
            raise
        remove_sets(kernel, side.cut)  # of another kind: another version's, or not ours
        kernel.create(side.cut, **options)


def _entry(data: Any) -> _Entry:
    address = data.get_attr("IPSET_ATTR_IP_FROM")
    text = address.get_attr("IPSET_ATTR_IPADDR_IPV4") or address.get_attr("IPSET_ATTR_IPADDR_IPV6")
    left, packets = data.get_attr("IPSET_ATTR_TIMEOUT"), data.get_attr("IPSET_ATTR_PACKETS")
    return _Entry(str(ip_address(text)), left or math.inf, packets or 0)
