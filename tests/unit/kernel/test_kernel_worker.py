"""The loop, with a queue that is a socket."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from structlog.testing import capture_logs

from nedge.config import Config
from nedge.core.limits import Counters
from nedge.core.normalizer import Normalizer
from nedge.gateway import worker as module
from nedge.gateway.link import Link
from nedge.gateway.rejecting import Rejector
from nedge.gateway.signals import STOP_SIGNALS, stop_signals
from nedge.gateway.verdicts import Mode
from nedge.gateway.work import stop_if_told, take_over
from nedge.gateway.worker import Worker
from nedge.scripts.budget import WATCH, enforced


class FakeQueue:
    def __init__(self, number: int, judge: Any, **options: Any) -> None:
        self.number, self.judge, self.options = number, judge, options
        self.reader, self.writer = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.reader.setblocking(False)
        self.verdicts: list[int] = []
        self.closed = False

    def fileno(self) -> int:
        return self.reader.fileno()

    def drain(self) -> None:
        self.verdicts.append(self.judge(self.reader.recv(100), b"mac", 0, True, 1))

    def close(self) -> None:
        self.closed = True
        self.reader.close()
        self.writer.close()


class Engine:
    late = False
    share = 0

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.normalizer = Normalizer(Counters())
        self.inspector = SimpleNamespace(max_held=0)
        self.fails = False

    def packet(self, data: bytes, now: float, vlan: int, mac: bytes, /, *, tracked: bool, port: int) -> int:
        assert (vlan, mac, tracked, port) == (0, b"mac", True, 1)
        self.calls.append(data.decode())
        return 2 if data == b"bad" else 0

    def advance(self, now: float, /) -> None:
        self.calls.append("advance")
        if self.fails:
            raise RuntimeError("in a timer")

    def finish(self, now: float, /) -> None:
        self.calls.append("finish")


@pytest.fixture(autouse=True)
def _fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PacketQueue", FakeQueue)
    monkeypatch.setattr(module, "TICK", 0.02)


def make(mode: Mode = "inline") -> tuple[Worker, Engine, FakeQueue]:
    engine = Engine()
    worker = Worker(engine, number=1, length=10, mode=mode, fail_open=True)
    queue: Any = worker.queue
    return worker, engine, queue


@pytest.mark.parametrize(("mode", "verdicts"), [("inline", [0, 2]), ("monitor", [0, 0])])
def test_packets_get_verdicts_and_timers_run(mode: Mode, verdicts: list[int]) -> None:
    worker, engine, queue = make(mode)
    queue.writer.send(b"good")
    queue.writer.send(b"bad")
    worker.loop.run(0.1)
    assert queue.verdicts == verdicts
    assert engine.calls[:2] == ["good", "bad"]
    assert 2 <= engine.calls.count("advance") <= 5
    worker.close()
    assert queue.closed
    assert engine.calls[-1] == "finish"


def test_stop_ends_the_loop() -> None:
    worker, engine, queue = make()
    worker.loop.watch(queue.writer, lambda: None)
    queue.writer.close()
    worker.loop.stop()
    worker.loop.run()
    assert worker.loop.stopping
    assert engine.calls == []
    worker.close()


def test_an_engine_that_raises_is_counted_and_logged_not_too_often() -> None:
    worker, engine, _queue = make()
    engine.fails = True
    with capture_logs() as logs:
        worker.loop.run(0.1)
    assert worker.errors >= 2
    assert [event["event"] for event in logs] == ["engine_error"]
    worker.close()


@pytest.fixture
def _quiet() -> Iterator[None]:
    before = [signal.getsignal(number) for number in STOP_SIGNALS]
    yield
    assert [signal.getsignal(number) for number in STOP_SIGNALS] == before


@pytest.mark.usefixtures("_quiet")
def test_the_timer_of_scripts_does_not_stop_the_loop() -> None:
    worker, _engine, _queue = make()
    ticks: list[int] = []
    with enforced(), stop_signals(signal.SIGTERM) as signals:
        WATCH.wake()
        worker.loop.watch(signals, partial(stop_if_told, worker, signals))
        worker.loop.every(0.05, lambda: ticks.append(1))
        worker.loop.run(0.3)
        assert not worker.loop.stopping
        os.kill(os.getpid(), signal.SIGTERM)
        worker.loop.run(30)
        assert worker.loop.stopping
    assert ticks
    worker.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.usefixtures("_quiet")
def test_signals_stop_the_loop_also_when_they_came_before_it(number: int) -> None:
    worker, _engine, _queue = make()
    with stop_signals() as signals:
        os.kill(os.getpid(), number)
        worker.loop.watch(signals, worker.loop.stop)
        worker.loop.run(5)
        assert worker.loop.stopping
        assert (signals.stop, signals.reload) == (
            (None, True) if number == signal.SIGHUP else (number, False)
        )
        signals.consume()
    worker.close()


def test_an_answer_that_made_way_for_packets_goes_on_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not when the next timer is due, which here is in half a minute."""
    monkeypatch.setattr(module, "TICK", 30.0)
    worker, engine, queue = make()
    engine.counters = SimpleNamespace(packets=5)
    ours, theirs = Link.pair()
    worker._link = ours
    worker.answer(list)
    worker._answers.hear({"ask": 1, "what": "scripts"})
    worker.loop.watch(theirs, worker.loop.stop)
    worker.loop.run(10)
    assert worker.loop.stopping, "an answer came"
    assert [message["answer"] for message in theirs.receive() or []] == [1]
    worker._answers.close()
    queue.close()
    ours.close()
    theirs.close()


def test_the_last_heartbeat_comes_after_all_else(monkeypatch: pytest.MonkeyPatch) -> None:
    worker, engine, _queue = make()
    ours, theirs = Link.pair()
    worker._link = ours
    monkeypatch.setattr(worker, "_look_at_queue", lambda: None)
    monkeypatch.setattr(worker, "_beat", lambda: engine.calls.append("beat"))
    worker.close(lambda: engine.calls.append("ended"))
    assert engine.calls == ["finish", "ended", "beat"]
    ours.close()
    theirs.close()


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 2.0])
def test_a_worker_ends_if_the_clock_was_set(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(module, "CLOCK_SECONDS", 0.02 - 1)  # the queue has number 1
    worker, engine, _queue = make()
    engine.verdicts = SimpleNamespace(cut=None)
    ours, theirs = Link.pair()
    monkeypatch.setattr(worker, "_beat", lambda: None)
    worker.report_to(ours, lambda config: None)
    monkeypatch.setattr(worker, "_look_at_queue", lambda: None)
    set_to = module._clock_offset() + seconds
    monkeypatch.setattr(module, "_clock_offset", lambda: set_to)
    worker.loop.run(0.3)
    said = [message["failed"] for message in theirs.receive() or []]
    far = abs(seconds) > 10
    assert worker.loop.stopping is far
    assert said == ([f"the machine's clock was set by {seconds:.0f} s"] if far else [])
    worker.close()
    ours.close()
    theirs.close()


def test_another_configuration_has_another_rate_of_answers() -> None:
    rejector, told = Rejector(Engine(), [], 50), []
    judging = SimpleNamespace(renew=told.append)
    config = Config.model_validate({"verdict": {"rejects_per_second": 7}})
    take_over(judging, rejector, None)
    assert rejector.injector.rate == 50
    take_over(judging, rejector, config)
    assert (rejector.injector.rate, told) == (7, [None, config])
    rejector.close()
