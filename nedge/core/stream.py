"""One direction of a TCP stream, put in order.

nDPI misses the server name when segments come to it out of order, so segments that are ahead wait here for
the gap to fill. Only a few are held: a gap that stays (a capture with holes) is given up, not waited for.
"""

from __future__ import annotations

from nedge.core.packet import SYN, Packet

MAX_HELD = 16
"""Segments that wait for a gap to fill; one more gives the gap up."""

_MASK = 0xFFFFFFFF
_HALF = 0x80000000


class Stream:
    """Sequence state of one direction."""

    __slots__ = ("_held", "_next")

    def __init__(self) -> None:
        self._next = -1  # not known before the first segment
        self._held: list[Packet] = []

    def order(self, packet: Packet) -> tuple[Packet, ...]:
        """Take a segment; give the segments that are now next, in order (it, others too, or none).

        Segments without payload and retransmissions go straight through.
        """
        length = packet.payload_length
        if self._next < 0 or packet.flags & SYN:
            self._next = (packet.seq + length + (packet.flags & SYN and 1)) & _MASK
            return (packet,)
        if not length:
            return (packet,)
        ahead = (packet.seq - self._next) & _MASK
        if ahead == 0:
            self._next = (packet.seq + length) & _MASK
            return (packet, *self._release()) if self._held else (packet,)
        if ahead >= _HALF:  # starts before what is next: a retransmission, perhaps with new bytes at its end
            end = (packet.seq + length) & _MASK
            if 0 < ((end - self._next) & _MASK) < _HALF:
                self._next = end
                return (packet, *self._release()) if self._held else (packet,)
            return (packet,)
        self._held.append(packet)
        if len(self._held) > MAX_HELD:
            return self.flush()
        return ()

    def _release(self) -> tuple[Packet, ...]:
        """Held segments that have become next."""
        self._sort()
        released = 0
        for packet in self._held:
            ahead = (packet.seq - self._next) & _MASK
            if 0 < ahead < _HALF:
                break
            released += 1
            end = (packet.seq + packet.payload_length) & _MASK
            if (end - self._next) & _MASK < _HALF:
                self._next = end
        ready = tuple(self._held[:released])
        del self._held[:released]
        return ready

    def _sort(self) -> None:
        base = self._next
        self._held.sort(key=lambda packet: ((packet.seq - base + _HALF) & _MASK))

    def flush(self) -> tuple[Packet, ...]:
        """Give the gap up: all that waits, in order."""
        if not self._held:
            return ()
        self._sort()
        held = tuple(self._held)
        self._held.clear()
        last = held[-1]
        self._next = (last.seq + last.payload_length) & _MASK
        return held
