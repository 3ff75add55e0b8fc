"""What checks of the machine find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be, and what to do about it."""

    text: str
    fatal: bool = True
    """Whether the gateway cannot run with it."""


class Check(NamedTuple):
    """One thing that was looked at."""

    name: str
    fine: str
    """What can be said if there is no problem."""
    problems: list[Problem]
