"""The commands that look at a running gateway; those that steer it are in `steering`.

Exit status: 0 done; 1 it failed, or no gateway runs, or permission is lacking; 2 wrong usage.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nedge.control import steering
from nedge.control.client import Answer
from nedge.control.options import (
    CategoryOption,
    ConfigOption,
    HostOption,
    JsonOption,
    LimitOption,
    ProtocolOption,
    Records,
    ReverseOption,
    ScoreOption,
    SocketOption,
    StatusOption,
    Verdict,
    VerdictOption,
    WatchOption,
    connected,
    print_answer,
    print_listing,
)
from nedge.control.protocol import ControlError, FlowSort, HostSort, Kind


def add_to(app: typer.Typer) -> None:
    """Make these commands part of `nedge`."""
    for command in (status, flows, hosts, top, explain, scripts, *steering.COMMANDS):
        app.command()(command)


def status(config: ConfigOption = None, socket: SocketOption = None, json: JsonOption = False) -> None:
    """How the gateway is: workers, queues, rates, losses and failures."""
    from nedge.control.show import status_page

    with connected(config, socket) as client:
        answer = client.ask("status")
    print_answer(answer, json, lambda: status_page(answer.result))


def flows(
    config: ConfigOption = None,
    socket: SocketOption = None,
    host: HostOption = None,
    protocol: ProtocolOption = None,
    category: CategoryOption = None,
    verdict: VerdictOption = None,
    status: StatusOption = None,
    min_score: ScoreOption = 0,
    sort: Annotated[FlowSort, typer.Option("--sort", "-s", help="The highest first.")] = FlowSort.START,
    reverse: ReverseOption = False,
    limit: LimitOption = 50,
    watch: WatchOption = False,
    json: JsonOption = False,
) -> None:
    """The live flows. Counters of those that the kernel has are up to half a minute old."""
    from nedge.control.show import flows_table, sort_flows

    with connected(config, socket) as client:

        def look() -> tuple[Answer, Records]:
            answer = client.ask(
                "flows",
                **_filter(host, protocol, category, verdict, status, min_score),
                sort=sort,
                reverse=reverse,
                limit=limit,
            )
            found = list(answer.records())
            sort_flows(found, sort, reverse=reverse)
            return answer, found[:limit] if limit else found

        print_listing(look, flows_table, "flows", watch=watch, json=json)


def hosts(
    config: ConfigOption = None,
    socket: SocketOption = None,
    host: Annotated[
        str | None, typer.Option("--host", metavar="WHO", help="An address, or a network.")
    ] = None,
    protocol: ProtocolOption = None,
    category: CategoryOption = None,
    verdict: VerdictOption = None,
    status: StatusOption = None,
    min_score: ScoreOption = 0,
    quarantined: Annotated[bool, typer.Option("--quarantined", help="Only those in quarantine.")] = False,
    sort: Annotated[HostSort, typer.Option("--sort", "-s", help="The highest first.")] = HostSort.SCORE,
    reverse: ReverseOption = False,
    limit: LimitOption = 50,
    watch: WatchOption = False,
    json: JsonOption = False,
) -> None:
    """The hosts that have live flows, or are in quarantine. Filters of flows: hosts that have such flows."""
    from nedge.control.show import hosts_table, merge_hosts, sort_hosts

    with connected(config, socket) as client:

        def look() -> tuple[Answer, Records]:
            wanted = _filter(host, protocol, category, verdict, status, min_score)
            answer = client.ask("hosts", **wanted, quarantined=quarantined)
            found = merge_hosts(answer.records())
            sort_hosts(found, sort, reverse=reverse)
            answer.result["matched"] = len(found)
            return answer, found[:limit] if limit else found

        print_listing(look, hosts_table, "hosts", watch=watch, json=json)


def top(config: ConfigOption = None, socket: SocketOption = None) -> None:
    """A live view of flows, hosts, scripts and drops; keys sort, filter, explain, block and unblock."""
    from nedge.control.top import Top

    with connected(config, socket) as client:
        problem = Top(client).run()
    if problem:
        raise ControlError(Kind.FAILED, problem)


def explain(
    flow: Annotated[str, typer.Argument(metavar="FLOW", help="A flow's id, such as 0-17: see nedge flows.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    json: JsonOption = False,
) -> None:
    """The whole story of a flow: what it is, what scripts said of it, and which rule decided."""
    from nedge.control.story import story_page

    with connected(config, socket) as client:
        answer = client.ask("explain", flow=flow)
    print_answer(answer, json, lambda: story_page(answer.result))


def scripts(config: ConfigOption = None, socket: SocketOption = None, json: JsonOption = False) -> None:
    """The scripts, and what each did since it was loaded: calls, time, errors, statuses, flows dropped."""
    from nedge.control.show import merge_scripts, scripts_table

    with connected(config, socket) as client:

        def look() -> tuple[Answer, Records]:
            answer = client.ask("scripts")
            return answer, merge_scripts(answer.records())

        print_listing(look, scripts_table, "scripts", watch=False, json=json)


def _filter(
    host: str | None,
    protocol: str | None,
    category: str | None,
    verdict: Verdict | None,
    status: str | None,
    min_score: int,
) -> dict[str, Any]:
    return {
        "host": host,
        "protocol": protocol,
        "category": category,
        "verdict": verdict,
        "status": status,
        "min_score": min_score,
    }
