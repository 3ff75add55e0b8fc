"""`nedge explain` for people: the story of one flow, from its first packet to its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.filesize import decimal
from rich.text import Text

from nedge.control.show import span, table, text, until, when
from nedge.export.table import VERDICT_STYLES, endpoint

Story = Mapping[str, Any]

_NOT_FACTS = frozenset(
    ("proto", "master_id", "app_id", "category", "category_id", "breed", "hostname", "risks", "risk_map")
)
_SHARES = {
    "none": "nothing: every packet comes up",
    "pass": "passes it by itself",
    "drop": "drops it by itself",
    "watch": "passes what the server sends; what the client asks comes up",
}


def story_page(story: Story) -> Group:
    """All of it."""
    parts: list[RenderableType] = []
    for heading, lines in (
        ("Flow", _flow(story["flow"])),
        ("Detection", _detection(story["detection"])),
        ("Statuses", _statuses(story)),
        ("Verdict", _verdict(story)),
        ("Kernel", _kernel(story)),
    ):
        parts += ["", Text(heading, style="bold"), *lines]
    return Group(*parts[1:])


def _line(name: str, value: str, style: str = "") -> Text:
    return Text.assemble(Text(f"  {name:<12} ", style="dim"), text(value, style))


def _flow(flow: Story) -> Iterator[RenderableType]:
    client, server = endpoint(flow["src_ip"], flow["src_port"]), endpoint(flow["dest_ip"], flow["dest_port"])
    vlan = f", vlan {flow['vlan']}" if flow["vlan"] else ""
    yield _line(flow["id"], f"{flow['proto']} {client} > {server}{vlan}")
    state = f", handshake {flow['handshake']}" if flow["proto"] == "TCP" else ""
    closing = ", closing" if flow["closing"] else ""
    lasted = f"{when(flow['start'])} to {when(flow['last'])} ({span(flow['last'] - flow['start'])})"
    yield _line("seen", f"{lasted}{state}{closing}")
    yield _line(
        "counted",
        f"{flow['pkts_toserver']} packets ({decimal(flow['bytes_toserver'])}) to the server, "
        f"{flow['pkts_toclient']} ({decimal(flow['bytes_toclient'])}) to the client; "
        f"{flow['dropped_packets']} dropped here",
    )
    for end in ("client", "server"):
        yield _line(end, _host(flow[end]))


def _host(host: Story) -> str:
    words = [host["ip"], f"{host['flows']} flows", f"score {host['score']}"]
    if host["forgiven"]:
        words.append(f"of which {host['forgiven']} are forgiven")
    words += [name for name in ("local", "allowed", "blacklisted") if host[name]]
    if host["operator"]:
        words.append(f"{host['operator']}ed by the operator")
    if host["quarantined_until"]:
        words.append(f"in quarantine {until(host['quarantined_until'])}")
    return ", ".join(words)


def _detection(detection: Story) -> Iterator[RenderableType]:
    if not detection["detected"]:
        yield _line("protocol", "not known yet: it passes, within the limits")
    else:
        yield _line(
            "protocol",
            f"{detection['protocol']} ({detection['category']}, {detection['breed']}), "
            f"known at packet {detection['at_packet']}",
        )
    if detection["hostname"]:
        yield _line("asked for", detection["hostname"])
    if detection["requests"] > 1:
        yield _line("requests", str(detection["requests"]))
    for name, value in detection["facts"].items():
        if name not in _NOT_FACTS and value:
            yield _line(name.replace("_", " "), ", ".join(value) if isinstance(value, list) else str(value))
    if detection["facts"]["risks"]:
        yield _line("nDPI's risks", ", ".join(detection["facts"]["risks"]))
    yield _line("inspection", "goes on" if detection["goes_on"] else "is over")


def _statuses(story: Story) -> Iterator[RenderableType]:
    if not story["statuses"]:
        yield _line("", "none: no script had anything to say of it")
        return
    made = table("When", "Status", "Script", "Score", "Client score", "Server score", "Info")
    for status in story["statuses"]:
        made.add_row(
            text(when(status["time"]) if status["time"] else ""),
            text(status["status"].removeprefix("status_") + ("" if status["set"] else " (cleared)")),
            text(status["script"] or "nedge"),
            text(status["score"]),
            text(status["cli_score"]),
            text(status["srv_score"]),
            text(_info(status["info"])),
        )
    yield made


def _info(info: Any) -> str:
    if isinstance(info, dict):
        return ", ".join(f"{name}: {value}" for name, value in info.items())
    return "" if info is None else str(info)


def _verdict(story: Story) -> Iterator[RenderableType]:
    verdict, flow = story["verdict"], story["flow"]
    changed = f", since {when(verdict['time'])}, packet {verdict['at_packet']}" if verdict["time"] else ""
    yield _line("verdict", f"{verdict['action']}{changed}", VERDICT_STYLES.get(verdict["action"], ""))
    yield _line("score", f"{flow['score']} (client {flow['cli_score']}, server {flow['srv_score']})")
    made = table("Rule", "What it saw", "")
    for rule, saw in _rules(story["evidence"], story["policy"]):
        decided = rule == verdict["rule"] or (rule == "operator" and verdict["rule"].startswith("operator"))
        made.add_row(text(rule), text(saw), text("decided" if decided else "", "bold"))
        if decided:
            break
    yield made


def _rules(evidence: Story, policy: Story) -> Iterator[tuple[str, str]]:
    """The rules in their order, and what each had before it."""

    def names(statuses: list[str]) -> str:
        return ", ".join(name.removeprefix("status_") for name in statuses) or "none"

    def limit(value: int) -> str:
        return f"limit {value}" if value else "off"

    yield "operator", evidence["order"] or evidence["operator"] or "no order"
    yield "allow_list", "an end is on it" if evidence["allowed"] else "no end is on it"
    yield "status", f"{names(evidence['statuses'])}; blocking are {names(policy['block_statuses'])}"
    yield "flow_score", f"{evidence['score']}, {limit(policy['drop_score'])}"
    ends = f"client {evidence['client_score']}, server {evidence['server_score']}"
    yield "host_score", f"{ends}, {limit(policy['host_drop_score'])}" if policy["host_drop_score"] else "off"
    failures = ", ".join(evidence["failures"]) or "none"
    yield "failure", f"{failures}; to be dropped are {', '.join(policy['failures']) or 'none'}"
    yield ("clean", "nothing objects") if evidence["detected"] else ("undetected", "not known yet")


def _kernel(story: Story) -> Iterator[RenderableType]:
    kernel = story["kernel"]
    if kernel is None:
        yield _line("", "gateway.offload is off: every packet comes up")
    elif "error" in kernel:
        yield _line("", kernel["error"], "red")
    elif not kernel["connection"]:
        yield _line("", "holds no connection of it")
    else:
        yield _line("mark", f"{kernel['mark']:#010x}, generation {kernel['generation']}")
        stale = (
            "" if kernel["current"] else "; but the mark is of an earlier policy: the next packet comes up"
        )
        yield _line("share", _SHARES[kernel["share"]] + stale)
        packets, size = kernel["packets"], kernel["bytes"]
        yield _line(
            "counted", f"{packets[0]} packets ({decimal(size[0])}), back {packets[1]} ({decimal(size[1])})"
        )
