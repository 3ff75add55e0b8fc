"""As much of QUIC as tells one connection's first datagrams from another's (RFC 9000, 17.2; RFC 9369)."""

from __future__ import annotations

import re

_MAX_ID = 20
# A long header of version 1 or 2, of a draft, or of Google's with TLS.
_LONG_HEADER = re.compile(rb"[\x80-\xff](?:\0\0\0\x01|\x6b\x33\x43\xcf|\xff\0\0.|[QT]0[0-9]{2})", re.DOTALL)


def connection_id(payload: bytes) -> bytes:
    """Version and destination connection id of a datagram with a long header; empty if it has none.

    All that a client sends before it has an answer bears the same.
    """
    if not _LONG_HEADER.match(payload) or len(payload) < 6:
        return b""
    length = payload[5]
    return payload[1 : 6 + length] if length <= _MAX_ID else b""
