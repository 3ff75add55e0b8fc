"""How connections start: SYNs that the kernel passes, and those that it must not."""

from __future__ import annotations

import sys
import time
from typing import Any

import pytest
import traffic
from test_control import STATE, ok, record
from test_offload import URL, curl, until

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

CLIENT, SERVER, RAW = "10.99.0.2", "10.99.0.1", "10.99.0.77"
NAMES = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
CLOSED_PORT, MUTE_PORT = 9, 7777

# Connects from a port of its own, says something or nothing, and ends it by a RST, so that the port is free.
CONNECT = """
import socket, struct, sys
port, words = int(sys.argv[1]), sys.argv[2].encode()
s = socket.socket()
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
s.settimeout(float(sys.argv[4]))
s.bind(("", int(sys.argv[3])))
try:
    s.connect(("10.99.0.1", port))
    if words:
        s.sendall(words)
        print(len(s.recv(4096)) > 0)
    else:
        print("connected")
except OSError as error:
    print(type(error).__name__)
"""


def connect(lab: Lab, port: int, words: str = "", *, source: int, patience: float = 2) -> str:
    """What came of a connection."""
    command = [sys.executable, "-c", CONNECT, str(port), words, str(source), str(patience)]
    return lab.client.run(command, timeout=patience + 10, check=True).stdout.strip()


def queued(lab: Lab) -> int:
    """Packets that came up so far."""
    return int(lab.gateway.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.split()[7])


def reach(lab: Lab) -> None:
    """Wait until traffic flows, and no ARP or first connection is in the way."""
    until(lambda: curl(lab, URL + "/"))


def flows_from(gateway: Gateway, port: int) -> list[dict[str, Any]]:
    return [event for event in gateway.events() if event["src_port"] == port]


def test_a_connection_comes_up_with_its_first_data(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, PORTS + EVENTS) as gateway:
        reach(lab)
        request = f"GET /first HTTP/1.1\r\nHost: {SERVER}\r\n\r\n"
        before = queued(lab)
        assert connect(lab, 80, request, source=5001) == "True"
        assert queued(lab) == before + 1
        gateway.stop()
        (event,) = flows_from(gateway, 5001)
        assert event["ndpi"]["http_url"] == f"{SERVER}/first"
        assert event["flow"]["pkts_toserver"] >= 3
        assert gateway.status == 0


def test_a_refused_connection_is_a_flow(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, PORTS + EVENTS) as gateway:
        reach(lab)
        before = queued(lab)
        assert connect(lab, CLOSED_PORT, source=5002) == "ConnectionRefusedError"
        assert queued(lab) == before + 1
        gateway.stop()
        (event,) = flows_from(gateway, 5002)
        assert (event["dest_port"], event["src_ip"]) == (CLOSED_PORT, CLIENT)
        assert event["flow"]["state"] == "closed"
        assert gateway.logged("gateway_totals")[-1]["silent_flows"] == 0


def test_one_port_used_again_is_another_flow(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, PORTS + EVENTS) as gateway:
        reach(lab)
        names = ["one.example", "two.example", "three.example"]
        for name in names:
            assert connect(lab, 80, f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n", source=5003) == "True"
        gateway.stop()
        assert [event["ndpi"]["hostname"] for event in flows_from(gateway, 5003)] == names


def test_silence_is_recorded(lab: Lab, servers: ServerSet) -> None:
    drop = ["iptables", "-A", "INPUT", "-p", "tcp", "--dport", str(MUTE_PORT), "-j", "DROP"]
    lab.server.run(drop, check=True)
    with Gateway(lab, PORTS + EVENTS) as gateway:
        reach(lab)
        before = queued(lab)
        assert connect(lab, MUTE_PORT, source=5004, patience=0.5) == "TimeoutError"
        assert queued(lab) == before
        assert flows_from(gateway, 5004) == []
        start = time.monotonic()
        until(lambda: flows_from(gateway, 5004), 40)
        assert 10 < time.monotonic() - start < 30
        (event,) = flows_from(gateway, 5004)
        assert (event["dest_port"], event["flow"]["pkts_toclient"]) == (MUTE_PORT, 0)
        assert event["flow"]["pkts_toserver"] >= 1
        gateway.stop()
        assert gateway.logged("gateway_totals")[-1]["silent_flows"] == 1


@pytest.mark.parametrize("setting", ['fail = "closed"', "offload = false", "mark_mask = 0x70000000"])
def test_where_they_must_not_pass_syns_come_up(lab: Lab, servers: ServerSet, setting: str) -> None:
    ports = PORTS.replace("[gateway]\n", f"[gateway]\n{setting}\n")
    assert setting in ports
    with Gateway(lab, ports + EVENTS):
        reach(lab)
        before = queued(lab)
        assert connect(lab, CLOSED_PORT, source=5005) == "ConnectionRefusedError"
        assert queued(lab) == before + 2


def test_no_syn_reaches_a_blocked_host(lab: Lab, servers: ServerSet) -> None:
    capture = lab.directory / "blocked.pcap"
    with Gateway(lab, PORTS + EVENTS + STATE) as gateway:
        reach(lab)
        ok(lab, "block", SERVER)
        with lab.capture(lab.server, "eth0", capture):
            assert connect(lab, 80, "x", source=5006) == "TimeoutError"
        assert not [seen for seen in traffic.packets(capture) if seen.source_port == 5006]
        assert record(lab, "status")["failures"]["rules_restored"] == 0
        ok(lab, "unblock", SERVER)
        reach(lab)
        before = queued(lab)
        assert connect(lab, CLOSED_PORT, source=5007) == "ConnectionRefusedError"
        assert queued(lab) == before + 1
        gateway.stop()
        assert gateway.status == 0


def test_a_request_sent_before_the_one_that_was_judged_does_not_arrive(lab: Lab, servers: ServerSet) -> None:
    """The bytes are in order for the server; on the wire the harmless request comes first."""
    with Gateway(lab, PORTS + EVENTS + NAMES) as gateway:
        reach(lab)
        requests = [traffic.http_get("blocked.example", "/evil"), traffic.http_get("good.example", "/good")]
        outcome = traffic.run_reversed(lab.client, lab.server, RAW, SERVER, 80, requests, answered=False)
        assert outcome.answered == [False], outcome.error
        assert not servers.received(proto="http", host="blocked.example")
        gateway.stop()
        assert gateway.logged("gateway_totals")[-1]["early_segments"] >= 1


def test_marks_of_starts_go_with_the_gateway(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, PORTS + EVENTS) as gateway:
        reach(lab)
        held = lab.client.popen(
            [
                sys.executable,
                "-c",
                "import socket, time; s = socket.create_connection(('10.99.0.1', 443)); time.sleep(60)",
            ]
        )
        listing = ["conntrack", "-L", "-p", "tcp", "--dport", "443"]
        until(lambda: "mark=2147483648" in lab.gateway.run(listing).stdout)
        gateway.stop()
        assert "mark=0" in lab.gateway.run(listing).stdout
        lab.client.stop(held, grace=0)
