"""`nedge doctor`: what it finds, and in which words."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import require

from nedge import doctor
from nedge.config import Config
from nedge.config_file import load
from nedge.doctor import examine_all
from nedge.kernel import survey
from nedge.kernel.links import Link
from nedge.kernel.problem import Problem
from nedge.kernel.state import State


def texts(problems: object) -> list[str]:
    return [problem.text for problem in problems]  # type: ignore[attr-defined]


def link(name: str, master: int = 0) -> Link:
    return Link(name, 2, True, master, "", 1500, {}, False, False)


def config(tmp_path: Path, text: str) -> Config:
    (tmp_path / "nedge.toml").write_text(text)
    return load(tmp_path / "nedge.toml")


# Software


def test_packages() -> None:
    check = doctor.packages()
    assert check.problems == [] or check.problems[0].text.startswith("nedge runs from its sources")


def test_a_package_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["orjson>=3.9", "netfilterqueue>=1.1.0", "no-such-thing", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: wanted)
    monkeypatch.setitem(sys.modules, "orjson", None)
    found = texts(doctor.packages().problems)
    assert [text.split(" cannot")[0] for text in found] == [
        "Python package orjson",
        "Python package no-such-thing",
    ]
    assert found[1] == "Python package no-such-thing cannot be used (not installed): install nedge again"


def test_scripts_and_lists(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies/broken.py").write_text("x = (\n")
    text = '[scripts]\ndirectories = ["policies"]\n[lists]\nmalware_hosts = ["none.txt"]\n'
    found = {check.name: check.problems for check in doctor.judging(config(tmp_path, text))}
    assert found["nDPI"] == []
    assert "policies/broken.py:1: " in found["scripts"][0].text
    assert "none.txt: cannot be read: No such file" in found["lists"][0].text
    assert found["scripts"][0].fatal
    assert found["lists"][0].fatal


def test_a_library_that_is_none(tmp_path: Path) -> None:
    found = [*doctor.judging(config(tmp_path, '[dpi]\nlibrary = "/none.so"\n'))]
    assert "/none.so" in found[0].problems[0].text
    assert found[0].problems[0].fatal


# The machine


@pytest.mark.parametrize(("state", "warned"), [(0, False), (5, True), (-1, True)])
def test_clock(monkeypatch: pytest.MonkeyPatch, state: int, warned: bool) -> None:
    class Libc:
        def adjtimex(self, _buffer: object) -> int:
            return state

    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: Libc())
    problems = doctor.clock().problems
    assert bool(problems) == warned
    assert not any(problem.fatal for problem in problems)


def test_where_events_go(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = {c.name: c for c in doctor.storage(config(tmp_path, '[eve]\npath = "eve.json"\n'))}
    assert found[f"disk {tmp_path}"].problems == []
    for path in ("none/eve.json", "file/eve.json"):
        *_, check = doctor.storage(config(tmp_path, f'[eve]\npath = "{path}"\n'))
        assert "is no directory: make it" in check.problems[0].text
        assert check.problems[0].fatal


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        f_bavail, f_frsize = 100, 1 << 20

    monkeypatch.setattr(os, "statvfs", lambda _: Usage)
    *_, check = doctor.storage(config(tmp_path, '[eve]\npath = "eve.json"\n'))
    assert check.problems == [
        Problem(f"only 100 MB free on the file system of {tmp_path}: make room", fatal=False)
    ]


# Others on the machine


@pytest.mark.parametrize(
    ("limit", "count", "workers", "parts"),
    [
        ("1000000", "5", 1, []),
        ("262144", "5", 1, ["holds 262144 connections", "limits.max_flows is 1000000:"]),
        ("1000000", "900000", 1, ["900000 of 1000000 connections"]),
        ("3999999", "5", 4, ["holds 3999999 connections", "1000000 for each of 4 workers:"]),
        ("4000000", "5", 4, []),
        ("0", "5", 4, []),  # no limit
        (None, None, 1, []),
    ],
)
def test_connection_table(
    monkeypatch: pytest.MonkeyPatch, limit: str | None, count: str | None, workers: int, parts: list[str]
) -> None:
    values = {"net/netfilter/nf_conntrack_max": limit, "net/netfilter/nf_conntrack_count": count}
    monkeypatch.setattr(survey, "read_sysctl", values.get)
    found = survey.connection_table(1_000_000, workers)
    assert bool(found) == bool(parts)
    for part in parts:
        assert part in found[0].text
        assert not found[0].fatal


@pytest.mark.parametrize(
    ("master", "features", "fatal", "part"),
    [
        (0, {"rx-lro": (False, True)}, None, ""),
        (0, {}, None, ""),
        (0, {"rx-lro": (True, True)}, False, "try ethtool -K lan0 lro off"),
        (7, {"rx-lro": (True, True)}, True, "forwards broken packets: ethtool -K lan0 lro off"),
        (7, {"rx-lro": (True, False)}, True, "its driver refuses that"),
    ],
)
def test_lro(
    monkeypatch: pytest.MonkeyPatch,
    master: int,
    features: dict[str, tuple[bool, bool]],
    fatal: bool | None,
    part: str,
) -> None:
    monkeypatch.setattr(survey, "_features", lambda _: features)
    found = [*survey.large_receive({"lan0": link("lan0", master)}, ["lan0"])]
    assert [problem.fatal for problem in found] == ([] if fatal is None else [fatal])
    assert all(part in problem.text for problem in found)


def test_offloads_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "_features", lambda _: {"rx-gro": (True, True), "rx-lro": (False, True)})
    assert survey.receive_offloads("eth0") == "eth0: GRO"
    monkeypatch.setattr(survey, "_features", lambda _: {})
    assert survey.receive_offloads("eth0") == "eth0: its driver does not tell"
    monkeypatch.setattr(survey, "_features", lambda _: {"rx-gro": (False, True)})
    assert survey.receive_offloads("eth0") == "eth0: none"


def test_wireless(tmp_path: Path) -> None:
    (tmp_path / "wlan0/phy80211").mkdir(parents=True)
    (tmp_path / "wlan1/phy80211").mkdir(parents=True)
    (tmp_path / "wlan1/brport").mkdir()
    (found,) = survey.wireless(["eth0", "wlan0", "wlan1"], tmp_path)
    assert found.text.startswith("interface wlan0 is wireless")
    assert found.fatal


def test_queues_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        "*filter",
        "-A FORWARD -j NFQUEUE --queue-num 0",
        "-A NEDGE-br0 -m physdev --physdev-in a -j NFQUEUE --queue-num 71",
        "-A FORWARD -m comment --comment NFQUEUE -j ACCEPT",
        "COMMIT",
    ]
    monkeypatch.setattr(survey, "save", lambda family: lines if family == "ip" else [])
    (found,) = survey.other_queues()
    assert "(-A FORWARD -j NFQUEUE --queue-num 0)" in found.text
    assert not found.fatal


@pytest.mark.parametrize(
    ("rules", "warned"),
    [
        ([], True),
        (["-A DOCKER-USER -j RETURN"], True),
        (["-A DOCKER-USER -m physdev --physdev-is-bridged -j ACCEPT"], False),
        (["-A DOCKER-USER -m physdev --physdev-is-bridged -j DROP"], True),
    ],
)
def test_docker(monkeypatch: pytest.MonkeyPatch, rules: list[str], warned: bool) -> None:
    monkeypatch.setattr(survey, "save", lambda _: rules)
    assert bool(survey.docker({"docker0": link("docker0")})) == warned
    assert survey.docker({"eth0": link("eth0")}) == []


# Who runs


def test_a_look_at_the_state_changes_nothing(tmp_path: Path) -> None:
    directory = tmp_path / "state"
    assert State("br0", directory).peek() == ({}, None)
    assert not directory.exists()

    running = State("br0", directory)
    running.lock()
    running.put("marks", {"generation": 2})
    assert State("br0", directory).peek() == ({"marks": {"generation": 2}}, str(os.getpid()))
    running.unlock()  # without having put back what it changed: as a crash leaves it
    assert State("br0", directory).peek() == ({"marks": {"generation": 2}}, None)
    other = State("br0", directory)
    assert other.try_lock()  # a look holds no lock
    other.drop("marks")
    other.unlock()


# The command


def run(*arguments: str | Path, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-m", "nedge", "doctor", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_errors_make_it_fail(tmp_path: Path) -> None:
    require(os.geteuid() == 0 and shutil.which("unshare"), "root and unshare")
    config(tmp_path, '[gateway]\nbridge = "nedgetest0"\nlan = ["nosuchif0"]\nwan = ["nosuchif1"]\n')
    done = run("--config", tmp_path / "nedge.toml", prefix=("unshare", "--net"))
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error    interfaces: there is no interface nosuchif0; this machine has: none" in done.stdout
    assert "ok       nDPI: " in done.stdout
    assert "Traceback" not in done.stderr

    done = run("--config", tmp_path / "nedge.toml", "--json", prefix=("unshare", "--net"))
    assert done.returncode == 1
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {tuple(line) for line in lines} == {("level", "check", "text")}
    assert [line["check"] for line in lines if line["level"] == "error"] == ["interfaces"]


def test_without_root(tmp_path: Path) -> None:
    """What needs no privilege is looked at all the same."""
    require(os.geteuid() == 0 and shutil.which("setpriv"), "root and setpriv")
    done = run(prefix=("setpriv", "--bounding-set=-all", "--inh-caps=-all"))
    assert done.returncode == 1
    assert "error    privileges: nedge run needs root" in done.stdout
    assert "ok       scripts: " in done.stdout


def test_a_wrong_configuration(tmp_path: Path) -> None:
    (tmp_path / "nedge.toml").write_text("[gateway]\nmode = 3\n")
    done = run("--config", tmp_path / "nedge.toml")
    assert done.returncode == 2
    assert "gateway.mode" in done.stderr
    assert done.stdout == ""


def test_a_problem_of_several_lines_has_a_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        doctor, "_checks", lambda _: iter([doctor.Check("x", "fine", [Problem("one\ntwo", False)])])
    )
    assert [*examine_all(Config())] == [("warning", "x", "one"), ("warning", "x", "two")]
