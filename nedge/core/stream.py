"""Both directions of a TCP stream, put in order.

nDPI misses the server name when segments come to it out of order, so segments that are ahead wait here for
the gap to fill. In a capture, which may have holes, only a few are held: a gap that stays is given up. Where
packets pass by, the receiver waits for what is missing, and so do we.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from nedge.core.packet import SYN, Packet, ahead
from nedge.core.rewrite import without_first

MAX_HELD: Final = 16
MAX_HELD_INLINE: Final = 1024
"""Segments of one direction that wait for a gap to fill; one more gives the gap up. Of a client's there are
hardly so many that its server has not confirmed: see `unconfirmed`."""

_MASK: Final = 0xFFFFFFFF
_HALF: Final = 0x80000000
_UNKNOWN: Final = -1


class Disorder(NamedTuple):
    """Segments with payload that came again, and that came before their turn; of those a stream has seen."""

    of_server: tuple[int, int] = (0, 0)
    of_client: tuple[int, int] = (0, 0)


class Stream:
    """Sequence state of a connection."""

    __slots__ = ("_early", "_held", "_late", "_next")

    def __init__(self, start: int = _UNKNOWN) -> None:
        """`start`: number of the client's first byte, if known."""
        self._next = [_UNKNOWN, start]  # sequence number expected from the server, from the client
        self._late = self._early = 0, 0
        self._held: tuple[list[Packet], list[Packet]] | None = None

    def has(self, packet: Packet) -> bool:
        """Whether all of a client's segment came before, or could have."""
        length = packet.payload_length
        return length > 0 and self._next[1] >= 0 and ahead(packet.seq + length, self._next[1]) <= 0

    def order(self, packet: Packet, from_client: bool, max_held: int = MAX_HELD) -> tuple[Packet, ...]:
        """Take a segment; give the segments that are now next, in order (it, others too, or none).

        Segments without payload and retransmissions go straight through; what is new at the end of one comes
        without what was there before.
        """
        length = packet.payload_length
        expected = self._next[from_client]
        if expected < 0:
            self._next[from_client] = (packet.seq + length + (1 if packet.flags & SYN else 0)) & _MASK
            return (packet,)
        if not length or packet.flags & SYN:
            return (packet,)
        gap = ahead(packet.seq, expected)
        if gap > 0:
            self._early = _one_more(self._early, from_client)
            return self._hold(packet, from_client, max_held)
        # Next, or a retransmission, perhaps with new bytes at its end.
        if gap:
            self._late = _one_more(self._late, from_client)
        if gap + length < 0:
            return (packet,)
        self._next[from_client] = (packet.seq + length) & _MASK
        if gap and gap + length:
            packet = without_first(packet, -gap)
        if self._held is not None:
            return (packet, *self._release(from_client))
        return (packet,)

    @property
    def disorder(self) -> Disorder:
        """What came again or too early so far."""
        return Disorder((self._late[0], self._early[0]), (self._late[1], self._early[1]))

    def _hold(self, packet: Packet, from_client: bool, max_held: int) -> tuple[Packet, ...]:
        if self._held is None:
            self._held = ([], [])
        held = self._held[from_client]
        for other in held:
            if other.seq == packet.seq and other.payload_length >= packet.payload_length:
                return ()  # it came before
        held.append(packet)
        return self._give_up(from_client) if len(held) > max_held else ()

    def _release(self, from_client: bool) -> tuple[Packet, ...]:
        """Held segments that have become next."""
        held = self._sorted(from_client)
        ready = []
        for packet in held:
            expected = self._next[from_client]
            gap = ahead(packet.seq, expected)
            if gap > 0:
                break
            new = gap + packet.payload_length
            if new > 0:
                self._next[from_client] = (expected + new) & _MASK
            ready.append(without_first(packet, -gap) if gap and new > 0 else packet)
        del held[: len(ready)]
        return tuple(ready)

    def _give_up(self, from_client: bool) -> tuple[Packet, ...]:
        """The gap will not fill: all that waits, in order."""
        held = self._sorted(from_client)
        ready = tuple(held)
        held.clear()
        base = self._next[from_client]
        ends = [(packet.seq + packet.payload_length - base) & _MASK for packet in ready]
        self._next[from_client] = (base + max(ends, default=0)) & _MASK
        return ready

    def _sorted(self, from_client: bool) -> list[Packet]:
        assert self._held is not None
        held, base = self._held[from_client], self._next[from_client]
        held.sort(key=lambda packet: (packet.seq - base + _HALF) & _MASK)
        return held

    def flush(self) -> tuple[Packet, ...]:
        """All that waits in either direction, the client's first."""
        return () if self._held is None else (*self._give_up(True), *self._give_up(False))


def _one_more(counts: tuple[int, int], from_client: bool) -> tuple[int, int]:
    server, client = counts
    return (server, client + 1) if from_client else (server + 1, client)
