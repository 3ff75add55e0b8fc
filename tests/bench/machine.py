"""The machine that the benchmark runs on: what it is, and what else keeps it busy."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from nedge.kernel.probe import load_modules

_TICKS = os.sysconf("SC_CLK_TCK")
_CONNTRACK_MAX = Path("/proc/sys/net/netfilter/nf_conntrack_max")
_ROOM = 1 << 20
_LOOK = 0.2
_KTHREADD = 2


class _Process(NamedTuple):
    parent: int
    ticks: int


class Others:
    """Counts the CPU time of the processes that are not ours."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._before = _ticks_of_others()

    def share(self) -> float:
        """CPUs that others have used since: 0.5 is half of one."""
        elapsed = time.monotonic() - self._start
        return max(0.0, (_ticks_of_others() - self._before) / _TICKS / elapsed)


# One per CPU, before all else there: where even this one does not run, nobody does.
_WATCH = """
import json, os, signal, sys, time
os.sched_setaffinity(0, [int(sys.argv[1])])
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
stalls, over = [], []
signal.signal(signal.SIGTERM, lambda *_: over.append(True))
print("ready", flush=True)
before = time.perf_counter()
while not over:
    time.sleep(0.001)
    now = time.perf_counter()
    if now - before > 0.002:
        stalls.append((before, now))
    before = now
print(json.dumps(stalls))
"""
_RECOVERY = 0.02


class Stalls:
    """Times at which a CPU stood still: a virtual machine's host, or its kernel, had other things to do."""

    def __init__(self) -> None:
        self._watchers: list[subprocess.Popen[str]] = []
        self._stalls: list[tuple[float, float]] = []

    def __enter__(self) -> Stalls:
        for cpu in sorted(os.sched_getaffinity(0)):
            command = [sys.executable, "-c", _WATCH, str(cpu)]
            self._watchers.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        for watcher in self._watchers:
            assert watcher.stdout
            watcher.stdout.readline()
        return self

    def __exit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.terminate()
        for watcher in self._watchers:
            self._stalls += json.loads(watcher.communicate()[0])

    def met(self, start: float, end: float) -> bool:
        """Whether what went on between two `time.perf_counter()` met one, or the queues that it left."""
        return any(start < last + _RECOVERY and end > first for first, last in self._stalls)


def await_calm(limit: float, patience: float) -> None:
    """Wait until others use less than `limit` CPUs, but only so long."""
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        others = Others()
        time.sleep(_LOOK)
        if others.share() < limit:
            return


def _ticks_of_others() -> int:
    """The sum of what they have used. A process that ended lives on in its parent's sum."""
    processes = _processes()
    return sum(
        process.ticks
        for pid, process in processes.items()
        if _KTHREADD not in (pid, process.parent) and not _is_ours(pid, processes)
    )


def _processes() -> dict[int, _Process]:
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                found[int(entry.name)] = _Process(int(fields[1]), sum(map(int, fields[11:15])))
    return found


def _is_ours(pid: int, processes: dict[int, _Process]) -> bool:
    own = os.getpid()
    while pid in processes:
        if pid == own:
            return True
        pid = processes[pid].parent
    return False


@contextlib.contextmanager
def roomy_conntrack() -> Iterator[None]:
    """Let connection tables hold a million entries for so long; else the kernel drops connections."""
    load_modules()
    before = int(_CONNTRACK_MAX.read_text())
    _CONNTRACK_MAX.write_text(str(max(before, _ROOM)))
    try:
        yield
    finally:
        _CONNTRACK_MAX.write_text(str(before))


def describe() -> dict[str, Any]:
    """What figures depend on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "suricata": _version(["suricata", "-V"]).partition(" version ")[2].partition(" ")[0],
        "nedge": _version(["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]),
    }


def _version(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except FileNotFoundError:
        return ""
