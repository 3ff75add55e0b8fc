"""Verdicts in runs, and the kernel's counters."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from nedge.kernel import queue
from nedge.kernel.queue import BATCH, REWRITE, PacketQueue, QueueStats, parse_stats

ACCEPT, DROP, REPEAT = 1, 0, 4


class FakePacket:
    def __init__(self, number: int, data: bytes, mac: bytes | None) -> None:
        self.id, self._data, self._mac = number, data, mac
        self.physindev = 7
        self.content: bytes | None = None
        """What it was accepted with."""

    def set_payload(self, content: bytes) -> None:
        self.content = content

    def accept(self) -> None:
        assert self.content is not None

    def get_payload(self) -> bytes:
        return self._data

    def get_hw(self) -> bytes | None:
        return self._mac

    def get_mark(self) -> int:
        return 0x5


class FakeNetfilterQueue:
    """Feeds packets to the callback, as the real one does; forgets them at an exception, as that does not."""

    def __init__(self) -> None:
        self.waiting: list[FakePacket] = []
        self.ours, self.kernel = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.kernel.setblocking(False)
        self.callback: Callable[[FakePacket], None] | None = None
        self.sends = 0

    def bind(self, number: int, callback: Callable[[FakePacket], None], **options: Any) -> None:
        assert options["range"] <= 2048
        self.callback = callback

    def get_fd(self) -> int:
        return self.ours.fileno()

    def run(self, block: bool) -> None:
        assert not block
        while self.waiting and self.callback:
            self.callback(self.waiting.pop(0))

    def unbind(self) -> None:
        self.callback = None
        self.ours.close()

    def sent(self) -> Iterator[tuple[int, ...]]:
        """(verdict, id of the last packet, mark if there is one) of each message to the kernel."""
        self.sends = 0
        try:
            while messages := self.kernel.recv(40 * BATCH):
                self.sends += 1
                while messages:
                    (length,) = struct.unpack_from("=I", messages)
                    message, messages = messages[:length], messages[length:]
                    if length == 40:
                        assert struct.unpack_from("=HH", message, 32) == (8, 3)  # NFQA_MARK
                        yield *struct.unpack_from("!II", message, 24), *struct.unpack("!I", message[36:])
                    else:
                        assert len(message) == 32
                        yield struct.unpack("!II", message[24:])
        except BlockingIOError:
            return


class Bench:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, fail_open: bool = True) -> None:
        self.fake = FakeNetfilterQueue()
        self.errors: list[BaseException] = []
        self.judged: list[tuple[bytes, bytes]] = []
        self.content = b"changed"
        monkeypatch.setattr(queue, "NetfilterQueue", lambda: self.fake)
        monkeypatch.setattr(queue, "read_stats", dict)
        monkeypatch.setattr(PacketQueue, "_set_flags", lambda self, flags: None)
        self.queue = PacketQueue(
            5,
            self.judge,
            length=100,
            fail_open=fail_open,
            on_error=self.errors.append,
            mark_mask=0xFFFFFF00,
            rewritten=lambda: self.content,
        )
        self.number = 0

    def judge(self, data: bytes, mac: bytes, vlan: int, tracked: bool, port: int) -> int:
        self.judged.append((data, mac))
        if data == b"raise":
            raise SystemExit("out of the judge")
        if data == b"change":
            return REWRITE
        return 2 if data == b"bad" else int(data, 16) if data.startswith(b"0x") else 0

    def arrive(self, *packets: bytes, mac: bytes | None = None) -> None:
        for data in packets:
            self.number += 1
            self.fake.waiting.append(FakePacket(self.number, data, mac))

    def drain(self) -> list[tuple[int, int]]:
        self.queue.drain()
        return list(self.fake.sent())

    def close(self) -> None:
        self.queue.close()
        self.fake.kernel.close()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    bench = Bench(monkeypatch)
    yield bench
    bench.close()


def test_packets_in_a_row_share_a_verdict_and_stay_in_order(bench: Bench) -> None:
    bench.arrive(b"ok", b"ok", b"bad", b"bad", b"ok", b"bad")
    assert bench.drain() == [(ACCEPT, 2), (DROP, 4), (ACCEPT, 5), (DROP, 6)]
    assert bench.fake.sends == 1
    assert bench.drain() == []


def test_marks_go_with_their_packets(bench: Bench) -> None:
    """They replace our bits (here: all but the lowest byte) of the mark that was there."""
    bench.arrive(b"0x100", b"0x100", b"ok", b"0x200", b"bad", b"0x100")
    assert bench.drain() == [
        (REPEAT, 2, 0x105),
        (ACCEPT, 3),
        (REPEAT, 4, 0x205),
        (DROP, 5),
        (REPEAT, 6, 0x105),
    ]
    assert bench.fake.sends == 1


def test_a_drain_is_bounded(bench: Bench) -> None:
    bench.arrive(*[b"ok"] * (BATCH + 3))
    assert bench.drain() == [(ACCEPT, BATCH)]
    assert bench.drain() == [(ACCEPT, BATCH + 3)]


def test_full_batches_leave_nothing_behind(bench: Bench) -> None:
    """One exception ends them all: its traceback, and the frames in it, would grow with each."""
    for _ in range(3):
        bench.arrive(*[b"ok"] * BATCH)
        bench.drain()
    assert bench.queue._batch_done.__traceback__ is None


def test_the_judge_gets_plain_values(bench: Bench) -> None:
    bench.arrive(b"a", mac=b"\1\2\3\4\5\6\0\0")
    bench.arrive(b"b")
    bench.drain()
    assert bench.judged == [(b"a", b"\1\2\3\4\5\6"), (b"b", b"")]


@pytest.mark.parametrize(("fail_open", "verdict"), [(True, ACCEPT), (False, DROP)])
def test_an_exception_costs_no_packet_its_verdict(
    monkeypatch: pytest.MonkeyPatch, fail_open: bool, verdict: int
) -> None:
    bench = Bench(monkeypatch, fail_open=fail_open)
    bench.arrive(b"raise", b"bad", b"ok")
    assert bench.drain() == [(verdict, 1), (DROP, 2), (ACCEPT, 3)]
    assert [str(error) for error in bench.errors] == ["out of the judge"]
    bench.close()


def test_a_packet_goes_on_with_another_content_behind_those_before_it(bench: Bench) -> None:
    sent: list[tuple[int, ...]] = []
    bench.arrive(b"ok", b"bad", b"change", b"bad")
    changed = bench.fake.waiting[2]
    changed.accept = lambda: sent.extend(bench.fake.sent())  # type: ignore[method-assign]
    assert bench.drain() == [(DROP, 4)]
    assert (changed.content, sent) == (b"changed", [(ACCEPT, 1), (DROP, 2)])
    bench.content = b""  # there is none: it goes on as it is
    bench.arrive(b"change")
    assert bench.drain() == [(ACCEPT, 5)]


def test_the_kernels_counters() -> None:
    text = "    0   6420     3 2  2048     7     1       16  1\n   71 4294963 0 2 2048 0 0 0 1\n"
    assert parse_stats(text) == {
        0: QueueStats(0, 6420, 3, 7, 1, 16),
        71: QueueStats(71, 4294963, 0, 0, 0, 0),
    }
    assert parse_stats("") == {}
