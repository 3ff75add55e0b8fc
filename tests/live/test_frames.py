"""What the packets of a bridge come in: VLAN tags, frames that carry no IP, jumbo frames."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import pytest
from scapy.layers.dns import DNS, DNSQR
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw
from scapy.utils import rdpcap
from test_keeper import rules
from test_offload import https, until

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.host import Host, LabError
from nedge.lab.servers import ServerSet
from nedge.lab.topology import CLIENT, CLIENT_MAC, SERVER, SERVER_MAC, Lab

VLANS = PORTS + "vlans = [5, 7]\n" + EVENTS + '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
SEND = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for frame in sys.argv[1:]:
    s.send(bytes.fromhex(frame))
"""


def send(host: Host, *frames: Packet) -> None:
    host.run([sys.executable, "-c", SEND, *(bytes(frame).hex() for frame in frames)], check=True)


def query(name: str, vlan: int, port: int, *, v6: bool = False) -> Packet:
    """A DNS query from client to server."""
    ip = IPv6(src=CLIENT.v6, dst=SERVER.v6) if v6 else IP(src=CLIENT.v4, dst=SERVER.v4)
    tag = Dot1Q(vlan=vlan) if vlan else None
    head = Ether(src=CLIENT_MAC, dst=SERVER_MAC)
    rest = ip / UDP(sport=port, dport=53) / DNS(rd=1, qd=DNSQR(qname=name))
    return head / tag / rest if tag else head / rest


def answer(name: str, vlan: int, port: int) -> Packet:
    head = Ether(src=SERVER_MAC, dst=CLIENT_MAC) / Dot1Q(vlan=vlan) / IP(src=SERVER.v4, dst=CLIENT.v4)
    return head / UDP(sport=53, dport=port) / DNS(qr=1, qd=DNSQR(qname=name))


def arrived(path: Path) -> set[tuple[int, str]]:
    """VLAN and name of the queries in a capture."""
    return {
        (frame[Dot1Q].vlan if Dot1Q in frame else 0, frame[DNSQR].qname.decode().rstrip("."))
        for frame in rdpcap(str(path))
        if DNSQR in frame
    }


def flows(gateway: Gateway) -> dict[tuple[int, str], dict[str, Any]]:
    """Those of queries, by VLAN and name."""
    events = [event for event in gateway.events() if event["proto"] == "UDP"]
    return {(event["vlan"], event["ndpi"]["hostname"]): event for event in events}


@pytest.mark.parametrize("v6", [False, True])
def test_vlans_are_told_apart(lab: Lab, tmp_path: Path, v6: bool) -> None:
    """The same 5-tuple in each; in one of them the name is blocked."""
    names = {0: "none.example", 5: "five.example", 7: "blocked.example", 9: "nine.example"}
    with Gateway(lab, VLANS) as gateway:
        with lab.capture(lab.server, "eth0", tmp_path / "server.pcap"):
            for vlan in (5, 7, 0):
                send(lab.client, query(names[vlan], vlan, 4000, v6=v6))
            send(lab.client, query(names[9], 9, 4001, v6=v6))  # not told apart from no tag
            time.sleep(0.5)
        assert gateway.stop() == 0
        seen = flows(gateway)
    assert arrived(tmp_path / "server.pcap") == {(0, names[0]), (5, names[5]), (9, names[9])}
    assert {(vlan, name, event["nedge"]["verdict"]) for (vlan, name), event in seen.items()} == {
        (0, names[0], "pass"),
        (5, names[5], "pass"),
        (7, names[7], "drop"),
        (0, names[9], "pass"),
    }


def test_the_kernel_keeps_vlans_apart(lab: Lab, tmp_path: Path) -> None:
    """Marks and counters of the connections of each."""
    with Gateway(lab, VLANS) as gateway:
        for vlan in (5, 7):
            name = f"name{vlan}.example"
            send(lab.client, query(name, vlan, 4000))
            send(lab.server, *[answer(name, vlan, 4000)] * vlan)
        listed = lab.gateway.run(["conntrack", "-L"], check=True).stdout
        assert "zone=5" in listed
        assert "zone=7" in listed
        assert gateway.stop() == 0
        counts = {vlan: event["flow"]["pkts_toclient"] for (vlan, _), event in flows(gateway).items()}
    assert counts == {5: 5, 7: 7}
    assert "NEDGE" not in rules(lab)
    assert "NEDGE" not in lab.gateway.run(["ebtables-save"], check=True).stdout
    assert "*raw" not in rules(lab)  # it was not there before


def test_what_tells_vlans_apart_comes_back(lab: Lab, tmp_path: Path) -> None:
    with Gateway(lab, VLANS) as gateway:
        lab.gateway.run(["nft", "flush", "ruleset"], check=True)
        until(lambda: gateway.logged("rules_restored"))
        send(lab.client, query("five.example", 5, 4000))
        time.sleep(0.3)
        assert gateway.stop() == 0
        assert set(flows(gateway)) == {(5, "five.example")}


@pytest.mark.parametrize("dropped", ["neither", "arp", "other_frames"])
def test_frames_without_ip(lab: Lab, tmp_path: Path, dropped: str) -> None:
    config = PORTS + (f'{dropped} = "drop"\n' if dropped != "neither" else "") + EVENTS
    lldp = Ether(src=CLIENT_MAC, dst=SERVER_MAC, type=0x88CC) / Raw(bytes(50))
    request = Ether(src=CLIENT_MAC, dst="ff:ff:ff:ff:ff:ff") / ARP(
        hwsrc=CLIENT_MAC, psrc=CLIENT.v4, pdst="10.99.7.7"
    )
    ping = Ether(src=CLIENT_MAC, dst=SERVER_MAC) / IP(src=CLIENT.v4, dst=SERVER.v4) / ICMP()
    with Gateway(lab, config) as gateway:
        with lab.capture(lab.server, "eth0", tmp_path / "server.pcap"):
            send(lab.client, lldp, request, ping)
            time.sleep(0.5)
        assert gateway.stop() == 0
    seen = {frame.type for frame in rdpcap(str(tmp_path / "server.pcap")) if frame.src == CLIENT_MAC}
    lost = {"neither": set(), "arp": {0x0806}, "other_frames": {0x88CC}}[dropped]
    sent = {0x0800, 0x0806, 0x88CC}  # the client's kernel may send IPv6 of its own, too
    assert seen & sent == sent - lost
    assert "NEDGE" not in lab.gateway.run(["ebtables-save"], check=True).stdout


def test_a_bridge_that_cannot_be_told_from_another(lab: Lab) -> None:
    """Where the kernel cannot, nothing of the other bridge is dropped: nedge refuses, and leaves nothing."""
    lab.gateway.run(["ip", "link", "add", "other", "type", "bridge"], check=True)
    can = lab.gateway.run(["ebtables", "-A", "FORWARD", "--logical-in", "other", "-j", "ACCEPT"])
    if can.returncode == 0:
        with Gateway(lab, PORTS + 'arp = "drop"\n'):
            assert "--logical-in nedge0" in lab.gateway.run(["ebtables-save"], check=True).stdout
    else:
        with pytest.raises(LabError, match=r"cannot tell nedge0 from other .* set gateway.arp"):
            Gateway(lab, PORTS + 'arp = "drop"\n').__enter__()
    assert "NEDGE" not in lab.gateway.run(["ebtables-save"], check=True).stdout + rules(lab)


def test_jumbo_frames(lab: Lab, servers: ServerSet) -> None:
    """Packets larger than what is copied of them."""
    for host, port in (
        (lab.client, "eth0"),
        (lab.server, "eth0"),
        (lab.gateway, "lan0"),
        (lab.gateway, "wan0"),
    ):
        host.run(["ip", "link", "set", port, "mtu", "9000"], check=True)
    config = VLANS.replace("vlans = [5, 7]\n", "offload = false\n")
    with Gateway(lab, config) as gateway:
        assert https(lab, "www.example")
        assert not https(lab, "blocked.example")
        for size in ("8000", "8900"):
            done = lab.client.run(["ping", "-c", "1", "-W", "5", "-M", "do", "-s", size, SERVER.v4])
            assert done.returncode == 0
        big = lab.client.run(
            [
                "curl",
                "-sSm",
                "20",
                "-o",
                "/dev/null",
                "-w",
                "%{size_download}",
                f"http://{SERVER.v4}/bytes/20000000",
            ]
        )
        assert gateway.stop() == 0
        assert big.returncode == 0, big.stderr
        sizes = [event["flow"]["bytes_toserver"] for event in gateway.events() if event["proto"] == "ICMP"]
    assert sizes == [8028 + 8928]
