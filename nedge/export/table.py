"""Flow events as a table for people: what `nedge replay`, `nedge flows` and the lab's demo print."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

VERDICT_STYLES = {"pass": "green", "drop": "bold red", "reject": "bold yellow"}
"""How a verdict is printed; the rows of flows that were blocked have the colour, too."""

_ROW_STYLES = {"drop": "red", "reject": "yellow"}


def flow_table(events: Iterable[Mapping[str, Any]], *, title: str | None = None) -> Table:
    """A row per EVE flow event, in the order given. Readable from 120 columns on."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("Client", "Server", "Protocol", "Host name", "Status"):
        table.add_column(heading, overflow="fold")
    table.add_column("Score", justify="right", no_wrap=True, min_width=5)
    table.add_column("Verdict", no_wrap=True, min_width=7)
    table.add_column("Reason", overflow="fold")
    for event in events:
        table.add_row(*_cells(event), style=_ROW_STYLES.get(event["nedge"]["verdict"]))
    return table


def _cells(event: Mapping[str, Any]) -> list[Text]:
    """One flow. Names come from the wire: `Text` never reads them as markup."""
    ndpi: Mapping[str, Any] = event.get("ndpi") or {}
    nedge: Mapping[str, Any] = event["nedge"]
    verdict = str(nedge["verdict"])
    return [
        Text(endpoint(event["src_ip"], event.get("src_port"))),
        Text(endpoint(event["dest_ip"], event.get("dest_port"))),
        Text(f"{event['proto']} {event.get('app_proto') or ''}".rstrip()),
        Text(printable(ndpi.get("hostname") or "")),
        Text("\n".join(name.removeprefix("status_") for name in nedge.get("status", ()))),
        Text(str(nedge["score"])),
        Text(verdict, style=VERDICT_STYLES.get(verdict, "")),
        Text(printable(nedge.get("reason") or "").replace("status_", "")),
    ]


def endpoint(address: str, port: int | None) -> str:
    """`10.0.0.1:80`, `[fd00::1]:80`; the address alone where there are no ports."""
    if not port:
        return address
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def printable(text: str) -> str:
    """Without control characters: a host name off the wire must not move the terminal's cursor."""
    return "".join(
        character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text
    )
