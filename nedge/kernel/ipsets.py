"""What the modules that keep ipsets have in common; above all, how many networks come into a set.

A set of networks is never changed: a second one is filled beside it, more than a thousand networks a message,
and then takes its place. It is in force at once, and until then the old one is.
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

from pyroute2.netlink.exceptions import NetlinkError

from nedge.core.lists import NetworkSet
from nedge.kernel.errors import KernelError
from nedge.kernel.rules import Family

VERSIONS: dict[Family, int] = {"ip": 4, "ip6": 6}
PER_MESSAGE = 1500
"""Networks; an attribute holds 64 KB."""
_BITS = {4: 32, 6: 128}
_FEW = 1000
"""Entries that are read in no time: a tenth of a second."""

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
_LIST_HEADER = 4  # IPSET_FLAG_LIST_HEADER
_SECONDS = 10.0


def set_size(kernel: Any, name: str) -> int:
    """The number of entries of a set; -1 from a kernel that does not tell."""
    for part in tuple(kernel.list(name, flags=_LIST_HEADER)):
        size = part.get_attr("IPSET_ATTR_DATA").get_attr("IPSET_ATTR_ELEMENTS")
        return -1 if size is None else int(size)
    raise OSError(errno.ENOENT, name)  # some releases of pyroute2 give an empty list


def has_size(kernel: Any, name: str, size: int) -> bool:
    """Whether a set is there, and has so many entries.

    Where the kernel does not tell, the entries of a small set are counted; a large one is believed.
    """
    try:
        told = set_size(kernel, name)
    except (NetlinkError, OSError) as error:
        if not is_error(error, errno.ENOENT):
            raise
        return False
    if told < 0 and size <= _FEW:
        parts = [part.get_attr("IPSET_ATTR_ADT") for part in kernel.list(name)]
        told = sum(len(part.get_attrs("IPSET_ATTR_DATA")) for part in parts if part)
    return told in (size, -1)


def make_networks(kernel: Any, name: str, family: Family, most: int) -> None:
    """Make a set of networks, if it is not there; one of another kind makes way, unless rules refer to it."""
    options = {"stype": "hash:net", "family": _number(family), "maxelem": most, "exclusive": False}
    try:
        kernel.create(name, **options)
    except (NetlinkError, OSError) as error:
        if not is_error(error, errno.EEXIST):
            raise
        remove_sets(kernel, name)  # another version's, or not ours
        kernel.create(name, **options)


def replace_networks(
    kernel: Any, name: str, family: Family, networks: NetworkSet, most: int
) -> Iterator[int]:
    """Have a set hold these networks, and no others, in the end. Every step takes about a millisecond.

    Gives how many entries there are so far. Until the last step the set is as it was.
    """
    fresh = spare_name(name)
    make_networks(kernel, name, family, most)
    remove_sets(kernel, fresh)
    make_networks(kernel, fresh, family, most)
    version = VERSIONS[family]
    blocks = _split(networks.blocks(version), _BITS[version])
    count = 0
    try:
        with contextlib.closing(_open()) as sock:
            while part := list(islice(blocks, PER_MESSAGE)):
                add_networks(sock, fresh, family, part)
                count += len(part)
                yield count
        kernel.swap(name, fresh)
    finally:
        remove_sets(kernel, fresh)
    yield count


def spare_name(name: str) -> str:
    """The set that is being filled, to take the place of this one. (A name has at most 31 characters.)"""
    return f"{name}-new"


def add_networks(sock: socket.socket, name: str, family: Family, blocks: list[tuple[int, int]]) -> None:
    """Add networks, as address and prefix length, with one message."""
    version = VERSIONS[family]
    size = _BITS[version] // 8
    # DATA { IP { address }, CIDR { prefix, padding } }
    before = struct.pack("=HHHH", 4 + 8 + size + 8, _DATA | _NESTED, 8 + size, _IP | _NESTED)
    before += struct.pack("=HH", 4 + size, _IPADDR[version] | _NET_BYTEORDER)
    between = struct.pack("=HH", 5, _CIDR)
    entries = b"".join(
        [before + address.to_bytes(size) + between + bytes((prefix, 0, 0, 0)) for address, prefix in blocks]
    )
    body = struct.pack("=BBH", _number(family), 0, 0)
    body += _attribute(_PROTOCOL, bytes((_IPSET_PROTOCOL,))) + _attribute(_SETNAME, name.encode() + b"\0")
    body += _attribute(_LINENO, struct.pack("=I", 0)) + _attribute(_ADT | _NESTED, entries)
    sock.send(struct.pack("=IHHII", 16 + len(body), _ADD, _REQUEST_ACK, 0, 0) + body)
    answer = sock.recv(4096)
    if struct.unpack_from("=H", answer, 4)[0] == _NLMSG_ERROR:
        code = -struct.unpack_from("=i", answer, 16)[0]
        if code:
            raise OSError(code, os.strerror(code) if code < 4096 else f"ipset error {code}")


def remove_sets(kernel: Any, *names: str) -> bool:
    """Destroy sets, as far as there are any. Says if there was one."""
    found = False
    for name in names:
        try:
            kernel.destroy(name)
            found = True
        except (NetlinkError, OSError) as error:
            if not is_error(error, errno.ENOENT):
                raise
    return found


def is_error(error: Exception, *codes: int) -> bool:
    """Whether the kernel refused with one of these codes."""
    return getattr(error, "code", getattr(error, "errno", None)) in codes


@contextlib.contextmanager
def errors(what: str) -> Iterator[None]:
    """Name what could not be done with the sets."""
    try:
        yield
    except (NetlinkError, OSError) as error:
        raise KernelError(
            f"the ipsets could not be {what} ({error}): they take root, and the kernel's "
            "ip_set_hash_ip, ip_set_hash_net and xt_set; `ipset list` shows them"
        ) from error


def _open() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    sock.bind((0, 0))
    sock.settimeout(_SECONDS)
    return sock


def _split(blocks: Iterator[tuple[int, int]], bits: int) -> Iterator[tuple[int, int]]:
    """The same without a prefix length of 0, which the kernel does not take."""
    for address, prefix in blocks:
        if prefix:
            yield address, prefix
        else:
            yield from ((0, 1), (1 << bits - 1, 1))


def _number(family: Family) -> int:
    return socket.AF_INET if family == "ip" else socket.AF_INET6


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)
