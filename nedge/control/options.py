"""What the commands share: their options, the connection, and how answers are printed."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console, Group, RenderableType

from nedge.control.client import Answer, Client, find_socket
from nedge.core.status import STATUS_TYPES

WATCH_SECONDS = 2.0


class Verdict(StrEnum):
    PASS = "pass"  # noqa: S105
    DROP = "drop"
    REJECT = "reject"
    BLOCKED = "blocked"


def _statuses(incomplete: str) -> list[str]:
    names = [name.removeprefix("status_") for name in list(STATUS_TYPES)[1:]]
    return [name for name in names if name.startswith(incomplete)]


ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="The gateway's configuration: tells its socket."),
]
SocketOption = Annotated[
    Path | None, typer.Option("--socket", metavar="PATH", help="The gateway's socket, if it is not found.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON: an object, or one a line.")]
HostOption = Annotated[
    str | None,
    typer.Option("--host", metavar="WHO", help="Address or network of an end, or domain asked for."),
]
ProtocolOption = Annotated[
    str | None, typer.Option("--protocol", metavar="NAME", help="nDPI's protocol or application; tcp, udp, …")
]
CategoryOption = Annotated[str | None, typer.Option("--category", metavar="NAME", help="nDPI's category.")]
VerdictOption = Annotated[
    Verdict | None, typer.Option("--verdict", help="Only such flows; blocked: drop or reject.")
]
StatusOption = Annotated[
    str | None,
    typer.Option(
        "--status", metavar="NAME", autocompletion=_statuses, help="Only flows with this status set."
    ),
]
ScoreOption = Annotated[int, typer.Option("--min-score", min=0, metavar="N", help="From this score on.")]
LimitOption = Annotated[
    int, typer.Option("--limit", "-n", min=0, max=100_000, metavar="N", help="So many at most; 0 = all.")
]
ReverseOption = Annotated[bool, typer.Option("--reverse", "-r", help="The lowest first.")]
WatchOption = Annotated[bool, typer.Option("--watch", "-w", help="Again and again, every two seconds.")]


@contextmanager
def connected(config: Path | None, socket: Path | None) -> Iterator[Client]:
    """A connection to the gateway that is meant."""
    settings = None
    if config is not None and socket is None:
        from nedge.config_file import load as load_config

        settings = load_config(config)
    with Client(find_socket(settings, socket)) as client:
        yield client


def print_answer(answer: Answer, json: bool, page: Callable[[], RenderableType]) -> None:
    """Print an answer that is no listing."""
    from nedge.control.show import console

    if json:
        sys.stdout.buffer.write(orjson.dumps(answer.result, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.flush()
    else:
        console().print(page())
    warn(answer)


def warn(answer: Answer) -> None:
    """Say so where a part of the answer is missing."""
    for worker in answer.result.get("silent", ()):
        print(f"nedge: worker {worker} did not answer: what it has is not in this", file=sys.stderr)


Records = list[dict[str, Any]]
Look = Callable[[], tuple[Answer, Records]]


def print_listing(
    look: Look, page: Callable[[Records], RenderableType], what: str, *, watch: bool, json: bool
) -> None:
    """Print a listing once, or again and again until Ctrl-C."""
    from nedge.control.show import console

    screen = console()
    try:
        if watch and screen.is_terminal and not json:
            _watch(look, page, what)
        while True:
            _print_once(look, page, screen, what, json=json)
            if not watch:
                return
            time.sleep(WATCH_SECONDS)
    except KeyboardInterrupt:
        if not watch:
            raise


def _print_once(
    look: Look, page: Callable[[Records], RenderableType], screen: Console, what: str, *, json: bool
) -> None:
    answer, records = look()
    if json:
        sys.stdout.buffer.writelines(
            orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE) for record in records
        )
        sys.stdout.flush()
    else:
        if records:
            screen.print(page(records))
        screen.print(_count(answer, records, what))
    warn(answer)


def _watch(look: Look, page: Callable[[Records], RenderableType], what: str) -> None:
    """On the whole screen, until Ctrl-C."""
    from rich.live import Live

    with Live(screen=True, auto_refresh=False) as live:
        while True:
            answer, records = look()
            live.update(Group(_count(answer, records, what), page(records)), refresh=True)
            time.sleep(WATCH_SECONDS)


def _count(answer: Answer, records: Records, what: str) -> str:
    matched = answer.result.get("matched", len(records))
    if not matched:
        return f"no {what}"
    if matched == 1:
        return f"1 {what.removesuffix('s')}"
    return f"{matched} {what}" if matched == len(records) else f"{len(records)} of {matched} {what}"
