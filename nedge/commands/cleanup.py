"""`nedge cleanup`."""

from __future__ import annotations

import sys

import typer


def cleanup() -> None:
    """Undo what gateways that crashed left here: rules, bridges, settings. Those that run are left alone.

    `nedge run` does that by itself for its own bridge. Needs root.
    """
    from nedge import log
    from nedge.gateway.run import clear_abandoned
    from nedge.kernel.errors import KernelError

    log.configure("info", "auto")
    try:
        clear_abandoned(but="")
    except KernelError as error:
        print(f"nedge: {error}", file=sys.stderr)
        raise typer.Exit(1) from None
