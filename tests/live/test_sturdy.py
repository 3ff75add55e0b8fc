"""What must not move the firewall: signals to all of its processes, full disks, damaged files."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from test_events import exporter, flows, lines, requests
from test_keeper import ours
from test_offload import https, kept, until

from nedge.interpreter import SUPERVISORS
from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.host import pids_in
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

BLOCKED = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
SHORT = "[limits]\nclosed_seconds = 1\nidle_seconds = 2\n"


def nedge(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.gateway.run([sys.executable, "-m", "nedge", *arguments])


def status(lab: Lab) -> dict[str, Any]:
    done = nedge(lab, "status", "--json")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def processes(lab: Lab, gateway: Gateway) -> list[int]:
    """All of the service, as `systemctl kill` finds them: the supervisor and all below it."""
    found = [gateway.pid]
    for pid in found:
        found += map(int, lab.gateway.run(["pgrep", "-P", str(pid)]).stdout.split())
    return found


def signal_all(lab: Lab, gateway: Gateway, number: signal.Signals, *, but: int = 0) -> None:
    for pid in processes(lab, gateway):
        if pid != but:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)


def test_signals_to_all_processes(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, PORTS + "workers = 2\n" + EVENTS + BLOCKED) as gateway:
        until(lambda: exporter(lab, gateway))
        before = processes(lab, gateway)
        with kept(lab, "www.example") as connection:
            assert connection.ask() == "answered"
            requests(lab, 20)
            signal_all(lab, gateway, signal.SIGUSR1)
            signal_all(lab, gateway, signal.SIGHUP)
            until(lambda: gateway.logged("reloaded"))
            until(lambda: len(gateway.logged("worker_ready")) == 4)
            assert processes(lab, gateway) == before
            requests(lab, 20)
            rules = ours(lab)
            signal_all(lab, gateway, signal.SIGUSR2)
            until(lambda: not Path(f"/proc/{gateway.pid}/exe").exists(), 60)
            assert ours(lab) == rules, "they stay for the next start"
            assert connection.ask() == "answered"
        assert gateway.stop() == 0
        assert len(flows(gateway.events())) == 41
        assert gateway.logged("gateway_stopping")[-1]["signal"] == signal.SIGUSR2
        (totals,) = gateway.logged("gateway_totals")
        assert (totals["worker_restarts"], totals["exporter_restarts"]) == (0, 0)
        assert (totals["events_lost"], totals["supervisor_errors"]) == (0, 0)
    with Gateway(lab, PORTS + EVENTS + BLOCKED) as gateway:
        signal_all(lab, gateway, signal.SIGTERM)
        until(lambda: not Path(f"/proc/{gateway.pid}/exe").exists(), 60)
        assert gateway.stop() == 0
        assert not gateway.logged("worker_restarted")
    assert ours(lab) == []


def packing(lab: Lab) -> bool:
    """Whether a list is being packed, by the gateway of this lab."""
    found = lab.gateway.run(["pgrep", "-f", "nedge.lists.job"]).stdout.split()
    return not set(pids_in(lab.gateway.namespace)).isdisjoint(map(int, found))


def test_signals_while_a_list_is_packed(lab: Lab, servers: ServerSet) -> None:
    """Nobody waits for it, and who is signalled does not end it."""
    text = PORTS + EVENTS + '[lists]\nmalware_domains = ["names"]\ncache_directory = "cache"\n'
    names = lab.directory / "gateway" / "names"
    names.parent.mkdir(exist_ok=True)
    names.write_text("bad.example\n")
    with Gateway(lab, text) as gateway:
        names.write_text("".join(f"host{n}.example\n" for n in range(200_000)))
        os.kill(gateway.pid, signal.SIGHUP)
        until(lambda: packing(lab))
        asked = 0
        while not gateway.logged("reloaded"):
            for number in SUPERVISORS:
                signal_all(lab, gateway, number, but=gateway.pid)
            assert status(lab)["workers"][0]["health"] == "ok"
            asked += 1
            assert not gateway.logged("reload_failed")
        assert asked
        until(lambda: not https(lab, "host7.example"))
        assert https(lab, "www.example")
        assert not gateway.logged("worker_restarted")


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "nedge-test", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def fill_up(path: Path) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(fd, bytes(1024))
    except OSError:
        os.close(fd)


def test_everything_on_a_full_disk(lab: Lab, servers: ServerSet, tmp_path: Path) -> None:
    """Events, history, orders, lists."""
    names = tmp_path / "names"
    names.write_text("bad.example\n")
    with small_disk(tmp_path / "disk") as disk:
        text = (
            PORTS + f'workers = 2\n[eve]\npath = "{disk}/eve.json"\n[history]\npath = "{disk}/history.db"\n'
        )
        text += f'[control]\nstate = "{disk}"\n[lists]\nmalware_domains = ["{names}"]\n'
        text += f'cache_directory = "{disk}/cache"\n' + BLOCKED + SHORT
        with Gateway(lab, text) as gateway:
            requests(lab, 2)
            until(lambda: flows(lines(disk / "eve.json")))
            fill_up(disk / "filler")
            done = nedge(lab, "block", "mine.example")
            assert done.returncode == 1
            assert "in force, but will not outlive the gateway" in done.stderr
            assert "No space left on device" in done.stderr
            requests(lab, 40)
            names.write_text("bad.example\nworse.example\n")
            done = nedge(lab, "reload")
            assert done.returncode == 1
            assert f"{disk}/cache: cannot be used: No space left on device" in done.stderr
            until(lambda: gateway.logged("eve_write_failed") and gateway.logged("history_failed"), 60)
            for name in ("blocked.example", "mine.example", "bad.example"):
                assert not https(lab, name)
            for name in ("www.example", "worse.example"):
                assert https(lab, name)
            found = status(lab)
            assert found["losses"]["events_lost"] > 0
            assert found["failures"]["history_failures"] > 0
            assert found["control"]["orders_unstored"] > 0
            assert found["failures"]["supervisor_errors"] == found["counters"]["worker_restarts"] == 0
            os.kill(gateway.pid, signal.SIGKILL)
            until(lambda: not Path(f"/proc/{gateway.pid}/exe").exists())
        os.truncate(
            disk / "filler", os.stat(disk / "filler").st_size - 4096
        )  # no more than an event file wants
        fill_up(disk / "filler")
        with Gateway(lab, text) as gateway:  # it starts, with what it has
            assert gateway.logged("lists_not_packed")
            for name in ("blocked.example", "bad.example"):
                assert not https(lab, name)
            assert https(lab, "www.example")
            nedge(lab, "block", "mine.example")
            (disk / "filler").unlink()
            until(lambda: gateway.logged("orders_stored"), 60)
            assert "mine.example" in (disk / "nedge0.orders.json").read_text()
            assert nedge(lab, "reload").returncode == 0
            until(lambda: not https(lab, "worse.example"))
            before = len(lines(disk / "eve.json"))
            requests(lab, 2)
            until(lambda: len(lines(disk / "eve.json")) > before, 60)
            assert gateway.stop() == 0


@pytest.mark.parametrize("junk", [b"", secrets.token_bytes(30_000)], ids=["empty", "rubbish"])
def test_damaged_files(lab: Lab, servers: ServerSet, junk: bytes) -> None:
    """History and orders, at the start and while it runs."""
    directory = lab.directory / "gateway"
    history, orders = directory / "history.db", directory / "state" / "nedge0.orders.json"
    orders.parent.mkdir(parents=True)
    for path in (history, orders):
        path.write_bytes(junk)
    text = PORTS + '[history]\npath = "history.db"\n[control]\nstate = "state"\n' + BLOCKED + SHORT
    with Gateway(lab, text) as gateway:
        (damaged,) = gateway.logged("orders_damaged")
        assert Path(damaged["kept"]).read_bytes() == junk
        if junk:
            until(lambda: gateway.logged("history_set_aside"))
            assert Path(gateway.logged("history_set_aside")[0]["moved_to"]).read_bytes() == junk
        assert status(lab)["control"]["orders_damaged"] == 1
        assert nedge(lab, "block", "mine.example").returncode == 0
        requests(lab, 4)
        until(lambda: rows(lab, directory) >= 4, 60)
        for path in (history, orders):
            os.truncate(path, 0)
            path.write_bytes(junk)
        requests(lab, 20)
        for name in ("blocked.example", "mine.example"):
            assert not https(lab, name)
        assert https(lab, "www.example")
        assert nedge(lab, "block", "other.example").returncode == 0
        until(lambda: rows(lab, directory) > 0, 60)
        found = status(lab)
        assert found["failures"]["supervisor_errors"] == found["counters"]["worker_restarts"] == 0
        assert gateway.stop() == 0
    with Gateway(lab, text) as gateway:
        assert not gateway.logged("orders_damaged"), "it was written whole with the next order"
        assert not https(lab, "mine.example")
        assert not https(lab, "other.example")


def rows(lab: Lab, directory: Path) -> int:
    """How many flows the history tells of."""
    done = nedge(
        lab, "history", "flows", "--json", "--limit", "1000", "--config", str(directory / "nedge.toml")
    )
    return len(done.stdout.splitlines())


@pytest.mark.parametrize("days", [400, -400])
def test_the_clock_is_set(
    lab: Lab, servers: ServerSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: int
) -> None:
    """For all processes of the gateway, while a decided connection goes on."""
    flag = tmp_path / "set"
    (tmp_path / "sitecustomize.py").write_text(
        "import os, time\n"
        "real = time.time\n"
        f"time.time = lambda: real() + (86400 * {days} if os.path.exists({str(flag)!r}) else 0)\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with Gateway(lab, PORTS + "workers = 2\n" + EVENTS + BLOCKED) as gateway:
        with kept(lab, "www.example") as connection:
            assert connection.ask() == "answered"
            before = set(gateway.workers())
            flag.touch()
            until(lambda: len(set(gateway.workers()) - before) == 2, 60)
            until(lambda: len(gateway.logged("worker_ready")) == 4, 30)
            assert connection.ask() == "answered"
            for number in range(5):
                assert https(lab, f"later{number}.example")
            assert not https(lab, "blocked.example")
        assert {log["why"] for log in gateway.logged("worker_restarted")} == {
            f"the machine's clock was set by {86400 * days} s"
        }
        gateway.stop()
        assert gateway.status == 0
    now = datetime.now(UTC) + timedelta(days=days)
    later = [event for event in gateway.events() if "later" in event["ndpi"]["hostname"]]
    assert len(later) == 5
    for event in later:
        assert abs(datetime.fromisoformat(event["flow"]["start"]) - now) < timedelta(minutes=5)
