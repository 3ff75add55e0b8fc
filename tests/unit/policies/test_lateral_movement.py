from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import SYN, T0, Bench, Packet, Tcp, load_script, make_flow, merge, ssh_turns

STATUS = ["status_suspicious_tcp_probing"]


def run(packets: list[Packet], **settings: Any) -> Bench:
    script = load_script("lateral_movement", settings={"hosts": 3} | settings)
    script.judge(packets)
    return script


def login(
    n: int, port: int = 22, *, client: str = "10.0.0.5", net: str = "10.0.1", every: float = 2
) -> list[Packet]:
    """The n-th host that the client logs in to."""
    session = Tcp(client, f"{net}.{n + 1}", 40000 + n, port, T0 + n * every).handshake()
    return session.turns(ssh_turns()).fin().packets


def spread(count: int, **how: Any) -> list[Packet]:
    return merge(*(login(n, **how) for n in range(count)))


@pytest.mark.parametrize("port", [22, 135, 139, 445, 3389, 5900, 5985, 5986])
def test_beyond_the_limit_each_login_is_told_of(port: int) -> None:
    judged = run(spread(6, port=port))
    assert [flow.statuses for flow in judged.flows] == [[], [], [], STATUS, STATUS, STATUS]
    assert judged.flows[3].scores == (50, 100, 0)
    assert {flow.verdict for flow in judged.flows} == {"pass"}
    assert judged.alerts[0].info == {"hosts": 4, "port": port}


def test_ports_count_together() -> None:
    packets = merge(*(login(n, port) for n, port in enumerate((22, 445, 3389, 5900))))
    assert len(run(packets).alerts) == 1


@pytest.mark.parametrize(
    "packets",
    [
        spread(3),
        spread(10, port=80),
        spread(10, net="203.0.113"),  # remote servers
        spread(10, client="203.0.113.99"),  # a remote client
        spread(10, every=150),  # slowly
        merge(*(login(0) for _ in range(10))),  # one host, again and again
        merge(spread(3), *(login(n, client="10.0.0.6") for n in range(3))),
        merge(*(Tcp("10.0.0.5", f"10.0.1.{n + 1}", dport=22).segment("c", SYN).packets for n in range(10))),
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    assert run(packets).alerts == []


def test_managers_may() -> None:
    assert run(spread(10), managers=["10.0.0.0/28"]).alerts == []
    assert run(spread(10), managers=["10.0.0.9"]).alerts


def test_it_blocks_if_so_configured() -> None:
    judged = run(spread(6), score=100)
    assert [flow.verdict for flow in judged.flows] == ["pass"] * 3 + ["drop"] * 3


def test_memory_is_bounded() -> None:
    script = load_script("lateral_movement")
    reached = script.variables["reached"]
    reached.limit = 10
    for n in range(50):
        script.run(make_flow("SSH", client="10.0.0.5", server=f"10.0.1.{n}"))
    assert len(reached) == 10
    assert script.alerts == []  # too few are remembered
    script.advance(301)
    script.run(make_flow("SSH", client="10.0.0.5", server="10.0.2.1"))
    assert len(reached) == 1
