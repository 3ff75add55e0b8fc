"""What a TCP client sent and its server has not confirmed: of every byte, the first copy counts.

A flow is judged by what comes past here, and the server may take something else: segments whose hop limit
ends behind us, or with an option that it refuses, are thrown away, and others with the same numbers take
their place. (A receiver may keep either copy, RFC 9293 3.10.7.4; an honest sender's are the same.) So copies
that differ are made the same, and a verdict holds once the server has confirmed all that it was made from.
"""

from __future__ import annotations

from nedge.core.packet import SYN, Packet, ahead

MAX_KEPT = 64 * 1024
"""Bytes kept of one client: as much as is looked into. One that has more unconfirmed loses the oldest."""

_MASK = 0xFFFFFFFF
_UNKNOWN = -1


class Unconfirmed:
    """The bytes of one connection's client that its server has not confirmed."""

    __slots__ = ("_confirmed", "_forgotten", "_judged", "_pieces", "_top", "kept")

    def __init__(self, isn: int) -> None:
        """`isn`: the number of the client's SYN; -1 if it was not seen."""
        self._confirmed = self._top = (isn + 1) & _MASK if isn >= 0 else _UNKNOWN
        """What is before the first is the server's; before the second, sent."""
        self._judged = _UNKNOWN
        """Behind what the flow was judged by."""
        self._forgotten = _UNKNOWN
        """What is before it and not confirmed nobody knows any more."""
        self._pieces: list[tuple[int, bytes]] = []
        """Number of the first byte, and bytes: in order, none twice."""
        self.kept = 0
        """So many bytes are kept."""

    def take(self, packet: Packet, *, telling: bool) -> bytes | None:
        """Take a client's segment with a payload.

        Gives None if nothing in it differs from what was sent before, else the payload as it was sent first;
        an empty one if that is not known any more. `telling`: what is new in it may tell of the flow; else
        it need not be kept.
        """
        length = packet.payload_length
        start = (packet.seq + 1) & _MASK if packet.flags & SYN else packet.seq
        if self._confirmed == _UNKNOWN:
            self._confirmed = self._top = start
        payload = packet.payload_bytes()
        before = ahead(self._confirmed, start)
        if before > 0:
            if before >= length:
                return None
            start = self._confirmed
            fresh = payload[before:]
        else:
            before = 0
            fresh = payload
        telling = telling and (self._judged == _UNKNOWN or ahead(self._judged, start) > 0)
        end = (start + length - before) & _MASK
        if ahead(start, self._top) >= 0:
            self._top = end
            if telling:
                self._keep(len(self._pieces), start, fresh)
            return None
        if ahead(end, self._top) > 0:
            self._top = end
        if self._forgotten != _UNKNOWN and ahead(self._forgotten, start) > 0:
            return b""
        first = self._compare(start, fresh, telling)
        return None if first is None else payload[:before] + first

    def _compare(self, start: int, payload: bytes, telling: bool) -> bytes | None:
        """The payload as it was sent first, where that differs; keeps what is new of it."""
        differs = False
        at = 0  # so far it is compared
        new: list[tuple[int, int, bytes]] = []
        for place, (number, piece) in enumerate(self._pieces):
            begin = ahead(number, start)
            if begin >= len(payload):
                break
            until = min(begin + len(piece), len(payload))
            if until <= at:
                continue
            if begin > at:
                new.append((place, at, payload[at:begin]))
                at = begin
            known = piece[at - begin : until - begin]
            if payload[at:until] != known:
                differs = True
                payload = payload[:at] + known + payload[until:]
            at = until
        if telling:
            if at < len(payload):
                place = 0
                while place < len(self._pieces) and ahead(self._pieces[place][0], start) < at:
                    place += 1
                new.append((place, at, payload[at:]))
            for place, offset, data in reversed(new):
                self._keep(place, (start + offset) & _MASK, data)
        return payload if differs else None

    def _keep(self, place: int, start: int, data: bytes) -> None:
        self._pieces.insert(place, (start, data))
        self.kept += len(data)
        while self.kept > MAX_KEPT:
            number, piece = self._pieces.pop(0)
            self.kept -= len(piece)
            self._forgotten = (number + len(piece)) & _MASK

    def confirm(self, number: int) -> None:
        """The server says that it has all before this number."""
        if self._confirmed == _UNKNOWN or ahead(number, self._confirmed) <= 0:
            return
        self._confirmed = number
        if ahead(number, self._top) > 0:
            self._top = number
        if self._forgotten != _UNKNOWN and ahead(number, self._forgotten) >= 0:
            self._forgotten = _UNKNOWN
        pieces = self._pieces
        while pieces and ahead(number, pieces[0][0] + len(pieces[0][1]) & _MASK) >= 0:
            self.kept -= len(pieces.pop(0)[1])

    def settled(self) -> bool:
        """Whether the server has all that was sent when this was asked first: the flow was judged by that."""
        if self._confirmed == _UNKNOWN:
            return True
        if self._judged == _UNKNOWN:
            self._judged = self._top
        return ahead(self._confirmed, self._judged) >= 0
