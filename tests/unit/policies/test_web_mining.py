from __future__ import annotations

from pathlib import Path

import pytest
from kit import Judged, Packet, Tcp, dns, http_request, judge, ping, quic_initial, tls

STRATUM = b'{"id": 1, "method": "mining.subscribe", "params": ["cpuminer/2.5.1"]}\n'
ANSWER = (
    b'{"id":1,"result":[[["mining.set_difficulty","1"],["mining.notify","1"]],"08000002",4],"error":null}\n'
)


@pytest.fixture
def names(tmp_path: Path) -> str:
    (tmp_path / "names").write_text("pool.example\n")
    return f'[lists]\nmining_domains = ["{tmp_path}/names"]\n'


def run(packets: list[Packet], toml: str = "", library: str = "auto") -> Judged:
    return judge(packets, toml, ["web_mining"], library)


def test_the_mining_protocol(library: str) -> None:
    judged = run(Tcp(dport=3333).handshake().client(STRATUM).server(ANSWER).packets, "", library)
    assert judged.statuses == ["status_web_mining_detected"]
    assert judged.scores == (50, 50, 10)
    assert judged.verdict == "pass"
    assert [record["nedge"]["info"]["protocol"] for record in judged.alerts] == ["Mining"]


def test_names_of_pools(names: str, library: str) -> None:
    for packets in (
        dns("pool.example").packets,
        dns("example.com", "eu.pool.example").packets,  # a later query
        tls(name="eu.pool.example").packets,
        quic_initial("pool.example"),
        Tcp(dport=80).handshake().client(http_request("pool.example")).packets,
    ):
        judged = run(packets, names, library)
        assert judged.statuses == ["status_web_mining_detected"]
        assert judged.scores == (50, 50, 10)
        assert judged.verdict == "pass"


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
    assert (judged.statuses, judged.scores) == ([], (0, 0, 0))


def test_other_lists_are_not_mining(tmp_path: Path) -> None:
    (tmp_path / "names").write_text("pool.example\n")
    for kind in ("malware_domains", "advertisement_domains"):
        assert run(dns("pool.example").packets, f'[lists]\n{kind} = ["{tmp_path}/names"]').statuses == []


@pytest.mark.parametrize(("score", "verdict"), [(99, "pass"), (100, "drop")])
def test_mining_is_blocked_if_so_configured(score: int, verdict: str, names: str) -> None:
    toml = f"{names}[scripts.web_mining]\nscore = {score}"
    assert run(dns("pool.example").packets, toml).verdict == verdict


def test_mining_and_blacklisted_add_up(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("203.0.113.5\n")
    (tmp_path / "names").write_text("pool.example\n")
    toml = f'[lists]\nmalware_hosts = ["{tmp_path}/hosts"]\nmining_domains = ["{tmp_path}/names"]'
    judged = judge(dns("pool.example").packets, toml, ["web_mining", "blacklisted"])
    assert judged.statuses == ["status_blacklisted", "status_web_mining_detected"]
    assert judged.scores == (150, 1050, 15)
    assert [record["alert"]["signature_id"] for record in judged.alerts] == [1]
