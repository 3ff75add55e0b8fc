"""Reloads that somebody asked for, and waits for. SIGHUP does the same, and nobody waits.

A reload is done when all workers judge by the new configuration, not before.
"""

from __future__ import annotations

import time

from nedge.control.protocol import Kind
from nedge.gateway.connection import Client
from nedge.gateway.signals import StopSignals
from nedge.gateway.supervisor import READY_SECONDS, Supervisor

_PATIENCE = READY_SECONDS + 5.0


class Reloading:
    """`run` tells what becomes of a reload: `begins`, then `failed`, or `sent` when the workers are told."""

    def __init__(self, supervisor: Supervisor, signals: StopSignals) -> None:
        self._supervisor = supervisor
        self._signals = signals
        self.count = 0
        """Reloads that were done."""
        self._asked: list[Client] = []
        """They want one that has not begun yet."""
        self._waiting: list[Client] = []
        """They wait for the one under way."""
        self._under_way = False
        self._began = self._sent = 0.0
        self._restarts = 0
        self._notes: list[str] = []

    def ask(self, client: Client) -> None:
        """A client wants the configuration to be read again, as it is from now on."""
        self._asked.append(client)
        client.on_gone = lambda: self._drop(client)
        self._start()

    def _start(self) -> None:
        if self._asked and not self._under_way:
            self._signals.reload = True

    def _drop(self, client: Client) -> None:
        self._asked = [one for one in self._asked if one is not client]
        self._waiting = [one for one in self._waiting if one is not client]

    def begins(self) -> None:
        """The configuration is about to be read."""
        self._waiting, self._asked = self._waiting + self._asked, []
        self._began, self._sent, self._under_way = time.monotonic(), 0.0, True
        self._restarts, self._notes = self._supervisor.restarts, []

    def failed(self, why: str) -> None:
        """It cannot be used: all stays as it was."""
        waiting, self._waiting, self._under_way = self._waiting, [], False
        for client in waiting:
            client.refuse(Kind.FAILED, why)
        self._start()

    def sent(self, notes: list[str]) -> None:
        """The workers have been told, the kernel too. `notes`: what was left out, in sentences."""
        self.count += 1
        self._notes = notes
        self._sent = time.monotonic()

    def turn(self, now: float) -> None:
        """See whether all workers have taken over."""
        if not self._sent:
            return
        late = [worker.number for worker in self._supervisor.workers if not (worker.pid and worker.ready)]
        if late and now - self._sent < _PATIENCE:
            return
        if late:
            numbers = ", ".join(map(str, late))
            self._sent = 0.0
            self.failed(f"the configuration is good, but worker {numbers} has not taken it over: see the log")
            return
        restarts = self._supervisor.restarts - self._restarts
        if restarts:
            self._notes.append(f"{restarts} worker(s) had to be started anew: see the log")
        waiting, self._waiting, self._under_way, self._sent = self._waiting, [], False, 0.0
        for client in waiting:
            client.done({"seconds": round(now - self._began, 3), "notes": self._notes})
        self._start()
