"""The process that writes, and how the supervisor keeps it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit import dns, judge, merge
from structlog.testing import capture_logs

from nedge.config import Config, Eve, History
from nedge.export.eve import to_json
from nedge.export.files import EventFile
from nedge.export.snapshot import Snapshot, stats_record
from nedge.gateway import exporting as module
from nedge.gateway.exporting import ExporterProcess
from nedge.gateway.signals import STOP_SIGNALS

LINE = b'{"event_type":"flow"}\n'


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


def tick(made: ExporterProcess, **figures: int) -> None:
    """What the supervisor does again and again."""
    worker = {"number": 0, "pid": 77, "ready": True, "silent": 0.1, "figures": figures, "measures": {}}
    supervisor: Any = SimpleNamespace(restarts=3, describe=lambda: [worker], host_scores=list)
    made.tick(supervisor, lambda: figures | made.totals())


def content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


@contextmanager
def running(config: Config) -> Iterator[ExporterProcess]:
    made = ExporterProcess(config)
    made.start()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "eve.json"


def eve(path: Path, **options: Any) -> Config:
    return Config(eve=Eve(path=path, **{"stats_seconds": 0, **options}))


def test_what_workers_write_is_in_the_file(path: Path) -> None:
    with running(eve(path)) as made:
        for number in range(3):
            made.writer.send(LINE * (number + 1))
        until(lambda: content(path) == LINE * 6)


def test_all_that_is_in_the_channel_is_written_at_the_end(path: Path) -> None:
    with running(eve(path)) as made:
        for _ in range(100):
            made.writer.send(LINE * 500)
    assert content(path) == LINE * 50_000
    assert made.figures["events_written"] == 50_000


def test_nothing_to_write_no_process(path: Path) -> None:
    with running(Config()) as made:
        tick(made)
        assert not made._pid
    with running(eve(path)) as made:
        assert made._pid


def test_signals_to_all_processes_do_not_end_it(path: Path) -> None:
    """Those who stop nedge may signal all processes there are; workers write until they end."""
    with running(eve(path)) as made:
        until(path.exists)
        for number in STOP_SIGNALS:
            os.kill(made._pid, number)
        made.writer.send(LINE)
        until(lambda: content(path) == LINE)


def test_it_is_replaced(path: Path) -> None:
    with running(eve(path)) as made, capture_logs() as logs:
        made.writer.send(LINE)
        until(lambda: content(path) == LINE)
        until(lambda: tick(made) or made.figures.get("events_written") == 1)
        pid = made._pid
        os.kill(pid, signal.SIGKILL)
        made.writer.send(LINE)  # nobody reads it now: it waits in the channel
        until(lambda: tick(made) or made._pid not in (0, pid))
        until(lambda: content(path) == LINE * 2)
        until(lambda: tick(made) or made.figures["events_written"] == 2)
        assert made.restarts == 1
    assert [entry["event"] for entry in logs if entry["log_level"] == "error"] == ["exporter_restarted"]


def test_one_that_hangs_is_replaced(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HUNG_SECONDS", 3.0)
    with running(eve(path)) as made, capture_logs():
        until(path.exists)
        pid = made._pid
        os.kill(pid, signal.SIGSTOP)
        made.writer.send(LINE)
        until(lambda: tick(made) or made._pid not in (0, pid))
        until(lambda: content(path) == LINE)


def test_one_that_does_not_end_is_killed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STOP_SECONDS", 0.3)
    made = ExporterProcess(eve(path))
    made.start()
    until(path.exists)
    os.kill(made._pid, signal.SIGSTOP)
    with capture_logs() as logs:
        made.close()
    assert "exporter_killed" in [entry["event"] for entry in logs]


def test_what_nobody_was_left_to_write_is_counted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the channel when the exporter is killed at the end."""
    monkeypatch.setattr(module, "STOP_SECONDS", 0.3)
    made = ExporterProcess(eve(path))
    made.start()
    made.writer.send(LINE)
    until(lambda: content(path) == LINE)
    until(lambda: tick(made) or made.figures.get("events_written") == 1)
    os.kill(made._pid, signal.SIGSTOP)
    until(lambda: _state(made._pid) == "T")
    for _ in range(3):
        made.writer.send(LINE * 7)
    with capture_logs() as logs:
        made.close()
    assert [(entry["event"], entry.get("lost")) for entry in logs if entry["log_level"] == "error"] == [
        ("exporter_killed", None),
        ("events_lost", 21),
    ]
    assert made.totals()["events_lost"] == 21


@pytest.mark.parametrize("at_the_end", [True, False])
def test_what_a_killed_exporter_had_in_its_hands_is_counted(
    path: Path, monkeypatch: pytest.MonkeyPatch, at_the_end: bool
) -> None:
    """A write that hangs, as on a server that is away: what was taken out of the channel is lost with it."""
    monkeypatch.setattr(module, "STOP_SECONDS", 0.3)
    monkeypatch.setattr(EventFile, "write", lambda *_: time.sleep(600))
    made = ExporterProcess(eve(path))
    made.start()
    made.writer.send(LINE * 7)
    until(lambda: made._held[0] == 7)
    with capture_logs():
        if not at_the_end:
            os.kill(made._pid, signal.SIGKILL)
            until(lambda: tick(made) or made.restarts)
            assert made.totals()["events_lost"] == 7
        made.close()
    assert made.totals()["events_lost"] == 7


def test_rows_that_a_killed_exporter_had_in_its_hands_are_counted(tmp_path: Path) -> None:
    """It waits for the file, as another program writes to it."""
    path = tmp_path / "history.db"
    events = judge(merge(dns("a.example").packets, dns("b.example", sport=5).packets), scripts={}).events
    with running(Config(history=History(path=path))) as made, capture_logs():
        other = sqlite3.connect(path, isolation_level=None)
        until(lambda: other.execute("PRAGMA user_version").fetchone()[0])
        other.execute("BEGIN IMMEDIATE")
        made.writer.send(b"".join(map(to_json, events)))
        until(lambda: made._held[1] == 2)
        os.kill(made._pid, signal.SIGKILL)
        until(lambda: tick(made) or made.restarts)
        other.close()
        assert made.totals()["history_lost"] == 2


def _state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def test_a_file_that_was_moved(path: Path) -> None:
    with running(eve(path)) as made:
        made.writer.send(LINE)
        until(lambda: content(path) == LINE)
        path.rename(path.with_name("old"))
        made.reopen()
        until(path.exists)
        made.writer.send(LINE * 2)
        until(lambda: content(path) == LINE * 2)
    assert content(path.with_name("old")) == LINE


def test_another_configuration(path: Path) -> None:
    other = path.with_name("other.json")
    with running(eve(path)) as made:
        made.writer.send(LINE)
        made.renew(eve(other))
        made.writer.send(LINE * 2)
        until(lambda: content(other) == LINE * 2)
        assert content(path) == LINE
        made.renew(Config())
        assert not made._pid
        made.renew(eve(path))
        made.writer.send(LINE)
        until(lambda: content(path) == LINE * 2)
        pid = made._pid
        made.renew(eve(path))
        assert made._pid == pid, "nothing has changed for it"
    assert made.figures["events_written"] == 4


def test_lines_of_several_writers_stay_whole_across_rotations(path: Path) -> None:
    """Batches of four processes at a time; the file is rotated again and again meanwhile."""
    config = eve(path, rotate_megabytes=1, keep=1000)
    writers, batches, size = 4, 150, 40
    with running(config) as made:
        children = []
        for writer in range(writers):
            pid = os.fork()
            if pid == 0:
                made.writer.setblocking(True)
                for batch in range(batches):
                    lines = [
                        json.dumps({"writer": writer, "number": batch * size + n, "pad": "x" * 200}) + "\n"
                        for n in range(size)
                    ]
                    made.writer.send("".join(lines).encode())
                os._exit(0)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * writers
    files = sorted(path.parent.glob("eve.json*"))
    assert len(files) > 4
    events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    found = sorted((event["writer"], event["number"]) for event in events)
    assert found == [(writer, number) for writer in range(writers) for number in range(batches * size)]
    assert (made.figures["events_lost"], made.figures["events_written"]) == (0, len(found))
    assert made.figures["eve_rotations"] == len(files) - 1


def test_it_outlives_no_supervisor(path: Path) -> None:
    """It writes what it has, then ends with who started it."""
    reader, writer = os.pipe()
    parent = os.fork()
    if parent == 0:
        made = ExporterProcess(eve(path))
        made.start()
        made.writer.send(LINE)
        until(path.exists)
        os.write(writer, str(made._pid).encode())
        os._exit(0)
    os.waitpid(parent, 0)
    pid = int(os.read(reader, 20))
    os.close(reader)
    os.close(writer)

    def is_gone() -> bool:
        status = Path(f"/proc/{pid}/stat")
        return not status.exists() or status.read_text().split()[2] == "Z"

    until(is_gone)
    assert content(path) == LINE


def test_stats(path: Path) -> None:
    def latest() -> dict[str, Any]:
        lines = content(path).splitlines()
        stats: dict[str, Any] = json.loads(lines[-1])["stats"] if lines else {}
        return stats

    def is_told() -> bool:
        tick(made, packets=9, dropped_packets=2, flows=4, live_flows=1)
        counters = latest().get("nedge", {})
        return bool(counters.get("packets") and counters.get("events_written"))

    with running(eve(path, stats_seconds=0.2)) as made:
        until(is_told)
    stats = latest()
    assert (stats["ips"], stats["flow"]) == ({"accepted": 7, "blocked": 2}, {"total": 4, "active": 1})
    assert stats["nedge"]["exporter_restarts"] == 0


# What it knows of the gateway


def snapshot(**counters: int) -> Snapshot:
    made = Snapshot()
    gateway = {"started": 100.0, "restarts": 2, "processes": {}, "counters": counters, "before": {}}
    made.take({"gateway": gateway})
    return made


def test_uptime() -> None:
    record = stats_record(snapshot(), 160.5)
    assert (record["stats"]["uptime"], record["timestamp"]) == (60, "1970-01-01T00:02:40.500000+0000")


def test_drops_of_the_kernel_and_malformed_packets() -> None:
    stats = stats_record(
        snapshot(packets=5, queue_full=2, queue_lost=1, malformed_short=3, malformed_tcp=1), 0.0
    )["stats"]
    assert stats["capture"] == {"kernel_packets": 5, "kernel_drops": 3}
    assert stats["decoder"] == {"pkts": 5, "bytes": 0, "invalid": 4}


def test_a_worker_that_is_being_replaced() -> None:
    """What it told last stands until the next one tells more."""

    def told(pid: int, **figures: int) -> dict[str, Any]:
        worker = {"number": 0, "pid": pid, "ready": True, "silent": 0.0, "figures": figures, "measures": {}}
        return {"workers": [worker]}

    made = Snapshot()
    for message, pid, packets in ((told(1, packets=12), 1, 12), (told(0), 1, 12), (told(2, packets=3), 2, 3)):
        made.take(message)
        assert (made.workers[0].pid, made.workers[0].figures) == (pid, {"packets": packets})


def test_the_channel_does_not_block() -> None:
    made = ExporterProcess(Config())
    assert (made.writer.getblocking(), made.writer.type) == (False, socket.SOCK_SEQPACKET)
    made.close()
