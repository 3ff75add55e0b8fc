"""Listed networks: what the kernel cuts off by itself, however many they are.

Per bridge and family there is one ipset, `nedge-<bridge>-d4` or `-d6`, beside those of the quarantine, whose
allowed networks are spared here, too. A new list is filled into a second set, thousands of networks a message
and a slice at a time, and then swapped in: it is in force at once, and until then the old one is.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pyroute2 import IPSet
from pyroute2.netlink.exceptions import NetlinkError

from nedge.core.lists import NetworkSet
from nedge.kernel.errors import KernelError
from nedge.kernel.ipsets import errors, is_error, remove_sets, set_size
from nedge.kernel.quarantine import Quarantine, set_names
from nedge.kernel.rules import FAMILIES, Family

MAX_NETWORKS = 1 << 22
PER_MESSAGE = 1500
"""Networks; an attribute holds 64 KB."""
_VERSIONS: dict[Family, int] = {"ip": 4, "ip6": 6}
_BITS = {4: 32, 6: 128}

# linux/netlink.h, linux/netfilter/nfnetlink.h, linux/netfilter/ipset/ip_set.h
_ADD = 6 << 8 | 9  # NFNL_SUBSYS_IPSET, IPSET_CMD_ADD
_NETLINK_NETFILTER = 12
_REQUEST_ACK = 1 | 4
_NLMSG_ERROR = 2
_NESTED, _NET_BYTEORDER = 1 << 15, 1 << 14
_PROTOCOL, _SETNAME, _DATA, _ADT, _LINENO = 1, 2, 7, 8, 9
_IP, _CIDR = 1, 3
_IPADDR = {4: 1, 6: 2}
_IPSET_PROTOCOL = 6
_SECONDS = 10.0


def listed_names(bridge: str, family: Family) -> tuple[str, str]:
    """The set in force, and the one that is being filled."""
    return f"nedge-{bridge}-d{_VERSIONS[family]}", f"nedge-{bridge}-n{_VERSIONS[family]}"


class Listed:
    """The sets of one bridge; `sweep_listed` ends them. All methods may raise KernelError."""

    def __init__(self, bridge: str) -> None:
        self._names = {family: listed_names(bridge, family) for family in FAMILIES}
        self._allowed = {family: set_names(bridge, family)[1] for family in FAMILIES}
        self._sizes: dict[Family, int] = {}
        self._networks: NetworkSet | None = None
        """What is in force."""
        self._wanted: NetworkSet | None = None
        self._filling: Iterator[None] | None = None

    def open(self) -> None:
        """Make the sets. Those that a crash left stay in force until the first list is there."""
        with errors("set up"), contextlib.closing(IPSet()) as kernel:
            for family, (name, _new) in self._names.items():
                _make(kernel, name, family)

    def rules(self) -> dict[Family, list[str]]:
        """Rules for the chain, to stand before those that let packets of decided flows pass."""
        rules = {}
        for family, (name, _new) in self._names.items():
            spared = " ".join(f"-m set ! --match-set {self._allowed[family]} {end}" for end in ("src", "dst"))
            rules[family] = [f"-m set --match-set {name} {end} {spared} -j DROP" for end in ("src", "dst")]
        return rules

    def take(self, networks: NetworkSet) -> None:
        """Have these in force from now on, and no others; `step` does it."""
        self._wanted = networks
        if self._networks != networks or self._filling is not None:
            self._filling = self._fill(networks)

    def step(self) -> bool:
        """Go on filling for some milliseconds. Says whether there is more to do."""
        if self._filling is None:
            return False
        try:
            next(self._filling)
        except StopIteration:
            self._filling = None
        except KernelError:
            self._filling = None
            raise
        return self._filling is not None

    def check(self) -> bool:
        """Whether the sets have what they should have, going by their size; if not, they are filled anew."""
        if self._wanted is None or self._filling is not None:
            return True
        if self._networks != self._wanted:  # it could not be filled
            self._filling = self._fill(self._wanted)
            return False
        with errors("read"), contextlib.closing(IPSet()) as kernel:
            sound = all(
                _size(kernel, name) == self._sizes[family] for family, (name, _new) in self._names.items()
            )
        if not sound:
            self._filling = self._fill(self._wanted)
        return sound

    def _fill(self, networks: NetworkSet) -> Iterator[None]:
        with errors("filled"), contextlib.closing(IPSet()) as kernel:
            for family, (name, new) in self._names.items():
                _make(kernel, name, family)
                remove_sets(kernel, new)
                _make(kernel, new, family)
                count = 0
                blocks = _split(networks.blocks(_VERSIONS[family]), _BITS[_VERSIONS[family]])
                with contextlib.closing(_open()) as sock:
                    while part := list(islice(blocks, PER_MESSAGE)):
                        _add(sock, new, family, part)
                        count += len(part)
                        yield
                kernel.swap(name, new)
                remove_sets(kernel, new)
                self._sizes[family] = count
        self._networks = networks


def cut_rules(*parts: Quarantine | Listed | None) -> dict[Family, list[str]]:
    """The rules of all that cuts hosts off, as `RuleSet.cuts`."""
    rules = [part.rules() for part in parts if part is not None]
    return {family: [rule for one in rules for rule in one[family]] for family in FAMILIES}


def sweep_listed(bridge: str) -> bool:
    """Remove the sets of a bridge, whose rules are gone. Says if there was anything."""
    with errors("removed"), contextlib.closing(IPSet()) as kernel:
        return remove_sets(kernel, *(name for family in FAMILIES for name in listed_names(bridge, family)))


def _split(blocks: Iterator[tuple[int, int]], bits: int) -> Iterator[tuple[int, int]]:
    """The same without a prefix length of 0, which the kernel does not take."""
    for address, prefix in blocks:
        if prefix:
            yield address, prefix
        else:
            yield from ((0, 1), (1 << bits - 1, 1))


def _size(kernel: Any, name: str) -> int:
    try:
        return set_size(kernel, name)
    except (NetlinkError, OSError) as error:
        if not is_error(error, errno.ENOENT):
            raise
        return -2  # somebody took it away


def _make(kernel: Any, name: str, family: Family) -> None:
    number = socket.AF_INET if family == "ip" else socket.AF_INET6
    kernel.create(name, stype="hash:net", family=number, maxelem=MAX_NETWORKS, exclusive=False)


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    sock.bind((0, 0))
    sock.settimeout(_SECONDS)
    return sock


def _add(sock: socket.socket, name: str, family: Family, blocks: list[tuple[int, int]]) -> None:
    """Add networks, as address and prefix length, with one message."""
    version = _VERSIONS[family]
    size = _BITS[version] // 8
    number = socket.AF_INET if family == "ip" else socket.AF_INET6
    # DATA { IP { address }, CIDR { prefix, padding } }
    before = struct.pack("=HHHH", 4 + 8 + size + 8, _DATA | _NESTED, 8 + size, _IP | _NESTED)
    before += struct.pack("=HH", 4 + size, _IPADDR[version] | _NET_BYTEORDER)
    between = struct.pack("=HH", 5, _CIDR)
    entries = b"".join(
        [before + address.to_bytes(size) + between + bytes((prefix, 0, 0, 0)) for address, prefix in blocks]
    )
    body = struct.pack("=BBH", number, 0, 0)
    body += _attribute(_PROTOCOL, bytes((_IPSET_PROTOCOL,))) + _attribute(_SETNAME, name.encode() + b"\0")
    body += _attribute(_LINENO, struct.pack("=I", 0)) + _attribute(_ADT | _NESTED, entries)
    sock.send(struct.pack("=IHHII", 16 + len(body), _ADD, _REQUEST_ACK, 0, 0) + body)
    answer = sock.recv(4096)
    if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(code, os.strerror(code) if code < 4096 else f"ipset error {code}")


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
