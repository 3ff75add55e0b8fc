"""A kernel's ipsets that are made up."""

from __future__ import annotations

import contextlib
import errno
import socket
from ipaddress import IPv4Network, IPv6Network
from types import ModuleType
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from nedge.kernel import ipsets
from nedge.kernel.quarantine import LONGEST
from nedge.kernel.rules import Family

FULL, NOT_IN_SET = 4352, 4103


class Message:
    def __init__(self, **attributes: Any) -> None:
        self._attributes = attributes

    def get_attr(self, name: str) -> Any:
        return self._attributes.get(name.removeprefix("IPSET_ATTR_"))

    def get_attrs(self, name: str) -> Any:
        return self.get_attr(name)


class FakeIPSet:
    """Sets of one kernel; shared by all sockets."""

    sets: dict[str, dict[str, float]]
    options: dict[str, dict[str, Any]]
    refuse: dict[str, Exception]
    sockets: int
    tells_sizes: bool
    reads: int

    def __init__(self) -> None:
        FakeIPSet.sockets += 1

    def __enter__(self) -> FakeIPSet:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        FakeIPSet.sockets -= 1

    def _of(self, name: str, step: str = "") -> dict[str, float]:
        if step in self.refuse:
            raise self.refuse[step]
        if name not in self.sets:
            raise NetlinkError(errno.ENOENT, "no such set")
        return self.sets[name]

    def create(self, name: str, exclusive: bool, **options: Any) -> None:
        assert not exclusive
        if "create" in self.refuse:
            raise self.refuse["create"]
        if name in self.sets and self.options[name] != options:
            raise NetlinkError(errno.EEXIST, "of another kind")
        self.sets.setdefault(name, {})
        self.options[name] = options

    def destroy(self, name: str) -> None:
        self._of(name, "destroy")
        del self.sets[name]

    def add(
        self, name: str, entry: str, family: int, timeout: int, etype: str = "ip", exclusive: bool = True
    ) -> None:
        assert not exclusive
        assert family == (socket.AF_INET6 if ":" in entry else socket.AF_INET)
        assert (etype, "/" in entry) == ("ip", False)
        assert isinstance(timeout, int)
        assert timeout <= LONGEST
        self._of(name, "add")[entry] = timeout

    def delete(self, name: str, entry: str, family: int, etype: str = "ip", exclusive: bool = True) -> None:
        if entry not in self._of(name, "delete") and exclusive:
            raise NetlinkError(NOT_IN_SET, "not in it")
        self.sets[name].pop(entry, None)

    def swap(self, name: str, other: str) -> None:
        self._of(name, "swap")
        self._of(other)
        self.sets[name], self.sets[other] = self.sets[other], self.sets[name]

    @classmethod
    def add_networks(cls, _sock: object, name: str, family: Family, blocks: list[tuple[int, int]]) -> None:
        """In place of that of `nedge.kernel.ipsets`."""
        if "add_networks" in cls.refuse:
            raise cls.refuse["add_networks"]
        assert 0 < len(blocks) <= ipsets.PER_MESSAGE
        make = IPv4Network if family == "ip" else IPv6Network
        cls.sets[name] |= {str(make(block)): -1 for block in blocks}

    def flush(self, name: str) -> None:
        self._of(name, "flush").clear()

    def list(self, name: str, flags: int = 0) -> list[Message]:
        entries = self._of(name, "list")
        if flags == 4:
            size = len(entries) if self.tells_sizes else None
            return [Message(DATA=Message(ELEMENTS=size))]
        FakeIPSet.reads += 1
        return [Message(), Message(ADT=Message(DATA=[self._entry(*entry) for entry in entries.items()]))]

    def _entry(self, name: str, timeout: int) -> Message:
        address, _, prefix = name.partition("/")
        kind = "IPADDR_IPV6" if ":" in name else "IPADDR_IPV4"
        left, cidr = timeout if timeout >= 0 else None, int(prefix) if prefix else None
        return Message(IP_FROM=Message(**{kind: address}), CIDR=cidr, TIMEOUT=left, PACKETS=3)


def install(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> type[FakeIPSet]:
    """A kernel without sets, for a module that uses them."""
    FakeIPSet.sets, FakeIPSet.options, FakeIPSet.refuse = {}, {}, {}
    FakeIPSet.sockets = FakeIPSet.reads = 0
    FakeIPSet.tells_sizes = True
    monkeypatch.setattr(module, "IPSet", FakeIPSet)
    monkeypatch.setattr(ipsets, "add_networks", FakeIPSet.add_networks)
    monkeypatch.setattr(ipsets, "_open", contextlib.ExitStack)
    return FakeIPSet
