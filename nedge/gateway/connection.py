"""One client of the control API: its bytes in and out, and how long it may take."""

from __future__ import annotations

import select
import selectors
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from nedge.control.protocol import MAX_REQUEST, VERSION, Kind, Message, encode

LINE_SECONDS = 5.0
"""A request that was begun is to be there after so many seconds."""
IDLE_SECONDS = 120.0
STALL_SECONDS = 10.0
"""A client with something to read has to read some of it within so many seconds."""
ROOM = 256 * 1024
"""Bytes that wait for a client, beyond which no more is fetched for it."""
_READ = 64 * 1024
_LINES = 16
"""Requests of one client that are handled in a row."""


class Loop(Protocol):
    """The selector of whoever runs this."""

    def watch(self, fileobj: Any, ready: Callable[[int], None], events: int = ...) -> None: ...
    def watch_for(self, fileobj: Any, events: int) -> None: ...
    def unwatch(self, fileobj: Any) -> None: ...


class Server(Protocol):
    """Whose client it is."""

    loop: Loop
    clients: set[Client]

    def count(self, counter: str) -> None:
        """Something happened that is counted."""

    def request(self, client: Client, line: bytes) -> None:
        """Answer a line, now or later, by the client's `done` or `refuse`. Raises nothing."""


class Peer(NamedTuple):
    """The process at the other end, as the kernel tells."""

    pid: int
    uid: int
    groups: frozenset[int]

    def __str__(self) -> str:
        return "root" if self.uid == 0 else f"uid {self.uid}"


class Client:
    """One connection. Whoever handles a request answers it with `done` or `refuse`, once, now or later."""

    def __init__(self, server: Server, sock: socket.socket, peer: Peer) -> None:
        self.peer = peer
        self.busy = False
        """A request is being answered."""
        self.on_room: Callable[[], None] | None = None
        """Called once when what waits has become little again."""
        self.on_gone: Callable[[], None] | None = None
        """Called if the client leaves while it is being answered."""
        self.closed = False
        self._server = server
        self._socket = sock
        self._inbox = bytearray()
        self._outbox = bytearray()
        self._events = selectors.EVENT_READ
        self._ended = False  # it will send no more
        self._leaving = False  # it is sent what waits, then closed
        self._taking = False
        self._more = False  # lines wait, but others have their turn first
        self._since = time.monotonic()  # of what is being waited for: see `overdue`

    # For the handler

    def rows(self, columns: Sequence[str], rows: list[Any]) -> None:
        """A part of a listing."""
        self._send({"version": VERSION, "columns": columns, "rows": rows})

    def done(self, result: dict[str, Any]) -> None:
        """The end of the answer."""
        self._finish({"version": VERSION, "ok": True, "result": result})

    def refuse(self, kind: Kind, sentence: str) -> None:
        """The end of the answer: it cannot be done."""
        self._finish({"version": VERSION, "ok": False, "kind": kind, "error": sentence})

    @property
    def room(self) -> bool:
        """Whether more of a listing may be sent now; if not, `on_room` will be called."""
        return len(self._outbox) < ROOM

    # In

    def ready(self, events: int) -> None:
        """Called by the loop."""
        if events & selectors.EVENT_WRITE:
            self._flush()
            self._take_lines()
            self._adjust()
        if events & selectors.EVENT_READ and not self.closed:
            self._read()

    def _read(self) -> None:
        try:
            data = self._socket.recv(_READ)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if self._leaving:
            return  # what it says now is of no interest
        if not data:
            self._ended = True
            if not (self.busy or self._outbox) or self._is_gone():
                self.close()
        else:
            if not self._inbox:
                self._since = time.monotonic()
            self._inbox += data
            self._take_lines()
        self._adjust()

    def _is_gone(self) -> bool:
        """Whether it reads no more, either. (Else it has only finished asking.)"""
        poll = select.poll()
        poll.register(self._socket, 0)
        return any(events & select.POLLHUP for _fd, events in poll.poll(0))

    def _take_lines(self) -> None:
        """Handle requests, one after the other: each when the answer to the one before is on its way."""
        if self._taking:
            return
        self._taking, self._more = True, False
        left = _LINES
        while not (self.busy or self.closed or self._leaving or self._outbox):
            if not left:
                self._more = b"\n" in self._inbox
                break
            left -= 1
            end = self._inbox.find(b"\n")
            if end < 0:
                break
            line = bytes(self._inbox[:end])
            del self._inbox[: end + 1]
            self._since = time.monotonic()
            if line.strip():
                self.busy = True
                self._server.request(self, line)
        self._taking = False
        if len(self._inbox) > MAX_REQUEST:
            self._server.count("oversized")
            self.leave(Kind.USAGE, f"a request is longer than {MAX_REQUEST} bytes")

    # Out

    def _send(self, message: Message) -> None:
        if self.closed or self._leaving:
            return
        if not self._outbox:
            self._since = time.monotonic()
        self._outbox += encode(message)
        self._flush()

    def _finish(self, message: Message) -> None:
        self._send(message)
        self.on_gone = self.on_room = None
        self.busy = False
        if self.closed:
            return
        if self._ended and not self._outbox:
            self.close()
            return
        self._take_lines()
        self._adjust()

    def leave(self, kind: Kind, sentence: str) -> None:
        """Say why, and close when that has been read."""
        self._send({"version": VERSION, "ok": False, "kind": kind, "error": sentence})
        self._leaving = True
        self._inbox.clear()
        if not self.closed and not self._outbox:
            self.close()

    def _flush(self) -> None:
        try:
            sent = self._socket.send(self._outbox) if self._outbox else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self.close()
            return
        if sent:
            del self._outbox[:sent]
            self._since = time.monotonic()
        if not self._outbox and (self._leaving or (self._ended and not self.busy)):
            self.close()
            return
        self._adjust()
        if self.room and self.on_room is not None:
            on_room, self.on_room = self.on_room, None
            on_room()

    def _adjust(self) -> None:
        """Wait for what can happen now."""
        if self.closed:
            return
        events = 0 if self._ended else selectors.EVENT_READ
        if self._outbox or self._more:
            events |= selectors.EVENT_WRITE
        if events == self._events:
            return
        loop = self._server.loop
        if not self._events:
            loop.watch(self._socket, self.ready, events)
        elif events:
            loop.watch_for(self._socket, events)
        else:  # all depends on the answer
            loop.unwatch(self._socket)
        self._events = events

    # Ends

    def overdue(self, now: float) -> str:
        """The counter of what it has not done in time, if there is anything."""
        waited = now - self._since
        if self._outbox:
            return "stalled" if waited > STALL_SECONDS else ""
        if self.busy:
            return ""
        return "timeouts" if waited > (LINE_SECONDS if self._inbox else IDLE_SECONDS) else ""

    def close(self) -> None:
        """Hang up."""
        if self.closed:
            return
        self.closed = True
        if self._events:
            self._server.loop.unwatch(self._socket)
        self.forget()
        self._server.clients.discard(self)
        if self.on_gone is not None:
            on_gone, self.on_gone = self.on_gone, None
            on_gone()

    def forget(self) -> None:
        """Close the descriptor, without more ado."""
        self._socket.close()
