"""Signals that are meant for us, as something to select on."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Iterator

HAND_OVER = signal.SIGUSR2
"""Stop, but leave everything in the kernel to the next start."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, HAND_OVER, signal.SIGHUP, signal.SIGUSR1)


class StopSignals:
    """Signals as something to select on; from the moment it is made, none is lost."""

    def __init__(self, numbers: tuple[signal.Signals, ...] = STOP_SIGNALS) -> None:
        self.stop: int | None = None
        """The first signal to stop that came."""
        self.reload = False
        """SIGHUP came; who acts on it clears this before."""
        self.reopen = False
        """SIGUSR1 came: files have been moved. The same is true of it."""
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old = {number: signal.signal(number, self._note) for number in numbers}

    def fileno(self) -> int:
        """Readable after a signal."""
        return self._reader.fileno()

    def consume(self) -> None:
        """Make `fileno()` quiet again."""
        with contextlib.suppress(BlockingIOError):
            self._reader.recv(4096)

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._reader.close()
        self._writer.close()

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGHUP:
            self.reload = True
        elif number == signal.SIGUSR1:
            self.reopen = True
        elif self.stop is None:
            self.stop = number


@contextlib.contextmanager
def stop_signals(*numbers: signal.Signals) -> Iterator[StopSignals]:
    """Catch the signals (these, or all) for the length of a block."""
    signals = StopSignals(numbers or STOP_SIGNALS)
    try:
        yield signals
    finally:
        signals.close()
