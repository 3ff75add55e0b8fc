"""Hosts: the two ends of flows, what is known of them, and their live score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Network, ip_address, ip_network
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from nedge.core.lists import Network, NetworkSet
from nedge.core.verdict import Operator

_VLANS = 1 << 12

CountryLookup = Callable[[str], str | None]
"""IP address in text form -> ISO 3166 two-letter code, or None."""
AsnLookup = Callable[[str], tuple[int, str] | None]
"""IP address in text form -> number and name of its autonomous system, or None."""


def ip_text(address: bytes) -> str:
    """4 or 16 bytes -> text form."""
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


def ip_bytes(ip: str) -> bytes:
    """Text form -> 4 or 16 bytes."""
    return inet_pton(AF_INET6 if ":" in ip else AF_INET, ip)


class Host:
    """One address in one VLAN, alive while it has flows (or is quarantined)."""

    __slots__ = (
        "address",
        "allowed",
        "as_name",
        "asn",
        "blacklisted",
        "country",
        "directory",
        "flows",
        "forgiven",
        "ip",
        "local",
        "mac",
        "operator",
        "quarantined_until",
        "score_as_client",
        "score_as_server",
        "score_elsewhere",
        "unicast",
        "vlan",
    )

    def __init__(self, address: bytes, vlan: int) -> None:
        self.address = address
        self.vlan = vlan
        self.ip = ip_text(address)
        self.flows = 0
        """Live flows it is an end of."""
        self.mac = b""
        """From which its latest packet came that was looked into, on this segment; empty if none told."""
        self.directory: Directory | None = None
        """That which described it."""
        self.local = False
        self.unicast = True
        self.blacklisted = False
        self.allowed = False
        self.country: str | None = None
        self.asn = 0
        """Number of its autonomous system; 0 if unknown."""
        self.as_name = ""
        self.score_as_client = 0
        self.score_as_server = 0
        self.score_elsewhere = 0
        """What the flows of other workers added."""
        self.forgiven = 0
        """How much of its score is not held against it, as it was in quarantine for it."""
        self.operator = Operator.NONE
        self.quarantined_until = 0.0

    @property
    def score(self) -> int:
        """The live gauge: what its active flows added for it, in both roles."""
        return self.score_as_client + self.score_as_server + self.score_elsewhere

    @property
    def held_score(self) -> int:
        """The part of the live gauge that is held against it."""
        score = self.score
        if self.forgiven > score:  # what is gone cannot be forgiven again when it comes back
            self.forgiven = score
        return score - self.forgiven

    @property
    def key(self) -> str:
        """`IP@VLAN`, the VLAN always present."""
        return f"{self.ip}@{self.vlan}"


class Directory:
    """What the configuration and the lists say of addresses. Replaced whole when they change."""

    def __init__(
        self,
        *,
        local_networks: Iterable[str | Network] = (),
        own_addresses: Iterable[str] = (),
        malware: NetworkSet | None = None,
        allowed: NetworkSet | None = None,
        country: CountryLookup | None = None,
        asn: AsnLookup | None = None,
    ) -> None:
        networks = [ip_network(net, strict=False) if isinstance(net, str) else net for net in local_networks]
        self._local = NetworkSet(networks)
        self._own = frozenset(str(ip_address(address)) for address in own_addresses)
        self._malware = malware or NetworkSet()
        self._allowed = allowed or NetworkSet()
        self.country_lookup = country
        self._asn = asn
        self._not_unicast = frozenset(
            str(address)
            for net in networks
            if isinstance(net, IPv4Network) and 1 <= net.prefixlen <= 30
            for address in (net.network_address, net.broadcast_address)
        )

    def country(self, ip: str) -> str | None:
        return self.country_lookup(ip) if self.country_lookup else None

    def is_local(self, ip: str) -> bool:
        """Inside the local networks, or an address of the box."""
        return ip in self._own or ip in self._local

    def is_unicast(self, ip: str) -> bool:
        """Neither broadcast nor multicast, as ntopng counts them."""
        if ip in self._not_unicast or ip in ("255.255.255.255", "0.0.0.0"):  # noqa: S104
            return False
        return not _is_multicast(ip)

    def describe(self, host: Host) -> None:
        """Fill in what depends on lists and configuration."""
        ip = host.ip
        host.directory = self
        host.local = self.is_local(ip)
        host.unicast = self.is_unicast(ip)
        host.blacklisted = ip in self._malware
        host.allowed = ip in self._own or ip in self._allowed
        host.country = self.country(ip)
        host.asn, host.as_name = (self._asn(ip) if self._asn else None) or (0, "")


def _is_multicast(ip: str) -> bool:
    """224.0.0.0/4 and ff00::/8. (`ipaddress` takes ten times as long.)"""
    if ":" not in ip:
        return 224 <= int(ip.partition(".")[0]) < 240
    first = ip.partition(":")[0]
    return len(first) == 4 and first.startswith("ff")


class HostBook:
    """All live hosts."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.word_on: Callable[[str], Operator] = lambda ip: Operator.NONE  # noqa: ARG005
        """The operator's word on an address; a new host has it from the start."""
        self._hosts: dict[tuple[int, bytes], Host] = {}
        self._changed: dict[tuple[int, bytes], Host] = {}
        self._elsewhere: dict[tuple[int, bytes], int] = {}
        self._forgiven: dict[tuple[int, bytes], int] = {}
        """Of hosts that have a score elsewhere, and perhaps no flow here."""

    def __len__(self) -> int:
        return len(self._hosts)

    def __iter__(self) -> Iterator[Host]:
        return iter(self._hosts.values())

    def acquire(self, address: bytes, vlan: int) -> Host:
        """The host, made if new; one more flow holds it."""
        host = self._hosts.get((vlan, address))
        if host is None:
            host = self._hosts[vlan, address] = Host(address, vlan)
            host.operator = self.word_on(host.ip)
            if self._elsewhere:
                host.score_elsewhere = self._elsewhere.get((vlan, address), 0)
                host.forgiven = self._forgiven.get((vlan, address), 0)
        if host.directory is not self.directory:
            self.directory.describe(host)
        host.flows += 1
        return host

    def refresh(self, host: Host) -> None:
        """Describe a live host anew, if there is a new directory."""
        if host.directory is not self.directory:
            self.directory.describe(host)

    def score_changed(self, host: Host) -> None:
        """Note that flows here changed a host's score."""
        self._changed[host.vlan, host.address] = host

    def changed_scores(self) -> list[tuple[str, int, int]]:
        """IP, VLAN and score (of flows here) of the hosts noted since the last call."""
        if not self._changed:
            return []
        changed = [
            (host.ip, host.vlan, host.score_as_client + host.score_as_server)
            for host in self._changed.values()
        ]
        self._changed.clear()
        return changed

    def tell_again(self, scores: Iterable[tuple[str, int, int]]) -> None:
        """Note hosts that `changed_scores` gave, as they could not be told of; what is forgotten has 0."""
        for ip, vlan, _score in scores:
            key = (vlan, ip_bytes(ip))
            self._changed.setdefault(key, self._hosts.get(key) or Host(key[1], vlan))

    def set_score_elsewhere(self, ip: str, vlan: int, score: int) -> Host | None:
        """What other workers' flows add to a host's score; gives the host if it is alive here."""
        key = (vlan, ip_bytes(ip))
        if score:
            self._elsewhere[key] = score
        else:
            self._elsewhere.pop(key, None)
            self._forgiven.pop(key, None)
        host = self._hosts.get(key)
        if host is not None:
            host.score_elsewhere = score
            host.forgiven = min(host.forgiven, host.score)
        return host

    def forgive(self, ip: str, vlan: int | None = None) -> None:
        """Hold against an address, in a VLAN or in all, only what comes on top of the score that it has."""
        address = ip_bytes(ip)
        for number in range(_VLANS) if vlan is None else (vlan,):
            key = (number, address)
            if key in self._elsewhere:
                self._forgiven[key] = self._elsewhere[key]
            if host := self._hosts.get(key):
                host.forgiven = host.score

    def of_address(self, ip: str) -> set[Host]:
        """The live hosts with an address, in whatever VLAN."""
        address = ip_bytes(ip)
        found = (self._hosts.get((vlan, address)) for vlan in range(_VLANS))  # quicker than to look at all
        return {host for host in found if host is not None}

    def release(self, host: Host, now: float) -> None:
        """One flow less holds it; forgotten when none does and nothing is to be remembered."""
        host.flows -= 1
        if host.flows == 0:
            self.forget_if_idle(host, now)

    def forget_if_idle(self, host: Host, now: float) -> None:
        """Forget a host that has neither flows nor anything to be remembered for."""
        if host.flows == 0 and host.quarantined_until <= now:
            self._hosts.pop((host.vlan, host.address), None)

    def replace_directory(self, directory: Directory) -> None:
        """New lists or configuration. Hosts are described anew as they come up: all at once takes long."""
        self.directory = directory
