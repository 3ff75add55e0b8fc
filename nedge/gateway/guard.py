"""What goes wrong in the supervisor's loop does not end the gateway: it is logged, counted, and tried again.

What keeps it from starting, does: `run` guards nothing before all is in place.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

log = structlog.get_logger()


class Guard:
    """`with guard("what is done"):` lets no exception out."""

    def __init__(self) -> None:
        self._failed: Counter[str] = Counter()
        """By what was done."""

    @property
    def errors(self) -> int:
        """How often something failed."""
        return self._failed.total()

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._failed[step] += 1
            times = self._failed[step]
            if times & (times - 1) == 0:  # 1st, 2nd, 4th, 8th …
                log.error("supervisor_error", step=step, times=times, error=repr(error), exc_info=error)
