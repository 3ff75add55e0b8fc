"""`nedge doctor`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import orjson
import typer

if TYPE_CHECKING:
    from nedge.config import Config

FAILED = 1


def doctor_command(configure: Callable[[Path | None], Config]) -> Callable[..., None]:
    """The command; `configure` reads the configuration that its option names."""

    def doctor(
        config: Annotated[
            Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file (TOML).")
        ] = None,
        json: Annotated[bool, typer.Option("--json", help="One JSON object per line.")] = False,
    ) -> None:
        """Look at the machine, and say what keeps a gateway from working well, and what to do about it.

        Changes nothing. Exit status 1 if anything is an error.
        """
        from nedge.doctor import examine_all

        failed = False
        for line in examine_all(configure(config)):
            failed |= line.level == "error"
            if json:
                sys.stdout.write(orjson.dumps(line._asdict()).decode() + "\n")
            else:
                print(f"{line.level:<8} {line.check}: {line.text}", flush=True)
        sys.stdout.flush()
        if failed:
            raise typer.Exit(FAILED)

    return doctor
