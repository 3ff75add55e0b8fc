"""The Debian package: built, installed, used, removed, purged."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from kit import dns, merge, write_pcap
from machine import PROJECT, Machine, call, in_memory
from test_install import index, main_pid, settings
from test_keeper import ours
from test_offload import https, kept, until

from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

# Not what dpkg, ldconfig and the like keep, nor what scapy (for replay) remembers in its user's home.
FILES = (
    "find / -xdev -path /proc -prune -o -path /sys -prune -o -path /tmp -prune -o -path /run -prune -o -print"
)
KEEPERS = re.compile(
    r"/var/(log/(?!nedge)|cache/|lib/(dpkg|apt|systemd)/)|/root/\.c|/etc/(passwd-|shadow-|group-|gshadow-|\.pwd)"
)

USE_NAMES = """
echo bad.example >/tmp/names
sed 's/^malware_domains = .*/malware_domains = ["names"]/' /etc/nedge/nedge.toml >/tmp/c.toml
"""
LEFTOVERS = """
find / -xdev -name '*nedge*' -not -path '/root/*' -not -path '/project*' -not -path '/proc/*' \
    -not -path '/var/lib/systemd/*' -not -path '/var/log/journal/*'
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built by the one command."""
    out = tmp_path_factory.mktemp("package")
    said = call(["sh", PROJECT / "deploy/build-deb.sh", out])
    (built,) = out.glob("nedge_*.deb")
    assert said.strip() == str(built)
    return built


@pytest.fixture
def chroot(bare_root: Path, package: Path, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """Runs commands in a clean root with nothing but the package's file in it."""
    packets = merge(dns("bad.example").packets, dns("good.example", sport=4000).packets)
    with in_memory(tmp_path / "root", bare_root) as root, ExitStack() as stack:
        shutil.copy(package, root / "tmp")
        write_pcap(root / "tmp/x.pcap", packets)
        # Read-only: the sysctls there are those of the machine that runs the test.
        call(["mount", "-t", "proc", "-o", "ro", "proc", root / "proc"])
        stack.callback(call, ["umount", root / "proc"])
        yield lambda *argv: call(
            ["chroot", root, "env", "-i", "PATH=/usr/sbin:/usr/bin", "DEBIAN_FRONTEND=noninteractive", *argv]
        )


def files(chroot: Callable[..., str]) -> set[str]:
    return {line for line in chroot("sh", "-c", FILES).splitlines() if not KEEPERS.search(line)}


def test_install_use_remove_purge(chroot: Callable[..., str], package: Path) -> None:
    """In a chroot, where no systemd runs: apt finds all that is needed, and in the end nothing is left."""
    chroot("apt-get", "-qq", "update")
    # What it depends on comes first, and stays: only what is the package's own is looked at.
    needs = re.sub(r"\([^)]*\)|,", " ", call(["dpkg-deb", "-f", package, "Depends"])).split()
    chroot("apt-get", "-qq", "-y", "install", "--no-install-recommends", *needs)
    before = files(chroot)
    chroot("apt-get", "-qq", "-y", "install", "--no-install-recommends", f"/tmp/{package.name}")
    checked = chroot("nedge", "check", "--config", "/etc/nedge/nedge.toml")
    assert "configuration: ok" in checked
    assert "script blacklisted: ok" in checked
    assert chroot("sh", "-c", "ls /usr/share/nedge/policies/*.py")
    chroot("sh", "-c", USE_NAMES)
    assert "2 flows: 1 pass, 1 drop" in chroot("nedge", "replay", "/tmp/x.pcap", "--config", "/tmp/c.toml")
    assert chroot("getent", "passwd", "nedge")
    assert chroot("dpkg-query", "-W", "-f", "${Conffiles}", "nedge").split()[0] == "/etc/nedge/nedge.toml"

    chroot("apt-get", "-qq", "-y", "remove", "nedge")
    assert {path for path in files(chroot) - before if not path.startswith("/etc/nedge")} <= {
        "/var/lib/nedge",
        "/var/log/nedge",
        "/var/cache/nedge",
    }
    chroot("test", "-e", "/etc/nedge/nedge.toml")
    chroot("apt-get", "-qq", "-y", "purge", "nedge")
    assert files(chroot) - before == set()
    assert before - files(chroot) == set()
    assert "nedge" not in chroot("getent", "passwd")


def test_the_packages_service(
    lab: Lab, servers: ServerSet, boot: Callable[[Path], Machine], root: Path, package: Path
) -> None:
    """With systemd, and traffic: not started by itself; restarted by an upgrade, without a gap."""
    machine = boot(root)
    were = settings(machine)
    shutil.copy(package, machine.root / "root")
    said = machine.run("dpkg", "-i", f"/root/{package.name}")
    assert "name your interfaces in /etc/nedge/nedge.toml" in said.stderr
    assert machine.run("systemctl", "is-active", "nedge", check=False).stdout == "inactive\n"
    for side, port in (("lan", "lan0"), ("wan", "wan0")):
        machine.run("sed", "-i", f's/^{side} = .*/{side} = ["{port}"]/', "/etc/nedge/nedge.toml")
    machine.run("nedge", "doctor", "--config", "/etc/nedge/nedge.toml")
    machine.run("systemctl", "enable", "--now", "nedge")
    assert https(lab, "www.example")
    with kept(lab, "www.example") as connection:
        assert connection.ask() == "answered"
        bridge, old = index(lab), main_pid(machine)
        machine.run("dpkg", "-i", f"/root/{package.name}")  # as an upgrade does
        assert main_pid(machine) not in (0, old)
        assert index(lab) == bridge
        assert connection.ask() == "answered"
    until(lambda: https(lab, "www.example"))
    machine.run("dpkg", "--purge", "nedge")
    assert ours(lab) == []
    assert "nedge0" not in lab.gateway.run(["ip", "link"]).stdout
    assert settings(machine) == were
    leftover = machine.run("sh", "-c", LEFTOVERS)
    assert leftover.stdout == ""


def test_unlike_python_is_refused(package: Path) -> None:
    """Compiled modules fit one version of Python: the dependency says so."""
    depends = call(["dpkg-deb", "-f", package, "Depends"])
    version = subprocess.run(
        ["/usr/bin/python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert f"python3 (>= {version}), python3 (<< " in depends
