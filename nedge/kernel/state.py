"""What the gateway changed in the system, on disk, so that a crash can be undone by the next start.

One file per bridge, under a directory per network namespace:

    /run/nedge/<namespace>/<bridge>.json    what was there before, one section per owner
    /run/nedge/<namespace>/<bridge>.lock    held (flock) by the gateway that runs on this bridge
    /run/nedge/<namespace>/<bridge>.sock    where it listens for the operator, unless configured otherwise

Sections are written *before* the change that they describe and dropped after it is undone.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nedge.kernel.errors import KernelError

RUN_DIR = Path("/run/nedge")
SOCKET = ".sock"
_SO_NETNS_COOKIE = 71  # Linux 5.14; not yet in Python's socket module

Section = dict[str, Any]


def namespace_id() -> str:
    """A name for this network namespace. The cookie is never used twice, unlike the inode number."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as probe:
        try:
            cookie = probe.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return f"inode-{os.stat('/proc/self/ns/net').st_ino}"
    return f"netns-{struct.unpack('=Q', cookie)[0]}"


def namespace_dir(run_dir: Path = RUN_DIR) -> Path:
    """Where this network namespace's state is kept."""
    return run_dir / namespace_id()


class State:
    """The record of one bridge: named sections of what was found before it was changed."""

    def __init__(self, bridge: str, directory: Path | None = None) -> None:
        self.bridge = bridge
        self.directory = directory or namespace_dir()
        self.path = self.directory / f"{bridge}.json"
        self.inherited = False
        """Whether it holds what a crashed gateway left, and this one has not yet taken over."""
        self._sections: dict[str, Section] = {}
        self._lock = -1

    def lock(self) -> None:
        """Become the one gateway on this bridge, and read what a crashed one left.

        Raises KernelError if another process is."""
        if not self.try_lock():
            raise KernelError(
                f"another nedge is running on bridge {self.bridge} of this network namespace"
                f"{self._holder()}; stop it first or use another gateway.bridge"
            )

    def try_lock(self) -> bool:
        """As `lock()`, but False where another process holds it."""
        try:
            lock = self._acquire()
        except OSError as error:
            raise KernelError(f"{self._lock_path} cannot be written: {error.strerror}") from error
        if lock is None:
            return False
        os.ftruncate(lock, 0)
        os.write(lock, b"%d\n" % os.getpid())
        self._lock = lock
        self._sections = self._read()
        self.inherited = bool(self._sections)
        return True

    def _acquire(self) -> int | None:
        while True:
            try:
                self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except FileNotFoundError:  # a gateway that ended just removed the directory, or its parent
                continue
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(lock)
                return None
            if self._is_current(lock):
                return lock
            os.close(lock)  # a gateway that ended just removed this file

    def unlock(self) -> None:
        """Let another process have this bridge."""
        if self._lock < 0:
            return
        (self.directory / f"{self.bridge}{SOCKET}").unlink(missing_ok=True)  # a crash may have left it
        self._lock_path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: a record, or another bridge's
            self.directory.rmdir()
            self.directory.parent.rmdir()
        os.close(self._lock)
        self._lock = -1

    def forget_lock(self) -> None:
        """In a forked process, which may outlive this one: that must not hinder the next start."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def socket(self, *, shared: bool) -> Path:
        """Where the gateway listens for the operator. `shared`: others than root can get there, too."""
        for directory in (self.directory, self.directory.parent) if shared else ():
            if directory in (self.directory, RUN_DIR):
                directory.chmod(0o755)
        return self.directory / f"{self.bridge}{SOCKET}"

    def peek(self) -> tuple[dict[str, Section], str | None]:
        """The record as it is, and the process id of the gateway that runs; None if none does.

        For who only looks: locks and changes nothing."""
        with contextlib.suppress(FileNotFoundError):
            lock = os.open(self._lock_path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return self._read(), os.read(lock, 20).decode().strip()
            finally:
                os.close(lock)
        return self._read(), None

    def get(self, section: str) -> Section | None:
        """What is recorded under this name, None if nothing is."""
        return self._sections.get(section)

    def put(self, section: str, found: Section) -> None:
        """Record what was found, before it is changed."""
        self._sections[section] = found
        self._write()

    def drop(self, section: str) -> None:
        """Forget a section: all it describes is as it was found."""
        if self._sections.pop(section, None) is not None:
            self._write()

    def others(self, section: str) -> list[Section]:
        """The same section in the records of the other bridges of this network namespace."""
        found = []
        for path in sorted(self.directory.glob("*.json")):
            with contextlib.suppress(OSError, ValueError):
                if path != self.path and section in (sections := json.loads(path.read_text())):
                    found.append(sections[section])
        return found

    @property
    def _lock_path(self) -> Path:
        return self.directory / f"{self.bridge}.lock"

    def _is_current(self, lock: int) -> bool:
        try:
            return os.path.samestat(os.fstat(lock), self._lock_path.stat())
        except FileNotFoundError:
            return False

    def _holder(self) -> str:
        try:
            pid = self._lock_path.read_text().strip()
        except OSError:
            return ""
        return f" (process {pid})" if pid else ""

    def _read(self) -> dict[str, Section]:
        try:
            sections = json.loads(self.path.read_text())
        except FileNotFoundError:
            return {}
        except ValueError as error:
            raise KernelError(
                f"{self.path}, the record of a gateway that crashed, is damaged ({error}): look at what that "
                f"gateway left (ip link, iptables-save), then remove the file"
            ) from error
        assert isinstance(sections, dict)
        return sections

    def _write(self) -> None:
        if not self._sections:
            self.path.unlink(missing_ok=True)
            return
        # Whole or not at all: the record must survive a crash in the middle of this.
        fresh = self.path.with_suffix(".new")
        fresh.write_text(json.dumps(self._sections, indent=1))
        fresh.rename(self.path)


def abandoned(but: str, directory: Path | None = None) -> Iterator[State]:
    """The locked records of crashed gateways on other bridges of this network namespace."""
    directory = directory or namespace_dir()
    for path in sorted(directory.glob("*.json")):
        if path.stem == but:
            continue
        state = State(path.stem, directory)
        if state.try_lock():
            try:
                yield state
            finally:
                state.unlock()
