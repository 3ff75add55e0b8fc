"""What a script can read of a flow: each function's meaning, as tables of cases."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from kit import (
    ACK,
    CLIENT,
    CLIENT6,
    FIN,
    PSH,
    RST,
    SERVER,
    SERVER6,
    SYN,
    T0,
    Packet,
    Tcp,
    Udp,
    ask,
    bench,
    client_hello,
    dns,
    dns_answer,
    dns_query,
    http_request,
    http_response,
    icmp,
    ip,
    judge,
    merge,
    noise,
    ping,
    quic_initial,
    ssh_turns,
    tls,
    with_script,
    write_countries,
)

NO_PORT = 47123
"""A port that no nDPI release guesses a protocol from."""


def once(packets: list[Packet], expression: str, toml: str = "", library: str = "auto") -> Any:
    """An expression's value in protocolDetected."""
    (value,) = ask(packets, expression, toml=toml, library=library)
    return value


def at_end(packets: list[Packet], expression: str, toml: str = "", library: str = "auto") -> Any:
    """An expression's value in flowEnd, of the one flow there is."""
    (value,) = ask(packets, expression, "flowEnd", toml, library)
    return value


# Unicast

NETS = """
[network]
local = [
  "192.168.1.0/24", "10.0.0.0/30", "10.1.0.0/31", "10.2.0.1/32", "172.16.0.0/12", "128.0.0.0/1", "fd00::/64"
]
"""


@pytest.mark.parametrize(
    ("address", "unicast"),
    [
        ("203.0.113.5", True),
        ("223.255.255.255", True),
        ("224.0.0.0", False),
        ("224.0.0.251", False),
        ("232.1.2.3", False),
        ("239.255.255.255", False),
        ("240.0.0.1", True),
        ("255.255.255.255", False),
        ("0.0.0.0", False),
        ("0.0.0.1", True),
        ("192.168.1.1", True),
        ("192.168.1.0", False),  # /24: its network address and its broadcast
        ("192.168.1.255", False),
        ("192.168.2.255", True),  # not a local net's
        ("10.0.0.0", False),  # /30
        ("10.0.0.1", True),
        ("10.0.0.2", True),
        ("10.0.0.3", False),
        ("10.1.0.0", True),  # /31 has neither (RFC 3021)
        ("10.1.0.1", True),
        ("10.2.0.1", True),  # /32
        ("172.16.0.0", False),  # /12
        ("172.16.255.255", True),
        ("172.31.255.255", False),
        ("128.0.0.0", False),  # /1
        ("fd00::1", True),
        ("fd00::", True),  # v6 has no broadcast
        ("fd00::ffff:ffff:ffff:ffff", True),
        ("fe80::1", True),
        ("2001:db8::1", True),
        ("feff:ffff::1", True),
        ("ff00::", False),
        ("ff02::1", False),
        ("ff05::1:3", False),
        ("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", False),
    ],
)
def test_unicast(address: str, unicast: bool) -> None:
    peer = "2001:db8::99" if ":" in address else "198.51.100.99"
    read = "(flow.isClientUnicast(), flow.isServerUnicast(), flow.isUnicast())"
    assert once(ping(peer, address, reply=False), read, NETS) == (True, unicast, unicast)
    assert once(ping(address, peer, reply=False), read, NETS) == (unicast, True, unicast)


def test_two_ends_that_are_not_unicast() -> None:
    read = "(flow.isClientUnicast(), flow.isServerUnicast(), flow.isUnicast())"
    discover = Udp("0.0.0.0", "255.255.255.255", 68, 67).client(noise(300)).packets
    assert at_end(discover, read) == (False, False, False)


# Local and remote

WHERE = "(flow.isLocal(), flow.isLocalToRemote(), flow.isRemoteToLocal(), flow.isRemoteToRemote())"
LL, LR, RL, RR = ((n == 0, n == 1, n == 2, n == 3) for n in range(4))


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("10.0.0.1", True),
        ("10.255.255.254", True),
        ("11.0.0.1", False),
        ("9.255.255.255", False),
        ("172.15.255.255", False),
        ("172.16.0.1", True),
        ("172.31.255.254", True),
        ("172.32.0.0", False),
        ("192.167.255.255", False),
        ("192.168.77.1", True),
        ("192.169.0.0", False),
        ("127.0.0.1", True),
        ("169.254.1.1", True),
        ("169.255.0.1", False),
        ("100.64.0.1", False),
        ("8.8.8.8", False),
        ("fc00::1", True),
        ("fdff:ffff::1", True),
        ("fbff::1", False),
        ("fe80::1", True),
        ("febf::1", True),
        ("fec0::1", False),
        ("::1", True),
        ("::2", False),
        ("2001:db8::1", False),
    ],
)
def test_local_by_default(address: str, local: bool) -> None:
    here, there = ("fd00::77", "2001:db8::77") if ":" in address else ("192.168.200.77", "198.51.100.77")
    assert once(ping(address, here, reply=False), WHERE) == (LL if local else RL)
    assert once(ping(address, there, reply=False), WHERE) == (LR if local else RR)
    assert once(ping(here, address, reply=False), WHERE) == (LL if local else LR)
    assert once(ping(there, address, reply=False), WHERE) == (RL if local else RR)


@pytest.mark.parametrize(
    ("toml", "client", "server", "where"),
    [
        ('local = ["192.168.1.0/24", "127.0.0.0/8"]', "192.168.1.9", "192.168.2.9", LR),
        ('local = ["192.168.1.0/24", "127.0.0.0/8"]', "192.168.1.9", "192.168.1.10", LL),
        ('local = ["192.168.1.0/24", "127.0.0.0/8"]', "10.0.0.1", "192.168.1.10", RL),
        ('local = ["203.0.113.0/24"]', "203.0.113.1", "8.8.8.8", LR),
        ("local = []", "192.168.1.1", "192.168.1.2", RR),
        ('local = ["2001:db8:1::/48"]', "2001:db8:1::9", "2001:db8:2::9", LR),
        ('own_addresses = ["203.0.113.1"]', "203.0.113.1", "203.0.113.2", LR),
        ('own_addresses = ["203.0.113.1"]', "203.0.113.2", "203.0.113.1", RL),
        ('own_addresses = ["2001:db8::1"]', "2001:db8::1", "2001:db8::2", LR),
    ],
)
def test_local_as_configured(toml: str, client: str, server: str, where: tuple[bool, ...]) -> None:
    assert once(ping(client, server, reply=False), WHERE, f"[network]\n{toml}") == where


def test_own_addresses_in_another_notation() -> None:
    toml = '[network]\nown_addresses = ["2001:DB8:0:0::1"]'
    assert once(ping("2001:db8::1", "2001:db8::2", reply=False), WHERE, toml) == LR


# The three-way handshake

C, S = "c", "s"
CASES: list[tuple[str, list[tuple[str, int, bytes]], bool]] = [
    ("complete", [(C, SYN, b""), (S, SYN | ACK, b""), (C, ACK, b"")], True),
    ("completed by data", [(C, SYN, b""), (S, SYN | ACK, b""), (C, ACK | PSH, b"GET ")], True),
    ("completed late", [(C, SYN, b""), (S, SYN | ACK, b""), (S, ACK, b""), (C, ACK, b"")], True),
    ("repeated SYN", [(C, SYN, b""), (C, SYN, b""), (S, SYN | ACK, b""), (C, ACK, b"")], True),
    ("repeated SYN+ACK", [(C, SYN, b""), (S, SYN | ACK, b""), (S, SYN | ACK, b""), (C, ACK, b"")], True),
    ("with ECN", [(C, SYN | 0xC0, b""), (S, SYN | ACK | 0x40, b""), (C, ACK, b"")], True),
    ("stays after the end", [(C, SYN, b""), (S, SYN | ACK, b""), (C, ACK, b""), (C, FIN | ACK, b"")], True),
    ("stays after a reset", [(C, SYN, b""), (S, SYN | ACK, b""), (C, ACK, b""), (S, RST | ACK, b"")], True),
    ("SYN only", [(C, SYN, b"")], False),
    ("no ACK", [(C, SYN, b""), (S, SYN | ACK, b"")], False),
    ("no SYN+ACK", [(C, SYN, b""), (C, ACK, b"")], False),
    ("ACK before SYN+ACK", [(C, SYN, b""), (C, ACK, b""), (S, SYN | ACK, b"")], False),
    ("SYN+ACK before SYN", [(S, SYN | ACK, b""), (C, SYN, b""), (C, ACK, b"")], False),
    ("only the server's ACK", [(C, SYN, b""), (S, SYN | ACK, b""), (S, ACK, b"")], False),
    ("SYN+ACK from the client", [(C, SYN, b""), (C, SYN | ACK, b""), (C, ACK, b"")], False),
    ("refused", [(C, SYN, b""), (S, RST | ACK, b"")], False),
    ("reset instead of ACK", [(C, SYN, b""), (S, SYN | ACK, b""), (C, RST, b"")], False),
    ("reset with ACK", [(C, SYN, b""), (S, SYN | ACK, b""), (C, RST | ACK, b"")], False),
    ("FIN instead of ACK", [(C, SYN, b""), (S, SYN | ACK, b""), (C, FIN | ACK, b"")], False),
    ("mid-stream", [(C, ACK | PSH, b"data"), (S, ACK, b""), (C, ACK, b"")], False),
    ("mid-stream, bare ACKs", [(C, ACK, b""), (S, ACK, b""), (C, ACK, b"")], False),
]


@pytest.mark.parametrize(("segments", "done"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_three_way_handshake(segments: list[tuple[str, int, bytes]], done: bool) -> None:
    session = Tcp(dport=NO_PORT)
    for side, flags, payload in segments:
        session.segment(side, flags, payload)
    assert at_end(session.packets, "flow.isTwhOK()") is done


# With TCP Fast Open (RFC 7413) the SYN carries data.
def test_three_way_handshake_with_fast_open() -> None:
    session = Tcp(dport=80).segment("c", SYN, b"GET / HTTP/1.1\r\n").segment("s", SYN | ACK).segment("c", ACK)
    assert at_end(session.packets, "flow.isTwhOK()") is True


@pytest.mark.parametrize(
    "packets",
    [ping(), Udp().client(dns_query("example.com")).server(dns_answer("example.com")).packets],
    ids=["icmp", "udp"],
)
def test_only_tcp_has_a_handshake(packets: list[Packet]) -> None:
    assert at_end(packets, "flow.isTwhOK()") is False


def test_the_handshake_is_done_before_it_is_detected() -> None:
    assert once(tls().packets, "(flow.isTwhOK(), flow.getPackets())") == (True, 4)


# Directions and counters


@pytest.mark.parametrize(
    ("packets", "both"),
    [
        (ping(), True),
        (ping(reply=False), False),
        (Udp(dport=NO_PORT).client(noise(50)).client(noise(50)).packets, False),
        (Udp(dport=NO_PORT).client(noise(50)).server(noise(50)).packets, True),
        (Tcp().segment("c", SYN).packets, False),
        (Tcp().segment("s", SYN | ACK).packets, False),
        (Tcp().segment("c", SYN).segment("s", RST | ACK).packets, True),
    ],
)
def test_bidirectional(packets: list[Packet], both: bool) -> None:
    assert at_end(packets, "flow.isBidirectional()") is both


def test_a_flow_is_bidirectional_from_the_first_answer_on() -> None:
    packets = dns("example.com").packets
    source = (
        "def protocolDetected(flow, now, conf): note(flow.isBidirectional())\nflowEnd = protocolDetected\n"
    )
    assert with_script(source, packets).seen == [False, True]


COUNTERS = (
    "(flow.getPacketsSent(), flow.getPacketsRcvd(), flow.getPackets(), "
    "flow.getBytesSent(), flow.getBytesRcvd(), flow.getBytes(), flow.getGoodputBytes())"
)


@pytest.mark.parametrize("v6", [False, True])
def test_counters_of_udp(v6: bool) -> None:
    ends = (CLIENT6, SERVER6) if v6 else (CLIENT, SERVER)
    header = 48 if v6 else 28
    talk = Udp(*ends, dport=NO_PORT).client(noise(100)).server(noise(1000)).client(noise(1)).client(b"")
    sent, rcvd = 3 * header + 101, header + 1000
    assert at_end(talk.packets, COUNTERS) == (3, 1, 4, sent, rcvd, sent + rcvd, 1101)


@pytest.mark.parametrize("v6", [False, True])
def test_counters_of_tcp(v6: bool) -> None:
    ends = (CLIENT6, SERVER6) if v6 else (CLIENT, SERVER)
    base = 60 if v6 else 40
    session = Tcp(*ends, dport=NO_PORT).handshake().client(noise(300)).server(noise(2000), 1000).fin()
    # SYNs have 20 bytes of options. Client: SYN, ACK, data, FIN, ACK; server: SYN+ACK, 2 × data, FIN.
    sent, rcvd = 5 * base + 20 + 300, 4 * base + 20 + 2000
    assert at_end(session.packets, COUNTERS) == (5, 4, 9, sent, rcvd, sent + rcvd, 2300)


def test_counters_of_icmp_have_no_goodput() -> None:
    assert at_end(ping(), COUNTERS) == (1, 1, 2, 84, 84, 168, 0)
    assert at_end(ping(CLIENT6, SERVER6), COUNTERS) == (1, 1, 2, 104, 104, 208, 0)


def test_counters_of_sctp() -> None:
    chunk = struct.pack("!HHII", 40000, NO_PORT, 7, 0) + noise(60)
    assert at_end([Packet(T0, ip(132, CLIENT, SERVER, chunk))], COUNTERS) == (1, 0, 1, 92, 0, 92, 60)


def test_padding_is_not_counted() -> None:
    packet = Udp(dport=NO_PORT).client(b"abc").packets[0]
    padded = packet._replace(data=packet.data + bytes(15))  # to Ethernet's 46 bytes
    assert at_end([padded], COUNTERS) == (1, 0, 1, 31, 0, 31, 3)


def test_counters_count_dropped_packets_too() -> None:
    source = (
        "def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_user_01, 100)\n"
        f"def flowEnd(flow, now, conf): note({COUNTERS})\n"
    )
    packets = Udp(dport=NO_PORT).client(noise(100)).packets + [
        packet._replace(time=T0 + 10 + n)
        for n, packet in enumerate(Udp(dport=NO_PORT).client(noise(200)).packets * 2)
    ]
    judged = with_script(source, packets)
    assert judged.seen == [(3, 0, 3, 128 + 2 * 228, 0, 128 + 2 * 228, 500)]
    assert judged.verdict == "drop"


# Times


@pytest.mark.parametrize(
    ("times", "seen"),
    [
        ([0], (0, 0, 0)),
        ([0, 0.9], (0, 0, 0)),
        ([0, 1], (0, 1, 1)),
        ([0, 10.5, 25.25], (0, 25, 25)),
        ([0, 59], (0, 59, 59)),
    ],
)
def test_first_and_last_seen_and_duration(times: list[float], seen: tuple[int, int, int]) -> None:
    first = Udp(dport=NO_PORT).client(noise(50)).packets[0]
    packets = [first._replace(time=T0 + time) for time in times]
    read = f"(flow.getFirstSeen() - {T0}, flow.getLastSeen() - {T0}, flow.getDuration())"
    assert at_end(packets, read) == seen


def test_times_are_whole_epoch_seconds() -> None:
    read = "[type(value) for value in (flow.getFirstSeen(), flow.getLastSeen(), flow.getDuration(), now)]"
    assert once(ping(start=T0 + 0.75), read) == [int] * 4


def test_duration_grows_with_the_flow() -> None:
    talk = Udp(dport=NO_PORT, gap=10)
    for _ in range(14):
        talk.client(noise(60))
    source = "periodic_update_seconds = 30\ndef periodicUpdate(flow, now, conf): note(flow.getDuration())\n"
    seen = with_script(source, talk.packets).seen
    assert seen == sorted(seen)
    assert seen[0] >= 30
    assert seen[-1] <= 130


# Keys


def test_the_flow_key_is_the_same_in_both_directions() -> None:
    source = """
    def protocolDetected(flow, now, conf): note((flow.getPacketsRcvd(), flow.getKey()))
    protocolUpdated = flowEnd = protocolDetected
    """
    seen = with_script(source, dns("a.example.com", "b.example.com").packets).seen
    assert {rcvd for rcvd, _ in seen} >= {0, 1, 2}  # asked at packets of either direction
    assert len({key for _, key in seen}) == 1


def test_flow_keys_are_unique_among_live_flows() -> None:
    flows = [ping(CLIENT, f"203.0.113.{n}", T0 + n / 100) for n in range(1, 11)]
    flows += [ping(f"203.0.113.{n}", CLIENT, T0 + n / 100) for n in range(11, 21)]
    flows += [dns("example.com", sport=sport).packets for sport in (1000, 1001)]
    flows += [dns("example.com", sport=1000, client="192.168.1.11").packets]
    flows += [[packet._replace(vlan=5) for packet in dns("example.com", sport=1000).packets]]
    keys = ask(merge(*flows), "flow.getKey()")
    assert len(keys) == len(set(keys)) == 24
    assert all(isinstance(key, int) for key in keys)


@pytest.mark.parametrize(
    ("client", "server", "vlan", "keys"),
    [
        ("1.2.3.4", "5.6.7.8", 0, ("1.2.3.4@0", "5.6.7.8@0")),
        ("1.2.3.4", "5.6.7.8", 4094, ("1.2.3.4@4094", "5.6.7.8@4094")),
        ("fd00::1", "2001:DB8:0::5", 12, ("fd00::1@12", "2001:db8::5@12")),
    ],
)
def test_host_keys(client: str, server: str, vlan: int, keys: tuple[str, str]) -> None:
    packets = [packet._replace(vlan=vlan) for packet in ping(client, server)]
    assert once(packets, "(flow.getClientKey(), flow.getServerKey())") == keys


@pytest.mark.parametrize("syn_seen", [True, False])
def test_the_client_is_who_sent_the_syn_else_the_first_packet(syn_seen: bool) -> None:
    """Here the answer is the first that is seen; a SYN that comes behind it still decides."""
    session = Tcp(dport=80).segment("s", SYN | ACK)
    if syn_seen:
        session.segment("c", SYN)
    session.segment("c", ACK).client(http_request("example.com"))
    ends = (f"{CLIENT}@0", f"{SERVER}@0")
    expected = ends if syn_seen else ends[::-1]
    assert at_end(session.packets, "(flow.getClientKey(), flow.getServerKey())") == expected


# Classification

NAMES = (
    "(flow.getnDPIProtocolName(), flow.getnDPIMasterProtoId(), flow.getnDPIAppProtoId(), "
    "flow.getnDPICategoryName(), flow.getnDPICategoryId())"
)


@pytest.mark.parametrize(
    ("packets", "names"),
    [
        (dns("example.com").packets, ("DNS", 0, 5, "Network", 14)),
        (Tcp(dport=80).handshake().client(http_request("example.com")).packets, ("HTTP", 0, 7, "Web", 5)),
        (tls(name="example.com").packets, ("TLS", 0, 91, "Web", 5)),
        (tls(name="www.google.com").packets, ("TLS.Google", 91, 126, "Web", 5)),
        (ping(), ("ICMP", 0, 81, "Network", 14)),
        (ping(CLIENT6, SERVER6), ("ICMPV6", 0, 102, "Network", 14)),
        (Tcp(dport=22).handshake().turns(ssh_turns()).packets, ("SSH", 0, 92, "RemoteAccess", 12)),
        (quic_initial("example.com"), ("QUIC", 0, 188, "Web", 5)),
        (Udp(dport=NO_PORT).client(noise(80)).packets, ("Unknown", 0, 0, "Unspecified", 0)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_protocol_and_category(packets: list[Packet], names: tuple[Any, ...], library: str) -> None:
    assert once(packets, NAMES, library=library) == names


def test_unknown_until_detected() -> None:
    # Twelve packets of noise end the wait; the HTTP request that follows is classified then.
    session = Tcp(dport=NO_PORT).handshake()
    for _ in range(9):
        session.server(noise(20))
    session.client(http_request("late.example.com")).server(http_response())
    source = f"def protocolDetected(flow, now, conf): note((flow.getPackets(), {NAMES}))\n"
    assert with_script(source, session.packets).seen == [(12, ("Unknown", 0, 0, "Unspecified", 0))]


@pytest.mark.parametrize(
    ("kind", "category"),
    [
        ("mining_domains", ("Mining", 99)),
        ("malware_domains", ("Malware", 100)),
        ("advertisement_domains", ("Advertisement", 101)),
    ],
)
def test_lists_of_names_set_the_custom_categories(
    kind: str, category: tuple[str, int], tmp_path: Path, library: str
) -> None:
    names = tmp_path / "names"
    names.write_text("# a list\nlisted.example\n")
    toml = f'[lists]\n{kind} = ["{names}"]'
    read = "(flow.getnDPICategoryName(), flow.getnDPICategoryId())"
    for name in ("listed.example", "a.b.listed.example"):
        for packets in (
            dns(name).packets,
            tls(name=name).packets,
            Tcp(dport=80).handshake().client(http_request(name)).packets,
            quic_initial(name),
        ):
            assert once(packets, read, toml, library) == category
    assert once(tls(name="notlisted.example").packets, read, toml, library) == ("Web", 5)


@pytest.mark.parametrize(
    ("packets", "blacklisted"),
    [
        (ping("192.168.1.10", "198.51.100.1"), {"blacklisted.srv": True}),
        (ping("198.51.100.200", "192.168.1.10"), {"blacklisted.cli": True}),
        (ping("198.51.100.1", "198.51.100.2"), {"blacklisted.cli": True, "blacklisted.srv": True}),
        (ping("192.168.1.10", "198.51.101.1"), {}),
        (ping("fd00::1", "2001:db8:bad::1"), {"blacklisted.srv": True}),
        (ping("fd00::1", "2001:db8:bae::1"), {}),
        (dns("www.malware.example").packets, {"blacklisted.cat": True}),
        (dns("malware.example.com").packets, {}),
        (dns("notmalware.example").packets, {}),
    ],
)
def test_blacklisted(packets: list[Packet], blacklisted: dict[str, bool], tmp_path: Path) -> None:
    hosts, domains = tmp_path / "hosts", tmp_path / "domains"
    hosts.write_text("198.51.100.0/24 # a net\n2001:db8:bad::/48\n")
    domains.write_text("malware.example\n")
    toml = f'[lists]\nmalware_hosts = ["{hosts}"]\nmalware_domains = ["{domains}"]'
    read = "(flow.isBlacklisted(), flow.getBlacklistedInfo())"
    assert once(packets, read, toml) == (bool(blacklisted), blacklisted)


# DNS


def query(*labels: bytes) -> list[Packet]:
    return Udp().client(dns_query(labels)).packets


@pytest.mark.parametrize(
    ("packets", "asked"),
    [
        (dns("www.example.com").packets, "www.example.com"),
        (dns("first.example.com", "last.example.com").packets, "last.example.com"),
        (dns("example.com", server=SERVER6, client=CLIENT6).packets, "example.com"),
        (query(b"a\x01b", b"\xffc\x7f", b"example", b"com"), "a?b.?c?.example.com"),
        (query(b"\x00\n\r\t", b"example"), "????.example"),
        (query(b"_sip", b"_tcp", b"ex-ample", b"com"), "_sip._tcp.ex-ample.com"),
        (Tcp(dport=80).handshake().client(http_request("example.com")).packets, ""),
        (tls(name="example.com").packets, ""),
        (ping(), ""),
        (Udp(dport=NO_PORT).client(noise(80)).packets, ""),
    ],
)
def test_dns_query(packets: list[Packet], asked: str, library: str) -> None:
    assert at_end(packets, "flow.getDnsQuery()", library=library) == asked


# A blank is printable.
def test_dns_query_with_a_blank() -> None:
    assert at_end(query(b"a b", b"example"), "flow.getDnsQuery()") == "a b.example"


def test_dns_query_over_tcp() -> None:
    message = dns_query("tcp.example.com")
    session = Tcp(dport=53).handshake().client(struct.pack("!H", len(message)) + message)
    assert at_end(session.packets, "flow.getDnsQuery()") == "tcp.example.com"


def test_each_dns_query_is_seen_in_its_turn() -> None:
    names = ("a.example.com", "b.example.com", "c.example.com")
    source = """
    def protocolDetected(flow, now, conf):
        if flow.getPacketsSent() > flow.getPacketsRcvd(): note(flow.getDnsQuery())
    protocolUpdated = protocolDetected
    """
    assert with_script(source, dns(*names).packets).seen == list(names)


# Countries


@pytest.mark.parametrize(
    ("client", "server", "countries"),
    [
        ("198.51.100.1", "203.0.113.1", ("DE", "KP")),
        ("203.0.113.1", "198.51.100.1", ("KP", "DE")),
        ("198.51.100.127", "198.51.100.128", ("DE", None)),
        ("192.168.1.1", "203.0.113.1", (None, "KP")),
        ("2001:db8:1::1", "2001:db8:2::1", ("FR", None)),
    ],
)
def test_countries(
    client: str, server: str, countries: tuple[str | None, str | None], tmp_path: Path
) -> None:
    known = {"198.51.100.0/25": "DE", "203.0.113.0/24": "KP", "2001:db8:1::/48": "FR"}
    database = write_countries(tmp_path / "country.mmdb", known)
    toml = f'[geoip]\ncountry_database = "{database}"'
    assert once(ping(client, server), "(flow.getClientCountry(), flow.getServerCountry())", toml) == countries


def test_no_countries_without_a_database() -> None:
    assert once(ping(), "(flow.getClientCountry(), flow.getServerCountry())") == (None, None)


# TLS


@pytest.mark.parametrize(("version", "number"), [("1.0", 769), ("1.1", 770), ("1.2", 771), ("1.3", 772)])
@pytest.mark.parametrize("name", ["example.com", None])
def test_tls_version(version: str, number: int, name: str | None, library: str) -> None:
    assert at_end(tls(version, name).packets, "flow.getTLSVersion()", library=library) == number


@pytest.mark.parametrize(
    ("packets", "number"),
    [
        (quic_initial("example.com"), 772),
        (dns("example.com").packets, 0),
        (ping(), 0),
        (Tcp(dport=443).handshake().client(noise(100)).packets, 0),
        (Tcp(dport=443).handshake().packets, 0),
        (Tcp(dport=80).handshake().client(http_request("example.com")).packets, 0),
    ],
)
def test_tls_version_of_others(packets: list[Packet], number: int, library: str) -> None:
    assert at_end(packets, "flow.getTLSVersion()", library=library) == number


# nDPI keeps the version of the ClientHello.
@pytest.mark.parametrize(("version", "number"), [("1.0", 769), ("1.1", 770)])
def test_tls_version_is_the_one_that_the_server_chose(version: str, number: int, library: str) -> None:
    assert at_end(tls(version, offered="1.2").packets, "flow.getTLSVersion()", library=library) == number


# To nDPI this is IMAPS or SMTPS, not TLS.
@pytest.mark.parametrize(("port", "name"), [(993, "mail.example.org"), (465, None)])
def test_tls_version_on_mail_ports(port: int, name: str | None, library: str) -> None:
    assert at_end(tls("1.1", name, dport=port).packets, "flow.getTLSVersion()", library=library) == 770


# The match packet


def test_match_packet_is_the_one_that_completed_detection(library: str) -> None:
    hello = client_hello("example.com")
    whole = Tcp().handshake().client(hello).packets
    assert once(whole, "flow.getnDPIMatchPacket()", library=library) == {
        "payload_len": len(hello),
        "payload": hello,
    }


def test_match_packet_of_a_split_hello_is_its_last_part(library: str) -> None:
    hello = client_hello("example.com")
    split = Tcp().handshake().client(hello, 200).packets
    last = hello[len(hello) // 200 * 200 :]
    assert once(split, "flow.getnDPIMatchPacket()", library=library) == {
        "payload_len": len(last),
        "payload": last,
    }


def test_match_packet_of_dns(library: str) -> None:
    asked = dns_query("example.com")
    assert once(
        dns("example.com").packets[:1], "flow.getnDPIMatchPacket()['payload_len']", library=library
    ) == len(asked)


def test_match_packet_does_not_change_later() -> None:
    source = "def flowEnd(flow, now, conf): note(flow.getnDPIMatchPacket()['payload'])\n"
    assert with_script(source, dns("a.example.com", "b.example.com").packets).seen == [
        dns_query("a.example.com", number=0)
    ]


# protocolDetected was given up before: what completes the detection is still no guess.
def test_match_packet_of_a_late_detection() -> None:
    session = tls("1.3", "late.example.com")
    hello = session.packets[3].data[40:]
    value = at_end(session.packets, "flow.getnDPIMatchPacket()", "[limits]\ndetection_packets = 2")
    assert value == {"payload_len": len(hello), "payload": hello}


@pytest.mark.parametrize(
    "packets",
    [
        Tcp(dport=NO_PORT).handshake().client(noise(100)).packets,
        Udp(dport=NO_PORT).client(noise(100)).packets,
        Tcp(dport=443).handshake().packets,  # nDPI guesses by the port, at the end
    ],
)
def test_no_match_packet_where_nothing_matched(packets: list[Packet], library: str) -> None:
    nothing = {"payload_len": 0, "payload": None}
    assert at_end(packets, "flow.getnDPIMatchPacket()", library=library) == nothing


# getFullInfo

EVERY_FLOW = [
    "vlan",
    "proto.l4",
    "proto.l4_id",
    "proto.ndpi",
    "proto.ndpi_id",
    "proto.master_ndpi_id",
    "proto.ndpi_breed",
    "proto.ndpi_cat",
    "proto.ndpi_cat_id",
    "bytes",
    "goodput_bytes",
    "packets",
    "packets.sent",
    "packets.rcvd",
    "seen.first",
    "seen.last",
    "duration",
    "cli2srv.bytes",
    "cli2srv.packets",
    "srv2cli.bytes",
    "srv2cli.packets",
    "score",
    "host_server_name",
    "info",
    "flow.status",
    "status_map",
    "status_infos",
    "alerted_status",
    "ntopng.key",
    "hash_entry_id",
    "verdict.pass",
]
EACH_END = ["ip", "key", "port", "vlan", "mac", "host", "localhost", "blacklisted", "country", "pool_id"]


@pytest.mark.parametrize(
    ("packets", "more"),
    [
        (dns("example.com").packets, ["protos.dns.last_query"]),
        (
            tls(name="example.com").packets,
            [
                "protos.tls_version",
                "protos.tls.client_requested_server_name",
                "protos.tls.ja3.client_hash",
                "tcp.flags",
            ],
        ),
        (
            Tcp(dport=80).handshake().client(http_request("example.com")).packets,
            ["protos.http.last_method", "protos.http.last_url", "protos.http.last_return_code"],
        ),
        (ping(), ["icmp.type", "icmp.code"]),
        (Udp(dport=NO_PORT).client(noise(80)).packets, []),
    ],
)
def test_full_info_has_ntopngs_keys(packets: list[Packet], more: list[str]) -> None:
    info = at_end(packets, "flow.getFullInfo()")
    keys = {*EVERY_FLOW, *more, *(f"{side}.{name}" for side in ("cli", "srv") for name in EACH_END)}
    assert keys - info.keys() == set()


def test_full_info_of_a_dns_flow() -> None:
    packets = [
        packet._replace(vlan=7, mac=bytes(5) + bytes([1 + n]))
        for n, packet in enumerate(dns("Example.com").packets)
    ]
    source = """
    def protocolDetected(flow, now, conf):
        flow.triggerStatus(status_types.status_web_mining_detected, "why", 50, 40, 30)
    def flowEnd(flow, now, conf):
        note((flow.getFullInfo(), flow.getKey()))
    """
    ((info, key),) = with_script(source, packets).seen
    expected = {
        "vlan": 7,
        "proto.l4": "UDP",
        "proto.l4_id": 17,
        "proto.ndpi": "DNS",
        "proto.ndpi_id": 5,
        "proto.master_ndpi_id": 0,
        "proto.ndpi_cat": "Network",
        "proto.ndpi_cat_id": 14,
        "packets": 2,
        "packets.sent": 1,
        "packets.rcvd": 1,
        "bytes": sum(len(packet.data) for packet in packets),
        "cli2srv.bytes": len(packets[0].data),
        "srv2cli.bytes": len(packets[1].data),
        "goodput_bytes": sum(len(packet.data) - 28 for packet in packets),
        "seen.first": T0,
        "seen.last": T0,
        "duration": 0,
        "cli.ip": CLIENT,
        "cli.key": f"{CLIENT}@7",
        "cli.port": 40000,
        "cli.vlan": 7,
        "cli.mac": "00:00:00:00:00:01",
        "cli.localhost": True,
        "cli.blacklisted": False,
        "cli.country": None,
        "srv.ip": SERVER,
        "srv.key": f"{SERVER}@7",
        "srv.port": 53,
        "srv.mac": "00:00:00:00:00:02",
        "srv.localhost": False,
        "score": 50,
        "host_server_name": "example.com",
        "info": "example.com",
        "protos.dns.last_query": "example.com",
        "flow.status": 27,
        "status_map": 1 << 27,
        "status_infos": {27: {"score": 50, "script": "script", "info": "why"}},
        "alerted_status": 27,
        "ntopng.key": key,
        "verdict.pass": True,
    }
    assert {name: info[name] for name in expected} == expected


def test_full_info_of_tls() -> None:
    info = at_end(tls("1.2", "cert.example.org").packets, "flow.getFullInfo()")
    assert info["protos.tls_version"] == 771
    assert info["protos.tls.client_requested_server_name"] == "cert.example.org"
    assert info["protos.tls.notBefore"] == T0 - 86400
    assert info["protos.tls.notAfter"] == T0 + 86400
    assert info["tcp.three_way_handshake_ok"] is True


def test_full_info_of_http() -> None:
    session = (
        Tcp(dport=80).handshake().client(http_request("example.com", "/a?b")).server(http_response(code=404))
    )
    info = at_end(session.packets, "flow.getFullInfo()", "dpi.http_answers = true")
    assert info["protos.http.last_method"] == "GET"
    assert info["protos.http.last_url"].endswith("example.com/a?b")
    assert info["protos.http.last_return_code"] == 404
    assert info["info"] == info["protos.http.last_url"]


@pytest.mark.parametrize(("kind", "code"), [(8, 0), (3, 1), (11, 0)])
def test_full_info_of_icmp(kind: int, code: int) -> None:
    info = at_end([Packet(T0, icmp(CLIENT, SERVER, kind, code))], "flow.getFullInfo()")
    assert (info["icmp.type"], info["icmp.code"]) == (kind, code)
    assert info["proto.l4"] == "ICMP"


def test_full_info_tells_of_a_drop() -> None:
    source = """
    def protocolDetected(flow, now, conf):
        flow.setStatus(status_types.status_blacklisted)
        note(flow.getFullInfo()["verdict.pass"])
    """
    assert with_script(source, ping()).seen == [False]


# Beyond the contract


def test_info() -> None:
    assert at_end(dns("example.com").packets, "flow.getInfo()") == "example.com"
    assert at_end(tls(name="example.com").packets, "flow.getInfo()") == "example.com"
    assert at_end(ping(), "flow.getInfo()") == ""


def test_http_info() -> None:
    session = Tcp(dport=80).handshake().client(http_request("example.com", "/x", "POST", b"body"))
    info = at_end(session.packets, "flow.getHTTPInfo()")
    assert info["protos.http.last_method"] == "POST"
    assert info["protos.http.last_url"].endswith("example.com/x")
    assert at_end(ping(), "flow.getHTTPInfo()") == {}


@pytest.mark.parametrize(
    ("packets", "call", "part"),
    [
        (dns("example.com").packets, "getDNSInfo", {"protos.dns.last_query": "example.com"}),
        (
            tls("1.2", "cert.example.org").packets,
            "getTLSInfo",
            {
                "protos.tls_version": 771,
                "protos.tls.client_requested_server_name": "cert.example.org",
                "protos.tls.server_names": "cert.example.org",
                "protos.tls.notAfter": T0 + 86400,
            },
        ),
        (
            Tcp(dport=22).handshake().turns(ssh_turns()).packets,
            "getSSHInfo",
            {"protos.ssh.server_signature": "SSH-2.0-OpenSSH_9.6"},
        ),
    ],
)
def test_parts_of_the_full_info(packets: list[Packet], call: str, part: dict[str, Any]) -> None:
    found = at_end(packets, f"flow.{call}()")
    assert found | part == found
    assert at_end(packets, "flow.getFullInfo()") | found == at_end(packets, "flow.getFullInfo()")
    assert at_end(ping(), f"flow.{call}()") == {}


@pytest.mark.parametrize(
    ("client", "none"), [("0.0.0.0", True), ("0.0.0.1", False), ("::", True), ("::1", False)]
)
def test_client_no_ip(client: str, none: bool) -> None:
    server = "ff02::1" if ":" in client else "224.0.0.1"
    assert once(ping(client, server, reply=False), "flow.isClientNoIP()") is none


def test_tcp_stats() -> None:
    stats = at_end(Tcp(dport=NO_PORT).handshake().rst().packets, "flow.getTCPStats()")
    assert stats == {
        "tcp.flags": SYN | ACK | RST,
        "tcp.three_way_handshake_ok": True,
        "cli2srv.retransmissions": 0,
        "cli2srv.out_of_order": 0,
        "srv2cli.retransmissions": 0,
        "srv2cli.out_of_order": 0,
    }
    assert at_end(ping(), "flow.getTCPStats()") == {}


def test_segments_that_came_again_or_out_of_order() -> None:
    session = Tcp(dport=NO_PORT).handshake().client(noise(40, 1)).client(noise(40, 2)).server(noise(40, 3))
    packets = session.packets
    first, second, answer = packets[3:6]
    disturbed = [*packets[:3], second, first, first, answer, answer]
    disturbed = [packet._replace(time=T0 + n / 100) for n, packet in enumerate(disturbed)]
    for talk, client, server in ((packets, 0, 0), (disturbed, 2, 1)):
        for when in ("protocolDetected", "flowEnd"):
            assert ask(talk, "(flow.getClientTCPIssues(), flow.getServerTCPIssues())", when) == [
                (client, server)
            ]
    stats = at_end(disturbed, "flow.getTCPStats()")
    names = (
        "cli2srv.retransmissions",
        "cli2srv.out_of_order",
        "srv2cli.retransmissions",
        "srv2cli.out_of_order",
    )
    assert [stats[name] for name in names] == [1, 1, 1, 0]
    assert at_end(ping(), "(flow.getClientTCPIssues(), flow.getServerTCPIssues())") == (0, 0)


def test_goodput_in_percent() -> None:
    (packet,) = Udp(dport=NO_PORT).client(noise(84)).packets
    assert len(packet.data) == 112
    assert once([packet], "flow.getGoodputRatio()") == 75
    assert once(ping(), "flow.getGoodputRatio()") == 0


def test_any_risk() -> None:
    packets = Tcp(dport=8099).handshake().client(http_request("203.0.113.5")).packets
    assert at_end(packets, "flow.hasRisk()") is True
    assert (
        at_end(ping(), "(flow.hasRisk(), flow.hasRisk(-1), flow.hasRisk(64), flow.hasRisk(1000))")
        == (False,) * 4
    )


def test_risks() -> None:
    packets = Tcp(dport=8099).handshake().client(http_request("203.0.113.5")).packets
    risks = at_end(packets, "flow.getRiskInfo()")
    assert risks
    assert all(isinstance(number, int) and isinstance(name, str) for number, name in risks.items())
    read = f"[number for number in range(64) if flow.hasRisk(number)] == {sorted(risks)}"
    assert at_end(packets, read) is True


def test_ports_addresses_and_protocol() -> None:
    ends = ("getClientIP", "getClientPort", "getServerIP", "getServerPort", "getL4Proto")
    read = f"({', '.join(f'flow.{name}()' for name in ends)})"
    assert once(dns("example.com").packets, read) == (CLIENT, 40000, SERVER, 53, 17)
    assert once(ping(CLIENT6, SERVER6), read) == (CLIENT6, 0, SERVER6, 0, 58)


def test_reads_work_after_the_inspection_is_over() -> None:
    read = "(flow.getnDPIProtocolName(), flow.getDnsQuery(), flow.getTLSVersion(), flow.getHostName())"
    session = tls("1.2", "cert.example.org")
    for n in range(40):
        session.client(noise(100, n))
    assert at_end(session.packets, read) == ("TLS", "", 771, "cert.example.org")


def test_a_flow_seen_twice_is_two_flows() -> None:
    packets = dns("example.com").packets
    again = [packet._replace(time=packet.time + 100) for packet in packets]
    with bench(scripts={}) as made:
        made.feed([*packets, *again])
        made.engine.finish(T0 + 200)
    assert [record["flow"]["pkts_toserver"] for record in made.judged.flows] == [1, 1]


def test_replies_belong_to_the_flow() -> None:
    assert len(judge(dns("example.com").packets, scripts={}).flows) == 1
