from __future__ import annotations

import pytest

from nedge.testing import CLIENT, CLIENT6, SERVER, T0, Bench, Packet, Udp, load_script, noise, ping

STATUS = ["status_longlived"]


def run(packets: list[Packet], settings: str = "seconds = 60", *, until: float | None = None) -> Bench:
    script = load_script("longlived", config=f"[scripts.longlived]\n{settings}")
    script.judge(packets, until=until)
    return script


def lasting(seconds: int, server: str = SERVER, client: str = CLIENT, step: int = 20) -> list[Packet]:
    """A packet now and then, the last one after so many seconds."""
    packet = Udp(client, server, dport=47123).client(noise(50)).packets[0]
    return [packet._replace(time=T0 + after) for after in [*range(0, seconds, step), seconds]]


@pytest.mark.parametrize(("seconds", "fires"), [(0, False), (59, False), (60, True), (61, True), (200, True)])
def test_the_threshold_to_the_second(seconds: int, fires: bool) -> None:
    judged = run(lasting(seconds))
    assert judged.flow.statuses == (STATUS if fires else [])
    assert judged.flow.scores == ((10, 10, 0) if fires else (0, 0, 0))
    assert judged.flow.verdict == "pass"


def test_idle_time_does_not_count() -> None:
    assert run(lasting(59), until=T0 + 118).flow.statuses == []


def test_the_default_is_12_hours() -> None:
    assert run(lasting(12 * 3600 - 1, step=50), "").flow.statuses == []
    assert run(lasting(12 * 3600, step=50), "").flow.statuses == STATUS


def test_it_is_told_while_the_flow_lives() -> None:
    judged = run(lasting(200))
    (alert,) = judged.alerts
    assert 60 <= alert.info["seconds"] <= 100
    assert alert.time < judged.flow.last_seen


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (CLIENT, "224.0.0.251"),
        (CLIENT, "192.168.255.255"),
        (CLIENT, "255.255.255.255"),
        (CLIENT6, "ff02::fb"),
        ("0.0.0.0", "255.255.255.255"),
    ],
)
def test_broadcast_and_multicast_do_not_count(client: str, server: str) -> None:
    assert run(lasting(200, server, client)).flow.statuses == []


def test_other_protocols_count_too() -> None:
    packets = [packet for after in range(0, 100, 10) for packet in ping(start=T0 + after)]
    assert run(packets).flow.statuses == STATUS


def test_a_flow_that_goes_silent_is_two_flows() -> None:
    packets = ping() + ping(start=T0 + 100)
    assert [flow.score for flow in run(packets).flows] == [0, 0]
