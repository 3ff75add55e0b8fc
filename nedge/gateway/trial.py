"""A configuration is tried in a process of its own before anything depends on it.

That may take seconds, as its lists are packed first, or end badly, as it runs users' scripts and nDPI. The
supervisor has workers to look after meanwhile.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import structlog

from nedge.errors import ConfigError
from nedge.gateway.children import fork
from nedge.gateway.supervisor import Supervisor

LONGEST = 600.0
"""Seconds after which it is ended: it must hang."""

log = structlog.get_logger()


def rehearse(attempt: Callable[[], None], supervisor: Supervisor, forked: Callable[[], None]) -> None:
    """Try a configuration, and look after the workers meanwhile.

    `attempt` raises what is wrong, in sentences. `forked` closes what is the supervisor's. Raises ConfigError
    if it cannot be used, or OSError if there can be no more processes.
    """
    trial = Trial(attempt, forked)
    over: list[int] = []
    supervisor.watch(trial, over.append)
    supervisor.serve(until=lambda: bool(over) or trial.is_late(), reloading=True)
    supervisor.unwatch(trial)
    if supervisor.stopping:
        trial.abandon()
        raise ConfigError("the gateway ends")
    if problem := trial.outcome():
        raise ConfigError(problem)


class Trial:
    """One attempt. `fileno()` is readable when it is over; then `outcome()` tells."""

    def __init__(self, attempt: Callable[[], None], forked: Callable[[], None]) -> None:
        self._reader, writer = os.pipe()
        try:
            self._pid = fork("nedge-trial", forked, lambda: _try(attempt, writer))
        except OSError:
            os.close(self._reader)
            raise
        finally:
            os.close(writer)
        self._until = time.monotonic() + LONGEST

    def fileno(self) -> int:
        return self._reader

    def is_late(self) -> bool:
        """Whether to wait no longer."""
        return time.monotonic() > self._until

    def outcome(self) -> str:
        """End it, if it has not ended. Gives what is wrong, in sentences; empty if nothing is."""
        if late := self.is_late():
            os.kill(self._pid, signal.SIGKILL)
        with os.fdopen(self._reader, "rb") as pipe:
            said = pipe.read().decode(errors="replace")
        status = os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])
        if late:
            return f"it could not be tried within {LONGEST:.0f} s"
        if said or not status:
            return said
        how = f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return f"the process that tried it ended with {how}"

    def abandon(self) -> None:
        """End it: nobody wants to know any more."""
        os.kill(self._pid, signal.SIGKILL)
        self.outcome()


def _try(attempt: Callable[[], None], writer: int) -> int:
    """In the child."""
    try:
        attempt()
    except Exception as error:
        log.debug("trial_failed", error=repr(error), exc_info=error)
        os.write(writer, (str(error) or repr(error)).encode()[: 1 << 15])
        return 1
    return 0
