"""What the commands print for people. Names come from the wire: they never reach the terminal as markup."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from nedge.control.protocol import FlowSort, HostSort
from nedge.export.table import VERDICT_STYLES, endpoint, printable

Record = Mapping[str, Any]

_PIPE_WIDTH = 160
_ROW_STYLES = {"drop": "red", "reject": "yellow"}
_HEALTH_STYLES = {"ok": "green", "starting": "yellow", "silent": "red", "restarting": "red"}
_OF_TRAFFIC = (
    "midstream", "unclassified", "fragments", "malformed_", "bad_checksums", "syn_data", "other_copies",
    "early_data", "urgent_data",
)  # fmt: skip
"""Counters of failures that lie in the traffic."""
_FLOW_SORTS: dict[FlowSort, Callable[[Record], float]] = {
    FlowSort.START: lambda flow: flow["start"],
    FlowSort.LAST: lambda flow: flow["last"],
    FlowSort.SCORE: lambda flow: flow["score"],
    FlowSort.BYTES: lambda flow: flow["bytes_toserver"] + flow["bytes_toclient"],
    FlowSort.PACKETS: lambda flow: flow["pkts_toserver"] + flow["pkts_toclient"],
    FlowSort.DROPPED: lambda flow: flow["dropped_packets"],
}
_HOST_SORTS: dict[HostSort, Callable[[Record], float]] = {
    HostSort.SCORE: lambda host: host["score"],
    HostSort.FLOWS: lambda host: host["flows"],
    HostSort.BYTES: lambda host: host["bytes_sent"] + host["bytes_rcvd"],
    HostSort.BLOCKED: lambda host: host["blocked_flows"],
}


def console() -> Console:
    """Standard output; wide enough for tables where it is no terminal."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def table(*headings: str, title: str | None = None) -> Table:
    """An empty table."""
    made = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for heading in headings:
        numeric = heading in NUMBERS
        made.add_column(
            heading,
            justify="right" if numeric else "left",
            overflow="fold",
            no_wrap=numeric or heading == "Id",
        )
    return made


def text(value: object, style: str = "") -> Text:
    """Anything as printable text."""
    return Text(printable(str(value)), style=style)


# Times and amounts


def span(seconds: float) -> str:
    """`3 s`, `2 min 5 s`, `4 h 3 min`, `2 d 1 h`."""
    left = int(seconds)
    parts: list[str] = []
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def when(epoch: float) -> str:
    """Local time; with the date unless it is today."""
    moment = datetime.fromtimestamp(epoch)
    today = moment.date() == datetime.now().date()
    return moment.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S")


def until(epoch: float) -> str:
    """When something ends; 0: never."""
    return "for good" if not epoch else f"until {when(epoch)} ({span(max(0, round(epoch - time.time())))})"


# Flows, hosts, scripts, orders


def flow_cells(flow: Record) -> list[Text]:
    """A flow under FLOW_HEADINGS."""
    verdict = flow["verdict"]
    return [
        text(flow["id"]),
        text(endpoint(flow["src_ip"], flow["src_port"])),
        text(endpoint(flow["dest_ip"], flow["dest_port"])),
        text(f"{flow['proto']} {flow['app_proto']}"),
        text(flow["hostname"]),
        text(" ".join(name.removeprefix("status_") for name in flow["status"])),
        text(flow["score"]),
        text(decimal(flow["bytes_toserver"] + flow["bytes_toclient"])),
        text(verdict, VERDICT_STYLES.get(verdict, "")),
        text(flow["reason"].replace("status_", "")),
    ]


FLOW_HEADINGS = (
    "Id", "Client", "Server", "Protocol", "Host name", "Status", "Score", "Bytes", "Verdict", "Reason",
)  # fmt: skip
HOST_HEADINGS = ("Host", "Flows", "Blocked", "Sent", "Received", "Score", "Is")
SCRIPT_HEADINGS = (
    "Script", "Hooks", "Filters", "Calls", "Mean", "99 % under", "Errors", "Timeouts", "Statuses",
    "Flows dropped", "Last error",
)  # fmt: skip
NUMBERS = frozenset(
    (
        "Score", "Bytes", "Flows", "Blocked", "Sent", "Received", "Calls", "Mean", "99 % under", "Errors",
        "Timeouts", "Statuses", "Flows dropped", "Order", "Packets", "Waiting", "Full", "Lost",
        "Queue", "Process", "Client score", "Server score",
    )
)  # fmt: skip


def sort_flows(found: list[dict[str, Any]], sort: FlowSort, *, reverse: bool = False) -> None:
    """In place, the highest first."""
    value = _FLOW_SORTS[sort]
    found.sort(key=lambda flow: (value(flow), flow["start"], flow["id"]), reverse=not reverse)


def flows_table(flows: Iterable[Record]) -> Table:
    made = table(*FLOW_HEADINGS)
    for flow in flows:
        made.add_row(*flow_cells(flow), style=_ROW_STYLES.get(flow["verdict"]))
    return made


def merge_hosts(hosts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """A host that has flows in several workers comes from each of them: one record of all."""
    merged: dict[tuple[str, int], dict[str, Any]] = {}
    for host in hosts:
        same = merged.setdefault((host["ip"], host["vlan"]), host)
        if same is not host:
            for name in ("flows_as_client", "flows_as_server", "blocked_flows", "bytes_sent", "bytes_rcvd"):
                same[name] += host[name]
            for name in ("score", "quarantined_until"):
                same[name] = max(same[name], host[name])
    for host in merged.values():
        host["flows"] = host["flows_as_client"] + host["flows_as_server"]
    return list(merged.values())


def sort_hosts(hosts: list[dict[str, Any]], sort: HostSort, *, reverse: bool = False) -> None:
    """In place, the highest first."""
    hosts.sort(key=lambda host: (_HOST_SORTS[sort](host), host["ip"]), reverse=not reverse)


def host_cells(host: Record) -> list[Text]:
    """A host under HOST_HEADINGS."""
    marks = [name for name in ("local", "allowed", "blacklisted") if host[name]]
    if host["operator"]:
        marks.append(f"{host['operator']}ed by the operator")
    style = ""
    if host["quarantined_until"]:
        marks.append(f"in quarantine {until(host['quarantined_until'])}")
        style = "red"
    vlan = f" vlan {host['vlan']}" if host["vlan"] else ""
    return [
        text(f"{host['ip']}{vlan}"),
        text(host["flows"]),
        text(host["blocked_flows"]),
        text(decimal(host["bytes_sent"])),
        text(decimal(host["bytes_rcvd"])),
        text(host["score"]),
        text(", ".join(marks), style),
    ]


def hosts_table(hosts: Iterable[Record]) -> Table:
    made = table(*HOST_HEADINGS)
    for host in hosts:
        made.add_row(*host_cells(host))
    return made


def merge_scripts(scripts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every worker runs all scripts: one record of each, with sums, in the order in which they run.

    `p99_ns` is that of the slowest worker; `aside` is told if it is so in one.
    """
    merged: dict[str, dict[str, Any]] = {}
    for script in scripts:
        same = merged.setdefault(script["script"], script)
        if same is not script:
            for name in ("calls", "time_ns", "errors", "timeouts", "statuses_set", "flows_dropped"):
                same[name] += script[name]
            same["p99_ns"] = max(same["p99_ns"], script["p99_ns"])
            same["aside"] = same["aside"] or script["aside"]
            if not same["last_error"]:
                same["last_error"], same["last_error_at"] = script["last_error"], script["last_error_at"]
    for script in merged.values():
        script["mean_us"] = round(script["time_ns"] / script["calls"] / 1000, 1) if script["calls"] else 0.0
    return list(merged.values())


def script_cells(script: Record) -> list[Text]:
    """A script under SCRIPT_HEADINGS."""
    filters = script["filters"]
    words = [*filters["l4"], filters["l7"], "handshake" if filters["three_way_handshake_ok"] else ""]
    words.append(filters["needs"])
    words.append("HTTP answers" if filters["http_answers"] else "")
    if "periodicUpdate" in script["hooks"]:
        words.append(f"every {filters['periodic_update_seconds']} s")
    return [
        text(script["script"]),
        text(" ".join(script["hooks"])),
        text(" ".join(filter(None, words))),
        text(script["calls"]),
        text(f"{script['mean_us']} µs" if script["calls"] else ""),
        text(f"{script['p99_ns'] / 1000:.1f} µs" if script["calls"] else ""),
        text(script["errors"], "red" if script["errors"] else ""),
        text(script["timeouts"], "red" if script["timeouts"] else ""),
        text(script["statuses_set"]),
        text(script["flows_dropped"]),
        text(f"put aside: {script['aside']}" if script["aside"] else script["last_error"], "red"),
    ]


def scripts_table(scripts: Iterable[Record]) -> Table:
    made = table(*SCRIPT_HEADINGS)
    for script in scripts:
        made.add_row(*script_cells(script))
    return made


def orders_table(orders: Iterable[Record]) -> Table:
    made = table("Order", "Word", "On", "Holds", "Given", "By", "Reason")
    for order in orders:
        made.add_row(
            text(order["id"]),
            text(order["word"], "red" if order["word"] == "block" else "green"),
            text(f"{order['kind']} {order['target']}"),
            text(until(order["until"])),
            text(when(order["made"])),
            text(order["by"]),
            text(order["reason"]),
        )
    return made


# Status


def status_page(status: Record) -> Group:
    """All of `nedge status`."""
    parts: list[RenderableType] = [text(line) for line in headlines(status)]
    workers = table("Worker", "Health", "Process", "Up", "Queue", "Waiting", "Full", "Lost")
    for worker in status["workers"]:
        workers.add_row(
            text(worker["worker"]),
            text(worker["health"], _HEALTH_STYLES[worker["health"]]),
            text(worker["pid"]),
            text(span(worker["uptime"])),
            text(worker["queue"]),
            text(worker["queue_waiting"]),
            text(worker["queue_full"]),
            text(worker["queue_lost"]),
        )
    parts += ["", workers]
    found = {name: count for name, count in troubles(status).items() if count}
    odd = {name: count for name, count in found.items() if name.startswith(_OF_TRAFFIC)}
    if odd:
        parts.append(text(f"Odd traffic: {_counts(odd)}"))
    bad = {name: count for name, count in found.items() if name not in odd}
    parts.append(
        text(f"Failures and losses: {_counts(bad)}", "bold red") if bad else text("No failures, no losses.")
    )
    if status["quarantined"]:
        parts.append(text(f"In quarantine: {', '.join(status['quarantined'])}", "red"))
    return Group(*parts)


def _counts(counters: Mapping[str, int]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in counters.items())


def headlines(status: Record) -> list[str]:
    """The state of the gateway in a few lines."""
    rates, counters = status["rates"], status["counters"]
    ports = f"{', '.join(status['lan'])} – {', '.join(status['wan'])}"
    lines = (
        (
            f"nedge {status['version']} on {status['bridge']} ({ports})",
            status["mode"],
            f"fail {status['fail']}",
            f"up {span(status['uptime'])}",
            f"process {status['pid']}",
        ),
        (
            f"nDPI {status['ndpi']}",
            f"{len(status['scripts'])} scripts",
            f"{status['orders']} orders",
            f"{status['reloads']} reloads",
            f"policy generation {status['generation']}" if status["offload"] else "no offload",
        ),
        (
            f"live: {status['live_flows']} flows",
            f"{status['live_hosts']} hosts",
            f"{len(status['quarantined'])} in quarantine",
        ),
        (
            f"judged a second: {rates['packets']:g} packets",
            f"{decimal(int(rates['bytes']))}",
            f"{rates['flows']:g} new flows",
            f"{rates['dropped_packets']:g} packets dropped",
        ),
        (
            f"judged so far: {counters.get('packets', 0)} packets",
            f"{counters.get('flows', 0)} flows",
            f"{counters.get('dropped_packets', 0)} packets dropped",
            f"{counters.get('alerts', 0)} alerts",
        ),
    )
    return [", ".join(line) for line in lines]


def troubles(status: Record) -> dict[str, int]:
    """Every failure's counter."""
    control = status["control"]
    names = ("refused", "busy", "malformed", "oversized", "timeouts", "stalled", "errors", "unanswered")
    return {
        **status["losses"],
        **status["failures"],
        **{f"control_{name}": control[f"control_{name}"] for name in names},
        **{name: control[name] for name in ("orders_damaged", "orders_unstored")},
    }
