from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.dhcp import BOOTP, DHCP
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from nedge.testing import T0, Bench, ConfigError, dns, load_script, make_flow

STATUS = ["status_unexpected_dhcp"]
OURS, ROGUE, ALL = "192.168.1.1", "192.168.1.66", "255.255.255.255"


def message(kind: str, source: str, target: str) -> Any:
    """A DHCP message as a frame."""
    ports = (67, 68) if kind in ("offer", "ack") else (68, 67)
    packet = (
        Ether(dst="ff:ff:ff:ff:ff:ff")
        / IP(src=source, dst=target)
        / UDP(sport=ports[0], dport=ports[1])
        / BOOTP(op=2 if ports[0] == 67 else 1, chaddr=b"\x02\0\0\0\0\x09", yiaddr="192.168.1.77")
        / DHCP(options=[("message-type", kind), ("server_id", source), ("lease_time", 3600), "end"])
    )
    packet.time = T0
    return packet


def run(packets: list[Any], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("unexpected_dhcp", settings={"servers": [OURS]} | settings, library=library)
    script.judge(packets)
    return script


@pytest.mark.parametrize(
    ("packet", "scores"),
    [
        (message("offer", ROGUE, ALL), (50, 100, 0)),
        (message("ack", ROGUE, "192.168.1.77"), (50, 100, 0)),
        (message("request", "192.168.1.77", ROGUE), (50, 0, 100)),
    ],
)
def test_other_servers(packet: Any, scores: tuple[int, int, int], library: str) -> None:
    judged = run([packet], library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == scores  # the DHCP server's, in whatever role
    assert judged.flow.verdict == "pass"
    assert [alert.info for alert in judged.alerts] == [{"server": ROGUE}]


@pytest.mark.parametrize(
    "packet",
    [
        message("discover", "0.0.0.0", ALL),
        message("offer", OURS, ALL),
        message("ack", OURS, "192.168.1.77"),
        message("request", "192.168.1.77", OURS),
        *dns("example.com").packets[:1],
    ],
)
def test_expected_servers_and_others(packet: Any, library: str) -> None:
    assert run([packet], library).flow.statuses == []


def test_networks_can_be_given() -> None:
    assert run([message("offer", ROGUE, ALL)], servers=["192.168.1.64/26"]).flow.statuses == []


def test_it_blocks_the_first_offer_if_so_configured(library: str) -> None:
    assert run([message("offer", ROGUE, ALL)], library, score=100).actions == ["drop"]


def test_made_flows() -> None:
    script = load_script("unexpected_dhcp", settings={"servers": [OURS]})
    assert script.run(make_flow("DHCP", server=ROGUE)).statuses == STATUS
    assert script.run(make_flow("DHCP", server=OURS)).statuses == []


def test_without_servers_it_is_off() -> None:
    with pytest.raises(ConfigError, match="is off"):
        run([], servers=[])
