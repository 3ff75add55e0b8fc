"""What the kernel does by itself: decided flows, their counters and ends, reloads, workers that die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

URL = "http://10.99.0.1"

# A TLS client that says what it hears of each path it asks for, one connection for all.
KEPT = """
import socket, ssl, sys, time
name = sys.argv[1]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
plain = None
while plain is None:  # there is no way to the server before the gateway is ready
    try:
        plain = socket.create_connection(("10.99.0.1", 443), 5)
    except OSError:
        time.sleep(0.1)
with context.wrap_socket(plain, server_hostname=name) as s:
    s.settimeout(1.5)
    for line in sys.stdin:
        try:
            s.sendall(f"GET /{line.strip()} HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n".encode())
            print("answered" if s.recv(4096) else "closed", flush=True)
        except TimeoutError:
            print("silence", flush=True)
"""


# A server that throws away what it hears, and clients of it: noise that no inspection makes anything of.
SINK = """
import selectors, socket
selector = selectors.DefaultSelector()
tcp, udp = socket.create_server(("10.99.0.1", 7777)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("10.99.0.1", 7777))
for sock in (tcp, udp):
    selector.register(sock, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        if key.fileobj is tcp:
            selector.register(tcp.accept()[0], selectors.EVENT_READ)
        elif not key.fileobj.recv(1 << 20) and key.fileobj is not udp:
            selector.unregister(key.fileobj)
"""
NOISE = """
import random, socket, time
noise = random.Random(7).randbytes(1 << 20)
def upload():
    with socket.create_connection(("10.99.0.1", 7777), 10) as sock:
        for _ in range(30):
            sock.sendall(noise)
def datagrams():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.connect(("10.99.0.1", 7777))
        for number in range(20_000):
            sock.send(noise[number : number + 900])
            if not number % 20:
                time.sleep(0.001)
"""


def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for a condition; fails when the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def curl(lab: Lab, url: str, *options: str, timeout: float = 3) -> bool:
    """Whether it is answered."""
    command = ["curl", "-sSk", "-o", "/dev/null", "-m", str(timeout), *options, url]
    return lab.client.run(command, timeout=timeout + 10).returncode == 0


def https(lab: Lab, name: str) -> bool:
    return curl(lab, f"https://{name}/", "--resolve", f"{name}:443:10.99.0.1", timeout=1.5)


def connections(lab: Lab) -> str:
    return lab.gateway.run(["conntrack", "-L"]).stdout


class Kept:
    """A connection that stays open."""

    def __init__(self, lab: Lab, name: str) -> None:
        self._lab = lab
        self._process = lab.client.popen(
            [sys.executable, "-c", KEPT, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def ask(self) -> str:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write("x\n")
        self._process.stdin.flush()
        return self._process.stdout.readline().strip()

    def close(self) -> None:
        self._lab.client.stop(self._process, grace=0)


@contextmanager
def kept(lab: Lab, name: str) -> Iterator[Kept]:
    connection = Kept(lab, name)
    try:
        yield connection
    finally:
        connection.close()


def test_counters_are_those_of_the_kernel(lab: Lab, servers: ServerSet) -> None:
    size = 20_000_000
    with Gateway(lab, PORTS + EVENTS) as gateway:
        for scheme in ("http", "https"):
            assert curl(lab, f"{scheme}://10.99.0.1/bytes/{size}", timeout=30)
        queued = lab.gateway.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.split()[7]
        assert int(queued) < 100, "bulk data must not come up"
        closed = time.monotonic()
        until(lambda: len(gateway.events()) == 2, 20)
        assert time.monotonic() - closed < 16
        for event in gateway.events():
            flow = event["flow"]
            assert flow["reason"] == "closed"
            assert size < flow["bytes_toclient"] < size * 1.1
            # 1,448 bytes of payload a packet, and the packets of the handshakes
            assert size / 1448 <= flow["pkts_toclient"] < size / 1448 * 1.2
            assert flow["pkts_toserver"] > 10


@pytest.mark.parametrize(("kind", "packets"), [("upload", 20_000), ("datagrams", 20_000)])
def test_little_comes_up_of_what_nobody_knows(lab: Lab, kind: str, packets: int) -> None:
    """Undecided flows have no other bound than that they are decided soon, known or not."""
    with Gateway(lab, PORTS) as gateway:
        sink = lab.server.popen([sys.executable, "-c", SINK], stdout=subprocess.PIPE)
        try:
            assert sink.stdout
            assert sink.stdout.readline().strip() == "ready"
            lab.client.run([sys.executable, "-c", f"{NOISE}{kind}()"], check=True, timeout=60)
        finally:
            lab.server.stop(sink, grace=0)
        (line,) = (line for line in connections(lab).splitlines() if " dport=7777 " in line)
        counted = re.findall(r"packets=(\d+)", line)
        gateway.stop()
        (totals,) = gateway.logged("gateway_totals")
    assert sum(map(int, counted)) >= packets
    assert totals["unclassified"] == 1
    assert totals["packets"] < packets / 50


def test_a_blocked_connection_is_dropped_by_the_kernel(lab: Lab, servers: ServerSet) -> None:
    settings = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
    with Gateway(lab, PORTS + EVENTS + settings) as gateway:
        assert not https(lab, "blocked.example")
        assert "mark=536870912" in connections(lab)  # drop, generation 0, in the upper four bits
        assert https(lab, "www.example")
        gateway.stop()
        assert [e["nedge"]["verdict"] for e in gateway.events()].count("drop") == 1
    assert not servers.received(host="blocked.example")


def test_other_bits_of_marks_stay(lab: Lab, servers: ServerSet) -> None:
    """Somebody else marks the connection, and we do not notice, nor disturb."""
    with Gateway(lab, PORTS + EVENTS):
        mark = ["-j", "CONNMARK", "--set-xmark", "0x5/0xff"]
        lab.gateway.run(["iptables", "-t", "mangle", "-A", "PREROUTING", *mark], check=True)
        assert curl(lab, URL)
        assert "mark=805306373" in connections(lab)  # 0x30000005
        lab.gateway.run(["iptables", "-t", "mangle", "-D", "PREROUTING", *mark], check=True)


def test_marks_go_with_the_gateway(lab: Lab, servers: ServerSet) -> None:
    """Another start may decide by another policy: what the last one decided must not outlive it."""
    blocked = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
    with kept(lab, "www.example") as connection:
        with Gateway(lab, PORTS + EVENTS + blocked):
            assert connection.ask() == "answered"
            assert not https(lab, "blocked.example")
            assert "mark=268435456" in connections(lab)  # pass
            assert "mark=536870912" in connections(lab)  # drop
        listed = connections(lab)
        assert "ESTABLISHED" in listed
        assert set(re.findall(r"mark=\d+", listed)) == {"mark=0"}


def test_a_crashed_gateways_decisions_stay(lab: Lab, servers: ServerSet) -> None:
    blocked = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
    with kept(lab, "www.example") as connection:
        with Gateway(lab, PORTS + EVENTS + blocked) as gateway:
            assert connection.ask() == "answered"
            (gateway.directory / "nedge.toml").write_text(PORTS + EVENTS + blocked)
            os.kill(gateway.pid, signal.SIGHUP)
            until(lambda: '"reloaded"' in gateway.log)
            assert connection.ask() == "answered"
            assert not https(lab, "blocked.example")
            (worker,) = gateway.workers()
            os.kill(gateway.pid, signal.SIGKILL)
            until(lambda: not Path(f"/proc/{worker}").exists())  # it ends with its supervisor
            assert connection.ask() == "answered"
        with Gateway(lab, PORTS + EVENTS + blocked):
            assert connection.ask() == "answered"
            # Generation 1: share and generation in the upper four bits.
            assert {"mark=1342177280", "mark=1610612736"} <= set(re.findall(r"mark=\d+", connections(lab)))


def test_reload(lab: Lab, servers: ServerSet) -> None:
    """Live connections follow a change of policy, both ways; a policy that is wrong changes nothing."""
    blocked = '[scripts.blocked_hostname]\ndomains = ["www.example"]\n'
    with Gateway(lab, PORTS + EVENTS) as gateway, kept(lab, "www.example") as connection:
        assert connection.ask() == "answered"
        path = gateway.directory / "nedge.toml"

        def reload(text: str, outcome: str) -> None:
            before = gateway.log.count(outcome)
            path.write_text(PORTS + EVENTS + text)
            os.kill(gateway.pid, signal.SIGHUP)
            until(lambda: gateway.log.count(outcome) > before)

        reload(blocked, '"reloaded"')
        assert connection.ask() == "silence"
        assert not https(lab, "www.example")
        assert https(lab, "allowed.example")
        reload("[verdict]\ndrop_score = 'x'\n", '"reload_failed"')
        assert "verdict.drop_score: found 'x'" in gateway.log
        assert not https(lab, "www.example")
        reload("", '"reloaded"')
        assert https(lab, "www.example")
        until(lambda: connection.ask() == "answered")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_worker_that_dies_or_hangs_is_replaced(lab: Lab, servers: ServerSet, how: signal.Signals) -> None:
    settings = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
    with Gateway(lab, PORTS + EVENTS + settings) as gateway, kept(lab, "www.example") as connection:
        assert connection.ask() == "answered"
        assert not https(lab, "blocked.example")
        (worker,) = gateway.workers()
        os.kill(worker, how)
        assert connection.ask() == "answered"  # the kernel carries on
        until(lambda: gateway.log.count("worker_ready") == 2, 3)
        assert https(lab, "www.example")
        assert not https(lab, "blocked.example")
        assert connection.ask() == "answered"
        assert gateway.workers() != [worker]


def test_workers_share_the_load(lab: Lab, servers: ServerSet) -> None:
    settings = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
    with Gateway(lab, PORTS + "workers = 2\n" + EVENTS + settings) as gateway:
        assert '"workers": 2' in gateway.log
        for name in ("www.example", "allowed.example"):
            assert https(lab, name)
        assert not https(lab, "blocked.example")
        assert curl(lab, "http://[fd99::1]/")
        gateway.stop()
        assert gateway.status == 0
        assert len(gateway.events()) == 4


# A ClientHello above 2 KB, in one segment where the path takes it whole; prints what came of it.
LARGE_HELLO = """
import socket, ssl, sys
name = sys.argv[1]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["http/1.1", *(f"protocol-{n:06}" for n in range(160))])
try:
    with socket.create_connection(("10.99.0.1", 443), 3) as plain:
        plain.settimeout(1.5)
        with context.wrap_socket(plain, server_hostname=name):
            print("answered")
except OSError:
    print("silence")
"""


@pytest.mark.parametrize("offloads", [True, False])
def test_a_name_in_a_large_hello_is_found(offloads: bool) -> None:
    """With segmentation offload it is one packet, larger than what comes up of a packet."""
    settings = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
    with (
        Lab(offloads=offloads) as lab,
        ServerSet(lab) as servers,
        Gateway(lab, PORTS + EVENTS + settings),
    ):
        for name, expected in (("blocked.example", "silence"), ("www.example", "answered")):
            done = lab.client.run([sys.executable, "-c", LARGE_HELLO, name], timeout=15)
            assert (name, done.stdout.strip()) == (name, expected)
        assert not servers.received(host="blocked.example")
        assert servers.received(host="www.example")


# A data segment of an established connection, far outside of its window: invalid to connection tracking.
STRAY = """
import socket, struct, sys
port = int(sys.argv[1])
def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xffff) + (total >> 16)
    return ~(total + (total >> 16)) & 0xffff
source, target = socket.inet_aton("10.99.0.2"), socket.inet_aton("10.99.0.1")
tcp = struct.pack("!HHIIBBHHH", port, 443, 0x7fffffff, 1, 0x50, 0x18, 1000, 0, 0) + b"stray!"
pseudo = source + target + struct.pack("!BBH", 0, 6, len(tcp))
tcp = tcp[:16] + struct.pack("!H", checksum(pseudo + tcp)) + tcp[18:]
with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP) as s:
    s.sendto(tcp, ("10.99.0.1", 0))
"""


def test_an_invalid_packet_of_a_decided_connection_comes_up_once(lab: Lab, servers: ServerSet) -> None:
    def queued() -> int:
        return int(lab.gateway.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.split()[7])

    with Gateway(lab, PORTS + EVENTS) as gateway, kept(lab, "www.example") as connection:
        assert connection.ask() == "answered"
        found = re.search(r"sport=(\d+) dport=443", connections(lab))
        assert found
        before = queued()
        for _ in range(3):
            lab.client.run([sys.executable, "-c", STRAY, found[1]], check=True)
        time.sleep(0.5)
        assert queued() - before <= 3
        assert connection.ask() == "answered"
        assert "worker_restarted" not in gateway.log


def test_a_query_is_counted_once(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, PORTS + EVENTS) as gateway:
        assert lab.client.run(["dig", "+short", "@10.99.0.1", "www.example"]).returncode == 0
        gateway.stop()
        (event,) = gateway.events()
        assert (event["flow"]["pkts_toserver"], event["flow"]["pkts_toclient"]) == (1, 1)
