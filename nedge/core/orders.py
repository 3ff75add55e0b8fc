"""What an operator ordered: to block or to unblock a flow, a host, a network or a domain.

An order is in force from the moment it is in the book until it is taken out. Where several speak of one flow:

* an order on the flow itself beats all others;
* of orders on addresses the narrowest network speaks for an address, of orders on domains the longest name;
* then, between both ends and the name asked for, unblock beats block.

There is one order per target: a new one takes the place of the old.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from ipaddress import ip_address, ip_interface, ip_network

import pytricia

from nedge.core.flow import Flow
from nedge.core.hosts import ip_text
from nedge.core.packet import HEAD_LENGTH, SCTP, TCP, UDP, reverse_key
from nedge.core.verdict import Operator

MAX_ORDERS = 10_000

_PROTOCOLS = {TCP: "tcp", UDP: "udp", SCTP: "sctp"}
_DOMAIN = re.compile(r"(?!-)[a-z0-9_-]{1,63}(?<!-)(\.(?!-)[a-z0-9_-]{1,63}(?<!-))*")
_LONGEST_DOMAIN = 253


class Kind(StrEnum):
    """What an order is about."""

    FLOW = "flow"
    HOST = "host"
    NETWORK = "network"
    DOMAIN = "domain"


class TargetError(ValueError):
    """No order can be about this. The message is a sentence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One order. Times are epoch seconds."""

    id: int
    word: Operator
    """BLOCK or UNBLOCK."""
    kind: Kind
    target: str
    """In its one spelling (see `parse_target`, `flow_target`)."""
    key: bytes = b""
    """Of the flow, in either direction."""
    until: float = 0.0
    """When it ends by itself; 0 = never."""
    made: float = 0.0
    by: str = ""
    reason: str = ""
    text: str = field(init=False, compare=False)
    """As it stands in verdicts: `order 3 on host 10.0.0.5 (infected)`."""

    def __post_init__(self) -> None:
        because = f" ({self.reason})" if self.reason else ""
        object.__setattr__(self, "text", f"order {self.id} on {self.kind} {self.target}{because}")


class OrderBook:
    """The orders in force, by what they are about."""

    def __init__(self, orders: Iterable[Order] = ()) -> None:
        self._orders: dict[int, Order] = {}
        self._by_target: dict[tuple[Kind, str], Order] = {}
        self._addresses = {4: pytricia.PyTricia(32), 6: pytricia.PyTricia(128)}
        self._names: dict[str, Order] = {}
        self._flows: dict[bytes, Order] = {}
        for order in orders:
            self.add(order)

    def __len__(self) -> int:
        return len(self._orders)

    def __iter__(self) -> Iterator[Order]:
        """In the order in which they were given."""
        return iter(list(self._orders.values()))

    def get(self, number: int) -> Order | None:
        return self._orders.get(number)

    def find(self, kind: Kind, target: str) -> Order | None:
        """The order on just this target."""
        return self._by_target.get((kind, target))

    def add(self, order: Order) -> None:
        """An order is in force from now on, in place of the one that there was on its target."""
        former = self._by_target.get((order.kind, order.target))
        if former:
            self.remove(former.id)
        self._orders[order.id] = order
        self._by_target[order.kind, order.target] = order
        if order.kind is Kind.FLOW:
            self._flows[order.key] = self._flows[reverse_key(order.key)] = order
        elif order.kind is Kind.DOMAIN:
            self._names[order.target] = order
        else:
            self._trie(order)[order.target] = order

    def remove(self, number: int) -> Order | None:
        """Take an order out; gives it, None if there is none of that number."""
        order = self._orders.pop(number, None)
        if order is None:
            return None
        del self._by_target[order.kind, order.target]
        if order.kind is Kind.FLOW:
            self._flows.pop(order.key)
            self._flows.pop(reverse_key(order.key), None)  # the same key where both ends are one
        elif order.kind is Kind.DOMAIN:
            del self._names[order.target]
        else:
            del self._trie(order)[order.target]
        return order

    def over(self, now: float) -> list[Order]:
        """The orders that should have ended by now."""
        return [order for order in self._orders.values() if 0 < order.until <= now]

    def _trie(self, order: Order) -> pytricia.PyTricia:
        return self._addresses[6 if ":" in order.target else 4]

    # Who speaks

    def on_address(self, ip: str) -> Order | None:
        """The narrowest order that an address, in text form, is in."""
        order: Order | None = self._addresses[6 if ":" in ip else 4].get(ip)
        return order

    def on_name(self, name: str) -> Order | None:
        """The order on the longest domain that the name is, or is below of."""
        names = self._names
        if not names:
            return None
        rest = name.lower().rstrip(".")
        while rest:
            if rest in names:
                return names[rest]
            _, _, rest = rest.partition(".")
        return None

    def on_flow(self, key: bytes) -> Order | None:
        """The order on the flow with this key, in either direction."""
        return self._flows.get(key)

    def word_on_address(self, ip: str) -> Operator:
        order = self.on_address(ip)
        return order.word if order else Operator.NONE

    def word_on_name(self, name: str) -> Operator:
        order = self.on_name(name)
        return order.word if order else Operator.NONE

    def word_on_flow(self, key: bytes) -> Operator:
        order = self._flows.get(key)
        return order.word if order else Operator.NONE

    def word_on_connection(self, key: bytes) -> Operator:
        """What can be said of a connection of which no more is known than its ends."""
        size = len(key) - HEAD_LENGTH - 4 >> 1
        middle = HEAD_LENGTH + size
        client, server = ip_text(key[HEAD_LENGTH:middle]), ip_text(key[middle:-4])
        return self.word_on_flow(key) or max(self.word_on_address(client), self.word_on_address(server))

    def speaker(self, flow: Flow, word: Operator) -> Order | None:
        """The order from which a flow has this word."""
        orders = (
            self.on_flow(flow.key),
            self.on_address(flow.client.ip),
            self.on_address(flow.server.ip),
            self.on_name(flow.hostname),
        )
        return next((order for order in orders if order is not None and order.word is word), None)


def parse_target(text: str) -> tuple[Kind, str]:
    """What an operator typed, a host, a network or a domain, as kind and the one spelling of it.

    Raises TargetError with a sentence.
    """
    text = text.strip()
    if "/" in text:
        return _network(text)
    try:
        address = ip_address(text)
    except ValueError:
        return _domain(text)
    if "%" in text:
        raise TargetError(f"{text!r}: an address without a zone, please: {text.partition('%')[0]}")
    return Kind.HOST, str(address)


def _network(text: str) -> tuple[Kind, str]:
    try:
        network = ip_network(text)
    except ValueError:
        try:
            near = ip_interface(text).network
        except ValueError:
            raise TargetError(f"{text!r} is not a network; allowed is one such as 192.168.1.0/24") from None
        raise TargetError(f"{text!r} has host bits set; did you mean {near}?") from None
    if network.prefixlen == network.max_prefixlen:
        return Kind.HOST, str(network.network_address)
    return Kind.NETWORK, str(network)


def _domain(text: str) -> tuple[Kind, str]:
    name = text.lower().removeprefix("*").strip(".")
    if not name.isascii():
        try:
            name = name.encode("idna").decode()
        except UnicodeError:
            name = ""
    _, _, last = name.rpartition(".")  # no domain ends in a number: it would be an address gone wrong
    if not _DOMAIN.fullmatch(name) or len(name) > _LONGEST_DOMAIN or last.isdigit():
        raise TargetError(
            f"{text!r} is neither a flow (such as 0-17), an address, a network nor a domain name"
        )
    return Kind.DOMAIN, name


def flow_target(key: bytes) -> str:
    """A flow key in words: `tcp 10.0.0.1:40000 > 192.0.2.1:443`, with ` vlan 5` where there is one."""
    size = len(key) - HEAD_LENGTH - 4 >> 1
    ends = [
        (ip_text(key[HEAD_LENGTH : HEAD_LENGTH + size]), key[-4:-2]),
        (ip_text(key[HEAD_LENGTH + size : -4]), key[-2:]),
    ]
    proto = _PROTOCOLS.get(key[2], f"proto-{key[2]}")
    client, server = (
        f"[{ip}]:{int.from_bytes(port)}" if ":" in ip else f"{ip}:{int.from_bytes(port)}" for ip, port in ends
    )
    vlan = int.from_bytes(key[:2])
    return f"{proto} {client} > {server}" + (f" vlan {vlan}" if vlan else "")


class Cover:
    """Which flows and addresses an order is about, whatever other orders say."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._below = f".{order.target}"
        self.by_address = order.kind in (Kind.HOST, Kind.NETWORK)
        if self.by_address:
            network = ip_network(order.target)
            self._size = len(network.network_address.packed)
            self._mask = int(network.netmask)
            self._network = int(network.network_address)

    def address(self, packed: bytes) -> bool:
        """Whether an address, 4 or 16 bytes, is the order's."""
        return len(packed) == self._size and int.from_bytes(packed) & self._mask == self._network

    def key(self, key: bytes) -> bool:
        """Whether the order is about the flow with this key, or one of its ends (not: its name)."""
        if not self.by_address:
            return key in (self._order.key, reverse_key(self._order.key)) if self._order.key else False
        size = len(key) - HEAD_LENGTH - 4 >> 1
        middle = HEAD_LENGTH + size
        return self.address(key[HEAD_LENGTH:middle]) or self.address(key[middle:-4])

    def name(self, hostname: str) -> bool:
        """Whether a name is the order's domain, or below it."""
        return hostname == self._order.target or hostname.endswith(self._below)
