"""TCP connections whose flows ended in silence: where the client's stream goes on, should it speak after all.

Who does not know that may be deceived: by what comes first, which the server throws away (see `normalizer`).
"""

from __future__ import annotations

from typing import NamedTuple

from nedge.core.flow import Flow, Handshake
from nedge.core.packet import reverse_key

MAX_REMEMBERED = 1 << 16
"""Beyond, the oldest is forgotten: what comes of it then is picked up mid-stream."""


class Start(NamedTuple):
    """How far a connection was."""

    key: bytes
    """Of the client-to-server direction."""
    number: int
    """The client's next byte has the one behind it: that of its SYN, or of the last byte confirmed."""
    port: int
    """Of the bridge, that the client's packets come by; 0 if that is not known."""
    handshake: Handshake


class SilentConnections:
    """The latest of them."""

    def __init__(self) -> None:
        self._starts: dict[bytes, Start] = {}

    def __len__(self) -> int:
        return len(self._starts)

    def remember(self, flow: Flow) -> None:
        """A TCP flow ends for want of packets: its connection may go on."""
        number = flow.isn
        if number < 0:
            return
        if flow.unconfirmed is not None:
            number = flow.unconfirmed.latest
        starts = self._starts
        starts.pop(flow.key, None)
        starts[flow.key] = Start(flow.key, number, flow.port, flow.handshake)
        if len(starts) > MAX_REMEMBERED:
            del starts[next(iter(starts))]

    def recall(self, key: bytes) -> Start | None:
        """What is remembered of a connection, by either direction's key; it is forgotten."""
        if not self._starts:
            return None
        return self._starts.pop(key, None) or self._starts.pop(reverse_key(key), None)
