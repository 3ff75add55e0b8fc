"""The supervisor: starts the workers, listens to their heartbeats, replaces the dead and the hung.

One process per queue, forked from this one, each with its own engine. They talk over a socket pair, a JSON
object a message:

    worker -> supervisor    {"ready": true}, {"failed": "why"},
                            {"beat": {counters}}, {"measures": {more}}, {"hosts": [[ip, vlan, score]]},
                            {"cut": [[ip, seconds in quarantine]]}
    supervisor -> worker    {"hosts": [[ip, vlan, score elsewhere]]},
                            {"renew": configuration, or null: only its lists, "generation": of marks}
    and the operator's questions and orders: see `nedge.gateway.answers`

A worker ends when its supervisor does: the rules stay, open or closed as configured, and
the next start takes them over.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Protocol

import structlog

from nedge.config import Config
from nedge.core.marks import Marks
from nedge.gateway.children import fork
from nedge.gateway.guard import Guard
from nedge.gateway.link import Link, Message
from nedge.gateway.signals import StopSignals
from nedge.kernel.errors import KernelError

READY_SECONDS = 15.0
HUNG_SECONDS = 1.0
"""Without a heartbeat for so long a worker is replaced. Heartbeats come four times as often."""
STOP_SECONDS = 30.0
"""To end: each of its flows gets its last hook and its record."""
_RESTART_PAUSES = (0.0, 0.0, 0.2, 0.5, 1.0)
"""Before the next start of a worker that keeps dying young."""
_YOUNG_SECONDS = 5.0
GAUGES = frozenset(("live_flows", "live_hosts", "scripts_aside", "queue_waiting", "lan_wan_swapped"))
"""Of the figures in a heartbeat, those that say how things are; all others count."""
HOSTS_PER_MESSAGE = 500

log = structlog.get_logger()


class _Child:
    """A worker as the supervisor sees it."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.serial = 0
        """Counts the starts of all workers; part of the ids of its flows."""
        self.pid = 0
        self.link: Link | None = None
        self.ready = False
        self.failed = ""
        self.started = 0.0
        self.heard = 0.0
        self.deaths = 0
        """In a row, each soon after its start."""
        self.restart_at = 0.0
        self.untold: dict[tuple[str, int], int] = {}
        """Host -> score elsewhere, that it has yet to be told."""
        self.letters: deque[Message] = deque()
        """Messages that it has yet to be sent."""
        self.beat: Message = {}
        """Counters, as of the latest heartbeat."""
        self.measures: Message = {}
        """What else there is to tell of it, about every second."""


class _Timer:
    def __init__(self, seconds: float, name: str, step: Callable[[], None]) -> None:
        self.seconds = seconds
        self.name = name
        self.step = step
        self.due = time.monotonic() + seconds


class Attendant(Protocol):
    """Who asks the workers for the operator, and listens for their answers."""

    def answered(self, number: int, message: Message) -> None:
        """A worker's answer, or a part of it."""

    def lost(self, number: int) -> None:
        """A worker is gone, with all that it was asked."""

    def turn(self, now: float) -> None:
        """Called every quarter of a second at least. `now`: by the monotonic clock."""

    def forked(self) -> None:
        """In a worker's process: close what is the supervisor's."""


class Supervisor:
    """Runs `count` workers; `work(number, link)` is what each does, in its own process."""

    def __init__(self, count: int, work: Callable[[int, Link], int], signals: StopSignals) -> None:
        self._work = work
        self._signals = signals
        self._children = [_Child(number) for number in range(count)]
        self._selector = selectors.DefaultSelector()
        self.watch(signals, lambda _events: signals.consume())
        self._timers: list[_Timer] = []
        self.on_cut: Callable[[str, float], None] | None = None
        """Told of hosts that a worker puts in quarantine, and for how many seconds."""
        self.guarded = Guard()
        """For all that must not end the gateway once it runs."""
        self._stopping = False
        self.restarts = 0
        self._starts = 0
        self._past: Message = {}
        """Counters of workers that are no more."""
        self.attendant: Attendant | None = None
        self._scores: dict[tuple[str, int], dict[int, int]] = {}
        """Host -> worker -> score there."""

    def start(self) -> None:
        """Start all workers, and wait until they are ready. Raises KernelError with why one is not."""
        for child in self._children:
            self._spawn(child)
        deadline = time.monotonic() + READY_SECONDS
        while not all(child.ready for child in self._children):
            self._listen(0.05)
            for child in self._children:
                if child.failed or not child.pid:
                    raise KernelError(child.failed or f"worker {child.number} ended while it was starting")
            if self.stopping:
                return
            if time.monotonic() > deadline:
                raise KernelError(f"the workers were not ready within {READY_SECONDS:.0f} s")

    def watch(self, fileobj: Any, ready: Callable[[int], None], events: int = selectors.EVENT_READ) -> None:
        """Call `ready` with what happened (EVENT_READ, EVENT_WRITE) whenever one of `events` does."""
        self._selector.register(fileobj, events, ready)

    def every(self, seconds: float, name: str, step: Callable[[], None]) -> None:
        """Call `step` while serving about every so many seconds, whether or not it raised the last time."""
        self._timers.append(_Timer(seconds, name, step))

    @property
    def stopping(self) -> bool:
        """A signal to stop has come."""
        return self._signals.stop is not None

    @property
    def healthy(self) -> bool:
        """All workers are there, ready, and were heard of late."""
        deadline = time.monotonic() - HUNG_SECONDS
        return all(child.pid and child.ready and child.heard >= deadline for child in self._children)

    def serve(
        self,
        seconds: float = float("inf"),
        until: Callable[[], bool] = lambda: False,
        *,
        reloading: bool = False,
    ) -> None:
        """Look after the workers until a signal comes, or for so many seconds, or until something is so.

        reloading: a signal to reload waits.
        """
        end = time.monotonic() + seconds
        while not self.stopping and (reloading or not self._signals.reload) and time.monotonic() < end:
            self._listen(min(HUNG_SECONDS / 4, max(0.0, end - time.monotonic())))
            now = time.monotonic()
            self._replace(now)
            for timer in self._timers:
                if timer.due <= now:
                    timer.due = now + timer.seconds
                    with self.guarded(timer.name):
                        timer.step()
            if self.attendant:
                self.attendant.turn(now)
            if until():
                return

    def watch_for(self, fileobj: Any, events: int) -> None:
        """Other events of something that is watched."""
        ready = self._selector.get_key(fileobj).data
        self._selector.modify(fileobj, events, ready)

    def unwatch(self, fileobj: Any) -> None:
        self._selector.unregister(fileobj)

    def post(self, message: Message) -> list[int]:
        """Send every worker a message, as soon as it takes it. Gives the numbers of those that there are."""
        return [child.number for child in self._children if self.post_to(child.number, message)]

    def post_to(self, number: int, message: Message) -> bool:
        """Send one worker a message; false if there is none now: the next knows what this process knows."""
        child = self._children[number]
        if child.link is None:
            return False
        child.letters.append(message)
        self._send_letters(child)
        return True

    @property
    def workers(self) -> list[_Child]:
        """The workers; to be looked at only."""
        return self._children

    def renew(self, work: Callable[[int, Link], int], config: Config | None, marks: Marks | None) -> None:
        """All workers judge by another configuration from now on; those that start later, too.

        config: None for the same with lists that are new.
        """
        self._work = work
        message = {
            "renew": config.model_dump(mode="json") if config else None,
            "generation": marks.generation if marks else 0,
        }
        for child in self._children:
            if child.link is None:
                continue
            child.ready, child.heard = False, time.monotonic()  # reading large lists takes its time
            if not child.link.send(message):
                log.warning("worker_restarting", worker=child.number, reason="it could not be told to reload")
                self._buried(child)

    def stop(self) -> None:
        """End all workers; each ends its flows first. One that does not end in time is killed."""
        self._stopping = True
        for child in self._children:
            self._signal(child, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while any(child.pid for child in self._children) and time.monotonic() < deadline:
            self._listen(0.02)
            self._reap()
        for child in self._children:
            if child.pid:
                log.error("worker_killed", worker=child.number, reason="did not end in time")
                self._signal(child, signal.SIGKILL)
                os.waitpid(child.pid, 0)
                child.pid = 0
        self._selector.close()

    def totals(self) -> Message:
        """Counters of all workers together, as of their latest heartbeats."""
        sums = dict(self._past)
        for child in self._children:
            add_figures(sums, child.beat)
        return sums | {"worker_restarts": self.restarts, "supervisor_errors": self.guarded.errors}

    def describe(self) -> list[Message]:
        """Each worker: number, process, whether it is ready, seconds of silence, and what it counted."""
        now = time.monotonic()
        return [
            {
                "number": child.number,
                "pid": child.pid,
                "ready": child.ready,
                "silent": round(now - child.heard, 3),
                "figures": child.beat,
                "measures": child.measures,
            }
            for child in self._children
        ]

    def host_scores(self) -> list[tuple[str, int, int]]:
        """Address, VLAN and live score of every host that has one, in all workers together."""
        return [(ip, vlan, sum(by_worker.values())) for (ip, vlan), by_worker in self._scores.items()]

    # One worker

    def _spawn(self, child: _Child) -> None:
        ours, theirs = Link.pair()
        # Should this fail, there is a next time.
        child.restart_at = time.monotonic() + _RESTART_PAUSES[-1]
        be_worker = partial(self._be_worker, child.number, ours, theirs)
        try:
            child.pid = fork(f"nedge-worker-{child.number}", self.forked, be_worker)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        child.link, child.failed = ours, ""
        child.serial, self._starts = self._starts, self._starts + 1
        child.started = child.heard = time.monotonic()
        self.watch(ours, lambda _events: self._hear(child))

    def _be_worker(self, number: int, ours: Link, link: Link) -> int:
        """In the child: only what is the worker's stays open."""
        ours.close()
        try:
            return self._work(number, link)
        except KernelError as error:
            link.send({"failed": str(error)})
        except BaseException as error:
            link.send({"failed": f"worker {number}: {type(error).__name__}: {error}"})
            log.error("worker_failed", worker=number, error=repr(error), exc_info=error)
        return 1

    def forked(self) -> None:
        """In the process of a child, be it a worker or not: close what is the supervisor's."""
        self._selector.close()
        for child in self._children:
            if child.link is not None:
                child.link.close()
        if self.attendant:
            self.attendant.forked()
        self._signals.close()

    def _signal(self, child: _Child, number: signal.Signals) -> None:
        if child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, number)

    def _listen(self, timeout: float) -> None:
        for key, events in self._selector.select(timeout):
            with self.guarded("messages"):
                key.data(events)
        for child in self._children:
            if child.untold:
                self._tell(child)
            self._send_letters(child)

    def _hear(self, child: _Child) -> None:
        if child.link is None:  # buried meanwhile
            return
        messages = child.link.receive()
        if messages is None:
            self._buried(child)
            return
        child.heard = time.monotonic()
        for message in messages:
            if "ready" in message:
                child.ready = True
                log.info("worker_ready", worker=child.number, seconds=round(child.heard - child.started, 3))
            child.failed = message.get("failed", child.failed)
            child.beat = message.get("beat", child.beat)
            child.measures = message.get("measures", child.measures)
            self._share_scores(child.number, message.get("hosts", ()))
            if self.on_cut is not None:
                for ip, seconds in message.get("cut", ()):
                    self.on_cut(ip, seconds)
            if "answer" in message and self.attendant:
                self.attendant.answered(child.number, message)
            if "ready" in message:
                self._tell_all(child)

    def _reap(self) -> None:
        for child in self._children:
            if child.pid and os.waitpid(child.pid, os.WNOHANG)[0]:
                child.pid = 0
                self._buried(child)

    def _buried(self, child: _Child) -> None:
        """A worker is dead, or its end of the link is: make sure, and plan the next."""
        if child.link is not None:
            self._selector.unregister(child.link)
            child.link.close()
            child.link = None
        if child.pid:
            self._signal(child, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child.pid, 0)
            child.pid = 0
        add_figures(self._past, {name: value for name, value in child.beat.items() if name not in GAUGES})
        child.ready, child.beat = False, {}
        now = time.monotonic()
        young = now - child.started < _YOUNG_SECONDS
        child.deaths = child.deaths + 1 if young else 0
        child.restart_at = now + _RESTART_PAUSES[min(child.deaths, len(_RESTART_PAUSES) - 1)]
        child.letters.clear()
        self._forget_scores(child.number)
        if self.attendant:
            self.attendant.lost(child.number)

    def _replace(self, now: float) -> None:
        """Hung workers are killed; where one is missing, another starts."""
        for child in self._children:
            patience = HUNG_SECONDS if child.ready else READY_SECONDS
            if child.pid and now - child.heard > patience:
                log.error("worker_hung", worker=child.number, seconds=round(now - child.heard, 1))
                self._buried(child)
            if not child.pid and now >= child.restart_at:
                why = child.failed
                with self.guarded("worker start"):
                    self._spawn(child)
                    self.restarts += 1
                    log.warning("worker_restarted", worker=child.number, restarts=self.restarts, why=why)

    # Host scores: each worker knows its own share of a host's score, and is told the sum of the others'

    def _share_scores(self, number: int, hosts: Iterable[tuple[str, int, int]]) -> None:
        for ip, vlan, score in hosts:
            by_worker = self._scores.setdefault((ip, vlan), {})
            by_worker[number] = score
            self._changed((ip, vlan), by_worker, number)

    def _forget_scores(self, number: int) -> None:
        """A worker died, and with it the flows that its scores came from."""
        for host, by_worker in list(self._scores.items()):
            if by_worker.pop(number, 0):
                self._changed(host, by_worker, number)

    def _changed(self, host: tuple[str, int], by_worker: dict[int, int], source: int) -> None:
        """A host's score in one worker changed: the others are to be told."""
        total = sum(by_worker.values())
        for child in self._children:
            if child.number != source:
                child.untold[host] = total - by_worker.get(child.number, 0)
        if not total:
            self._scores.pop(host, None)

    def _tell_all(self, child: _Child) -> None:
        """A worker is new, or knows nothing: all scores elsewhere are news to it."""
        for host, by_worker in self._scores.items():
            child.untold[host] = sum(by_worker.values()) - by_worker.get(child.number, 0)

    def _send_letters(self, child: _Child) -> None:
        while child.letters and child.link is not None and child.link.send(child.letters[0]):
            child.letters.popleft()

    def _tell(self, child: _Child) -> None:
        """Send what a worker has yet to be told, as far as it takes it now."""
        hosts = list(child.untold.items())
        for start in range(0, len(hosts), HOSTS_PER_MESSAGE):
            part = hosts[start : start + HOSTS_PER_MESSAGE]
            message = {"hosts": [(ip, vlan, score) for (ip, vlan), score in part]}
            if child.link is None or not child.link.send(message):
                return
            for host, _score in part:
                del child.untold[host]


def add_figures(sums: Message, figures: Message) -> None:
    """Add counters to those of the same name."""
    for name, value in figures.items():
        sums[name] = sums.get(name, 0) + value
