"""Sets of networks and of domain names."""

from __future__ import annotations

from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    collapse_addresses,
    ip_address,
    ip_network,
    summarize_address_range,
)

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nedge.core.lists import DomainSet, FingerprintSet, NetworkSet, Range, pack_networks


@pytest.mark.parametrize(
    ("networks", "inside", "outside"),
    [
        (["192.0.2.0/24"], ["192.0.2.0", "192.0.2.255"], ["192.0.1.255", "192.0.3.0", "::192.0.2.1"]),
        (["192.0.2.7"], ["192.0.2.7"], ["192.0.2.6", "192.0.2.8"]),
        (["192.0.2.7/24"], ["192.0.2.200"], ["192.0.3.7"]),  # host bits are no error
        (["2001:db8::/32"], ["2001:db8::", "2001:db8:ffff::1"], ["2001:db9::", "192.0.2.1"]),
        (["2001:db8::1"], ["2001:db8::1", "2001:0DB8:0:0::1"], ["2001:db8::2"]),
        (["0.0.0.0/0"], ["0.0.0.0", "255.255.255.255"], ["::", "::1"]),
        (["::/0"], ["::", "ffff::"], ["1.2.3.4"]),
        (["10.0.0.0/8", "10.1.0.0/16", "fd00::/8"], ["10.1.2.3", "10.9.9.9", "fd12::1"], ["11.0.0.0"]),
        ([], [], ["10.0.0.1", "::1"]),
    ],
)  # fmt: skip
def test_network_set(networks: list[str], inside: list[str], outside: list[str]) -> None:
    found = NetworkSet(networks)
    assert len(found) == len(networks)
    assert [ip for ip in inside if ip not in found] == []
    assert [ip for ip in outside if ip in found] == []


def test_networks_as_objects() -> None:
    found = NetworkSet([ip_network("192.0.2.0/24"), ip_network("fd00::/8")])
    assert "192.0.2.9" in found
    assert "fd00::9" in found


@pytest.mark.parametrize(
    "wrong", ["", "example.com", "192.0.2.0/33", "192.0.2", "300.1.1.1", "::/129", "1.2.3.4 x"]
)
def test_what_is_no_network(wrong: str) -> None:
    with pytest.raises(ValueError):
        NetworkSet(["192.0.2.1", wrong])


@given(
    st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 32)), max_size=8),
    st.lists(st.integers(0, 2**32 - 1), max_size=8),
)
def test_network_set_against_the_standard_library(
    networks: list[tuple[int, int]], addresses: list[int]
) -> None:
    nets = [ip_network((address, prefix), strict=False) for address, prefix in networks]
    found = NetworkSet(nets)
    for address in [*addresses, *(address for address, _ in networks)]:
        ip = ip_address(address)
        assert (str(ip) in found) == any(ip in net for net in nets)


@given(
    st.lists(st.tuples(st.integers(0, 2**128 - 1), st.integers(0, 128)), max_size=8),
    st.lists(st.integers(0, 2**128 - 1), max_size=8),
)
def test_network_set_against_the_standard_library_in_ipv6(
    networks: list[tuple[int, int]], addresses: list[int]
) -> None:
    nets = [IPv6Network((address, prefix), strict=False) for address, prefix in networks]
    found = NetworkSet(nets)
    ends = [int(end) + step for net in nets for end in (net[0], net[-1]) for step in (-1, 0, 1)]
    for address in [*addresses, *(end % 2**128 for end in ends)]:
        ip = IPv6Address(address)
        assert (str(ip) in found) == any(ip in net for net in nets)


@pytest.mark.parametrize("count", [0, 1, 256, 257, 5000])
def test_a_set_in_memory_that_is_shared(count: int) -> None:
    texts = [f"10.{n >> 8}.{n & 255}.{n % 7 * 2}/31" for n in range(count)]
    texts += [f"2001:db8:{n:x}::/64" for n in range(count)]
    packed = pack_networks(texts)
    for found in (NetworkSet(texts), NetworkSet.of(packed), NetworkSet.of(memoryview(bytearray(packed)))):
        assert len(found) == 2 * count
        for n in range(0, count, 97):
            base = f"10.{n >> 8}.{n & 255}."
            assert [f"{base}{last + n % 7 * 2}" in found for last in (0, 1, 2)] == [True, True, False]
            assert f"2001:db8:{n:x}:0:ffff::" in found
            assert f"2001:db8:{n:x}:1::" not in found


def test_what_is_there_twice_counts_once() -> None:
    assert len(NetworkSet(["192.0.2.0/24", "192.0.2.7/24", "192.0.2.0/255.255.255.0", "192.0.2.0/25"])) == 2
    assert len(DomainSet(["a.example", "A.example.", "b.a.example"])) == 2


def test_fingerprints() -> None:
    found = FingerprintSet(["0" * 32, "f" * 32])
    assert (len(found), "f" * 32 in found, "f" * 31 in found, "" in found) == (2, True, False, False)
    assert "" not in FingerprintSet()
    assert not FingerprintSet()


@pytest.mark.parametrize(
    ("entry", "name", "covered"),
    [
        ("example.com", "example.com", True),
        ("example.com", "www.example.com", True),
        ("example.com", "a.b.c.example.com", True),
        ("example.com", "EXAMPLE.Com", True),
        ("example.com", "www.example.com.", True),
        ("example.com", "badexample.com", False),
        ("example.com", "example.com.evil.org", False),
        ("example.com", "com", False),
        ("example.com", "", False),
        ("example.com", ".", False),
        ("www.example.com", "example.com", False),
        ("Example.COM.", "www.example.com", True),
        (" example.com ", "example.com", True),
        ("*.example.com", "www.example.com", True),
        (".example.com", "example.com", True),
        ("com", "anything.com", True),
        ("bücher.example", "www.bücher.example", True),
        ("example.com", "www.\x00\N{REPLACEMENT CHARACTER}.example.com", True),
        ("192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.10", False),
    ],
)
def test_domain_set(entry: str, name: str, covered: bool) -> None:
    found = DomainSet([entry, "unrelated.org"]).match(name)
    assert (found is not None) == covered
    if covered:
        assert found == entry.strip().lower().strip("*.")


def test_the_longest_entry_is_named() -> None:
    assert DomainSet(["example.com", "www.example.com"]).match("a.www.example.com") == "www.example.com"


@pytest.mark.parametrize("names", [[], ["", " ", ".", "*", "*."]])
def test_empty_entries_cover_nothing(names: list[str]) -> None:
    found = DomainSet(names)
    assert len(found) == 0
    assert found.match("example.com") is None
    assert found.match("") is None


def test_long_names_of_many_labels() -> None:
    assert DomainSet(["b"]).match(".".join(["a"] * 5000) + ".b") == "b"


def networks(found: NetworkSet) -> list[IPv4Network | IPv6Network]:
    return [*map(IPv4Network, found.blocks(4)), *map(IPv6Network, found.blocks(6))]


def test_the_networks_of_a_set() -> None:
    entries = [
        "10.0.0.0/9",
        "10.128.0.0/9",
        "192.0.2.7",
        "192.0.2.8/31",
        "2001:db8::/33",
        "2001:db8::1",
        "::/1",
    ]
    expected = ["10.0.0.0/8", "192.0.2.7/32", "192.0.2.8/31", "::/1"]
    assert [str(network) for network in networks(NetworkSet(entries))] == expected
    assert networks(NetworkSet()) == []
    high = ["8000::/2", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"]
    assert [str(n) for n in networks(NetworkSet(high))] == ["8000::/2", f"{high[1]}/128"]
    assert [str(n) for n in networks(NetworkSet(["0.0.0.0/0", "::/0"]))] == ["0.0.0.0/0", "::/0"]


@given(st.lists(st.tuples(st.integers(0, 1 << 32), st.integers(0, 1 << 32)), max_size=6))
def test_networks_cover_exactly_the_set(ends: list[tuple[int, int]]) -> None:
    ranges = [Range(4, min(pair), max(pair) - 1) for pair in ends if pair[0] != pair[1]]
    covered = [network for found in ranges for network in summarize(found)]
    expected = list(collapse_addresses(covered))
    assert networks(NetworkSet(ranges)) == expected


def summarize(found: Range) -> list[IPv4Network]:
    return list(summarize_address_range(IPv4Address(found.first), IPv4Address(found.last)))
