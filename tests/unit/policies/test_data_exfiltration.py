from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import CLIENT6, SERVER6, T0, Bench, Packet, Tcp, dns, icmp, load_script, noise, ping

STATUS = ["status_data_exfiltration"]


def run(packets: list[Packet], until: float | None = None, **settings: Any) -> Bench:
    script = load_script("data_exfiltration", settings=settings)
    script.judge(packets, until=until)
    return script


def pings(size: int, every: float, count: int, *, reply: bool = True) -> list[Packet]:
    return [
        packet
        for n in range(count)
        for packet in ping(start=T0 + n * every, payload=noise(size, n), reply=reply)
    ]


@pytest.mark.parametrize("ends", [(), (CLIENT6, SERVER6), ("203.0.113.5", "192.168.1.10")])
@pytest.mark.parametrize(("size", "fires"), [(1000, False), (1001, True), (60_000, True)])
def test_big_messages(ends: tuple[str, ...], size: int, fires: bool) -> None:
    judged = run(ping(*ends, payload=noise(size)))
    assert judged.flow.statuses == (STATUS if fires else [])
    assert judged.flow.scores == ((50, 50, 0) if fires else (0, 0, 0))
    assert judged.flow.verdict == "pass"
    assert [alert.info for alert in judged.alerts] == ([{"payload": size}] if fires else [])


def test_many_messages_while_the_flow_lives() -> None:
    judged = run(pings(400, 0.2, 400))  # 2000 bytes a second each way, for 80 seconds
    assert judged.flow.statuses == STATUS
    (alert,) = judged.alerts
    assert alert.time <= T0 + 32  # the first tick
    assert 1900 <= alert.info["rate"] <= 2100


def test_many_messages_at_the_end() -> None:
    assert run(pings(400, 0.2, 60)).flow.statuses == STATUS


@pytest.mark.parametrize(
    "packets",
    [
        ping(),
        pings(56, 1, 200),
        pings(950, 1, 60),  # big, but slow
        pings(900, 0.2, 40),  # fast, but for a moment only
        pings(56, 0.1, 300, reply=False),
        Tcp().handshake().client(noise(5000)).packets,
        dns("example.com").packets,
        [Packet(T0, icmp("192.168.1.1", "192.168.1.10", 3, 4, noise(1400)))],  # packet too big
        [Packet(T0, icmp("fd00::1", CLIENT6, 2, 0, noise(1232)))],
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    assert run(packets, until=T0 + 400).alerts == []


def test_the_limits_are_configured() -> None:
    assert run(ping(payload=noise(101)), max_payload=100).flow.statuses == STATUS
    assert run(pings(400, 0.2, 60), max_rate=3000).flow.statuses == []


def test_it_blocks_if_so_configured() -> None:
    judged = run(ping(payload=noise(1400)), score=100)
    assert judged.actions == ["drop", "drop"]  # the very first packet
    judged = run(pings(400, 0.2, 400), score=100)
    assert judged.actions == sorted(judged.actions, reverse=True)  # from the first tick on
    assert {judged.actions[0], judged.actions[-1]} == {"pass", "drop"}
