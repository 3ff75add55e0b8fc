"""Captures: every format that users have, and every way in which a file breaks."""

from __future__ import annotations

import gc
import gzip
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import T0, Packet, bench, dns, http_request, tcp_segment

from nedge.core.engine import Engine
from nedge.core.events import FlowEnded
from nedge.core.flow import EndReason
from nedge.replay import CaptureError, Replayed, frames, replay

# scapy leaves a file open that it cannot make sense of.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ETHERNET, RAW = 1, 101
MACS = b"\x02\0\0\0\0\x02\x02\0\0\0\0\x01"


@pytest.fixture(scope="module", autouse=True)
def _collected() -> Iterator[None]:
    """Files left open are closed here, not in somebody else's test."""
    yield
    gc.collect()


# Captures made here: nothing of scapy is used, since scapy reads them.


def frame(packet: Packet) -> bytes:
    return MACS + b"\x08\x00" + packet.data


PACKETS = dns("one.example", "two.example").packets
FRAMES = [(packet.time, frame(packet)) for packet in PACKETS]


def pcap(
    some: Iterable[tuple[float, bytes]] = FRAMES,
    *,
    order: str = "<",
    nano: bool = False,
    link: int = ETHERNET,
    wire: int = 0,
) -> bytes:
    """The classic format. `wire`: how much longer each frame was than what was captured."""
    unit = 10**9 if nano else 10**6
    data = struct.pack(order + "IHHIIII", 0xA1B23C4D if nano else 0xA1B2C3D4, 2, 4, 0, 0, 262144, link)
    for time, bytes_ in some:
        seconds, part = divmod(round(time * unit), unit)
        data += struct.pack(order + "IIII", seconds, part, len(bytes_), len(bytes_) + wire) + bytes_
    return data


def block(kind: int, body: bytes, order: str = "<") -> bytes:
    body += b"\0" * (-len(body) % 4)
    size = struct.pack(order + "I", len(body) + 12)
    return struct.pack(order + "I", kind) + size + body + size


def section(order: str = "<") -> bytes:
    return block(0x0A0D0D0A, struct.pack(order + "IHHq", 0x1A2B3C4D, 1, 0, -1), order)


def interface(link: int = ETHERNET, order: str = "<", options: bytes = b"") -> bytes:
    return block(1, struct.pack(order + "HHI", link, 0, 262144) + options, order)


def enhanced(time: float, bytes_: bytes, *, at: int = 0, unit: int = 10**6, order: str = "<") -> bytes:
    stamp = round(time * unit)
    head = struct.pack(order + "5I", at, stamp >> 32, stamp & 0xFFFFFFFF, len(bytes_), len(bytes_))
    return block(6, head + bytes_, order)


def pcapng(some: Iterable[tuple[float, bytes]] = FRAMES, *, order: str = "<", link: int = ETHERNET) -> bytes:
    blocks = [enhanced(time, bytes_, order=order) for time, bytes_ in some]
    return section(order) + interface(link, order) + b"".join(blocks)


def resolution(value: int, order: str = "<") -> bytes:
    """The option if_tsresol."""
    return struct.pack(order + "HHBxxx", 9, 1, value) + struct.pack(order + "HH", 0, 0)


# Running it


class Run:
    """What a replay of some bytes came to."""

    def __init__(self, data: bytes, directory: Path) -> None:
        path = directory / "capture"
        path.write_bytes(data)
        self.path = path
        self.error = ""
        self.flows: list[FlowEnded] = []
        with bench("", {}) as made:
            made.engine._sink = self._sink
            try:
                self.totals: Replayed = replay(path, made.engine)
            except CaptureError as error:
                self.error, self.totals = str(error), error.replayed
            self.counters = made.engine.counters
            assert list(made.engine.table) == []
        self.packets = self.counters.packets

    def _sink(self, event: Any) -> None:
        if isinstance(event, FlowEnded):
            self.flows.append(event)


class Light:
    """An engine that only counts: for the many broken files."""

    def __init__(self) -> None:
        self.packets: list[tuple[bytes, float]] = []
        self.finished = 0

    def packet(self, data: bytes, time: float, vlan: int, mac: bytes, wire: int) -> None:
        assert not self.finished
        self.packets.append((data, time))

    def finish(self, now: float) -> None:
        self.finished += 1


def light(data: bytes, path: Path) -> tuple[Light, str]:
    path.write_bytes(data)
    engine: Any = Light()
    try:
        totals = replay(path, engine)
        message = ""
    except CaptureError as error:
        totals, message = error.replayed, str(error)
        assert message.startswith(f"{path}: ")
        assert len(message.splitlines()) == 1
    assert engine.finished == 1
    assert totals.frames == len(engine.packets) + totals.not_ip
    return engine, message


# Whole files

WHOLE: dict[str, Callable[[], bytes]] = {
    "pcap, little endian": pcap,
    "pcap, big endian": lambda: pcap(order=">"),
    "pcap, nanoseconds": lambda: pcap(nano=True),
    "pcap, nanoseconds, big endian": lambda: pcap(nano=True, order=">"),
    # draft-ietf-opsawg-pcap: the link type has 16 bits, the rest says other things
    "pcap with an FCS length in the link type": lambda: pcap(link=ETHERNET | 0x24000000),
    "pcapng": pcapng,
    "pcapng, big endian": lambda: pcapng(order=">"),
    "pcapng, nanoseconds": lambda: section() + interface(options=resolution(9))
    + b"".join(enhanced(time, bytes_, unit=10**9) for time, bytes_ in FRAMES),
    "pcapng, powers of two": lambda: section() + interface(options=resolution(0x80 | 20))
    + b"".join(enhanced(time, bytes_, unit=2**20) for time, bytes_ in FRAMES),
    "pcapng with blocks nobody knows": lambda: section() + block(0xBAD, b"x" * 8) + interface()
    + b"".join(block(5, bytes(8)) + enhanced(*each) for each in FRAMES),
    "pcapng with two interfaces": lambda: section() + interface(RAW) + interface()
    + b"".join(enhanced(*each, at=1) for each in FRAMES),
    # Interfaces count from 0 in each section
    "pcapng with two sections": lambda: section() + interface(RAW)
    + b"".join(enhanced(time, bytes_[14:]) for time, bytes_ in FRAMES[:2])
    + section() + interface() + b"".join(enhanced(*each) for each in FRAMES[2:]),
    "pcapng with two byte orders": lambda: section() + interface()
    + b"".join(enhanced(*each) for each in FRAMES[:2])
    + section(">") + interface(order=">") + b"".join(enhanced(*each, order=">") for each in FRAMES[2:]),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
@pytest.mark.parametrize("kind", WHOLE)
def test_whole_files(kind: str, zipped: bool, tmp_path: Path) -> None:
    data = WHOLE[kind]()
    run = Run(gzip.compress(data) if zipped else data, tmp_path)
    assert (run.error, run.totals.frames, run.packets, run.totals.not_ip) == ("", 4, 4, 0)
    ((flow, _, reason),) = run.flows
    assert (flow.packets_sent, flow.packets_rcvd, reason) == (2, 2, EndReason.SHUTDOWN)
    assert abs(flow.first_seen - T0) < 2e-6
    assert abs(flow.last_seen - PACKETS[-1].time) < 2e-6
    assert abs(run.totals.last_time - PACKETS[-1].time) < 2e-6


def test_simple_packet_block(tmp_path: Path) -> None:
    """It has no time stamp."""
    body = struct.pack("<I", len(FRAMES[0][1])) + FRAMES[0][1]
    run = Run(section() + interface() + enhanced(*FRAMES[1]) + block(3, body), tmp_path)
    assert (run.error, run.packets, len(run.flows)) == ("", 2, 1)


@pytest.mark.parametrize(
    ("link", "head"),
    [
        (RAW, b""),
        (228, b""),
        (0, b"\2\0\0\0"),
        (108, b"\0\0\0\2"),
        (113, b"\0\0\0\1\0\6" + MACS[6:] + bytes(2) + b"\x08\0"),
        (276, b"\x08\0" + bytes(6) + b"\0\1\0\6" + MACS[6:] + bytes(2)),
    ],
)
def test_link_types(link: int, head: bytes, tmp_path: Path) -> None:
    some = [(time, head + bytes_[14:]) for time, bytes_ in FRAMES]
    for data in (pcap(some, link=link), pcapng(some, link=link)):
        run = Run(data, tmp_path)
        assert (run.error, run.packets, len(run.flows)) == ("", 4, 1)


def test_vlan_and_mac_reach_the_flow(tmp_path: Path) -> None:
    tagged = [(time, bytes_[:12] + b"\x81\x00\x00\x2a" + bytes_[12:]) for time, bytes_ in FRAMES]
    run = Run(pcap(tagged), tmp_path)
    flow = run.flows[0].flow
    assert (flow.vlan, flow.client.mac) == (42, MACS[6:])


def test_frames_that_are_not_ip(tmp_path: Path) -> None:
    arp = (T0, MACS + b"\x08\x06" + bytes(28))
    run = Run(pcap([arp, *FRAMES, arp, (T0, b"")]), tmp_path)
    assert (run.error, run.totals.frames, run.totals.not_ip, run.packets) == ("", 7, 3, 4)


def test_a_capture_without_frames(tmp_path: Path) -> None:
    for data in (pcap([]), pcapng([]), section(), gzip.compress(pcap([]))):
        run = Run(data, tmp_path)
        assert (run.error, run.totals.frames, run.flows) == ("", 0, [])


def test_snap_length(tmp_path: Path) -> None:
    """Frames that were cut while captured: lengths are those of the wire."""
    data = tcp_segment("10.0.0.1", "10.0.0.2", 1, 80, payload=b"x" * 1000)
    whole = MACS + b"\x08\x00" + data
    capture = pcap([(T0, whole[:80])], wire=len(whole) - 80)
    run = Run(capture, tmp_path)
    assert (run.error, run.counters.bytes, run.flows[0].flow.goodput) == ("", 1040, 1000)
    assert run.counters.malformed == {}


def test_times_that_go_back(tmp_path: Path) -> None:
    some = [(time, bytes_) for (time, _), (_, bytes_) in zip(reversed(FRAMES), FRAMES, strict=True)]
    run = Run(pcap(some), tmp_path)
    assert (run.error, run.packets) == ("", 4)
    flow = run.flows[0].flow
    assert flow.first_seen <= flow.last_seen


def test_expiry_by_the_captures_time(tmp_path: Path) -> None:
    some = [FRAMES[0], FRAMES[1], (T0 + 1000, FRAMES[2][1])]
    run = Run(pcap(some), tmp_path)
    assert [event.reason for event in run.flows] == [EndReason.IDLE, EndReason.SHUTDOWN]
    assert T0 + 60 <= run.flows[0].time <= T0 + 62


def test_times_beyond_any_calendar(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    path.write_bytes(section() + interface() + enhanced(2**63 / 10**6, FRAMES[0][1]))
    with bench("", {}) as made:
        replay(path, made.engine)
    assert len(made.judged.flows) == 1


def test_progress(tmp_path: Path) -> None:
    path = tmp_path / "capture"
    many = [(T0 + n / 1000, FRAMES[0][1]) for n in range(5000)]
    for data in (pcap(many), pcapng(many), gzip.compress(pcap(many))):
        path.write_bytes(data)
        seen: list[int] = []
        assert sum(1 for _ in frames(path, seen.append)) == 5000
        assert len(seen) >= 2
        assert seen == sorted(seen)
        assert 0 < seen[-1] <= len(data)


# Broken files


@pytest.mark.parametrize(
    ("data", "part"),
    [
        (b"", "empty"),
        (b"\n", "is not a pcap or pcapng capture"),
        (b"hello, this is a text file\n" * 10, "is not a pcap or pcapng capture"),
        (b"\x7fELF" + bytes(200), "is not a pcap or pcapng capture"),
        (b"\0" * 100, "is not a pcap or pcapng capture"),
        (gzip.compress(b"", mtime=0), "is not a pcap or pcapng capture"),
        (gzip.compress(b"some text" * 20, mtime=0), "is not a pcap or pcapng capture"),
        (b"\x1f\x8b", ""),
        (b"\x1f\x8b\x08" + bytes(20), ""),
        *[(pcap([])[:size], "") for size in range(1, 24)],
        *[(section()[:size], "") for size in range(1, 28)],
        (pcap(link=147), "link type 147 is not supported; supported are Ethernet"),
        (pcapng(link=147), "link type 147 is not supported"),
    ],
)
def test_what_is_no_capture(data: bytes, part: str, tmp_path: Path) -> None:
    engine, message = light(data, tmp_path / "capture")
    assert engine.packets == []
    assert part in message
    assert message


def borders(kind: str) -> list[int]:
    """Where a file may end without being broken: after its head, and after each frame."""
    if kind == "pcap":
        return [len(pcap(FRAMES[:count])) for count in range(len(FRAMES) + 1)]
    return [len(section()), *(len(pcapng(FRAMES[:count])) for count in range(len(FRAMES) + 1))]


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_truncated_at_every_byte(kind: str, tmp_path: Path) -> None:
    """All frames before the break are judged; the end of a file between two frames is no break."""
    data = pcap() if kind == "pcap" else pcapng()
    ends = borders(kind)
    whole = ends if kind == "pcap" else ends[1:]
    for size in range(whole[0], len(data)):
        engine, message = light(data[:size], tmp_path / "capture")
        complete = sum(end <= size for end in whole) - 1
        assert (size, len(engine.packets)) == (size, complete)
        assert bool(message) == (size not in ends), size
        if message:
            assert f"broken after frame {complete}" in message


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_truncated_gzip(kind: str, tmp_path: Path) -> None:
    data = gzip.compress(pcap() if kind == "pcap" else pcapng(), mtime=0)
    for size in range(1, len(data)):
        engine, message = light(data[:size], tmp_path / "capture")
        assert message, size
        assert len(engine.packets) <= len(FRAMES)


def test_truncated_gzip_is_judged_as_far_as_it_goes(tmp_path: Path) -> None:
    many = [
        (T0 + n / 1000, frame(Packet(0, FRAMES[0][1][14:] + bytes([n % 256, n // 256])))) for n in range(3000)
    ]
    data = gzip.compress(pcap(many), mtime=0)
    engine, message = light(data[: len(data) * 9 // 10], tmp_path / "capture")
    assert 1000 < len(engine.packets) < 3000
    assert "broken after frame" in message


@pytest.mark.parametrize("kind", ["pcap", "pcapng"])
def test_corrupted_gzip(kind: str, tmp_path: Path) -> None:
    """Each byte in turn; what gzip's checksums do not notice is no break."""
    original = pcap() if kind == "pcap" else pcapng()
    data = gzip.compress(original, mtime=0)
    noticed = 0
    for at in range(len(data)):
        engine, message = light(data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :], tmp_path / "capture")
        assert len(engine.packets) <= 2 * len(FRAMES)
        noticed += bool(message)
    assert noticed > len(data) * 0.8


def test_text_behind_a_capture(tmp_path: Path) -> None:
    engine, message = light(pcap() + b"and then some text that is no frame", tmp_path / "capture")
    assert len(engine.packets) == 4
    assert "broken after frame 4" in message


@pytest.mark.parametrize("length", [0x40001, 0x7FFFFFFF, 0xFFFFFFFF])
def test_absurd_frame_length(length: int, tmp_path: Path) -> None:
    head = struct.pack("<IIII", T0, 0, length, length)
    engine, message = light(pcap(FRAMES[:2]) + head + bytes(1000), tmp_path / "capture")
    assert len(engine.packets) == 2
    assert "broken after frame 2" in message
    # A pcapng block cannot be read without its end.
    block_head = struct.pack("<II", 6, length & ~3)
    engine, message = light(pcapng(FRAMES[:2]) + block_head + bytes(1000), tmp_path / "capture")
    assert len(engine.packets) == 2
    assert "broken after frame 2" in message


def test_frame_longer_than_any(tmp_path: Path) -> None:
    """The whole frame is there, but nothing captures such frames: the file stops making sense."""
    huge = (T0, FRAMES[0][1] + bytes(0x40001))
    engine, message = light(pcap([*FRAMES[:2], huge, FRAMES[3]]), tmp_path / "capture")
    assert len(engine.packets) == 2
    assert "broken after frame 2" in message
    assert "ends" not in message


@pytest.mark.parametrize(
    "damage",
    [
        block(6, struct.pack("<5I", 0, 0, 0, 60, 60)[:16]),  # too short for its head
        enhanced(*FRAMES[0])[:-4] + b"\xff\xff\xff\x00",  # the length at the end is another
        struct.pack("<III", 6, 8, 8),  # a length below the smallest
        enhanced(*FRAMES[0], at=7),  # an interface that was not described
        block(6, struct.pack("<5I", 0, 0, 0, 5000, 5000) + bytes(60)),  # a frame longer than its block
    ],
    ids=["short block", "other length", "small length", "unknown interface", "frame beyond its block"],
)
def test_damaged_pcapng_blocks(damage: bytes, tmp_path: Path) -> None:
    engine, message = light(pcapng(FRAMES[:2]) + damage + enhanced(*FRAMES[3]), tmp_path / "capture")
    assert len(engine.packets) == 2
    assert "broken after frame 2" in message


def test_unsupported_interface_of_several(tmp_path: Path) -> None:
    data = section() + interface() + interface(147) + enhanced(*FRAMES[0]) + enhanced(*FRAMES[1], at=1)
    engine, message = light(data, tmp_path / "capture")
    assert len(engine.packets) == 1
    assert "broken after frame 1: link type 147 is not supported" in message


def test_missing_and_unreadable(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        engine: Any = Light()
        with pytest.raises(CaptureError, match="cannot be read: "):
            replay(path, engine)
        assert engine.finished == 1


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.sampled_from(
        [pcap(), pcap(order=">", nano=True), pcapng(), pcapng(order=">"), WHOLE["pcapng, nanoseconds"]()]
    ),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    st.integers(0, 600),
    st.binary(max_size=20),
)
def test_any_damage(data: bytes, changes: list[tuple[int, int]], size: int, tail: bytes) -> None:
    """Nothing but CaptureError, and never more frames than there can be."""
    damaged = bytearray(data)
    for at, value in changes:
        damaged[at % len(data)] = value
    with tempfile.TemporaryDirectory() as directory:
        engine, _ = light(bytes(damaged[:size]) + tail, Path(directory, "capture"))
    assert len(engine.packets) <= 30


def test_flows_before_the_break_are_complete(tmp_path: Path) -> None:
    run = Run(pcap()[:-5], tmp_path)
    assert run.error.endswith(f"the file ends inside a frame of {len(FRAMES[3][1])} bytes")
    ((flow, time, reason),) = run.flows
    assert (flow.packets, reason) == (3, EndReason.SHUTDOWN)
    assert (run.totals.frames, time) == (3, PACKETS[2].time)


def test_an_engine_that_fails_is_not_a_broken_capture(tmp_path: Path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """An error of ours is not blamed on the file."""
    path = tmp_path / "capture"
    path.write_bytes(pcap())

    def fail(*arguments: Any) -> None:
        raise ValueError("ours")

    with bench("", {}) as made:
        monkeypatch.setattr(Engine, "packet", fail)
        with pytest.raises(ValueError, match="ours"):
            replay(path, made.engine)


def test_http_request_is_in_the_kit() -> None:
    assert http_request("a").startswith(b"GET /")
