"""Signals and the lab: an interrupted lab is still taken down, and taking it down is not interrupted."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """SIGTERM or SIGHUP came. Like Ctrl-C it unwinds the stack, so that every `with` block cleans up."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def _raise(signum: int, _frame: FrameType | None) -> NoReturn:
    raise Interrupted(signum)


def exit_status(error: KeyboardInterrupt) -> int:
    """The exit status by which a shell learns of the signal."""
    return 128 + (error.signum if isinstance(error, Interrupted) else signal.SIGINT)


@contextmanager
def unwinding_signals() -> Iterator[None]:
    """While in here, SIGTERM and SIGHUP raise `Interrupted` where they would have ended the process outright.

    A signal that somebody handles, or ignores (nohup), stays as it is; so does SIGINT, which Python turns
    into KeyboardInterrupt by itself.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [s for s in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) == signal.SIG_DFL]
    for signum in ours:
        signal.signal(signum, _raise)
    try:
        yield
    finally:
        for signum in ours:
            signal.signal(signum, signal.SIG_DFL)


@contextmanager
def deferred_signals() -> Iterator[None]:
    """Hold signals back until the block is done, then let the first of them act."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    saved = {
        signum: handler
        for signum in SIGNALS
        if (handler := signal.getsignal(signum)) not in (signal.SIG_IGN, None)
    }
    for signum in saved:
        signal.signal(signum, lambda number, _frame: came.append(number))
    try:
        yield
    finally:
        for signum, handler in saved.items():
            signal.signal(signum, handler)
        if came:
            signal.raise_signal(came[0])
