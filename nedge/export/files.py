"""The event file: appended to, rotated, opened again when somebody moved it, and never waited for.

A disk that is full loses events, which are counted; lines stay whole, and writing goes on when there is room.
"""

from __future__ import annotations

import errno
import os
import time
from contextlib import suppress
from pathlib import Path

import structlog

_log = structlog.get_logger(__name__)


class EventFile:
    """One file with a line per event. No method but `open` raises OSError."""

    def __init__(
        self, path: Path, *, rotate_bytes: int = 0, rotate_seconds: float = 0, keep: int = 1
    ) -> None:
        """Rotated before it gets larger, and when that time is over (counted from midnight UTC), unless 0.

        keep: how many older ones, 1 or more; path.1 is the latest.
        """
        self.path = path
        self.written = 0
        """Events, as are:"""
        self.lost = 0
        self.rotations = 0
        self.failures = 0
        """Of opening and rotating."""
        self._rotate_bytes = rotate_bytes
        self._rotate_seconds = rotate_seconds
        self._keep = keep
        self._logged = 0
        self._fd = -1
        self._identity = (0, 0)
        self._size = 0
        self._opened_in = 0

    def write(self, lines: bytes, count: int) -> None:
        """Append `count` whole lines."""
        if self._rotate_bytes and self._size and self._size + len(lines) > self._rotate_bytes:
            self.rotate()
        if not self._size:
            self._opened_in = self._period()
        done, why = 0, errno.ENOSPC
        try:
            done = os.write(self._fd, lines)
        except OSError as error:
            why = error.errno or why
        self._size += done
        if done == len(lines):
            self.written += count
            return
        kept = self._take_back(lines, done)
        self.written += kept
        self._lose(count - kept, why)

    def _take_back(self, lines: bytes, done: int) -> int:
        """The disk took a part: leave whole lines in the file; how many."""
        whole = lines.rfind(b"\n", 0, done) + 1
        if done > whole:
            try:
                end = os.lseek(self._fd, 0, os.SEEK_CUR)
                os.ftruncate(self._fd, end - (done - whole))
                self._size -= done - whole
            except OSError:  # no file that can be cut: end the line, so that the next is whole
                with suppress(OSError):
                    os.write(self._fd, b"\n")
        return lines.count(b"\n", 0, whole)

    def _lose(self, count: int, why: int) -> None:
        before, self.lost = self.lost, self.lost + count
        if before.bit_length() != self.lost.bit_length():  # at the 1st, 2nd, 4th, 8th …
            _log.error("eve_write_failed", path=str(self.path), error=os.strerror(why), lost=self.lost)

    # Rotation

    def tick(self) -> None:
        """Look after the file; to be called about every second."""
        if self._rotate_seconds and self._size and self._period() != self._opened_in:
            self.rotate()
        elif self._moved():
            self.reopen()

    def rotate(self) -> None:
        """Begin a new file; the old one becomes path.1, that path.2, and so on."""
        try:
            for number in range(self._keep - 1, 0, -1):
                with suppress(FileNotFoundError):
                    self._aside(number).rename(self._aside(number + 1))
            with suppress(FileNotFoundError):
                self.path.rename(self._aside(1))
        except OSError as error:
            self._failed("eve_rotation_failed", error)
            self._size, self._opened_in = 0, self._period()  # not again with every write
            return
        self.rotations += 1
        self.reopen()

    def reopen(self) -> None:
        """Open the path anew, as the file may have been moved away. If that fails, the old one stays."""
        try:
            self.open()
        except OSError as error:
            self._failed("eve_open_failed", error)

    def open(self) -> None:
        """Open the path, in place of the file that is open. Raises OSError, and then that one stays."""
        # A pipe that nobody reads is an error instead of waiting for ever.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        fd = os.open(self.path, flags, 0o640)
        self.close()
        self._fd = fd
        status = os.fstat(self._fd)
        self._identity = (status.st_dev, status.st_ino)
        self._size = status.st_size
        self._opened_in = self._period(status.st_mtime if status.st_size else None)

    def _aside(self, number: int) -> Path:
        return self.path.with_name(f"{self.path.name}.{number}")

    def _period(self, when: float | None = None) -> int:
        seconds = self._rotate_seconds
        return int((time.time() if when is None else when) // seconds) if seconds else 0

    def _moved(self) -> bool:
        """Whether the path leads to another file now, or to none."""
        try:
            status = os.stat(self.path)
        except OSError:
            return True
        return (status.st_dev, status.st_ino) != self._identity

    def _failed(self, what: str, error: OSError) -> None:
        self.failures += 1
        if self.failures & (self.failures - 1) == 0:
            _log.error(what, path=str(self.path), error=error.strerror, failures=self.failures)

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
