"""One flow: counters, the TCP handshake, statuses and scores (spec: "Status and score", "Reads")."""

from __future__ import annotations

import pytest
from core_kit import ACK, CLIENT, CWR, ECE, FIN, PSH, RST, SERVER, SYN, URG, decoded, ip4, ip6, tcp, udp
from hypothesis import given
from hypothesis import strategies as st

from nedge.core.flow import Flow, Handshake, clamp_score
from nedge.core.hosts import Host
from nedge.core.packet import Packet
from nedge.core.status import (
    MAX_TOTAL_SCORE,
    STATUS_BY_KEY,
    STATUS_TYPES,
    define_status,
    status_names,
    status_types,
)

BLACKLISTED, MINING = status_types.status_blacklisted, status_types.status_web_mining_detected


def flow(first: Packet | None = None) -> Flow:
    first = first or decoded(ip4(6, tcp()))
    half = 4 if len(first.key) == 15 else 16
    client, server = Host(first.key[3 : 3 + half], 0), Host(first.key[3 + half : -4], 0)
    return Flow(1, first.key, client, server, first, 10.0, None)


def handshake(*steps: tuple[str, int, bytes]) -> Flow:
    """A flow that saw these segments: whose ("c" or "s"), flags, payload."""
    one = flow()
    for side, flags, payload in steps:
        one.count(decoded(ip4(6, tcp(payload, flags=flags))), side == "c", 10.0)
    return one


S, SA, A, D = ("c", SYN, b""), ("s", SYN | ACK, b""), ("c", ACK, b""), ("c", PSH | ACK, b"data")


@pytest.mark.parametrize(
    ("steps", "state", "closing"),
    [
        ([], Handshake.NONE, False),
        ([S], Handshake.SYN, False),
        ([S, SA], Handshake.SYN_ACK, False),
        ([S, SA, A], Handshake.DONE, False),
        ([S, SA, D], Handshake.DONE, False),  # ACK+PSH
        ([S, S, SA, SA, A], Handshake.DONE, False),  # retransmissions
        ([S, SA, A, S, SA], Handshake.DONE, False),
        ([S, ("c", SYN | ECE | CWR, b""), ("s", SYN | ACK | ECE, b""), A], Handshake.DONE, False),  # RFC 3168
        # Not in order, or not by the right side
        ([A], Handshake.NONE, False),
        ([S, A], Handshake.SYN, False),
        ([SA, A], Handshake.NONE, False),  # the SYN was not seen
        ([S, SA, ("s", ACK, b"")], Handshake.SYN_ACK, False),
        ([S, SA, ("s", ACK | PSH, b"early")], Handshake.SYN_ACK, False),
        ([S, SA, ("s", ACK, b""), A], Handshake.DONE, False),
        ([("s", SYN, b"")], Handshake.NONE, False),
        ([S, ("c", SYN | ACK, b""), A], Handshake.SYN, False),
        ([S, SA, ("c", ACK | URG, b"")], Handshake.SYN_ACK, False),
        ([D, D, ("s", ACK, b"")], Handshake.NONE, False),  # picked up mid-stream: stays false
        ([D, S, SA, A], Handshake.NONE, False),
        # The end
        ([S, ("s", RST | ACK, b"")], Handshake.SYN, True),
        ([S, SA, A, ("c", FIN | ACK, b"")], Handshake.DONE, True),
        ([S, SA, ("c", FIN | ACK, b"")], Handshake.SYN_ACK, True),
        ([S, SA, A, ("s", RST, b"")], Handshake.DONE, True),
        ([D, ("s", FIN | PSH | ACK, b"bye")], Handshake.NONE, True),
    ],
)  # fmt: skip
def test_handshake(steps: list[tuple[str, int, bytes]], state: Handshake, closing: bool) -> None:
    one = handshake(*steps)
    assert (one.handshake, one.closing) == (state, closing)


def test_handshake_out_of_order_is_never_done() -> None:
    for steps in ([SA, S, A], [A, S, SA], [S, A, A], [SA, A, S]):
        assert handshake(*steps).handshake is not Handshake.DONE


def test_handshake_with_data_on_the_syn() -> None:
    """RFC 7413."""
    assert handshake(("c", SYN, b"early"), SA, A).handshake == Handshake.DONE


def test_all_flags_are_kept() -> None:
    one = handshake(S, SA, A, D, ("s", ACK | URG, b"x"), ("c", FIN | ACK, b""))
    assert one.tcp_flags == SYN | ACK | PSH | URG | FIN


def test_counters() -> None:
    one = flow()
    one.count(decoded(ip4(6, tcp(flags=SYN, options=bytes(20)))), True, 11.0)
    one.count(decoded(ip4(6, tcp(b"x" * 100), options=bytes(4))), True, 12.0)
    one.count(decoded(ip6(17, udp(b"yy"))), False, 12.5)
    assert (one.packets_sent, one.packets_rcvd, one.packets) == (2, 1, 3)
    assert (one.bytes_sent, one.bytes_rcvd, one.bytes) == (60 + 144, 50, 254)
    assert (one.goodput_sent, one.goodput_rcvd, one.goodput) == (100, 2, 102)
    assert (one.first_seen, one.last_seen) == (10.0, 12.5)


@pytest.mark.parametrize("proto", [1, 2, 47, 50, 58])
def test_goodput_is_of_tcp_udp_and_sctp_only(proto: int) -> None:
    one = flow()
    one.count(decoded(ip4(proto, bytes(50))), True, 11.0)
    assert (one.bytes_sent, one.goodput_sent) == (70, 0)


@pytest.mark.parametrize(("build", "v6"), [(ip4, False), (ip6, True)])
def test_endpoints_from_the_key(build, v6: bool) -> None:  # type: ignore[no-untyped-def]
    one = flow(decoded(build(17, udp(sport=0x1234, dport=0xFEDC))))
    assert (one.client_port, one.server_port, one.is_v6) == (0x1234, 0xFEDC, v6)
    if not v6:
        assert (one.client.ip, one.server.ip) == (CLIENT, SERVER)


# Statuses and scores


@pytest.mark.parametrize(
    ("score", "counted"),
    [(None, 0), (0, 0), (-1, 0), (-5000, 0), (1, 1), (999, 999), (1000, 1000), (1001, 1000), (10**9, 1000)],
)
def test_each_calls_score_is_clamped(score: int | None, counted: int) -> None:
    assert clamp_score(score) == counted


def test_the_specifications_example_of_two_statuses() -> None:
    one = flow()
    assert one.set_status(BLACKLISTED, 100, 1000, 5) is True
    assert one.set_status(MINING, 50, 50, 10) is True
    assert (one.score, one.client_score, one.server_score) == (150, 1050, 15)
    assert one.status_map == 1 << 1 | 1 << 27


def test_a_status_that_is_set_adds_nothing() -> None:
    one = flow()
    one.set_status(MINING, 5, 5, 1)
    assert one.set_status(MINING, 100, 100, 100) is False
    assert (one.score, one.client_score, one.server_score) == (5, 5, 1)


def test_the_specifications_example_of_clear_and_set() -> None:
    one = flow()
    one.set_status(MINING, 5, 5, 1)
    one.clear_status(MINING)
    assert (one.status_map, one.score) == (0, 5)
    assert one.set_status(MINING, 5, 5, 1) is True
    assert (one.score, one.client_score, one.server_score) == (10, 10, 2)


def test_clear_of_what_is_not_set() -> None:
    one = flow()
    one.set_status(MINING)
    one.clear_status(BLACKLISTED)
    assert one.status_map == MINING.bit


def test_totals_exceed_a_call_and_saturate() -> None:
    one = flow()
    statuses = [status for status in STATUS_BY_KEY.values() if status.status_key]
    for status in statuses[:3]:
        one.set_status(status, 1000, 5000, -3)
    assert (one.score, one.client_score, one.server_score) == (3000, 3000, 0)
    for _ in range(70):
        one.clear_status(statuses[0])
        one.set_status(statuses[0], 1000, 1000, 1000)
    assert (one.score, one.client_score) == (MAX_TOTAL_SCORE, MAX_TOTAL_SCORE) == (65535, 65535)
    assert one.server_score == 65535
    assert one.client.score_as_client == 65535  # what the flow added, no more


def test_host_scores_by_role_and_back() -> None:
    one, two = flow(), flow()
    two.client, two.server = one.server, one.client
    one.set_status(BLACKLISTED, 100, 1000, 5)
    two.set_status(MINING, 50, 50, 10)
    assert (one.client.score_as_client, one.client.score_as_server, one.client.score) == (1000, 10, 1010)
    assert (one.server.score_as_client, one.server.score_as_server, one.server.score) == (50, 5, 55)
    one.release_scores()
    assert (one.client.score, one.server.score) == (10, 50)
    two.release_scores()
    assert (one.client.score, one.server.score) == (0, 0)


@given(st.lists(st.tuples(st.integers(1, 35), st.integers(-5, 2000), st.booleans()), max_size=40))
def test_host_gauge_never_drifts(steps: list[tuple[int, int, bool]]) -> None:
    one = flow()
    for status_key, score, clear in steps:
        status = STATUS_BY_KEY[status_key]
        if clear:
            one.clear_status(status)
        else:
            one.set_status(status, score, score, score)
        assert one.client.score == one.client_score == one.server.score == one.score
    one.release_scores()
    assert one.client.score == one.server.score == 0


@pytest.mark.parametrize(
    ("scores", "predominant"),
    [
        ({}, 0),
        ({1: 0}, 1),
        ({1: 10, 27: 50}, 27),
        ({27: 50, 1: 50}, 1),  # ties: the lowest key
        ({63: 5, 13: 5, 22: 4}, 13),
    ],
)
def test_predominant_status(scores: dict[int, int], predominant: int) -> None:
    one = flow()
    for status_key, score in scores.items():
        one.set_status(STATUS_BY_KEY[status_key], score)
    assert one.predominant_status == predominant


def test_predominant_status_is_a_set_one() -> None:
    one = flow()
    one.set_status(MINING, 50)
    one.set_status(BLACKLISTED, 10)
    one.clear_status(MINING)
    assert one.predominant_status == 1
    one.clear_status(BLACKLISTED)
    assert one.predominant_status == 0


def test_who_set_a_status_is_recorded() -> None:
    one = flow()
    one.set_status(MINING, 5000, 1, 1, "web_mining", {"pool": "x"})
    assert one.statuses is not None
    record = one.statuses[27]
    assert (record.score, record.script, record.info) == (1000, "web_mining", {"pool": "x"})


# Status types


def test_status_keys() -> None:
    assert all(0 <= key <= 63 for key in STATUS_BY_KEY)
    assert len(STATUS_BY_KEY) == len(STATUS_TYPES)
    assert [status.name for status in STATUS_TYPES.values()] == list(STATUS_TYPES)
    assert status_types.status_blocked.status_key == 3
    assert status_types.status_user_05.bit == 1 << 63


@pytest.mark.parametrize("key", [59, 63])
def test_user_statuses(key: int) -> None:
    assert define_status(key, "status_mine", "Mine").bit == 1 << key


@pytest.mark.parametrize("key", [-1, 0, 1, 58, 64])
def test_other_keys_are_not_the_users(key: int) -> None:
    with pytest.raises(ValueError, match="59 to 63"):
        define_status(key, "status_mine", "Mine")


def test_status_names() -> None:
    assert status_names(0) == []
    assert status_names(1 << 1 | 1 << 63 | 1 << 40) == ["status_blacklisted", "status_40", "status_user_05"]


def test_status_names_of_a_flow() -> None:
    """A user's status has the name that its script gave it."""
    one = flow()
    one.set_status(define_status(60, "status_mine", "Mine"))
    one.set_status(BLACKLISTED)
    assert one.status_names == ["status_blacklisted", "status_mine"]
