"""The operator at work: a real gateway, real clients, and the commands as they are typed."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from test_offload import Kept, connections, curl, https, kept, until

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

STATE = '[control]\nstate = "state"\n'
CONFIG = PORTS + EVENTS + STATE
BLOCKED = '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
CLIENT, SERVER = "10.99.0.2", "10.99.0.1"

# The command as another user runs it, where that user may be unable to read this very Python.
AS_NOBODY = """
import os, sys
import nedge.cli, nedge.config, nedge.control.show, nedge.control.options, rich.table, rich.live
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
nedge.cli.main()
"""


def nedge(lab: Lab, *arguments: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """Type a command in the gateway's namespace."""
    program = ["-c", code] if code else ["-m", "nedge"]
    done = lab.gateway.run([sys.executable, *program, *arguments], timeout=60)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def ok(lab: Lab, *arguments: str) -> str:
    """What a command prints that works."""
    done = nedge(lab, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def records(lab: Lab, *arguments: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in ok(lab, *arguments, "--json").splitlines()]


def record(lab: Lab, *arguments: str) -> dict[str, Any]:
    (found,) = records(lab, *arguments)
    return found


def flow_to(lab: Lab, name: str) -> dict[str, Any]:
    """The live flow that asked for a name."""
    return record(lab, "flows", "--host", name)


def failure(lab: Lab, status: int, *arguments: str, code: str = "") -> str:
    """What a command says that fails."""
    done = nedge(lab, *arguments, code=code)
    assert (done.returncode, done.stdout) == (status, ""), done
    return done.stderr


def reachable(lab: Lab, name: str) -> bool:
    """Whether a new connection to a name is answered, however slow this machine is."""
    return curl(lab, f"https://{name}/", "--resolve", f"{name}:443:{SERVER}", timeout=20)


def back(connection: Kept) -> None:
    """The connection works (again): at the latest with a segment that TCP sends anew."""
    until(lambda: connection.ask() == "answered", 60)


# A plain HTTP connection over IPv6 that stays open.
SIX = """
import socket, time
with socket.create_connection(("fd99::1", 80), 20) as connection:
    connection.sendall(b"GET / HTTP/1.1\\r\\nHost: six.example\\r\\n\\r\\n")
    print(connection.recv(9).decode(), flush=True)
    time.sleep(600)
"""


def test_looking(lab: Lab, servers: ServerSet) -> None:
    config = PORTS + "workers = 2\n" + EVENTS + STATE + BLOCKED
    with Gateway(lab, config) as gateway, kept(lab, "www.example") as connection:
        back(connection)
        six = lab.client.popen([sys.executable, "-c", SIX], stdout=subprocess.PIPE)
        assert six.stdout
        assert six.stdout.readline() == "HTTP/1.1 \n"
        assert not https(lab, "blocked.example")
        flows = records(lab, "flows")
        assert {flow["hostname"]: (flow["verdict"], flow["kernel"]) for flow in flows} == {
            "www.example": ("pass", "pass"),
            "six.example": ("pass", "watch"),
            "blocked.example": ("drop", "drop"),
        }
        assert [flow["hostname"] for flow in records(lab, "flows", "--verdict", "blocked")] == [
            "blocked.example"
        ]
        status = record(lab, "status")
        assert (status["bridge"], status["mode"], status["generation"]) == ("nedge0", "inline", 0)
        assert status["live_flows"] in (2, 3)  # the blocked one may have ended
        assert sorted(worker["pid"] for worker in status["workers"]) == sorted(gateway.workers())
        assert [worker["health"] for worker in status["workers"]] == ["ok", "ok"]
        assert status["pid"] == gateway.pid
        assert not any(status["losses"].values())
        assert not any(status["failures"].values())
        (v6,) = records(lab, "flows", "--host", "fd99::/64")
        assert (v6["proto"], v6["src_ip"], v6["dest_port"]) == ("TCP", "fd99::2", 80)
        hosts = {host["ip"]: host for host in records(lab, "hosts")}
        assert set(hosts) == {CLIENT, SERVER, "fd99::1", "fd99::2"}
        assert hosts["fd99::1"]["bytes_sent"] >= v6["bytes_toclient"] > 0
        scripts = {script["script"]: script for script in records(lab, "scripts")}
        assert sorted(scripts) == sorted(status["scripts"])
        assert scripts["blocked_hostname"]["flows_dropped"] == 1
        assert scripts["blocked_hostname"]["calls"] >= 3
        assert "six.example" in ok(lab, "flows")


def test_explain(lab: Lab, servers: ServerSet) -> None:
    settings = "[scripts.blocked_hostname]\ndomains = ['blocked.example']\nclient_score = 7\n"
    with Gateway(lab, CONFIG + settings), kept(lab, "www.example") as connection:
        back(connection)
        before = time.time()
        assert not https(lab, "blocked.example")
        story = record(lab, "explain", flow_to(lab, "blocked.example")["id"])
        assert story["verdict"]["rule"] == "status"
        assert story["verdict"]["detail"] == "status_blacklisted"
        assert story["verdict"]["time"] == pytest.approx(before, abs=120)
        status = next(one for one in story["statuses"] if one["script"] == "blocked_hostname")
        assert (status["status"], status["score"], status["cli_score"]) == ("status_blacklisted", 100, 7)
        assert status["time"] == pytest.approx(before, abs=120)
        assert story["detection"]["protocol"].startswith("TLS")
        assert story["detection"]["facts"]["sni"] == "blocked.example"
        kernel = story["kernel"]
        assert (kernel["mark"], kernel["share"], kernel["current"]) == (0x20000000, "drop", True)
        passing = flow_to(lab, "www.example")
        first = record(lab, "explain", passing["id"])
        assert (first["verdict"]["rule"], first["kernel"]["share"]) == ("clean", "pass")
        for _ in range(20):
            back(connection)
        later = record(lab, "explain", passing["id"])
        assert later["kernel"]["packets"][0] >= first["kernel"]["packets"][0] + 20, "read live"
        assert later["flow"]["pkts_toserver"] == later["kernel"]["packets"][0]
        page = ok(lab, "explain", passing["id"])
        for part in ("www.example", "passes it by itself", "nothing objects", "decided"):
            assert part in page, page
        assert "there is no flow 0-9999" in failure(lab, 1, "explain", "0-9999")


def test_a_blocked_domain_stops_at_once(lab: Lab, servers: ServerSet) -> None:
    """Also on connections that are established, and that the kernel has taken over."""
    with Gateway(lab, CONFIG), kept(lab, "www.example") as connection, kept(lab, "allowed.example") as other:
        back(connection)
        back(other)
        assert flow_to(lab, "www.example")["kernel"] == "pass"
        said = ok(lab, "block", "example", "--reason", "a test")
        assert "blocked domain example (order 1, for good); 2 live flows changed" in said
        assert connection.ask() == "silence"
        assert other.ask() == "silence"
        assert not https(lab, "www.example")
        assert set(re.findall(r"ESTABLISHED.*mark=(\d+)", connections(lab))) == {"536870912"}  # drop
        blocked = next(flow for flow in records(lab, "flows") if flow["hostname"] == "www.example")
        story = record(lab, "explain", blocked["id"])
        assert story["verdict"]["rule"] == "operator_block"
        assert story["verdict"]["detail"] == "order 1 on domain example (a test)"
        assert story["kernel"]["share"] == "drop"
        # The longest name speaks.
        assert "2 live flows changed" in ok(lab, "unblock", "www.example")
        assert reachable(lab, "www.example")
        back(connection)
        assert other.ask() == "silence"
        assert "1 live flow changed" in ok(lab, "forget", "example")
        back(other)
        assert [order["target"] for order in records(lab, "orders")] == ["www.example"]
        assert not any(record(lab, "status")["failures"].values())


# Marks of two connections, by the keys of either direction, and of one that is gone.
MARKS = """
import select
from nedge.core.packet import TCP, reverse_key
from nedge.kernel.conntrack import Conntrack
conntrack = Conntrack()
conntrack.start_dump(0, 0)
keys = []
while conntrack.dumping:
    select.select([conntrack.dump_fileno], [], [], 1)
    keys += [connection.key for connection in conntrack.dumped() if connection.key[2] == TCP]
four, six = sorted(keys, key=len)
gone = four[:-2] + bytes(2)
before = conntrack.find(six).mark
conntrack.set_marks([(four, 1), (gone, 2), (reverse_key(six), 3)] * 150, 7)
assert conntrack.find(gone) is None
assert conntrack.find(reverse_key(four)).key == four
assert conntrack.set_mark(gone, 1, 7) is False
assert conntrack.find(six).mark & ~7 == before & ~7
print(conntrack.find(four).mark & 7, conntrack.find(six).mark & 7)
"""


def test_marks_of_many_connections(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG):
        assert curl(lab, f"http://{SERVER}/", timeout=20)
        assert curl(lab, "http://[fd99::1]/", timeout=20)
        done = lab.gateway.run([sys.executable, "-c", MARKS])
        assert (done.stdout, done.stderr) == ("1 3\n", "")


def test_unblock_wins_over_scripts(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG + BLOCKED):
        assert not https(lab, "blocked.example")
        ok(lab, "unblock", SERVER)
        assert reachable(lab, "blocked.example")
        ok(lab, "forget", SERVER)
        assert not https(lab, "blocked.example")


def test_a_flow_is_blocked_alone(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG), kept(lab, "www.example") as connection, kept(lab, "allowed.example") as other:
        back(connection)
        back(other)
        flow = flow_to(lab, "www.example")
        assert "1 live flow changed" in ok(lab, "block", flow["id"])
        assert connection.ask() == "silence"
        back(other)
        assert reachable(lab, "www.example")
        assert "1 live flow changed" in ok(lab, "forget", flow["id"])
        back(connection)


def test_an_order_ends_by_itself(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG) as gateway, kept(lab, "www.example") as connection:
        back(connection)
        assert "1 live flow changed" in ok(lab, "block", CLIENT, "--for", "2s")
        until(lambda: '"order_over"' in gateway.log, 60)
        reasons = [event["nedge"]["reason"] for event in gateway.events("drop")]
        assert f"operator_block: order 1 on host {CLIENT}" in reasons
        back(connection)
        assert curl(lab, f"http://{SERVER}/", timeout=20)
        assert records(lab, "orders") == []


def test_orders_outlive_reload_worker_and_restart(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG) as gateway:
        ok(lab, "block", "www.example", "--reason", "for good")
        assert not https(lab, "www.example")
        ok(lab, "reload")
        assert not https(lab, "www.example")
        flow = records(lab, "flows", "--host", "www.example")[0]["id"]
        (worker,) = gateway.workers()
        os.kill(worker, signal.SIGKILL)
        until(lambda: gateway.log.count('"worker_ready"') == 3, 60)
        assert not https(lab, "www.example")
        assert reachable(lab, "allowed.example")
        assert "the worker that had it has been replaced" in failure(lab, 1, "explain", flow)
    with Gateway(lab, CONFIG):
        assert not https(lab, "www.example")
        assert reachable(lab, "allowed.example")
        (order,) = records(lab, "orders")
        assert (order["id"], order["target"], order["reason"]) == (1, "www.example", "for good")
        ok(lab, "forget", "1")
        assert reachable(lab, "www.example")


def test_a_damaged_file_of_orders_is_set_aside(lab: Lab, servers: ServerSet) -> None:
    state = lab.directory / "gateway" / "state"
    state.mkdir(parents=True)
    (state / "nedge0.orders.json").write_text('{"version": 1, "orders": [')
    with Gateway(lab, CONFIG) as gateway:
        assert '"orders_damaged"' in gateway.log
        assert record(lab, "status")["control"]["orders_damaged"] == 1
        assert "orders damaged 1" in ok(lab, "status")
        ok(lab, "block", "www.example")
        assert len(list(state.glob("*.damaged-*"))) == 1


@pytest.mark.parametrize("who", ["gateway", "worker"])
def test_connections_that_a_crash_left_are_reached(lab: Lab, servers: ServerSet, who: str) -> None:
    """The kernel goes on passing them, and no worker knows them."""
    with Gateway(lab, CONFIG) as gateway, kept(lab, "www.example") as connection:
        back(connection)
        (worker,) = gateway.workers()
        if who == "worker":
            os.kill(worker, signal.SIGKILL)
            until(lambda: gateway.log.count('"worker_ready"') == 2, 60)
            reached(lab, connection)
        else:
            os.kill(gateway.pid, signal.SIGKILL)
            until(lambda: not Path(f"/proc/{worker}").exists())
            gateway.stop()
            with Gateway(lab, CONFIG):
                reached(lab, connection)


def reached(lab: Lab, connection: Kept) -> None:
    back(connection)
    assert records(lab, "flows") == [], "nobody knows it"
    ok(lab, "block", SERVER)
    until(lambda: connection.ask() == "silence", 60)
    ok(lab, "forget", SERVER)
    back(connection)


def test_a_quarantined_host_is_released(lab: Lab, servers: ServerSet) -> None:
    settings = "[verdict]\nhost_drop_score = 50\n" + BLOCKED + "client_score = 60\n"
    with Gateway(lab, CONFIG + settings), kept(lab, "www.example") as connection:
        back(connection)
        assert "is not in quarantine" in failure(lab, 1, "release", CLIENT)
        assert not https(lab, "blocked.example")
        assert connection.ask() == "silence"
        assert not https(lab, "www.example")
        host = record(lab, "hosts", "--quarantined")
        assert (host["ip"], host["score"]) == (CLIENT, 60)
        assert host["quarantined_until"] > time.time() + 60
        assert record(lab, "status")["quarantined"] == [CLIENT]
        assert f"{CLIENT} is free" in ok(lab, "release", CLIENT)
        assert reachable(lab, "www.example")
        back(connection)
        assert records(lab, "hosts", "--quarantined") == []
        assert not https(lab, "blocked.example")  # and that counts again
        assert record(lab, "hosts", "--quarantined")["ip"] == CLIENT


def test_reload_says_what_came_of_it(lab: Lab, servers: ServerSet) -> None:
    directory = lab.directory / "gateway" / "policies"
    directory.mkdir(parents=True)
    script = directory / "mine.py"
    good = (
        "from nedge.scripts import status_types\n"
        "def protocolDetected(flow, now, conf):\n"
        "    if flow.getHostName() == 'www.example':\n"
        "        flow.setStatus(status_types.status_user_01, 100)\n"
    )
    script.write_text("def protocolDetected(flow, now, conf): pass\n")
    with Gateway(lab, CONFIG + '[scripts]\ndirectories = ["policies"]\n') as gateway:
        assert reachable(lab, "www.example")
        script.write_text(good + "\noops(\n")
        said = failure(lab, 1, "reload")
        assert f"{script}:6: syntax error" in said
        script.write_text(good + "\nraise RuntimeError('no')\n")
        assert f"{script}:6: RuntimeError while loading: no" in failure(lab, 1, "reload")
        assert reachable(lab, "www.example"), "the old script stays"
        script.write_text(good)
        assert "reloaded in" in ok(lab, "reload")
        assert not https(lab, "www.example"), "and now the new one is in force"
        path = gateway.directory / "nedge.toml"
        path.write_text(path.read_text().replace("[gateway]", "[gateway]\nqueue = 80"))
        assert "changes in [gateway] take effect when nedge starts again" in ok(lab, "reload")
        path.write_text("[gateway]\nmode = 'off'\n")
        assert "gateway.mode: found 'off'" in failure(lab, 1, "reload")
        assert record(lab, "status")["reloads"] == 2
        path.write_text(CONFIG + '[scripts]\ndirectories = ["policies"]\n')
        os.kill(gateway.pid, signal.SIGHUP)
        until(lambda: gateway.log.count('"reloaded"') == 3, 60)


def test_foreign_users_are_refused(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG) as gateway:
        path = socket_of(lab)
        assert path.stat().st_mode & 0o777 == 0o600
        assert "permission denied; only root and" in failure(lab, 1, "status", code=AS_NOBODY)
        # Even where the file system would let them in, the gateway does not.
        path.parent.chmod(0o755)
        path.chmod(0o666)
        for command in (["status"], ["block", "www.example"]):
            said = failure(lab, 1, *command, code=AS_NOBODY)
            assert said == "nedge: user id 65534 may not use this gateway; only root may\n"
        assert records(lab, "orders") == []
        assert record(lab, "status")["control"]["control_refused"] == 2
        assert '"control_refused"' in gateway.log


def socket_of(lab: Lab) -> Path:
    """Where the gateway of this lab listens."""
    ask = "from nedge.control.client import find_socket; print(find_socket())"
    return Path(lab.gateway.run([sys.executable, "-c", ask], check=True).stdout.strip())


def test_members_of_the_group_may(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG + 'group = "nogroup"\n'):
        assert socket_of(lab).stat().st_mode & 0o777 == 0o660
        done = nedge(lab, "status", "--json", code=AS_NOBODY)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["bridge"] == "nedge0"
        assert nedge(lab, "block", "www.example", code=AS_NOBODY).returncode == 0
        assert record(lab, "orders")["by"] == "uid 65534"


def test_where_no_gateway_runs(lab: Lab) -> None:
    for command in (["status"], ["flows"], ["top"], ["reload"], ["block", "www.example"]):
        said = failure(lab, 1, *command)
        assert "no gateway is running in this network namespace" in said
        assert len(said.splitlines()) == 1


def test_a_configured_socket(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG + 'socket = "here.sock"\n') as gateway:
        config = str(gateway.directory / "nedge.toml")
        assert record(lab, "status", "--config", config)["bridge"] == "nedge0"
        assert record(lab, "status", "--socket", str(gateway.directory / "here.sock"))["pid"] == gateway.pid
        os.kill(gateway.pid, signal.SIGKILL)
    with Gateway(lab, CONFIG + 'socket = "here.sock"\n') as gateway:  # in place of what the crash left
        assert record(lab, "status", "--config", config)["pid"] == gateway.pid
    assert not (gateway.directory / "here.sock").exists()


def test_hostile_clients_disturb_nobody(lab: Lab, servers: ServerSet) -> None:
    """Silent, endless and unread connections, while traffic flows and others look on."""
    with Gateway(lab, CONFIG) as gateway, hostile(socket_of(lab)):
        end = time.monotonic() + 7
        while time.monotonic() < end:
            assert reachable(lab, "www.example")
            assert record(lab, "status")["workers"][0]["health"] == "ok"
        control = record(lab, "status")["control"]
        assert control["control_malformed"] >= 1
        assert control["control_oversized"] >= 1
        assert control["control_timeouts"] >= 1
        assert control["control_errors"] == 0
        assert "worker_restarted" not in gateway.log


@contextmanager
def hostile(path: Path) -> Iterator[None]:
    """Connections that do what they should not."""
    sockets = []

    def connect(data: bytes) -> None:
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(path))
        sock.setblocking(False)
        with_room = True
        while data and with_room:
            try:
                data = data[sock.send(data) :]
            except OSError:
                with_room = False
        sockets.append(sock)

    for data in (b"", b'{"command": ', b"x" * 200_000, b"\0\n" * 1000, b'{"command":"flows"}\n' * 3000):
        connect(data)
    for _ in range(6):
        connect(b'{"command":"scripts"}\n')
    try:
        yield
    finally:
        for sock in sockets:
            sock.close()


def test_top_on_a_terminal(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, CONFIG), kept(lab, "www.example") as connection:
        back(connection)
        master, slave = pty.openpty()
        process = lab.gateway.popen(
            [sys.executable, "-m", "nedge", "top"],
            stdin=slave, stdout=slave, stderr=slave,
            env={"TERM": "xterm-256color", "COLUMNS": "160", "LINES": "40"},
        )  # fmt: skip
        os.close(slave)
        seen = b""

        def screen() -> bytes:
            nonlocal seen
            while select.select([master], [], [], 0.05)[0]:
                try:
                    data = os.read(master, 65536)
                except OSError:  # the program has ended
                    return seen
                seen += data
            return seen

        until(lambda: b"www.example" in screen(), 30)
        os.write(master, b"q")
        until(lambda: (screen(), process.poll() is not None)[1], 30)
        assert process.returncode == 0
        os.close(master)
