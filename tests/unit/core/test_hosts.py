"""Hosts: what is known of addresses, and how long they are remembered."""

from __future__ import annotations

import pytest

from nedge.core.hosts import Directory, Host, HostBook, ip_text
from nedge.core.lists import NetworkSet
from nedge.core.verdict import Operator

A = bytes([10, 0, 0, 1])
B = bytes([192, 0, 2, 1])
SIX = bytes.fromhex("20010db8000000000000000000000001")


@pytest.mark.parametrize(
    ("address", "text"),
    [
        (A, "10.0.0.1"),
        (bytes(4), "0.0.0.0"),
        (SIX, "2001:db8::1"),
        (bytes(16), "::"),
        (bytes(15) + b"\1", "::1"),
    ],
)
def test_ip_text(address: bytes, text: str) -> None:
    assert ip_text(address) == text


@pytest.mark.parametrize(("vlan", "key"), [(0, "10.0.0.1@0"), (42, "10.0.0.1@42")])
def test_key_always_has_the_vlan(vlan: int, key: str) -> None:
    assert Host(A, vlan).key == key


# semantics.md, "Reads": isLocal, isUnicast, isBlacklisted

DIRECTORY = Directory(
    local_networks=["192.168.1.0/24", "10.0.0.0/31", "10.9.9.9/32", "172.16.0.0/30", "fd00::/8"],
    own_addresses=["203.0.113.1", "2001:db8::fe"],
)


@pytest.mark.parametrize(
    ("ip", "local"),
    [
        ("192.168.1.0", True), ("192.168.1.255", True), ("192.168.2.0", False), ("192.168.0.255", False),
        ("10.9.9.9", True), ("10.9.9.8", False), ("fd12::1", True), ("fe00::1", False),
        ("203.0.113.1", True), ("203.0.113.2", False), ("2001:db8::fe", True), ("2001:db8::ff", False),
    ],
)  # fmt: skip
def test_local(ip: str, local: bool) -> None:
    assert DIRECTORY.is_local(ip) is local


@pytest.mark.parametrize(
    ("ip", "unicast"),
    [
        ("192.168.1.1", True), ("192.168.1.254", True), ("8.8.8.8", True), ("223.255.255.255", True),
        ("192.168.1.0", False), ("192.168.1.255", False),  # network and directed broadcast of a local net
        ("192.168.2.255", True),  # not a local net
        ("10.0.0.0", True), ("10.0.0.1", True),  # /31: RFC 3021, no broadcast
        ("10.9.9.9", True),  # /32
        ("172.16.0.0", False), ("172.16.0.3", False), ("172.16.0.1", True),  # /30
        ("224.0.0.0", False), ("239.255.255.255", False), ("240.0.0.1", True),
        ("255.255.255.255", False), ("0.0.0.0", False),
        ("ff00::", False), ("ff02::1", False), ("ffff::1", False),
        ("fe80::1", True), ("fd00::", True), ("::1", True), ("2001:db8::1", True), ("feff::1", True),
    ],
)  # fmt: skip
def test_unicast(ip: str, unicast: bool) -> None:
    assert DIRECTORY.is_unicast(ip) is unicast


@pytest.mark.parametrize(("prefix", "unicast"), [(1, False), (30, False), (31, True), (32, True)])
def test_which_prefixes_have_broadcast(prefix: int, unicast: bool) -> None:
    directory = Directory(local_networks=[f"128.0.0.0/{prefix}"])
    assert directory.is_unicast("128.0.0.0") is unicast


def test_describe() -> None:
    directory = Directory(
        local_networks=["10.0.0.0/8"],
        malware=NetworkSet(["192.0.2.0/24", "2001:db8::/32"]),
        allowed=NetworkSet(["10.0.0.1"]),
        country={"192.0.2.1": "XX"}.get,
    )
    book = HostBook(directory)
    a, b, six = book.acquire(A, 0), book.acquire(B, 0), book.acquire(SIX, 0)
    assert (a.local, a.unicast, a.blacklisted, a.allowed) == (True, True, False, True)
    assert (b.local, b.unicast, b.blacklisted, b.allowed) == (False, True, True, False)
    assert six.blacklisted
    assert directory.country("192.0.2.1") == "XX"
    assert directory.country("192.0.2.2") is None
    assert Directory().country("192.0.2.1") is None


def test_new_lists_describe_live_hosts_anew_when_they_come_up() -> None:
    book = HostBook(Directory())
    host, other = book.acquire(B, 0), book.acquire(A, 0)
    assert not host.blacklisted
    book.replace_directory(Directory(malware=NetworkSet(["192.0.2.1", "10.0.0.1"])))
    assert book.acquire(B, 0).blacklisted
    book.refresh(other)
    assert other.blacklisted
    book.replace_directory(Directory())
    assert not book.acquire(B, 0).blacklisted


# The book


def test_one_host_per_address_and_vlan() -> None:
    book = HostBook(Directory())
    a = book.acquire(A, 0)
    assert book.acquire(A, 0) is a
    assert book.acquire(A, 1) is not a
    assert book.acquire(B, 0) is not a
    assert (len(book), a.flows) == (3, 2)
    assert {host.key for host in book} == {"10.0.0.1@0", "10.0.0.1@1", "192.0.2.1@0"}


def test_forgotten_with_its_last_flow() -> None:
    book = HostBook(Directory())
    a = book.acquire(A, 0)
    book.acquire(A, 0)
    book.release(a, 0)
    assert len(book) == 1
    book.release(a, 0)
    assert len(book) == 0
    assert book.acquire(A, 0) is not a


def test_a_new_host_has_the_operators_word() -> None:
    """And so needs not be remembered for it: a network of any size can have one."""
    book = HostBook(Directory())
    book.word_on = lambda ip: Operator.BLOCK if ip == "10.0.0.1" else Operator.NONE
    a = book.acquire(A, 0)
    assert a.operator is Operator.BLOCK
    assert book.acquire(B, 0).operator is Operator.NONE
    book.release(a, 0)
    assert [host.ip for host in book] == ["192.0.2.1"]
    assert book.acquire(A, 7).operator is Operator.BLOCK


def test_what_is_forgiven_is_not_held_against_a_host() -> None:
    host = Host(A, 0)
    host.score_as_client = host.forgiven = 500
    assert (host.score, host.held_score) == (500, 0)
    host.score_as_server = 30
    assert host.held_score == 30
    host.score_as_client, host.score_as_server = 100, 0
    assert host.held_score == 0
    host.score_as_client = 250  # the rest was forgiven once, not for ever
    assert host.held_score == 150


def test_scores_elsewhere_are_forgiven_too_also_of_hosts_that_are_not_here() -> None:
    book = HostBook(Directory())
    book.set_score_elsewhere("10.0.0.1", 0, 400)
    book.set_score_elsewhere("192.0.2.1", 0, 400)
    six = book.acquire(SIX, 4095)
    six.score_as_client = 50
    book.forgive("10.0.0.1")
    assert six.held_score == 50
    book.forgive("2001:db8::1")
    assert six.held_score == 0
    a = book.acquire(A, 0)
    assert (a.score, a.held_score, book.acquire(B, 0).held_score) == (400, 0, 400)
    book.set_score_elsewhere("10.0.0.1", 0, 410)
    assert a.held_score == 10
    book.release(a, 0)
    book.set_score_elsewhere("10.0.0.1", 0, 0)  # all of that has ended
    book.set_score_elsewhere("10.0.0.1", 0, 400)
    assert book.acquire(A, 0).held_score == 400


def test_a_quarantine_is_remembered_to_its_end() -> None:
    book = HostBook(Directory())
    a = book.acquire(A, 0)
    a.quarantined_until = 100.0
    book.release(a, 50.0)
    book.forget_if_idle(a, 99.9)
    assert book.acquire(A, 0) is a
    book.forget_if_idle(a, 200.0)  # it has a flow again
    assert len(book) == 1
    book.release(a, 100.0)
    assert len(book) == 0


def test_score_is_the_sum_of_both_roles() -> None:
    host = Host(A, 0)
    host.score_as_client, host.score_as_server = 30, 12
    assert host.score == 42
