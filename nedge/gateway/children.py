"""Processes that the supervisor forks: workers, exporter, trials of a configuration."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from pathlib import Path

import structlog

from nedge import interpreter

log = structlog.get_logger()


def fork(name: str, forked: Callable[[], None], work: Callable[[], int], *, last: bool = False) -> int:
    """Do `work` in a child process, which ends with the exit status that it gives. Gives its process id.

    `forked` comes first: it closes what is the supervisor's. Signals that are meant for the supervisor are
    ignored, from the first moment on: who sends them may send them to all processes there are.
    last: it is to end after all others, whatever becomes of the supervisor: SIGTERM is ignored, too.

    Raises OSError if there can be no more processes.
    """
    numbers = (*interpreter.SUPERVISORS, signal.SIGTERM) if last else interpreter.SUPERVISORS
    with interpreter.held(numbers):
        pid = os.fork()
        if pid:
            return pid
        status = 1
        try:
            if not last:
                interpreter.die_with_parent()
            name_process(name)
            forked()
            interpreter.ignore(numbers)
            status = work()
        except BaseException as error:
            log.error("child_failed", name=name, error=repr(error), exc_info=error)
        finally:
            os._exit(status)


def name_process(name: str) -> None:
    """What `ps` and `top` show of this process; 15 characters at most."""
    with contextlib.suppress(OSError):
        Path("/proc/self/comm").write_text(name)
