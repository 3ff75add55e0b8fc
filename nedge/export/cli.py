"""`nedge history`: questions about what was."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nedge.errors import ConfigError
from nedge.export.questions import QUESTIONS, Filter, HistoryError, Row, opened
from nedge.export.table import printable

_PIPE_WIDTH = 160
_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_TEXTS = frozenset(("at", "last", "hour", "client", "server", "host", "domain", "app", "proto", "country"))
_TEXTS |= {"verdict", "reason", "status", "action", "script", "info", "client_country", "server_country"}
"""Columns that stand on the left; numbers stand on the right."""
_HIDDEN = frozenset(("began", "flow_id", "client_port", "server_port", "packets", "dropped", "vlan"))
"""Columns that only --json shows: there is no room for them."""


def history(
    question: Annotated[str, typer.Argument(metavar="[QUESTION]", help=", ".join(QUESTIONS))] = "flows",
    since: Annotated[
        str, typer.Option("--since", metavar="WHEN", help="30m, 24h, 7d, or 2025-12-31[T23:59[:59]] (UTC).")
    ] = "24h",
    until: Annotated[str, typer.Option("--until", metavar="WHEN", help="The same.")] = "",
    host: Annotated[str, typer.Option("--host", metavar="ADDRESS", help="Client or server.")] = "",
    domain: Annotated[str, typer.Option("--domain", metavar="NAME", help="And what is below it.")] = "",
    script: Annotated[str, typer.Option("--script", metavar="KEY")] = "",
    verdict: Annotated[str, typer.Option("--verdict", metavar="VERDICT", help="pass, drop or reject.")] = "",
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1)] = 50,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per row, a line each.")] = False,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file (TOML).")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", metavar="FILE", help="This history, not the configured one.")
    ] = None,
) -> None:
    """Ask what was: flows, top talkers (hosts), servers, domains, scripts, drops per hour, alerts, scores."""
    if question not in QUESTIONS:
        raise ConfigError(f"{question}: no such question; allowed are {', '.join(QUESTIONS)}")
    if verdict not in ("", "pass", "drop", "reject"):
        raise ConfigError(f"--verdict: found {verdict!r}; allowed is pass, drop or reject")
    from nedge.config_file import load as load_config

    path = file or (load_config(config).history.path if config else None)
    if path is None:
        raise ConfigError("history.path: is not set; name a configuration (--config) or a history (--file)")
    which = Filter(
        since=moment(since, "--since"),
        until=moment(until, "--until") if until else 1e10,
        host=_address(host),
        domain=domain,
        script=script,
        verdict=verdict,
        limit=limit,
    )
    try:
        with opened(path) as database:
            rows = QUESTIONS[question](database, which)
    except HistoryError as error:
        print(f"nedge: {error}", file=sys.stderr)
        sys.exit(1)
    if json:
        for row in rows:
            sys.stdout.buffer.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.flush()
    else:
        _print(rows)


def moment(text: str, option: str) -> float:
    """`24h` (ago) or a date, with or without a time, in UTC -> epoch seconds. Raises ConfigError."""
    ago = re.fullmatch(r"(\d{1,6})([mhdw])", text)
    if ago:
        return time.time() - int(ago[1]) * _UNITS[ago[2]]
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        raise ConfigError(
            f"{option}: found {text!r}; allowed is a time that has passed (30m, 24h, 7d, 2w),"
            " or a date such as 2025-12-31 or 2025-12-31T23:59"
        ) from None
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _address(text: str) -> str:
    if not text:
        return ""
    try:
        return str(ip_address(text))
    except ValueError:
        raise ConfigError(f"--host: found {text!r}; allowed is an IPv4 or IPv6 address") from None


def _print(rows: list[Row]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    if not rows:
        console.print("nothing")
        return
    names = [name for name in rows[0] if name not in _HIDDEN and any(row[name] is not None for row in rows)]
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in names:
        justify: Any = "left" if name in _TEXTS else "right"
        table.add_column(name.replace("_", " ").capitalize(), justify=justify, overflow="fold")
    for row in rows:
        cells = [_cell(name, row[name]) for name in names]
        table.add_row(*cells, style="red" if row.get("verdict", "pass") != "pass" else None)
    console.print(table)


def _cell(name: str, value: Any) -> Text:
    """Names come from the wire: `Text` never reads them as markup."""
    if value is None:
        return Text("")
    if name in ("at", "last", "hour"):
        return Text(str(value)[:19].replace("T", " "), no_wrap=True)
    if isinstance(value, int):
        return Text(f"{value:,}" if name not in ("asn", "client_asn", "server_asn") else str(value))
    return Text(printable(str(value)))
