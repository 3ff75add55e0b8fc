"""Where one side of a TCP connection is in its stream: each byte is taken once."""

from __future__ import annotations

from typing import Final

from nedge.core.packet import SYN, Packet, ahead

_MASK: Final = 0xFFFFFFFF


class Cursor:
    """Gives the bytes of TCP segments once each, and says where some are missing.

    A segment far ahead may be a deceit that the server throws away, so what should have come in its place is
    still taken when it comes.
    """

    __slots__ = ("_end", "_hole", "top")

    def __init__(self, start: int = -1) -> None:
        """`start`: number of the first byte; -1: that which comes first."""
        self._end = start  # of the bytes given last
        self.top = start  # of all bytes given
        self._hole = -1  # where the lowest hole starts

    def take(self, packet: Packet) -> tuple[bytes, int, int]:
        """New bytes, how many are missing before them, and how many behind them (not captured)."""
        length = packet.payload_length
        if not length:  # proves nothing of where the stream is
            return b"", 0, 0
        payload = packet.payload_bytes()
        start = (packet.seq + 1) & _MASK if packet.flags & SYN else packet.seq
        end = (start + length) & _MASK
        if self._end < 0:
            self.top = end
        else:
            gap = ahead(start, self.top)
            if gap >= 0:
                if gap and self._hole < 0:
                    self._hole = self.top
                self.top = end
            elif self._hole >= 0 and ahead(start, self._hole) >= 0:
                self._hole = end
            else:  # bytes already seen, and perhaps new ones behind them
                seen = -gap
                if seen >= length:
                    return b"", 0, 0
                payload, start, length = payload[seen:], self.top, length - seen
                self.top = end
        missing = (start - self._end) & _MASK if self._end >= 0 else 0
        self._end = end
        return payload, missing, max(0, length - len(payload))
