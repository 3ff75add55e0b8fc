"""Matching of names and addresses against lists. Lists are built once and swapped whole, never edited.

A set lives in compact memory that is as good when it belongs to a file which several processes map: see
`nedge.lists`.
"""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from ipaddress import (
    IPv4Network,
    IPv6Network,
    ip_network,
)
from socket import AF_INET, AF_INET6, inet_pton
from typing import Any, Literal, NamedTuple

from marisa_trie import Trie

Network = IPv4Network | IPv6Network

_COUNTS = struct.Struct("=QQQ")
_HALVES = struct.Struct(">QQ")
_HALF = 1 << 64
_FEW = 256
"""Up to so many ranges are copied, as a list is searched faster."""


class Range(NamedTuple):
    """A network as its first and last address."""

    version: int
    first: int
    last: int


def network_range(network: str | Network) -> Range:
    """The addresses of a network or of a single address. Raises ValueError for what is neither."""
    if isinstance(network, str):
        address, slash, prefix = network.partition("/")
        family, version, bits = (AF_INET6, 6, 128) if ":" in address else (AF_INET, 4, 32)
        if not slash or (prefix.isdecimal() and prefix.isascii() and int(prefix) <= bits):
            try:
                first = int.from_bytes(inet_pton(family, address))
            except OSError:
                raise ValueError(f"{network!r} is neither an address nor a network") from None
            rest = (1 << bits - int(prefix or bits)) - 1
            return Range(version, first & ~rest, first | rest)
        network = ip_network(network, strict=False)  # a netmask instead of a prefix, or nonsense
    return Range(network.version, int(network[0]), int(network[-1]))


class NetworkSet:
    """A set of networks and addresses, v4 and v6; an address matches if any of them contains it."""

    __slots__ = ("_buffer", "_count", "_v4", "_v6")

    def __init__(self, networks: Iterable[str | Network | Range] = ()) -> None:
        """Raises ValueError on anything that is neither an address nor a network."""
        self._take(pack_networks(networks))

    @classmethod
    def of(cls, packed: Any) -> NetworkSet:
        """The set in a buffer that `pack_networks` filled; the buffer is used, not copied."""
        made = cls.__new__(cls)
        made._take(packed)
        return made

    def _take(self, packed: Any) -> None:
        self._buffer = view = memoryview(packed)
        self._count, count4, count6 = _COUNTS.unpack_from(view)
        at = _COUNTS.size
        self._v4 = _columns(view[at:], "I", 2, count4)
        self._v6 = _columns(view[at + 8 * count4 :], "Q", 4, count6)

    def __len__(self) -> int:
        """How many different networks it was made from."""
        count: int = self._count
        return count

    def ranges(self) -> Iterator[Range]:
        """The fewest ranges that cover exactly the set: another set can be made of them, and of more."""
        for first, last in zip(*self._v4, strict=True):
            yield Range(4, first, last)
        for upper, lower, last_upper, last_lower in zip(*self._v6, strict=True):
            yield Range(6, upper * _HALF + lower, last_upper * _HALF + last_lower)

    def blocks(self, version: int) -> Iterator[tuple[int, int]]:
        """The networks of one version as address and prefix length."""
        if version == 4:
            for first, last in zip(*self._v4, strict=True):
                yield from _blocks(first, last, 32)
        else:
            for upper, lower, last_upper, last_lower in zip(*self._v6, strict=True):
                yield from _blocks(upper * _HALF + lower, last_upper * _HALF + last_lower, 128)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, NetworkSet) and self._buffer == other._buffer

    __hash__ = None  # type: ignore[assignment]

    def __contains__(self, ip: object) -> bool:
        """Whether an address, in text form, is in the set."""
        if not self._count:
            return False
        text = str(ip)
        if ":" not in text:
            first, last = self._v4
            address = int.from_bytes(inet_pton(AF_INET, text))
            at = bisect_right(first, address) - 1
            return at >= 0 and last[at] >= address
        upper, lower = _HALVES.unpack(inet_pton(AF_INET6, text))
        first, first_lower, last, last_lower = self._v6
        end = bisect_right(first, upper)
        at = bisect_right(first_lower, lower, bisect_left(first, upper, 0, end), end) - 1
        return at >= 0 and (last[at], last_lower[at]) >= (upper, lower)


def _blocks(first: int, last: int, bits: int) -> Iterator[tuple[int, int]]:
    """The fewest networks from one address to another."""
    while first <= last:
        size = min(first & -first or 1 << bits, 1 << (last - first + 1).bit_length() - 1)
        yield first, bits - size.bit_length() + 1
        first += size


def _columns(view: memoryview, code: Literal["I", "Q"], count: int, length: int) -> list[Sequence[int]]:
    """So many columns of the same length, one behind the other."""
    size = length * struct.calcsize(f"={code}")
    columns = [view[n * size : (n + 1) * size].cast(code) for n in range(count)]
    return [column.tolist() for column in columns] if length <= _FEW else list(columns)


def pack_networks(networks: Iterable[str | Network | Range]) -> bytes:
    """Networks as columns of ranges that are sorted and do not touch: what a NetworkSet searches.

    Raises ValueError on anything that is neither an address nor a network.
    """
    distinct = {n if isinstance(n, Range) else network_range(n) for n in networks}
    merged: dict[int, list[list[int]]] = {4: [], 6: []}
    for version, first, last in sorted(distinct):
        ranges = merged[version]
        if ranges and first <= ranges[-1][1] + 1:
            ranges[-1][1] = max(last, ranges[-1][1])
        else:
            ranges.append([first, last])
    v4, v6 = merged[4], merged[6]
    words = [first for first, _ in v4] + [last for _, last in v4]
    halves = [half for end in (0, 1) for part in (0, 1) for half in (divmod(r[end], _HALF)[part] for r in v6)]
    counts = _COUNTS.pack(len(distinct), len(v4), len(v6))
    return counts + struct.pack(f"={len(words)}I{len(halves)}Q", *words, *halves)


class DomainSet:
    """A set of domain names; a name matches if it is one of them or below one of them."""

    __slots__ = ("trie",)

    def __init__(self, names: Iterable[str] = ()) -> None:
        """Names in any case; a leading `*.` or `.` and a trailing dot are ignored."""
        cleaned = (name.strip().lower().removeprefix("*").strip(".") for name in names)
        self.trie = Trie([name[::-1] + "." for name in cleaned if name], num_tries=1)
        """Names backwards, with a dot behind: what covers a name is a prefix of it."""

    @classmethod
    def of(cls, trie: Any) -> DomainSet:
        """The set with this trie, which is another set's, or was read from a file."""
        made = cls.__new__(cls)
        made.trie = trie
        return made

    def __len__(self) -> int:
        return len(self.trie)

    def match(self, name: str) -> str | None:
        """The longest entry that covers the name, or None. `name` in any case, trailing dot or not."""
        covering = self.trie.prefixes(name.lower().rstrip(".")[::-1] + ".")
        return covering[-1][-2::-1] if covering else None


class FingerprintSet:
    """A set of fingerprints of TLS clients: JA3 (an MD5 in hexadecimal) or JA4. Lower case."""

    __slots__ = ("trie",)

    def __init__(self, fingerprints: Iterable[str] = ()) -> None:
        self.trie = Trie(list(fingerprints), num_tries=1)

    @classmethod
    def of(cls, trie: Any) -> FingerprintSet:
        """The set with this trie, which is another set's, or was read from a file."""
        made = cls.__new__(cls)
        made.trie = trie
        return made

    def __len__(self) -> int:
        return len(self.trie)

    def __contains__(self, fingerprint: object) -> bool:
        return fingerprint in self.trie
