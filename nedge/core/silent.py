"""TCP connections whose flows have ended: where the client's stream goes on, should it speak after all.

Who does not know that may be deceived: by what comes first, which the server throws away (see `normalizer`).
"""

from __future__ import annotations

from typing import NamedTuple

from nedge.core.flow import UNSEEN, Flow, Handshake
from nedge.core.packet import reverse_key

MAX_REMEMBERED = 1 << 16
"""Beyond, the oldest is forgotten: what comes of it then is picked up mid-stream."""


class Start(NamedTuple):
    """How far a connection was."""

    key: bytes
    """Of the client-to-server direction."""
    number: int
    """Of its SYN, or of the last byte that the server has: the next byte has the one behind. Or SEVERAL."""
    spoke: bool
    """The server has confirmed something: what, is forgotten."""
    port: int
    """Of the bridge, that the client's packets come by; 0 if that is not known."""
    handshake: Handshake


class SilentConnections:
    """The latest of them."""

    def __init__(self) -> None:
        self._starts: dict[bytes, Start] = {}

    def remember(self, flow: Flow) -> None:
        """A TCP flow ends, and its connection may go on."""
        isn = number = flow.isn
        if isn == UNSEEN:
            return
        if isn >= 0 and flow.unconfirmed is not None:
            number = flow.unconfirmed.latest
        spoke = number != isn
        starts = self._starts
        starts.pop(flow.key, None)
        starts[flow.key] = Start(flow.key, number, spoke, flow.port, flow.handshake)
        if len(starts) > MAX_REMEMBERED:
            del starts[next(iter(starts))]

    def recall(self, key: bytes) -> Start | None:
        """What is remembered of a connection, by either direction's key; it is forgotten."""
        if not self._starts:
            return None
        return self._starts.pop(key, None) or self._starts.pop(reverse_key(key), None)
