"""Quarantine, live: hosts that the kernel cuts off, on a real bridge with the gateway's own rules."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support import require

from nedge.lab.host import Host
from nedge.lab.servers import ServerSet
from nedge.lab.topology import CLIENT, SERVER, Lab

FAMILIES = pytest.mark.parametrize("family", ["v4", "v6"])
SETS = ["nedge-br0-a4", "nedge-br0-a6", "nedge-br0-q4", "nedge-br0-q6"]

# Bridge, rules and quarantine; evaluates what comes line by line. Nobody listens to the queue: all passes.
GATEWAY = """
import contextlib, json, sys, time
from nedge.kernel import quarantine as module
from nedge.kernel.bridge import Bridge
from nedge.kernel.errors import KernelError
from nedge.kernel.quarantine import Quarantine, sweep
from nedge.kernel.rules import RuleSet
from nedge.kernel.state import State

def close():
    rules.remove()
    quarantine.close()
    bridge.close()
    state.unlock()

def refused(step):
    try:
        step()
    except KernelError as error:
        return str(error)

def timed(step, times):
    start = time.perf_counter()
    for number in range(times):
        step(number)
    return (time.perf_counter() - start) / times * 1e6

state = State("br0")
state.lock()
quarantine = Quarantine("br0")
quarantine.open()
rules = RuleSet("br0", ("lan0",), ("wan0",), 7, bypass=True, cuts=quarantine.rules(), state=state)
rules.install()
bridge = Bridge("br0", ["lan0"], ["wan0"], state)
bridge.open()
while bridge.ports_without_link():
    time.sleep(0.01)
print("ready", flush=True)
for line in sys.stdin:
    print(json.dumps(eval(line)), flush=True)
"""

# Sends an echo request, and again; tells whether one was answered.
PING = """
import socket, sys
v6 = ":" in sys.argv[1]
s = socket.socket(*(socket.AF_INET6, 3, 58) if v6 else (socket.AF_INET, 3, 1))
request, reply = (bytes([128, 0, 0, 0]), 129) if v6 else (bytes([8, 0, 0xF7, 0xFF]), 0)
s.settimeout(0.3)
for _ in range(2):
    s.sendto(request + bytes(4), (sys.argv[1], 0))
    try:
        while True:
            data = s.recv(2000)
            if data[0 if v6 else 20] == reply:
                print("yes")
                sys.exit()
    except TimeoutError:
        pass
print("no")
"""


class Gateway:
    def __init__(self, lab: Lab) -> None:
        self.host = lab.gateway
        self._process = lab.gateway.popen(
            [sys.executable, "-c", GATEWAY], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert self._process.stdin
        assert self._process.stdout
        self._in, self._out = self._process.stdin, self._process.stdout
        assert self._out.readline() == "ready\n"

    def do(self, expression: str) -> Any:
        """Evaluate there."""
        self._in.write(expression + "\n")
        self._in.flush()
        line = self._out.readline()
        assert line, expression
        return json.loads(line)

    def kill(self) -> None:
        self._process.kill()
        self.host.stop(self._process)

    def ipset(self, *arguments: str) -> list[str]:
        return self.host.run(["ipset", *arguments], check=True).stdout.splitlines()

    def sets(self) -> list[str]:
        return sorted(self.ipset("list", "-n"))


@pytest.fixture
def gateway(lab: Lab) -> Iterator[Gateway]:
    require(shutil.which("ipset"), "ipset is not installed")
    yield Gateway(lab)
    lab.gateway.stop_all()


def answered(host: Host, address: str) -> bool:
    return host.run([sys.executable, "-c", PING, address], check=True).stdout == "yes\n"


def open_between(lab: Lab, family: str) -> list[bool]:
    """Whether client and server reach each other."""
    return [
        answered(lab.client, getattr(SERVER, family)),
        answered(lab.server, getattr(CLIENT, family)),
    ]


def sets_of(saved: list[str]) -> list[str]:
    """What `ipset save` says is in them, without times and counters."""
    return sorted(line.split(" timeout")[0] for line in saved if line.startswith("add "))


def soon(condition: Callable[[], bool], seconds: float = 5) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@FAMILIES
@pytest.mark.parametrize("who", [CLIENT, SERVER], ids=["client", "server"])
def test_a_host_is_cut_in_both_directions_until_released(
    lab: Lab, gateway: Gateway, family: str, who: Any
) -> None:
    address = getattr(who, family)
    assert open_between(lab, family) == [True, True]
    assert gateway.do(f"quarantine.add({address!r}, 60)")
    assert open_between(lab, family) == [False, False]
    assert open_between(lab, "v6" if family == "v4" else "v4") == [True, True]
    assert 0 < gateway.do("quarantine.packets()")[address] < 20
    assert 50 < gateway.do("quarantine.hosts()")[address] <= 60
    assert gateway.do(f"quarantine.release({address!r})")
    assert open_between(lab, family) == [True, True]
    assert not gateway.do(f"quarantine.release({address!r})")
    assert gateway.do("quarantine.failures") == 0


@FAMILIES
def test_a_host_comes_back_by_itself(lab: Lab, gateway: Gateway, family: str) -> None:
    address = getattr(CLIENT, family)
    gateway.do(f"quarantine.add({address!r}, 2)")
    assert not answered(lab.client, getattr(SERVER, family))
    start = time.monotonic()
    assert soon(lambda: answered(lab.client, getattr(SERVER, family)))
    assert time.monotonic() - start < 3
    assert soon(lambda: gateway.do("quarantine.hosts()") == {}, 1)
    assert gateway.do("quarantine.check()")


def test_a_connection_that_is_open_stops(lab: Lab, servers: ServerSet, gateway: Gateway) -> None:
    process = lab.client.popen(
        servers.ssh_command("echo ready; cat"), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    gateway.do(f"quarantine.add({CLIENT.v4!r}, 60)")
    process.stdin.write("hello\n")
    process.stdin.flush()
    time.sleep(0.5)
    before = gateway.do("quarantine.packets()")[CLIENT.v4]
    assert before > 0
    gateway.do(f"quarantine.release({CLIENT.v4!r})")
    assert process.stdout.readline() == "hello\n"  # sent again, and now let through


@FAMILIES
@pytest.mark.parametrize("who", [CLIENT, SERVER], ids=["client", "server"])
def test_whoever_is_allowed_is_never_cut(lab: Lab, gateway: Gateway, family: str, who: Any) -> None:
    network = f"{getattr(who, family)}/{'30' if family == 'v4' else '127'}" if who is CLIENT else None
    gateway.do(f"quarantine.allow([{network or getattr(who, family)!r}])")
    gateway.do(f"quarantine.add({getattr(CLIENT, family)!r}, 60)")
    assert open_between(lab, family) == [True, True]
    gateway.do("quarantine.allow(['192.0.2.0/24', '2001:db8::/32'])")
    assert open_between(lab, family) == [False, False]
    gateway.do("quarantine.allow(['0.0.0.0/0', '::/0'])")
    assert open_between(lab, family) == [True, True]
    assert gateway.do("quarantine.check()")


def test_nothing_is_left(gateway: Gateway) -> None:
    gateway.do("quarantine.add('192.0.2.1', 60)")
    gateway.do("quarantine.allow(['192.0.2.0/24'])")
    assert gateway.sets() == SETS
    gateway.do("close()")
    assert gateway.sets() == []
    assert gateway.do("quarantine.close()") is None


def test_sets_in_use_cannot_be_removed(gateway: Gateway) -> None:
    assert "in use" in gateway.do("refused(quarantine.close)")
    assert gateway.sets() == SETS


@FAMILIES
def test_what_a_crash_left_is_taken_over(lab: Lab, gateway: Gateway, family: str) -> None:
    address = getattr(CLIENT, family)
    gateway.do(f"quarantine.add({address!r}, 60)")
    gateway.do("quarantine.add('192.0.2.1', float('inf'))")
    gateway.do("quarantine.allow(['192.0.2.0/24', '2001:db8::/32'])")
    gateway.kill()
    assert open_between(lab, family) == [False, False]  # nobody is there, the kernel goes on
    second = Gateway(lab)
    hosts = second.do("quarantine.hosts()")
    assert 30 < hosts.pop(address) <= 60
    assert hosts == {"192.0.2.1": float("inf")}
    assert open_between(lab, family) == [False, False]
    assert second.do("quarantine.check()")
    second.do("quarantine.allow(['198.51.100.0/24'])")
    assert sets_of(second.ipset("save", "nedge-br0-a4")) == ["add nedge-br0-a4 198.51.100.0/24"]
    assert sets_of(second.ipset("save", "nedge-br0-a6")) == []
    second.do(f"quarantine.release({address!r})")
    assert open_between(lab, family) == [True, True]
    second.do("close()")
    assert second.sets() == []


def test_what_a_crash_left_can_be_swept(gateway: Gateway) -> None:
    gateway.do("(rules.remove(), quarantine.add('192.0.2.1', 60))")
    assert gateway.do("sweep('br0')") is True
    assert gateway.sets() == []
    assert gateway.do("sweep('br0')") is False


@pytest.mark.parametrize("kind", ["hash:net", "hash:ip"])
def test_a_set_of_another_kind_is_replaced(lab: Lab, kind: str) -> None:
    """One of another version, say. (Of another kind: without timeouts.)"""
    lab.gateway.run(["ipset", "create", "nedge-br0-q4", kind], check=True)
    gateway = Gateway(lab)
    assert gateway.do("quarantine.add('192.0.2.1', 60)")
    gateway.do("close()")
    assert gateway.sets() == []


@FAMILIES
def test_a_set_that_was_emptied_is_filled_again(lab: Lab, gateway: Gateway, family: str) -> None:
    number = family[1]
    gateway.do(f"quarantine.add({getattr(CLIENT, family)!r}, 60)")
    gateway.do("quarantine.allow(['192.0.2.0/24', '2001:db8::/32'])")
    assert gateway.do("quarantine.check()") is True
    gateway.ipset("flush", f"nedge-br0-q{number}")
    assert open_between(lab, family) == [True, True]
    assert gateway.do("quarantine.check()") is False
    assert open_between(lab, family) == [False, False]
    assert gateway.do("quarantine.check()") is True
    saved = gateway.ipset("save")
    gateway.ipset("add", f"nedge-br0-a{number}", getattr(CLIENT, family))
    assert open_between(lab, family) == [True, True]
    assert gateway.do("quarantine.check()") is False
    assert gateway.do("quarantine.check()") is True
    assert open_between(lab, family) == [False, False]
    gateway.ipset("flush", f"nedge-br0-a{number}")
    assert gateway.do("quarantine.check()") is False
    assert sets_of(gateway.ipset("save")) == sets_of(saved)


def test_sets_that_were_destroyed_come_back(lab: Lab, gateway: Gateway) -> None:
    gateway.do(f"quarantine.add({CLIENT.v4!r}, 60)")
    lab.gateway.run(["iptables", "-t", "mangle", "-F"], check=True)
    lab.gateway.run(["ip6tables", "-t", "mangle", "-F"], check=True)
    gateway.ipset("destroy")
    assert gateway.do(f"quarantine.add({CLIENT.v6!r}, 60)") is False
    assert gateway.do("quarantine.failures") == 1
    assert gateway.do("quarantine.check()") is False
    assert gateway.do("quarantine.check()") is True
    gateway.do("rules.install()")
    for family in ("v4", "v6"):
        assert open_between(lab, family) == [False, False]


def test_who_was_added_by_hand_is_in_the_book(gateway: Gateway) -> None:
    gateway.ipset("add", "nedge-br0-q6", "2001:db8::1", "timeout", "60")
    assert gateway.do("quarantine.check()") is True
    assert 50 < gateway.do("quarantine.hosts()")["2001:db8::1"] <= 60
    gateway.do("quarantine.flush()")
    assert gateway.do("quarantine.hosts()") == {}
    assert gateway.ipset("save", "nedge-br0-q6")[1:] == []


def test_a_full_set_takes_no_more(gateway: Gateway) -> None:
    gateway.do("(rules.remove(), quarantine.close(), setattr(module, 'MAX_ADDRESSES', 2))")
    gateway.do("quarantine.open()")
    assert [gateway.do(f"quarantine.add('192.0.2.{n}', 60)") for n in range(3)] == [True, True, False]
    assert gateway.do("quarantine.failures") == 1
    assert sorted(gateway.do("quarantine.hosts()")) == ["192.0.2.0", "192.0.2.1"]
    assert gateway.do("quarantine.add('192.0.2.1', 600)")  # who is in it, can stay longer
    assert gateway.do("quarantine.hosts()")["192.0.2.1"] > 500
    assert gateway.do("quarantine.check()")


@pytest.mark.alone
def test_it_costs_little(gateway: Gateway) -> None:
    """Microseconds; the bounds are what a loop that forwards packets can bear."""
    costs = {
        "add": gateway.do("timed(lambda n: quarantine.add(f'198.51.{n >> 8}.{n & 255}', 60), 500)"),
        "check": gateway.do("timed(lambda n: quarantine.check(), 20)"),
        "hosts": gateway.do("timed(lambda n: quarantine.hosts(), 20)"),
    }
    print(costs)
    assert costs["add"] < 5_000
    assert costs["check"] < 50_000
    assert costs["hosts"] < 10_000
