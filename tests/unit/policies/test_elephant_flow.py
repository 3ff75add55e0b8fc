from __future__ import annotations

import pytest

from nedge.testing import CLIENT, SERVER, T0, Bench, Packet, Tcp, Udp, load_script, noise, ping

OUT, IN = "status_elephant_local_to_remote", "status_elephant_remote_to_local"
HEADERS = 28  # IPv4 and UDP
LIMITS = "local_to_remote = 1000\nremote_to_local = 2000"


def run(packets: list[Packet], settings: str = LIMITS, *, until: float | None = None) -> Bench:
    script = load_script("elephant_flow", config=f"[scripts.elephant_flow]\n{settings}")
    script.judge(packets, until=until)
    return script


def flow(sent: int, received: int, client: str = CLIENT, server: str = SERVER) -> list[Packet]:
    """A UDP flow of so many bytes of IP packets each way, from 29 on; 0 = none."""
    talk = Udp(client, server, dport=47123)
    if sent:
        talk.client(noise(sent - HEADERS))
    if received:
        talk.server(noise(received - HEADERS))
    return talk.packets


@pytest.mark.parametrize(
    ("sent", "received", "statuses"),
    [
        (999, 0, []),
        (1000, 0, [OUT]),
        (1001, 0, [OUT]),
        (50, 1999, []),
        (50, 2000, [IN]),
        (50, 2001, [IN]),
        (999, 1999, []),
        (1000, 2000, [OUT, IN]),
        (50, 1000, []),  # not the other way's limit
    ],
)
def test_thresholds_to_the_byte(sent: int, received: int, statuses: list[str]) -> None:
    judged = run(flow(sent, received))
    assert judged.flow.statuses == statuses
    assert judged.flow.scores == (10 * len(statuses), 10 * len(statuses), 0)
    assert judged.flow.verdict == "pass"


@pytest.mark.parametrize(
    ("sent", "received", "statuses"),
    [(1999, 999, []), (2000, 50, [IN]), (50, 1000, [OUT]), (2000, 1000, [OUT, IN])],
)
def test_flows_that_the_remote_side_opened(sent: int, received: int, statuses: list[str]) -> None:
    assert run(flow(sent, received, SERVER, CLIENT)).flow.statuses == statuses


@pytest.mark.parametrize(
    ("client", "server"),
    [(CLIENT, "192.168.1.11"), (CLIENT, "10.0.0.1"), (SERVER, "198.51.100.1"), ("fd00::1", "fd00::2")],
)
def test_only_between_local_and_remote(client: str, server: str) -> None:
    assert run(flow(60000, 60000, client, server)).flow.statuses == []


def test_ordinary_flows_are_no_elephants() -> None:
    assert run(flow(60000, 60000), "").flow.statuses == []
    assert run(ping(), "").flow.statuses == []


def test_the_default_thresholds() -> None:
    # Counted by header, not by captured bytes: a datagram of 64 KB is as good as many small ones.
    big = Udp(dport=47123).client(noise(65000)).packets[0]
    count = (1 << 30) // len(big.data)
    few = [big._replace(time=T0 + n / 1000) for n in range(count)]
    assert run(few, "").flow.statuses == []
    assert run([*few, few[-1]], "").flow.statuses == [OUT]


@pytest.mark.parametrize(("settings", "statuses"), [
    ("local_to_remote = 0\nremote_to_local = 2000", [IN]),
    ("local_to_remote = 1000\nremote_to_local = 0", [OUT]),
    ("local_to_remote = 0\nremote_to_local = 0", []),
])  # fmt: skip
def test_0_switches_a_way_off(settings: str, statuses: list[str]) -> None:
    assert run(flow(5000, 5000), settings).flow.statuses == statuses


def test_it_is_told_while_the_flow_lives() -> None:
    session = Tcp(dport=47123).handshake()
    for n in range(20):
        session.client(noise(500, n)).wait(5)
    judged = run(session.packets, until=T0 + 200)
    (alert,) = judged.alerts
    assert judged.flow.statuses == [OUT]
    assert alert.time < judged.flow.last_seen


def test_it_blocks_if_so_configured() -> None:
    packets = [packet._replace(time=T0 + 20 * n) for n, packet in enumerate(flow(1200, 0) * 5)]
    judged = run(packets, LIMITS + "\nscore = 100")
    assert judged.flow.verdict == "drop"
    assert judged.actions == sorted(judged.actions, reverse=True)  # passes, then drops
    assert (judged.actions[0], judged.actions[-1]) == ("pass", "drop")
