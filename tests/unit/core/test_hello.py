"""A ClientHello in pieces: whatever they are, nDPI gets it as one record in one packet."""

from __future__ import annotations

from itertools import pairwise

import pytest
from core_kit import ACK, CLIENT, PSH, SERVER, SYN, T0, Rig, ip4, tcp
from hypothesis import given
from hypothesis import strategies as st
from test_engine import the_flow

from nedge.core.hello import MAX_HELLO, Hello, starts_hello
from nedge.core.packet import Packet, decode

MESSAGE = b"\x01" + (300).to_bytes(3, "big") + bytes(n % 251 for n in range(300))
RECORD = b"\x16\x03\x01" + len(MESSAGE).to_bytes(2, "big") + MESSAGE


def records(*sizes: int) -> bytes:
    """The message in records of these sizes, the rest in a last one."""
    said, at = b"", 0
    for size in (*sizes, len(MESSAGE)):
        part = MESSAGE[at : at + size]
        said += b"\x16\x03\x01" + len(part).to_bytes(2, "big") + part
        at += len(part)
        if at == len(MESSAGE):
            break
    return said


def segment(payload: bytes, at: int = 0) -> Packet:
    packet = decode(ip4(6, tcp(payload, seq=101 + at, flags=ACK | PSH), CLIENT, SERVER))
    assert isinstance(packet, Packet)
    return packet


def taken(said: bytes, *cuts: int) -> list[bytes]:
    """What comes of each segment, if it is cut here."""
    hello = Hello(101)
    ends = [0, *sorted(cuts), len(said)]
    return [hello.take(segment(said[a:b], a)) for a, b in pairwise(ends) if b > a]


@given(st.lists(st.integers(1, 200), max_size=20), st.lists(st.integers(1, 500), max_size=30))
def test_any_pieces_make_the_same(sizes: list[int], cuts: list[int]) -> None:
    said = records(*sizes)
    *before, last = taken(said, *(cut for cut in cuts if cut < len(said)))
    assert last == RECORD
    assert not any(before)


def test_byte_by_byte() -> None:
    assert taken(RECORD, *range(1, len(RECORD))) == [*[b""] * (len(RECORD) - 1), RECORD]


def test_what_is_sent_again_is_taken_once() -> None:
    hello = Hello(101)
    assert hello.take(segment(RECORD[:50])) == b""
    assert hello.take(segment(RECORD[:50])) == b""
    assert hello.take(segment(RECORD[:60])) == b""
    assert hello.take(segment(RECORD[40:], 40)) == RECORD


def test_what_is_behind_it_stays_there() -> None:
    assert taken(RECORD + b"more", 20)[-1] == RECORD + b"more"
    assert taken(records(7) + b"more", 20)[-1] == RECORD + b"more"


@pytest.mark.parametrize(
    "said",
    [
        b"\x16SSH-2.0-x",  # no version
        b"\x16\x03\x01\0\x04\x02\0\0\0",  # another message
        records(20)[:25] + b"\x17\x03\x01\0\x01x",  # another record within
    ],
)
def test_what_is_no_hello_is_not_kept(said: bytes) -> None:
    assert b"".join(taken(said, 1, 2)).endswith(said)


def test_missing_bytes_are_not_waited_for() -> None:
    hello = Hello(101)
    assert hello.take(segment(RECORD[:50])) == b""
    assert hello.take(segment(RECORD[60:], 60)) == RECORD[:50] + RECORD[60:]


def test_one_that_is_too_long_is_not_waited_for() -> None:
    said = b"\x16\x03\x01\xff\xff\x01\0\xff\xff" + bytes(MAX_HELLO)
    assert taken(said, 9, MAX_HELLO) == [b"", b"", said]


@pytest.mark.parametrize(
    ("payload", "may"),
    [
        (RECORD, False),
        (RECORD + b"more", False),
        (RECORD[:-1], True),
        (RECORD[:3], True),
        (records(100), True),
        (b"\x16", True),
        (b"", False),
        (b"GET / HTTP/1.1\r\n", False),
    ],
)
def test_only_one_in_pieces_has_to_be_put_together(payload: bytes, may: bool) -> None:
    assert starts_hello(payload) is may


def test_pieces_do_not_use_up_inspection() -> None:
    """Nor do copies of them; and nDPI hears nothing before all of it is there."""
    rig = Rig()
    rig.feed(ip4(6, tcp(seq=100, flags=SYN), CLIENT, SERVER))
    for at in range(len(RECORD) - 1):
        for _copy in range(2):
            rig.feed(ip4(6, tcp(RECORD[at : at + 1], seq=101 + at, flags=ACK | PSH), CLIENT, SERVER))
    flow = the_flow(rig)
    assert (flow.looking, flow.detected, flow.hello is None) == (True, False, False)
    rig.feed(ip4(6, tcp(RECORD[-1:], seq=100 + len(RECORD), flags=ACK | PSH), CLIENT, SERVER), at=1)
    assert flow.hello is None
    assert flow.last_seen == T0 + 1
