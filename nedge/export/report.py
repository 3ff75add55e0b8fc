"""What `nedge replay` prints for people: the table of flows, then totals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from nedge.core.engine import Engine
from nedge.export.table import flow_table
from nedge.replay import Replayed

PROGRESS_FROM = 8 << 20
"""Size in bytes from which a capture gets a progress bar."""
_PIPE_WIDTH = 160


def print_report(records: list[dict[str, Any]], totals: Replayed, engine: Engine) -> None:
    """The table and the totals, on standard output."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    if records:
        console.print(flow_table(records))
    counters = engine.counters
    verdicts = Counter(record["nedge"]["verdict"] for record in records)
    console.print(
        f"{len(records)} flows: "
        + ", ".join(f"{verdicts[name]} {name}" for name in ("pass", "drop", "reject") if verdicts[name])
        if records
        else "no flows"
    )
    console.print(
        f"{totals.frames} frames: {counters.packets} IP packets ({counters.dropped_packets} dropped), "
        f"{totals.not_ip} not IP, {counters.fragments} later fragments, "
        f"{sum(counters.malformed.values())} malformed"
        + "".join(f", {count} {why}" for why, count in sorted(counters.malformed.items()))
    )
    failures = {
        "script errors": counters.script_errors,
        "inspection errors": counters.dpi_errors,
        "packets without room in the flow table": counters.table_full,
    }
    for what, count in failures.items():
        if count:
            console.print(f"{count} {what}", style="bold red")


@contextmanager
def progress_bar(path: Path) -> Iterator[Callable[[int], None] | None]:
    """A bar on standard error for a long capture, if that is a terminal."""
    console = Console(stderr=True)
    size = path.stat().st_size
    if not console.is_terminal or size < PROGRESS_FROM:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(path.name, total=size)
        yield lambda position: progress.update(task, completed=position)
