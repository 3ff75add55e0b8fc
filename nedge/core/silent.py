"""TCP connections whose flows have ended: where the client's stream goes on, should it speak after all.

Who does not know that may be deceived: by what comes first, which the server throws away (see `normalizer`).
And what was blocked stays blocked: of such a connection the server waits for the rest, which names nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from nedge.core.facts import Facts
from nedge.core.flow import UNSEEN, Flow, Handshake, StatusRecord
from nedge.core.packet import reverse_key
from nedge.core.verdict import Failure

MAX_REMEMBERED = 1 << 16
"""Of each kind, silent and blocked. Beyond, the oldest is forgotten: what comes of it then is picked up
mid-stream."""


class Blocked(NamedTuple):
    """What a flow was blocked for."""

    epoch: int
    """Of the policy that it was judged under."""
    word: int
    hostname: str
    facts: Facts
    status_map: int
    statuses: dict[int, StatusRecord] | None
    score: int
    failures: tuple[Failure, ...]

    def restore(self, flow: Flow) -> None:
        """The flow is known as the one before it was. Its hosts' scores are not its fault a second time."""
        flow.detected = True
        flow.word, flow.hostname, flow.facts = self.word, self.hostname, self.facts
        flow.status_map, flow.statuses, flow.score = self.status_map, self.statuses, self.score
        flow.failures = self.failures


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
    blocked: Blocked | None


class SilentConnections:
    """The latest of them."""

    def __init__(self) -> None:
        self._silent: dict[bytes, Start] = {}
        self._blocked: dict[bytes, Start] = {}

    def remember(self, flow: Flow) -> None:
        """A TCP flow ends, and its connection may go on."""
        isn = number = flow.isn
        blocked: Blocked | None = None
        starts = self._silent
        if flow.verdict.action:
            starts = self._blocked
            blocked = Blocked(
                flow.epoch,
                flow.word,
                flow.hostname,
                flow.facts,
                flow.status_map,
                flow.statuses,
                flow.score,
                flow.failures,
            )
        elif isn == UNSEEN:
            return
        if isn >= 0 and flow.unconfirmed is not None:
            number = flow.unconfirmed.latest
        spoke = number != isn
        starts.pop(flow.key, None)
        starts[flow.key] = Start(flow.key, number, spoke, flow.port, flow.handshake, blocked)
        if len(starts) > MAX_REMEMBERED:
            del starts[next(iter(starts))]

    def recall(self, key: bytes) -> Start | None:
        """What is remembered of a connection, by either direction's key; it is forgotten."""
        if not self._silent and not self._blocked:
            return None
        back = reverse_key(key)
        for starts in (self._blocked, self._silent):
            start = starts.pop(key, None) or starts.pop(back, None)
            if start is not None:
                return start
        return None
