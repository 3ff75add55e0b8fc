"""The commands that steer a running gateway: orders, release from quarantine, reload."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer

from nedge.control.client import Answer
from nedge.control.options import (
    ConfigOption,
    JsonOption,
    Records,
    SocketOption,
    connected,
    print_answer,
    print_listing,
)
from nedge.control.protocol import LONGEST_ORDER, ControlError, Kind

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_DURATION = re.compile(r"(?:\d+[smhdw])+")

TargetArgument = Annotated[
    str, typer.Argument(metavar="FLOW|HOST|NETWORK|DOMAIN", help="A flow's id, an address, …")
]
ForOption = Annotated[
    str | None,
    typer.Option(
        "--for", metavar="TIME", help="How long: 30s, 10m, 2h, 1d, 1h30m. Default: for good; a flow a day."
    ),
]
ReasonOption = Annotated[
    str, typer.Option("--reason", metavar="TEXT", help="Why; stands in records and lists.")
]


def block(
    target: TargetArgument,
    for_: ForOption = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    socket: SocketOption = None,
    json: JsonOption = False,
) -> None:
    """Block a flow, a host, a network or a domain, at once, until the order ends or `nedge forget`."""
    _order("block", target, for_, reason, config, socket, json)


def unblock(
    target: TargetArgument,
    for_: ForOption = None,
    reason: ReasonOption = "",
    config: ConfigOption = None,
    socket: SocketOption = None,
    json: JsonOption = False,
) -> None:
    """Let a flow, a host, a network or a domain pass, whatever lists and scores say.

    This takes the place of a block of the same target. To have neither, and leave it to lists and scores
    again: nedge forget.
    """
    _order("unblock", target, for_, reason, config, socket, json)


def _order(
    command: str,
    target: str,
    for_: str | None,
    reason: str,
    config: Path | None,
    socket: Path | None,
    json: bool,
) -> None:
    seconds = None if for_ is None else duration(for_)
    with connected(config, socket) as client:
        answer = client.ask(command, target=target, seconds=seconds, reason=reason)
    _ordered(answer, json, f"{command}ed")


def forget(
    order: Annotated[str, typer.Argument(metavar="ORDER", help="An order's number, or its target.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    json: JsonOption = False,
) -> None:
    """Take an order back: its flows are judged by lists and scores again."""
    which: dict[str, Any] = {"order": int(order)} if order.isdecimal() else {"target": order}
    with connected(config, socket) as client:
        answer = client.ask("forget", **which)
    _ordered(answer, json, "forgotten:")


def _ordered(answer: Answer, json: bool, what: str) -> None:
    from nedge.control.show import text, until

    given, changed = answer.result["order"], answer.result["changed"]
    lasts = "" if what == "forgotten:" else f", {until(given['until'])}"
    of_flows = f"{changed} live flow{'s' if changed != 1 else ''} changed"
    if answer.result["going_on"]:
        of_flows += " so far, more follow"
    sentence = f"{what} {given['kind']} {given['target']} (order {given['id']}{lasts}); {of_flows}"
    print_answer(answer, json, lambda: text(sentence))
    if answer.result["warning"]:
        raise ControlError(
            Kind.FAILED, f"this is in force, but will not outlive the gateway: {answer.result['warning']}"
        )


def orders(config: ConfigOption = None, socket: SocketOption = None, json: JsonOption = False) -> None:
    """The orders in force: what was blocked and unblocked, by whom, and for how long."""
    from nedge.control.show import orders_table

    with connected(config, socket) as client:

        def look() -> tuple[Answer, Records]:
            answer = client.ask("orders")
            return answer, list(answer.records())

        print_listing(look, orders_table, "orders", watch=False, json=json)


def release(
    host: Annotated[str, typer.Argument(metavar="HOST", help="The address of a host in quarantine.")],
    config: ConfigOption = None,
    socket: SocketOption = None,
    json: JsonOption = False,
) -> None:
    """Let a host out of quarantine, and forgive it the score that it has."""
    from nedge.control.show import text

    with connected(config, socket) as client:
        answer = client.ask("release", host=host)
    print_answer(
        answer,
        json,
        lambda: text(f"{answer.result['host']} is free; {answer.result['changed']} live flows changed"),
    )


def reload(config: ConfigOption = None, socket: SocketOption = None, json: JsonOption = False) -> None:
    """Have the gateway read its configuration, lists and scripts again; says what came of it."""
    from nedge.control.show import text

    with connected(config, socket) as client:
        answer = client.ask("reload")
    words = [f"reloaded in {answer.result['seconds']:.1f} s", *answer.result["notes"]]
    print_answer(answer, json, lambda: text("; ".join(words)))


def duration(text: str) -> float:
    """`1h30m` as seconds. Raises BadParameter."""
    words = text.strip().lower()
    seconds = sum(int(count) * _UNITS[unit] for count, unit in re.findall(r"(\d+)([smhdw])", words))
    if not _DURATION.fullmatch(words) or not 0 < seconds <= LONGEST_ORDER:
        raise typer.BadParameter(
            f"found {text!r}; allowed is a time such as 30s, 10m, 2h, 1d, 1w or 1h30m, up to ten years",
            param_hint="--for",
        )
    return float(seconds)


COMMANDS = (block, unblock, forget, orders, release, reload)
