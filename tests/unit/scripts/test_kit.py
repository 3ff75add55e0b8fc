"""The test kit itself: packets as others understand them, captures that replay to the same verdicts."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from kit import (
    CLIENT6,
    SERVER6,
    T0,
    Packet,
    Tcp,
    Udp,
    bench,
    dns,
    http_request,
    judge,
    merge,
    ping,
    quic_initial,
    tls,
    write_pcap,
)
from scapy.layers.inet import IP
from scapy.layers.inet6 import IPv6

from nedge.config import SHIPPED_POLICIES
from nedge.replay import replay

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
    toml = f'[scripts]\ndirectories = ["{SHIPPED_POLICIES}"]\n'
    toml += '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
    capture = write_pcap(tmp_path / "capture.pcap", packets)
    with bench(toml) as made:
        totals = replay(capture, made.engine)
    assert (totals.frames, totals.not_ip) == (len(packets), 0)
    expected = judge(packets, toml)
    assert made.judged.flows == expected.flows
    assert [record["nedge"]["verdict"] for record in expected.flows].count("drop") == 3
    assert 42 in [record["vlan"] for record in expected.flows]
