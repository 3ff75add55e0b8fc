"""`nedge lab`: the demo, and the lab for one's own commands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nedge.lab.topology import Lab

app = typer.Typer(
    help="A lab of network namespaces: client - gateway - server. Needs root.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.command()
def demo() -> None:
    """Show nedge at work: real clients, answered or cut off, and nedge's record of their flows."""
    from nedge.lab.demo import demo as run_demo

    raise typer.Exit(run_demo())


@app.command()
def run(
    command: Annotated[
        list[str], typer.Argument(help="What to run in the client, after `--`.", metavar="-- CMD")
    ],
    config: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help='nedge\'s configuration, with lan = ["lan0"] and wan = ["wan0"].',
        ),
    ] = None,
    bridge: Annotated[bool, typer.Option("--bridge", help="A plain bridge in nedge's place.")] = False,
) -> None:
    """Build the lab with nedge in the gateway, run a command in the client, take the lab down.

    Every name resolves to the server (10.99.0.1, fd99::1), which speaks HTTP, HTTPS, HTTP/3, DNS and SSH.
    Without --config nedge runs as in the demo. The exit status is the command's.
    """
    from nedge.lab.demo import CONFIG
    from nedge.lab.gateway import Gateway
    from nedge.lab.host import LabError
    from nedge.lab.interrupts import exit_status
    from nedge.lab.servers import ServerSet
    from nedge.lab.topology import Lab

    try:
        with Lab(bridge=bridge) as lab, ServerSet(lab):
            if bridge:
                status = _foreground(lab, command)
            else:
                with Gateway(lab, config or CONFIG):
                    status = _foreground(lab, command)
    except LabError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt as error:
        raise typer.Exit(exit_status(error)) from None
    raise typer.Exit(status)


def _foreground(lab: Lab, command: list[str]) -> int:
    """Run in our own process group, so that the command may use the terminal: it can be a shell."""
    from nedge.lab.host import environment

    return subprocess.run(lab.client.command(command), env=environment(), check=False).returncode
