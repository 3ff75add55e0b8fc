"""A loaded user script, in whatever language: what the runner calls, and what it did so far."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nedge.core.hooks import Hook
from nedge.core.status import StatusType

PERIODIC_STEP = 30
PERIODIC_DEFAULT = 120

HookFunction = Callable[[Any, int, Any], Any]
"""Called with the flow (`nedge.scripts.Flow`), the time and the script's settings."""
Where = list[tuple[Path, int]]
"""Lines of the script's own files that an error went through, outermost first."""


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a script."""

    path: Path
    line: int
    """0 if it concerns no particular line."""
    message: str
    fatal: bool = True
    """A fatal problem is an error; any other skips the script with a warning."""

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{where}: {self.message}"


class ScriptError(Exception):
    """A script cannot be loaded. `path` if the reason is in another file than the script's own."""

    def __init__(self, message: str, line: int = 0, *, fatal: bool = True, path: Path | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.fatal = fatal
        self.path = path


class ScriptErrors(Exception):  # noqa: N818 (there may be several)
    """All that is wrong with one script."""

    def __init__(self, found: Iterable[ScriptError]) -> None:
        self.found = sorted(found, key=lambda error: (error.line, error.message))
        super().__init__("; ".join(error.message for error in self.found))


class ScriptFault(Exception):  # noqa: N818 (it stands for the error that a script raised)
    """An error in a script that is not Python, in the script's terms."""

    def __init__(self, message: str, where: Where) -> None:
        super().__init__(message)
        self.where = where


@dataclass(slots=True, kw_only=True)
class Script:
    """A loaded script, its settings, and what it did so far."""

    key: str
    path: Path
    title: str
    description: str = ""
    category: str = "other"
    hooks: dict[Hook, HookFunction] = field(default_factory=dict)
    l4: tuple[int, ...] = ()
    """L4 protocols it wants; () = all."""
    l7: int | None = None
    """nDPI protocol it wants, as master or application; None = all."""
    three_way_handshake_ok: bool = False
    needs: str = ""
    """Name of the function of the flow that must give something true; empty: none."""
    periodic_ticks: int = PERIODIC_DEFAULT // PERIODIC_STEP
    prio: int = 0
    conf: dict[str, Any] = field(default_factory=dict)
    statuses: tuple[StatusType, ...] = ()
    """User statuses it defines."""
    wants_match_packet: bool = False
    http_answers: bool = False
    """It wants answers of plain-HTTP servers to be looked at."""
    default_enabled: bool = True
    excluded: bool = False
    """It does not want to run here."""
    teardown: Callable[[], Any] | None = None
    release: Callable[[], None] | None = None
    """Lets go of what the script holds; it is not called any more after that."""

    errors: int = 0
    """Calls that raised."""
    timeouts: int = 0
    """Calls that were interrupted."""
    time_ns: int = 0
    time_histogram: list[int] = field(default_factory=lambda: [0] * 64)
    """Calls by duration: entry n counts those of less than 2**n ns that are not in an earlier entry."""
    last_error: str = ""
    last_error_at: str = ""
    """`file:line` of the script where that happened; empty if it was in none of its lines."""
    failures_in_a_row: int = 0
    aside: str = ""
    """Why the script is not called any more, until scripts are loaded anew; empty while it is."""

    @property
    def calls(self) -> int:
        """Calls of its hooks."""
        return sum(self.time_histogram)

    def time_quantile(self, share: float) -> int:
        """Nanoseconds that this share of all calls stayed under (a power of two); 0 if there was none."""
        wanted = share * self.calls
        for bits, count in enumerate(self.time_histogram):
            wanted -= count
            if count and wanted <= 0:
                return 1 << bits
        return 0
