"""The mark bits that tell the kernel what was decided of a flow.

A small field of the 32-bit conntrack mark is ours, all other bits are never touched. Its lowest two bits hold
a `Share`; the bits above count policy generations: after a reload old marks match no rule, so that every flow
comes up to be judged anew.
"""

from __future__ import annotations

from dataclasses import dataclass

from nedge.core.flow import Share

DEFAULT_MASK = 0xF0000000
_SHARE_BITS = 2


@dataclass(frozen=True, slots=True)
class Marks:
    """Marks of one generation."""

    mask: int = DEFAULT_MASK
    """A run of three to eight bits, none of the lowest three."""
    generation: int = 0

    def __post_init__(self) -> None:
        if not is_mask(self.mask):
            raise ValueError(f"mark mask {self.mask:#x} is not a run of 3 to 8 bits above the lowest 3")

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

    @property
    def untracked(self) -> int:
        """On a packet that belongs to no connection. A generation without a share: none has it."""
        return 1 << self.shift + _SHARE_BITS

    @property
    def awaits_answer(self) -> int:
        """On a connection of which all comes up, even what answers its SYN: the mark of a generation ago."""
        return Marks(self.mask, self.generation - 1).value(Share.WATCH)

    def share_of(self, mark: int) -> Share:
        """The share in a connection's mark, whatever its generation."""
        return Share((mark & self.share_mask) >> self.shift)

    def generation_of(self, mark: int) -> int:
        """The generation in a connection's mark."""
        return (mark & self.mask) >> self.shift >> _SHARE_BITS

    def next(self) -> Marks:
        """The following generation; the count wraps around."""
        generations = (self.mask >> self.shift >> _SHARE_BITS) + 1
        return Marks(self.mask, (self.generation + 1) % generations)


def is_mask(mask: int) -> bool:
    """Whether a mask is a run of 3 to 8 bits within 32, none of the lowest three."""
    if not 0 < mask <= 0xFFFFFFFF or mask & 7:  # a worker's answers below 8 are no marks
        return False
    run = mask // (mask & -mask)
    return run & (run + 1) == 0 and 3 <= run.bit_length() <= 8
