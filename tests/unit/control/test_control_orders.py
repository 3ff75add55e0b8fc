"""Orders on disk: whole or not at all, and what becomes of a file that is damaged."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from nedge.core.orders import Kind, Order, flow_target
from nedge.core.verdict import Operator
from nedge.gateway.orders import OrderFile, order_from, order_message

KEY = bytes.fromhex("0000060a63000201020304a00001bb")
ORDERS = [
    Order(id=1, word=Operator.BLOCK, kind=Kind.HOST, target="10.0.0.5", made=5.0, by="root", reason='x\n"ü"'),
    Order(id=2, word=Operator.UNBLOCK, kind=Kind.NETWORK, target="2001:db8::/32", until=9.5),
    Order(id=4, word=Operator.BLOCK, kind=Kind.DOMAIN, target="ads.example"),
    Order(id=7, word=Operator.BLOCK, kind=Kind.FLOW, target=flow_target(KEY), key=KEY),
]


def filled(directory: Path) -> OrderFile:
    file = OrderFile(directory, "br0")
    for order in ORDERS:
        file.book.add(order)
    file.next = 9
    assert file.store() == ""
    return file


def loaded(directory: Path) -> OrderFile:
    file = OrderFile(directory, "br0")
    file.load()
    return file


def test_a_message_is_an_order() -> None:
    for order in ORDERS:
        assert order_from(json.loads(json.dumps(order_message(order)))) == order


def test_what_is_stored_is_loaded(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "for it"
    filled(directory)
    again = loaded(directory)
    assert list(again.book) == ORDERS
    assert again.next == 9
    assert again.book.word_on_flow(KEY) is Operator.BLOCK
    assert os.stat(directory).st_mode & 0o777 == 0o700
    assert [path.name for path in directory.iterdir()] == ["br0.orders.json"]


def test_none_are_there_at_first(tmp_path: Path) -> None:
    file = loaded(tmp_path / "none")
    assert (len(file.book), file.next, file.damaged) == (0, 1, 0)
    assert not (tmp_path / "none").exists()


def change(**fields: Any) -> bytes:
    entry = {"id": 1, "word": "block", "kind": "host", "target": "10.0.0.5"} | fields
    return json.dumps({"version": 1, "next": 2, "orders": [entry]}).encode()


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"\0" * 4096,
        b"[]",
        b'{"version": 2, "next": 1, "orders": []}',
        b'{"version": 1, "orders": []}',
        change(word="maybe"),
        change(kind="planet"),
        change(target="10.0.0.5/8"),
        change(target="10.0.0.0/8"),
        change(target="10.0.0.05"),
        change(kind="domain", target="Ads.Example"),
        change(kind="domain", target="a b"),
        change(kind="flow", target="tcp a > b"),
        change(kind="flow", target=flow_target(KEY), key="00"),
        change(kind="flow", target=flow_target(KEY), key="xyz"),
        change(kind="flow", target=flow_target(KEY), key=KEY.hex().replace("0a", "0b")),
        change(until="soon"),
        change(surprise=1),
        change(id="1"),
    ],
)
def test_a_damaged_file_is_set_aside(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "br0.orders.json"
    path.write_bytes(text)
    with capture_logs() as logs:
        file = loaded(tmp_path)
    assert (len(file.book), file.damaged) == (0, 1)
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("br0.orders.damaged-")
    assert kept.read_bytes() == text
    (log,) = logs
    assert (log["event"], log["log_level"], log["kept"]) == ("orders_damaged", "error", str(kept))
    assert file.store() == ""  # and it goes on
    assert loaded(tmp_path).damaged == 0


def test_a_file_that_cannot_be_read_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "br0.orders.json").mkdir()
    with capture_logs() as logs:
        file = loaded(tmp_path)
    assert file.damaged == 1
    assert logs[0]["event"] == "orders_unreadable"
    with capture_logs() as logs:
        assert "cannot be written" in file.store()
    assert (file.unstored, logs[0]["event"]) == (1, "orders_unstored")


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = filled(tmp_path)
    file.book.remove(1)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert file.store() == f"{file.path}: cannot be written: No space left on device"
    assert list(loaded(tmp_path).book) == ORDERS


def test_what_could_not_be_written_is_written_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = filled(tmp_path)
    file.store_again()  # there is nothing to do
    file.book.remove(1)

    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    with capture_logs() as logs:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            assert file.store()
            for _ in range(3):
                file.store_again()
        assert file.unstored == 4
        assert list(loaded(tmp_path).book) == ORDERS
        file.store_again()
        assert list(loaded(tmp_path).book) == ORDERS[1:]
        file.path.unlink()
        file.store_again()
        assert not file.path.exists(), "once is enough"
    told = [(entry["event"], entry.get("times")) for entry in logs]
    assert told == [*(("orders_unstored", times) for times in (1, 2, 4)), ("orders_stored", None)]


def test_numbers_go_on_from_the_highest(tmp_path: Path) -> None:
    (tmp_path / "br0.orders.json").write_bytes(change(id=40))
    assert loaded(tmp_path).next == 41
