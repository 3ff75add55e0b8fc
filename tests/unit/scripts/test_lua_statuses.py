"""Statuses, scores and alerts in Lua: the examples and rules of the Flow User Scripts API."""

from __future__ import annotations

from typing import Any

import pytest
from kit import Judged, ping
from lua_kit import HEAD, HEAD_LINES, hook, lua, run, said

from nedge.core.status import STATUS_TYPES

B, M, E = (
    "status_types.status_blacklisted",
    "status_types.status_web_mining_detected",
    "status_types.status_external_alert",
)


def judge(statements: str, name: str = "protocolDetected", **how: Any) -> Judged:
    judged, ran = run({"script.lua": hook(statements, name)}, ping(), **how)
    assert ran["script"].last_error == ""
    return judged


def alerts(judged: Judged) -> list[tuple[int, Any]]:
    return [(record["alert"]["signature_id"], record["nedge"]["info"]) for record in judged.alerts]


@pytest.mark.parametrize(
    ("statements", "scores", "names"),
    [
        (f"flow.setStatus({B}, 5, 5, 1)", (5, 5, 1), ["status_blacklisted"]),
        (f"flow.setStatus({B})", (0, 0, 0), ["status_blacklisted"]),
        (f"flow.setStatus({B}, 5)", (5, 0, 0), ["status_blacklisted"]),
        (f"flow.setStatus({B}, nil, nil, 7)", (0, 0, 7), ["status_blacklisted"]),
        (f"flow.setStatus({B}, 5000, -3, 1000)", (1000, 0, 1000), ["status_blacklisted"]),
        (f"flow.setStatus({B}, 5.9, 1e3, 0)", (5, 1000, 0), ["status_blacklisted"]),
        # set 5/5/1, clear, set: scores stay, and come again
        (
            f"flow.setStatus({B}, 5, 5, 1) flow.clearStatus({B}) flow.setStatus({B}, 5, 5, 1)",
            (10, 10, 2),
            ["status_blacklisted"],
        ),
        (f"flow.setStatus({B}, 5, 5, 1) flow.clearStatus({B})", (5, 5, 1), []),
        (f"flow.clearStatus({B})", (0, 0, 0), []),
        # blacklisted (100/1000/5) and mining (50/50/10)
        (
            f"flow.triggerStatus({B}, nil, 100, 1000, 5) flow.triggerStatus({M}, nil, 50, 50, 10)",
            (150, 1050, 15),
            ["status_blacklisted", "status_web_mining_detected"],
        ),
        (f"flow.setStatus({B}, 5) flow.setStatus({B}, 7)", (5, 0, 0), ["status_blacklisted"]),
        (f"flow.setStatus({B}.status_key, 5)", (5, 0, 0), ["status_blacklisted"]),  # by number, as some do
    ],
)
def test_scores(statements: str, scores: tuple[int, int, int], names: list[str]) -> None:
    judged = judge(statements)
    assert (judged.scores, judged.statuses) == (scores, names)


def test_what_functions_return() -> None:
    source = hook(f"""
        print(flow.setStatus({B}, 1), flow.setStatus({B}, 1), flow.isStatusSet({B}.status_key))
        local is_set = flow.isStatusSet
        print(select("#", flow.clearStatus({B})), is_set(1), is_set(64), is_set(-1))
        print(select("#", flow.triggerStatus({M}, "x", 1)), is_set({M}.status_key), flow.getStatus())
        """)
    assert said({"a.lua": source}, ping()) == [
        "true\tfalse\ttrue",
        "0\tfalse\tfalse\tfalse",
        f"0\ttrue\t{1 << 27}",
    ]


# Both forms of triggerStatus

INFOS = [
    ("'text'", "text"),
    ("''", ""),
    ("nil", None),
    ("{}", {}),
    ("{host = 'x', n = 1, f = 1.5, on = true}", {"host": "x", "n": 1, "f": 1.5, "on": True}),
    (
        "{list = {1, 2, {3}}, inner = {deep = {x = 'y'}}}",
        {"list": [1, 2, [3]], "inner": {"deep": {"x": "y"}}},
    ),
    ("{'a', 'b'}", {"1": "a", "2": "b"}),
    ("{['cli.ip'] = '::1', [80] = true}", {"cli.ip": "::1", "80": True}),
    ("{text = 'caf\\xc3\\xa9', bytes = 'a\\xff\\0'}", {"text": "café", "bytes": "a\\xff\0"}),
    ("{f = print}", {"f": "function"}),
]


def keys_as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): keys_as_text(item) for key, item in value.items()}
    return value


@pytest.mark.parametrize(("info", "kept"), INFOS)
def test_info(info: str, kept: Any) -> None:
    judged = judge(f"flow.triggerStatus({B}, {info}, 10, 2, 3)")
    assert keys_as_text(judged.alerts[0]["nedge"]["info"]) == kept
    assert keys_as_text(judged.flow["nedge"]["statuses"]["1"]["info"]) == kept
    assert judged.scores == (10, 2, 3)


@pytest.mark.parametrize(("info", "kept"), [(info, kept) for info, kept in INFOS if info.startswith("{")])
def test_info_of_the_later_form(info: str, kept: Any) -> None:
    created = f"{{status_type = {B}, alert_severity = nil, alert_type_params = {info}}}"
    judged = judge(f"flow.triggerStatus({created}, 10, 2, 3)")
    assert [(key, keys_as_text(found)) for key, found in alerts(judged)] == [(1, kept)]
    assert judged.scores == (10, 2, 3)


@pytest.mark.parametrize(
    ("call", "info"),
    [
        (f"{B}.create({B}.alert_severity, {{a = 1}})", {"a": 1}),
        (f"{B}.create({{a = 1}})", {"a": 1}),
        (f"{B}.create()", {}),
        (f"{B}.create('x', 'y')", {"1": "x", "2": "y"}),
        (f"{B}.create(nil, 'y')", {"2": "y"}),
        (f"{B}.builder({{a = 1}})", {"a": 1}),
        (f"{B}.creator({B}.alert_severity, {{a = 1}})", {"a": 1}),
    ],
)
def test_create_of_built_in_types(call: str, info: Any) -> None:
    judged = judge(f"flow.triggerStatus({call}, 10, 2, 3)")
    assert [(key, keys_as_text(found)) for key, found in alerts(judged)] == [(1, info)]
    assert judged.scores == (10, 2, 3)


@pytest.mark.parametrize(
    ("arguments", "info"),
    [
        ("severity, '192.0.2.1'", {"server_ip": "192.0.2.1"}),
        ("'192.0.2.1'", {"server_ip": "192.0.2.1"}),
        ("'192.0.2.9', '192.0.2.1'", {"client_ip": "192.0.2.9", "server_ip": "192.0.2.1"}),
    ],
)
def test_parameters_of_known_creators_have_names(arguments: str, info: dict[str, str]) -> None:
    judged = judge(f"""
        local severity = require("alert_consts").alert_severities.error
        flow.triggerStatus(status_types.status_unexpected_dhcp.create({arguments}), 10)
        """)
    assert alerts(judged) == [(32, info)]


@pytest.mark.parametrize(
    ("status", "arguments", "info"),
    [
        (
            "blacklisted_country",
            "'SE', nil, true, false",
            {"cli_country": "SE", "cli_blacklisted": True, "srv_blacklisted": False},
        ),
        (
            "tcp_severe_connection_issues",
            "{a = 1}, 5, 7, true, false, true",
            {
                "tcp_stats": {"a": 1},
                "cli2srv_pkts": 5,
                "srv2cli_pkts": 7,
                "is_severe": True,
                "client_issues": False,
                "server_issues": True,
            },
        ),
        ("low_goodput", "12.5", {"goodput_ratio": 12.5}),
        ("flow_risk", "14", {"risk_id": 14}),
        ("elephant_local_to_remote", "10, 20", {"elephant.l2r_threshold": 10, "elephant.r2l_threshold": 20}),
        (
            "device_protocol_not_allowed",
            "1, 2, 'cli', 7",
            {
                "cli.devtype": 1,
                "srv.devtype": 2,
                "devproto_forbidden_peer": "cli",
                "devproto_forbidden_id": 7,
            },
        ),
    ],
)
@pytest.mark.parametrize("severity", ["", "alert_consts.alert_severities.error, "])
def test_names_of_what_create_is_given(
    status: str, arguments: str, info: dict[str, Any], severity: str
) -> None:
    judged = judge(f"flow.triggerStatus(status_types.status_{status}.create({severity}{arguments}), 10)")
    ((_, found),) = alerts(judged)
    assert found == info


def test_modules_may_be_used_without_asking() -> None:
    judged = judge(f"alerts_api.trigger_status({M}.create(), alert_consts.alert_severities.error, 7, 8, 90)")
    assert judged.scores == (90, 7, 8)


def test_the_form_with_the_severity() -> None:
    judged = judge(f"""
        local alerts_api, severities = require "alerts_api", require("alert_consts").alert_severities
        alerts_api.trigger_status({M}.create({{a = 1}}), severities.error, 7, 8, 90)
        """)
    assert (alerts(judged), judged.scores) == ([(27, {"a": 1})], (90, 7, 8))


@pytest.mark.parametrize(
    ("severity", "level"),
    [("error", 1), ("emergency", 1), ("warning", 2), ("notice", 3), ("info", 3), ("none", 3)],
)
def test_the_severity_is_that_of_the_alert(severity: str, level: int) -> None:
    judged = judge(f"""
        alerts_api.trigger_status({M}.create(), alert_consts.alert_severities.{severity}, 7, 8, 90)
        assert({M}.alert_severity == alert_consts.alert_severities.{severity})
        """)
    assert [alert["alert"]["severity"] for alert in judged.alerts] == [level]


def test_the_severity_is_one_scripts_own() -> None:
    call = f"{M}.create(), alert_consts.alert_severities.notice, 1, 1"
    first = hook(f"alerts_api.trigger_status({call}, 5)")
    judged, ran = run({"a.lua": first, "b.lua": hook(f"flow.triggerStatus({M}, 'x', 50)")}, ping())
    assert [ran[key].last_error for key in "ab"] == ["", ""]
    (alert,) = judged.alerts
    assert (alert["nedge"]["script"], alert["alert"]["severity"]) == ("b", 1)


# Alerts


@pytest.mark.parametrize(
    ("statements", "alerted"),
    [
        # mining 50 alerts; then blacklisted 100 replaces it
        ((f"flow.triggerStatus({M}, 'm', 50)", f"flow.triggerStatus({B}, 'b', 100)"), [(27, "m"), (1, "b")]),
        ((f"flow.triggerStatus({B}, 'b', 100)", f"flow.triggerStatus({M}, 'm', 50)"), [(1, "b")]),
        (
            (f"flow.triggerStatus({B}, 'b', 50)", f"flow.triggerStatus({M}, 'm', 50)"),
            [(1, "b")],
        ),  # equal: not again
        ((f"flow.triggerStatus({B}, 'b')", ""), []),  # no score, no alert
        ((f"flow.triggerStatus({B}, 'b', 0)", ""), []),
        (
            (f"flow.triggerStatus({B}, 'b', 5) flow.triggerStatus({M}, 'm', 9)", ""),
            [(27, "m")],
        ),  # highest of a call
        (
            (f"flow.triggerStatus({M}, 'm', 9) flow.triggerStatus({B}, 'b', 9)", ""),
            [(1, "b")],
        ),  # lowest key of equals
        ((f"flow.setStatus({B}, 100)", ""), []),
        ((f"flow.triggerStatus({B}, 'b', 9) flow.clearStatus({B})", ""), [(1, "b")]),
    ],
)
def test_which_status_alerts(statements: tuple[str, str], alerted: list[tuple[int, str]]) -> None:
    source = lua(f"""
        function script.hooks.protocolDetected() {statements[0]} end
        function script.hooks.flowEnd() {statements[1]} end
        """)
    judged, ran = run({"script.lua": source}, ping())
    assert ran["script"].last_error == ""
    assert alerts(judged) == alerted


# What is refused sets nothing, and is told with the line


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (f"flow.triggerStatus({B}, 5, 10, 10, 10)", "status info is a string or a table, not a number"),
        (f"flow.triggerStatus({B}, true, 10)", "status info is a string or a table, not a boolean"),
        (f"flow.triggerStatus({B}, print, 10)", "status info is a string or a table, not a function"),
        ("flow.triggerStatus(nil, 'x', 10)", "a status type"),
        ("flow.triggerStatus({}, 'x', 10)", "a status type"),
        ("flow.triggerStatus({status_type = {}}, 10)", "a status type"),
        ("flow.triggerStatus('status_blacklisted', 'x', 10)", "a status type"),
        ("flow.setStatus(nil, 5)", "a status type"),
        ("flow.setStatus(status_types.no_such_type, 5)", "a status type"),
        ("flow.setStatus(1.5, 5)", "a status type"),
        ("flow.setStatus(40, 5)", "there is no status 40"),
        ("flow.setStatus(64, 5)", "there is no status 64"),
        ("flow.setStatus(-1, 5)", "there is no status -1"),
        ("flow.setStatus(status_types.status_normal, 5)", "status_normal"),
        ("flow.clearStatus(status_types.status_normal)", "status_normal"),
        ("flow.clearStatus('x')", "a status type"),
        (f"flow.setStatus({B}, '5')", "a score is a number"),
        (f"flow.setStatus({B}, {{}})", "a score is a number"),
        (f"flow.setStatus({B}, 5, true)", "a score is a number"),
        (f"flow.setStatus({B}, 1/0)", "infinity"),
        (f"flow.isStatusSet({B})", "isStatusSet takes the number (status_key), not a table"),
        ("flow.isStatusSet()", "isStatusSet takes the number"),
        ("flow.hasRisk('x')", "a risk is a whole number"),
    ],
)
def test_wrong_arguments(call: str, message: str) -> None:
    judged, ran = run({"script.lua": hook(f"\n{call}")}, ping())
    assert message in ran["script"].last_error
    assert ran["script"].errors == 1
    assert (judged.scores, judged.statuses) == ((0, 0, 0), [])
    caught, ran = run({"script.lua": hook(f"print(select(2, pcall(function()\n{call}\nend)))")}, ping())
    assert ran["script"].errors == 0
    (line,) = said({"script.lua": hook(f"print(select(2, pcall(function()\n{call}\nend)))")}, ping())
    assert line.startswith(f"script.lua:{HEAD_LINES + 3}: ")
    assert caught.statuses == []


# The table of status types


def test_status_types_are_those_of_the_engine() -> None:
    source = hook("""
        for name, status in pairs(flow_consts.status_types) do
            assert(status.status_id == status.status_key)
            assert(flow_consts.getStatusInfo(status.status_key) == status)
            assert(flow_consts.getStatusType(status.status_key) == name)
            assert(type(status.create) == "function")
            assert(status.alert_severity.severity_id and status.alert_type)
            ntop.setCache("found", ntop.getCache("found") .. " " .. name .. "=" .. status.status_key)
        end
        local found = ntop.getCache("found")
        for at = 1, #found, 4000 do print(found:sub(at, at + 3999)) end
        """)
    found = "".join(said({"a.lua": source}, ping())).split()
    assert dict(pair.split("=") for pair in found) == {
        name: str(s.status_key) for name, s in STATUS_TYPES.items()
    }


def test_keys_by_name() -> None:
    source = hook("""
        local keys = require "flow_keys"
        print(keys.ntopng.status_blacklisted, keys.ntopng.status_unexpected_ntp, keys.ntopng.status_user_01)
        local user, ntopng = keys.user, keys.ntopng
        print(user.status_user_01, user.status_user_05, user.status_blacklisted, ntopng.status_x)
        print(flow_consts.max_score, flow_consts.getStatusTitle(1), flow_consts.getStatusDescription(27, {}))
        """)
    assert said({"a.lua": source}, ping()) == [
        "1\t35\tnil",
        "59\t63\tnil\tnil",
        "1000\tClient, server or domain is blacklisted\tWeb mining detected",
    ]


# Limits of what is kept


def test_large_and_endless_infos_are_cut() -> None:
    judged = judge(f"""
        local endless = {{}}
        endless.itself = endless
        for n = 1, 5000 do endless[n] = n end
        flow.triggerStatus({B}, endless, 10)
        flow.triggerStatus({M}, {{text = ("x"):rep(1e6)}}, 20)
        """)
    statuses = judged.flow["nedge"]["statuses"]
    kept = statuses["1"]["info"]
    assert 100 < len(str(kept)) < 20_000
    assert "…" in str(kept)
    assert 1000 < len(statuses["27"]["info"]["text"]) < 10_000


def test_a_head_of_lines() -> None:
    assert HEAD.splitlines()[-1].startswith("local script")
