from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import (
    CLIENT,
    SERVER,
    T0,
    Bench,
    Packet,
    Tcp,
    Udp,
    dns_query,
    http_request,
    http_response,
    load_script,
    make_flow,
    merge,
)

STATUS = ["status_beaconing"]


def run(packets: list[Packet], **settings: Any) -> Bench:
    script = load_script("beaconing", settings={"connections": 5} | settings)
    script.judge(packets)
    return script


def call(
    start: float, *, port: int = 80, size: int = 20, server: str = SERVER, client: str = CLIENT
) -> list[Packet]:
    """One call: a request, and a short answer."""
    session = Tcp(client, server, 40000 + int(start) % 10_000, port, start).handshake()
    return session.client(http_request("c2.example")).server(http_response(bytes(size))).fin().packets


def calls(*starts: float, **how: Any) -> list[Packet]:
    return merge(*(call(T0 + start, **how) for start in starts))


EVERY_MINUTE = [n * 60 for n in range(8)]


def test_regular_calls() -> None:
    judged = run(calls(*EVERY_MINUTE))
    assert [flow.statuses for flow in judged.flows] == [[]] * 5 + [STATUS] * 3  # five intervals make it
    assert judged.flows[5].scores == (50, 50, 0)
    assert {flow.verdict for flow in judged.flows} == {"pass"}
    assert judged.alerts[0].info == {"interval": 60.0, "jitter": 0.0}


@pytest.mark.parametrize(("jitter", "fires"), [(0.05, True), (0.3, False)])
def test_how_regular_is_configured(jitter: float, fires: bool) -> None:
    wobbling = [n * 60 + (-1) ** n * 4 for n in range(8)]  # 52 and 68 seconds: 13 percent
    assert bool(run(calls(*wobbling), max_jitter=0.2 - jitter / 3).alerts) is fires
    assert run(calls(*wobbling)).alerts == []
    assert run(calls(*wobbling), max_jitter=0.2).alerts


@pytest.mark.parametrize(
    "packets",
    [
        calls(*EVERY_MINUTE[:5]),  # too few
        calls(0, 50, 70, 190, 200, 320, 330, 500),  # as a person does
        calls(*(n * 5 for n in range(12))),  # too fast: min_interval
        calls(*EVERY_MINUTE, size=20_000),  # too much
        calls(*EVERY_MINUTE, server="192.168.1.44"),  # a local server
        calls(*EVERY_MINUTE, client="203.0.113.77", server=CLIENT),  # a remote client
        merge(*(call(T0 + at, port=80 + n) for n, at in enumerate(EVERY_MINUTE))),  # other ports
        merge(*(call(T0 + at, server=f"203.0.113.{n}") for n, at in enumerate(EVERY_MINUTE))),
        merge(*(call(T0 + at, client=f"192.168.1.{n + 2}") for n, at in enumerate(EVERY_MINUTE))),
        merge(
            *(
                Udp(sport=5000 + at, start=T0 + at).client(dns_query("a.example")).packets
                for at in EVERY_MINUTE
            )
        ),
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    assert run(packets).alerts == []


def test_exempt_names() -> None:
    assert run(calls(*EVERY_MINUTE), domains=["c2.example"]).alerts == []
    assert run(calls(*EVERY_MINUTE), domains=["c3.example"]).alerts


def test_it_blocks_if_so_configured() -> None:
    judged = run(calls(*EVERY_MINUTE), score=100)
    assert [flow.verdict for flow in judged.flows] == ["pass"] * 5 + ["drop"] * 3


def test_only_the_latest_connections_count() -> None:
    judged = run(calls(0, 7, 90, 100, *(200 + at for at in EVERY_MINUTE)))
    assert [bool(flow.statuses) for flow in judged.flows].index(True) == 9


def test_memory_is_bounded() -> None:
    script = load_script("beaconing")
    talks = script.variables["talks"]
    talks.limit = 10
    for n in range(50):
        script.end(script.run(make_flow("TLS", server=f"203.0.113.{n}")))
    assert len(talks) == 10
    for _ in range(50):
        script.end(script.run(make_flow("TLS", server="203.0.113.49")))
        script.advance(3)
    assert [len(kept) for kept in talks[f"{CLIENT}@0", "203.0.113.49@0", 443]] == [11, 10]
