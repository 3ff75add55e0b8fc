"""The time budget: a script that runs too long is made to end, also one that loops, sleeps or catches all.

Who calls into a script sets `WATCH.call.deadline` before, and takes it back after. What follows depends on
the language:

* Python: a timer's signal looks every 10 ms whether the call under way is overdue, and raises in the script.
  Never in nedge's own code, which the script may have called: there it waits until the script is back. A
  script can catch what is raised; so from then on it is raised again at each place where Python looks for
  what is pending (turns of loops, calls of functions), until the script has run out of catches. C functions
  that do not look for signals cannot be interrupted.
* Lua: sandbox.lua asks `overdue` every so many instructions.

What neither reaches, the gateway's supervisor does: it replaces a worker that was not heard for a second.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter_ns
from types import FrameType

from nedge.scripts.underway import CallUnderWay

LOAD_SECONDS = 10.0
"""What loading, setting up or unloading one script may take."""
TICK_SECONDS = 0.01
_QUIET_TICKS = 20
"""So many ticks between calls, one after the other, and the timer stops until the next call."""
_GRACE_NS = 5_000_000
"""A call is overdue if it still runs so long after that was first seen: a process that did not get the CPU
for a while finds itself past a deadline that its script had no chance to keep."""

_OURS = str(Path(__file__).parent.parent) + os.sep
_SCRIPTS_IN_PACKAGE = os.path.join(_OURS, "policies") + os.sep


class ScriptTimeoutError(BaseException):
    """Raised inside a script whose time is over."""

    where: tuple[tuple[Path, int], ...] = ()
    """The script's lines, where the traceback does not have them."""


class Watch:
    """Looks at the clock for the call under way. There is one for each process, as there is for signals."""

    __slots__ = ("_late", "_late_since", "_quiet", "call")

    def __init__(self) -> None:
        self.call = CallUnderWay()
        self._late = 0
        self._late_since = 0
        self._quiet = 0

    def overdue(self) -> bool:
        """Whether the call under way has to end now."""
        deadline = self.call.deadline
        if not deadline:
            return False
        now = perf_counter_ns()
        if now < deadline:
            return False
        if self._late != deadline:
            self._late, self._late_since = deadline, now
        return now - self._late_since >= _GRACE_NS

    def begin(self, seconds: float) -> None:
        """Our caller calls into a script, which may take so long. (The runner does the same by itself.)"""
        if self.call.resting:
            self.wake()
        self.call.base = sys._getframe(1)
        self.call.fired = False
        self.call.deadline = perf_counter_ns() + int(seconds * 1e9)

    def end(self) -> bool:
        """It is over. Whether it was interrupted."""
        self.call.deadline = 0
        self.call.base = None
        fired, self.call.fired = self.call.fired, False
        return fired

    def wake(self) -> None:
        """Start the timer."""
        self.call.resting = False
        self._quiet = 0
        signal.setitimer(signal.ITIMER_REAL, TICK_SECONDS, TICK_SECONDS)

    def rest(self) -> None:
        """Stop the timer until the next call."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        self.call.resting = True

    def tick(self, _number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        if self.call.deadline:
            self._quiet = 0
            self.interrupt(frame)
        else:
            self._quiet += 1
            if self._quiet > _QUIET_TICKS:
                self.rest()

    def interrupt(self, frame: FrameType | None) -> None:
        """Raise, if the call under way is overdue and it is the script that runs. If not, try again soon."""
        if not self.overdue():
            return
        _when_python_looks_next()
        if _in_script(frame):
            self.call.fired = True
            raise ScriptTimeoutError


WATCH = Watch()


@contextmanager
def enforced() -> Iterator[None]:
    """Interrupt overdue Python scripts, for the length of a block. In the main thread only: signals are."""
    before = signal.signal(signal.SIGALRM, WATCH.tick)
    nested = before == WATCH.tick
    WATCH.call.resting = True
    try:
        yield
    finally:
        WATCH.rest()
        if not nested:
            WATCH.call.resting = False
            signal.signal(signal.SIGALRM, before or signal.SIG_DFL)


class _Pending:
    """Its truth is asked for by Python's evaluation loop, as a pending call; that can raise in what runs."""

    def __bool__(self) -> bool:
        WATCH.interrupt(sys._getframe(1))
        return False


_PENDING = _Pending()
_add_pending_call = ctypes.pythonapi.Py_AddPendingCall
_add_pending_call.argtypes = [ctypes.c_void_p, ctypes.py_object]
_IS_TRUE = ctypes.cast(ctypes.pythonapi.PyObject_IsTrue, ctypes.c_void_p)


def _when_python_looks_next() -> None:
    """Have WATCH.interrupt called wherever Python looks for pending calls next."""
    _add_pending_call(_IS_TRUE, _PENDING)


def _in_script(frame: FrameType | None) -> bool:
    """Whether what runs is a script, not code of ours that it called: only that may be interrupted."""
    inside = False
    while frame is not None and frame is not WATCH.call.base:
        name = frame.f_code.co_filename
        if name.startswith(_OURS) and not name.startswith(_SCRIPTS_IN_PACKAGE):
            return False
        inside = True
        frame = frame.f_back
    return inside and frame is not None
