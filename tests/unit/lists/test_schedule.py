"""Refreshing in a running gateway: when, how often, and what is noticed."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from list_server import ListServer
from structlog.testing import capture_logs

from nedge.config import Config, Lists
from nedge.lists import job
from nedge.lists import schedule as module
from nedge.lists.loading import load_lists
from nedge.lists.refresh import next_refresh, prepare, refresh
from nedge.lists.schedule import Refresher

Settings = Callable[..., Lists]


@contextmanager
def refresher(settings: Lists) -> Iterator[Refresher]:
    made = Refresher(Config(lists=settings))
    try:
        yield made
    finally:
        made.close()


def tick_until(made: Refresher, condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        made.tick()
        time.sleep(0.02)


def test_a_list_that_was_never_downloaded_is_due_at_once(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", "bad.example\n")])
    prepare(made)
    with refresher(made) as under_test:
        tick_until(under_test, under_test.changed)
        assert load_lists(made).malware_domains.match("bad.example")
        tick_until(under_test, lambda: under_test._job is None)
        under_test.renew(Config(lists=made))
        assert not under_test.changed()
        for _ in range(3):
            under_test.tick()
        assert (under_test._job, len(server.asked)) == (None, 1), "it is not due again"


def test_somebody_else_refreshed_them(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", "bad.example\n")], refresh_hours=0)
    prepare(made)
    with refresher(made) as under_test:
        under_test.tick()
        assert not under_test.changed()
        refresh(made, due_only=False)
        under_test.tick()
        assert under_test.changed()
        assert len(server.asked) == 1


def test_nothing_is_new(settings: Settings, server: ListServer, monkeypatch: pytest.MonkeyPatch) -> None:
    made = settings(malware_domains=[server.put("/names", "bad.example\n")], refresh_hours=1e-9)
    refresh(made)
    with refresher(made) as under_test:
        tick_until(under_test, lambda: len(server.asked) == 2)
        tick_until(under_test, lambda: under_test._job is None)
        assert not under_test.changed()


@pytest.mark.parametrize("jump", [4e8, -4e8])
def test_a_clock_that_is_set_changes_nothing(
    settings: Settings, server: ListServer, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    """By years: as that of a machine which boots without a battery, before it has heard of the time."""
    made = settings(malware_domains=[server.put("/names", "bad.example\n")], refresh_hours=1)
    refresh(made)
    monkeypatch.setattr(job, "start", lambda task, config: ended(1))
    seconds, real = time.monotonic, time.time
    with refresher(made) as under_test, capture_logs():
        for offset in (jump, 0.0, jump):
            monkeypatch.setattr(time, "time", lambda offset=offset: real() + offset)
            under_test.tick()
            assert (under_test._job, under_test.failures) == (None, 0)
        monkeypatch.setattr(time, "monotonic", lambda: seconds() + 3590)
        under_test.tick()
        assert under_test._job is None
        monkeypatch.setattr(time, "monotonic", lambda: seconds() + 3610)
        under_test.tick()
        assert under_test._job is not None


def test_what_was_asked_in_the_future_is_due(
    settings: Settings, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock was wrong when it was asked last."""
    made = settings(malware_domains=[server.put("/names", "bad.example\n")], refresh_hours=1)
    real = time.time
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: real() + 2e6)
        refresh(made)
    assert next_refresh(made) <= time.time()
    refresh(made)
    assert len(server.asked) == 2
    assert next_refresh(made) > time.time() + 3000


def test_jobs_do_not_follow_each_other_at_once(
    settings: Settings, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(malware_domains=[server.put("/names", "bad.example\n")], refresh_hours=1e-9)
    started = []
    monkeypatch.setattr(job, "start", lambda task, config: started.append(task) or ended(0))  # type: ignore[func-returns-value]
    with refresher(made) as under_test:
        for _ in range(2):
            tick_until(under_test, lambda: started)
            tick_until(under_test, lambda: under_test._job is None)
        for _ in range(5):
            under_test.tick()
        assert started == ["refresh"]
        monkeypatch.setattr(module, "PAUSE", 0.0)
        tick_until(under_test, lambda: len(started) > 1)


def ended(status: int, output: str = "") -> subprocess.Popen[bytes]:
    code = f"import os, sys; sys.stdout.write({output!r}); sys.stdout.flush(); os._exit({status})"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)


@pytest.mark.parametrize(
    ("status", "output", "why"),
    [
        (9, "", "the process that works on lists ended with exit status 9"),
        (1, "rubbish", "the process that works on lists ended with exit status 1"),
        (0, '{"error": "no room"}', "no room"),
    ],
)
def test_a_job_that_fails_is_counted(
    settings: Settings,
    server: ListServer,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    output: str,
    why: str,
) -> None:
    made = settings(malware_domains=[server.put("/names", "")])
    monkeypatch.setattr(job, "start", lambda task, config: ended(status, output))
    with refresher(made) as under_test, capture_logs() as logs:
        tick_until(under_test, lambda: under_test.failures)
    assert [(entry["event"], entry["error"]) for entry in logs] == [("list_refresh_failed", why)]
    assert under_test.figures() == {"list_job_failures": 1}


def test_a_job_that_hangs_is_ended(
    settings: Settings, server: ListServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = settings(malware_domains=[server.put("/names", "")])
    command = [sys.executable, "-c", "import time; time.sleep(600)"]
    hung = subprocess.Popen(command, stdout=subprocess.PIPE)
    monkeypatch.setattr(job, "start", lambda task, config: hung)
    monkeypatch.setattr(module, "LONGEST", 0.2)
    with refresher(made) as under_test, capture_logs():
        tick_until(under_test, lambda: under_test.failures)
    assert hung.returncode == -9


def test_the_end_does_not_wait_for_a_job(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", "bad.example\n" * 1000, chunk=1)])
    start = time.monotonic()
    with refresher(made) as under_test:
        tick_until(under_test, lambda: server.asked)
        process = under_test._job
        assert process is not None
    assert process.returncode == -9
    assert time.monotonic() - start < 60  # the download would take ten minutes
    assert not list(made.cache_directory.glob("downloads/*"))


def test_other_lists_after_a_reload(settings: Settings, server: ListServer, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("mine.example\n")
    first = settings(malware_domains=[tmp_path / "names"])
    second = settings(mining_domains=[server.put("/names", "bad.example\n")])
    prepare(first)
    prepare(second)
    with refresher(first) as under_test:
        under_test.tick()
        assert under_test._job is None
        under_test.renew(Config(lists=second))
        assert not under_test.changed()
        tick_until(under_test, under_test.changed)
        assert load_lists(second).mining_domains.match("bad.example")


def test_a_job_ends_with_who_started_it(settings: Settings, server: ListServer) -> None:
    made = settings(malware_domains=[server.put("/names", "bad.example\n" * 1000, chunk=1)])
    starter = (
        "import sys; from pathlib import Path; from nedge.config import Config, Lists\n"
        "from nedge.lists import job\n"
        "made = Lists(malware_domains=[sys.argv[1]], cache_directory=Path(sys.argv[2]))\n"
        "print(job.start('refresh', Config(lists=made)).pid, flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", starter, str(made.malware_domains[0]), str(made.cache_directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        until(lambda: server.asked)
        parent.kill()
    until(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


def test_a_job_imports_nothing_from_where_nedge_was_started(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "orjson.py").write_text("raise SystemExit('a trap')\n")
    (tmp_path / "names").write_text("bad.example\n")
    monkeypatch.chdir(tmp_path)
    job.prepare(Config(lists=settings(malware_domains=[tmp_path / "names"])))


def until(condition: Callable[[], Any], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
