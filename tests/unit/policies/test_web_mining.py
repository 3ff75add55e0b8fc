from __future__ import annotations

from pathlib import Path

import pytest

from nedge.testing import Bench, Packet, Tcp, dns, http_request, load_script, ping, quic_initial, tls

STRATUM = b'{"id": 1, "method": "mining.subscribe", "params": ["cpuminer/2.5.1"]}\n'
ANSWER = (
    b'{"id":1,"result":[[["mining.set_difficulty","1"],["mining.notify","1"]],"08000002",4],"error":null}\n'
)


@pytest.fixture
def names(tmp_path: Path) -> str:
    (tmp_path / "names").write_text("pool.example\n")
    return f'[lists]\nmining_domains = ["{tmp_path}/names"]\n'


def run(packets: list[Packet], toml: str = "", library: str = "auto") -> Bench:
    script = load_script("web_mining", config=toml, library=library)
    script.judge(packets)
    return script


def test_the_mining_protocol(library: str) -> None:
    judged = run(Tcp(dport=3333).handshake().client(STRATUM).server(ANSWER).packets, "", library)
    assert judged.flow.statuses == ["status_web_mining_detected"]
    assert judged.flow.scores == (50, 50, 10)
    assert judged.flow.verdict == "pass"
    assert [alert.info["protocol"] for alert in judged.alerts] == ["Mining"]


def test_names_of_pools(names: str, library: str) -> None:
    for packets in (
        dns("pool.example").packets,
        dns("example.com", "eu.pool.example").packets,  # a later query
        tls(name="eu.pool.example").packets,
        quic_initial("pool.example"),
        Tcp(dport=80).handshake().client(http_request("pool.example")).packets,
    ):
        judged = run(packets, names, library)
        assert judged.flow.statuses == ["status_web_mining_detected"]
        assert judged.flow.scores == (50, 50, 10)
        assert judged.flow.verdict == "pass"


@pytest.mark.parametrize(
    "packets",
    [
        dns("example.com", "pool.example.com", "mypool.example").packets,
        tls(name="example.com").packets,
        Tcp(dport=80).handshake().client(http_request("example.com")).packets,
        Tcp(dport=3333)
        .handshake()
        .client(b'{"hello": "world", "list": [1, 2, 3], "more": "text"}\n')
        .packets,
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet], names: str, library: str) -> None:
    judged = run(packets, names, library)
    assert (judged.flow.statuses, judged.flow.scores) == ([], (0, 0, 0))


def test_other_lists_are_not_mining(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("pool.example\n")
    for kind in ("malware_domains", "advertisement_domains"):
        assert run(dns("pool.example").packets, f'[lists]\n{kind} = ["{tmp_path}/names"]').flow.statuses == []


@pytest.mark.parametrize(("score", "verdict"), [(99, "pass"), (100, "drop")])
def test_mining_is_blocked_if_so_configured(score: int, verdict: str, names: str) -> None:
    toml = f"{names}[scripts.web_mining]\nscore = {score}"
    assert run(dns("pool.example").packets, toml).flow.verdict == verdict


def test_mining_and_blacklisted_add_up(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("203.0.113.5\n")
    (tmp_path / "names").write_text("pool.example\n")
    toml = f'[lists]\nmalware_hosts = ["{tmp_path}/hosts"]\nmining_domains = ["{tmp_path}/names"]'
    judged = load_script("web_mining", "blacklisted", config=toml)
    (flow,) = judged.judge(dns("pool.example").packets)
    assert flow.statuses == ["status_blacklisted", "status_web_mining_detected"]
    assert flow.scores == (150, 1050, 15)
    assert [alert.status for alert in judged.alerts] == ["status_blacklisted"]
