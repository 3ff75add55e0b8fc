"""`nedge new-script`: what it writes works as it is, and nothing is overwritten."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[3]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
    environment["PYTHONPATH"] = str(PROJECT)
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=cwd, env=environment, timeout=300
    )


def test_what_it_writes_works_as_it_is(tmp_path: Path) -> None:
    made = run("nedge", "new-script", "no_games", "--directory", tmp_path)
    assert made.returncode == 0, made.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["no_games.py", "test_no_games.py"]
    assert [line.partition(":")[0] for line in made.stdout.splitlines()] == [
        str(tmp_path / "no_games.py"),
        str(tmp_path / "test_no_games.py"),
        str(PROJECT / "policies" / "README.md"),
    ]
    assert max(len(line) for path in tmp_path.iterdir() for line in path.read_text().splitlines()) <= 110

    checked = run("nedge", "check", "--policies", tmp_path)
    assert checked.returncode == 0, checked.stderr
    assert "script no_games: ok (hooks: protocolDetected, protocolUpdated)" in checked.stdout

    tested = run("pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    assert tested.returncode == 0, tested.stdout
    assert "9 passed" in tested.stdout

    # The test is a test: it fails when the script is wrong.
    script = tmp_path / "no_games.py"
    script.write_text(script.read_text().replace("    if entry:", "    if not entry:"))
    tested = run("pytest", "-q", "-p", "no:cacheprovider", tmp_path, cwd=tmp_path)
    assert tested.returncode == 1
    assert "8 failed" in tested.stdout


def test_without_a_directory_it_is_here(tmp_path: Path) -> None:
    assert run("nedge", "new-script", "mine", cwd=tmp_path).returncode == 0
    assert (tmp_path / "mine.py").is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("No-Games", "allowed are a to z, digits and underscores"),
        ("1st", "a letter first"),
        ("", "a letter first"),
        ("a.b", "allowed are a to z"),
        ("../evil", "allowed are a to z"),
        ("x" * 64, "63 at most"),
        ("class", "allowed are a to z"),
        ("test_mine", "taken for tests"),
        ("blacklisted", "a script that comes with nedge is called 'blacklisted'"),
    ],
)
def test_bad_names(name: str, said: str, tmp_path: Path) -> None:
    done = run("nedge", "new-script", "--directory", tmp_path, "--", name)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("existing", ["mine.py", "test_mine.py", "mine.lua"])
def test_nothing_is_overwritten(existing: str, tmp_path: Path) -> None:
    (tmp_path / existing).write_text("precious")
    done = run("nedge", "new-script", "mine", "-d", tmp_path)
    assert done.returncode == 2
    assert done.stderr == f"nedge: {tmp_path / existing} exists already; it is left as it is\n"
    assert [path.read_text() for path in tmp_path.iterdir()] == ["precious"]


def test_no_such_directory(tmp_path: Path) -> None:
    done = run("nedge", "new-script", "mine", "-d", tmp_path / "none")
    assert done.returncode == 2
    assert done.stderr == f"nedge: directory: {tmp_path / 'none'} is no directory\n"
