"""The protocol to the service manager."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from nedge.gateway.notify import Notifier


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[socket.socket]:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    sock.bind(str(tmp_path / "notify"))
    sock.settimeout(5)
    yield sock
    sock.close()


def notifier(listener: socket.socket, **more: str) -> Notifier:
    return Notifier({"NOTIFY_SOCKET": str(listener.getsockname()), **more})


def heard(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().splitlines()


def test_messages(listener: socket.socket) -> None:
    manager = notifier(listener)
    manager.ready("all is well")
    assert heard(listener) == ["READY=1", "STATUS=all is well"]
    manager.alive()
    assert heard(listener) == ["WATCHDOG=1"]
    manager.reloading()
    first, clock, status = heard(listener)
    assert (first, clock.split("=")[0], status.split("=")[0]) == ("RELOADING=1", "MONOTONIC_USEC", "STATUS")
    assert int(clock.split("=")[1]) > 0
    manager.stopping()
    assert heard(listener)[0] == "STOPPING=1"
    manager.close()
    manager.alive()  # to nobody


def test_a_status_is_told_once(listener: socket.socket) -> None:
    manager = notifier(listener)
    manager.ready("one")
    heard(listener)
    manager.status("one")
    manager.status("two")
    assert heard(listener) == ["STATUS=two"]
    manager.close()


def test_abstract_address() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0nedge-test-{os.getpid()}")
        sock.settimeout(5)
        manager = Notifier({"NOTIFY_SOCKET": f"@nedge-test-{os.getpid()}"})
        manager.alive()
        assert heard(sock) == ["WATCHDOG=1"]
        manager.close()


def test_without_a_manager() -> None:
    manager = Notifier({})
    manager.ready("all is well")
    manager.alive()
    assert manager.failures == 0
    manager.close()


def test_a_manager_that_is_gone_is_said_once(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        manager = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
        manager.ready("all is well")
        manager.alive()
        manager.close()
    assert manager.failures == 2
    assert [line["event"] for line in logs] == ["manager_not_told"]


def test_a_full_socket_is_not_waited_for(listener: socket.socket) -> None:
    manager = notifier(listener)
    with structlog.testing.capture_logs():
        while not manager.failures:  # would hang here
            manager.alive()
    manager.close()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, 0),
        ({"WATCHDOG_USEC": "30000000"}, 30),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({"WATCHDOG_USEC": "-1"}, 0),
    ],
)
def test_watchdog(variables: dict[str, str], seconds: float) -> None:
    assert Notifier(variables).watchdog_seconds == seconds
