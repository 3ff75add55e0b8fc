"""The control socket: who may connect, lines in, lines out. It knows nothing of what is asked.

It lives in the supervisor's loop, so nothing here waits: reads and writes take what is there, whatever a
client does or leaves undone has a bound in bytes and in time, and each way to misbehave has a counter.
"""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog

from nedge.control.protocol import ControlError, Kind
from nedge.control.requests import Request, parse_request
from nedge.gateway.connection import Client, Loop, Peer
from nedge.kernel.errors import KernelError

MAX_CLIENTS = 16
_SO_PEERGROUPS = 59  # asm-generic/socket.h
_credentials = struct.Struct("3i")

log = structlog.get_logger()


class ControlServer:
    """Listens, and hands requests to `handle`. Every counter only grows."""

    def __init__(self, path: Path, group: str | None, loop: Loop) -> None:
        self.path = path
        self.loop = loop
        self.clients: set[Client] = set()
        self.handle: Callable[[Client, Request], None] = lambda client, request: None  # noqa: ARG005
        self.counters = dict.fromkeys(
            (
                "clients", "requests", "refused", "busy", "malformed", "oversized", "timeouts", "stalled",
                "errors",
            ),
            0,
        )  # fmt: skip
        self._group = group
        self._gid = -1
        self._listener: socket.socket | None = None
        self._next_log = 0.0

    def open(self) -> None:
        """Begin to listen. Raises KernelError."""
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.setblocking(False)
        try:
            if self._group is not None:
                self._gid = grp.getgrnam(self._group).gr_gid
            self._remove_stale()
            before = os.umask(0o177)
            try:
                self._listener.bind(os.fspath(self.path))
            finally:
                os.umask(before)
            if self._group is not None:
                os.chown(self.path, -1, self._gid)
                os.chmod(self.path, 0o660)
            self._listener.listen(MAX_CLIENTS)
        except (OSError, KeyError) as error:
            self._listener.close()
            self._listener = None
            why = error.strerror or str(error) if isinstance(error, OSError) else f"no group {self._group!r}"
            raise KernelError(f"control.socket: {self.path} cannot be used: {why}") from error
        self.loop.watch(self._listener, self._accept)

    def _remove_stale(self) -> None:
        """Remove what a gateway that crashed left."""
        try:
            mode = self.path.lstat().st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(mode):
            raise OSError(0, "there is something that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)
            try:
                probe.connect(os.fspath(self.path))
            except (ConnectionRefusedError, FileNotFoundError):
                self.path.unlink(missing_ok=True)
                return
            except BlockingIOError:
                pass
        raise OSError(0, "another program listens there")

    def close(self) -> None:
        """Hang up on all, and remove the socket."""
        if self._listener is None:
            return
        self.loop.unwatch(self._listener)
        self._listener.close()
        self._listener = None
        with contextlib.suppress(OSError):
            self.path.unlink()
        for client in list(self.clients):
            client.close()

    def forked(self) -> None:
        """In another process: close the descriptors."""
        if self._listener is not None:
            self._listener.close()
        for client in self.clients:
            client.forget()

    def turn(self, now: float) -> None:
        """Send away those who are late. `now`: by the monotonic clock."""
        for client in list(self.clients):
            counter = client.overdue(now)
            if counter:
                self.count(counter)
                if counter == "timeouts":
                    client.leave(Kind.USAGE, "no request came in time")
                client.close()

    def count(self, counter: str) -> None:
        self.counters[counter] += 1

    def request(self, client: Client, line: bytes) -> None:
        """A client's line. Nothing that goes wrong with it gets out of here."""
        self.count("requests")
        try:
            request = parse_request(line)
        except ControlError as error:
            self.count("malformed")
            client.refuse(error.kind, str(error))
            return
        try:
            self.handle(client, request)
        except ControlError as error:
            client.refuse(error.kind, str(error))
        except Exception as error:
            self.count("errors")
            log.error("control_error", error=repr(error), exc_info=error)
            client.refuse(Kind.FAILED, f"the gateway failed to answer ({type(error).__name__}): see its log")

    def _accept(self, _events: int) -> None:
        assert self._listener is not None
        for _ in range(MAX_CLIENTS):
            try:
                sock, _address = self._listener.accept()
            except OSError:  # none is left, or it has gone again, or there are too many open files
                return
            sock.setblocking(False)
            peer = _peer(sock)
            client = Client(self, sock, peer)
            self.clients.add(client)
            self.loop.watch(sock, client.ready)
            self.count("clients")
            if not self._may(peer):
                self.count("refused")
                self._log("control_refused", uid=peer.uid, pid=peer.pid)
                allowed = f"root and members of group {self._group}" if self._group else "root"
                client.leave(
                    Kind.PERMISSION, f"user id {peer.uid} may not use this gateway; only {allowed} may"
                )
            elif len(self.clients) > MAX_CLIENTS:
                self.count("busy")
                client.leave(Kind.BUSY, f"{MAX_CLIENTS} clients are connected already; try again")

    def _may(self, peer: Peer) -> bool:
        return peer.uid in (0, os.geteuid()) or (self._group is not None and self._gid in peer.groups)

    def _log(self, event: str, **fields: Any) -> None:
        """A line in the log, not too often."""
        now = time.monotonic()
        if now >= self._next_log:
            self._next_log = now + 1.0
            log.warning(event, **fields)


def _peer(sock: socket.socket) -> Peer:
    pid, uid, gid = _credentials.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _credentials.size)
    )
    try:
        raw = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, 1024)
        more = struct.unpack(f"{len(raw) // 4}I", raw)
    except OSError:  # more than 256 of them, or an old kernel
        more = ()
    return Peer(pid, uid, frozenset((gid, *more)))
