"""The gateway as a service manager runs it: with two capabilities, told of what happens, handed over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyroute2
import pytest
from support import require
from test_keeper import ours, ping
from test_offload import https, kept, until

import nedge
from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import CLIENT, Lab

NOBODY = "61234"
CAPABILITIES = "-all,+net_admin,+net_raw"
PYTHON = "/usr/bin/python3"  # the one that tests run may be for root's eyes only
SERVICE = [
    *("setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--groups", "0", "--no-new-privs"),
    *("--inh-caps", CAPABILITIES, "--ambient-caps", CAPABILITIES, "--bounding-set", CAPABILITIES),
]
# The project and its packages may lie where only root may look: they are shown at another place.
SHOWN = 'mount --bind "$1" "$3/project" && mount --bind "$2" "$3/packages" && shift 3 && exec "$@"'
BLOCKED = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
EVERYTHING = (
    PORTS
    + 'arp = "pass"\nother_frames = "drop"\nvlans = [7]\nworkers = 2\n'
    + EVENTS
    + '[verdict]\nhost_drop_score = 500\naction = "reject"\n'
    + BLOCKED
)
"""Every kind of rule: iptables, ebtables, ipset; zones; injected packets."""


def nedge_in(
    lab: Lab, *arguments: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return lab.gateway.run([sys.executable, "-m", "nedge", *arguments], env=env)


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        path.chmod(0o777)
        self.path = path

    def next(self, word: str, seconds: float = 30) -> dict[str, str]:
        """The next message with this variable; those before are skipped."""
        deadline = time.monotonic() + seconds
        while True:
            self._socket.settimeout(max(0.01, deadline - time.monotonic()))
            text = self._socket.recv(4096).decode()
            message = dict(line.split("=", 1) for line in text.splitlines())
            if word in message:
                return message

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    manager = Manager(tmp_path / "notify")
    yield manager
    manager.close()


def start(lab: Lab, config: str, env: dict[str, str]) -> Started:
    (lab.directory / "nedge.toml").write_text(config)
    return Started(lab, lab.directory, [sys.executable], env)


def start_as_service(lab: Lab, config: str, env: dict[str, str]) -> Started:
    """As a user who is nobody, with two capabilities."""
    version = subprocess.run(
        [PYTHON, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=True
    )
    require(version.stdout.split() == [*map(str, sys.version_info[:2])], f"{PYTHON} is another version")
    shown, directory = lab.directory / "shown", lab.directory / "service"
    for folder in (shown / "project", shown / "packages", directory):
        folder.mkdir(parents=True)
    lab.directory.chmod(0o755)
    os.chown(directory, int(NOBODY), int(NOBODY))
    (directory / "nedge.toml").write_text(config)
    project, packages = Path(nedge.__file__).parents[1], Path(pyroute2.__file__).parents[1]
    show = ["sh", "-c", SHOWN, "sh", str(project), str(packages), str(shown)]
    env = env | {"PYTHONPATH": f"{shown}/project:{shown}/packages", "PYTHONDONTWRITEBYTECODE": "1"}
    return Started(lab, directory, [*show, *SERVICE, PYTHON], env)


class Started:
    """`nedge run` by a Python and in an environment."""

    def __init__(self, lab: Lab, directory: Path, python: Sequence[str], env: dict[str, str]) -> None:
        self.log = directory / "log"
        self.config = directory / "nedge.toml"
        with self.log.open("w") as log:
            self.process = lab.gateway.popen(
                [*python, "-m", "nedge", "run", "--config", self.config],
                stdout=log,
                stderr=log,
                env=env,
                cwd="/",
            )

    def logged(self, event: str) -> list[dict[str, object]]:
        lines = (json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def ready(self) -> None:
        until(lambda: self.process.poll() is not None or self.logged("gateway_ready"), 30)
        assert self.process.poll() is None, self.log.read_text()

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture(params=["nft", "legacy"])
def flavour(request: pytest.FixtureRequest, lab: Lab) -> dict[str, str]:
    """Both kinds of iptables, by way of PATH, where not only root gets to."""
    binary = shutil.which(f"xtables-{request.param}-multi")
    require(binary, f"xtables-{request.param}-multi is not installed")
    assert binary is not None
    lab.directory.chmod(0o755)
    folder = lab.directory / "bin"
    folder.mkdir()
    for family in ("iptables", "ip6tables"):
        for program in (family, f"{family}-save", f"{family}-restore"):
            (folder / program).symlink_to(binary)
    return {"PATH": f"{folder}:{os.environ['PATH']}"}


@pytest.fixture
def run_directory(lab: Lab) -> Path:
    """What RuntimeDirectory= does for the service: a directory of its own for what it leaves behind."""
    tell = "from nedge.kernel.state import namespace_dir; print(namespace_dir())"
    path = Path(lab.gateway.run([sys.executable, "-c", tell], check=True).stdout.strip())
    path.mkdir(parents=True, exist_ok=True)
    os.chown(path, int(NOBODY), int(NOBODY))
    return path


@pytest.mark.alone  # its lock on iptables is the machine's
def test_two_capabilities_are_enough(
    lab: Lab, servers: ServerSet, flavour: dict[str, str], run_directory: Path
) -> None:
    """As another user than root: rules, bridge, sysctls, sets, reloads, and all of it taken back."""
    lock = Path("/run/xtables.lock")  # as deploy/system/tmpfiles.conf has it
    lock.touch()
    before = lock.stat()
    os.chown(lock, 0, int(NOBODY))
    lock.chmod(0o660)
    try:
        started = start_as_service(lab, EVERYTHING, flavour)
        started.ready()
        held = Path(f"/proc/{started.process.pid}/status").read_text()
        assert f"Uid:\t{NOBODY}\t" in held
        assert "CapEff:\t0000000000003000" in held  # CAP_NET_ADMIN, CAP_NET_RAW
        assert https(lab, "www.example")
        assert not https(lab, "blocked.example")
        started.process.send_signal(signal.SIGHUP)
        until(lambda: started.logged("reloaded"))
        assert https(lab, "www.example")
        report = nedge_in(lab, "doctor", "--config", started.config, env=flavour)
        assert report.returncode == 0, report.stdout
        assert started.end() == 0
        problems = [line for line in started.log.read_text().splitlines() if '"level": "error"' in line]
        assert problems == []
        assert started.logged("gateway_totals")[0]["rules_restored"] == 0
        assert started.logged("gateway_totals")[0]["restore_failures"] == 0
        assert started.logged("gateway_totals")[0]["rejects_failed"] == 0
    finally:
        os.chown(lock, before.st_uid, before.st_gid)
        lock.chmod(before.st_mode & 0o777)
    assert ours(lab) == []
    assert "nedge0" not in lab.gateway.run(["ip", "link"]).stdout


def test_what_the_manager_is_told(lab: Lab, servers: ServerSet, manager: Manager) -> None:
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "2000000"}
    started = start(lab, PORTS + EVENTS + BLOCKED, env)
    ready = manager.next("READY")
    assert ready["READY"] == "1"
    assert ready["STATUS"] == "inline, 1 worker, 0 restarted; 0 flows"
    assert started.logged("gateway_ready")  # not before it is
    assert manager.next("WATCHDOG")["WATCHDOG"] == "1"

    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    started.process.send_signal(signal.SIGHUP)
    reloading = manager.next("RELOADING")
    assert before <= int(reloading["MONOTONIC_USEC"]) <= time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    assert "READY" not in reloading
    manager.next("READY")

    started.config.write_text("nonsense")
    started.process.send_signal(signal.SIGHUP)
    manager.next("RELOADING")
    assert "the old one stays" in manager.next("READY")["STATUS"]

    with kept(lab, "www.example") as connection:  # a flow that stays
        assert connection.ask() == "answered"
        while "; 0 flows" in (status := manager.next("STATUS")["STATUS"]) or "flows" not in status:
            pass
    started.process.send_signal(signal.SIGTERM)
    assert manager.next("STOPPING")["STOPPING"] == "1"
    assert started.process.wait(60) == 0


def test_no_sign_of_life_without_workers(lab: Lab, manager: Manager) -> None:
    """The watchdog has to find out that workers die as soon as they start."""
    env = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": "1000000"}
    started = start(lab, PORTS, env)
    manager.next("WATCHDOG")
    os.kill(started.process.pid, signal.SIGSTOP)  # no loop, no sign
    drain(manager)
    with pytest.raises(TimeoutError):
        manager.next("WATCHDOG", 2)
    os.kill(started.process.pid, signal.SIGCONT)
    manager.next("WATCHDOG")
    # The queue is taken from the worker: none can start again.
    (worker,) = map(
        int, Path(f"/proc/{started.process.pid}/task/{started.process.pid}/children").read_text().split()
    )
    hold = "import socket, time; from netfilterqueue import NetfilterQueue as Q; import sys\nwhile True:\n"
    hold += " try:\n  q = Q(); q.bind(71, print); break\n except OSError: time.sleep(0.001)\n"
    hold += "print('held', flush=True); sys.stdin.read()\n"
    holder = lab.gateway.popen(
        [sys.executable, "-c", hold],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"PYTHONUNBUFFERED": "1"},
    )
    os.kill(worker, signal.SIGKILL)
    assert holder.stdout is not None
    if holder.stdout.readline() != "held\n":
        pytest.fail("the queue could not be taken")
    drain(manager)
    with pytest.raises(TimeoutError):
        manager.next("WATCHDOG", 3)
    assert holder.stdin is not None
    holder.stdin.close()
    holder.wait(10)
    manager.next("WATCHDOG")
    assert started.end() == 0


def drain(manager: Manager) -> None:
    while True:
        try:
            manager.next("WATCHDOG", 0.3)
        except TimeoutError:
            return


def test_a_gateway_is_handed_over(lab: Lab, servers: ServerSet) -> None:
    """SIGUSR2, as a restart sends it: what is decided stays decided, and the bridge does not go away."""
    config = PORTS + EVENTS + BLOCKED
    started = start(lab, config, {})
    started.ready()
    with kept(lab, "www.example") as connection:
        assert connection.ask() == "answered"
        rules = ours(lab)
        bridge = lab.gateway.run(["cat", "/sys/class/net/nedge0/ifindex"], check=True).stdout
        assert started.end(signal.SIGUSR2) == 0
        assert ours(lab) == rules
        assert connection.ask() == "answered"
        assert ping(lab, "10.99.0.1")
        with Gateway(lab, config) as gateway:
            assert ours(lab) == rules
            assert lab.gateway.run(["cat", "/sys/class/net/nedge0/ifindex"]).stdout == bridge
            assert connection.ask() == "answered"
            assert not https(lab, "blocked.example")
            flows = [event for event in gateway.events() if event["src_ip"] == CLIENT.v4]
            assert not [event for event in flows if event["dest_port"] == 443 and "www" in str(event)]
    assert ours(lab) == []


def test_cleanup_after_a_crash(lab: Lab) -> None:
    with Gateway(lab, PORTS) as gateway:
        os.kill(gateway.pid, signal.SIGKILL)
        until(lambda: "nedge0" in lab.gateway.run(["ip", "link"]).stdout)
    assert ours(lab) != []
    report = nedge_in(lab, "doctor", "--config", gateway.directory / "nedge.toml")
    assert "gateway: one crashed on bridge nedge0" in report.stdout
    assert nedge_in(lab, "cleanup").returncode == 0
    assert ours(lab) == []
    assert "nedge0" not in lab.gateway.run(["ip", "link"]).stdout
