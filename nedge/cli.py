"""The `nedge` command. Exit status: 0 done; 1 the thing failed; 2 wrong usage or configuration."""

from __future__ import annotations

import gc
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from nedge.commands.cleanup import cleanup
from nedge.commands.doctor import doctor_command
from nedge.control import commands as control
from nedge.control.protocol import ControlError, Kind
from nedge.errors import ConfigError, DpiError
from nedge.export.cli import history
from nedge.lab.cli import app as lab
from nedge.lists.cli import app as lists

if TYPE_CHECKING:
    from nedge.config import Config

app = typer.Typer(
    name="nedge",
    help="An open, scriptable inline bridging firewall.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

app.add_typer(lab, name="lab")
control.add_to(app)
app.add_typer(lists, name="lists")
app.command()(history)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", metavar="FILE", help="Configuration file (TOML).")
]
PoliciesOption = Annotated[
    Path | None,
    typer.Option(
        "--policies", metavar="PATH", help="Directory of scripts, or one, instead of the configured ones."
    ),
]

FAILED, USAGE = 1, 2


def main() -> None:
    """Entry point of the `nedge` command."""
    if sys.stdout is None:  # closed by who started us: nobody wants to hear
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    try:
        app()
    except (ConfigError, DpiError) as error:
        fail(str(error), USAGE if isinstance(error, ConfigError) else FAILED)
    except ControlError as error:
        fail(str(error), USAGE if error.kind is Kind.USAGE else FAILED)
    except BrokenPipeError:  # `nedge … | head`: the reader has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(FAILED)
    except OSError as error:
        fail(f"{error.filename + ': ' if error.filename else ''}{error.strerror or error}", FAILED)


def fail(message: str, status: int) -> NoReturn:
    """Say what is wrong, on standard error, and exit."""
    for line in message.splitlines():
        print(f"nedge: {line}", file=sys.stderr)
    sys.exit(status)


def configure(path: Path | None, policies: Path | None = None) -> Config:
    """The configuration that the options ask for; logging is set up by it."""
    from nedge import log
    from nedge.config import Config
    from nedge.config_file import load as load_config

    config = load_config(path) if path else Config()
    if policies is not None:
        scripts = config.scripts.model_copy(update={"directories": [policies]})
        config = config.model_copy(update={"scripts": scripts})
    log.configure(config.log.level, config.log.format)
    return config


def tame_garbage_collector() -> None:
    """Flows hold no reference cycles, so looking through all of them for cycles, again and again, is in vain.

    Young objects are still looked through: exceptions and scripts do make cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 50, 1_000_000)


@app.command()
def replay(
    capture: Annotated[Path, typer.Argument(metavar="CAPTURE", help="pcap or pcapng file, gzipped or not.")],
    config: ConfigOption = None,
    policies: PoliciesOption = None,
    json: Annotated[bool, typer.Option("--json", help="One EVE flow event per line.")] = False,
) -> None:
    """Judge a capture file: what would have been blocked, and why."""
    from nedge.assemble import assemble
    from nedge.core.events import Event, FlowEnded, Sink
    from nedge.core.facts import Classifier
    from nedge.export.eve import flow_record, to_json
    from nedge.export.report import print_report, progress_bar
    from nedge.replay import CaptureError
    from nedge.replay import replay as replay_capture
    from nedge.scripts.budget import enforced

    if capture.is_dir() or not capture.exists():
        fail(f"{capture}: {'is a directory' if capture.is_dir() else 'no such file'}", USAGE)
    records: list[dict[str, Any]] = []

    def sink_for(classifier: Classifier) -> Sink:
        def sink(event: Event) -> None:
            if isinstance(event, FlowEnded):
                record = flow_record(event.flow, event.time, classifier, event.reason.label)
                if json:
                    sys.stdout.buffer.write(to_json(record))
                else:
                    records.append(record)

        return sink

    broken = None
    with enforced():
        assembly = assemble(configure(config, policies), sink_for)
        tame_garbage_collector()
        with progress_bar(capture) as progress:
            try:
                totals = replay_capture(capture, assembly.engine, progress)
            except CaptureError as error:
                broken, totals = error, error.replayed
        if not json:
            print_report(records, totals, assembly.engine)
        assembly.close()
    sys.stdout.flush()
    if broken:
        fail(str(broken), FAILED)


@app.command()
def run(config: ConfigOption = None) -> None:
    """Bridge two interfaces and judge what passes between them. Needs root."""
    from nedge.assemble import allowed_networks, dropped_networks
    from nedge.config_file import load as load_config
    from nedge.dpi.selftest import check as check_dpi
    from nedge.gateway.run import Parts
    from nedge.gateway.run import run as run_gateway
    from nedge.lists.loading import load_lists
    from nedge.live import live, rehearse

    settings = configure(config)
    check_dpi(settings.dpi.library)
    rehearse(settings, starting=True)
    tame_garbage_collector()
    exempt = partial(allowed_networks, load=load_lists)
    listed = partial(dropped_networks, load=load_lists)
    reread = partial(load_config, config) if config else None
    sys.exit(run_gateway(settings, Parts(live, exempt, listed, reread, rehearse)))


@app.command()
def check(config: ConfigOption = None, policies: PoliciesOption = None) -> None:
    """Check the configuration, the lists, the scripts and libndpi, without touching the network."""
    from nedge.check import check as check_all

    for line in check_all(configure(config, policies), str(config or "defaults")):
        print(line)


@app.command("new-script")
def new_script(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What to call it: no_torrents.")],
    directory: Annotated[
        Path, typer.Option("--directory", "-d", metavar="DIR", help="Where to; here unless given.")
    ] = Path(),
) -> None:
    """Write a script to start from, and its test."""
    from nedge.config import SHIPPED_POLICIES
    from nedge.scripts.new import NewScriptError, create

    try:
        script, test = create(name, directory, SHIPPED_POLICIES)
    except NewScriptError as error:
        fail(str(error), USAGE)
    print(f"{script}: the script; nedge check --policies {script} says what is wrong with it")
    print(f"{test}: its test; pytest {test} runs it")
    print(f"{SHIPPED_POLICIES / 'README.md'}: the guide")


app.command("doctor")(doctor_command(configure))
app.command("cleanup")(cleanup)


if __name__ == "__main__":
    main()
