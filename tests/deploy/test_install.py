"""install.sh and uninstall.sh on a machine with systemd, with traffic."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from machine import Machine
from test_keeper import ours
from test_offload import https, kept, until

from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

Boot = Callable[[Path], Machine]
OFFLINE = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/wheels"}
BLOCKED = '\n[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
SYSCTLS = (
    "net.ipv4.ip_forward",
    "net.netfilter.nf_conntrack_max",
    "net.netfilter.nf_conntrack_acct",
    "net.ipv6.conf.lan0.disable_ipv6",
)
PLACES = "/etc /opt /usr/local /var/lib/nedge /var/log/nedge /var/cache/nedge /run/nedge"
FILES = f"find {PLACES} -xdev 2>/dev/null | sort"
# What a system changes by itself, or by adding a user and taking it away again.
VOLATILE = ("/etc/passwd-", "/etc/shadow-", "/etc/group-", "/etc/gshadow-", "/etc/.pwd.lock")


def install(machine: Machine, *names: str, check: bool = True) -> str:
    done = machine.run("sh", "/project/deploy/install.sh", *names, env=OFFLINE, check=check)
    return done.stdout + done.stderr


def files(machine: Machine) -> set[str]:
    return set(machine.run("sh", "-c", FILES, check=False).stdout.splitlines()) - set(VOLATILE)


def settings(machine: Machine) -> str:
    return machine.run("sysctl", *SYSCTLS).stdout


def index(lab: Lab) -> str:
    """Which bridge it is: another one of the same name has another number."""
    return lab.gateway.run(["ip", "-o", "link", "show", "nedge0"], check=True).stdout.split(":")[0]


def main_pid(machine: Machine) -> int:
    return int(machine.run("systemctl", "show", "-P", "MainPID", "nedge").stdout)


@pytest.fixture
def machine(lab: Lab, servers: ServerSet, boot: Boot, root: Path) -> Machine:
    return boot(root)


def test_its_whole_life(lab: Lab, machine: Machine) -> None:
    """Installed, judging, reloaded, restarted, upgraded, killed, removed: with nothing left."""
    before, were = files(machine), settings(machine)
    said = install(machine, "lan0", "wan0")
    assert "error " not in said, said
    assert machine.run("systemctl", "is-active", "nedge").stdout == "active\n"
    assert machine.run("systemctl", "is-enabled", "nedge").stdout == "enabled\n"
    status = machine.run("sh", "-c", f"cat /proc/{main_pid(machine)}/status").stdout
    assert "CapEff:\t0000000000003000" in status
    assert "CapBnd:\t0000000000003000" in status
    assert "Uid:\t0" not in status
    assert https(lab, "www.example")
    assert https(lab, "blocked.example")
    assert machine.run("nedge", "doctor", "--config", "/etc/nedge/nedge.toml", check=False).returncode == 0

    # None of our settings can be written in a network namespace: one more.
    machine.run("sh", "-c", "echo '-net.ipv4.ip_forward = 1' >>/etc/sysctl.d/10-nedge.conf")
    settings_of = {"NEDGE": "nedge", "SETTINGS": "/etc/sysctl.d/10-nedge.conf"}
    machine.run("sh", "/opt/nedge/current/system/system.sh", "prepare", env=settings_of)
    assert "net.ipv4.ip_forward = 0" in were
    assert "net.ipv4.ip_forward = 1" in settings(machine)

    machine.run("sh", "-c", f"printf '{BLOCKED}' >>/etc/nedge/nedge.toml")
    machine.run("systemctl", "reload", "nedge")
    until(lambda: not https(lab, "blocked.example"))
    machine.run("sed", "-i", "s/^#path = /path = /", "/etc/nedge/nedge.toml")  # of eve.json

    with kept(lab, "www.example") as connection:
        assert connection.ask() == "answered"
        bridge = index(lab)
        old = main_pid(machine)
        install(machine)  # an upgrade
        assert main_pid(machine) != old
        assert index(lab) == bridge
        assert connection.ask() == "answered"
        assert not https(lab, "blocked.example")
        assert machine.run("sh", "-c", "ls -d /opt/nedge/2* | wc -l").stdout == "1\n"

        old = main_pid(machine)
        machine.run("kill", "-KILL", str(old))
        until(lambda: main_pid(machine) not in (0, old) and not https(lab, "blocked.example"))
        assert connection.ask() == "answered"
    assert machine.run("test", "-s", "/var/log/nedge/eve.json")

    machine.run("/opt/nedge/current/uninstall.sh", "--purge")
    assert files(machine) == before
    assert settings(machine) == were
    assert machine.run("getent", "passwd", "nedge", check=False).returncode != 0
    assert ours(lab) == []
    assert "nedge0" not in lab.gateway.run(["ip", "link"]).stdout
    assert machine.run("systemctl", "is-active", "nedge", check=False).stdout != "active\n"


def test_a_hung_gateway_is_replaced(lab: Lab, machine: Machine) -> None:
    install(machine, "lan0", "wan0")
    machine.run("mkdir", "-p", "/run/systemd/system/nedge.service.d")
    machine.run(
        "sh", "-c", "printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/nedge.service.d/test.conf"
    )
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "nedge")
    old = main_pid(machine)
    machine.run("kill", "-STOP", str(old))
    until(lambda: main_pid(machine) not in (0, old), 60)
    until(lambda: https(lab, "www.example"), 60)
    machine.run("/opt/nedge/current/uninstall.sh")
    assert machine.run("test", "-e", "/etc/nedge/nedge.toml").returncode == 0  # without --purge


def test_a_release_that_does_not_start(lab: Lab, machine: Machine) -> None:
    """The former one is put back, and runs."""
    install(machine, "lan0", "wan0")
    release = machine.run("readlink", "/opt/nedge/current").stdout.strip()
    only = f"[Service]\nExecStartPre=/bin/sh -c 'test $$(readlink /opt/nedge/current) = {release}'\n"
    machine.run("mkdir", "-p", "/run/systemd/system/nedge.service.d")
    machine.run("sh", "-c", f"cat >/run/systemd/system/nedge.service.d/only.conf <<'END'\n{only}END")
    said = install(machine, check=False)
    assert "this release does not start (why is above); the former one runs again" in said, said
    assert machine.run("readlink", "/opt/nedge/current").stdout.strip() == release
    assert machine.run("sh", "-c", "ls -d /opt/nedge/2*").stdout.split() == [release]
    assert machine.run("systemctl", "is-active", "nedge").stdout == "active\n"
    until(lambda: https(lab, "www.example"))


def test_a_machine_that_cannot(lab: Lab, machine: Machine) -> None:
    """The doctor's errors keep it from being installed, and nothing is left."""
    before = files(machine)
    done = machine.run("sh", "/project/deploy/install.sh", "lan0", "wan9", env=OFFLINE, check=False)
    assert done.returncode == 1
    assert "error    interfaces: there is no interface wan9; this machine has: lan0, wan0" in done.stderr
    assert "not installed: the doctor found errors" in done.stderr
    assert files(machine) - before <= {"/opt/nedge"}
    assert ours(lab) == []
    lab.gateway.run(["ip", "address", "add", "192.0.2.1/24", "dev", "lan0"], check=True)
    assert "ip addr del 192.0.2.1/24 dev lan0" in install(machine, "lan0", "wan0", check=False)
