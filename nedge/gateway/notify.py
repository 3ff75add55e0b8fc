"""Tells the service manager how the gateway is, by systemd's protocol (sd_notify(3)): datagrams to a socket.

Without NOTIFY_SOCKET in the environment nobody wants to know, and nothing is sent.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping

import structlog

log = structlog.get_logger()


class Notifier:
    """One way to the manager. What cannot be delivered is lost: the gateway never waits for it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        """An address that starts with @ is in the abstract namespace."""
        address = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        if address:
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
            self._socket.setblocking(False)
        self.watchdog_seconds = _watchdog_seconds(environment)
        """Without a sign of life for so long the manager ends us; 0: it does not look."""
        self._status = ""
        self.failures = 0
        """Messages that could not be sent."""

    def ready(self, status: str) -> None:
        """Started, or done with a reload."""
        self._status = status
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Reading the configuration again; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}", "STATUS=Reading the configuration again")

    def stopping(self) -> None:
        self._send("STOPPING=1", "STATUS=Ending flows")

    def alive(self) -> None:
        """A sign of life for the watchdog."""
        self._send("WATCHDOG=1")

    def status(self, text: str) -> None:
        """A line for people (`systemctl status`), sent when it changes."""
        if text != self._status:
            self._status = text
            self._send(f"STATUS={text}")

    def figures(self) -> dict[str, int]:
        """The counter."""
        return {"manager_failures": self.failures}

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _send(self, *lines: str) -> None:
        if self._socket is None:
            return
        try:
            self._socket.sendto("\n".join(lines).encode(), self._address)
        except OSError as error:
            self.failures += 1
            if self.failures == 1:
                log.warning("manager_not_told", address=self._address, reason=str(error))


def _watchdog_seconds(environment: Mapping[str, str]) -> float:
    """The watchdog's patience, if it is meant for this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return 0.0
    try:
        return max(0, int(environment.get("WATCHDOG_USEC", "0"))) / 1e6
    except ValueError:
        return 0.0
