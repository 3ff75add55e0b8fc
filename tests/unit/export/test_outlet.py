"""Events on their way out of a worker: batches of whole lines, and never a wait."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from kit import T0, Bench, bench, dns, ping
from structlog.testing import capture_logs

from nedge.core.verdict import Action, Rule
from nedge.export import outlet as module
from nedge.export.outlet import Outlet, channel

BLOCKING = {
    "block": """
    from nedge.scripts import *
    def protocolDetected(flow, now, conf):
        if flow.getHostName() == "bad.example":
            flow.triggerStatus(status_types.status_web_mining_detected, "", 100, 20, 3)
    """
}


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    writer, reader = channel()
    yield writer, reader
    writer.close()
    reader.close()


@pytest.fixture
def made() -> Iterator[Bench]:
    with bench("", BLOCKING) as made:
        yield made


def outlet_of(made: Bench, writer: socket.socket, **options: Any) -> Outlet:
    outlet = Outlet(writer, made.assembly.classifier, **options)
    made.engine._sink = outlet
    return outlet


def received(reader: socket.socket) -> list[bytes]:
    batches = []
    while True:
        try:
            batches.append(reader.recv(1 << 20))
        except BlockingIOError:
            return batches


def kinds(batches: list[bytes]) -> list[str]:
    assert all(batch.endswith(b"\n") for batch in batches)
    return [json.loads(line)["event_type"] for batch in batches for line in batch.splitlines()]


def test_events_are_handed_over_together(made: Bench, ends: tuple[socket.socket, socket.socket]) -> None:
    writer, reader = ends
    outlet = outlet_of(made, writer)
    made.feed(dns("bad.example").packets)
    made.engine.finish(T0 + 1)
    assert received(reader) == []
    outlet.flush()
    batches = received(reader)
    assert (len(batches), kinds(batches)) == (1, ["alert", "drop", "flow"])
    outlet.flush()
    assert received(reader) == [], "once is enough"
    assert outlet.lost == 0


def test_a_full_batch_does_not_wait(
    made: Bench, ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH", 1)
    outlet_of(made, ends[0])
    made.feed(dns("bad.example").packets)
    assert len(received(ends[1])) == 2


def test_flows_are_counted(made: Bench, ends: tuple[socket.socket, socket.socket]) -> None:
    outlet = outlet_of(made, ends[0], wanted=False)
    made.feed(dns("bad.example").packets + dns("good.example", sport=5).packets + ping())
    made.engine.finish(T0 + 1)
    outlet.flush()
    assert received(ends[1]) == [], "nobody wants events"
    assert outlet.ended == {
        (Action.DROP, Rule.FLOW_SCORE): 1,
        (Action.PASS, Rule.CLEAN): 2,
    }
    assert outlet.packets == 4 + len(ping())
    assert outlet.offloaded == 0


def fill(outlet: Outlet, count: int, size: int = 1000) -> None:
    for number in range(count):
        line = b"%09d" % number + b"x" * (size - 10) + b"\n"
        outlet._lines.append(line)
        outlet._size += len(line)
        if outlet._size >= module.BATCH:
            outlet.flush()
    outlet.flush()


def test_a_reader_that_takes_nothing_costs_the_oldest(
    ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel holds some, we hold some; all else is lost, counted, and nobody waited for it."""
    monkeypatch.setattr(module, "MAX_WAITING", 1_000_000)
    writer, reader = ends
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    outlet = Outlet(writer, None)  # type: ignore[arg-type]
    total = 5000
    start = time.thread_time()
    with capture_logs() as logs:
        fill(outlet, total)
    assert time.thread_time() - start < 5
    assert outlet.lost > 3000
    assert 0 < len(logs) < 14
    assert logs[-1]["event"] == "events_lost"
    lines = []
    for _ in range(100):
        lines += [line for batch in received(reader) for line in batch.splitlines()]
        outlet.flush()
    numbers = [int(line[:9]) for line in lines]
    assert len(numbers) + outlet.lost == total
    assert numbers == sorted(numbers)
    assert numbers[-1] == total - 1, "the latest are there"
    assert all(len(line) == 999 for line in lines)
    before = outlet.lost
    fill(outlet, 10)
    assert len(received(reader)) == 1
    assert outlet.lost == before


def test_patience_at_the_end(ends: tuple[socket.socket, socket.socket]) -> None:
    writer, reader = ends
    writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    outlet = Outlet(writer, None)  # type: ignore[arg-type]
    outlet.be_patient(30)
    taken: list[bytes] = []

    def take() -> None:
        reader.setblocking(True)
        while sum(batch.count(b"\n") for batch in taken) < 20_000:
            taken.append(reader.recv(1 << 20))

    thread = threading.Thread(target=take)
    thread.start()
    fill(outlet, 20_000)
    thread.join(30)
    assert outlet.lost == 0
    assert b"".join(taken).count(b"\n") == 20_000


def test_patience_ends(ends: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 100_000)
    ends[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 200_000)
    outlet = Outlet(ends[0], None)  # type: ignore[arg-type]
    outlet.be_patient(0.3)
    start = time.monotonic()
    with capture_logs():
        fill(outlet, 3000)
    assert time.monotonic() - start >= 0.3
    assert outlet.lost > 0


def test_nobody_is_there_to_read(ends: tuple[socket.socket, socket.socket]) -> None:
    writer, reader = ends
    reader.close()
    outlet = Outlet(writer, None)  # type: ignore[arg-type]
    with capture_logs() as logs:
        fill(outlet, 10)
    assert outlet.lost == 10
    assert [entry["event"] for entry in logs] == ["events_lost"]


def test_the_kernel_holds_megabytes(ends: tuple[socket.socket, socket.socket]) -> None:
    """Enough for a reader that is being replaced."""
    outlet = Outlet(ends[0], None)  # type: ignore[arg-type]
    fill(outlet, 4000)
    assert (outlet.lost, outlet._waiting_size) == (0, 0)


def test_what_is_left_at_the_end_is_lost_and_counted(
    made: Bench, ends: tuple[socket.socket, socket.socket]
) -> None:
    writer, _reader = ends
    outlet = outlet_of(made, writer)
    while True:
        try:
            writer.send(b"x" * 60_000)
        except BlockingIOError:
            break
    made.feed(dns("good.example").packets)
    made.engine.finish(T0 + 100)
    with capture_logs():
        outlet.close()
    assert outlet.lost == 1
