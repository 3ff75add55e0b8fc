"""The supervisor with real processes as workers, which judge nothing."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nedge.config import Config, Lists
from nedge.errors import ConfigError
from nedge.gateway import supervisor as module
from nedge.gateway.link import Link
from nedge.gateway.signals import STOP_SIGNALS, StopSignals, stop_signals
from nedge.gateway.supervisor import Supervisor
from nedge.gateway.trial import rehearse
from nedge.interpreter import SUPERVISORS
from nedge.lists import job


def beat(_number: int, link: Link) -> int:
    """A worker that gives signs of life until it is told to stop."""
    with stop_signals(signal.SIGTERM) as signals:
        link.send({"ready": True})
        while signals.stop is None:
            link.send({"beat": {"packets": 1}})
            select.select([signals], [], [], 0.1)
    return 0


@contextmanager
def running(signals: StopSignals, work: Callable[[int, Link], int] = beat) -> Iterator[Supervisor]:
    supervisor = Supervisor(1, work, signals)
    try:
        supervisor.start()
        yield supervisor
    finally:
        supervisor.stop()


@pytest.fixture
def signals() -> Iterator[StopSignals]:
    with stop_signals() as signals:
        yield signals


@pytest.fixture
def supervisor(signals: StopSignals) -> Iterator[Supervisor]:
    with running(signals) as made:
        yield made


def serve_until(supervisor: Supervisor, condition: Callable[[], Any], seconds: float = 60.0) -> None:
    supervisor.serve(seconds, lambda: bool(condition()))
    assert condition(), "it did not happen in time"


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_timer_that_fails_is_logged_counted_and_tried_again(supervisor: Supervisor) -> None:
    calls: list[str] = []

    def failing() -> None:
        calls.append("failing")
        if calls.count("failing") <= 5:
            raise RuntimeError("no")

    supervisor.every(0.01, "this and that", failing)
    supervisor.every(0.01, "another", lambda: calls.append("other"))
    with capture_logs() as logs:
        serve_until(supervisor, lambda: calls.count("failing") > 7)
    assert calls.count("other") > 5
    assert supervisor.totals()["supervisor_errors"] == 5
    told = [entry for entry in logs if entry["event"] == "supervisor_error"]
    assert [(entry["step"], entry["times"], entry["error"]) for entry in told] == [
        ("this and that", times, "RuntimeError('no')") for times in (1, 2, 4)
    ]
    assert all(isinstance(entry["exc_info"], RuntimeError) for entry in told)
    assert supervisor.restarts == 0


def test_who_is_called_with_news_may_fail_too(supervisor: Supervisor) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def fail(_events: int) -> None:
            ours.recv(10)
            raise OSError(errno.ENOBUFS, "no buffers")

        supervisor.watch(ours, fail)
        theirs.send(b"news")
        with capture_logs():
            serve_until(supervisor, lambda: supervisor.guarded.errors)
        supervisor.unwatch(ours)
    assert supervisor.totals()["supervisor_errors"] == 1
    assert supervisor.healthy


def test_a_worker_that_cannot_be_started_is_started_later(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The machine has no room for another process, say."""

    def no_fork(*_arguments: Any, **_options: Any) -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    (worker,) = supervisor.workers
    with capture_logs():
        with monkeypatch.context() as patch:
            patch.setattr(module, "fork", no_fork)
            os.kill(worker.pid, signal.SIGKILL)
            serve_until(supervisor, lambda: supervisor.guarded.errors >= 2)
            assert (worker.pid, worker.link) == (0, None)
        serve_until(supervisor, lambda: worker.ready)
    assert supervisor.restarts == 1


def test_one_that_cannot_be_started_at_first_ends_the_start(
    signals: StopSignals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_fork(*_arguments: Any, **_options: Any) -> int:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr(module, "fork", no_fork)
    with pytest.raises(OSError, match="temporarily unavailable"), running(signals):
        pass


# Signals to all processes


def test_workers_ignore_what_is_for_the_supervisor(supervisor: Supervisor) -> None:
    (worker,) = supervisor.workers
    first = worker.pid
    for _ in range(3):
        for number in SUPERVISORS:
            os.kill(worker.pid, number)
        heard = worker.heard
        serve_until(supervisor, lambda heard=heard: worker.heard > heard)
    assert (worker.pid, supervisor.restarts) == (first, 0)


def test_they_do_so_from_the_first_moment_on(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes while a worker is being started neither ends it nor reaches the supervisor twice."""
    started: list[int] = []
    real = module.fork

    def forked(*arguments: Any, **options: Any) -> int:
        started.append(real(*arguments, **options))
        for number in SUPERVISORS:
            os.kill(started[-1], number)
        return started[-1]

    monkeypatch.setattr(module, "fork", forked)
    (worker,) = supervisor.workers
    with capture_logs():
        os.kill(worker.pid, signal.SIGKILL)
        serve_until(supervisor, lambda: started and worker.ready)
    assert worker.pid == started[-1]
    assert (len(started), supervisor.restarts) == (1, 1)


def test_a_list_job_ignores_them_from_the_first_moment_on(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("bad.example\n")
    lists = Lists(malware_domains=[tmp_path / "names"], cache_directory=tmp_path / "cache")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    process = job.start("prepare", Config(lists=lists))
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before
    while process.poll() is None:
        for number in SUPERVISORS:
            process.send_signal(number)
        time.sleep(0.01)
    output, _ = process.communicate()
    assert job.outcome(output, process.returncode) == ""
    assert list((tmp_path / "cache").glob("packed/*.data"))


# Trials of a configuration


def test_a_trial_keeps_nobody_waiting(supervisor: Supervisor, signals: StopSignals, tmp_path: Path) -> None:
    ticks: list[float] = []

    def slow() -> None:
        while not (tmp_path / "go").exists():
            time.sleep(0.01)

    def tick() -> None:
        ticks.append(time.monotonic())
        if len(ticks) == 5:
            signals.reload = True  # another reload waits for the end of this one
            (worker,) = supervisor.workers
            os.kill(worker.pid, signal.SIGKILL)  # and the worker is replaced meanwhile
        if supervisor.restarts and supervisor.workers[0].ready:
            (tmp_path / "go").touch()

    supervisor.every(0.02, "ticks", tick)
    with capture_logs():
        rehearse(slow, supervisor, supervisor.forked)
    assert len(ticks) > 5
    assert signals.reload
    assert supervisor.restarts == 1


@pytest.mark.parametrize(
    ("attempt", "why"),
    [
        ("raise ValueError('gateway.lan: is wrong')", "^gateway.lan: is wrong$"),
        ("raise KeyError", r"^KeyError\(\)$"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "^the process that tried it ended with signal SIGKILL$"),
        ("os._exit(7)", "^the process that tried it ended with exit status 7$"),
    ],
)
def test_what_is_wrong_is_told(supervisor: Supervisor, attempt: str, why: str) -> None:
    def fail() -> None:
        exec(attempt)

    with capture_logs(), pytest.raises(ConfigError, match=why):
        rehearse(fail, supervisor, supervisor.forked)
    assert supervisor.healthy


def test_a_trial_that_hangs_is_ended(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nedge.gateway.trial.LONGEST", 0.5)
    with pytest.raises(ConfigError, match="could not be tried within"):
        rehearse(lambda: time.sleep(600), supervisor, supervisor.forked)


def test_the_end_of_the_gateway_waits_for_no_trial(
    supervisor: Supervisor, signals: StopSignals, tmp_path: Path
) -> None:
    def stop_all() -> None:
        (tmp_path / "pid").write_text(str(os.getpid()))
        for number in SUPERVISORS:
            os.kill(os.getpid(), number)  # it does not mind
        os.kill(os.getppid(), signal.SIGTERM)
        time.sleep(600)

    with pytest.raises(ConfigError, match="the gateway ends"):
        rehearse(stop_all, supervisor, supervisor.forked)
    assert not is_alive(int((tmp_path / "pid").read_text()))
    assert signals.stop == signal.SIGTERM


def test_signals_of_the_supervisor_are_all_known() -> None:
    assert {*SUPERVISORS, signal.SIGTERM} == set(STOP_SIGNALS)
