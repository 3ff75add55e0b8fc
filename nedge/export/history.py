"""History: what became of flows, in a SQLite file, within bounds of age and size.

It is fed with lines of EVE JSON in the exporter's process, and written in large transactions. Readers (see
`questions.py`) disturb nobody. A file that is damaged is set aside, and a new one begun.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import orjson
import structlog

VERSION = 1
"""Of the tables; in the file's user_version."""
BATCH_ROWS = 4000
BATCH_SECONDS = 1.0
MAX_ROWS = 100_000
"""Rows that wait for a file that cannot be written at the moment."""
RETRY_SECONDS = 5.0
KEEP_SECONDS = 5.0
"""Between two looks at age and size."""
_STEP = 5000
"""Rows that are deleted at once, about; and how often, at most, at one look."""
_STEPS = 10
_CORRUPT = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)

_log = structlog.get_logger(__name__)

TABLES = {
    "flows": (
        "at began flow_id client client_port server server_port proto vlan app host sent received packets "
        "dropped verdict reason score client_country server_country client_asn server_asn statuses"
    ),
    "alerts": "at flow_id client server host app status severity action script info",
    "verdicts": "at flow_id client server host app verdict reason",
    "scores": "at host vlan score",
    "quarantines": "at host vlan score until",
}
"""Table -> its columns. `at` is when: microseconds since 1970; so are `began` and `until`."""

_INSERT = {
    table: f"INSERT INTO {table} VALUES ({','.join('?' * len(columns.split()))})"
    for table, columns in TABLES.items()
}


def create_tables(database: sqlite3.Connection) -> None:
    """Make the tables of a new file. No index but on time: others would make a row cost ten times as much."""
    for table, columns in TABLES.items():
        database.execute(f"CREATE TABLE {table} ({', '.join(columns.split())})")
        database.execute(f"CREATE INDEX {table}_at ON {table} (at)")
    database.execute(f"PRAGMA user_version = {VERSION}")


class History:
    """Writes one file. No method raises: what cannot be written is lost, counted and logged."""

    def __init__(self, path: Path, *, max_days: float, max_bytes: int) -> None:
        self.path = path
        self.written = 0
        """Rows."""
        self.lost = 0
        self.failures = 0
        """Times that the file could not be opened, written, or was damaged."""
        self._max_seconds = max_days * 86400
        self._max_bytes = max_bytes
        self._rows: dict[str, list[tuple[Any, ...]]] = {table: [] for table in TABLES}
        self.waiting = 0
        """Rows that have yet to be written."""
        self._next_write = 0.0
        self._retry_at = 0.0
        self._next_look = 0.0
        self._database: sqlite3.Connection | None = None
        self._identity = (0, 0)
        """Of its file."""

    def add(self, lines: bytes) -> None:
        """Take lines of EVE JSON, and write what is due."""
        self.take(lines)
        self.write_if_due()

    def take(self, lines: bytes) -> None:
        """Take lines of EVE JSON, to be written; what history has no use for is skipped."""
        for line in lines.splitlines():
            event = orjson.loads(line)
            make = _MAKERS.get(event["event_type"])
            if make is not None:
                table, row = make(event)
                self._rows[table].append(row)
                self.waiting += 1

    def add_scores(self, now: float, scores: Iterable[tuple[str, int, int]]) -> None:
        """Take the scores that hosts (address, VLAN) have now."""
        at = int(now * 1e6)
        rows = [(at, ip, vlan, score) for ip, vlan, score in scores]
        self._rows["scores"] += rows
        self.waiting += len(rows)

    def tick(self) -> None:
        """Write and tidy up what is due; to be called about every second."""
        self.write_if_due()
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + KEEP_SECONDS
            if now < self._retry_at:
                return
            with self._guarded():
                self._check_place()
                self._keep_within_bounds(self._open())

    def close(self) -> None:
        """Write what there is."""
        self._write()
        if self.waiting:  # perhaps into a new file, as the old one was damaged
            self._write()
        self.lost += self.waiting
        self._drop_rows()
        self._forget()

    def write_if_due(self) -> None:
        """Write, when there are many rows, or some for long."""
        now = time.monotonic()
        due = self.waiting >= BATCH_ROWS or (self.waiting and now >= self._next_write)
        if due and now >= self._retry_at:
            self._write()
        if self.waiting > MAX_ROWS:
            self.lost += self.waiting
            self._drop_rows()

    def _write(self) -> None:
        self._next_write = time.monotonic() + BATCH_SECONDS
        with self._guarded():
            database = self._open()
            with database:
                for table, rows in self._rows.items():
                    if rows:
                        database.executemany(_INSERT[table], rows)
            self.written += self.waiting
            self._drop_rows()

    def _drop_rows(self) -> None:
        for rows in self._rows.values():
            rows.clear()
        self.waiting = 0

    # The file

    def _open(self) -> sqlite3.Connection:
        if self._database is None:
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o640)  # not for everybody
            self._identity = _identity(os.fstat(fd))
            os.close(fd)
            self._database = database = sqlite3.connect(self.path, timeout=1.0)
            database.execute("PRAGMA auto_vacuum = INCREMENTAL")
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = NORMAL")
            database.execute(f"PRAGMA journal_size_limit = {16 << 20}")
            (version,) = database.execute("PRAGMA user_version").fetchone()
            tables = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
            if version != VERSION:
                if tables:
                    raise sqlite3.DatabaseError(f"its tables are of version {version}, not {VERSION}")
                with database:
                    create_tables(database)
        return self._database

    def _check_place(self) -> None:
        """SQLite goes on writing to a file that somebody removed, moved or emptied; nobody will read that."""
        if self._database is not None:
            status = os.stat(self.path)
            if _identity(status) != self._identity or not status.st_size:
                raise sqlite3.OperationalError("somebody moved or emptied the file")

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Errors of the file are counted and logged; a damaged one is set aside."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            self.failures += 1
            code = getattr(error, "sqlite_errorcode", None)
            damaged = type(error) is sqlite3.DatabaseError and (code is None or code & 0xFF in _CORRUPT)
            if damaged and self._set_aside(error):
                return
            self._retry_at = time.monotonic() + RETRY_SECONDS
            if self.failures & (self.failures - 1) == 0:
                _log.error(
                    "history_failed",
                    path=str(self.path),
                    error=str(error),
                    failures=self.failures,
                    waiting=self.waiting,
                )
            self._forget()  # to be opened anew: it may have been moved

    def _set_aside(self, error: Exception) -> bool:
        """Move a damaged file out of the way; whether that went well."""
        self._forget()
        aside = self.path.with_name(f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
        try:
            self.path.rename(aside)
            for ending in ("-wal", "-shm"):
                self.path.with_name(self.path.name + ending).unlink(missing_ok=True)
        except OSError:
            return False
        _log.error("history_set_aside", path=str(self.path), error=str(error), moved_to=str(aside))
        return True

    def _forget(self) -> None:
        if self._database is not None:
            with suppress(sqlite3.Error):
                self._database.close()
            self._database = None

    def _keep_within_bounds(self, database: sqlite3.Connection) -> None:
        """Delete what is too old or too much. The space of deleted rows is used again, or given back."""
        oldest = int((time.time() - self._max_seconds) * 1e6)
        for _ in range(_STEPS):
            cut = self._step(database)
            if cut is None:
                break
            used, size = self._sizes(database)
            if used > self._max_bytes:
                self._delete(database, cut)
            elif size > self._max_bytes:
                database.execute(f"PRAGMA incremental_vacuum({_STEP})").fetchall()
            else:
                break
        for _ in range(_STEPS):
            cut = self._step(database)
            if cut is None or not self._delete(database, min(cut, oldest)):
                break

    @staticmethod
    def _sizes(database: sqlite3.Connection) -> tuple[int, int]:
        """Bytes in use, and of the file."""
        pages, free, size = (
            database.execute(f"PRAGMA {what}").fetchone()[0]
            for what in ("page_count", "freelist_count", "page_size")
        )
        return (pages - free) * size, pages * size

    @staticmethod
    def _step(database: sqlite3.Connection) -> int | None:
        """Before what time the largest table has about _STEP rows; None if all are empty."""
        spans = {
            table: database.execute(f"SELECT max(rowid) - min(rowid) + 1 FROM {table}").fetchone()[0] or 0
            for table in TABLES
        }
        table = max(spans, key=lambda name: spans[name])
        if not spans[table]:
            return None
        ordered = f"SELECT at + 1 FROM {table} ORDER BY at LIMIT 1 OFFSET {_STEP - 1}"
        found = database.execute(ordered).fetchone()
        cut: int = found[0] if found else database.execute(f"SELECT max(at) + 1 FROM {table}").fetchone()[0]
        return cut

    @staticmethod
    def _delete(database: sqlite3.Connection, before: int) -> int:
        """Delete what is older; how many rows."""
        with database:
            return sum(
                database.execute(f"DELETE FROM {table} WHERE at < ?", (before,)).rowcount for table in TABLES
            )


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


# From events to rows

_Made = tuple[str, tuple[Any, ...]]


def micros(text: str) -> int:
    """EVE's time stamp -> microseconds since 1970."""
    return _seconds(text[:19]) * 1_000_000 + int(text[20:26])


@lru_cache(maxsize=4096)
def _seconds(text: str) -> int:
    return int(datetime.fromisoformat(f"{text}+00:00").timestamp())


def _flow(event: dict[str, Any]) -> _Made:
    flow, nedge = event["flow"], event["nedge"]
    statuses = nedge["statuses"]
    if statuses:
        by_script = {
            key: [record["script"], record["score"]] for key, record in statuses.items() if record["script"]
        }
        statuses = orjson.dumps(by_script).decode() if by_script else None
    return "flows", (
        micros(flow["end"]),
        micros(flow["start"]),
        event["flow_id"],
        event["src_ip"],
        event["src_port"],
        event["dest_ip"],
        event["dest_port"],
        event["proto"],
        event["vlan"],
        event["app_proto"],
        event["ndpi"]["hostname"],
        flow["bytes_toserver"],
        flow["bytes_toclient"],
        flow["pkts_toserver"] + flow["pkts_toclient"],
        nedge["dropped_packets"],
        nedge["verdict"],
        nedge["reason"],
        nedge["score"],
        nedge.get("cli_country"),
        nedge.get("srv_country"),
        nedge.get("cli_asn"),
        nedge.get("srv_asn"),
        statuses or None,
    )


def _who(event: dict[str, Any]) -> tuple[Any, ...]:
    """The columns that alerts and verdicts begin with."""
    return (
        micros(event["timestamp"]),
        event["flow_id"],
        event["src_ip"],
        event["dest_ip"],
        event["ndpi"]["hostname"],
        event["app_proto"],
    )


def _alert(event: dict[str, Any]) -> _Made:
    alert, nedge = event["alert"], event["nedge"]
    info = nedge["info"]
    if info is not None and not isinstance(info, str):
        info = orjson.dumps(info).decode()
    what = (alert["signature_id"], alert["severity"], alert["action"], nedge["script"], info)
    return "alerts", _who(event) + what


def _verdict(event: dict[str, Any]) -> _Made:
    return "verdicts", (*_who(event), event["verdict"]["action"], event["nedge"]["reason"])


def _quarantine(event: dict[str, Any]) -> _Made:
    nedge = event["nedge"]
    at, until = micros(event["timestamp"]), micros(nedge["until"])
    return "quarantines", (at, event["src_ip"], event["vlan"], nedge["score"], until)


_MAKERS = {
    "flow": _flow,
    "alert": _alert,
    "drop": _verdict,
    "pass": _verdict,
    "quarantine": _quarantine,
}
