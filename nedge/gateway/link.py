"""What supervisor and workers talk over: a socket pair, a JSON object a message."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import orjson

_LARGEST_MESSAGE = 1 << 18
_BUFFER = 1 << 20
_SO_SNDBUFFORCE = 32  # asm-generic/socket.h

Message = dict[str, Any]


class Link:
    """One end of the socket pair. Messages are small; one that does not fit into a full socket is dropped."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        sock.setblocking(False)

    @staticmethod
    def pair() -> tuple[Link, Link]:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            with contextlib.suppress(PermissionError):  # less fits in, then
                end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER)
        return Link(ours), Link(theirs)

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: Message) -> bool:
        """Whether it was sent; False also if the other end is gone."""
        try:
            self._socket.send(orjson.dumps(message))
        except OSError:
            return False
        return True

    def receive(self) -> list[Message] | None:
        """The messages that are there; None if the other end is gone."""
        messages: list[Message] = []
        while True:
            try:
                data = self._socket.recv(_LARGEST_MESSAGE)
            except BlockingIOError:
                return messages
            except OSError:
                return None
            if not data:
                return messages or None
            messages.append(orjson.loads(data))

    def close(self) -> None:
        self._socket.close()
