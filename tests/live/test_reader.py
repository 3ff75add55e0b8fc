"""Captures of real clients and servers: nedge and Debian's ndpiReader see the same flows in them."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import traffic
from ndpireader import compare, differences, ndpi_reader, nedge_replay, parse_flows
from support import require
from traffic import Exchange, Step, dns_query, http_get, over_tcp

from nedge.lab.servers import ServerSet
from nedge.lab.topology import LAN_PORT, Lab

Plain = tuple[Lab, ServerSet]

FAMILIES = pytest.mark.parametrize("family", ["v4", "v6"])


@pytest.fixture(scope="module")
def plain() -> Iterator[Plain]:
    """A plain bridge between client and servers."""
    require(shutil.which("ndpiReader"), "ndpiReader is not installed")
    with Lab(bridge=True) as lab, ServerSet(lab) as servers:
        yield lab, servers


def address_of(plain: Plain, family: str) -> str:
    return str(getattr(plain[1].address, family))


def curl(plain: Plain, family: str, *arguments: str) -> None:
    lab, servers = plain
    command = [
        "curl",
        f"-{family[1]}",
        "-sS",
        "--cacert",
        str(servers.ca),
        "--max-time",
        "20",
        "-o",
        "/dev/null",
    ]
    done = lab.client.run([*command, *arguments], timeout=30)
    assert done.returncode == 0, done.stderr


def http(plain: Plain, family: str) -> None:
    for path in ("/", "/bytes/0", "/bytes/300000"):
        curl(plain, family, f"http://www.example{path}")
    curl(plain, family, "http://www.example/1", "http://www.example/2", "http://www.example/3")
    curl(plain, family, "-d", "x" * 5000, "http://www.example/post")
    requests = [Step([http_get(name)]) for name in ("a.example", "b.example", "a.example")]
    split = [Step([b"GET / HT", b"TP/1.1\r\nHo", b"st: www.google.com\r\n\r\n"])]
    address = address_of(plain, family)
    outcomes = traffic.run(
        plain[0].client, Exchange("tcp", address, 80, requests), Exchange("tcp", address, 80, split)
    )
    assert [outcome.answered for outcome in outcomes] == [[True] * 3, [True]]


def https(plain: Plain, family: str) -> None:
    for version in ("1.2", "1.3"):
        for name in ("www.example", "blocked.example", "a.lab.example"):
            curl(plain, family, f"--tlsv{version}", "--tls-max", version, f"https://{name}/bytes/50000")
    for port in (4432, 4433):
        curl(plain, family, f"https://www.example:{port}/")
    curl(plain, family, "-k", "https://www.example:4434/")
    curl(plain, family, "-k", "https://www.google.com/")
    address = address_of(plain, family)
    hellos = [traffic.post_quantum_hello("www.example"), traffic.client_hello("www.facebook.com")]
    outcomes = traffic.run(
        plain[0].client,
        *(Exchange("tcp", address, 443, [Step(traffic.pieces(hello, 300))]) for hello in hellos),
    )
    assert all(outcome.answered == [True] for outcome in outcomes)


def dns(plain: Plain, family: str) -> None:
    address = address_of(plain, family)
    for arguments in (["A"], ["AAAA"], ["MX"], ["+tcp", "A"], ["+bufsize=512", "TXT"], ["+noedns", "PTR"]):
        dig = ["dig", "+tries=1", "+time=10", f"@{address}", "www.debian.example", *arguments]
        done = plain[0].client.run(dig, timeout=15)
        assert done.returncode == 0, done.stdout
    names = ("one.example", "two.example", "www.google.com")
    outcomes = traffic.run(
        plain[0].client,
        Exchange("udp", address, 53, [Step([dns_query(name)]) for name in names]),
        Exchange(
            "udp",
            address,
            53,
            [Step([dns_query(name, kind) for kind in ("A", "AAAA")], answers=2) for name in names],
        ),
        Exchange("tcp", address, 53, [Step([over_tcp(dns_query(name))]) for name in names]),
    )
    assert all(all(outcome.answered) for outcome in outcomes)


def ssh(plain: Plain, family: str) -> None:
    lab, servers = plain
    for command in (["true"], ["head", "-c", "100000", "/dev/zero"]):
        argv = servers.ssh_command(*command, address=address_of(plain, family))
        done = lab.client.run(argv, timeout=30)
        assert done.returncode == 0, done.stderr


def quic(plain: Plain, family: str) -> None:
    client = [sys.executable, "-m", "nedge.lab.quic_client", address_of(plain, family)]
    for name, path in (("www.example", "/"), ("www.youtube.com", "/bytes/100000")):
        done = plain[0].client.run([*client, name, "--path", path, "--timeout", "20"], timeout=30)
        assert done.returncode == 0, done.stderr


def icmp(plain: Plain, family: str) -> None:
    """Pings, whole and in fragments; a closed port, over UDP and TCP."""
    require(shutil.which("ping"), "ping is not installed")
    address = address_of(plain, family)
    for size in ("56", "5000"):
        ping = ["ping", "-n", "-c", "3", "-i", "0.01", "-W", "10", "-s", size, address]
        done = plain[0].client.run(ping, timeout=30)
        assert done.returncode == 0, done.stdout
    closed = [Exchange(proto, address, 9, [Step([b"anyone?"])]) for proto in ("udp", "tcp")]
    outcomes = traffic.run(plain[0].client, *closed)
    assert all("ConnectionRefused" in outcome.error for outcome in outcomes)


def fragments(plain: Plain, family: str) -> None:
    with traffic.serving(plain[0].server, "echo", "4040"):
        datagram = bytes(range(256)) * 20
        (outcome,) = traffic.run(
            plain[0].client, Exchange("udp", address_of(plain, family), 4040, [Step([datagram])] * 3)
        )
    assert outcome.answers == [[datagram]] * 3


def conversations(plain: Plain, family: str) -> None:
    """Protocols without a server in the lab, played by both sides: FTP, mail, NTP, SNMP, SIP, mDNS ..."""
    with traffic.serving(plain[0].server, "serve"):
        client = [sys.executable, traffic.__file__, "converse", address_of(plain, family)]
        done = plain[0].client.run(client, timeout=60)
        assert done.returncode == 0, done.stderr


KINDS: dict[str, tuple[Callable[[Plain, str], None], set[str]]] = {
    "http": (http, {"HTTP"}),
    "https": (https, {"TLS"}),
    "dns": (dns, {"DNS"}),
    "ssh": (ssh, {"SSH"}),
    "quic": (quic, {"QUIC"}),
    "icmp": (icmp, set()),
    "fragments": (fragments, set()),
    "conversations": (
        conversations,
        {
            "FTP_CONTROL",
            "SMTP",
            "POP3",
            "IMAP",
            "Redis",
            "MQTT",
            "NTP",
            "SNMP",
            "SIP",
            "MDNS",
            "STUN",
            "Unknown",
        },
    ),
}


@FAMILIES
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_flows(plain: Plain, kind: str, family: str, tmp_path: Path) -> None:
    generate, protocols = KINDS[kind]
    capture = tmp_path / f"{kind}.pcap"
    with plain[0].capture(plain[0].gateway, LAN_PORT, capture):
        generate(plain, family)
    flows = ndpi_reader(capture)
    assert protocols <= {name for flow in flows for name in (flow.protocol, flow.protocol.partition(".")[0])}
    assert all(sum(flow.packets) for flow in flows)
    assert [str(difference) for difference in compare(capture)] == []


@pytest.fixture(scope="module")
def names_asked(plain: Plain, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A capture of DNS and TLS."""
    path = tmp_path_factory.mktemp("capture") / "ethernet.pcap"
    with plain[0].capture(plain[0].gateway, LAN_PORT, path, filter="tcp or udp"):
        for family in ("v4", "v6"):
            dns(plain, family)
            https(plain, family)
    return path


@pytest.mark.parametrize("link_type", ["vlan", "qinq", "raw", "cooked"])
def test_other_link_types(names_asked: Path, link_type: str, tmp_path: Path) -> None:
    """A real capture, as other places in a network would show it."""
    from scapy.layers.inet import IP
    from scapy.layers.inet6 import IPv6
    from scapy.layers.l2 import CookedLinux, Dot1Q, Ether
    from scapy.utils import PcapWriter, rdpcap

    written = tmp_path / f"{link_type}.pcap"
    number = {"raw": 101, "cooked": 113}.get(link_type, 1)
    with PcapWriter(str(written), linktype=number) as writer:
        for packet in rdpcap(str(names_asked)):
            ip = packet.getlayer(IP) or packet.getlayer(IPv6)
            tags = {"vlan": Dot1Q(vlan=7), "qinq": Dot1Q(vlan=9) / Dot1Q(vlan=7)}
            frame = (
                Ether(bytes(packet)[:12] + b"\x81\x00") / tags[link_type] / ip
                if link_type in tags
                else CookedLinux(proto=packet.type) / ip
                if link_type == "cooked"
                else ip
            )
            frame.time = packet.time
            writer.write(frame)
    flows = ndpi_reader(written)
    assert len(flows) >= 40
    assert {flow.vlan for flow in flows} == {7 if link_type in ("vlan", "qinq") else 0}
    assert [str(difference) for difference in compare(written)] == []


REPORT = """
Guessed flow protos:\t6

\t1\tTCP 10.0.0.2:4711 <-> 10.0.0.1:443 [VLAN: 5][proto: 91.196/TLS.DoH_DoT][Encrypted][Confidence: DPI]\
[cat: Network/14][3 pkts/222 bytes <-> 2 pkts/148 bytes][Goodput ratio: 4/0][Hostname/SNI: dns.example]
\t2\tUDP [2001:db8::1::2]:53 -> [fd99::1]:53 [proto: 5/DNS][ClearText][Confidence: DPI][cat: Network/14]\
[1 pkts/62 bytes -> 0 pkts/0 bytes][< 1 sec][User-Agent: [1 pkts/1 bytes -> 9 pkts/9 bytes]]
\t3\t47 10.0.0.2:0 -> 10.0.0.1:0 [proto: 80/GRE][ClearText][Confidence: DPI][cat: Network/14]\
[1 pkts/58 bytes -> 0 pkts/0 bytes]

Undetected flows:
\t1\tUDP 10.0.0.2:4001 -> 10.0.0.1:4002 [proto: 0/Unknown][ClearText][Confidence: Unknown]\
[1 pkts/62 bytes -> 0 pkts/0 bytes]
"""


def test_reading_ndpi_readers_report() -> None:
    told = [(str(flow), flow.protocol, flow.category, flow.packets) for flow in parse_flows(REPORT)]
    assert told == [
        ("6 vlan 5 10.0.0.2:4711 -> 10.0.0.1:443", "TLS.DoH_DoT", "Network", (3, 2)),
        ("17 [2001:db8::1::2]:53 -> [fd99::1]:53", "DNS", "Network", (1, 0)),
        ("47 10.0.0.2:0 -> 10.0.0.1:0", "GRE", "Network", (1, 0)),
        ("17 10.0.0.2:4001 -> 10.0.0.1:4002", "Unknown", "Unspecified", (1, 0)),
    ]


def test_differences_are_found(plain: Plain, tmp_path: Path) -> None:
    """The comparison itself can fail: two captures of the same kind are not the same."""
    captures = [tmp_path / "1.pcap", tmp_path / "2.pcap"]
    for capture in captures:
        with plain[0].capture(plain[0].gateway, LAN_PORT, capture, filter="udp"):
            traffic.run(
                plain[0].client,
                Exchange("udp", address_of(plain, "v4"), 53, [Step([dns_query("a.example")])]),
            )
    found = differences(ndpi_reader(captures[0]), nedge_replay(captures[1]))
    assert [difference.what for difference in found] == ["missing", "extra"]


def test_a_capture_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="could not open"):
        ndpi_reader(tmp_path / "nonexistent.pcap")
