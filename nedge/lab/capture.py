"""Packet captures in the lab, with tcpdump: complete from the first packet to the last."""

from __future__ import annotations

import re
import signal
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from nedge.lab.host import Host, LabError

START_DEADLINE = 30.0
DRAIN_DEADLINE = 5.0

_COUNTS = re.compile(
    r"(\d+) packets? captured, (\d+) packets? received by filter, (\d+) packets? dropped by kernel"
)


class Capture:
    """A running capture. `stop()` it, or leave the `with` block, before reading the file."""

    def __init__(self, host: Host, interface: str, path: Path, *, filter: str = "") -> None:
        self.path = path
        self._host = host
        # -Z root: Debian's tcpdump gives up root before it opens the file. The buffer is in KiB.
        options = ["-i", interface, "-n", "-s", "0", "-U", "-B", "16384", "--immediate-mode", "-Z", "root"]
        command: list[str | Path] = ["tcpdump", *options, "-w", path, *filter.split()]
        try:
            self._start(command)
        except LabError:  # seen once in hundreds of starts, on a busy machine
            time.sleep(1)
            self._start(command)

    def _start(self, command: Sequence[str | Path]) -> None:
        self._log = tempfile.TemporaryFile("a+")  # noqa: SIM115 - closed by stop(); appending, as tcpdump shares the offset
        self._process = self._host.popen(command, stderr=self._log)
        try:
            # tcpdump says so when its socket is open: from there on the kernel keeps packets for it.
            self._await("listening on", START_DEADLINE)
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """End the capture once every packet that arrived so far is in the file."""
        if self._log.closed:
            return
        try:
            if self._process.poll() is None:
                self._drain()
                self._process.send_signal(signal.SIGINT)
                self._process.wait(DRAIN_DEADLINE)
        finally:
            self._end()

    def _drain(self) -> None:
        """Wait until tcpdump has taken from the kernel what the kernel took from the wire.

        On SIGUSR1 tcpdump prints its counters; "received" counts what is still buffered, and the dropped.
        """
        deadline = time.monotonic() + DRAIN_DEADLINE
        while time.monotonic() < deadline:
            reports = len(_COUNTS.findall(self._text()))
            self._process.send_signal(signal.SIGUSR1)
            while len(counts := _COUNTS.findall(self._text())) == reports:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    return
                time.sleep(0.005)
            captured, received, dropped = map(int, counts[-1])
            if captured + dropped >= received:
                return

    def _await(self, words: str, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while words not in self._text():
            if self._process.poll() is not None:
                raise LabError(f"tcpdump on {self._host.name}: {self._text().strip()}")
            if time.monotonic() > deadline:
                raise LabError(f"tcpdump on {self._host.name} did not start within {seconds:.0f} s")
            time.sleep(0.005)

    def _text(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def _end(self) -> None:
        self._host.stop(self._process)
        self._log.close()
