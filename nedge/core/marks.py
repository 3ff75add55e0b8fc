"""The mark bits that tell the kernel what was decided of a flow.

A small field of the 32-bit conntrack mark is ours, all other bits are never touched. Its lowest two bits hold
a `Share`; the bits above count policy generations: after a reload old marks match no rule, so that every flow
comes up to be judged anew.

Without a share the bits above say how far a connection came in the kernel alone, and (as a `Note`) what the
kernel has to say of a packet.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from nedge.core.flow import Share

DEFAULT_MASK = 0xF0000000
_SHARE_BITS = 2


class Note(IntEnum):
    """What the kernel has to say of a packet that comes up."""

    NONE = 0
    UNTRACKED = 1
    """It belongs to no connection."""
    FIRST = 2
    """The first to come up of a connection whose start the kernel let pass; from the end that opened it."""
    FIRST_BACK = 3
    """Likewise, from the other end."""


_STARTED, _UNSURE = 2, 3


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of one generation."""

    mask: int = DEFAULT_MASK
    """A run of at least three bits."""
    generation: int = 0

    def __post_init__(self) -> None:
        if not is_mask(self.mask):
            raise ValueError(f"mark mask {self.mask:#x} is not a run of 3 to 8 bits within 32")

    @property
    def shift(self) -> int:
        return (self.mask & -self.mask).bit_length() - 1

    @property
    def share_mask(self) -> int:
        """The bits that hold the share, whatever the generation."""
        return (1 << _SHARE_BITS) - 1 << self.shift

    def value(self, share: Share) -> int:
        """The mark for a share of the kernel's, in this generation; 0 for none."""
        if share is Share.NONE:
            return 0
        return (self.generation << _SHARE_BITS | share) << self.shift & self.mask

    def note(self, note: Note) -> int:
        """The mark of a packet that there is something to say of."""
        return note << self.shift + _SHARE_BITS

    @property
    def note_mask(self) -> int:
        """The bits that hold a note."""
        return Note.FIRST_BACK << self.shift + _SHARE_BITS & self.mask

    @property
    def knows_starts(self) -> bool:
        """Whether the field has room for `started` and `unsure`: four bits."""
        return self._generations > _UNSURE

    @property
    def started(self) -> int:
        """Of a connection no packet of which has come up yet: the kernel passed its start."""
        return _STARTED << self.shift + _SHARE_BITS

    @property
    def unsure(self) -> int:
        """Of such a connection, once its client's first packet came up: what the server acknowledges shall,
        too, until the connection is decided."""
        return _UNSURE << self.shift + _SHARE_BITS

    @property
    def nobody(self) -> int:
        """No connection has this mark."""
        return Note.UNTRACKED << self.shift + _SHARE_BITS

    def share_of(self, mark: int) -> Share:
        """The share in a connection's mark, whatever its generation."""
        return Share((mark & self.share_mask) >> self.shift)

    def generation_of(self, mark: int) -> int:
        """The generation in a connection's mark."""
        return (mark & self.mask) >> self.shift >> _SHARE_BITS

    def next(self) -> Marks:
        """The following generation; the count wraps around."""
        return Marks(self.mask, (self.generation + 1) % self._generations)

    @property
    def _generations(self) -> int:
        return (self.mask >> self.shift >> _SHARE_BITS) + 1


def is_mask(mask: int) -> bool:
    """Whether a mask is a run of 3 to 8 bits within 32."""
    if not 0 < mask <= 0xFFFFFFFF:
        return False
    run = mask // (mask & -mask)
    return run & (run + 1) == 0 and 3 <= run.bit_length() <= 8
