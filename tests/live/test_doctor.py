"""`nedge doctor` on the lab's gateway: at rest, at work, and with things that are wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from test_keeper import rules
from test_offload import until

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.topology import Lab

HOLD_QUEUE = """
import sys
from netfilterqueue import NetfilterQueue
queue = NetfilterQueue()
queue.bind(71, print)
sys.stdin.read()
"""
Report = dict[str, list[tuple[str, str]]]


def examine(lab: Lab, config: str | Path = PORTS) -> tuple[int, Report]:
    """Exit status; check -> its lines as (level, text)."""
    path = config
    if isinstance(path, str):
        path = lab.directory / "doctor.toml"
        path.write_text(str(config))
    done = lab.gateway.run([sys.executable, "-m", "nedge", "doctor", "--json", "--config", path])
    assert done.stderr == ""
    report: Report = {}
    for line in map(json.loads, done.stdout.splitlines()):
        report.setdefault(line["check"], []).append((line["level"], line["text"]))
    return done.returncode, report


def errors(report: Report) -> dict[str, str]:
    return {check: text for check, lines in report.items() for level, text in lines if level == "error"}


@pytest.mark.alone  # settings of other namespaces may be seen, too
def test_a_machine_at_rest_is_left_alone(lab: Lab) -> None:
    def everything() -> str:
        links = lab.gateway.run(["ip", "-d", "link"], check=True).stdout
        return links + rules(lab) + lab.gateway.run(["sysctl", "-a"]).stdout

    def without_counters(text: str) -> list[str]:
        moving = ("count", "random", "fs.", "kernel.", "vm.", "dev.")
        return [line for line in text.splitlines() if not any(word in line for word in moving)]

    until(lambda: "NO-CARRIER" not in lab.gateway.run(["ip", "link"]).stdout)
    before = everything()
    status, report = examine(lab)
    assert status == 0, errors(report)
    assert report["gateway"] == [("ok", "not running")]
    assert report["queue"] == [("ok", "free (others have: none)")]
    assert report["cables"] == [("ok", "lan0 has a link, wan0 has a link")]
    assert without_counters(everything()) == without_counters(before)


def test_a_gateway_at_work(lab: Lab) -> None:
    with Gateway(lab, PORTS + EVENTS + "[verdict]\nhost_drop_score = 500\n") as gateway:
        config = gateway.directory / "nedge.toml"
        status, report = examine(lab, config)
        assert status == 0, errors(report)
        assert report["gateway"] == [("ok", f"running (process {gateway.pid})")]
        assert report["rules in place"] == [("ok", "all")]
        assert report["queue"] == [("ok", "all have their worker")]

        # The gateway would put everything back: it is stopped, and cannot.
        os.kill(gateway.pid, signal.SIGSTOP)
        try:
            lab.gateway.run(["iptables", "-t", "mangle", "-D", "NEDGE-nedge0", "1"], check=True)
            lab.gateway.run(["ip", "link", "set", "wan0", "nomaster"], check=True)
            status, report = examine(lab, config)
        finally:
            os.kill(gateway.pid, signal.SIGCONT)
        assert status == 1
        assert set(errors(report)) == {"rules in place", "bridge in place"}
        assert errors(report)["bridge in place"].startswith("interface wan0 is no port of nedge0")
        until(lambda: gateway.logged("bridge_restored") and gateway.logged("rules_restored"))
        until(lambda: examine(lab, config)[0] == 0)
        assert gateway.stop() == 0


def test_what_others_do(lab: Lab) -> None:
    def run(*argv: str) -> None:
        lab.gateway.run(list(argv), check=True)

    run("iptables", "-P", "FORWARD", "DROP")
    run(
        "iptables",
        "-t",
        "mangle",
        "-A",
        "PREROUTING",
        "-j",
        "CONNMARK",
        "--set-xmark",
        "0x80000000/0xf0000000",
    )
    run("ip6tables", "-A", "FORWARD", "-j", "NFQUEUE", "--queue-num", "3")
    run("ip", "link", "set", "lan0", "mtu", "1400")
    holder = lab.gateway.popen([sys.executable, "-c", HOLD_QUEUE], stdin=subprocess.PIPE)
    until(lambda: "71" in lab.gateway.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout)
    status, report = examine(lab)
    assert status == 1
    found = errors(report)
    assert set(found) == {"marks", "queue"}
    assert "PREROUTING" in found["marks"]
    assert found["queue"].startswith("queue 71 is taken by another program")
    assert "ip filter FORWARD chain drops by default" in report["firewall"][0][1]
    assert "-A FORWARD -j NFQUEUE --queue-num 3" in report["queues"][0][1]
    assert "ports differ in MTU (lan0 1400, wan0 1500)" in report["ports"][0][1]
    assert holder.stdin is not None
    holder.stdin.close()
    holder.wait(10)


def test_a_cable_that_is_out(lab: Lab) -> None:
    lab.client.run(["ip", "link", "set", "eth0", "down"], check=True)
    status, report = examine(lab)
    assert status == 0
    assert report["cables"] == [
        ("warning", "interface lan0 has no link: is the cable in, and the other end on?")
    ]


def test_swapped_sides(bridged_lab: Lab) -> None:
    """An adopted bridge knows behind which port this machine's own router is."""
    gateway = bridged_lab.gateway
    for command in ("address add 10.99.0.9/24 dev br0", "route add default via 10.99.0.1"):
        gateway.run(["ip", *command.split()], check=True)
    gateway.run(["ping", "-c", "1", "-W", "2", "10.99.0.1"], check=True)
    right = '[gateway]\nbridge = "br0"\nlan = ["lan0"]\nwan = ["wan0"]\n'
    assert examine(bridged_lab, right)[1]["orientation"] == [
        ("ok", "this machine's own router is behind wan0")
    ]
    wrong = '[gateway]\nbridge = "br0"\nlan = ["wan0"]\nwan = ["lan0"]\n'
    ((level, text),) = examine(bridged_lab, wrong)[1]["orientation"]
    assert level == "warning"
    assert "behind wan0, a LAN port: swap gateway.lan and gateway.wan" in text
