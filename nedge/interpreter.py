"""Running a module of nedge in a Python of its own, and ends of processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

SUPERVISORS = (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that only the supervisor acts on. A terminal and `systemctl kill` send them to all processes."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def module(name: str, *arguments: str) -> list[str]:
    """The command. What lies in the current directory is not imported: nedge runs as root, from anywhere."""
    return [sys.executable, "-P", "-m", name, *arguments]


def environment() -> dict[str, str]:
    """The environment in which it finds this very package."""
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    return {**os.environ, "PYTHONPATH": path}


def die_with_parent(number: signal.Signals = signal.SIGKILL) -> None:
    """Have the kernel end this process with the one that started it, even where it hangs (prctl(2))."""
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:  # it died before
        os._exit(1)


@contextlib.contextmanager
def held(numbers: Iterable[signal.Signals]) -> Iterator[None]:
    """Signals that come meanwhile wait; in a process that is started meanwhile, until it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore(numbers: Iterable[signal.Signals]) -> None:
    """In a process that was started with these signals held: they do nothing from now on."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
