from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import FIN, RST, T0, Bench, Packet, Tcp, dns, load_script, make_flow, merge

STATUS = ["status_suspicious_tcp_probing"]


def run(packets: list[Packet], **settings: Any) -> Bench:
    script = load_script("tcp_probing", settings={"targets": 3} | settings)
    script.judge(packets, until=T0 + 1000)
    return script


def probe(
    n: int, *, end: str = "rst", payload: bytes = b"", every: float = 1, client: str = "192.168.1.10"
) -> Tcp:
    """The n-th connection of a scan: opened, and closed at once."""
    session = Tcp(client, f"203.0.113.{n + 1}", 40000 + n, 443, T0 + n * every).handshake()
    if payload:
        session.client(payload)
    return session.rst() if end == "rst" else session.fin() if end == "fin" else session


def scan(count: int, **how: Any) -> list[Packet]:
    return merge(*(probe(n, **how).packets for n in range(count)))


@pytest.mark.parametrize("end", ["rst", "fin"])
def test_beyond_the_limit_each_probe_is_told_of(end: str) -> None:
    judged = run(scan(6, end=end))
    assert [flow.statuses for flow in judged.flows] == [[], [], [], STATUS, STATUS, STATUS]
    assert [alert.info["targets"] for alert in judged.alerts] == [4, 5, 6]
    assert judged.flows[3].scores == (10, 10, 0)
    assert set(judged.actions) == {"pass"}


@pytest.mark.parametrize(
    "packets",
    [
        scan(3),
        scan(10, payload=b"GET / HTTP/1.1\r\n\r\n"),  # they talk
        scan(10, end=""),  # left open
        merge(*(probe(n, end="").wait(8).rst().packets for n in range(10))),  # closed after a while
        scan(10, every=30),  # slowly
        merge(*(probe(0).packets for _ in range(10))),  # one target
        merge(scan(3), *(probe(n, client="192.168.1.11").packets for n in range(3))),
        merge(*(dns("a.example", sport=5000 + n).packets for n in range(10))),
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    assert run(packets).alerts == []


def test_ports_of_one_server_count() -> None:
    packets = merge(
        *(Tcp(sport=40000 + n, dport=n + 1, start=T0 + n).handshake().rst().packets for n in range(5))
    )
    assert [bool(flow.statuses) for flow in run(packets).flows] == [False] * 3 + [True] * 2


def test_memory_is_bounded() -> None:
    script = load_script("tcp_probing")
    probed = script.variables["probed"]
    probed.limit = 10
    for n in range(40):
        script.run(make_flow("Unknown", server=f"203.0.113.{n}", bytes_sent=0, bytes_rcvd=0, tcp_flags=RST))
    assert len(probed) == 10
    assert script.alerts == []  # too few are remembered
    script.advance(61)
    script.run(make_flow("Unknown", server="203.0.113.99", bytes_sent=0, bytes_rcvd=0, tcp_flags=FIN))
    assert len(probed) == 1


def test_with_host_scores_who_goes_on_is_cut_off() -> None:
    script = load_script("tcp_probing", settings={"targets": 3}, config="[verdict]\nhost_drop_score = 30")
    script.feed(scan(20, every=0.5))
    assert script.flows[-1].reason == "host_score: client 30 >= 30"
    assert script.flows[-1].verdict == "drop"
