"""The exporter as the supervisor sees it: a process that is started, told how the gateway is, and replaced.

What workers write waits in the channel meanwhile, so nothing is lost while there is room in it.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import structlog

from nedge.config import Config
from nedge.export.outlet import channel, drained
from nedge.export.process import HELD, Exporter
from nedge.gateway.children import fork
from nedge.gateway.link import Link, Message
from nedge.gateway.supervisor import HOSTS_PER_MESSAGE, Supervisor

TELL_SECONDS = 1.0
SCORES_SECONDS = 60.0
HUNG_SECONDS = 60.0
"""Without a word for so long it is replaced. A slow disk may keep it busy for a while."""
STOP_SECONDS = 5.0
_RESTART_PAUSE = 1.0
_SECTIONS = ("eve", "history", "metrics", "lists", "log")
"""Of the configuration: what concerns it."""

log = structlog.get_logger()


class ExporterProcess:
    """Runs an exporter for one configuration after the other."""

    def __init__(self, config: Config) -> None:
        self.writer, self._reader = channel()
        """`writer` is the end that workers write to."""
        self._held = memoryview(mmap.mmap(-1, 8 * len(HELD))).cast("q")
        """What the process has taken out of the channel, and not written yet, in the order of HELD. Both have
        this memory, so that it is known when the process was killed."""
        self._config = config
        self._pid = 0
        self._link: Link | None = None
        self._heard = 0.0
        self._start_at = 0.0
        self._next_word = 0.0
        self._next_scores = 0.0
        self._began = time.time()
        self.restarts = 0
        self.figures: dict[str, int] = {}
        """Its counters; those of processes that ended are in it, too."""
        self._before: dict[str, int] = {}
        self.forked: Callable[[], None] = lambda: None
        """Called in the new process: closes what is the supervisor's."""

    @property
    def is_wanted(self) -> bool:
        """Whether there is anything to write."""
        return bool(self._config.eve.path or self._config.history.path or self._config.metrics.listen)

    def start(self) -> None:
        """Start the process, if there is anything to do for it."""
        if self.is_wanted:
            self._spawn()

    def tick(self, supervisor: Supervisor, totals: Callable[[], Message]) -> None:
        """Hear, tell, and replace it if need be. Never waits. `totals`: all counters there are, together."""
        now = time.monotonic()
        self._listen(now)
        if self._pid and (self._is_dead() or now - self._heard > HUNG_SECONDS):
            log.error("exporter_restarted", restarts=self.restarts + 1)
            self.restarts += 1
            self._end(killed=True)
            self._start_at = now + _RESTART_PAUSE
        if not self._pid and self.is_wanted and now >= self._start_at:
            self._spawn()
        if now >= self._next_word:
            self._next_word = now + TELL_SECONDS
            self._tell(supervisor, totals)

    def totals(self) -> Message:
        """Its counters."""
        return self.figures | {"exporter_restarts": self.restarts}

    def reopen(self) -> None:
        """Have it open its files anew: somebody moved them."""
        if self._link:
            self._link.send({"reopen": True})

    def renew(self, config: Config) -> None:
        """Write by another configuration; what was written before is finished by the old one."""
        same = all(getattr(config, name) == getattr(self._config, name) for name in _SECTIONS)
        self._config = config
        if same and self._pid:
            self.reopen()
            return
        self._end()
        self.start()

    def close(self) -> None:
        """End it, when no worker writes any more; it writes what it has."""
        self._end()
        if left := drained(self._reader):
            log.error("events_lost", reason="nobody was left to write them", lost=left)
            self._lose("events_lost", left)
        if self.figures:
            log.info("exporter_totals", **self.figures)
        self.writer.close()
        self._reader.close()

    # The process

    def _spawn(self) -> None:
        ours, theirs = Link.pair()
        be_exporter = partial(self._be_exporter, ours, theirs)
        try:
            self._pid = fork("nedge-exporter", self.forked, be_exporter, last=True)
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self._link, self._heard = ours, time.monotonic()

    def _be_exporter(self, ours: Link, link: Link) -> int:
        """In the child. It ends when it is told to, or when there is no supervisor any more."""
        ours.close()
        self.writer.close()
        exporter = Exporter(self._config, self._reader, link, self._held)
        exporter.run()
        exporter.close()
        link.send({"figures": exporter.figures()})
        return 0

    def _lose(self, figure: str, count: int) -> None:
        self.figures[figure] = self.figures.get(figure, 0) + count

    def _is_dead(self) -> bool:
        try:
            return os.waitpid(self._pid, os.WNOHANG)[0] != 0
        except ChildProcessError:  # it was found dead before
            return True

    def _listen(self, now: float) -> None:
        messages = self._link.receive() if self._link else None
        for message in messages or ():
            self._heard = now
            self.figures = self._before | {
                name: value + self._before.get(name, 0) for name, value in message["figures"].items()
            }

    def _tell(self, supervisor: Supervisor, totals: Callable[[], Message]) -> None:
        if self._link is None:
            return
        gateway: dict[str, Any] = {
            "started": self._began,
            "restarts": supervisor.restarts,
            "processes": {"supervisor": os.getpid(), "exporter": self._pid},
            "counters": totals(),
            "before": self._before,
        }
        self._link.send({"gateway": gateway})
        for worker in supervisor.describe():
            self._link.send({"workers": [worker]})
        if self._config.history.path and time.monotonic() >= self._next_scores:
            self._next_scores = time.monotonic() + SCORES_SECONDS
            scores = supervisor.host_scores()
            for start in range(0, len(scores), HOSTS_PER_MESSAGE):
                self._link.send({"scores": scores[start : start + HOSTS_PER_MESSAGE]})

    def _end(self, *, killed: bool = False) -> None:
        """Have it finish what it has; killed, if it is not to be asked or does not end in time."""
        if self._link is None:
            return
        if not killed:
            self._link.send({"stop": True})
        deadline = time.monotonic() + (0.0 if killed else STOP_SECONDS)
        while not self._is_dead():
            self._listen(time.monotonic())
            if time.monotonic() > deadline:
                log.error("exporter_killed", reason="it did not end in time")
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(0.005)
        self._listen(time.monotonic())
        for number, figure in enumerate(HELD):
            if held := self._held[number]:
                log.error(figure, reason="the process that had them is gone", lost=held)
                self._lose(figure, held)
                self._held[number] = 0
        self._before = dict(self.figures)
        self._link.close()
        self._pid, self._link = 0, None
