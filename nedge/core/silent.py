"""TCP connections whose flows have ended: where the client's stream goes on, should it speak after all.

Who does not know that may be deceived: by what comes first, which the server throws away (see `normalizer`).
And what was blocked stays blocked: of such a connection the server waits for the rest, which names nothing.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Final, NamedTuple

from nedge.core.facts import Facts
from nedge.core.flow import UNSEEN, Flow, Handshake, StatusRecord
from nedge.core.packet import reverse_key
from nedge.core.verdict import Failure

MAX_SILENT, MAX_BLOCKED = 1 << 16, 1 << 14
"""Beyond, the oldest of a kind is forgotten: what comes of it then is picked up mid-stream. A blocked one
takes 1 to 3 KB."""
_MAX_TEXT: Final = 512
"""Characters kept of what a client says."""


class Blocked(NamedTuple):
    """What a flow was blocked for."""

    epoch: int
    """Of the policy that it was judged under."""
    word: int
    hostname: str
    facts: Facts
    risks: int
    status_map: int
    statuses: dict[int, StatusRecord]
    score: int
    alerted: tuple[int, int]
    """Status and score of its alert."""
    failures: tuple[Failure, ...]

    def restore(self, flow: Flow) -> None:
        """The flow is known as the one before it was. Its hosts' scores are not its fault a second time."""
        flow.detected = True
        flow.word, flow.hostname, flow.facts, flow.risks = self.word, self.hostname, self.facts, self.risks
        flow.status_map, flow.statuses, flow.score = self.status_map, dict(self.statuses), self.score
        flow.alerted_status, flow.alerted_score = self.alerted
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

    def remember(self, flow: Flow, *, blocked: bool) -> None:
        """A TCP flow ends, and its connection may go on."""
        isn = number = flow.isn
        if isn == UNSEEN and not blocked:
            return
        if isn >= 0 and flow.unconfirmed is not None:
            number = flow.unconfirmed.latest
        why = _what_blocked(flow) if blocked else None
        start = Start(flow.key, number, number != isn, flow.port, flow.handshake, why)
        starts, most = (self._blocked, MAX_BLOCKED) if blocked else (self._silent, MAX_SILENT)
        starts.pop(flow.key, None)
        starts[flow.key] = start
        if len(starts) > most:
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


def _what_blocked(flow: Flow) -> Blocked:
    facts = flow.facts
    if len(facts.http_url) > _MAX_TEXT or len(facts.http_user_agent) > _MAX_TEXT:
        url, agent = facts.http_url[:_MAX_TEXT], facts.http_user_agent[:_MAX_TEXT]
        facts = replace(facts, http_url=url, http_user_agent=agent)
    return Blocked(
        flow.epoch,
        flow.word,
        flow.hostname[:_MAX_TEXT],
        facts,
        flow.risks,
        flow.status_map,
        {key: record._replace(info=None) for key, record in (flow.statuses or {}).items()},
        flow.score,
        (flow.alerted_status, flow.alerted_score),
        flow.failures,
    )
