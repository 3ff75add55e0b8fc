"""`nedge run`, started in the lab's gateway."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from nedge.lab.host import LabError
from nedge.lab.topology import LAN_PORT, WAN_PORT, Lab

START_DEADLINE = 15.0
STOP_GRACE = 45.0
READY = "gateway_ready"

PORTS = f"""\
[gateway]
lan = ["{LAN_PORT}"]
wan = ["{WAN_PORT}"]
"""
"""The part of a configuration that belongs to the lab."""

EVENTS = """\
[eve]
path = "eve.json"
"""


class Gateway:
    """Runs nedge between client and server. On entry it waits until nedge says that it is ready."""

    def __init__(self, lab: Lab, config: str | Path) -> None:
        """`config`: the text of a configuration (`PORTS + EVENTS + ...`), or a file's path."""
        self._lab = lab
        self._config = config
        self._process: subprocess.Popen[str] | None = None
        self.directory = lab.directory / "gateway"
        self.status: int | None = None
        """Exit status, once it has ended."""

    def __enter__(self) -> Self:
        self.directory.mkdir(exist_ok=True)
        path = self._config
        if isinstance(path, str):
            path = self.directory / "nedge.toml"
            path.write_text(str(self._config))
        # -P: this very package, and not one that lies in the directory it is started from.
        command = [sys.executable, "-P", "-m", "nedge", "run", "--config", str(path.resolve())]
        with (self.directory / "log").open("w") as log:
            self._process = self._lab.gateway.popen(command, stdout=log, stderr=log)
        try:
            self._await_ready(self._process)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def pid(self) -> int:
        """The process id of `nedge run`."""
        assert self._process is not None, "the gateway is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """What nedge has logged so far."""
        return (self.directory / "log").read_text()

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's lines about an event, such as `gateway_totals`."""
        lines = (json.loads(line) for line in self.log.splitlines() if line.startswith("{"))
        return [line for line in lines if line["event"] == event]

    def workers(self) -> list[int]:
        """The process ids of its workers."""
        command = ["pgrep", "-P", str(self.pid), "nedge-worker"]
        return [int(pid) for pid in self._lab.gateway.run(command).stdout.split()]

    def stop(self) -> int | None:
        """End nedge by SIGTERM, upon which it writes the events of the flows still there."""
        if self._process is not None:
            self.status = self._lab.gateway.stop(self._process, grace=STOP_GRACE)
            self._process = None
        return self.status

    def events(self, kind: str = "flow") -> list[dict[str, Any]]:
        """The EVE events so far, of one type. For a configuration with `EVENTS`."""
        path = self.directory / "eve.json"
        lines = path.read_text().splitlines() if path.exists() else []
        return [event for event in map(json.loads, lines) if event["event_type"] == kind]

    def _await_ready(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + START_DEADLINE
        while READY not in self.log:
            if process.poll() is not None:
                raise LabError(f"nedge run ended with status {process.returncode}:\n{self.log.strip()}")
            if time.monotonic() > deadline:
                raise LabError(f"nedge run is not ready after {START_DEADLINE:.0f} s:\n{self.log.strip()}")
            time.sleep(0.02)
