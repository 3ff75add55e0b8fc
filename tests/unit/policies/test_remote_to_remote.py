from __future__ import annotations

import pytest

from nedge.testing import (
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    Bench,
    Packet,
    Udp,
    dns,
    dns_query,
    load_script,
    ping,
    tls,
)

OTHER, OTHER6 = "198.51.100.9", "2001:db8:9::9"


def run(packets: list[Packet], toml: str = "") -> Bench:
    script = load_script("remote_to_remote", config=toml)
    script.judge(packets)
    return script


@pytest.mark.parametrize(
    "packets",
    [
        ping(SERVER, OTHER),
        ping(SERVER6, OTHER6),
        dns("example.com", client=SERVER, server=OTHER).packets,
        Udp(SERVER, OTHER, dport=47123).client(b"x").packets,
    ],
)
def test_remote_to_remote(packets: list[Packet]) -> None:
    judged = run(packets)
    assert judged.flow.statuses == ["status_remote_to_remote"]
    assert judged.flow.scores == (10, 10, 10)
    assert judged.flow.verdict == "pass"
    assert len(judged.alerts) == 1


@pytest.mark.parametrize(
    "packets",
    [
        ping(CLIENT, SERVER),
        ping(SERVER, CLIENT),
        ping(CLIENT, "10.1.2.3"),
        ping(CLIENT6, SERVER6),
        tls().packets,
        ping("fe80::1", "fe80::2"),
        ping(SERVER, "224.0.0.5", reply=False),
        ping(SERVER, "255.255.255.255", reply=False),
        ping(SERVER6, "ff02::1", reply=False),
        Udp("0.0.0.0", "255.255.255.255", 68, 67).client(b"x" * 300).packets,
        Udp(SERVER, "224.0.0.251", 5353, 5353).client(dns_query("example.local")).packets,
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    assert (run(packets).flow.statuses, run(packets).flow.scores) == ([], (0, 0, 0))


def test_what_is_local_is_configured() -> None:
    assert run(ping(SERVER, OTHER), '[network]\nlocal = ["198.51.100.0/24"]').flow.statuses == []
    assert run(ping(CLIENT, SERVER), '[network]\nlocal = ["198.51.100.0/24"]').flow.statuses == [
        "status_remote_to_remote"
    ]


def test_scores_are_configured() -> None:
    judged = run(
        ping(SERVER, OTHER), "[scripts.remote_to_remote]\nscore = 100\nclient_score = 1\nserver_score = 2"
    )
    assert (judged.flow.scores, judged.flow.verdict) == ((100, 1, 2), "drop")
