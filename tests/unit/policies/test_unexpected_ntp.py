from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.ntp import NTP

from nedge.testing import (
    CLIENT,
    CLIENT6,
    SERVER6,
    Bench,
    ConfigError,
    Packet,
    Tcp,
    Udp,
    dns,
    load_script,
    noise,
)

STATUS = ["status_unexpected_ntp"]
SERVERS = ["192.168.1.1", "198.51.100.0/24", "2001:db8:123::/48"]


def run(packets: list[Packet], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("unexpected_ntp", settings={"servers": SERVERS} | settings, library=library)
    script.judge(packets)
    return script


def ask(server: str, client: str = CLIENT, port: int = 123) -> list[Packet]:
    talk = Udp(client, server, port, 123)
    return talk.client(bytes(NTP(version=4, mode=3))).server(bytes(NTP(version=4, mode=4))).packets


@pytest.mark.parametrize("port", [123, 40000])
@pytest.mark.parametrize(
    ("client", "server"), [(CLIENT, "203.0.113.5"), (CLIENT, "192.168.1.2"), (CLIENT6, SERVER6)]
)
def test_other_servers(client: str, server: str, port: int, library: str) -> None:
    judged = run(ask(server, client, port), library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (30, 10, 0)
    assert judged.flow.verdict == "pass"
    assert [alert.info for alert in judged.alerts] == [{"server": server}]


@pytest.mark.parametrize(
    "packets",
    [
        ask("192.168.1.1"),
        ask("198.51.100.77"),
        ask("2001:db8:123::1", CLIENT6),
        ask("203.0.113.5", "192.168.1.1"),  # a listed server asks the world
        ask("224.0.1.1")[:1],  # multicast
        dns("example.com").packets,
        Udp(dport=9999).client(noise(30)).packets,
        Tcp(dport=123).handshake().client(noise(30)).packets,
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, library).flow.statuses == []


def test_it_blocks_if_so_configured(library: str) -> None:
    assert run(ask("203.0.113.5"), library, score=100).actions == ["drop", "drop"]


def test_without_servers_it_is_off() -> None:
    with pytest.raises(ConfigError, match="is off"):
        run([], servers=[])
