"""Rejecting, live: a bridge without an address, real clients that have to fail at once."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import rdpcap

from nedge.lab.host import Host
from nedge.lab.servers import ServerSet
from nedge.lab.topology import CLIENT_MAC, LAN_PORT, SERVER, SERVER_MAC, WAN_PORT, Lab

FAMILIES = pytest.mark.parametrize("family", ["v4", "v6"])
SOON = 1.0
"""Seconds in which whoever is rejected must know. All would wait longer for an answer that does not come."""

# Rejects packets to or from a port, and flows from the packet on that contains the word.
GATEWAY = """
import json, select, signal, socket, sys, time
from nedge.core.packet import Packet, decode, reverse_key
from nedge.kernel.bridge import Bridge
from nedge.kernel.queue import PacketQueue
from nedge.kernel.reject import Injector, rejection
from nedge.kernel.rules import RuleSet
from nedge.kernel.state import State

options = json.loads(sys.argv[1])
word, port = options["word"].encode(), options["port"].to_bytes(2)
macs, rejected, ports, spent, count, largest = {}, set(), set(), 0.0, 0, 0

def judge(data, mac, vlan, tracked, in_port):
    packet = decode(data)
    if not isinstance(packet, Packet):
        return 0
    size = len(packet.key) - 7 >> 1
    macs[packet.key[3 : 3 + size]] = mac
    hit = port in (packet.key[-4:-2], packet.key[-2:]) or packet.proto == options["proto"]
    if hit or (word and word in data):
        rejected.update((packet.key, reverse_key(packet.key)))
    return 2 if packet.key in rejected else 0

def reject(data, mac, vlan, in_port, out_port):
    global spent, count, largest
    packet = decode(data)
    target = packet.key[3 + (len(packet.key) - 7 >> 1) : -4]
    ports.add((socket.if_indextoname(in_port), socket.if_indextoname(out_port), mac.hex(":")))
    largest = max(largest, packet.ip_length)
    start = time.perf_counter()
    injector.send(rejection(data, in_port, out_port, mac, macs.get(target, b"")))
    spent += time.perf_counter() - start
    count += 1

def fail(error):
    raise error

signal.signal(signal.SIGTERM, lambda *_: sys.exit())
state = State("br0")
state.lock()
bridge = Bridge("br0", ["lan0"], ["wan0"], state)
rules = RuleSet("br0", ("lan0",), ("wan0",), 7, bypass=False)
injector = Injector([socket.if_nametoindex(name) for name in ("lan0", "wan0")])
queue = PacketQueue(7, judge, length=1000, fail_open=False, on_error=fail, gso=True, reject=reject)
rules.install()
bridge.open()
while bridge.ports_without_link():
    time.sleep(0.01)
print("ready", flush=True)
try:
    while True:
        select.select([queue], [], [])
        queue.drain()
finally:
    rules.remove()
    queue.close()
    bridge.close()
    state.unlock()
    print(json.dumps({
        "count": count, "us": spent / max(count, 1) * 1e6, "ports": sorted(ports), "largest": largest,
        "sent": injector.sent, "failed": injector.failed, "limited": injector.limited,
    }), flush=True)
"""

# Port 90 greets and listens, 91 sends without end while it listens, 92 answers datagrams. Tells how each
# connection ended, and when that was.
PEER = """
import json, socket, sys, threading, time
def serve(sock, endless):
    got, end = 0, "eof"
    def pour():
        try:
            while True:
                sock.sendall(bytes(65536))
        except OSError:
            pass
    try:
        sock.sendall(b"hello")
        if endless:
            threading.Thread(target=pour, daemon=True).start()
        while data := sock.recv(1 << 20):
            got += len(data)
    except OSError as error:
        end = type(error).__name__
    print(json.dumps({"got": got, "end": end, "at": time.time()}), flush=True)
def accept(listener, endless):
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock, endless), daemon=True).start()
def echo(sock):
    while True:
        data, peer = sock.recvfrom(2000)
        sock.sendto(b"answer to " + data, peer)
for family, any in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
    for kind, port in ((socket.SOCK_STREAM, 90), (socket.SOCK_STREAM, 91), (socket.SOCK_DGRAM, 92)):
        s = socket.socket(family, kind)
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind((any, port))
        if kind == socket.SOCK_STREAM:
            s.listen()
        target, args = (accept, (s, port == 91)) if kind == socket.SOCK_STREAM else (echo, (s,))
        threading.Thread(target=target, args=args, daemon=True).start()
print("ready", flush=True)
threading.Event().wait()
"""

# Connects, hears the greeting, reads for a while, sends something; tells how it ended, and when.
STREAM = """
import json, socket, sys, time
address, port, word, size, read = sys.argv[1:]
s = socket.create_connection((address, int(port)), timeout=5)
end = "nothing"
try:
    got = 0
    while got < int(read):
        got += len(s.recv(65536))
    sent = time.time()
    s.sendall(word.encode().ljust(int(size), b"."))
    while s.recv(65536):
        pass
except OSError as error:
    end = type(error).__name__
print(json.dumps({"end": end, "seconds": time.time() - sent, "at": time.time()}))
"""

# Sends datagrams from a connected socket until something comes back; tells what, and how long it took.
DATAGRAM = """
import json, socket, sys, time
address, port, *words = sys.argv[1:]
s = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
s.connect((address, int(port)))
s.settimeout(5)
for word in words:
    start = time.time()
    end = "answer"
    try:
        s.send(word.encode())
        s.recv(2000)
    except OSError as error:
        end = type(error).__name__
print(json.dumps({"end": end, "seconds": time.time() - start}))
"""

# Sends an echo request; tells type and code of the answer, and who it is from.
PING = """
import json, socket, sys, time
v6 = ":" in sys.argv[1]
s = socket.socket(*(socket.AF_INET6, 3, 58) if v6 else (socket.AF_INET, 3, 1))
s.settimeout(5)
start = time.time()
s.sendto(bytes([128, 0, 0, 0, 0, 0, 0, 0] if v6 else [8, 0, 0xF7, 0xFF, 0, 0, 0, 0]), (sys.argv[1], 0))
while True:
    data, peer = s.recvfrom(2000)
    data = data if v6 else data[20:]
    if data[0] in (1, 3):
        break
print(json.dumps({"answer": list(data[:2]), "source": peer[0], "seconds": time.time() - start}))
"""


def python(program: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", program, *map(str, arguments)]


def outcome(lab: Lab, program: str, *arguments: object) -> dict[str, Any]:
    done = lab.client.run(python(program, *arguments), check=True)
    result = json.loads(done.stdout)
    assert isinstance(result, dict)
    return result


class Rejecting:
    """The gateway."""

    def __init__(self, lab: Lab, *, word: str = "", port: int = 0, proto: int = -1) -> None:
        self._host = lab.gateway
        options = json.dumps({"word": word, "port": port, "proto": proto})
        self._process = lab.gateway.popen(python(GATEWAY, options), stdout=subprocess.PIPE)
        assert self._process.stdout
        assert self._process.stdout.readline() == "ready\n"

    def stop(self) -> dict[str, Any]:
        """What it did."""
        self._process.terminate()
        out, _ = self._process.communicate(timeout=10)
        assert self._process.returncode == 0
        report = json.loads(out)
        assert isinstance(report, dict)
        assert report["failed"] == report["limited"] == 0
        return report


class Peer:
    """The server."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._process = host.popen(python(PEER), stdout=subprocess.PIPE)
        assert self._process.stdout
        self._lines = self._process.stdout
        assert self._lines.readline() == "ready\n"

    def ending(self) -> dict[str, Any]:
        """How a connection ended; waits for it."""
        ending = json.loads(self._lines.readline())
        assert isinstance(ending, dict)
        return ending

    def stop(self) -> str:
        """What was not asked for."""
        self._process.terminate()
        return self._process.communicate()[0]


@pytest.fixture
def peer(lab: Lab) -> Iterator[Peer]:
    peer = Peer(lab.server)
    yield peer
    lab.server.stop_all()


@FAMILIES
def test_a_connection_is_refused(lab: Lab, peer: Peer, family: str) -> None:
    gateway = Rejecting(lab, port=90)
    address = getattr(SERVER, family)
    url = f"http://[{address}]:90/" if ":" in address else f"http://{address}:90/"
    start = time.monotonic()
    done = lab.client.run(["curl", "-sS", "-m", "5", url])
    assert done.returncode == 7, done.stderr  # "Failed to connect": ECONNREFUSED; 28 is a timeout
    assert time.monotonic() - start < SOON
    report = gateway.stop()
    assert report["ports"] == [[LAN_PORT, WAN_PORT, CLIENT_MAC]]
    assert report["count"] == 1
    assert peer.stop() == ""


@FAMILIES
def test_a_tls_client_is_reset_at_its_hello(lab: Lab, servers: ServerSet, family: str) -> None:
    gateway = Rejecting(lab, word="blocked.example")
    address = getattr(SERVER, family)
    for name, status in (("allowed.example", 0), ("blocked.example", 35)):
        connect = f"{name}:443:[{address}]" if ":" in address else f"{name}:443:{address}"
        start = time.monotonic()
        done = lab.client.run(
            ["curl", "-sSk", "-m", "5", "-o", "/dev/null", "--resolve", connect, f"https://{name}/"]
        )
        assert done.returncode == status, done.stderr
        assert time.monotonic() - start < 2 * SOON
    assert "reset" in done.stderr.lower()
    assert not servers.received(host="blocked.example")
    assert gateway.stop()["count"] >= 1  # more: the hello was sent again before the client had its RST


@FAMILIES
@pytest.mark.parametrize(
    ("port", "size", "read"),
    [
        pytest.param(90, 100, 5, id="request"),
        pytest.param(90, 1_000_000, 5, id="upload"),
        # What the server sends meanwhile makes the numbers of a first RST to the client stale.
        pytest.param(91, 100, 5_000_000, id="download"),
    ],
)
def test_both_ends_of_a_connection_end_at_once(
    lab: Lab, peer: Peer, family: str, port: int, size: int, read: int
) -> None:
    gateway = Rejecting(lab, word="blocked")
    client = outcome(lab, STREAM, getattr(SERVER, family), port, "blocked", size, read)
    server = peer.ending()
    assert client["end"] == "ConnectionResetError"
    assert client["seconds"] < SOON
    assert server["got"] == 0
    assert server["end"] == "ConnectionResetError" or port == 91  # there its other thread may hear of it
    assert abs(server["at"] - client["at"]) < SOON
    ports = gateway.stop()["ports"]
    assert [LAN_PORT, WAN_PORT, CLIENT_MAC] in ports
    assert set(map(tuple, ports)) <= {
        (LAN_PORT, WAN_PORT, CLIENT_MAC),
        (WAN_PORT, LAN_PORT, SERVER_MAC),
    }


@FAMILIES
def test_large_segments_are_rejected(family: str) -> None:
    with Lab(offloads=True) as lab:
        peer = Peer(lab.server)
        gateway = Rejecting(lab, word="blocked")
        client = outcome(lab, STREAM, getattr(SERVER, family), 90, "blocked", 1_000_000, 5)
        server = peer.ending()
        assert client["end"] == server["end"] == "ConnectionResetError"
        assert client["seconds"] < SOON
        assert abs(server["at"] - client["at"]) < SOON
        assert gateway.stop()["largest"] > 2048


@FAMILIES
def test_a_datagram_is_refused(lab: Lab, peer: Peer, family: str) -> None:
    gateway = Rejecting(lab, word="blocked")
    result = outcome(lab, DATAGRAM, getattr(SERVER, family), 92, "blocked")
    assert result["end"] == "ConnectionRefusedError"
    assert result["seconds"] < SOON
    assert gateway.stop()["count"] == 1


@FAMILIES
def test_a_client_hears_of_an_answer_that_is_refused(lab: Lab, peer: Peer, family: str) -> None:
    gateway = Rejecting(lab, word="answer to")
    result = outcome(lab, DATAGRAM, getattr(SERVER, family), 92, "question")
    assert result["end"] == "ConnectionRefusedError"
    assert result["seconds"] < SOON
    assert gateway.stop()["ports"] == [[WAN_PORT, LAN_PORT, SERVER_MAC]]


@FAMILIES
def test_dig_gives_up_at_once(lab: Lab, servers: ServerSet, family: str) -> None:
    Rejecting(lab, port=53)
    for transport in ("+notcp", "+tcp"):
        command = ["dig", "+tries=1", "+time=10", transport, f"@{getattr(SERVER, family)}", "www.example"]
        start = time.monotonic()
        done = lab.client.run(command)
        assert time.monotonic() - start < 2 * SOON
        assert done.returncode == 9
        assert "refused" in done.stdout
    lab.gateway.stop_all()
    assert not servers.received(host="www.example")


@FAMILIES
def test_an_echo_request_is_prohibited(lab: Lab, family: str) -> None:
    gateway = Rejecting(lab, proto=1 if family == "v4" else 58)
    result = outcome(lab, PING, getattr(SERVER, family))
    assert result["answer"] == ([3, 13] if family == "v4" else [1, 1])
    assert result["source"] == getattr(SERVER, family)
    assert result["seconds"] < SOON
    assert gateway.stop()["count"] == 1


def test_what_goes_over_the_wire(lab: Lab, peer: Peer, tmp_path: Path) -> None:
    """Where no other MAC is known it is the port's own; padded; nothing but the answer."""
    gateway = Rejecting(lab, port=90)
    captures = [tmp_path / "client.pcap", tmp_path / "server.pcap"]
    with (
        lab.capture(lab.client, "eth0", captures[0], filter="tcp"),
        lab.capture(lab.server, "eth0", captures[1], filter="tcp"),
    ):
        assert lab.client.run(["curl", "-sm5", f"http://{SERVER.v4}:90/"]).returncode == 7
    gateway.stop()
    address = lab.gateway.run(["cat", f"/sys/class/net/{LAN_PORT}/address"], check=True).stdout.strip()
    (asked, answered), nothing = (list(map(bytes, rdpcap(str(path)))) for path in captures)
    assert nothing == []
    assert answered[:6] == asked[6:12] == bytes.fromhex(CLIENT_MAC.replace(":", ""))
    assert answered[6:12].hex(":") == address
    assert len(answered) == 60
