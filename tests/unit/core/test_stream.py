"""TCP segments put in order (RFC 9293: sequence numbers count modulo 2^32)."""

from __future__ import annotations

from collections import Counter

import pytest
from core_kit import ACK, FIN, PSH, RST, SYN, segment
from hypothesis import given, settings
from hypothesis import strategies as st

from nedge.core.packet import Packet
from nedge.core.stream import MAX_HELD, MAX_HELD_INLINE, Disorder, Stream

ISN = 1000


def opened(isn: int = ISN) -> Stream:
    """A stream whose client has sent its SYN."""
    stream = Stream()
    first = segment(seq=isn, flags=SYN)
    assert stream.order(first, True) == (first,)
    return stream


def feed(stream: Stream, *packets: Packet, from_client: bool = True) -> list[Packet]:
    """All that comes out."""
    return [out for packet in packets for out in stream.order(packet, from_client)]


def parts(data: bytes, size: int, isn: int = ISN) -> list[Packet]:
    """Data cut into segments, behind a SYN."""
    return [segment(data[at : at + size], isn + 1 + at, PSH | ACK) for at in range(0, len(data), size)]


def payload(packets: list[Packet]) -> bytes:
    return b"".join(packet.payload_bytes() for packet in packets)


def test_in_order() -> None:
    a, b, c = parts(b"aabbcc", 2)
    stream = opened()
    for packet in (a, b, c):
        assert stream.order(packet, True) == (packet,)


def test_swapped() -> None:
    a, b, c = parts(b"aabbcc", 2)
    stream = opened()
    assert stream.order(b, True) == ()
    assert stream.order(c, True) == ()
    assert stream.order(a, True) == (a, b, c)


def test_reversed() -> None:
    segments = parts(b"abcdefgh", 1)
    assert feed(opened(), *reversed(segments)) == segments


def test_what_came_again_or_too_early_is_counted() -> None:
    a, b, c, d = parts(b"aabbccdd", 2)
    stream = opened()
    assert stream.disorder == ((0, 0), (0, 0))
    feed(stream, a, a, c, b, d, b, segment(seq=ISN + 9))
    assert stream.disorder == Disorder(of_server=(0, 0), of_client=(2, 1))
    reply, more = segment(b"xx", 5001, PSH | ACK), segment(b"yy", 5003, PSH | ACK)
    feed(stream, segment(seq=5000, flags=SYN | ACK), more, reply, more, from_client=False)
    assert stream.disorder == Disorder(of_server=(1, 1), of_client=(2, 1))


def test_two_gaps() -> None:
    a, b, c, d, e = parts(b"abcde", 1)
    stream = opened()
    assert feed(stream, b, d) == []
    assert stream.order(a, True) == (a, b)
    assert stream.order(e, True) == ()
    assert stream.order(c, True) == (c, d, e)


def test_retransmission_goes_straight_through() -> None:
    a, b = parts(b"aabb", 2)
    assert feed(opened(), a, a, b, a, b) == [a, a, b, a, b]


def test_retransmission_does_not_move_the_stream_back() -> None:
    a, b, c = parts(b"aabbcc", 2)
    stream = opened()
    feed(stream, a, b, a)
    assert stream.order(c, True) == (c,)


def test_overlap_with_new_bytes_fills_the_gap() -> None:
    a, _, c = parts(b"aabbcc", 2)
    both = segment(b"aabb", ISN + 1)
    stream = opened()
    assert feed(stream, a, c) == [a]
    out = feed(stream, both)
    assert [packet.payload_bytes() for packet in out] == [b"bb", b"cc"]
    assert [(packet.seq, packet.payload_length) for packet in out] == [(ISN + 3, 2), (ISN + 5, 2)]


def test_overlap_partly_into_what_waits() -> None:
    a, _, c, d = parts(b"aabbccdd", 2)
    wide = segment(b"bbc", ISN + 3)
    stream = opened()
    assert feed(stream, a, c) == [a]
    out = feed(stream, wide)
    assert out[0] is wide
    assert payload(out) == b"bbcc"
    assert stream.order(d, True) == (d,)


def test_both_directions_are_apart() -> None:
    a, b = parts(b"aabb", 2)
    x, y = parts(b"xxyy", 2, isn=9_000_000)
    stream = opened()
    assert feed(stream, segment(seq=9_000_000, flags=SYN | ACK), from_client=False)
    assert feed(stream, b) == []
    assert feed(stream, y, from_client=False) == []
    assert feed(stream, x, from_client=False) == [x, y]
    assert feed(stream, a) == [a, b]


def test_segments_without_payload_pass_and_change_nothing() -> None:
    a, b = parts(b"aabb", 2)
    stream = opened()
    assert feed(stream, b) == []
    for number in (ISN + 1, ISN + 3, ISN + 5, ISN + 50000, ISN - 7):
        for flags in (ACK, ACK | FIN, RST):
            bare = segment(seq=number, flags=flags)
            assert stream.order(bare, True) == (bare,)
    assert stream.order(a, True) == (a, b)


def test_mid_stream_starts_with_what_comes_first() -> None:
    a, b, c = parts(b"aabbcc", 2)
    stream = Stream()
    assert feed(stream, b, c) == [b, c]
    assert feed(stream, a) == [a]  # older: as a retransmission


def test_syn_with_data() -> None:
    """RFC 7413: data on a SYN counts from the number after the SYN's own."""
    stream = Stream()
    first = segment(b"early", ISN, SYN)
    late = segment(b"late", ISN + 6)
    assert feed(stream, first, late) == [first, late]


def test_retransmitted_syn() -> None:
    a, b, c = parts(b"aabbcc", 2)
    stream = opened()
    assert feed(stream, a, b) == [a, b]
    feed(stream, segment(seq=ISN, flags=SYN))
    assert feed(stream, c) == [c]


@pytest.mark.parametrize("before", [0, 1, 2, 3, 4, 5, 6])
def test_wraparound(before: int) -> None:
    isn = 2**32 - 1 - before
    a, b, c = parts(b"aabbcc", 2, isn)
    assert feed(opened(isn), a, b, c) == [a, b, c]
    assert feed(opened(isn), c, b, a) == [a, b, c]
    assert feed(opened(isn), a, c, a, b) == [a, a, b, c]


def test_gap_that_never_fills() -> None:
    """One more than are held: all of them go on, in order, and the stream with them."""
    segments = parts(bytes(range(40)), 1)
    stream = opened()
    held = segments[1 : MAX_HELD + 1]
    assert feed(stream, *reversed(held)) == []
    last = segments[MAX_HELD + 1]
    assert feed(stream, last) == [*held, last]
    assert feed(stream, *segments[MAX_HELD + 2 :]) == segments[MAX_HELD + 2 :]
    assert feed(stream, segments[0]) == [segments[0]]  # at last; nobody waits for it


def test_gap_given_up_with_overlapping_segments() -> None:
    wide = segment(bytes(100), ISN + 11)
    inside = [segment(b"x", ISN + 12 + number) for number in range(MAX_HELD)]
    stream = opened()
    assert len(feed(stream, wide, *inside)) == MAX_HELD + 1
    following = segment(b"next", ISN + 111)
    assert feed(stream, following) == [following]


def test_flush_gives_what_waits_in_order_the_clients_first() -> None:
    a, b, c, d = parts(b"aabbccdd", 2)
    x, y, z = parts(b"xxyyzz", 2, isn=7)
    stream = opened()
    feed(stream, segment(seq=7, flags=SYN | ACK), from_client=False)
    feed(stream, d, b)
    feed(stream, z, y, from_client=False)
    assert list(stream.flush()) == [b, d, y, z]
    assert stream.flush() == ()
    assert (a, c, x) is not None


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(1, 5), min_size=1, max_size=MAX_HELD + 1),
    st.randoms(use_true_random=False),
)
def test_any_permutation_comes_out_in_order_each_exactly_once(isn: int, sizes: list[int], random) -> None:  # type: ignore[no-untyped-def]
    """Within the limit of what is held, whatever the order."""
    segments, at = [], isn + 1
    for number, size in enumerate(sizes):
        segments.append(segment(bytes([number]) * size, at))
        at += size
    shuffled = segments.copy()
    random.shuffle(shuffled)
    assert feed(opened(isn & 0xFFFFFFFF), *shuffled) == segments


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(-20, 60), st.integers(0, 20), st.sampled_from([ACK, SYN, FIN | ACK]), st.booleans()
        ),
        max_size=60,
    )
)
def test_nothing_is_lost_or_doubled_whatever_comes(steps: list[tuple[int, int, int, bool]]) -> None:
    stream = Stream()
    came: list[Packet] = []
    out: list[Packet] = []
    for at, size, flags, from_client in steps:
        packet = segment(bytes(size), at & 0xFFFFFFFF, flags)
        came.append(packet)
        out += stream.order(packet, from_client)
        assert len(came) - len(out) <= 2 * MAX_HELD
    out += stream.flush()
    assert not Counter(map(ends_at, out)) - Counter(map(ends_at, came))
    # Copies of what waits may be left out, so not each packet comes, but each one's last byte.
    assert {(ends_at(packet) - 1) & 0xFFFFFFFF for packet in came if packet.payload_length} <= bytes_of(out)


def ends_at(packet: Packet) -> int:
    return (packet.seq + packet.payload_length) & 0xFFFFFFFF


def bytes_of(packets: list[Packet]) -> set[int]:
    """The numbers of their bytes."""
    return {(packet.seq + n) & 0xFFFFFFFF for packet in packets for n in range(packet.payload_length)}


def test_copies_of_what_waits_do_not_give_a_gap_up() -> None:
    stream = opened()
    segments = parts(bytes(range(100)), 10)
    assert feed(stream, *segments[1:], *segments[1:] * MAX_HELD) == []
    assert feed(stream, segments[0]) == segments


def test_where_packets_pass_by_more_of_them_wait() -> None:
    stream = opened()
    segments = parts(bytes(range(100)), 1)
    for packet in reversed(segments[1:]):
        assert stream.order(packet, True, MAX_HELD_INLINE) == ()
    assert list(stream.order(segments[0], True, MAX_HELD_INLINE)) == segments


def test_bytes_come_out_whole() -> None:
    data = bytes(range(256)) * 4
    segments = parts(data, 100)
    shuffled = segments[5:] + segments[:5]
    assert payload(feed(opened(), *shuffled)) == data
