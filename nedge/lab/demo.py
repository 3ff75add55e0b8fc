"""The demo: real clients and servers with nedge between them, then nedge's own record of the flows."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from nedge.export.table import flow_table
from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.host import LabError
from nedge.lab.interrupts import exit_status
from nedge.lab.probes import Outcome, Result, demo_probes, run_probes
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

ALLOWED = "www.example"
BLOCKED = "blocked.example"

CONFIG = f"""\
{PORTS}
{EVENTS}
[scripts.blocked_hostname]
domains = ["{BLOCKED}"]
"""

_STYLES = {Outcome.ANSWERED: "green", Outcome.CUT_OFF: "red", Outcome.FAILED: "bold magenta"}


def demo() -> int:
    """Run the demo and say how it went. Gives the exit status."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=120)  # in a pipe or a log rich would assume 80 columns
    try:
        return _demo(console)
    except LabError as error:
        console.print(Text(f"The demo failed: {error}", style="bold red"))
        return 1
    except KeyboardInterrupt as error:
        console.print("Interrupted. The lab has been removed.")
        return exit_status(error)


def _demo(console: Console) -> int:
    console.rule("The lab", align="left")
    console.print(
        "Three network namespaces: client (10.99.0.2, fd99::2) - gateway - server (10.99.0.1, fd99::1)."
    )
    console.print("The gateway has no address: nedge bridges its two ports. Its configuration:\n")
    console.print(Syntax(CONFIG, "toml", background_color="default", indent_guides=False))
    with Lab() as lab, ServerSet(lab) as servers:
        with Gateway(lab, CONFIG) as gateway:
            console.rule("Clients", align="left")
            results = run_probes(lab.client, servers, demo_probes(servers, ALLOWED, BLOCKED))
            console.print(_results_table(results))
        console.rule("What nedge recorded: a flow event each", align="left")
        flows = gateway.events()
        console.print(flow_table(flows))
        problems = _problems(results, gateway, len(flows))
    for problem in problems:
        console.print(Text(problem, style="bold red"))
    if problems:
        return 1
    answered = sum(result.outcome is Outcome.ANSWERED for result in results)
    console.print(
        f"All {len(results)} clients fared as expected: {answered} were answered, "
        f"{len(results) - answered} were cut off before their request reached the server."
    )
    return 0


def _results_table(results: Sequence[Result]) -> Table:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("Client's command", overflow="fold")
    for heading in ("Expected", "Happened", "Arrived"):
        table.add_column(heading, no_wrap=True)
    table.add_column("Answer, or the client's complaint", overflow="ellipsis", no_wrap=True, max_width=36)
    for result in results:
        table.add_row(
            Text(result.probe.shown),
            result.probe.expected,
            Text(result.outcome, style=_STYLES[result.outcome]),
            "yes" if result.arrived else "no",
            Text(result.detail),
            style=None if result.as_expected else "reverse",
        )
    return table


def _problems(results: Sequence[Result], gateway: Gateway, flows: int) -> list[str]:
    """What did not go as it should, a sentence each."""
    problems = [
        f"{result.probe.shown}: expected to be {result.probe.expected}, but it was {result.outcome}"
        f" and its request {'arrived' if result.arrived else 'did not arrive'}: {result.detail}"
        for result in results
        if not result.as_expected
    ]
    if gateway.status != 0:
        problems.append(f"nedge run ended with status {gateway.status}:\n{gateway.log.strip()}")
    if not flows:
        problems.append("nedge run wrote no flow event")
    return problems
