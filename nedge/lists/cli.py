"""`nedge lists`: what the lists have, and how old it is; and `nedge lists refresh`."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer

from nedge.errors import ConfigError

if TYPE_CHECKING:
    from nedge.config import Config

app = typer.Typer(help="Lists of hosts, domains and fingerprints: what they have, and how old it is.")

_ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file (TOML).")
]
_JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object per source, a line each.")]
_PIPE_WIDTH = 160


@app.callback(invoke_without_command=True)
def lists(context: typer.Context, config: _ConfigOption = None, json: _JsonOption = False) -> None:
    """Show every source: entries, lines that are no entries, age, and what is wrong with it."""
    from nedge.lists.status import list_status

    context.obj = config
    if context.invoked_subcommand is None:
        _show(list_status(_settings(config).lists), json)


@app.command()
def refresh(
    context: typer.Context,
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[LIST]...", help="Only these, by their names in [lists].")
    ] = None,
    config: _ConfigOption = None,
    accept_shrunken: Annotated[
        bool, typer.Option("--accept-shrunken", help="Take downloads however few entries they have left.")
    ] = False,
    json: _JsonOption = False,
) -> None:
    """Ask all sources for news now. A gateway that runs takes them over within seconds."""
    from nedge.lists import refresh as refreshing
    from nedge.lists.parse import FORMS
    from nedge.lists.status import list_status

    settings = _settings(config or context.obj)
    known = refreshing.configured(settings.lists)
    for name in names or ():
        if name not in FORMS:
            raise ConfigError(f"{name}: no such list; allowed are {', '.join(FORMS)}")
        if name not in known:
            raise ConfigError(f"lists.{name}: has no source")
    _become_owner(settings.lists.cache_directory)
    refreshing.refresh(settings.lists, names or (), due_only=False, accept_shrunken=accept_shrunken)
    found = list_status(settings.lists)
    _show(found, json)
    if any(row["error"] for row in found if not names or row["list"] in names):
        sys.exit(1)


def _become_owner(cache: Path) -> None:
    """Root gives its rights up for those of the cache's owner, the service's user.

    What root made there would lock the service out, and what that user put there must not lead root astray.
    """
    if os.geteuid() != 0 or not cache.exists() or not (owner := cache.stat()).st_uid:
        return
    os.setgroups([])
    os.setresgid(owner.st_gid, owner.st_gid, owner.st_gid)
    os.setresuid(owner.st_uid, owner.st_uid, owner.st_uid)


def _settings(path: Path | None) -> Config:
    from nedge import log
    from nedge.config import Config
    from nedge.config_file import load as load_config

    config = load_config(path) if path else Config()
    log.configure(config.log.level, config.log.format)
    return config


def _show(rows: list[dict[str, Any]], json: bool) -> None:
    if json:
        for row in rows:
            sys.stdout.buffer.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))
        sys.stdout.flush()
        return
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=_PIPE_WIDTH)
    if not rows:
        console.print("no lists are configured")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in ("List", "Source"):
        table.add_column(heading, overflow="fold")
    for heading in ("Entries", "Wrong lines", "Taken", "Asked", "Failures"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Error", overflow="fold")
    for row in rows:
        counts = [f"{row['entries']:,}", f"{row['wrong_lines']:,}"]
        ages = [_age(row["taken"]), _age(row["asked"])]
        cells = [row["list"], row["source"], *counts, *ages, f"{row['failures']:,}", row["error"]]
        table.add_row(*map(Text, cells), style="red" if row["error"] else None)
    console.print(table)


def _age(when: float) -> str:
    """`3 h ago`, in the largest unit that suits."""
    if not when:
        return "never"
    seconds = max(0.0, time.time() - when)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
