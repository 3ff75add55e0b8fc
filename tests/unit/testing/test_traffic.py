"""Traffic made by hand: packets as others understand them, captures that replay to the same verdicts."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest
from cryptography import x509
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether

from nedge.testing import (
    CLIENT6,
    SERVER6,
    T0,
    Packet,
    Tcp,
    Udp,
    certificate,
    client_hello,
    dns,
    from_scapy,
    http_request,
    load_script,
    merge,
    ping,
    quic_initial,
    tls,
    write_pcap,
)

PACKETS: list[Packet] = [
    *tls().fin().packets,
    *Tcp(CLIENT6, SERVER6).handshake().client(b"odd").rst().packets,
    *Udp(CLIENT6, SERVER6).client(b"odd").server(b"even").packets,
    *dns("example.com").packets,
    *ping(),
    *ping(CLIENT6, SERVER6),
]


@pytest.mark.parametrize("packet", PACKETS)
def test_checksums_and_lengths_are_those_that_scapy_computes(packet: Packet) -> None:
    layer = IPv6 if packet.data[0] >> 4 == 6 else IP
    parsed = layer(packet.data)
    for part in (parsed, parsed.payload):
        for name in ("chksum", "cksum", "len", "plen"):
            if name in part.fields:
                part.delfieldval(name)
    assert bytes(parsed) == packet.data


def test_sequence_numbers_follow_the_data() -> None:
    session = Tcp().handshake().client(b"x" * 3000).server(b"y" * 10).fin()
    segments = [IP(packet.data) for packet in session.packets]
    for side in (40000, 443):
        mine = [segment["TCP"] for segment in segments if segment["TCP"].sport == side]
        for before, after in itertools.pairwise(mine):
            size = len(before.payload) + ("S" in before.flags) + ("F" in before.flags)
            assert after.seq == before.seq + size


def test_times_are_in_order() -> None:
    packets = merge(dns("example.com", start=T0 + 5).packets, ping(), tls().wait(10).fin().packets)
    assert [packet.time for packet in packets] == sorted(packet.time for packet in packets)


def test_a_written_capture_replays_to_the_same_verdicts(tmp_path: Path) -> None:
    flows = (
        dns("www.blocked.example", sport=5000).packets,
        dns("www.example.com", sport=5001, start=T0 + 1).packets,
        tls(name="www.blocked.example", start=T0 + 2).packets,
        quic_initial("www.blocked.example", CLIENT6, SERVER6, T0 + 3),
        [packet._replace(vlan=42) for packet in ping(start=T0 + 4)],
        Tcp(dport=80, start=T0 + 5).handshake().client(http_request("example.com")).packets,
    )
    packets = merge(*flows)
    settings = {"domains": ["blocked.example"]}
    capture = write_pcap(tmp_path / "capture.pcap", packets)
    replayed = load_script("blocked_hostname", settings=settings).replay(capture)
    judged = load_script("blocked_hostname", settings=settings).judge(packets)
    assert [flow.record for flow in replayed] == [flow.record for flow in judged]
    assert [flow.verdict for flow in judged].count("drop") == 3
    assert 42 in [flow.vlan for flow in judged]


# scapy


def test_frames_of_scapy() -> None:
    frame = Ether(src="02:00:00:00:00:07") / Dot1Q(vlan=42) / IP(src="192.0.2.1", dst="192.0.2.2") / ICMP()
    frame.time = T0 + 0.5
    packet = from_scapy(frame)
    assert (packet.time, packet.vlan, packet.mac) == (T0 + 0.5, 42, bytes.fromhex("020000000007"))
    assert IP(packet.data).src == "192.0.2.1"


@pytest.mark.parametrize("layer", [IP(dst="192.0.2.2"), IPv6(dst="2001:db8::2")])
def test_bare_ip_packets_of_scapy(layer: IP | IPv6) -> None:
    packet = from_scapy(layer / UDP(dport=53))
    assert packet.data == bytes(layer / UDP(dport=53))


@pytest.mark.parametrize("frame", [Ether() / ARP(), UDP()])
def test_what_is_no_ip_packet(frame: Ether | UDP) -> None:
    with pytest.raises(ValueError, match="allowed are IP and IPv6 packets"):
        from_scapy(frame)


def test_scapys_packets_are_judged() -> None:
    query = (
        IP(src="192.168.1.5", dst="203.0.113.1") / UDP(sport=4000) / DNS(qd=DNSQR(qname="a.blocked.example"))
    )
    script = load_script("blocked_hostname", settings={"domains": ["blocked.example"]})
    assert script.feed([query]) == ["drop"]
    assert script.flow.client == "192.168.1.5"


# TLS


def test_certificates() -> None:
    own = x509.load_pem_x509_certificate(certificate(("a.example",), issuer="")[0])
    assert own.subject == own.issuer
    other = x509.load_pem_x509_certificate(certificate(("a.example",), subject="b")[0])
    assert other.subject != other.issuer
    assert other.subject.rfc4514_string() == "CN=b"


def test_hellos_of_openssl(library: str) -> None:
    for packets, version in ((tls("1.0").packets, "TLSv1"), (tls("1.2").packets, "TLSv1.2")):
        script = load_script("tls_old_version", library=library)
        script.judge(packets)
        assert script.flow.record["ndpi"]["tls_version"] == version
    script = load_script("tls_old_version", library=library)
    script.judge(Tcp().handshake().client(client_hello("a.example"), 100).packets)
    assert script.flow.hostname == "a.example"


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aioquic.quic.configuration", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'nedge\[testing\]'"):
        quic_initial("a.example")
