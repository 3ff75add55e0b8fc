from __future__ import annotations

from pathlib import Path

import pytest

from nedge.testing import (
    CLIENT,
    CLIENT6,
    SERVER,
    T0,
    Bench,
    Packet,
    Tcp,
    Udp,
    dns,
    dns_query,
    http_request,
    http_response,
    load_script,
    ping,
    quic_initial,
    tls,
)

HOSTS = "# malware\n198.51.100.7\n198.51.100.64/26\n2001:db8:bad::/48\n"
DOMAINS = "malware.example\nc2.bad.example # a name only\n"


@pytest.fixture
def lists(tmp_path: Path) -> str:
    (tmp_path / "hosts").write_text(HOSTS)
    (tmp_path / "domains").write_text(DOMAINS)
    return f'[lists]\nmalware_hosts = ["{tmp_path}/hosts"]\nmalware_domains = ["{tmp_path}/domains"]\n'


def run(packets: list[Packet], toml: str, library: str = "auto") -> Bench:
    script = load_script("blacklisted", config=toml, library=library)
    script.judge(packets)
    return script


def web(host: str) -> list[Packet]:
    return Tcp(dport=80).handshake().client(http_request(host)).packets


@pytest.mark.parametrize(
    "packets",
    [
        ping(CLIENT, "198.51.100.7"),
        ping("198.51.100.7", CLIENT),
        ping(CLIENT, "198.51.100.64"),
        ping(CLIENT, "198.51.100.127"),
        ping(CLIENT6, "2001:db8:bad:ffff::1"),
        Udp(CLIENT, "198.51.100.7", dport=47123).client(b"x").packets,
        Udp(CLIENT, "198.51.100.7", dport=53).client(dns_query("example.com")).packets,
    ],
)
def test_blacklisted_addresses(packets: list[Packet], lists: str) -> None:
    judged = run(packets, lists)
    assert judged.flow.statuses == ["status_blacklisted"]
    assert judged.flow.scores == (100, 1000, 5)
    assert judged.flow.verdict == "drop"
    assert [alert.status for alert in judged.alerts] == ["status_blacklisted"]


@pytest.mark.parametrize(
    "name", ["malware.example", "www.malware.example", "MALWARE.Example", "c2.bad.example"]
)
def test_blacklisted_names(name: str, lists: str, library: str) -> None:
    for packets, dropped_at in (
        (dns(name).packets, 0),
        (quic_initial(name), 0),
        (web(name), 3),
        (tls(name=name).packets, 3),
    ):
        judged = run(packets, lists, library)
        assert judged.flow.statuses == ["status_blacklisted"]
        assert judged.flow.scores == (100, 1000, 5)
        assert judged.actions.index("drop") == dropped_at
        assert judged.alerts[0].info == {"host": name.lower(), "blacklisted.cat": True}


@pytest.mark.parametrize(
    "packets",
    [
        ping(CLIENT, "198.51.100.8"),
        ping(CLIENT, "198.51.100.63"),
        ping(CLIENT, "198.51.100.128"),
        ping(CLIENT6, "2001:db8:bae::1"),
        dns("malware.example.com").packets,
        dns("notmalware.example").packets,
        dns("bad.example", "example").packets,
        web("example.com"),
        tls(name="example.com").packets,
        quic_initial("example.com"),
    ],
)
def test_others_are_left_alone(packets: list[Packet], lists: str) -> None:
    judged = run(packets, lists)
    assert (judged.flow.statuses, judged.flow.scores, judged.flow.verdict) == ([], (0, 0, 0), "pass")


def test_without_lists_nothing_is_blacklisted() -> None:
    assert run(ping(CLIENT, "198.51.100.7"), "").flow.statuses == []


def test_each_dns_query_counts_by_itself(lists: str, library: str) -> None:
    packets = [
        packet
        for n, packet in enumerate(dns("a.example", "www.malware.example", "b.example").packets)
        if n % 2 == 0
    ]
    judged = run(packets, lists, library)
    assert judged.actions == ["pass", "drop", "pass"]


def test_each_http_request_counts(lists: str, library: str) -> None:
    session = Tcp(dport=80).handshake().client(http_request("good.example")).server(http_response())
    session.client(http_request("malware.example")).server(http_response())
    assert run(session.packets, lists, library).actions == ["pass"] * 5 + ["drop"] * 2


def test_the_status_blocks_whatever_the_score(lists: str) -> None:
    scores = "[scripts.blacklisted]\nscore = 10\nclient_score = 20\nserver_score = 30\n"
    judged = run(ping(CLIENT, "198.51.100.7"), lists + scores)
    assert (judged.flow.scores, judged.flow.verdict) == ((10, 20, 30), "drop")
    judged = run(ping(CLIENT, "198.51.100.7"), lists + scores + "[verdict]\nblock_statuses = []")
    assert (judged.flow.scores, judged.flow.verdict) == ((10, 20, 30), "pass")


def test_with_host_scores_the_client_is_quarantined(lists: str) -> None:
    packets = (
        ping(CLIENT, "198.51.100.7") + ping(CLIENT, SERVER, T0 + 1) + ping("192.168.1.11", SERVER, T0 + 2)
    )
    judged = run(packets, lists + "[verdict]\nhost_drop_score = 1000")
    assert judged.actions == ["drop"] * 4 + ["pass"] * 2
