"""The one error of this package."""

from __future__ import annotations


class KernelError(Exception):
    """The system refused or lacks something. The text says what, where and what to do, in one sentence."""
