"""Matching of names and addresses against lists. Lists are built once and swapped whole, never edited."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network, ip_network

import pytricia

Network = IPv4Network | IPv6Network


class NetworkSet:
    """A set of networks and addresses, v4 and v6; an address matches if any of them contains it."""

    def __init__(self, networks: Iterable[str | Network] = ()) -> None:
        """Raises ValueError on anything that is neither an address nor a network."""
        self._v4 = pytricia.PyTricia(32)
        self._v6 = pytricia.PyTricia(128)
        for network in networks:
            parsed = ip_network(network, strict=False) if isinstance(network, str) else network
            (self._v4 if parsed.version == 4 else self._v6)[parsed] = True
        self._v4.freeze()
        self._v6.freeze()

    def __len__(self) -> int:
        return len(self._v4) + len(self._v6)

    def __contains__(self, ip: object) -> bool:
        """Whether an address, in text form, is in the set."""
        text = str(ip)
        return text in (self._v6 if ":" in text else self._v4)


class DomainSet:
    """A set of domain names; a name matches if it is one of them or below one of them."""

    __slots__ = ("_names",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Names in any case; a leading `*.` or `.` and a trailing dot are ignored."""
        cleaned = (name.strip().lower().removeprefix("*").strip(".") for name in names)
        self._names = frozenset(name for name in cleaned if name)

    def __len__(self) -> int:
        return len(self._names)

    def match(self, name: str) -> str | None:
        """The entry that covers the name, or None. `name` in any case, with or without a trailing dot."""
        names = self._names
        if not names:
            return None
        rest = name.lower().rstrip(".")
        while rest:
            if rest in names:
                return rest
            _, _, rest = rest.partition(".")
        return None
