"""Statuses, scores and alerts, as a script sees and makes them."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from kit import CLIENT, SERVER, T0, Judged, Packet, bench, judge, merge, ping, with_script

from nedge.core.status import STATUS_BY_KEY

QUIET = "[verdict]\ndrop_score = 0\nblock_statuses = []\n"
"""Nothing is blocked, so statuses are only the script's."""


def run(body: str, toml: str = QUIET, packets: list[Packet] | None = None) -> Judged:
    """Run statements in protocolDetected of an ICMP flow; B, M, R, U are status types."""
    source = """\
    B, M = status_types.status_blacklisted, status_types.status_web_mining_detected
    R, U = status_types.status_remote_to_remote, status_types.status_user_05
    def protocolDetected(flow, now, conf):
    """
    script = textwrap.dedent(source) + textwrap.indent(textwrap.dedent(body), "    ")
    return with_script(script, packets or ping(), toml)


def alerts(judged: Judged) -> list[tuple[int, Any]]:
    """Status key and info of each alert."""
    return [(record["alert"]["signature_id"], record["nedge"]["info"]) for record in judged.alerts]


# setStatus

SCORES = [
    ("0", 0),
    ("1", 1),
    ("999", 999),
    ("1000", 1000),
    ("1001", 1000),
    ("65536", 1000),
    ("-1", 0),
    ("-1000", 0),
    ("None", 0),
]


@pytest.mark.parametrize(("given", "counts"), SCORES)
def test_each_score_is_clamped_to_0_to_1000(given: str, counts: int) -> None:
    assert run(f"flow.setStatus(B, {given}, 7, 9)").scores == (counts, 7, 9)
    assert run(f"flow.setStatus(B, 7, {given}, 9)").scores == (7, counts, 9)
    assert run(f"flow.setStatus(B, 7, 9, {given})").scores == (7, 9, counts)


@pytest.mark.parametrize(("given", "counts"), SCORES)
def test_trigger_status_clamps_too(given: str, counts: int) -> None:
    assert run(f"flow.triggerStatus(B, '', {given}, {given}, {given})").scores == (counts,) * 3


@pytest.mark.parametrize(
    ("arguments", "scores"),
    [("B", (0, 0, 0)), ("B, 5", (5, 0, 0)), ("B, 5, 6", (5, 6, 0)), ("B, 5, 6, 7", (5, 6, 7))],
)
def test_absent_scores_are_0(arguments: str, scores: tuple[int, int, int]) -> None:
    judged = run(f"flow.setStatus({arguments})")
    assert judged.scores == scores
    assert judged.statuses == ["status_blacklisted"]


def test_scores_of_different_statuses_add_up() -> None:
    assert run("flow.setStatus(B, 100, 1000, 5); flow.setStatus(M, 50, 50, 10)").scores == (150, 1050, 15)


def test_a_set_status_adds_nothing_when_set_again() -> None:
    judged = run(
        "note(flow.setStatus(B, 5, 5, 1)); note(flow.setStatus(B, 100, 100, 100)); note(flow.getScore())"
    )
    assert judged.seen == [True, False, 5]
    assert judged.scores == (5, 5, 1)


def test_clear_keeps_the_scores_and_setting_again_adds_them_again() -> None:
    judged = run("""
        flow.setStatus(B, 5, 5, 1)
        note(flow.clearStatus(B))
        note((flow.getStatus(), flow.getScore()))
        note(flow.setStatus(B, 5, 5, 1))
    """)
    assert judged.seen == [None, (0, 5), True]
    assert judged.scores == (10, 10, 2)
    assert judged.statuses == ["status_blacklisted"]


def test_clearing_what_is_not_set_changes_nothing() -> None:
    judged = run("flow.setStatus(B, 5, 6, 7); note(flow.clearStatus(M)); note(flow.getStatus())")
    assert judged.seen == [None, 1 << 1]
    assert judged.scores == (5, 6, 7)


def test_totals_go_beyond_1000() -> None:
    judged = run("for s in (B, M, R): flow.setStatus(s, 1000, 900, 400)")
    assert judged.scores == (3000, 2700, 1200)


@pytest.mark.parametrize(("times", "total"), [(65, 65000), (66, 65535), (200, 65535)])
def test_totals_saturate_at_65535(times: int, total: int) -> None:
    judged = run(f"""
        for _ in range({times}):
            flow.setStatus(B, 1000, 1000, 1000)
            flow.clearStatus(B)
        note(flow.getScore())
    """)
    assert judged.seen == [total]
    assert judged.scores == (total, total, total)


@pytest.mark.parametrize(
    "what", ["1", "'status_blacklisted'", "None", "status_types", "status_types.status_normal"]
)
@pytest.mark.parametrize("function", ["setStatus", "clearStatus"])
def test_only_a_status_type_can_be_set_or_cleared(function: str, what: str) -> None:
    judged = run(f"""
        flow.setStatus(M, 1, 1, 1)
        try:
            flow.{function}({what})
        except TypeError as error:
            note(str(error))
    """)
    assert len(judged.seen) == 1
    assert judged.statuses == ["status_web_mining_detected"]
    assert judged.scores == (1, 1, 1)


@pytest.mark.parametrize("score", ["'5'", "True", "[5]"])
def test_a_score_that_is_no_number_sets_nothing(score: str) -> None:
    judged = run(f"""
        try:
            flow.setStatus(B, {score}, 1, 1)
        except TypeError:
            note("refused")
    """)
    assert judged.seen == ["refused"]
    assert judged.statuses == []
    assert judged.scores == (0, 0, 0)


# The bitmap


@pytest.mark.parametrize("key", sorted(STATUS_BY_KEY.keys() - {0}))
def test_each_status_has_the_bit_of_its_key(key: int) -> None:
    name = STATUS_BY_KEY[key].name
    judged = run(f"""
        s = status_types.{name}
        note((s.status_key, flow.isStatusSet({key})))
        flow.setStatus(s)
        note((flow.getStatus(), flow.isStatusSet({key})))
        note([k for k in range(64) if flow.isStatusSet(k)])
    """)
    assert judged.seen == [(key, False), (1 << key, True), [key]]
    assert judged.flow["nedge"]["status"] == [name]


# Keys and names as ntopng's scripts know them.
NAMES = [
    "normal",
    "blacklisted",
    "blacklisted_country",
    "blocked",
    "data_exfiltration",
    "device_protocol_not_allowed",
    "dns_data_exfiltration",
    "dns_invalid_query",
    "elephant_local_to_remote",
    "elephant_remote_to_local",
    "external_alert",
    "longlived",
    "low_goodput",
    "malicious_signature",
    "not_purged",
    "potentially_dangerous",
    "remote_to_remote",
    "suspicious_tcp_probing",
    "suspicious_tcp_syn_probing",
    "tcp_connection_issues",
    "tcp_connection_refused",
    "tcp_severe_connection_issues",
    "tls_certificate_expired",
    "tls_certificate_mismatch",
    "tls_old_protocol_version",
    "tls_unsafe_ciphers",
    "udp_unidirectional",
    "web_mining_detected",
    "tls_certificate_selfsigned",
    "suspicious_file_transfer",
    "known_proto_on_non_std_port",
    "flow_risk",
    "unexpected_dhcp",
    "unexpected_dns",
    "unexpected_smtp",
    "unexpected_ntp",
]


def test_keys_and_names_are_ntopngs() -> None:
    expected = dict(enumerate(NAMES)) | {58 + number: f"user_0{number}" for number in range(1, 6)}
    assert {key: status.name for key, status in STATUS_BY_KEY.items()} == {
        key: f"status_{name}" for key, name in expected.items()
    }


def test_bit_63_makes_a_64_bit_number() -> None:
    assert run("flow.setStatus(U); flow.setStatus(B); note(flow.getStatus())").seen == [0x8000000000000002]


def test_a_flow_starts_without_any_status() -> None:
    judged = run("note((flow.getStatus(), flow.getScore(), flow.isStatusSet(0)))")
    assert judged.seen == [(0, 0, False)]


@pytest.mark.parametrize("key", [-1, 64, 1000])
def test_a_key_beyond_the_bitmap_is_not_set(key: int) -> None:
    assert run(f"flow.setStatus(U); note(flow.isStatusSet({key}))").seen == [False]


@pytest.mark.parametrize("what", ["B", "None", "'1'", "True"])
def test_is_status_set_takes_the_number(what: str) -> None:
    judged = run(f"""
        flow.setStatus(B)
        try:
            flow.isStatusSet({what})
        except TypeError:
            note("refused")
    """)
    assert judged.seen == ["refused"]


# triggerStatus


def test_trigger_sets_adds_and_alerts() -> None:
    judged = run("note(flow.triggerStatus(M, 'a miner', 50, 51, 10))")
    assert judged.seen == [None]
    assert judged.statuses == ["status_web_mining_detected"]
    assert judged.scores == (50, 51, 10)
    assert alerts(judged) == [(27, "a miner")]
    assert judged.flow["flow"]["alerted"] is True


def test_set_status_does_not_alert() -> None:
    judged = run("flow.setStatus(B, 1000, 0, 0)")
    assert judged.alerts == []
    assert judged.flow["flow"]["alerted"] is False


@pytest.mark.parametrize("info", ["'text'", "''", "{'host': 'x', 'n': 1}", "{}", "None"])
def test_info_is_a_string_or_a_table_or_nothing(info: str) -> None:
    judged = run(f"flow.triggerStatus(B, {info}, 10, 0, 0)")
    assert alerts(judged) == [(1, eval(info))]
    assert judged.flow["nedge"]["statuses"]["1"]["info"] == eval(info)


@pytest.mark.parametrize("info", ["5", "0", "1.5", "True", "[1]", "b'x'"])
def test_any_other_info_is_an_error_that_sets_nothing(info: str) -> None:
    judged = run(f"""
        try:
            flow.triggerStatus(B, {info}, 10, 10, 10)
        except TypeError:
            note((flow.getStatus(), flow.getScore()))
    """)
    assert judged.seen == [(0, 0)]
    assert judged.alerts == []
    assert judged.scores == (0, 0, 0)


def test_an_info_that_is_a_number_fails_the_script_if_it_does_not_care() -> None:
    with bench(QUIET, {"script": _trigger("flow.triggerStatus(B, 100, 10, 10, 10)")}) as made:
        made.feed(ping())
        made.engine.finish(T0 + 1)
    assert made.engine.counters.script_errors == 1
    assert made.judged.statuses == []


@pytest.mark.parametrize(
    ("arguments", "scores"),
    [("'x'", (0, 0, 0)), ("'x', 3", (3, 0, 0)), ("'x', 3, 4", (3, 4, 0)), ("'x', 3, 4, 5", (3, 4, 5))],
)
def test_trigger_with_fewer_scores(arguments: str, scores: tuple[int, int, int]) -> None:
    assert run(f"flow.triggerStatus(B, {arguments})").scores == scores


def test_trigger_in_the_form_of_ntopng_4_2() -> None:
    judged = run("flow.triggerStatus({'status_type': M, 'alert_type_params': {'host': 'x'}}, 50, 51, 10)")
    assert alerts(judged) == [(27, {"host": "x"})]
    assert judged.scores == (50, 51, 10)


def test_a_score_of_0_or_none_never_alerts() -> None:
    for score in ("0", "None", "-5"):
        judged = run(f"flow.triggerStatus(B, 'x', {score}, 100, 100)")
        assert judged.statuses == ["status_blacklisted"]
        assert judged.alerts == []
        assert judged.flow["flow"]["alerted"] is False


@pytest.mark.parametrize(
    ("calls", "alerting"),
    [
        ([("M", 50), ("B", 100)], 1),
        ([("B", 100), ("M", 50)], 1),
        ([("B", 50), ("M", 100)], 27),
        ([("M", 100), ("B", 50)], 27),
        ([("M", 50), ("B", 50)], 1),  # a tie: the lowest key
        ([("B", 50), ("M", 50)], 1),
        ([("U", 50), ("M", 50), ("R", 50)], 16),
        ([("M", 1001), ("B", 1000)], 1),  # a tie once clamped
        ([("B", 0), ("M", 1)], 27),
    ],
)
def test_one_alert_a_call_the_highest_score(calls: list[tuple[str, int]], alerting: int) -> None:
    judged = run("\n".join(f"flow.triggerStatus({status}, 'x', {score})" for status, score in calls))
    assert [key for key, _ in alerts(judged)] == [alerting]
    assert len(judged.statuses) == len(calls)


def test_an_alert_is_of_all_scripts_of_the_call() -> None:
    scripts = {
        "a": _trigger("flow.triggerStatus(M, 'a', 50)"),
        "b": _trigger("flow.triggerStatus(R, 'b', 60)"),
    }
    judged = judge(ping(), QUIET, scripts)
    assert [(record["nedge"]["script"], record["nedge"]["info"]) for record in judged.alerts] == [("b", "b")]


@pytest.mark.parametrize(
    ("first", "second", "alerting"),
    [
        ("M, 'x', 50", "B, 'x', 100", [27, 1]),  # higher: replaces
        ("M, 'x', 50", "B, 'x', 51", [27, 1]),
        ("M, 'x', 50", "B, 'x', 50", [27]),  # equal: never
        ("M, 'x', 50", "B, 'x', 49", [27]),
        ("M, 'x', 50", "M, 'y', 50", [27]),  # the same again
        ("M, 'x', 0", "B, 'x', 1", [1]),
        ("M, 'x', 1000", "B, 'x', 2000", [27]),  # equal once clamped
    ],
)
def test_a_later_call_alerts_only_with_a_higher_score(first: str, second: str, alerting: list[int]) -> None:
    source = (
        _trigger(f"flow.triggerStatus({first})")
        + f"def flowEnd(flow, now, conf): flow.triggerStatus({second})\n"
    )
    assert [key for key, _ in alerts(judge(ping(), QUIET, {"script": source}))] == alerting


def test_an_alert_outlives_its_status() -> None:
    source = (
        _trigger("flow.triggerStatus(M, 'x', 50)")
        + "def flowEnd(flow, now, conf):\n"
        + "    flow.clearStatus(M); flow.triggerStatus(B, 'y', 50)\n"
        + "    note(flow.getFullInfo()['alerted_status'])\n"
    )
    judged = judge(ping(), QUIET, {"script": "from kit import note\n" + source})
    assert judged.seen == [27]
    assert [key for key, _ in alerts(judged)] == [27]


def test_triggering_a_set_status_alerts_but_adds_nothing() -> None:
    judged = run("flow.setStatus(B, 10, 10, 10); flow.triggerStatus(B, 'x', 60, 60, 60)")
    assert judged.scores == (10, 10, 10)
    assert alerts(judged) == [(1, "x")]


def _trigger(call: str) -> str:
    return (
        "from nedge.scripts import status_types\n"
        "B, M = status_types.status_blacklisted, status_types.status_web_mining_detected\n"
        "R, U = status_types.status_remote_to_remote, status_types.status_user_05\n"
        f"def protocolDetected(flow, now, conf):\n    {call}\n"
    )


def test_the_alert_of_a_blocked_flow_says_so() -> None:
    judged = run("flow.triggerStatus(B, 'x', 100)", toml="")
    assert judged.verdict == "drop"
    assert [record["alert"]["action"] for record in judged.alerts] == ["blocked"]


# Who set what


def test_each_status_records_its_score_and_script() -> None:
    judged = run("flow.setStatus(B, 2000, 1, 1); flow.triggerStatus(M, 'why', 5)")
    assert judged.flow["nedge"]["statuses"] == {
        "1": {"score": 1000, "script": "script", "info": None},
        "27": {"score": 5, "script": "script", "info": "why"},
    }


def test_a_user_status_is_recorded_under_its_own_name() -> None:
    source = """
    from nedge.scripts import define_status
    MINE = define_status(59, "status_mine", "Mine")
    def protocolDetected(flow, now, conf): flow.triggerStatus(MINE, "x", 10)
    """
    judged = judge(ping(), QUIET, {"script": source})
    assert [record["alert"]["signature"] for record in judged.alerts] == ["Mine"]
    assert judged.statuses == ["status_mine"]


@pytest.mark.parametrize(
    ("calls", "predominant"),
    [
        ("pass", 0),
        ("flow.setStatus(B, 0)", 1),
        ("flow.setStatus(B, 10); flow.setStatus(M, 20)", 27),
        ("flow.setStatus(M, 20); flow.setStatus(B, 10)", 27),
        ("flow.setStatus(M, 20); flow.setStatus(B, 20)", 1),  # a tie: the lowest key
        ("flow.setStatus(U, 0); flow.setStatus(R, 0)", 16),
        ("flow.setStatus(B, 10); flow.setStatus(M, 20); flow.clearStatus(M)", 1),
        ("flow.setStatus(B, 10); flow.clearStatus(B)", 0),
        ("flow.setStatus(M, 1000); flow.setStatus(B, 2000)", 1),  # both count 1000
    ],
)
def test_the_predominant_status(calls: str, predominant: int) -> None:
    assert run(f"{calls}; note(flow.getFullInfo()['flow.status'])").seen == [predominant]


# Host scores: a live gauge

ADD = """
from nedge.scripts import *
def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_user_01, 1, 20, 3)
"""


def gauges(made: Any) -> dict[str, int]:
    return {host.ip: host.score for host in made.engine.hosts}


def test_host_scores_are_the_sum_over_live_flows_in_both_roles() -> None:
    other = "192.168.1.11"
    with bench(QUIET, {"add": ADD}) as made:
        made.feed(ping(CLIENT, SERVER))
        assert gauges(made) == {CLIENT: 20, SERVER: 3}
        made.feed(ping(CLIENT, other, T0 + 20))
        assert gauges(made) == {CLIENT: 40, SERVER: 3, other: 3}
        made.feed(ping(other, SERVER, T0 + 40))
        assert gauges(made) == {CLIENT: 40, SERVER: 6, other: 23}
        made.engine.advance(T0 + 70)  # the first has ended
        assert gauges(made) == {CLIENT: 20, SERVER: 3, other: 23}
        made.engine.advance(T0 + 90)
        assert gauges(made) == {SERVER: 3, other: 20}
        made.engine.finish(T0 + 90)
        assert gauges(made) == {}


def test_clearing_a_status_gives_no_host_score_back() -> None:
    source = ADD + "def statusChanged(flow, now, conf): flow.clearStatus(status_types.status_user_01)\n"
    with bench(QUIET, {"add": source}) as made:
        made.feed(ping())
        assert gauges(made) == {CLIENT: 20, SERVER: 3}


def test_a_saturated_host_share_is_taken_back_whole() -> None:
    source = """
        from nedge.scripts import *
        def protocolDetected(flow, now, conf):
            for _ in range(100):
                flow.setStatus(status_types.status_user_01, 0, 1000, 1000)
                flow.clearStatus(status_types.status_user_01)
    """
    with bench(QUIET, {"add": source}) as made:
        made.feed(merge(ping(CLIENT, SERVER), ping(CLIENT, "203.0.113.6", T0 + 30)))
        assert gauges(made)[CLIENT] == 2 * 65535
        made.engine.advance(T0 + 70)
        assert gauges(made) == {CLIENT: 65535, "203.0.113.6": 65535}


# isPassVerdict: within the same call


@pytest.mark.parametrize(
    ("toml", "calls", "passes"),
    [
        ("", ["flow.setStatus(B, 0)"], [True, False]),
        ("", ["flow.setStatus(M, 99)", "flow.setStatus(R, 1)"], [True, True, False]),
        ("", ["flow.setStatus(M, 100)"], [True, False]),
        ("", ["flow.setStatus(B, 5)", "flow.clearStatus(B)"], [True, False, True]),
        ("", ["flow.setStatus(M, 100)", "flow.clearStatus(M)"], [True, False, False]),  # scores stay
        ("[verdict]\nblock_statuses = []", ["flow.setStatus(B, 99)"], [True, True]),
        ("[verdict]\nblock_statuses = ['status_user_05']", ["flow.setStatus(U)"], [True, False]),
        (
            "[verdict]\ndrop_score = 50",
            ["flow.setStatus(M, 49)", "flow.setStatus(R, 1)"],
            [True, True, False],
        ),
        ("[verdict]\ndrop_score = 0", ["flow.setStatus(M, 1000)"], [True, True]),
        (
            "[verdict]\nhost_drop_score = 30",
            ["flow.setStatus(M, 0, 29)", "flow.setStatus(R, 0, 1)"],
            [True, True, False],
        ),
        ("[verdict]\nhost_drop_score = 30", ["flow.setStatus(M, 0, 0, 30)"], [True, False]),
    ],
)
def test_is_pass_verdict_follows_what_was_set_so_far(toml: str, calls: list[str], passes: list[bool]) -> None:
    body = "note(flow.isPassVerdict())\n" + "\n".join(f"{call}; note(flow.isPassVerdict())" for call in calls)
    judged = run(body, toml)
    assert judged.seen == passes
    assert judged.verdict == ("pass" if passes[-1] else "drop")
    assert [bool(action) for action in judged.actions] == [not passes[-1]] * 2


def test_is_pass_verdict_in_a_later_hook_call() -> None:
    source = (
        "from kit import note\n"
        + _trigger("flow.setStatus(B)")
        + "def flowEnd(flow, now, conf): note((flow.isPassVerdict(), flow.isStatusSet(3)))\n"
    )
    assert judge(ping(), "", {"script": source}).seen == [(False, True)]
