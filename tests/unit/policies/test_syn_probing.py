from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import (
    ACK,
    RST,
    SYN,
    T0,
    Bench,
    Packet,
    Tcp,
    load_script,
    make_flow,
    merge,
    ping,
)

STATUS = ["status_suspicious_tcp_syn_probing"]


def run(packets: list[Packet], **settings: Any) -> Bench:
    script = load_script("syn_probing", settings={"targets": 3} | settings)
    script.judge(packets, until=T0 + 1000)
    return script


def probe(n: int, answer: int = 0, *, every: float = 1, client: str = "192.168.1.10") -> list[Packet]:
    """The n-th connection of a scan, and what is answered."""
    session = Tcp(client, f"203.0.113.{n + 1}", 40000 + n, 22, T0 + n * every).segment("c", SYN)
    if answer:
        session.segment("s", answer)
    if answer == SYN | ACK:
        session.segment("c", RST)
    return session.packets


def scan(count: int, answer: int = 0, **how: Any) -> list[Packet]:
    return merge(*(probe(n, answer, **how) for n in range(count)))


@pytest.mark.parametrize("answer", [0, RST | ACK, SYN | ACK])
def test_beyond_the_limit_each_probe_is_told_of(answer: int) -> None:
    judged = run(scan(6, answer))
    assert [flow.statuses for flow in judged.flows] == [[], [], [], STATUS, STATUS, STATUS]
    assert [alert.info["targets"] for alert in judged.alerts] == [4, 5, 6]
    assert judged.flows[3].scores == (10, 10, 0)
    assert {flow.verdict for flow in judged.flows} == {"pass"}


@pytest.mark.parametrize(
    "packets",
    [
        scan(3),
        scan(10, every=30),  # slowly
        merge(*(probe(0) for _ in range(10))),  # one target, again and again
        merge(scan(3), *(probe(n, client="192.168.1.11") for n in range(3))),
        merge(*(Tcp(sport=40000 + n, dport=n + 1).handshake().rst().packets for n in range(10))),
        merge(*(Tcp(sport=40000 + n, dport=n + 1).segment("s", RST | ACK).packets for n in range(10))),
        merge(*(ping(destination=f"203.0.113.{n}", reply=False) for n in range(10))),
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    assert run(packets).alerts == []


def test_what_we_block_ourselves_does_not_count(tmp_path: Any) -> None:
    (tmp_path / "hosts").write_text("203.0.113.0/24\n")
    config = f'[lists]\nmalware_hosts = ["{tmp_path}/hosts"]'
    script = load_script("syn_probing", "blacklisted", settings={"targets": 3}, config=config)
    script.judge(scan(10), until=T0 + 100)
    assert {alert.status for alert in script.alerts} == {"status_blacklisted"}


def test_memory_is_bounded() -> None:
    script = load_script("syn_probing")
    failed = script.variables["failed"]
    failed.limit = 10
    for n in range(100):
        flow = make_flow(server=f"203.0.113.{n}", handshake=False, bytes_sent=0, bytes_rcvd=0, tcp_flags=SYN)
        script.run(flow)
    assert len(failed) == 10
    assert script.alerts == []  # too few are remembered
