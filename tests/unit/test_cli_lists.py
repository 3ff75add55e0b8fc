"""`nedge lists` and `nedge lists refresh`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from list_server import ListServer, list_server
from support import require
from test_cli import here


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ListServer]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with list_server() as served:
        yield served


@pytest.fixture
def config(tmp_path: Path, server: ListServer) -> Path:
    (tmp_path / "mine").write_text("192.0.2.1\n")
    url = server.put("/names", "bad.example\nworse.example\ncom\n" + "x.example\n" * 20)
    path = tmp_path / "nedge.toml"
    secret = url.replace("//", "//me:secret@")
    path.write_text(
        f'[lists]\ncache_directory = "cache"\nmalware_hosts = ["mine"]\nmalware_domains = ["{secret}"]\n'
        "[log]\nformat = 'json'\n"
    )
    return path


def test_before_and_after(config: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    def rows(*command: str) -> list[dict[str, object]]:
        done = here(monkeypatch, capfd, *command, "--config", config, "--json")
        done.check(0)
        assert "secret" not in done.out + done.err
        return [json.loads(line) for line in done.out.splitlines()]

    before = rows("lists")
    assert [(row["list"], row["entries"], row["taken"], row["asked"]) for row in before] == [
        ("malware_hosts", 0, 0, 0),
        ("malware_domains", 0, 0, 0),
    ]
    for after in (rows("lists", "refresh"), rows("lists")):
        assert [(row["list"], row["entries"], row["wrong_lines"], row["error"]) for row in after] == [
            ("malware_hosts", 1, 0, ""),
            ("malware_domains", 22, 1, ""),
        ]
        assert all(row["taken"] and row["asked"] for row in after)
        assert re.fullmatch(r"http://\*\*\*@127.0.0.1:\d+/names", str(after[1]["source"]))


def test_for_people(config: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    done = here(monkeypatch, capfd, "lists", "--config", config)
    done.check(0)
    assert re.search(r"malware_domains +http://\S+/names +0 +0 +never +never +0", done.out)
    done = here(monkeypatch, capfd, "lists", "refresh", "--config", config)
    done.check(0)
    assert re.search(r"malware_domains +http://\S+/names +22 +1 +\d+ s ago +\d+ s ago +0", done.out)


def test_what_failed_is_told(config: Path, server: ListServer, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    here(monkeypatch, capfd, "lists", "refresh", "--config", config).check(0)
    server.pages.clear()
    done = here(monkeypatch, capfd, "lists", "refresh", "--config", config)
    done.check(1, "list_refresh_failed", "404")
    assert re.search(r" 22 +1 .* 1 +the server answers 404", done.out)
    here(monkeypatch, capfd, "lists", "--config", config).check(0)
    here(monkeypatch, capfd, "lists", "refresh", "malware_hosts", "--config", config).check(0)


def test_shrunken(config: Path, server: ListServer, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    command = ("lists", "refresh", "malware_domains", "--config", config)
    here(monkeypatch, capfd, *command).check(0)
    server.put("/names", "bad.example\n")
    here(monkeypatch, capfd, *command).check(1, "lists.min_fraction")
    here(monkeypatch, capfd, *command, "--accept-shrunken").check(0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["malware"], ["malware: no such list; allowed are malware_hosts, "]),
        (["mining_domains"], ["lists.mining_domains: has no source"]),
    ],
)
def test_wrong_usage(config: Path, monkeypatch, capfd, arguments, words) -> None:  # type: ignore[no-untyped-def]
    here(monkeypatch, capfd, "lists", "refresh", *arguments, "--config", config).check(2, *words)


def test_no_lists(monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    done = here(monkeypatch, capfd, "lists")
    done.check(0)
    assert "no lists are configured" in done.out


def test_wrong_file_on_refresh(config: Path, tmp_path: Path, monkeypatch, capfd) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "mine").write_text("bad\n")
    done = here(monkeypatch, capfd, "lists", "refresh", "malware_hosts", "--config", config)
    done.check(1, "list_refresh_failed")
    assert "found 'bad'" in " ".join(done.out.split())


def test_root_refreshes_as_the_owner_of_the_cache() -> None:
    """Else the service, whose cache it is, could not write there any more."""
    require(os.geteuid() == 0, "root")
    service = 65534
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "mine").write_text("192.0.2.1\n")
        (folder / "cache").mkdir()
        os.chown(folder / "cache", service, service)
        (folder / "nedge.toml").write_text('[lists]\ncache_directory = "cache"\nmalware_hosts = ["mine"]\n')
        # All is imported before: that user may be unable to read this very Python.
        program = "import encodings.utf_8_sig, nedge.cli; nedge.cli.main()"
        command = ["lists", "refresh", "--json", "--config", str(folder / "nedge.toml")]
        done = subprocess.run(
            [sys.executable, "-c", program, *command], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["entries"] == 1
        made = list((folder / "cache").rglob("*"))
        assert {path.name for path in made} >= {"lock", "packed"}
        assert {path.stat().st_uid for path in made} == {service}
