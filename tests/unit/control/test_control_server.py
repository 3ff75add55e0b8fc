"""The socket under clients of every kind: what they get, and that nobody else suffers."""

from __future__ import annotations

import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from control_kit import Loop, Raw

from nedge.control.protocol import MAX_REQUEST, ControlError, Kind
from nedge.control.requests import Request
from nedge.gateway import connection, control
from nedge.gateway.connection import ROOM, Client, Peer
from nedge.gateway.control import MAX_CLIENTS, ControlServer
from nedge.kernel.errors import KernelError


class Desk:
    """Answers at once, or later; remembers whom."""

    def __init__(self, server: ControlServer) -> None:
        self.open: list[Client] = []
        self.handled: list[str] = []
        server.handle = self.handle

    def handle(self, client: Client, request: Request) -> None:
        self.handled.append(request.command)
        match request.command:
            case "status":
                client.done({"fine": True})
            case "reload":
                raise ControlError(Kind.FAILED, "no such file")
            case "scripts":
                raise RuntimeError("a bug")
            case "orders":
                client.rows(["text"], [["x" * 1000]] * 1000)
                client.done({})
            case _:
                self.open.append(client)


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def server(loop: Loop, tmp_path: Path) -> Iterator[ControlServer]:
    server = ControlServer(tmp_path / "s.sock", None, loop)
    server.open()
    yield server
    server.close()
    assert loop.watched == 0


@pytest.fixture
def desk(server: ControlServer) -> Desk:
    return Desk(server)


@pytest.fixture
def connect(loop: Loop, server: ControlServer, desk: Desk) -> Iterator[Any]:
    made: list[Raw] = []

    def connect() -> Raw:
        made.append(Raw(loop, server.path))
        loop.settle()
        return made[-1]

    yield connect
    for one in made:
        one.close()
    loop.settle()
    assert not server.clients


OK = {"version": 1, "ok": True, "result": {"fine": True}}

# Well-behaved


def test_answers_in_order_on_one_connection(connect, server: ControlServer) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.ask(command="status")
    assert client.answers() == [OK]
    client.ask(version=1, command="status")
    client.ask(command="reload")
    client.send(b'\r\n\n{"command": "status"}\r\n')  # empty lines are nothing
    failed = {"version": 1, "ok": False, "kind": "failed", "error": "no such file"}
    assert client.answers(4) == [OK, OK, failed, OK]
    assert server.counters["requests"] == 4
    assert server.counters["malformed"] == 0


def test_a_request_byte_by_byte(connect) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    for byte in b'{"command": "status"}\n':
        client.send(bytes([byte]))
    assert client.answers() == [OK]


def test_many_requests_at_once_are_all_answered(connect, desk: Desk, loop: Loop) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.send(b'{"command":"status"}\n' * 2000)
    assert client.answers(2000) == [OK] * 2000
    assert loop.longest < 1.0


def test_later_requests_wait_for_the_answer(connect, desk: Desk) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.ask(command="flows")
    client.ask(command="status")
    client.ask(command="hosts")
    assert desk.handled == ["flows"]
    desk.open.pop().done({"first": 1})
    assert [line["result"] for line in client.answers(2)] == [{"first": 1}, {"fine": True}]
    assert desk.handled == ["flows", "status", "hosts"]
    desk.open.pop().refuse(Kind.FAILED, "gone")
    assert client.answers(3)[2]["error"] == "gone"


def test_a_client_that_has_finished_sending_is_still_answered(connect, desk: Desk, loop: Loop) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.ask(command="flows")
    client.socket.shutdown(socket.SHUT_WR)
    loop.settle()
    assert not client.hung_up()
    desk.open.pop().done({})
    loop.until(client.hung_up)
    assert client.lines() == [{"version": 1, "ok": True, "result": {}}]


# Malformed, oversized, silent, not reading


@pytest.mark.parametrize("line", [b"hello", b"{}", b"\0" * 100, b"[" * 1000, b"\xff", b'{"command": 5}'])
def test_malformed_requests_are_refused_and_counted(connect, server: ControlServer, line: bytes) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.send(line + b"\n")
    (answer,) = client.answers()
    assert (answer["ok"], answer["kind"]) == (False, "usage")
    client.ask(command="status")
    assert client.answers(2)[1] == OK  # the next one is fine
    assert (server.counters["malformed"], server.counters["errors"]) == (1, 0)


def test_a_bug_in_an_answer_does_not_get_out(connect, server: ControlServer) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.ask(command="scripts")
    (answer,) = client.answers()
    assert (answer["kind"], answer["error"]) == (
        "failed",
        "the gateway failed to answer (RuntimeError): see its log",
    )
    client.ask(command="status")
    assert client.answers(2)[1] == OK
    assert server.counters["errors"] == 1


@pytest.mark.parametrize(
    "text", [b"x" * (MAX_REQUEST + 1), b'{"command":"flows"}\n' + b"x" * (MAX_REQUEST + 1)]
)
def test_an_oversized_request_ends_the_connection(
    connect, loop: Loop, server: ControlServer, text: bytes
) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.send(text * 3)
    loop.until(client.hung_up)
    assert client.lines()[-1]["error"] == f"a request is longer than {MAX_REQUEST} bytes"
    assert server.counters["oversized"] == 1
    assert not server.clients


def test_the_largest_request_is_taken(connect) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    start, end = b'{"command": "status"', b"}"
    client.send(start + b" " * (MAX_REQUEST - len(start) - len(end)) + end + b"\n")
    assert client.answers() == [OK]


def later(loop: Loop, server: ControlServer, seconds: float) -> None:
    """As if so many seconds had passed."""
    server.turn(time.monotonic() + seconds)
    loop.settle()


def test_a_line_that_never_ends(connect, loop, server) -> None:  # type: ignore[no-untyped-def]
    client, other = connect(), connect()
    client.send(b'{"command": ')
    later(loop, server, connection.LINE_SECONDS - 1)
    assert not client.hung_up()
    later(loop, server, connection.LINE_SECONDS + 1)
    assert client.hung_up()
    assert client.lines()[0]["error"] == "no request came in time"
    assert not other.hung_up()
    assert server.counters["timeouts"] == 1


def test_a_line_that_grows_slowly_is_not_waited_for_either(connect, loop, server) -> None:  # type: ignore[no-untyped-def]
    """The time counts from its first byte."""
    client = connect()
    for second in range(int(connection.LINE_SECONDS) + 1):
        assert not client.hung_up(), second
        client.send(b"x")
        later(loop, server, second)
    assert client.hung_up()
    assert server.counters["timeouts"] == 1


def test_an_idle_client_is_sent_away(connect, loop, server) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    later(loop, server, connection.IDLE_SECONDS - 1)
    assert not client.hung_up()
    later(loop, server, connection.IDLE_SECONDS + 1)
    assert client.hung_up()


def test_a_client_whose_answer_takes_long_is_not_idle(connect, loop, server, desk) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.ask(command="flows")
    later(loop, server, 10 * connection.IDLE_SECONDS)
    desk.open.pop().done({})
    assert client.answers()[0]["ok"]


def test_a_client_that_does_not_read(connect, loop, server, desk) -> None:  # type: ignore[no-untyped-def]
    client, other = connect(), connect()
    client.send(b'{"command":"orders"}\n' * 100)  # a megabyte each
    loop.settle()
    assert len(desk.handled) == 1, "the next answer waits until this one is on its way"
    other.ask(command="status")
    assert other.answers() == [OK]
    later(loop, server, connection.STALL_SECONDS + 1)
    assert server.counters["stalled"] == 1
    loop.until(client.hung_up)
    assert desk.handled == ["orders", "status"]


def test_a_slow_reader_is_told_when_there_is_room_again(connect, loop, desk) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.ask(command="flows")
    served = desk.open.pop()
    rooms: list[bool] = []
    row = ["x" * 1000]
    sent = 0
    while served.room:
        served.rows(["text"], [row] * 20)
        sent += 20
    served.on_room = lambda: rooms.append(served.room)
    loop.settle()
    assert rooms == []
    loop.until(lambda: (client.read(), rooms)[1])
    assert rooms == [True]
    served.done({})
    loop.until(lambda: client.lines() and "ok" in client.lines()[-1])
    assert sum(len(line.get("rows", ())) for line in client.lines()) == sent
    assert sent * 1000 > ROOM


def test_a_client_that_goes_while_it_is_answered(connect, loop, server, desk) -> None:  # type: ignore[no-untyped-def]
    client = connect()
    client.ask(command="flows")
    gone: list[int] = []
    served = desk.open.pop()
    served.on_gone = lambda: gone.append(1)
    client.close()
    loop.settle()
    served.rows(["a"], [["b"]])  # finds out
    assert gone == [1]
    assert served.closed
    served.rows(["a"], [["b"]])  # and later nothing happens
    served.done({})
    assert not server.clients


def test_too_many_clients(connect, loop: Loop, server: ControlServer) -> None:  # type: ignore[no-untyped-def]
    clients = [connect() for _ in range(MAX_CLIENTS)]
    surplus = connect()
    assert surplus.answers()[0]["kind"] == "busy"
    loop.until(surplus.hung_up)
    assert server.counters["busy"] == 1
    clients[0].close()
    loop.settle()
    last = connect()
    last.ask(command="status")
    assert last.answers() == [OK]


# Who may


@pytest.mark.parametrize(
    ("uid", "groups", "allowed"),
    [
        (0, {0}, True),
        (65534, {65534}, False),
        (65534, {4}, True),
        (65534, {65534, 4}, True),
        (1000, {0}, False),
    ],
)
def test_who_may_with_a_group(loop, tmp_path, monkeypatch, uid: int, groups: set[int], allowed: bool) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(control.grp, "getgrnam", lambda name: Group)
    monkeypatch.setattr(control.os, "chown", lambda path, uid, gid: chowned.append((uid, gid)))
    monkeypatch.setattr(control.os, "geteuid", lambda: 0)
    monkeypatch.setattr(control, "_peer", lambda sock: Peer(1, uid, frozenset(groups)))
    chowned: list[tuple[int, int]] = []
    server = ControlServer(tmp_path / "s.sock", "staff", loop)
    server.open()
    assert chowned == [(-1, 4)]
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o660
    Desk(server)
    client = Raw(loop, server.path)
    client.ask(command="status")
    (answer,) = client.answers()
    assert answer["ok"] is allowed
    if not allowed:
        assert answer["kind"] == "permission"
        assert (
            answer["error"]
            == f"user id {uid} may not use this gateway; only root and members of group staff may"
        )
        loop.until(client.hung_up)
        assert (server.counters["refused"], server.counters["requests"]) == (1, 0)
    client.close()
    server.close()


class Group:
    gr_gid = 4


def test_without_a_group_only_root_may(
    loop: Loop, server: ControlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600
    monkeypatch.setattr(control, "_peer", lambda sock: Peer(1, os.geteuid() + 1, frozenset((0,))))
    client = Raw(loop, server.path)
    assert client.answers()[0]["error"].endswith("may not use this gateway; only root may")
    client.close()


def test_the_peer_is_whom_the_kernel_says() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX)
    with ours, theirs:
        peer = control._peer(ours)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert peer.groups >= {os.getegid(), *os.getgroups()}


# The socket in the file system


def test_a_socket_left_by_a_crash_is_replaced(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    server = ControlServer(path, None, loop)
    server.open()
    server.close()
    assert not path.exists()


def test_what_is_not_ours_is_not_removed(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as living:
        living.bind(str(path))
        living.listen()
        with pytest.raises(KernelError, match="another program listens there"):
            ControlServer(path, None, loop).open()
    path.unlink()
    path.write_text("precious")
    with pytest.raises(KernelError, match="something that is no socket"):
        ControlServer(path, None, loop).open()
    assert path.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "why"), [("none/s.sock", "No such file or directory"), ("x" * 120, "path too long")]
)
def test_a_path_that_cannot_be(loop: Loop, tmp_path: Path, name: str, why: str) -> None:
    with pytest.raises(KernelError, match=f"control.socket: .* cannot be used: .*{why}"):
        ControlServer(tmp_path / name, None, loop).open()
    assert loop.watched == 0
