from __future__ import annotations

import struct

import pytest

from nedge.testing import (
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    SYN,
    T0,
    Bench,
    Packet,
    Tcp,
    Udp,
    dns,
    dns_answer,
    dns_query,
    load_script,
    noise,
    ping,
    quic_initial,
)

PORT = 47123


def run(packets: list[Packet], toml: str = "", *, until: float | None = None, library: str = "auto") -> Bench:
    script = load_script("udp_unidirectional", config=toml, library=library)
    script.judge(packets, until=until)
    return script


def seconds(judged: Bench) -> list[int]:
    """Seconds after T0 at which alerts were raised."""
    return [int(alert.time) - T0 for alert in judged.alerts]


@pytest.mark.parametrize(
    "packets",
    [
        Udp().client(dns_query("example.com")).packets,
        Udp(CLIENT6, SERVER6).client(dns_query("example.com")).packets,
        Udp(dport=PORT).client(noise(50)).packets,
        Udp(dport=PORT).client(noise(50)).client(noise(50)).wait(20).client(noise(50)).packets,
        quic_initial("example.com"),
        Udp(SERVER, CLIENT, dport=PORT).client(noise(50)).packets,
    ],
)
def test_an_unanswered_flow(packets: list[Packet]) -> None:
    for until in (None, T0 + 300):  # at its end: cut short, or of silence
        judged = run(packets, until=until)
        assert judged.flow.statuses == ["status_udp_unidirectional"]
        assert judged.flow.scores == (10, 10, 0)
        assert judged.flow.verdict == "pass"
        assert len(judged.alerts) == 1


def test_not_before_30_seconds_while_the_flow_lives() -> None:
    packets = [
        packet for n in range(8) for packet in Udp(dport=PORT, start=T0 + n * 8).client(noise(50, n)).packets
    ]
    detected = 40  # never silent for 5 s before: a tick comes 30 s after detection, at the latest
    (at,) = seconds(run(packets, until=T0 + 200))
    assert 30 <= at <= detected + 31


def test_at_the_end_if_that_is_earlier() -> None:
    assert seconds(run(Udp().client(dns_query("example.com")).wait(9).client(noise(20)).packets)) == [9]


@pytest.mark.parametrize(
    "packets",
    [
        dns("example.com").packets,
        Udp(dport=PORT).client(noise(50)).server(noise(50)).packets,
        Udp(dport=PORT).client(noise(50)).wait(29).server(noise(50)).packets,
        ping(reply=False),
        Tcp().segment("c", SYN).packets,
        # one-way by nature
        Udp(CLIENT, "224.0.0.251", 5353, 5353).client(dns_query("example.local")).packets,
        Udp(CLIENT6, "ff02::fb", 5353, 5353).client(dns_query("example.local")).packets,
        Udp(CLIENT, "239.255.255.250", dport=1900).client(b"M-SEARCH * HTTP/1.1\r\n\r\n").packets,
        Udp(CLIENT, "192.168.0.0", dport=PORT).client(noise(50)).packets,  # the network's own address
        Udp(CLIENT, "192.168.255.255", 137, 137).client(noise(50)).packets,  # a directed broadcast
        Udp(CLIENT, "255.255.255.255", 68, 67).client(noise(300)).packets,
        Udp("0.0.0.0", "255.255.255.255", 68, 67).client(noise(300)).packets,
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    for until in (None, T0 + 300):
        judged = run(packets, until=until)
        assert (judged.flow.statuses, judged.flow.scores, judged.alerts) == ([], (0, 0, 0), [])


SYSLOG = b"<34>Oct 11 22:14:15 mymachine su: 'su root' failed for lonvick on /dev/pts/8"
NETFLOW = struct.pack("!HHIIIIBBH", 5, 1, 100, T0, 0, 0, 0, 0, 0) + bytes(48)


@pytest.mark.parametrize(("port", "data"), [(514, SYSLOG), (2055, NETFLOW)])
def test_protocols_that_are_one_way_by_nature(port: int, data: bytes, library: str) -> None:
    packets = Udp(dport=port).client(data).packets
    assert run(packets, library=library).flow.statuses == []
    everything = "[scripts.udp_unidirectional]\nignore = []"
    assert run(packets, everything, library=library).flow.statuses == ["status_udp_unidirectional"]


def test_a_late_answer_clears_the_status() -> None:
    talk = Udp().client(dns_query("example.com")).wait(40).server(dns_answer("example.com"))
    judged = run(talk.packets, until=T0 + 300)
    assert len(judged.alerts) == 1
    assert judged.flow.statuses == []
    assert judged.flow.scores == (10, 10, 0)  # what was added stays


def test_a_flow_that_we_block_cannot_be_answered() -> None:
    toml = '[scripts.blocked_hostname]\ndomains = ["example.com"]'
    packets = Udp().client(dns_query("www.example.com")).packets
    script = load_script("udp_unidirectional", "blocked_hostname", config=toml)
    (flow,) = script.judge(packets, until=T0 + 300)
    assert flow.statuses == ["status_blacklisted"]
    (flow,) = load_script("udp_unidirectional").judge(packets)
    assert flow.statuses == ["status_udp_unidirectional"]


def test_the_answer_of_a_flow_seen_from_its_middle() -> None:
    # A capture that starts with the server's side: that one is taken for the client.
    talk = Udp(SERVER, CLIENT, 53, 40000).client(dns_answer("example.com")).server(dns_query("example.com"))
    assert run(talk.packets).flow.statuses == []
