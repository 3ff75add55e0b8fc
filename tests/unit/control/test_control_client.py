"""The client and the commands: what they find, say and print, and their exit status."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from control_kit import Office, serving
from kit import CLIENT, T0, bench, dns
from test_cli import Done, here

from nedge.config import Config
from nedge.config_file import load
from nedge.control import client as module
from nedge.control.client import Client, find_socket
from nedge.control.protocol import ControlError, HostSort, Kind
from nedge.control.show import (
    SCRIPT_HEADINGS,
    merge_hosts,
    merge_scripts,
    script_cells,
    sort_hosts,
    span,
)
from nedge.control.steering import duration
from nedge.gateway import desk, orders
from nedge.kernel.state import State, namespace_dir

# Finding the gateway


def found(*arguments: Any) -> str:
    with pytest.raises(ControlError) as error:
        find_socket(*arguments)
    return str(error.value)


def test_where_the_gateway_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = tmp_path / "netns-7"
    monkeypatch.setattr(module, "namespace_dir", lambda: directory)
    assert "no gateway is running in this network namespace" in found()
    directory.mkdir()
    (directory / "nedge0.json").touch()
    assert "no gateway is running" in found()
    (directory / "br0.sock").touch()
    assert find_socket() == directory / "br0.sock"
    (directory / "br1.sock").touch()
    several = (
        f"several gateways are running; name one by --socket: {directory}/br0.sock, {directory}/br1.sock"
    )
    assert found() == several
    with contextlib.ExitStack() as stack:
        for name in ("br1", "br0"):
            (directory / f"{name}.sock").unlink()
            listener = stack.enter_context(socket.socket(socket.AF_UNIX))
            listener.bind(str(directory / f"{name}.sock"))
            listener.listen()
            if name == "br1":
                assert find_socket() == directory / "br1.sock", "the other is what a crash left"
        assert found() == several
    assert find_socket(Config()) == directory / "nedge0.sock"
    assert find_socket(None, Path("x")) == Path("x")
    path = tmp_path / "nedge.toml"
    path.write_text('[control]\nsocket = "here.sock"\n')
    assert find_socket(load(path)) == tmp_path / "here.sock"


def test_a_directory_that_is_closed_to_us(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def iterdir(self) -> None:
            raise PermissionError(13, "Permission denied")

        def __str__(self) -> str:
            return "/run/nedge/netns-1"

    monkeypatch.setattr(module, "namespace_dir", Closed)
    assert found() == (
        "/run/nedge/netns-1: permission denied; only root and the members of control.group may use it"
    )


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (FileNotFoundError(2, "x"), Kind.FAILED, "no gateway is running: there is no "),
        (ConnectionRefusedError(111, "x"), Kind.FAILED, "no gateway is running: nobody listens at "),
        (PermissionError(13, "x"), Kind.PERMISSION, "permission denied; only root and"),
        (OSError(20, "Not a directory"), Kind.FAILED, "cannot be reached: Not a directory"),
    ],
)
def test_no_connection(monkeypatch, error: OSError, kind: Kind, said: str) -> None:  # type: ignore[no-untyped-def]
    def connect(sock: socket.socket, path: str) -> None:
        raise error

    monkeypatch.setattr(module.socket, "socket", type("S", (socket.socket,), {"connect": connect}))
    with pytest.raises(ControlError, match=said) as raised:
        Client(Path("/x.sock"))
    assert raised.value.kind is kind


def served(path: Path, answer: bytes) -> threading.Thread:
    """A server that says this to the first client, whatever it asks, and hangs up."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with listener, listener.accept()[0] as sock:
            if answer:
                sock.recv(1000)
            sock.sendall(answer)

    thread = threading.Thread(target=serve)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "hung up before it had answered"),
        (b'{"ok": tr', "hung up before it had answered"),
        (b'{"version":1,"ok":false,"kind":"busy","error":"too many"}\n', "too many"),
    ],
)
def test_gateways_that_do_not_answer(tmp_path: Path, answer: bytes, said: str) -> None:
    thread = served(tmp_path / "s", answer)
    with Client(tmp_path / "s") as client, pytest.raises(ControlError, match=said):
        client.ask("status")
    thread.join()


def test_a_gateway_that_says_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        with (
            Client(tmp_path / "s", timeout=0.05) as client,
            pytest.raises(ControlError, match="did not answer in time"),
        ):
            client.ask("status")


# What it makes of answers


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30s", 30), ("10m", 600), ("2h", 7200), ("1d", 86400), ("1w", 604800), ("1h30m", 5400), (" 1H ", 3600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3725, "1 h 2 min"), (90000, "1 d 1 h")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text


def host(ip: str, **fields: Any) -> dict[str, Any]:
    zero = {"flows_as_client": 0, "flows_as_server": 0, "blocked_flows": 0, "bytes_sent": 0, "bytes_rcvd": 0}
    return {"ip": ip, "vlan": 0, "score": 0, "quarantined_until": 0} | zero | fields


def test_a_host_of_several_workers_is_one() -> None:
    merged = merge_hosts(
        [
            host("10.0.0.1", flows_as_client=2, bytes_sent=10, score=5),
            host("10.0.0.2", flows_as_server=9, score=7),
            host(
                "10.0.0.1", flows_as_client=1, flows_as_server=1, bytes_sent=5, score=6, quarantined_until=9.0
            ),
            host("10.0.0.1", vlan=3, score=1),
        ]
    )
    assert [(one["ip"], one["vlan"], one["flows"]) for one in merged] == [
        ("10.0.0.1", 0, 4), ("10.0.0.2", 0, 9), ("10.0.0.1", 3, 0),
    ]  # fmt: skip
    assert (merged[0]["bytes_sent"], merged[0]["score"], merged[0]["quarantined_until"]) == (15, 6, 9.0)
    sort_hosts(merged, HostSort.SCORE)
    assert [one["score"] for one in merged] == [7, 6, 1]
    sort_hosts(merged, HostSort.FLOWS, reverse=True)
    assert [one["flows"] for one in merged] == [0, 4, 9]


FILTERS = {
    "l4": [],
    "l7": "",
    "three_way_handshake_ok": False,
    "needs": "isTLS",
    "http_answers": True,
    "periodic_update_seconds": 120,
    "prio": 0,
}


def test_a_script_of_several_workers_is_one() -> None:
    of = {"errors": 1, "timeouts": 4, "statuses_set": 2, "flows_dropped": 3}
    fine = {"p99_ns": 4096, "last_error": "", "last_error_at": "", "aside": ""}
    bad = {"p99_ns": 8192, "last_error": "x", "last_error_at": "a.lua:3", "aside": "keeps failing"}
    merged = merge_scripts(
        [
            {"script": "a", "calls": 3, "time_ns": 6000, **fine, **of},
            {"script": "b", "calls": 0, "time_ns": 0, **fine, **of},
            {"script": "a", "calls": 1, "time_ns": 2000, **bad, **of},
        ]
    )
    assert [(one["script"], one["calls"], one["mean_us"], one["errors"]) for one in merged] == [
        ("a", 4, 2.0, 2), ("b", 0, 0.0, 1),
    ]  # fmt: skip
    assert merged[0] | bad == merged[0]
    assert [one["timeouts"] for one in merged] == [8, 4]
    cells = [cell.plain for cell in script_cells(merged[0] | {"hooks": [], "filters": FILTERS})]
    assert len(cells) == len(SCRIPT_HEADINGS)
    assert cells[SCRIPT_HEADINGS.index("99 % under")] == "8.2 µs"
    assert cells[SCRIPT_HEADINGS.index("Timeouts")] == "8"
    assert "isTLS HTTP answers" in cells
    assert cells[-1] == "put aside: keeps failing"


# The commands, with a gateway in another thread

Nedge = Callable[..., Done]


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    """A gateway with one worker, served by a thread."""
    for logging in (desk, orders):  # its log is not what the commands print
        monkeypatch.setattr(logging, "log", structlog.wrap_logger(structlog.testing.ReturnLogger()))
    script = {
        "names": """
            from nedge.scripts import status_types
            def protocolDetected(flow, now, conf):
                if flow.getHostName() == "bad.example":
                    flow.triggerStatus(status_types.status_web_mining_detected, "\\x1b[31mred", 100, 0, 0)
        """
    }
    with bench("", script) as made:
        made.feed(dns("good.example", sport=1, start=T0).packets)
        made.feed(dns("bad.example", sport=2, start=T0 + 1).packets)
        office = Office(tmp_path, made)
        with serving(office):
            yield office


@pytest.fixture
def nedge(office: Office, monkeypatch, capfd) -> Nedge:  # type: ignore[no-untyped-def]
    def nedge(*arguments: str) -> Done:
        return here(monkeypatch, capfd, *arguments, "--socket", office.server.path)

    return nedge


def objects(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


def test_status(nedge: Nedge) -> None:
    done = nedge("status")
    done.check(0)
    for part in ("nedge0", "inline", "1 scripts", "live: 2 flows", "No failures, no losses."):
        assert part in done.out
    assert "\x1b" not in done.out
    (status,) = objects(nedge("status", "--json"))
    assert status["live_flows"] == 2


def test_flows(nedge: Nedge) -> None:
    done = nedge("flows")
    done.check(0)
    lines = [line.split() for line in done.out.splitlines() if "example" in line]
    assert [line[0] for line in lines] == ["0-2", "0-1"], "the newest first"
    assert "web_mining_detected" in done.out
    assert done.out.splitlines()[-1] == "2 flows"
    flows = objects(nedge("flows", "--json", "--sort", "score", "--reverse", "-n", "1"))
    assert [(flow["id"], flow["hostname"], flow["verdict"]) for flow in flows] == [
        ("0-1", "good.example", "pass")
    ]
    assert nedge("flows", "-n", "1").out.splitlines()[-1] == "1 of 2 flows"
    assert nedge("flows", "--verdict", "drop", "--host", "bad.example").out.splitlines()[-1] == "1 flow"
    assert nedge("flows", "--protocol", "tls").out == "no flows\n"


def test_hosts(nedge: Nedge) -> None:
    done = nedge("hosts")
    done.check(0)
    assert CLIENT in done.out
    assert done.out.splitlines()[-1] == "2 hosts"
    assert len(objects(nedge("hosts", "--json"))) == 2
    assert nedge("hosts", "--quarantined").out == "no hosts\n"


def test_scripts(nedge: Nedge) -> None:
    assert "protocolDetected" in nedge("scripts").out
    (script,) = objects(nedge("scripts", "--json"))
    assert (script["script"], script["calls"], script["flows_dropped"]) == ("names", 2, 1)


def test_explain(nedge: Nedge) -> None:
    done = nedge("explain", "0-2")
    done.check(0)
    for part in ("bad.example", "known at packet 1", "web_mining_detected", "names", "100 >= 100", "decided"):
        assert part in done.out or part == "100 >= 100", part
    assert "flow_score" in done.out
    assert "\x1b" not in done.out, "what a script says does not steer the terminal"
    (story,) = objects(nedge("explain", "0-2", "--json"))
    assert story["verdict"]["detail"] == "100 >= 100"
    nedge("explain", "0-9").check(1, "there is no flow 0-9 (any more)")
    nedge("explain", "9").check(2, "flow: found '9'; allowed is a flow's id")


def test_orders(nedge: Nedge) -> None:
    done = nedge("block", "good.example", "--for", "1h", "--reason", "not good")
    done.check(0)
    assert "blocked domain good.example (order 1, until " in done.out
    assert "); 1 live flow changed" in done.out
    assert nedge("flows", "--verdict", "pass").out == "no flows\n"
    assert "not good" in nedge("orders").out
    (order,) = objects(nedge("orders", "--json"))
    assert (order["target"], order["by"]) == ("good.example", "root")
    assert "unblocked host" in nedge("unblock", CLIENT).out
    assert nedge("flows", "--verdict", "pass").out.splitlines()[-1] == "2 flows"
    assert "forgotten: domain good.example (order 1); 0 live flows changed" in nedge("forget", "1").out
    assert "1 live flow changed" in nedge("forget", CLIENT).out
    assert nedge("orders").out == "no orders\n"
    assert "udp" in nedge("block", "0-1").out
    (result,) = objects(nedge("forget", "0-1", "--json"))
    assert result["changed"] == 1


def test_an_order_that_was_not_stored_is_no_success(nedge: Nedge, office: Office) -> None:
    office.orders.path = Path("/proc/none/x.json")
    done = nedge("block", "good.example")
    done.check(1, "this is in force, but will not outlive the gateway: /proc/none/x.json: cannot be written")
    assert "blocked domain good.example" in done.out


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("block", "10.0.0.1/8"), 2, "did you mean 10.0.0.0/8?"),
        (("block", "a b"), 2, "is neither a flow"),
        (("block", "a.example", "--for", "5"), 2, "found '5'; allowed is a time such as 30s"),
        (("block", "a.example", "--for", "0s"), 2, "found '0s'"),
        (("block", "a.example", "--for", "1h2"), 2, "found '1h2'"),
        (("block", "a.example", "--for", "999w9999d"), 2, "up to ten years"),
        (("block", "a.example", "--reason", "x" * 201), 2, "reason: found"),
        (("block",), 2, "Missing argument"),
        (("forget", "12"), 1, "there is no order with the number 12"),
        (("forget", "a.example"), 1, "there is no order with the target a.example"),
        (("release", "10.0.0.9"), 1, "10.0.0.9 is not in quarantine"),
        (("release", "a.example"), 2, "host: found 'a.example'; allowed is an address"),
        (("flows", "--sort", "colour"), 2, "'colour' is not one of"),
        (("flows", "--status", "nope"), 2, "status: found 'nope'; allowed are"),
        (("flows", "--host", "a b"), 2, "host: found 'a b'"),
        (("flows", "--limit", "-1"), 2, "--limit"),
    ],
)
def test_wrong_usage(nedge: Nedge, arguments: tuple[str, ...], status: int, said: str) -> None:
    done = nedge(*arguments)
    done.check(status, said)
    assert done.out == ""


def test_a_part_that_is_missing_is_told(nedge: Nedge, office: Office) -> None:
    office.workers[0].pid = 0
    nedge("status").check(0, "worker 0 did not answer: what it has is not in this")
    nedge("flows").check(1, "no worker answers")


def test_no_gateway(monkeypatch, capfd, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    for command in (["status"], ["flows"], ["explain", "0-1"], ["block", "a.example"], ["reload"], ["top"]):
        done = here(monkeypatch, capfd, *command, "--socket", tmp_path / "none")
        done.check(1, f"no gateway is running: there is no {tmp_path}/none")
        assert len(done.err.splitlines()) == 1
    config = tmp_path / "nedge.toml"
    config.write_text('[control]\nsocket = "x.sock"\n')
    here(monkeypatch, capfd, "status", "--config", config).check(1, f"there is no {tmp_path}/x.sock")
    config.write_text("[control]\nsock = 1\n")
    here(monkeypatch, capfd, "status", "--config", config).check(2, "control.sock: unknown key")


def test_the_default_place_is_where_the_gateway_puts_it(tmp_path: Path) -> None:
    state = State("br7", tmp_path)
    assert state.socket(shared=False) == tmp_path / "br7.sock"
    assert find_socket(Config.model_validate({"gateway": {"bridge": "br7"}})) == namespace_dir() / "br7.sock"
    state.socket(shared=True)
    assert tmp_path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["nedge", "unb"], "unblock"),
        (["nedge", "flows", "--sort", "sc"], "score"),
        (["nedge", "flows", "--verdict", "bl"], "blocked"),
        (["nedge", "hosts", "--status", "web"], "web_mining_detected"),
    ],
)
def test_shell_completion(words: list[str], expected: str) -> None:
    environment = {
        "_NEDGE_COMPLETE": "complete_bash",
        "COMP_WORDS": " ".join(words),
        "COMP_CWORD": str(len(words) - 1),
    }
    code = "import sys; sys.argv = ['nedge']; from nedge.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.split() == [expected], done.stderr
