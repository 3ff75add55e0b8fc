"""The lab itself: traffic through a plain bridge, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.utils import rdpcap
from test_offload import until

from nedge.lab.gateway import PORTS, Gateway
from nedge.lab.host import LabError, environment, pids_in
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab


@pytest.fixture(scope="module")
def plain() -> Iterator[tuple[Lab, ServerSet]]:
    """One bridged lab with servers for all tests that only send traffic."""
    with (
        Lab(bridge=True, sites=2) as lab,
        ServerSet(lab, hosts={"second.lab.example": lab.sites[1]}) as servers,
    ):
        yield lab, servers


@pytest.mark.parametrize("version", ["-4", "-6"])
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_curl(plain: tuple[Lab, ServerSet], scheme: str, version: str) -> None:
    lab, servers = plain
    url = f"{scheme}://www.example/some/path?{version}"
    done = lab.client.run(["curl", "-sS", version, "--cacert", servers.ca, url], timeout=10)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "proto": scheme,
        "method": "GET",
        "host": "www.example",
        "path": f"/some/path?{version}",
    }
    requests = [r for r in servers.received(proto=scheme) if r.path == f"/some/path?{version}"]
    assert [r.client for r in requests] == [getattr(lab.client.address, f"v{version[1]}")]


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        (["@10.99.0.1", "any.name", "A"], "10.99.0.1"),
        (["@fd99::1", "any.name", "AAAA"], "fd99::1"),
        (["+tcp", "@10.99.0.1", "any.name", "AAAA"], "fd99::1"),
        (["+tcp", "@fd99::1", "any.name", "A"], "10.99.0.1"),
        (["second.lab.example"], "10.99.0.11"),
        (["any.name", "MX"], ""),
    ],
)
def test_dig(plain: tuple[Lab, ServerSet], arguments: list[str], answer: str) -> None:
    lab, _ = plain
    done = lab.client.run(["dig", "+short", "+tries=1", "+time=5", *arguments], timeout=10)
    assert (done.returncode, done.stdout.strip()) == (0, answer)


def test_every_dns_query_is_in_the_log_at_once(plain: tuple[Lab, ServerSet]) -> None:
    lab, servers = plain
    for n in range(5):
        lab.client.run(["dig", "+short", f"query{n}.log.example"], timeout=10, check=True)
        assert [(r.host, r.path) for r in servers.received(proto="dns")][-1] == (f"query{n}.log.example", "A")


@pytest.mark.parametrize("address", ["10.99.0.1", "fd99::1"])
def test_ssh(plain: tuple[Lab, ServerSet], address: str) -> None:
    lab, servers = plain
    done = lab.client.run(servers.ssh_command("echo hi from $HOME", address=address), timeout=10)
    assert (done.returncode, done.stdout) == (0, f"hi from {lab.directory}/home\n"), done.stderr


@pytest.mark.parametrize("address", ["10.99.0.1", "fd99::1"])
def test_quic(plain: tuple[Lab, ServerSet], address: str) -> None:
    lab, servers = plain
    client = [sys.executable, "-m", "nedge.lab.quic_client", address, "www.example", "--path", f"/{address}"]
    done = lab.client.run(client, timeout=10)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["host"] == "www.example"
    assert [r.path for r in servers.received(proto="h3")][-1] == f"/{address}"


def test_quic_client_gives_up_in_time(plain: tuple[Lab, ServerSet]) -> None:
    lab, _ = plain
    began = time.monotonic()
    done = lab.client.run(
        [sys.executable, "-m", "nedge.lab.quic_client", "10.99.0.99", "www.example", "--timeout", "1"],
        timeout=10,
    )
    assert done.returncode == 1
    assert time.monotonic() - began < 4


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["https://www.example:4432/"], 0),
        (["--tlsv1.3", "https://www.example:4432/"], 35),  # TLS 1.2 only
        (["--tls-max", "1.2", "https://www.example:4433/"], 35),  # TLS 1.3 only
        (["https://www.example:4433/"], 0),
        (["https://www.example:4434/"], 60),  # expired
        (["-k", "https://www.example:4434/"], 0),
        (["https://expired.example/"], 60),
    ],
)
def test_tls_versions_and_certificates(plain: tuple[Lab, ServerSet], options: list[str], status: int) -> None:
    lab, servers = plain
    done = lab.client.run(["curl", "-sS", "--cacert", servers.ca, *options], timeout=10)
    assert done.returncode == status, done.stderr


def test_http_bodies(plain: tuple[Lab, ServerSet]) -> None:
    lab, _ = plain
    for url, size in (("/bytes/0", 0), ("/bytes/1", 1), ("/bytes/3000001", 3000001), ("/slow/1", 7)):
        done = lab.client.run(["curl", "-sS", f"http://10.99.0.1{url}"], timeout=10, check=True)
        assert len(done.stdout) == size
    upload = lab.client.run(
        ["curl", "-sS", "-d", "@-", "http://10.99.0.10/up"], input="x" * 200_000, timeout=10
    )
    assert json.loads(upload.stdout)["method"] == "POST"


def test_capture_has_every_packet(plain: tuple[Lab, ServerSet], tmp_path: Path) -> None:
    lab, _ = plain
    path = tmp_path / "lan.pcap"
    size = 3_000_000
    with lab.capture(lab.gateway, "lan0", path):
        lab.client.run(
            ["curl", "-sS", "-o", "/dev/null", f"http://10.99.0.1/bytes/{size}"], timeout=30, check=True
        )
        lab.client.run(["dig", "+short", "@10.99.0.1", "last.example"], timeout=10, check=True)
    packets = rdpcap(str(path))
    assert packets[0].haslayer(TCP) or packets[0].haslayer("ARP")
    data = [p for p in packets if p.haslayer(TCP) and p[TCP].sport == 80]
    payload = {
        p[TCP].seq: len(p[TCP].payload) for p in data if p["IP"].len > p["IP"].ihl * 4 + p[TCP].dataofs * 4
    }
    assert sum(payload.values()) > size
    assert max(len(p) for p in packets) <= 1514  # without offloads: nothing longer than on a real wire
    assert sum(p.haslayer(UDP) for p in packets) == 2
    # Checksums were filled in before the packets were captured.
    answer = next(p for p in packets if p.haslayer(UDP) and p[UDP].sport == 53)
    checksum = answer[UDP].chksum
    del answer[UDP].chksum
    assert type(answer)(bytes(answer))[UDP].chksum == checksum


def test_capture_tells_what_is_wrong(plain: tuple[Lab, ServerSet], tmp_path: Path) -> None:
    lab, _ = plain
    with pytest.raises(LabError, match="nosuch0"):
        lab.capture(lab.gateway, "nosuch0", tmp_path / "x.pcap")


TAKE_PORT_22 = """
import socket
with socket.create_server(("::", 22), family=socket.AF_INET6, dualstack_ipv6=True):
    print("taken", flush=True)
    input()
"""


def test_a_server_that_cannot_start_is_named(lab: Lab) -> None:
    taken = lab.server.popen(
        [sys.executable, "-c", TAKE_PORT_22],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert taken.stdout is not None
    assert taken.stdout.readline() == "taken\n"
    with (
        pytest.raises(LabError, match=r"dropbear ended with status 1: .*in use"),
        ServerSet(lab),
    ):
        pass
    lab.server.stop(taken)


def test_ports_are_not_connected_without_a_bridge(lab: Lab) -> None:
    done = lab.client.run(["ping", "-c1", "-W1", "10.99.0.1"], timeout=5)
    assert done.returncode != 0


def test_run_ends_what_takes_too_long(lab: Lab) -> None:
    with pytest.raises(subprocess.TimeoutExpired):
        lab.client.run(["sh", "-c", "sleep 100 & sleep 100"], timeout=0.3)
    until(lambda: pids_in(lab.client.namespace) == [])  # killed, but the system takes its time


LAB_COMMAND = [sys.executable, "-c", "from nedge.lab.cli import app; app(prog_name='nedge lab')"]


def test_demo_command() -> None:
    done = subprocess.run(
        [*LAB_COMMAND, "demo"], capture_output=True, text=True, env=environment(), timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "12 were answered, 10 were cut off" in done.stdout


@pytest.mark.parametrize(("command", "status"), [(["curl", "-sS", "http://www.example/"], 0), (["false"], 1)])
def test_run_command(command: list[str], status: int) -> None:
    done = subprocess.run(
        [*LAB_COMMAND, "run", "--", *command], capture_output=True, text=True, env=environment(), check=False
    )
    assert done.returncode == status, done.stderr
    assert ('"host": "www.example"' in done.stdout) is (status == 0)


def test_gateway_tells_why_it_does_not_start(lab: Lab) -> None:
    with (
        pytest.raises(LabError, match="nosuch0"),
        Gateway(lab, '[gateway]\nlan = ["nosuch0"]\nwan = ["wan0"]'),
    ):
        pass


def test_a_killed_gateway_leaves_nothing(lab: Lab) -> None:
    with Gateway(lab, PORTS) as gateway:
        ask = "from nedge.kernel.state import namespace_dir; print(namespace_dir())"
        state = Path(lab.gateway.run([sys.executable, "-c", ask], timeout=10).stdout.strip())
        assert state.exists()
        os.kill(gateway.pid, signal.SIGKILL)
    assert gateway.status == -signal.SIGKILL
    lab.close()
    assert not state.exists()


def leftovers(prefix: str) -> list[str]:
    """Whatever of a lab can still be found: namespaces, files, processes."""
    folders = (Path("/run/netns"), Path("/etc/netns"), Path(tempfile.gettempdir()))
    found = [str(path) for folder in folders if folder.is_dir() for path in folder.glob(f"{prefix}-*")]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if f"{prefix}-" in line:
            found.append(f"{process.name}: {line}")
    return found


def is_running(pid: int) -> bool:
    """False also for a zombie: one whose parent is gone is for the system to reap."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.alone  # others have files in /etc/netns
def test_nothing_is_left(lab: Lab) -> None:
    with ServerSet(lab):
        lab.client.popen(["sleep", "100"])
        lab.client.popen(["setsid", "sh", "-c", "sleep 100 & exec sleep 100"])
        assert leftovers(lab.prefix)
        pids = [pid for host in lab.hosts for pid in pids_in(host.namespace)]
        lab.close()
    assert leftovers(lab.prefix) == []
    assert [pid for pid in pids if is_running(pid)] == []
    assert not (Path("/etc/netns").exists() and not list(Path("/etc/netns").iterdir()))


def test_an_error_while_building_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab()

    def fail() -> None:
        raise LabError("no bridge today")

    lab.bridge = True
    monkeypatch.setattr(lab, "_connect", fail)
    with pytest.raises(LabError, match="no bridge today"), lab:
        pass
    assert leftovers(lab.prefix) == []


USER = """
import sys, time
from nedge.lab.topology import Lab
from nedge.lab.servers import ServerSet
with Lab(bridge=True) as lab:
    print(lab.prefix, flush=True)
    with ServerSet(lab):
        lab.client.popen(["sleep", "100"])
        print("up", flush=True)
        lab.client.run(["sleep", "100"], timeout=100)
"""


def start_user() -> subprocess.Popen[str]:
    """Another process that uses the lab."""
    return subprocess.Popen(
        [sys.executable, "-c", USER],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment(),
        start_new_session=True,
    )


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("wait_for_servers", [True, False])
def test_a_signal_leaves_nothing(signum: signal.Signals, wait_for_servers: bool) -> None:
    with start_user() as user:
        assert user.stdout is not None
        prefix = user.stdout.readline().strip()
        if wait_for_servers:
            assert user.stdout.readline() == "up\n"
        assert leftovers(prefix)
        os.killpg(user.pid, signum)
        time.sleep(0.05)
        os.killpg(user.pid, signum)  # an impatient user
        assert user.wait(20) != 0
    assert leftovers(prefix) == []


@pytest.mark.alone  # whoever makes a lab sweeps
def test_sweep_removes_the_lab_of_a_killed_owner_only(lab: Lab) -> None:
    with start_user() as user, start_user() as other:
        assert user.stdout is not None
        assert other.stdout is not None
        prefix, alive = user.stdout.readline().strip(), other.stdout.readline().strip()
        assert user.stdout.readline() == other.stdout.readline() == "up\n"
        user.kill()
        user.wait()
        assert leftovers(prefix)
        assert prefix in Lab.sweep()
        assert leftovers(prefix) == []
        assert leftovers(alive)
        assert leftovers(lab.prefix)
        other.terminate()
    assert leftovers(alive) == []
