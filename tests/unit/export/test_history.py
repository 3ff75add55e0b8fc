"""History: rows from events, bounds of age and size, and files that fail."""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from pathlib import Path
from typing import Any

import orjson
import pytest
from kit import T0, Packet, Tcp, dns, http_request, http_response, judge, merge
from structlog.testing import capture_logs

from nedge.export import history as module
from nedge.export.eve import eve_time, to_json
from nedge.export.history import TABLES, History, micros
from nedge.export.questions import QUESTIONS, Filter, HistoryError, Row, opened

SCRIPTS = {
    "mining": """
    from nedge.scripts import *
    def protocolDetected(flow, now, conf):
        if flow.getHostName().endswith("bad.example"):
            info = {"why": flow.getHostName()}
            flow.triggerStatus(status_types.status_web_mining_detected, info, 100, 20, 3)
    """,
    "info": """
    from nedge.scripts import *
    def protocolDetected(flow, now, conf):
        if flow.getHostName() == "odd.example":
            flow.triggerStatus(status_types.status_flow_risk, "odd", 10, 0, 0)
    """,
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.db"


def made(path: Path, **options: Any) -> History:
    return History(path, **{"max_days": 36500, "max_bytes": 1 << 30, **options})


def traffic() -> list[Packet]:
    web = (
        Tcp(dport=80, sport=1000).handshake().client(http_request("www.good.example")).server(http_response())
    )
    other = Tcp("192.168.1.11", dport=80, sport=1001).handshake().client(http_request("good.example"))
    return merge(
        web.fin().packets,
        other.server(http_response(b"x" * 5000)).fin().packets,
        dns("www.bad.example", sport=2).packets,
        dns("odd.example", sport=3).packets,
    )


@pytest.fixture
def lines() -> bytes:
    judged = judge(traffic(), "verdict.host_drop_score = 20", SCRIPTS)
    return b"".join(to_json(event) for event in judged.events)


@pytest.fixture
def filled(path: Path, lines: bytes) -> Path:
    history = made(path)
    history.add(lines)
    history.add_scores(T0, [("192.168.1.10", 0, 20), ("192.168.1.11", 0, 5)])
    history.add_scores(T0 + 60, [("192.168.1.10", 0, 15)])
    history.close()
    assert (history.lost, history.failures) == (0, 0)
    assert history.written == len(lines.splitlines()) + 3
    return path


def ask(path: Path, question: str, **filters: Any) -> list[Row]:
    with opened(path) as database:
        return QUESTIONS[question](database, Filter(**filters))


def count(path: Path, table: str = "flows") -> int:
    with opened(path) as database:
        rows: int = database.execute(f"SELECT count(*) AS n FROM {table}").fetchone()["n"]
        return rows


# Questions


def test_flows_as_they_were(filled: Path, lines: bytes) -> None:
    events = [json.loads(line) for line in lines.splitlines() if b'"event_type":"flow"' in line]
    rows = ask(filled, "flows")
    assert len(rows) == len(events) == 4
    assert [row["at"] for row in rows] == sorted((row["at"] for row in rows), reverse=True)
    by_id = {row["flow_id"]: row for row in rows}
    for event in events:
        row = by_id[event["flow_id"]]
        flow, nedge = event["flow"], event["nedge"]
        assert (row["at"], row["began"]) == (flow["end"], flow["start"])
        assert (row["client"], row["client_port"], row["server"], row["server_port"]) == (
            event["src_ip"],
            event["src_port"],
            event["dest_ip"],
            event["dest_port"],
        )
        assert (row["sent"], row["received"]) == (flow["bytes_toserver"], flow["bytes_toclient"])
        assert row["packets"] == flow["pkts_toserver"] + flow["pkts_toclient"]
        assert (row["verdict"], row["reason"], row["score"]) == (
            nedge["verdict"],
            nedge["reason"],
            nedge["score"],
        )
        assert (row["app"], row["host"], row["proto"]) == (
            event["app_proto"],
            event["ndpi"]["hostname"],
            event["proto"],
        )
        assert row["dropped"] == nedge["dropped_packets"]


def test_filters(filled: Path) -> None:
    def names(**filters: Any) -> set[str]:
        return {row["host"] for row in ask(filled, "flows", **filters)}

    everything = {"www.good.example", "good.example", "www.bad.example", "odd.example"}
    assert names() == everything
    assert names(host="192.168.1.11") == {"good.example"}
    assert names(host="203.0.113.5") == everything
    assert names(host="192.168.1.1") == set()
    assert names(domain="good.example") == {"www.good.example", "good.example"}
    assert names(domain="GOOD.example.") == {"www.good.example", "good.example"}
    assert names(domain="ood.example") == names(domain="%") == names(domain="_ood.example") == set()
    assert names(verdict="pass") == {"good.example"}, "the other client is in quarantine"
    assert names(script="mining") == {"www.bad.example"}
    assert names(script="info") == {"odd.example"}
    assert names(since=T0 - 1, until=T0 + 60) == everything
    assert names(since=T0 + 60) == names(until=T0 - 1) == set()
    assert len(ask(filled, "flows", limit=2)) == 2


def test_top_talkers(filled: Path) -> None:
    flows = ask(filled, "flows")
    rows = ask(filled, "hosts")
    assert [row["host"] for row in rows] == ["192.168.1.11", "192.168.1.10"]
    assert [row["flows"] for row in rows] == [1, 3]
    for row in rows:
        own = [flow for flow in flows if flow["client"] == row["host"]]
        assert row["sent"] == sum(flow["sent"] for flow in own)
        assert row["received"] == sum(flow["received"] for flow in own)
        assert row["blocked"] == sum(flow["verdict"] != "pass" for flow in own)
        assert row["last"] == max(flow["at"] for flow in own)
    assert rows[0]["received"] > 5000
    (server,) = ask(filled, "servers")
    assert (server["host"], server["flows"]) == ("203.0.113.5", 4)


def test_domains_and_apps(filled: Path) -> None:
    rows = {row["domain"]: row for row in ask(filled, "domains")}
    assert set(rows) == {"www.good.example", "good.example", "www.bad.example", "odd.example"}
    assert rows["good.example"]["clients"] == 1
    assert [row["app"] for row in ask(filled, "apps")] == ["HTTP", "DNS"]
    assert [row["flows"] for row in ask(filled, "apps")] == [2, 2]
    assert ask(filled, "countries") == []


def test_scripts(filled: Path) -> None:
    rows = {row["script"]: row for row in ask(filled, "scripts")}
    assert set(rows) == {"mining", "info"}
    assert (rows["mining"]["flows"], rows["mining"]["blocked"], rows["mining"]["score"]) == (1, 1, 100)
    assert (rows["mining"]["alerts"], rows["info"]["alerts"]) == (1, 1)
    assert [row["script"] for row in ask(filled, "scripts", script="info")] == ["info"]
    assert ask(filled, "scripts", domain="good.example") == []


def test_drops_per_hour(path: Path, lines: bytes) -> None:
    history = made(path)
    for hours in (0, 1, 3):
        shifted = lines.replace(b"2025-06-15T15", b"2025-06-15T%d" % (15 + hours))
        history.add(shifted)
    history.close()
    rows = ask(path, "drops")
    assert [row["hour"][:16] for row in rows] == [f"2025-06-15T{hour}:00" for hour in (18, 16, 15)]
    assert {(row["flows"], row["blocked"], row["clients_blocked"]) for row in rows} == {(4, 3, 1)}
    assert all(row["dropped_packets"] > 0 for row in rows)
    assert [row["blocked"] for row in ask(path, "drops", host="192.168.1.11")] == [0, 0, 0]


def test_alerts_verdicts_and_scores(filled: Path) -> None:
    rows = ask(filled, "alerts")
    by_script = {row["script"]: row for row in rows}
    assert by_script["mining"]["status"] == "status_web_mining_detected"
    assert json.loads(by_script["mining"]["info"]) == {"why": "www.bad.example"}
    assert (by_script["mining"]["action"], by_script["info"]["info"]) == ("blocked", "odd")
    assert [row["script"] for row in ask(filled, "alerts", script="info")] == ["info"]
    verdicts = ask(filled, "verdicts")
    assert {row["verdict"] for row in verdicts} == {"drop", "quarantine"}
    assert [row["at"] for row in verdicts] == sorted((row["at"] for row in verdicts), reverse=True)
    assert any(row["reason"] == "flow_score: 100 >= 100" for row in verdicts)
    (quarantine,) = [row for row in verdicts if row["verdict"] == "quarantine"]
    assert (quarantine["client"], quarantine["reason"]) == (
        "192.168.1.10",
        "score 20, until 2025-06-15 15:11:40",
    )
    assert ask(filled, "verdicts", host="192.168.1.11") == []
    assert [
        (row["host"], row["highest"], row["latest"], row["minutes"]) for row in ask(filled, "scores")
    ] == [
        ("192.168.1.10", 20, 15, 2),
        ("192.168.1.11", 5, 5, 1),
    ]
    assert [row["host"] for row in ask(filled, "scores", host="192.168.1.11")] == ["192.168.1.11"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_every_question_of_an_empty_history(path: Path, question: str) -> None:
    history = made(path)
    history.tick()
    history.close()
    assert ask(path, question, host="192.0.2.1", domain="a", script="b", verdict="drop") == []


def test_there_is_no_history(tmp_path: Path) -> None:
    with pytest.raises(HistoryError, match=r"none.db: there is no history yet"):
        ask(tmp_path / "none.db", "flows")
    (tmp_path / "other.db").write_bytes(b"no database" * 100)
    with pytest.raises(HistoryError, match=r"other.db: cannot be read: file is not a database"):
        ask(tmp_path / "other.db", "flows")


def test_while_it_is_written(path: Path, lines: bytes) -> None:
    history = made(path)
    history.add(lines)
    history._write()
    assert count(path) == 4
    with opened(path) as database:
        database.execute("SELECT * FROM flows").fetchone()
        history.add(lines)
        history._write()
        assert history.failures == 0, "a reader is in nobody's way"
    assert count(path) == 8
    history.close()


# Writing


def test_rows_are_written_together(path: Path, lines: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BATCH_SECONDS", 3600.0)
    monkeypatch.setattr(module, "BATCH_ROWS", 4 * len(lines.splitlines()))
    history = made(path)
    history.add(lines)  # the first at once
    written = history.written
    for _ in range(3):
        history.add(lines)
    assert history.written == written
    history.add(lines)
    assert history.written == 5 * written
    history.add(lines)
    history.close()
    assert history.written == 6 * written


def test_the_file_is_not_for_everybody(filled: Path) -> None:
    assert not filled.stat().st_mode & (stat.S_IRWXO | stat.S_IWGRP)


def test_what_scripts_say_may_be_odd(path: Path) -> None:
    odd = {
        "odd": """
        from nedge.scripts import *
        def protocolDetected(flow, now, conf):
            flow.triggerStatus(status_types.status_flow_risk, {"big": 1 << 70, "text": "\\ud800", 1: {2}}, 10)
        """
    }
    judged = judge(dns("a.example").packets, scripts=odd)
    history = made(path)
    history.add(b"".join(to_json(event) for event in judged.events))
    history.close()
    assert (history.lost, history.failures) == (0, 0)
    assert count(path, "alerts") == 1


@pytest.mark.parametrize("when", [0.0, 1.5, 1_750_000_000.123456, 4_000_000_000.0])
def test_times(when: float) -> None:
    assert micros(eve_time(when)) == round(when * 1e6)


# Bounds


def flow_lines(start: float, number: int, step: float = 0.001) -> bytes:
    judged = judge(dns("a.example").packets, scripts={})
    event = judged.flow
    made = []
    for n in range(number):
        event["flow"]["end"] = event["flow"]["start"] = eve_time(start + n * step)
        event["ndpi"]["hostname"] = f"{n % 977:064}.example"
        made.append(orjson.dumps(event))
    return b"\n".join(made) + b"\n"


def keep(history: History, times: int = 20) -> None:
    for _ in range(times):
        history._next_look = 0.0
        history.tick()


def test_what_is_too_old_is_deleted(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = T0 + 86400.0 * 100
    monkeypatch.setattr(module.time, "time", lambda: now)
    history = made(path, max_days=10)
    history.add(flow_lines(now - 86400 * 11, 300) + flow_lines(now - 86400 * 9, 200))
    history.add_scores(now - 86400 * 30, [("192.0.2.1", 0, 5)])
    history.add_scores(now - 60, [("192.0.2.1", 0, 6)])
    history._write()
    keep(history)
    assert (count(path), count(path, "scores")) == (200, 1)
    now += 86400 * 2
    keep(history)
    assert count(path) == 0
    history.close()


def test_much_that_is_too_old_is_deleted_bit_by_bit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP", 100)
    history = made(path, max_days=1)
    history.add(flow_lines(time.time() - 86400 * 2, 5000) + flow_lines(time.time(), 50))
    history._write()
    keep(history, 1)
    assert 5050 - 100 * module._STEPS - 1 <= count(path) < 5050
    keep(history, 10)
    assert count(path) == 50
    history.close()


def test_the_file_stays_within_its_size(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP", 500)
    limit = 1_000_000
    history = made(path, max_bytes=limit)
    sizes = []
    for batch in range(30):
        history.add(flow_lines(T0 + batch * 10, 1000))
        history._write()
        keep(history, 3)
        sizes.append(path.stat().st_size)
    assert max(sizes) > limit / 2
    assert max(sizes[5:]) <= limit * 1.4, "what is deleted makes room for what is new"
    rows = count(path)
    assert 2000 < rows < 8000
    newest = ask(path, "flows", limit=1)[0]["at"]
    assert newest == eve_time(T0 + 290 + 0.999)
    history.close()
    history = made(path, max_bytes=limit // 4)  # somebody wants it smaller
    keep(history, 30)
    history.close()
    assert path.stat().st_size <= limit / 4
    assert 0 < count(path) < rows
    assert ask(path, "flows", limit=1)[0]["at"] == newest


def test_many_alerts_and_no_flows_are_bounded_too(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP", 500)
    history = made(path, max_bytes=300_000)
    for batch in range(20):
        history.add_scores(T0 + batch, [(f"2001:db8::{n:x}", 0, n) for n in range(1000)])
        history._write()
        keep(history, 3)
    history.close()
    assert path.stat().st_size < 500_000
    assert count(path, "scores") > 500


# Files that fail


def damage(path: Path, how: str) -> None:
    if how == "not a database":
        path.write_bytes(b"this is no database at all" * 400)
    elif how == "cut short":
        os.truncate(path, path.stat().st_size // 2)
    elif how == "overwritten":
        content = bytearray(path.read_bytes())
        content[100:] = os.urandom(len(content) - 100)
        path.write_bytes(content)
    elif how == "another version":
        database = sqlite3.connect(path)
        database.execute("PRAGMA user_version = 99")
        database.close()
    elif how == "somebody else's":
        path.unlink()
        database = sqlite3.connect(path)
        database.execute("CREATE TABLE other (x)")
        database.commit()
        database.close()


@pytest.mark.parametrize(
    "how", ["not a database", "cut short", "overwritten", "another version", "somebody else's"]
)
def test_a_damaged_file_is_set_aside(filled: Path, lines: bytes, how: str) -> None:
    damage(filled, how)
    damaged = filled.read_bytes()
    history = made(filled)
    with capture_logs() as logs:
        history.add(lines)
        history.close()
    assert (history.lost, history.failures) == (0, 1)
    assert count(filled) == 4
    (aside,) = filled.parent.glob("history.db.damaged-*")
    assert aside.read_bytes() == damaged or how in ("another version", "somebody else's")
    assert [entry["event"] for entry in logs] == ["history_set_aside"]
    assert (logs[0]["path"], logs[0]["moved_to"]) == (str(filled), str(aside))
    assert logs[0]["error"]


def test_one_that_is_damaged_while_it_is_open(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STEP", 500)
    history = made(path, max_bytes=100_000)
    history.add(flow_lines(T0, 9000))
    history._write()
    history._database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # type: ignore[union-attr]
    history._database.execute("PRAGMA cache_size = 10")  # type: ignore[union-attr]
    damage(path, "overwritten")
    with capture_logs() as logs:
        keep(history, 3)
        history.add(flow_lines(T0, 30))
        history.close()
    assert [entry["event"] for entry in logs] == ["history_set_aside"]
    assert (history.lost, count(path)) == (0, 30)


def test_a_full_disk_loses_nothing_at_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    history = made(tmp_path / "history.db")
    history.tick()
    database = history._database
    assert database is not None
    database.execute("PRAGMA max_page_count = 20")
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(History, "_forget", lambda self: None)
    with capture_logs() as logs:
        history.add(flow_lines(T0, 1000))
        history._write()
        assert (history.written, history.lost, history.waiting) == (0, 0, 1000)
        assert history.failures >= 1
        database.execute("PRAGMA max_page_count = 100000")
        history._write()
    assert (history.written, history.lost, history.waiting) == (1000, 0, 0)
    assert {entry["event"] for entry in logs} == {"history_failed"}
    assert "full" in logs[0]["error"]


@pytest.mark.parametrize("harm", ["unlink", "rename", "truncate"])
def test_a_file_that_somebody_takes_away_is_begun_anew(
    path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(module, "KEEP_SECONDS", 0.0)
    history = made(path)
    history.add(flow_lines(T0, 10))
    history._write()
    with capture_logs() as logs:
        history.tick()
        assert not logs
        match harm:
            case "unlink":
                path.unlink()
            case "rename":
                path.rename(path.with_name("away"))
            case "truncate":
                os.truncate(path, 0)
        history.tick()
        history.add(flow_lines(T0 + 60, 20))
        history._write()
        assert count(path) >= 20, "while it is open"
        history.tick()
    assert [entry["event"] for entry in logs] == ["history_failed"]
    assert (history.failures, history.lost, history.waiting) == (1, 0, 0)
    history.close()


def test_what_waits_too_long_is_lost_and_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 1500)
    history = made(tmp_path / "none" / "history.db")
    with capture_logs() as logs:
        history.add(flow_lines(T0, 1000))
        assert (history.lost, history.waiting) == (0, 1000)
        history.add(flow_lines(T0, 1000))
        assert (history.lost, history.waiting) == (2000, 0)
    assert history.failures == 1, "it is not tried with every line"
    assert [entry["event"] for entry in logs] == ["history_failed"]
    (tmp_path / "none").mkdir()
    history._retry_at = 0.0
    history.add(flow_lines(T0, 10))
    history.close()
    assert (history.written, history.lost) == (10, 2000)


def test_what_cannot_be_written_at_the_end_is_counted(tmp_path: Path) -> None:
    history = made(tmp_path / "none" / "history.db")
    with capture_logs():
        history.add(flow_lines(T0, 10))
        history.close()
    assert (history.written, history.lost) == (0, 10)


def test_every_table_has_what_a_row_has(lines: bytes) -> None:
    made_rows: dict[str, tuple[Any, ...]] = {}
    for line in lines.splitlines():
        event = orjson.loads(line)
        table, row = module._MAKERS[event["event_type"]](event)
        made_rows[table] = row
    assert set(made_rows) == set(TABLES) - {"scores"}
    for table, row in made_rows.items():
        assert len(row) == len(TABLES[table].split())
