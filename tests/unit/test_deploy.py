"""The files of deploy/: scripts called wrongly, and the unit."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from support import require

from nedge.gateway.supervisor import READY_SECONDS, STOP_SECONDS

DEPLOY = Path(__file__).parents[2] / "deploy"
POWERLESS = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")


def run(script: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, "sh", str(DEPLOY / script), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("script", "arguments", "said"),
    [
        ("install.sh", ["one"], "usage: install.sh LAN WAN"),
        ("install.sh", ["a", "b", "c"], "usage: install.sh LAN WAN"),
        ("install.sh", ["eth0", "eth0"], "LAN and WAN must be two interfaces, not both 'eth0'"),
        ("install.sh", ["eth0", ""], "'' is no name of a network interface"),
        ("install.sh", ["eth0", "e/../x"], "'e/../x' is no name of a network interface"),
        ("install.sh", ["--help", "eth1"], "'--help' is no name of a network interface"),
        ("install.sh", ["eth0", "averylongname016"], "it has more than 15 characters"),
        ("uninstall.sh", ["--all"], "usage: uninstall.sh [--purge]"),
        ("uninstall.sh", ["--purge", "x"], "usage: uninstall.sh [--purge]"),
        ("build-deb.sh", ["a", "b"], "usage: build-deb.sh [DIRECTORY]"),
        ("build-deb.sh", ["/nonexistent"], "/nonexistent is no directory"),
        ("install-deps.sh", ["all"], "usage: install-deps.sh [packages|run|demo|test]"),
        ("system/system.sh", [], "usage: system.sh prepare|start|stop|restore|purge"),
        ("system/system.sh", ["settings"], "usage: system.sh prepare|start|stop|restore|purge"),
    ],
)
def test_wrong_usage(script: str, arguments: list[str], said: str) -> None:
    done = run(script, *arguments)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


@pytest.mark.parametrize(("script", "arguments"), [("install.sh", ["eth0", "eth1"]), ("uninstall.sh", [])])
def test_without_root(script: str, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    require(os.geteuid() == 0 and shutil.which("setpriv"), "root and setpriv")
    # Another user may be unable to read the project: the script comes through standard input.
    done = subprocess.run(
        [*POWERLESS, "sh", "-s", *arguments],
        input=(DEPLOY / script).read_text(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd="/",
    )
    assert done.returncode == 1
    assert "needs root: use sudo" in done.stderr


def test_times_of_the_unit_fit_the_gateways() -> None:
    unit = (DEPLOY / "system/nedge.service").read_text()

    def seconds(key: str) -> float:
        return float(re.findall(rf"^{key}=(\d+)$", unit, re.MULTILINE)[0])

    assert seconds("TimeoutStopSec") > STOP_SECONDS
    assert seconds("TimeoutStartSec") > READY_SECONDS
    assert seconds("WatchdogSec") > READY_SECONDS


def test_the_unit_is_valid_and_hardened(tmp_path: Path) -> None:
    require(shutil.which("systemd-analyze"), "systemd-analyze is not installed")
    unit = tmp_path / "nedge.service"
    text = (DEPLOY / "system/nedge.service").read_text().replace("@BIN@", "/bin/true")
    unit.write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (verified.returncode, verified.stderr) == (0, "")
    rated = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=22", unit],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert rated.returncode == 0, rated.stdout + rated.stderr
    assert "CapabilityBoundingSet=CAP_NET_ADMIN CAP_NET_RAW\n" in text


def test_what_is_compiled_is_there() -> None:
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    modules = project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]
    assert [name for name in modules if not (DEPLOY.parent / f"nedge/{name}.py").is_file()] == []


def test_no_generator_that_has_to_clean_up_is_compiled() -> None:
    """Compiled, it does not run its `finally` when it is given up half-way."""
    project = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
    for name in project["tool"]["hatch"]["build"]["targets"]["wheel"]["hooks"]["custom"]["modules"]:
        tree = ast.parse((DEPLOY.parent / f"nedge/{name}.py").read_text())
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            inside = list(ast.walk(function))
            cleans = any(isinstance(node, ast.Try) and node.finalbody for node in inside)
            assert not (cleans and any(isinstance(node, ast.Yield | ast.YieldFrom) for node in inside)), (
                f"{name}: {function.name}"
            )
