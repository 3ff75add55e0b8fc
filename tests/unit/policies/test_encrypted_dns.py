from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import (
    CLIENT,
    SERVER,
    Bench,
    Packet,
    Tcp,
    Udp,
    dns,
    http_request,
    load_script,
    make_flow,
    ping,
    quic_initial,
    tls,
)

STATUS = ["status_unexpected_dns"]


def run(packets: list[Packet], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("encrypted_dns", settings=settings, library=library)
    script.judge(packets)
    return script


def doq(name: str) -> list[Packet]:
    """DNS over QUIC: as any QUIC, but for its port."""
    session = Udp(dport=853)
    for packet in quic_initial(name):
        session.client(packet.data[28:])
    return session.packets


@pytest.mark.parametrize(
    "packets",
    [
        tls("1.3", "resolver.example", dport=853).packets,  # DoT
        tls("1.2", None, dport=853).packets,
        doq("resolver.example"),
        tls("1.3", "dns.google").packets,  # DoH: nDPI knows this name
        tls("1.3", "dns.adguard-dns.com").packets,  # and the script this one
        tls("1.3", "abcdef.dns.nextdns.io").packets,
        quic_initial("cloudflare-dns.com"),
    ],
)
def test_encrypted_dns(packets: list[Packet], library: str) -> None:
    judged = run(packets, library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (50, 10, 0)
    assert judged.flow.verdict == "pass"
    (alert,) = judged.alerts
    assert alert.info["server"] == SERVER


@pytest.mark.parametrize(
    "packets",
    [
        tls("1.3", "www.example.com").packets,
        tls("1.3", "notdns.google.example").packets,
        quic_initial("www.example.com"),
        dns("dns.google").packets,  # to ask for its address is no encrypted DNS
        dns("cloudflare-dns.com", "one.one.one.one").packets,
        Tcp(dport=80).handshake().client(http_request("example.com")).packets,
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, library).flow.statuses == []


@pytest.mark.parametrize(
    "settings",
    [
        {"servers": [SERVER]},
        {"servers": ["203.0.113.0/24"]},
        {"servers": [CLIENT]},  # the resolver itself asks the world
        {"allowed": ["quad9.net"]},
    ],
)
def test_what_is_allowed(settings: dict[str, Any], library: str) -> None:
    packets = tls("1.3", "dns.quad9.net").packets
    assert run(packets, library).flow.statuses == STATUS
    assert run(packets, library, **settings).flow.statuses == []


def test_hosts_are_configured() -> None:
    packets = tls("1.3", "doh.mine.example").packets
    assert run(packets).flow.statuses == []
    assert run(packets, hosts=["mine.example"]).flow.statuses == STATUS


def test_it_blocks_the_first_packet_that_tells(library: str) -> None:
    judged = run(tls("1.3", "dns.quad9.net").packets, library, score=100)
    assert judged.actions.index("drop") == 3  # the ClientHello
    assert run(quic_initial("dns.google"), library, score=100).actions[0] == "drop"


def test_what_ndpi_finds_out_later() -> None:
    script = load_script("encrypted_dns")
    flow = script.run(make_flow("TLS", hostname="resolver.example"))
    assert flow.statuses == []
    script.run(flow.update(protocol="TLS.DoH_DoT"), "protocolUpdated")
    assert flow.statuses == STATUS
