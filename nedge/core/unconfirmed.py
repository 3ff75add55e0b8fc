"""What a TCP client sent and its server has not confirmed: of every byte, the first copy counts.

A flow is judged by what comes past here, and the server may take something else: segments whose hop limit
ends behind us, or with an option that it refuses, are thrown away, and others with the same numbers take
their place. (A receiver may keep either copy, RFC 9293 3.10.7.4; an honest sender's are the same.) So copies
that differ are made the same, and a verdict holds once the server has confirmed all that it was made from.
"""

from __future__ import annotations

from typing import Final

from nedge.core.packet import Packet, ahead

MAX_KEPT: Final = 128 * 1024
MAX_PIECES: Final = 256
"""Bytes kept of one client, and pieces with gaps between them. It is to confirm before there can be more."""
WINDOW: Final = 1 << 30
"""No receiver's window is larger (RFC 7323, 2.3): it takes nothing that is so far ahead."""

_MASK: Final = 0xFFFFFFFF
_UNKNOWN: Final = -1


class Unconfirmed:
    """The bytes of one connection's client that its server has not confirmed."""

    __slots__ = ("_asked", "_confirmed", "_judged", "_pieces", "_top", "kept")

    def __init__(self, isn: int) -> None:
        """`isn`: the number of the client's SYN; negative if it is not known."""
        self._confirmed = self._top = (isn + 1) & _MASK if isn >= 0 else _UNKNOWN
        """What is before the first is the server's; before the second, sent."""
        self._judged = _UNKNOWN
        """Behind what the flow was judged by."""
        self._pieces: list[tuple[int, bytes]] = []
        """Number of the first byte, and bytes: in order, none twice."""
        self.kept = 0
        """So many bytes are kept."""
        self._asked = False

    def shall_ask(self, size: int) -> bool:
        """Whether more than so many bytes are kept, and nothing was confirmed since this was said last."""
        if self._asked or self.kept <= size:
            return False
        self._asked = True
        return True

    @property
    def span(self) -> int:
        """How far what was sent is ahead of what is confirmed."""
        return ahead(self._top, self._confirmed)

    @property
    def latest(self) -> int:
        """Number of the last byte that the server has."""
        return (self._confirmed - 1) & _MASK

    def take(self, packet: Packet, *, telling: bool) -> bytes | None:
        """Take a client's segment with a payload.

        Gives None if nothing in it differs from what was sent before, else the payload as it was sent first;
        an empty one if that cannot be told, or kept. `telling`: what is new in it may tell of the flow; else
        it need not be kept.
        """
        start, length = packet.seq, packet.payload_length
        if self._confirmed == _UNKNOWN:
            self._confirmed = self._top = start
        gap = ahead(start, self._confirmed)
        if gap + length > WINDOW:
            return b""
        payload = packet.payload_bytes()
        before = max(0, -gap)
        if before >= length:
            return None
        start = (start + before) & _MASK
        fresh, size = payload[before:], length - before
        telling = telling and (self._judged == _UNKNOWN or ahead(self._judged, start) > 0)
        first = fresh
        if ahead(start, self._top) >= 0:  # nothing of it came before
            gaps = [(0, len(fresh))] if telling else []
        else:
            first, gaps = self._compare(start, fresh, size)
            if not first and fresh:
                return b""
        if telling and not self._keep(start, fresh, gaps):
            return b""
        if ahead(start + size, self._top) > 0:
            self._top = (start + size) & _MASK
        return None if first == fresh else payload[:before] + first

    def _compare(self, start: int, payload: bytes, size: int) -> tuple[bytes, list[tuple[int, int]]]:
        """The payload as it was sent first, empty if that cannot be told; and what is new in it, from to."""
        gaps: list[tuple[int, int]] = []
        at = 0  # so far it is compared
        for number, piece in self._pieces:
            begin = ahead(number, start)
            if begin >= size:
                break
            if begin + len(piece) > len(payload):
                if len(payload) < size:  # more is on its way than was captured
                    return b"", gaps
                until = len(payload)
            else:
                until = begin + len(piece)
            if until <= at:
                continue
            if begin > at:
                gaps.append((at, begin))
                at = begin
            payload = payload[:at] + piece[at - begin : until - begin] + payload[until:]
            at = until
        if at < len(payload):
            gaps.append((at, len(payload)))
        return payload, gaps

    def _keep(self, start: int, payload: bytes, gaps: list[tuple[int, int]]) -> bool:
        """Keep what is new of a payload. False: that would be too much, and nothing is kept."""
        pieces = self._pieces
        size = 0
        for begin, until in gaps:
            size += until - begin
        if self.kept + size > MAX_KEPT or len(pieces) + len(gaps) > MAX_PIECES:
            return False
        self.kept += size
        for begin, until in gaps:
            number, data = (start + begin) & _MASK, payload[begin:until]
            place = len(pieces)
            while place and ahead(pieces[place - 1][0], number) > 0:
                place -= 1
            if place:
                before, known = pieces[place - 1]
                if (before + len(known)) & _MASK == number:
                    pieces[place - 1] = (before, known + data)
                    continue
            pieces.insert(place, (number, data))
        return True

    def confirm(self, number: int) -> None:
        """The server says that it has all before this number."""
        if self._confirmed == _UNKNOWN or ahead(number, self._confirmed) <= 0:
            return
        self._confirmed, self._asked = number, False
        if ahead(number, self._top) > 0:
            self._top = number
        pieces = self._pieces
        while pieces:
            start, piece = pieces[0]
            over = ahead(number, start)
            if over <= 0:
                break
            if over < len(piece):
                pieces[0] = (number, piece[over:])
                self.kept -= over
                break
            del pieces[0]
            self.kept -= len(piece)

    def settled(self) -> bool:
        """Whether the server has all that was sent when this was asked first: the flow was judged by that."""
        if self._confirmed == _UNKNOWN:
            return True
        if self._judged == _UNKNOWN:
            self._judged = self._top
        return ahead(self._confirmed, self._judged) >= 0
