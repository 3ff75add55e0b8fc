"""One network namespace of the lab, and the processes that were started in it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from nedge.kernel.state import RUN_DIR

NAMESPACES = Path("/run/netns")
ETC_NETNS = Path("/etc/netns")
"""`ip netns exec` lays the files of /etc/netns/NAME over those of /etc."""

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""

Stream = int | IO[str] | IO[bytes] | None


class LabError(Exception):
    """The lab could not be built, or a part of it did not start."""


class Address(NamedTuple):
    """A host of the lab has one address of each family."""

    v4: str
    v6: str


def call(argv: Sequence[str], *, stdin: str | None = None) -> str:
    """Run a tool that must succeed, and give what it printed. `LabError` says what failed, and how."""
    try:
        done = subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=False, start_new_session=True
        )
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is not installed: run deploy/install-deps.sh demo") from None
    if done.returncode != 0:
        words = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(argv)}: exit status {done.returncode}: {words}")
    return done.stdout


class Host:
    """Client, gateway or server: runs commands in its namespace and ends them again."""

    def __init__(self, name: str, namespace: str, address: Address) -> None:
        self.name = name
        self.namespace = namespace
        self.address = address
        self._started: list[subprocess.Popen[str]] = []

    def command(self, argv: Sequence[str | Path]) -> list[str]:
        """The command line that runs `argv` in this namespace."""
        return ["ip", "netns", "exec", self.namespace, *map(str, argv)]

    def popen(
        self,
        argv: Sequence[str | Path],
        *,
        stdin: Stream = subprocess.DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.Popen[str]:
        """Start a process in this namespace, in a process group of its own. The lab ends it at the latest."""
        process = subprocess.Popen(
            self.command(argv),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env={**environment(), **(env or {})},
            cwd=cwd,
            text=True,
            errors="backslashreplace",
            start_new_session=True,
        )
        self._started.append(process)
        return process

    def run(
        self,
        argv: Sequence[str | Path],
        *,
        timeout: float = 30,
        input: str | None = None,
        check: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in this namespace to its end, and give its output and exit status.

        `subprocess.TimeoutExpired` is raised after `timeout` seconds: the command, and whatever it had
        started in its process group, has been ended then.
        """
        process = self.popen(
            argv,
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
        )
        try:
            out, err = process.communicate(input, timeout=timeout)
        except BaseException:
            self.stop(process, grace=0)
            raise
        self._started.remove(process)
        done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
        if check:
            done.check_returncode()
        return done

    def stop(self, process: subprocess.Popen[str], *, grace: float = GRACE) -> int:
        """End a process with its group: SIGTERM, SIGKILL after `grace` seconds. Gives its exit status."""
        if process.poll() is None and grace > 0:
            _signal_group(process, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
        if process.poll() is None:
            _signal_group(process, signal.SIGKILL)
            process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        if process in self._started:
            self._started.remove(process)
        return process.returncode

    def stop_all(self) -> None:
        """End every process that was started here, the latest first."""
        for process in reversed(self._started):  # all at once, so that their times of grace run together
            if process.poll() is None:
                _signal_group(process, signal.SIGTERM)
        for process in list(reversed(self._started)):
            self.stop(process)


def environment() -> dict[str, str]:
    """What processes of the lab inherit: no proxies, and this very package importable."""
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    package_root = str(Path(__file__).resolve().parents[2])
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [package_root, env.get("PYTHONPATH")]))
    env["PYTHONUNBUFFERED"] = "1"
    return env


def _signal_group(process: subprocess.Popen[str], signum: signal.Signals) -> None:
    # popen() made the process the leader of its group, and nobody waited for it: the id is still its own.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signum)


def pids_in(namespace: str) -> list[int]:
    """The processes that live in a namespace."""
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False)
    return [int(pid) for pid in done.stdout.split()]


def remove_namespace(namespace: str) -> None:
    """Remove a namespace of a lab, with the processes still in it and its files in /etc/netns.

    Processes can be left that are in no group we know: daemons' children that made a session of their own,
    or everything of a lab whose owner was killed. Only a lab's processes are in a lab's namespace.
    """
    if (NAMESPACES / namespace).exists():
        for _ in _until(GRACE):
            pids = pids_in(namespace)
            if not pids:
                break
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        _remove_state(namespace)
        # In a session of its own: a second Ctrl-C, which goes to the whole group, must not stop it.
        subprocess.run(
            ["ip", "netns", "del", namespace], capture_output=True, check=False, start_new_session=True
        )
        if not (
            NAMESPACES / namespace
        ).is_mount():  # `ip netns add` was stopped half-way: a bare file is left
            (NAMESPACES / namespace).unlink(missing_ok=True)
    files = ETC_NETNS / namespace
    if files.is_dir():
        for file in files.iterdir():
            file.unlink(missing_ok=True)
        files.rmdir()


def _remove_state(namespace: str) -> None:
    """Remove what a gateway that was killed in this namespace left on disk for the next one there."""
    if not RUN_DIR.is_dir() or not any(RUN_DIR.iterdir()):
        return
    ask = "from nedge.kernel.state import namespace_dir; print(namespace_dir())"
    done = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", ask],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        shutil.rmtree(done.stdout.strip(), ignore_errors=True)
        with contextlib.suppress(OSError):
            RUN_DIR.rmdir()  # only when nobody else uses it


def _until(seconds: float, *, pause: float = 0.02) -> Iterator[None]:
    """Iterate until a time has passed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(pause)
