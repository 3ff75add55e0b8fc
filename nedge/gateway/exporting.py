"""The exporter as the supervisor sees it: a process that is started, told how the gateway is, and replaced.

What workers write waits in the channel meanwhile, so nothing is lost while there is room in it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

import structlog

from nedge.config import Config
from nedge.export.outlet import channel
from nedge.export.process import Exporter
from nedge.gateway.link import Link, Message
from nedge.gateway.signals import stop_signals
from nedge.gateway.supervisor import HOSTS_PER_MESSAGE, Supervisor, name_process
from nedge.interpreter import die_with_parent

TELL_SECONDS = 1.0
SCORES_SECONDS = 60.0
HUNG_SECONDS = 60.0
"""Without a word for so long it is replaced. A slow disk may keep it busy for a while."""
STOP_SECONDS = 5.0
_RESTART_PAUSE = 1.0
_PARENT_DIED = signal.SIGUSR2
_SECTIONS = ("eve", "history", "metrics", "lists", "log")
"""Of the configuration: what concerns it."""

log = structlog.get_logger()


class ExporterProcess:
    """Runs an exporter for one configuration after the other."""

    def __init__(self, config: Config) -> None:
        self.writer, self._reader = channel()
        """`writer` is the end that workers write to."""
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
        if self._pid:
            self._end()
            log.info("exporter_totals", **self.figures)
        self.writer.close()
        self._reader.close()

    # The process

    def _spawn(self) -> None:
        ours, theirs = Link.pair()
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become_exporter(theirs)
        theirs.close()
        self._pid, self._link, self._heard = pid, ours, time.monotonic()

    def _become_exporter(self, link: Link) -> NoReturn:
        """In the child. Never returns into the supervisor's code."""
        status = 1
        try:
            # Those who stop nedge may signal all of its processes; this one has to be the last.
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
                signal.signal(number, signal.SIG_IGN)
            name_process("nedge-exporter")
            with stop_signals(_PARENT_DIED) as signals:
                die_with_parent(_PARENT_DIED)
                self.forked()
                self.writer.close()
                exporter = Exporter(self._config, self._reader, link)
                exporter.run(signals)
                exporter.close()
                link.send({"figures": exporter.figures()})
            status = 0
        except BaseException as error:
            log.error("exporter_failed", error=repr(error), exc_info=error)
        finally:
            os._exit(status)

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
        self._before = dict(self.figures)
        self._link.close()
        self._pid, self._link = 0, None
