"""The verdict: which rule wins, as a table, and through the engine."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit import CLIENT, SERVER, T0, Packet, bench, ping, with_script

from nedge.core.status import status_types
from nedge.core.verdict import Action, Evidence, Failure, Operator, Policy, Rule, decide

DPI = Failure.DPI_ERROR
HOST = Rule.HOST_SCORE
PASS, DROP, REJECT = Action.PASS, Action.DROP, Action.REJECT
BLACKLISTED = status_types.status_blacklisted.bit
MINING = status_types.status_web_mining_detected.bit
BLOCK, UNBLOCK = Operator.BLOCK, Operator.UNBLOCK
FAILED = (Failure.UNCLASSIFIED,)
DROPPED = {Failure.UNCLASSIFIED: Action.DROP}


@pytest.mark.parametrize(
    ("evidence", "policy", "action", "rule"),
    [
        # Nothing against it
        ({}, {}, PASS, Rule.CLEAN),
        ({"detected": False}, {}, PASS, Rule.UNDETECTED),
        ({"status_map": MINING, "score": 99}, {}, PASS, Rule.CLEAN),
        # Statuses: blacklisted by default
        ({"status_map": BLACKLISTED}, {}, DROP, Rule.STATUS),
        ({"status_map": BLACKLISTED | MINING}, {}, DROP, Rule.STATUS),
        ({"status_map": BLACKLISTED}, {"block_statuses": 0}, PASS, Rule.CLEAN),
        ({"status_map": MINING}, {"block_statuses": MINING}, DROP, Rule.STATUS),
        ({"status_map": BLACKLISTED}, {"block_statuses": MINING}, PASS, Rule.CLEAN),
        ({"status_map": 1 << 63}, {"block_statuses": 1 << 63}, DROP, Rule.STATUS),
        ({"status_map": BLACKLISTED, "detected": False}, {}, DROP, Rule.STATUS),
        # The flow's score: 100 by default, 0 switches it off
        ({"score": 99}, {}, PASS, Rule.CLEAN),
        ({"score": 100}, {}, DROP, Rule.FLOW_SCORE),
        ({"score": 65535}, {}, DROP, Rule.FLOW_SCORE),
        ({"score": 49}, {"drop_score": 50}, PASS, Rule.CLEAN),
        ({"score": 50}, {"drop_score": 50}, DROP, Rule.FLOW_SCORE),
        ({"score": 1}, {"drop_score": 1}, DROP, Rule.FLOW_SCORE),
        ({"score": 0}, {"drop_score": 1}, PASS, Rule.CLEAN),
        ({"score": 65535}, {"drop_score": 0}, PASS, Rule.CLEAN),
        # Host scores: either end; off by default
        ({"client_score": 65535, "server_score": 65535}, {}, PASS, Rule.CLEAN),
        ({"client_score": 299}, {"host_drop_score": 300}, PASS, Rule.CLEAN),
        ({"client_score": 300}, {"host_drop_score": 300}, DROP, Rule.HOST_SCORE),
        ({"server_score": 300}, {"host_drop_score": 300}, DROP, Rule.HOST_SCORE),
        ({"client_score": 150, "server_score": 150}, {"host_drop_score": 300}, PASS, Rule.CLEAN),
        # An operator's word beats everything; unblock beats lists and scores
        ({"operator": BLOCK}, {}, DROP, Rule.OPERATOR_BLOCK),
        ({"operator": BLOCK, "detected": False}, {}, DROP, Rule.OPERATOR_BLOCK),
        ({"operator": BLOCK, "allowed": True}, {}, DROP, Rule.OPERATOR_BLOCK),
        ({"operator": UNBLOCK, "status_map": BLACKLISTED, "score": 1000}, {}, PASS, Rule.OPERATOR_UNBLOCK),
        ({"operator": UNBLOCK, "client_score": 500}, {"host_drop_score": 300}, PASS, Rule.OPERATOR_UNBLOCK),
        ({"operator": UNBLOCK, "failures": FAILED}, {"failures": DROPPED}, PASS, Rule.OPERATOR_UNBLOCK),
        # Allow-listed hosts beat lists, scores and failures
        ({"allowed": True}, {}, PASS, Rule.ALLOW_LIST),
        ({"allowed": True, "status_map": BLACKLISTED, "score": 1000}, {}, PASS, Rule.ALLOW_LIST),
        ({"allowed": True, "server_score": 500}, {"host_drop_score": 300}, PASS, Rule.ALLOW_LIST),
        ({"allowed": True, "failures": FAILED}, {"failures": DROPPED}, PASS, Rule.ALLOW_LIST),
        # Status before flow score before host score
        ({"status_map": BLACKLISTED, "score": 100}, {}, DROP, Rule.STATUS),
        ({"score": 100, "client_score": 300}, {"host_drop_score": 300}, DROP, Rule.FLOW_SCORE),
        ({"client_score": 3, "failures": FAILED}, {"host_drop_score": 3, "failures": DROPPED}, DROP, HOST),
        # Failures with a policy
        ({"failures": FAILED}, {}, PASS, Rule.CLEAN),
        ({"failures": FAILED}, {"failures": DROPPED}, DROP, Rule.FAILURE),
        ({"failures": FAILED}, {"failures": {DPI: DROP}}, PASS, Rule.CLEAN),
        ({"failures": (Failure.SCRIPT_ERROR, DPI)}, {"failures": {DPI: DROP}}, DROP, Rule.FAILURE),
        ({"failures": FAILED}, {"failures": {Failure.UNCLASSIFIED: PASS}}, PASS, Rule.CLEAN),
        ({"failures": FAILED}, {"failures": {Failure.UNCLASSIFIED: REJECT}}, REJECT, Rule.FAILURE),
        # What blocking means
        ({"score": 100}, {"block_action": REJECT}, REJECT, Rule.FLOW_SCORE),
        ({"operator": BLOCK}, {"block_action": REJECT}, REJECT, Rule.OPERATOR_BLOCK),
        ({}, {"block_action": REJECT}, PASS, Rule.CLEAN),
    ],
)  # fmt: skip
def test_decide(evidence: dict[str, Any], policy: dict[str, Any], action: Action, rule: Rule) -> None:
    verdict = decide(Evidence(**evidence), Policy(**policy))
    assert (verdict.action, verdict.rule) == (action, rule)


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        ({"status_map": BLACKLISTED}, "status: status_blacklisted"),
        ({"status_map": BLACKLISTED | MINING}, "status: status_blacklisted, status_web_mining_detected"),
        ({"score": 150}, "flow_score: 150 >= 100"),
        ({"client_score": 301}, "host_score: client 301 >= 300"),
        ({"server_score": 300}, "host_score: server 300 >= 300"),
        ({"failures": FAILED}, "failure: unclassified"),
        ({"operator": BLOCK}, "operator_block"),
        ({}, "clean"),
    ],
)
def test_every_verdict_says_why(evidence: dict[str, Any], reason: str) -> None:
    policy = Policy(block_statuses=BLACKLISTED | MINING, host_drop_score=300, failures=DROPPED)
    assert decide(Evidence(**evidence), policy).reason == reason


@given(
    st.builds(
        Evidence,
        detected=st.booleans(),
        operator=st.sampled_from(Operator),
        allowed=st.booleans(),
        status_map=st.integers(0, 2**64 - 1),
        score=st.integers(0, 65535),
        client_score=st.integers(0, 200000),
        server_score=st.integers(0, 200000),
    )
)
def test_properties_of_the_verdict(evidence: Evidence) -> None:
    verdict = decide(evidence, Policy(host_drop_score=500))
    if evidence.operator is UNBLOCK:
        assert verdict.action is PASS
    elif evidence.operator is BLOCK:
        assert verdict.action is DROP
    elif evidence.allowed:
        assert verdict.action is PASS
    else:
        guilty = (
            evidence.status_map & BLACKLISTED
            or evidence.score >= 100
            or max(evidence.client_score, evidence.server_score) >= 500
        )
        assert verdict.action is (DROP if guilty else PASS)


# Through the engine

SOURCE = """
default_value = {"scores": [0, 0, 0], "status": "status_user_01"}
def protocolDetected(flow, now, conf):
    flow.setStatus(getattr(status_types, conf["status"]), *conf["scores"])
"""


@pytest.mark.parametrize(
    ("toml", "status", "scores", "verdict", "reason"),
    [
        ("", "status_user_01", [99, 0, 0], "pass", "clean"),
        ("", "status_user_01", [100, 0, 0], "drop", "flow_score: 100 >= 100"),
        ("", "status_blacklisted", [0, 0, 0], "drop", "status: status_blacklisted"),
        ("", "status_user_01", [0, 1000, 1000], "pass", "clean"),
        ("drop_score = 20", "status_user_01", [20, 0, 0], "drop", "flow_score: 20 >= 20"),
        ("drop_score = 0", "status_user_01", [1000, 0, 0], "pass", "clean"),
        ("block_statuses = []", "status_blacklisted", [0, 0, 0], "pass", "clean"),
        (
            "block_statuses = ['status_user_01']",
            "status_user_01",
            [0, 0, 0],
            "drop",
            "status: status_user_01",
        ),
        ("host_drop_score = 50", "status_user_01", [0, 50, 0], "drop", "host_score: client 50 >= 50"),
        ("host_drop_score = 50", "status_user_01", [0, 0, 50], "drop", "host_score: server 50 >= 50"),
        ("host_drop_score = 50", "status_user_01", [0, 49, 49], "pass", "clean"),
    ],
)
def test_the_configuration_decides(
    toml: str, status: str, scores: list[int], verdict: str, reason: str
) -> None:
    settings = f'[verdict]\n{toml}\n[scripts.script]\nscores = {scores}\nstatus = "{status}"\n'
    judged = with_script(SOURCE, ping(), settings)
    nedge = judged.flow["nedge"]
    assert (nedge["verdict"], nedge["reason"]) == (verdict, reason)
    assert nedge["dropped_packets"] == (0 if verdict == "pass" else 2)
    assert ("status_blocked" in nedge["status"]) is (verdict == "drop")


def test_a_drop_records_the_rule_the_statuses_and_the_packet() -> None:
    source = """
    def protocolDetected(flow, now, conf):
        flow.triggerStatus(status_types.status_web_mining_detected, "why", 100, 5, 6)
    """
    judged = with_script(source, ping())
    nedge = judged.flow["nedge"]
    assert nedge["decided_at_packet"] == 1
    assert nedge["status"] == ["status_blocked", "status_web_mining_detected"]
    assert nedge["statuses"]["3"]["info"] == "flow_score: 100 >= 100"
    assert nedge["statuses"]["27"] == {"score": 100, "script": "script", "info": "why"}
    (drop,) = [event for event in judged.events if event["event_type"] == "drop"]
    assert drop["nedge"]["reason"] == "flow_score: 100 >= 100"


def test_allow_listed_hosts_are_never_blocked(tmp_path: Any) -> None:
    allowed = tmp_path / "allowed"
    allowed.write_text("203.0.113.0/28\n")
    source = """
    def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_blacklisted, 1000, 1000, 1000)
    """
    toml = f'[lists]\nallow_hosts = ["{allowed}"]\n[verdict]\nhost_drop_score = 100'
    assert with_script(source, ping(CLIENT, "203.0.113.15"), toml).verdict == "pass"
    assert with_script(source, ping("203.0.113.1", "8.8.8.8"), toml).verdict == "pass"
    assert with_script(source, ping(CLIENT, "203.0.113.16"), toml).verdict == "drop"


def test_a_verdict_can_change_back() -> None:
    source = """
    def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_blacklisted)
    def periodicUpdate(flow, now, conf): flow.clearStatus(status_types.status_blacklisted)
    """
    packets = [*ping(), *ping(start=T0 + 40)]
    judged = with_script(source, packets)
    assert judged.actions == [DROP, DROP, PASS, PASS]
    assert [event["event_type"] for event in judged.events] == ["drop", "pass", "flow"]
    assert judged.flow["nedge"]["status"] == []


# Quarantine

ADD = """
from nedge.scripts import *
def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_user_01, 0, 40, 0)
"""
TOML = "[verdict]\nhost_drop_score = 80\nquarantine_seconds = 100\n"


def test_a_host_over_the_limit_is_quarantined_with_all_its_flows() -> None:
    def seen(number: int, at: float) -> list[Packet]:
        return ping(CLIENT, f"203.0.113.{number}", T0 + at)

    with bench(TOML, {"add": ADD}) as made:
        made.feed(seen(1, 0))
        assert made.judged.actions == [PASS, PASS]
        made.feed(seen(2, 1))  # 40 + 40
        made.feed(seen(1, 2))  # the flow that had passed
        made.feed(ping(SERVER, CLIENT, T0 + 3))  # as a server too
        assert made.judged.actions[2:] == [DROP] * 6
        made.feed(ping("192.168.1.99", "203.0.113.1", T0 + 4))  # someone else
        assert made.judged.actions[8:] == [PASS] * 2
        made.engine.advance(T0 + 90)  # all flows have ended, the quarantine has not
        made.feed(seen(4, 91))
        assert made.judged.actions[10:] == [DROP] * 2
        made.engine.advance(T0 + 170)
        made.feed(seen(5, 171))
        assert made.judged.actions[12:] == [PASS] * 2
        made.engine.finish(T0 + 172)
    (quarantine,) = [event for event in made.judged.events if event["event_type"] == "quarantine"]
    assert quarantine["src_ip"] == CLIENT
    assert made.engine.counters.quarantines == 1


@pytest.mark.parametrize(("word", "action"), [(Operator.BLOCK, DROP), (Operator.UNBLOCK, PASS)])
def test_an_operators_word_on_a_host(word: Operator, action: Action) -> None:
    source = ADD.replace("0, 40, 0", "0" if word is Operator.BLOCK else "1000")
    with bench("", {"script": source}) as made:
        made.feed(ping())
        (host,) = [host for host in made.engine.hosts if host.ip == CLIENT]
        host.operator = word
        made.engine.rejudge(host, T0 + 1)
        made.feed(ping(start=T0 + 2))
    assert made.judged.actions[2:] == [action] * 2
