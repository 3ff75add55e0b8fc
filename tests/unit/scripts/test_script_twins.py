"""One dispatcher for both languages: a script and its twin do the same to the same flows."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import (
    CLIENT6,
    SERVER6,
    T0,
    Packet,
    Tcp,
    Udp,
    dns,
    http_request,
    http_response,
    noise,
    ping,
    tls,
)
from lua_kit import run

TALKS: list[list[Packet]] = [
    tls("1.2", "www.google.com").fin().packets,
    Tcp(dport=80)
    .handshake()
    .client(http_request("a.example"))
    .server(http_response())
    .client(http_request("b.example"))
    .packets,
    dns("www.example.com", "example.org").packets,
    [packet for n in range(0, 200, 20) for packet in ping(CLIENT6, SERVER6, T0 + n)],
    Udp(dport=47123).client(noise(60)).packets,
]
HOOKS = ("protocolDetected", "protocolUpdated", "periodicUpdate", "statusChanged", "flowEnd", "all")
NAMES = (
    "status_blacklisted",
    "status_dns_invalid_query",
    "status_web_mining_detected",
    "status_user_01",
    "status_user_05",
)
NUMBERS = ("getPackets", "getBytesSent", "getScore", "getDuration", "getnDPIAppProtoId", "getTLSVersion")
TRUTHS = ("isBlacklisted", "isLocalToRemote", "isBidirectional", "isTwhOK", "isUnicast", "isPassVerdict")
TEXTS = ("getnDPIProtocolName", "getDnsQuery", "getHostName", "getServerKey", "getnDPICategoryName")

# A script is a table of hooks -> statements; a statement is a tuple that both languages can write down.

scores = st.lists(st.integers(-10, 1500) | st.none(), max_size=3)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=8)
scalars = st.booleans() | st.integers(-(2**62), 2**62) | texts | st.floats(-1e6, 1e6, allow_nan=False)
names = texts.filter(bool)
info_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, min_size=1, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
infos = st.none() | texts | st.dictionaries(names, info_values, max_size=3)
conditions = (
    st.tuples(st.just("more"), st.sampled_from(NUMBERS), st.integers(0, 2000))
    | st.tuples(st.just("is"), st.sampled_from(TRUTHS))
    | st.tuples(st.just("has"), st.sampled_from(NAMES))
    | st.tuples(
        st.just("text"), st.sampled_from(TEXTS), st.sampled_from(["TLS", "DNS", "www.example.com", ""])
    )
    | st.tuples(st.just("count"), st.integers(1, 4))
    | st.tuples(st.just("conf"), st.integers(0, 9))
)
statuses = st.sampled_from(NAMES)
simple = (
    st.tuples(st.just("set"), statuses, scores)
    | st.tuples(st.just("clear"), statuses)
    | st.tuples(st.just("trigger"), statuses, infos, scores)
    | st.tuples(st.just("later form"), statuses, infos, scores)
    | st.tuples(st.just("tell"), statuses, st.sampled_from(NUMBERS + TRUTHS + TEXTS), scores)
    | st.just(("raise",))
    | st.tuples(st.just("wrong"), st.sampled_from(["info", "score", "type", "key"]))
)
statements = st.recursive(
    simple,
    lambda inner: st.tuples(st.just("if"), conditions, st.lists(inner, min_size=1, max_size=3)),
    max_leaves=6,
)
bodies = st.dictionaries(st.sampled_from(HOOKS), st.lists(statements, max_size=4), min_size=1, max_size=3)
filters = st.fixed_dictionaries(
    {},
    optional={
        "l4_proto": st.sampled_from(["tcp", "udp", "icmp"]),
        "l7_proto": st.sampled_from(["TLS", "DNS", "HTTP", "Google"]),
        "three_way_handshake_ok": st.booleans(),
        "periodic_update_seconds": st.sampled_from([30, 60, 45]),
        "prio": st.integers(-5, 5),
        "nedge_exclude": st.just(False),
    },
)
programs = st.tuples(filters, bodies)


class Python:
    """Writes a program down in Python."""

    ending = "py"

    def script(self, program: Any) -> str:
        filters, bodies = program
        lines = ["from nedge.scripts import status_types", "default_value = {'limit': 5}", "count = 0"]
        lines += [f"{name} = {value!r}" for name, value in filters.items()]
        for hook, body in bodies.items():
            lines += [f"def {hook}(flow, now, conf):", "    global count", "    count += 1"]
            lines += [line for statement in body for line in self.statement(statement, 1)]
        return "\n".join(lines) + "\n"

    def statement(self, statement: Any, depth: int) -> list[str]:
        kind, *rest = statement
        if kind == "if":
            inner = [line for each in rest[1] for line in self.statement(each, depth + 1)]
            return ["    " * depth + f"if {self.condition(rest[0])}:", *inner]
        return ["    " * depth + self.simple(kind, rest)]

    def simple(self, kind: str, rest: list[Any]) -> str:
        match kind, rest:
            case "set", [name, scores]:
                return f"flow.setStatus({self.call(f'status_types.{name}', scores)})"
            case "clear", [name]:
                return f"flow.clearStatus(status_types.{name})"
            case "trigger", [name, info, scores]:
                return f"flow.triggerStatus({self.call(f'status_types.{name}, {self.value(info)}', scores)})"
            case "later form", [name, info, scores]:
                return f"flow.triggerStatus({self.call(self.created(name, self.value(info)), scores)})"
            case "tell", [name, read, scores]:
                info = self.table({"value": f"flow.{read}()"})
                return f"flow.triggerStatus({self.call(f'status_types.{name}, {info}', scores)})"
            case "wrong", ["info"]:
                return "flow.triggerStatus(status_types.status_user_01, 5, 10)"
            case "wrong", ["score"]:
                return "flow.setStatus(status_types.status_user_01, 'x')"
            case "wrong", ["type"]:
                return f"flow.setStatus({self.nothing}, 5)"
            case "wrong", ["key"]:
                return "flow.isStatusSet('x')"
        return self.error

    nothing = "None"
    error = "raise ValueError('boom')"

    def created(self, name: str, info: str) -> str:
        return self.table({"status_type": f"status_types.{name}", "alert_type_params": info})

    def call(self, first: str, scores: list[Any]) -> str:
        return ", ".join([first, *map(self.value, scores)])

    def condition(self, condition: Any) -> str:
        match condition:
            case "more", read, limit:
                return f"flow.{read}() > {limit}"
            case "is", read:
                return f"flow.{read}()"
            case "has", name:
                return f"flow.isStatusSet(status_types.{name}.status_key)"
            case "text", read, text:
                return f"flow.{read}() == {self.value(text)}"
            case "count", number:
                return f"count % {number} == 0"
            case "conf", number:
                return f"{self.limit} > {number}"
        raise AssertionError(condition)

    limit = "conf['limit']"

    def value(self, value: Any) -> str:
        return repr(value)

    def table(self, fields: dict[str, str]) -> str:
        return "{" + ", ".join(f"{name!r}: {value}" for name, value in fields.items()) + "}"


class Lua(Python):
    """Writes a program down in Lua."""

    ending = "lua"
    nothing = "nil"
    error = "error('boom')"
    limit = "conf.limit"

    def script(self, program: Any) -> str:
        filters, bodies = program
        lines = [
            'local status_types = require("flow_consts").status_types',
            "local count = 0",
            "local script = {default_value = {limit = 5}, hooks = {}}",
        ]
        lines += [f"script.{name} = {self.value(value)}" for name, value in filters.items()]
        for hook, body in bodies.items():
            lines += [f"function script.hooks.{hook}(now, conf)", "count = count + 1"]
            lines += [line for statement in body for line in self.statement(statement, 1)]
            lines.append("end")
        return "\n".join([*lines, "return script"]) + "\n"

    def statement(self, statement: Any, depth: int) -> list[str]:
        kind, *rest = statement
        if kind == "if":
            inner = [line for each in rest[1] for line in self.statement(each, depth + 1)]
            return [f"if {self.condition(rest[0])} then", *inner, "end"]
        return [self.simple(kind, rest)]

    def value(self, value: Any) -> str:
        if value is None:
            return "nil"
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, str):
            return '"' + "".join(f"\\{byte:03d}" for byte in value.encode()) + '"'
        if isinstance(value, dict):
            return "{" + ", ".join(f"[{self.value(k)}] = {self.value(v)}" for k, v in value.items()) + "}"
        if isinstance(value, list):
            return "{" + ", ".join(map(self.value, value)) + "}"
        return repr(value)

    def table(self, fields: dict[str, str]) -> str:
        return "{" + ", ".join(f"{name} = {value}" for name, value in fields.items()) + "}"


def outcome(writer: Python, programs: list[Any], talk: list[Packet], toml: str) -> Any:
    """All that is seen of some scripts' work from outside."""
    files: dict[str, str | bytes] = {
        f"script{n}.{writer.ending}": writer.script(program) for n, program in enumerate(programs)
    }
    judged, ran = run(files, talk, toml, "[scripts.script0]\nlimit = 7\n", until=T0 + 260)
    counts = {key: (script.calls, script.errors, script.timeouts) for key, script in ran.items()}
    return judged.events, judged.actions, counts, list(ran)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(programs, min_size=1, max_size=3), st.sampled_from(TALKS), st.booleans())
def test_twins_do_the_same(made: list[Any], talk: list[Packet], drop: bool) -> None:
    toml = f"[failures]\nscript_error = '{'drop' if drop else 'pass'}'\n"
    assert outcome(Python(), made, talk, toml) == outcome(Lua(), made, talk, toml)


EVERYTHING = (
    {"periodic_update_seconds": 30},
    {
        "protocolDetected": [
            ("trigger", "status_web_mining_detected", {"a": [1, {"b": "é"}]}, [50, 50, 10]),
            ("if", ("is", "isLocalToRemote"), [("set", "status_user_01", [5])]),
            ("tell", "status_user_05", "getHostName", [60, None, 2]),
        ],
        "statusChanged": [("later form", "status_blacklisted", None, [1])],
        "periodicUpdate": [("if", ("count", 2), [("clear", "status_user_01"), ("raise",)])],
        "flowEnd": [("wrong", "info")],
    },
)


@pytest.mark.parametrize("talk", TALKS)
def test_a_program_with_everything(talk: list[Packet]) -> None:
    """That twins agree means nothing if none of it happens: here it does."""
    events, actions, counts, _ = mine = outcome(Python(), [EVERYTHING], talk, "")
    assert mine == outcome(Lua(), [EVERYTHING], talk, "")
    kinds = [event["event_type"] for event in events]
    assert {"flow", "alert"} <= set(kinds)
    assert counts["script0"][0] >= 3
    assert counts["script0"][1] >= 1
    assert any(actions) or len(talk) == 1  # that one is judged when it has gone


def test_the_order_is_one_for_both_languages() -> None:
    files: dict[str, str | bytes] = {}
    for n, prio in enumerate([0, 5, -3, 5]):
        writer = Python() if n % 2 else Lua()
        program = ({"prio": prio}, {"protocolDetected": [("set", "status_user_01", [n])]})
        files[f"script{n}.{writer.ending}"] = writer.script(program)
    judged, ran = run(files, ping())
    assert list(ran) == ["script1", "script3", "script0", "script2"]
    assert judged.flow["nedge"]["statuses"]["59"]["script"] == "script1"
