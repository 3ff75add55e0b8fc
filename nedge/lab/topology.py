"""The lab: three network namespaces and the two cables between them.

    client ---------------- gateway ---------------- server
    eth0               lan0       wan0               eth0
    10.99.0.2                                        10.99.0.1, and more "sites" from 10.99.0.10 on
    fd99::2                                          fd99::1, fd99::10 ...

The gateway's ports are up, and not bridged: `nedge run` does that, or `Lab(bridge=True)` for reference runs.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from nedge.lab.capture import Capture
from nedge.lab.host import ETC_NETNS, NAMESPACES, Address, Host, LabError, call, remove_namespace
from nedge.lab.interrupts import deferred_signals, unwinding_signals

CLIENT = Address("10.99.0.2", "fd99::2")
SERVER = Address("10.99.0.1", "fd99::1")
CLIENT_MAC = "02:00:00:00:00:02"
SERVER_MAC = "02:00:00:00:00:01"
LAN_PORT = "lan0"
WAN_PORT = "wan0"
MAX_SITES = 10

_HOSTS = ("client", "gateway", "server")
_PREFIX = re.compile(r"(nedge-(\d+)-\d+)-")
_numbers = itertools.count()
_living: set[str] = set()

# Addresses must work at once and captures show the test's traffic only: no duplicate address detection,
# no router solicitations. Two commands of `sysctl`, as the first must be in force before the ports exist.
_QUIET_IPV6 = [
    f"net.ipv6.conf.{scope}.{setting}"
    for scope in ("all", "default")
    for setting in ("disable_ipv6=0", "accept_dad=0", "accept_ra=0", "router_solicitations=0")
]


class Lab:
    """Builds the lab on entry and leaves nothing of it behind on exit, also after an error or a signal."""

    def __init__(self, *, bridge: bool = False, offloads: bool = False, sites: int = 0) -> None:
        """`bridge`: connect the gateway's ports by a plain bridge, `br0`.

        `offloads`: let veth carry 64 KB segments without checksums, as benchmarks want it; else captures
        show what a real wire would. `sites`: so many further addresses of the server.
        """
        if not 0 <= sites <= MAX_SITES:
            raise ValueError(f"sites: {sites} (0 to {MAX_SITES} are possible)")
        self.bridge = bridge
        self.offloads = offloads
        self.sites = tuple(Address(f"10.99.0.{10 + n}", f"fd99::{10 + n}") for n in range(sites))
        self.prefix = f"nedge-{os.getpid()}-{next(_numbers)}"
        self.client = Host("client", f"{self.prefix}-client", CLIENT)
        self.gateway = Host("gateway", f"{self.prefix}-gateway", Address("", ""))
        self.server = Host("server", f"{self.prefix}-server", SERVER)
        self.directory = Path()
        """Scratch space, removed with the lab."""
        self._owner = os.getpid()
        self._exit = contextlib.ExitStack()

    @property
    def hosts(self) -> tuple[Host, Host, Host]:
        return self.client, self.gateway, self.server

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            raise LabError("the lab needs root: it makes network namespaces")
        Lab.sweep()
        self._exit.enter_context(unwinding_signals())
        _living.add(self.prefix)
        atexit.register(self.close)  # a signal can arrive before the caller's `with` block has begun
        try:
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the lab down. Does nothing the second time, nor in a forked child."""
        if os.getpid() != self._owner or self.prefix not in _living:
            return
        try:
            with deferred_signals():
                for host in self.hosts:  # the client first: the gateway sees the connections end
                    host.stop_all()
                _remove(self.prefix)
                _living.discard(self.prefix)
                atexit.unregister(self.close)
        finally:
            self._exit.close()

    def capture(self, host: Host, interface: str, path: str | Path, *, filter: str = "") -> Capture:
        """Capture an interface's packets into a pcap file, from the return of this call until `stop()`."""
        return Capture(host, interface, Path(path), filter=filter)

    @staticmethod
    def sweep() -> list[str]:
        """Remove the labs of owners who died without doing it (SIGKILL), and give their prefixes."""
        stale = sorted(prefix for prefix, pid in _found() if prefix not in _living and not _alive(pid))
        for prefix in stale:
            _remove(prefix)
        return stale

    def _build(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix=f"{self.prefix}-"))
        self._write_etc()
        client, gateway, server = (host.namespace for host in self.hosts)
        _ip(*(f"netns add {host.namespace}" for host in self.hosts))
        if not Path("/proc/sys/net/ipv6").exists():
            raise LabError("this kernel has no IPv6, which the lab needs")
        for host in self.hosts:
            call(host.command(["sysctl", "-qw", *_QUIET_IPV6]))
        _ip(
            f"link add eth0 netns {client} address {CLIENT_MAC} type veth peer {LAN_PORT} netns {gateway}",
            f"link add eth0 netns {server} address {SERVER_MAC} type veth peer {WAN_PORT} netns {gateway}",
        )
        _in(self.client, *_addresses(CLIENT), "link set lo up", "link set eth0 up")
        _in(self.server, *_addresses(SERVER, *self.sites), "link set lo up", "link set eth0 up")
        _in(self.gateway, *(f"link set {port} up" for port in ("lo", LAN_PORT, WAN_PORT)))
        if not self.offloads:
            for host, port in self._ends():
                call(
                    host.command(
                        ["ethtool", "-K", port, *("tx", "off", "tso", "off", "gso", "off", "gro", "off")]
                    )
                )
        if self.bridge:
            self._connect()

    def _ends(self) -> tuple[tuple[Host, str], ...]:
        inside = (self.gateway, LAN_PORT), (self.gateway, WAN_PORT)
        return (self.client, "eth0"), *inside, (self.server, "eth0")

    def _connect(self) -> None:
        """A plain bridge without packet filter hooks: the reference that nedge is measured against."""
        _in(
            self.gateway,
            "link add br0 type bridge stp_state 0 mcast_snooping 0",
            f"link set {LAN_PORT} master br0",
            f"link set {WAN_PORT} master br0",
            "link set br0 up",
        )
        keys = [f"net.bridge.bridge-nf-call-{table}=0" for table in ("iptables", "ip6tables", "arptables")]
        call(self.gateway.command(["sysctl", "-eqw", *keys]))  # -e: the keys are absent without br_netfilter

    def _write_etc(self) -> None:
        """The client's names come from the lab's DNS server and nowhere else; the server has one user, root.

        Its home is in the lab's directory, so that an SSH login touches nothing of the machine's.
        """
        home = self.directory / "home"
        home.mkdir(mode=0o700)
        names = {
            "resolv.conf": f"nameserver {SERVER.v4}\noptions timeout:2 attempts:1\n",
            "hosts": "127.0.0.1 localhost\n::1 localhost\n",
            "nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\n",
        }
        users = {
            "passwd": f"root:x:0:0:root:{home}:/bin/sh\nnobody:x:65534:65534:nobody:/:/usr/sbin/nologin\n",
            "shadow": "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
        }
        for host, files in ((self.client, names), (self.server, names | users)):
            folder = ETC_NETNS / host.namespace
            folder.mkdir(parents=True)
            for name, text in files.items():
                (folder / name).write_text(text)


def _ip(*lines: str, options: tuple[str, ...] = ()) -> None:
    """Run `ip` commands, all in one process."""
    call(["ip", *options, "-batch", "-"], stdin="".join(f"{line}\n" for line in lines))


def _in(host: Host, *lines: str) -> None:
    _ip(*lines, options=("-n", host.namespace))


def _addresses(*addresses: Address) -> Iterator[str]:
    for address in addresses:
        yield f"address add {address.v4}/24 dev eth0"
        yield f"address add {address.v6}/64 dev eth0 nodad"


def _found() -> set[tuple[str, int]]:
    """The labs of which anything exists, and their owners' process ids."""
    names = [
        entry.name
        for folder in (NAMESPACES, ETC_NETNS, Path(tempfile.gettempdir()))
        if folder.is_dir()
        for entry in folder.iterdir()
    ]
    return {(match[1], int(match[2])) for name in names if (match := _PREFIX.match(name))}


def _alive(pid: int) -> bool:
    # Our own id on a lab that we did not make: a dead owner had the id before us.
    return pid != os.getpid() and Path(f"/proc/{pid}").exists()


def _remove(prefix: str) -> None:
    for host in _HOSTS:
        remove_namespace(f"{prefix}-{host}")
    with contextlib.suppress(OSError):
        ETC_NETNS.rmdir()  # only when we were its last users
    for directory in Path(tempfile.gettempdir()).glob(f"{prefix}-*"):
        shutil.rmtree(directory, ignore_errors=True)
