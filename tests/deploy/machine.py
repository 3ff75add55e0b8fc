"""A clean Debian of this machine's own release, and systemd running in it, in the place of the lab's gateway.

The machine is booted by systemd-nspawn, in the network namespace that the lab made for its gateway: units,
capabilities and sandboxes are real, and so is the traffic.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

PROJECT = Path(__file__).parents[2]
SYSTEM_PYTHON = "/usr/bin/python3"
BOOT_SECONDS = 120
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
_BASE = ("systemd", "systemd-sysv", "dbus", "iproute2", "python3", "python3-venv", "kmod")


def call(argv: Sequence[str | Path], **options: object) -> str:
    """Run what must succeed; gives its output."""
    done = subprocess.run([*map(str, argv)], capture_output=True, text=True, check=False, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, f"{' '.join(map(str, argv))}: {done.returncode}\n{done.stdout}{done.stderr}"
    return str(done.stdout)


@contextmanager
def in_memory(path: Path, like: Path | None = None) -> Iterator[Path]:
    """A directory in memory, like another: a root has many files, which disks delete slowly."""
    path.mkdir(parents=True, exist_ok=True)
    call(["mount", "-t", "tmpfs", "-o", "size=3G,mode=755", "tmpfs", path])
    try:
        if like is not None:
            call(["cp", "-a", f"{like}/.", path])
        yield path
    finally:
        call(["umount", "--lazy", path])


def make_root(directory: Path) -> Path:
    """A minimal Debian of this release with systemd. Takes two minutes."""
    release = platform.freedesktop_os_release()["VERSION_CODENAME"]
    mirror = os.environ.get("NEDGE_TEST_MIRROR", "http://deb.debian.org/debian")
    call(["debootstrap", "--variant=minbase", f"--include={','.join(_BASE)}", release, directory, mirror])
    shutil.rmtree(directory / "var/cache/apt/archives", ignore_errors=True)
    return directory


def install_dependencies(root: Path) -> None:
    """The Debian packages that the installer would fetch: the lab has no way to the Internet."""
    (root / "project").mkdir()
    call(["mount", "--bind", PROJECT, root / "project"])
    try:
        call(["chroot", root, "apt-get", "-qq", "update"])
        call(["chroot", root, "sh", "/project/deploy/install-deps.sh", "packages"])
    finally:
        call(["umount", root / "project"])
    call(["chroot", root, "apt-get", "clean"])


def make_wheels(directory: Path) -> Path:
    """nedge's Python packages, and what builds it, as wheels for the system's Python."""
    call([SYSTEM_PYTHON, "-m", "venv", directory / "venv"])
    call(
        [
            directory / "venv/bin/python",
            "-m",
            "pip",
            "wheel",
            "-q",
            "-w",
            directory / "wheels",
            PROJECT,
            *tomllib.loads((PROJECT / "pyproject.toml").read_text())["build-system"]["requires"],
        ]
    )
    for mine in (directory / "wheels").glob("nedge-*.whl"):
        mine.unlink()
    return directory / "wheels"


class Machine:
    """A root, booted in a network namespace; `run` executes commands in it."""

    def __init__(self, root: Path, namespace: str, binds: Mapping[Path, str]) -> None:
        self.root = root
        self._namespace = namespace
        self._binds = binds
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = 0

    def __enter__(self) -> Self:
        with (self.root.parent / "console").open("wb") as console:
            self._nspawn = subprocess.Popen(
                [
                    *("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "--boot"),
                    *("--directory", str(self.root), "--capability=CAP_NET_ADMIN,CAP_NET_RAW"),
                    f"--network-namespace-path=/run/netns/{self._namespace}",
                    *(f"--bind-ro={source}:{target}" for source, target in self._binds.items()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=console,
                stderr=console,
                start_new_session=True,
            )
        try:
            self._await_boot(self._nspawn)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def run(
        self, *argv: str, check: bool = True, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine, as root."""
        done = subprocess.run(
            [
                *("nsenter", "--target", str(self._leader), "--mount", "--uts", "--ipc", "--net", "--pid"),
                *("--cgroup", "--root", "env", "-i", "--chdir=/", PATH),
                *(f"{name}={value}" for name, value in (env or {}).items()),
                *argv,
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def stop(self) -> None:
        """Power off."""
        if self._nspawn is None:
            return
        self._nspawn.send_signal(signal.SIGTERM)
        try:
            self._nspawn.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(self._nspawn.pid, signal.SIGKILL)
            self._nspawn.wait()
        self._nspawn = None

    def _await_boot(self, nspawn: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while True:
            children = Path(f"/proc/{nspawn.pid}/task/{nspawn.pid}/children").read_text().split()
            for child in map(int, children):
                if Path(f"/proc/{child}/comm").read_text().strip() == "systemd":
                    self._leader = child
            if self._leader:
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
                if state in ("running", "degraded"):
                    # On a machine of its own a system may set sysctls; nspawn would not let it.
                    self.run("mount", "-o", "remount,bind,rw", "/proc/sys")
                    return
            assert nspawn.poll() is None, (self.root.parent / "console").read_text(errors="replace")
            assert time.monotonic() < deadline, "the machine did not boot"
            time.sleep(0.5)
