"""A TLS ClientHello that comes in pieces: put together, so that its name is seen.

A client may cut it into any number of TCP segments and of records (RFC 8446, 5.1), and servers do not mind.
nDPI looks at some 30 packets and at whole records, so it gets the hello as one record in one packet.
"""

from __future__ import annotations

from typing import Final

from nedge.core.cursor import Cursor
from nedge.core.packet import Packet

MAX_HELLO: Final = 16 * 1024
"""Bytes; a longer one is not waited for. Those of our time have 500 to 2,000."""

_HANDSHAKE: Final = 22  # RFC 8446, 5.1
_CLIENT_HELLO: Final = 1  # and 4
_MAJOR: Final = 3
_RECORD_HEAD: Final = 5
_MESSAGE_HEAD: Final = 4


class Hello:
    """What a client has said, from its first byte on, until its hello is whole."""

    __slots__ = ("_at", "_cursor", "_message", "_records", "_said")

    def __init__(self, start: int = -1) -> None:
        """`start`: number of the client's first byte, if known."""
        self._cursor = Cursor(start)
        self._said = b""
        self._at = 0  # behind the last record that was whole
        self._records = 0
        self._message = b""  # what was in them

    def take(self, packet: Packet) -> bytes:
        """All that was said, its hello in one record. Empty while there is more to come.

        Also what turns out to be no hello comes in one piece.
        """
        data, missing, uncaptured = self._cursor.take(packet)
        self._said += data
        if missing or uncaptured or len(self._said) > MAX_HELLO:
            return self._said
        return self._whole()

    def _whole(self) -> bytes:
        said = self._said
        while not _is_whole(self._message):
            head = said[self._at : self._at + _RECORD_HEAD]
            if (head and head[0] != _HANDSHAKE) or (len(head) > 1 and head[1] != _MAJOR):
                return said
            end = self._at + _RECORD_HEAD
            if len(head) == _RECORD_HEAD:
                end += head[3] << 8 | head[4]
            if len(head) < _RECORD_HEAD or end > len(said):
                return b""
            self._message += said[self._at + _RECORD_HEAD : end]
            self._records += 1
            self._at = end
            if self._message and self._message[0] != _CLIENT_HELLO:
                return said
        if self._records == 1:
            return said
        size = len(self._message)
        return said[:3] + bytes((size >> 8, size & 0xFF)) + self._message + said[self._at :]


def _is_whole(message: bytes) -> bool:
    if len(message) < _MESSAGE_HEAD:
        return False
    return len(message) >= _MESSAGE_HEAD + (message[1] << 16 | message[2] << 8 | message[3])


def starts_hello(payload: bytes) -> bool:
    """Whether a client's first bytes may be a hello that is not whole, or is in several records."""
    if not payload or payload[0] != _HANDSHAKE:
        return False
    if len(payload) < _RECORD_HEAD + _MESSAGE_HEAD:
        return True
    size = payload[3] << 8 | payload[4]
    message = _MESSAGE_HEAD + (payload[6] << 16 | payload[7] << 8 | payload[8])
    return size < message or len(payload) < _RECORD_HEAD + size
