"""The event file: rotation, files that are moved away, and disks that fail."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nedge.export import files as module
from nedge.export.files import EventFile

LINE = b'{"event_type":"flow"}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "eve.json"


def opened(path: Path, **options: Any) -> EventFile:
    file = EventFile(path, **options)
    file.open()
    return file


def test_lines_are_appended(path: Path) -> None:
    for _ in range(2):
        file = opened(path)
        file.write(LINE, 1)
        file.write(LINE * 3, 3)
        file.close()
        assert (file.written, file.lost) == (4, 0)
    assert path.read_bytes() == LINE * 8


@pytest.mark.parametrize("place", ["missing/eve.json", "."])
def test_a_file_that_cannot_be_opened(tmp_path: Path, place: str) -> None:
    with pytest.raises(OSError, match=r"No such file|Is a directory"):
        opened(tmp_path / place)


def test_a_pipe_without_a_reader_is_not_waited_for(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(OSError, match="No such device"):
        opened(path)


def test_the_file_is_not_for_everybody(path: Path) -> None:
    opened(path).close()
    assert not path.stat().st_mode & (stat.S_IXUSR | stat.S_IRWXO | stat.S_IWGRP)


# Rotation


def test_by_size(path: Path) -> None:
    file = opened(path, rotate_bytes=len(LINE) * 3, keep=2)
    for number in range(10):
        file.write(LINE.replace(b"flow", b"%04d" % number), 1)
    file.close()
    assert (file.written, file.lost, file.rotations) == (10, 0, 3)
    names = ["eve.json.2", "eve.json.1", "eve.json"]
    assert sorted(os.listdir(path.parent)) == sorted(names)
    numbers = [line[15:19] for name in names for line in (path.parent / name).read_bytes().splitlines()]
    assert numbers == [b"%04d" % number for number in range(3, 10)]
    assert all((path.parent / name).stat().st_size <= len(LINE) * 3 for name in names)


def test_a_batch_larger_than_a_file_stays_whole(path: Path) -> None:
    file = opened(path, rotate_bytes=10, keep=1)
    file.write(LINE * 3, 3)
    file.write(LINE, 1)
    file.close()
    assert (path.read_bytes(), path.with_name("eve.json.1").read_bytes()) == (LINE, LINE * 3)


def test_what_was_there_counts(path: Path) -> None:
    path.write_bytes(LINE * 3)
    file = opened(path, rotate_bytes=len(LINE) * 3)
    file.write(LINE, 1)
    assert path.read_bytes() == LINE
    file.close()


def test_by_time(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    midnight = 86400.0 * 1000
    now = midnight - 10
    monkeypatch.setattr(module.time, "time", lambda: now)
    file = opened(path, rotate_seconds=86400, keep=2)
    file.write(LINE, 1)
    for after, rotations in ((-1, 0), (1, 1), (80_000, 1), (86_401, 1)):
        now = midnight + after
        file.tick()
        assert file.rotations == rotations
    file.write(LINE, 1)
    file.tick()
    assert file.rotations == 1, "it is of today"
    now += 86400
    file.tick()
    assert file.rotations == 2
    assert path.with_name("eve.json.2").read_bytes() == path.with_name("eve.json.1").read_bytes() == LINE
    file.close()


def test_by_time_across_a_restart(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path.write_bytes(LINE)
    written = 86400.0 * 1000 - 10
    os.utime(path, (written, written))
    monkeypatch.setattr(module.time, "time", lambda: written + 20)
    file = opened(path, rotate_seconds=86400)
    file.tick()
    assert (file.rotations, path.read_bytes()) == (1, b"")
    file.close()


def test_a_rotation_that_fails_is_counted(path: Path) -> None:
    path.with_name("eve.json.1").mkdir()
    (path.with_name("eve.json.1") / "x").touch()
    file = opened(path, rotate_bytes=len(LINE) * 2)
    with capture_logs() as logs:
        for _ in range(9):
            file.write(LINE, 1)
    file.close()
    assert path.read_bytes() == LINE * 9, "and nothing is lost"
    assert (file.written, file.lost, file.rotations) == (9, 0, 0)
    assert file.failures == 4, "not with every line"
    assert [entry["failures"] for entry in logs] == [1, 2, 4]
    assert {entry["event"] for entry in logs} == {"eve_rotation_failed"}


@pytest.mark.parametrize("how", ["moved", "moved and made", "removed"])
def test_who_moves_the_file_away_gets_no_more(path: Path, how: str) -> None:
    file = opened(path)
    file.write(LINE, 1)
    old = path.with_name("old")
    if how == "removed":
        path.unlink()
    else:
        path.rename(old)
    if how == "moved and made":
        path.touch()
    file.write(LINE, 1)  # still to the old one
    file.tick()
    file.write(LINE * 2, 2)
    file.close()
    assert path.read_bytes() == LINE * 2
    assert how == "removed" or old.read_bytes() == LINE * 2


def test_opened_anew_on_demand(path: Path) -> None:
    file = opened(path)
    inode = path.stat().st_ino
    path.rename(path.with_name("old"))
    file.reopen()
    file.write(LINE, 1)
    file.close()
    assert path.stat().st_ino != inode
    assert path.read_bytes() == LINE


def test_a_file_that_is_copied_and_emptied(path: Path) -> None:
    file = opened(path)
    file.write(LINE * 100, 100)
    os.truncate(path, 0)
    file.write(LINE, 1)
    file.close()
    assert path.read_bytes() == LINE


def test_a_folder_that_is_gone_and_comes_back(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    file = opened(folder / "eve.json")
    folder.rename(tmp_path / "away")
    with capture_logs() as logs:
        for _ in range(3):
            file.tick()
            file.write(LINE, 1)
    assert [entry["event"] for entry in logs] == ["eve_open_failed"] * 2
    assert (file.failures, file.written) == (3, 3), "it goes on in the old one"
    folder.mkdir()
    file.tick()
    file.write(LINE, 1)
    file.close()
    assert (folder / "eve.json").read_bytes() == LINE


def test_a_file_that_never_could_be_opened(tmp_path: Path) -> None:
    file = EventFile(tmp_path / "log" / "eve.json")
    with capture_logs():
        file.reopen()
        file.write(LINE, 1)
        file.tick()
    assert (file.written, file.lost, file.failures) == (0, 1, 2)
    (tmp_path / "log").mkdir()
    file.tick()
    file.write(LINE, 1)
    file.close()
    assert (file.written, file.lost) == (1, 1)


# Disks


def test_a_full_disk_stops_nothing_and_is_counted() -> None:
    file = opened(Path("/dev/full"))
    with capture_logs() as logs:
        for _ in range(5):
            file.write(LINE * 2, 2)
    file.close()
    assert (file.written, file.lost) == (0, 10)
    assert [entry["lost"] for entry in logs] == [2, 4, 8]
    assert all(entry["error"] == "No space left on device" for entry in logs)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with little room."""
    from support import require

    disk = tmp_path / "disk"
    disk.mkdir()
    command = f"mount -t tmpfs -o size=64k nedge-test {disk} 2>/dev/null"
    require(os.geteuid() == 0 and os.system(command) == 0, "mounting a small file system takes root")
    try:
        yield disk
    finally:
        os.system(f"umount -l {disk}")


def test_a_disk_that_fills_up_and_has_room_again(small_disk: Path) -> None:
    path = small_disk / "eve.json"
    file = opened(path)
    batch = LINE * 1000
    with capture_logs():
        for _ in range(10):
            file.write(batch, 1000)
    content = path.read_bytes()
    assert content == LINE * file.written, "whole lines only"
    assert file.written > 1000
    assert file.written + file.lost == 10_000
    before = file.lost
    os.truncate(path, 0)
    file.write(batch, 1000)
    file.close()
    assert (path.read_bytes(), file.lost) == (batch, before)


@pytest.mark.parametrize("taken", range(0, 3 * len(LINE) + 1, 7))
def test_a_disk_that_takes_a_part(path: Path, monkeypatch: pytest.MonkeyPatch, taken: int) -> None:
    file = opened(path)
    file.write(LINE, 1)
    real = os.write
    monkeypatch.setattr(module.os, "write", lambda fd, data: real(fd, data[:taken]))
    with capture_logs():
        file.write(LINE * 3, 3)
    monkeypatch.undo()
    whole = taken // len(LINE)
    assert (file.written, file.lost) == (1 + whole, 3 - whole)
    assert path.read_bytes() == LINE * (1 + whole)
    file.write(LINE, 1)
    file.close()
    assert path.read_bytes() == LINE * (2 + whole)


def test_a_part_that_cannot_be_taken_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = opened(path)
    real = os.write
    taken = iter([30, None])

    def write(fd: int, data: bytes) -> int:
        return real(fd, data[: next(taken, None)])

    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EPERM, "no")

    monkeypatch.setattr(module.os, "write", write)
    monkeypatch.setattr(module.os, "ftruncate", refuse)
    with capture_logs():
        file.write(LINE * 3, 3)
        file.write(LINE, 1)
    file.close()
    lines = path.read_bytes().splitlines(keepends=True)
    assert [line == LINE for line in lines] == [True, False, True]
    assert (file.written, file.lost) == (2, 2)
