"""Faults under traffic: whatever dies, hangs, floods or is flushed, what was decided stays decided.

Fail-open: no established connection breaks, and new ones work within a second. Fail-closed: nobody gets past
unjudged. Either way a flow that was dropped stays dropped, and afterwards nothing is left.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_keeper import ours, sets
from test_offload import until

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import CLIENT_MAC, SERVER, SERVER_MAC, Lab

pytestmark = pytest.mark.alone

BLOCKED = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
OPEN = PORTS + 'fail = "open"\nworkers = 2\n' + EVENTS + BLOCKED
CLOSED = OPEN.replace('fail = "open"', 'fail = "closed"')

# A connection that is open and talks 20 times a second, and new ones one after the other.
# Runs until a line comes; then tells of each how it went, and the longest time without success.
TRAFFIC = """
import json, socket, ssl, sys, threading, time
address = sys.argv[1]
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
over = threading.Event()

def opened(name, seconds):
    return context.wrap_socket(socket.create_connection((address, 443), seconds), server_hostname=name)

def ask(s, name):
    s.sendall(f"GET /x HTTP/1.1\\r\\nHost: {name}\\r\\n\\r\\n".encode())
    return s.recv(4096)

class Kind:
    def __init__(self, pause):
        self.pause, self.good, self.failed, self.gap, self.last = pause, 0, [], 0.0, time.monotonic()
        self.thread = threading.Thread(target=self.run)
    def step(self, what):
        try:
            what()
        except OSError as error:
            self.failed.append(repr(error))
        else:
            self.good += 1
            now = time.monotonic()
            self.gap, self.last = max(self.gap, now - self.last), now
    def report(self):
        gap = max(self.gap, time.monotonic() - self.last)
        return {"good": self.good, "failed": self.failed, "gap": round(gap, 2)}

class Kept(Kind):
    def run(self):
        with opened("kept.example", 20) as s:
            print("kept", flush=True)
            while not over.wait(self.pause):
                self.step(lambda: ask(s, "kept.example"))

class New(Kind):
    def once(self):
        with opened("new.example", 1) as s:
            ask(s, "new.example")
    def run(self):
        while not over.wait(self.pause):
            self.step(self.once)

kept, new = Kept(0.05), New(0.02)
kept.thread.start()
new.thread.start()
for line in sys.stdin:
    break
over.set()
for kind in (kept, new):
    kind.thread.join()
print(json.dumps({"kept": kept.report(), "new": new.report()}), flush=True)
"""

# A connection whose ClientHello asks for a blocked name; tells whether anything ever comes back.
DROPPED = """
import socket, ssl, sys
context = ssl.create_default_context()
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
with socket.create_connection((sys.argv[1], 443), 5) as plain:
    plain.settimeout(300)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="blocked.example")
    try:
        tls.do_handshake()
    except ssl.SSLWantReadError:
        pass
    plain.sendall(outgoing.read())
    print("asked", flush=True)
    plain.recv(1)
    print("answered", flush=True)
"""

# Sends TCP SYNs of that many distinct flows, from addresses of the client's network, as fast as it can.
FLOOD = """
import socket, struct, sys
source_mac, target_mac, target, count, port = sys.argv[1:]
head = bytes.fromhex((target_mac + source_mac).replace(":", "")) + b"\\x08\\x00"
target = socket.inet_aton(target)
def total(data):
    value = sum(struct.unpack(f"!{len(data) // 2}H", data))
    value = (value & 0xffff) + (value >> 16)
    return ~((value & 0xffff) + (value >> 16)) & 0xffff
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
tail = struct.pack("!IIBBHHH", 1, 0, 5 << 4, 2, 64000, 0, 0)
sent = 0
for number in range(int(count)):
    source = bytes((10, 99, 1 + (number >> 16) % 200, number >> 8 & 0xff))
    ports = struct.pack("!HH", 1024 + (number & 0xff) * 200 + (number >> 24), int(port))
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, source, target)
    ip = ip[:10] + struct.pack("!H", total(ip)) + ip[12:]
    segment = ports + tail
    check = total(source + target + struct.pack("!HH", 6, 20) + segment)
    try:
        s.send(head + ip + segment[:16] + struct.pack("!H", check) + segment[18:])
        sent += 1
    except OSError:
        pass
print(sent)
"""


class Traffic:
    """Clients that go on while something happens."""

    def __init__(self, lab: Lab, servers: ServerSet) -> None:
        self._servers = servers
        self._process = lab.client.popen(
            [sys.executable, "-c", TRAFFIC, SERVER.v4], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self._dropped = lab.client.popen([sys.executable, "-c", DROPPED, SERVER.v4], stdout=subprocess.PIPE)
        assert self._process.stdout
        assert self._process.stdout.readline() == "kept\n"
        assert self._dropped.stdout
        assert self._dropped.stdout.readline() == "asked\n"
        time.sleep(1.0)  # some traffic before

    def stop(self, *, always_dropped: bool = True) -> dict[str, Any]:
        """How it went. Whoever was dropped has not been heard, and has heard nothing, until now."""
        out, _ = self._process.communicate("\n", timeout=60)
        heard = self._dropped.poll() is not None
        self._dropped.kill()
        heard |= self._dropped.communicate()[0] != ""
        if always_dropped:
            assert not heard
            assert not self._servers.received(host="blocked.example")
        report = json.loads(out)
        assert isinstance(report, dict)
        return report


def ready(gateway: Gateway) -> int:
    return len(gateway.logged("worker_ready"))


def nothing_left(lab: Lab) -> None:
    assert ours(lab) == []
    assert sets(lab) == {}
    listed = lab.gateway.run(["conntrack", "-L"], check=True).stdout
    assert set(re.findall(r"mark=\d+", listed)) <= {"mark=0"}
    assert "nedge0" not in lab.gateway.run(["ip", "-br", "link"], check=True).stdout


@pytest.fixture
def faulty(lab: Lab, servers: ServerSet) -> Iterator[Lab]:
    yield lab
    nothing_left(lab)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
@pytest.mark.parametrize("config", [pytest.param(OPEN, id="open"), pytest.param(CLOSED, id="closed")])
def test_workers_killed_and_stopped(
    faulty: Lab, servers: ServerSet, config: str, how: signal.Signals
) -> None:
    with Gateway(faulty, config) as gateway:
        traffic = Traffic(faulty, servers)
        for _ in range(3):
            before = ready(gateway)
            for worker in gateway.workers():
                os.kill(worker, how)
            until(lambda before=before: ready(gateway) == before + 2)
            time.sleep(0.5)
        report = traffic.stop()
        assert gateway.stop() == 0
    assert report["kept"]["failed"] == []
    assert report["kept"]["gap"] < 1  # the kernel carries it
    assert report["new"]["good"] > 20
    if config is OPEN and how is signal.SIGKILL:
        assert report["new"]["gap"] < 2  # a second, and the patience of the client
    (totals,) = gateway.logged("gateway_totals")
    assert totals["worker_restarts"] == 6


@pytest.mark.parametrize("config", [pytest.param(OPEN, id="open"), pytest.param(CLOSED, id="closed")])
def test_supervisor_killed_and_started_again(
    faulty: Lab, servers: ServerSet, config: str, tmp_path: Path
) -> None:
    """And the machine's memory of decisions outlives it."""
    seen = tmp_path / "server.pcap"
    with Gateway(faulty, config) as gateway:
        traffic = Traffic(faulty, servers)
        pids = [gateway.pid, *gateway.workers()]
        os.kill(gateway.pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in pids))
        with faulty.capture(faulty.server, "eth0", seen, filter="dst port 25"):
            arrived = faulty.client.run(
                [sys.executable, "-c", "import socket, sys; socket.create_connection((sys.argv[1], 25), 1)",
                 SERVER.v4]
            )  # fmt: skip
            assert arrived.returncode != 0  # nobody listens there, at most
        time.sleep(1)
    gateway = Gateway(faulty, config)
    with gateway:
        time.sleep(1)
        report = traffic.stop()
        assert gateway.stop() == 0
    assert report["kept"]["failed"] == []
    assert report["kept"]["gap"] < 1
    passed = seen.stat().st_size > 24  # more than the file's header
    assert passed == (config is OPEN)
    if config is OPEN:
        assert report["new"]["gap"] < 2
    else:
        assert report["new"]["gap"] > 2  # nobody to judge, nothing new


def test_rules_flushed_again_and_again(faulty: Lab, servers: ServerSet) -> None:
    with Gateway(faulty, OPEN) as gateway:
        traffic = Traffic(faulty, servers)
        for number in range(1, 11):
            faulty.gateway.run(["iptables", "-t", "mangle", "-F"], check=True)
            faulty.gateway.run(["ip6tables", "-t", "mangle", "-F"], check=True)
            until(lambda number=number: len(gateway.logged("rules_restored")) >= number)
        report = traffic.stop(always_dropped=False)  # for some milliseconds there is nothing to drop it
        assert gateway.stop() == 0
    assert report["kept"]["failed"] == report["new"]["failed"] == []


def test_a_hundred_reloads(faulty: Lab, servers: ServerSet) -> None:
    """One after the other, half of them with another policy, a few with a wrong one. No packet is lost."""
    other = OPEN + "[limits]\nidle_seconds = 50\n"
    with Gateway(faulty, OPEN) as gateway:
        traffic = Traffic(faulty, servers)
        path = gateway.directory / "nedge.toml"
        for number in range(100):
            wrong = number % 10 == 5
            path.write_text("nonsense" if wrong else other if number % 2 else OPEN)
            event = "reload_failed" if wrong else "reloaded"
            before = len(gateway.logged(event))
            os.kill(gateway.pid, signal.SIGHUP)
            until(lambda event=event, before=before: len(gateway.logged(event)) > before)
        report = traffic.stop()
        assert gateway.stop() == 0
    assert report["kept"]["failed"] == report["new"]["failed"] == []
    (totals,) = gateway.logged("gateway_totals")
    assert totals["worker_restarts"] == 0


@pytest.mark.parametrize("config", [pytest.param(OPEN, id="open"), pytest.param(CLOSED, id="closed")])
def test_a_flood_of_syns(faulty: Lab, servers: ServerSet, config: str) -> None:
    """Half a million distinct flows, more than the queues take."""
    with Gateway(faulty, config) as gateway:
        traffic = Traffic(faulty, servers)
        flood = [sys.executable, "-c", FLOOD, CLIENT_MAC, SERVER_MAC, SERVER.v4, "500000", "81"]
        assert int(faulty.client.run(flood, check=True, timeout=120).stdout) > 400_000
        after = time.monotonic()
        until(lambda: faulty.client.run(["curl", "-sm1", f"http://{SERVER.v4}/"]).returncode == 0, 20)
        assert time.monotonic() - after < 10
        report = traffic.stop()
        assert gateway.stop() == 0
    assert report["kept"]["failed"] == []
    (totals,) = gateway.logged("gateway_totals")
    assert totals["worker_restarts"] == 0


def flooded(lab: Lab, port: int) -> int:
    """Flood from three processes, as one is hardly faster than the worker. Gives how many packets went."""
    flood = [sys.executable, "-c", FLOOD, CLIENT_MAC, SERVER_MAC, SERVER.v4, "40000"]
    targets = map(str, range(port, port + 3))
    floods = [lab.client.popen([*flood, target], stdout=subprocess.PIPE) for target in targets]
    return sum(int(each.communicate(timeout=120)[0]) for each in floods)


def overloads(lab: Lab) -> int:
    """How often the worker has met its queue full."""
    told = lab.gateway.run([sys.executable, "-m", "nedge", "status", "--json"], check=True).stdout
    return int(json.loads(told)["losses"]["queue_overloads"])


@pytest.mark.parametrize("config", [pytest.param(OPEN, id="open"), pytest.param(CLOSED, id="closed")])
def test_a_queue_that_overflows(faulty: Lab, servers: ServerSet, config: str) -> None:
    with Gateway(faulty, config.replace("workers = 2", "workers = 1\nqueue_length = 10")) as gateway:
        traffic = Traffic(faulty, servers)
        # The worker looks at its queue four times a second, and may find it full only with the next flood.
        for port in range(81, 111, 3):
            assert flooded(faulty, port) > 50_000
            if overloads(faulty):
                break
        report = traffic.stop()
        assert gateway.stop() == 0
    assert report["kept"]["failed"] == []
    (totals,) = gateway.logged("gateway_totals")
    assert (totals["queue_full"] > 0) == (config is CLOSED)
    assert (totals["unjudged_packets"] > 0) == (config is OPEN)
    assert totals["queue_overloads"] > 0
    assert totals["worker_restarts"] == 0
