"""What can be asked of the history: each question gives rows, as dictionaries.

Readers open the file for reading only. A question looks at all rows of its time: about a second for four
million of them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nedge.core.status import STATUS_BY_KEY

HOUR = 3600 * 1_000_000
Row = dict[str, Any]


class HistoryError(Exception):
    """The history cannot be read. The message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """Which rows a question is about."""

    since: float = 0.0
    """Epoch seconds, as is:"""
    until: float = 1e10
    host: str = ""
    """Address of the client or the server."""
    domain: str = ""
    """The name asked for, or one above it."""
    script: str = ""
    verdict: str = ""
    """pass, drop or reject."""
    limit: int = 50

    def where(self, *known: str) -> tuple[str, dict[str, Any]]:
        """A condition on the rows of a table that knows these: host, domain, script, verdict, vlan."""
        conditions = ["at >= :since", "at < :until"]
        if self.host and "host" in known:
            conditions.append("(client = :host OR server = :host)")
        if self.domain and "domain" in known:
            conditions.append("(host = :domain OR host LIKE :below ESCAPE '\\')")
        if self.verdict and "verdict" in known:
            conditions.append("verdict = :verdict")
        if self.script and "script" in known:
            conditions.append("script = :script")
        domain = self.domain.lower().strip(".")
        escaped = domain.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        parameters = {
            "since": int(self.since * 1e6),
            "until": int(self.until * 1e6),
            "host": self.host,
            "domain": domain,
            "below": f"%.{escaped}",
            "script": self.script,
            "verdict": self.verdict,
            "limit": self.limit,
        }
        return " AND ".join(conditions), parameters


@contextmanager
def opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The history, for reading. Raises HistoryError."""
    from nedge.export.history import VERSION

    if not path.exists():
        raise HistoryError(f"{path}: there is no history yet")
    try:
        database = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5.0)
        try:
            (version,) = database.execute("PRAGMA user_version").fetchone()
            if version != VERSION:
                raise HistoryError(f"{path}: its tables are of version {version}, not {VERSION}")
            database.row_factory = lambda cursor, row: {
                column[0]: value for column, value in zip(cursor.description, row, strict=True)
            }
            yield database
        finally:
            database.close()
    except sqlite3.Error as error:
        raise HistoryError(f"{path}: cannot be read: {error}") from None


def flows(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """The latest flows."""
    where, parameters = which.where("host", "domain", "verdict")
    if which.script:
        where += " AND EXISTS (SELECT 1 FROM json_each(statuses) WHERE value ->> 0 = :script)"
    return _ask(
        database,
        f"SELECT at, began, client, client_port, server, server_port, proto, vlan, app, host, sent, received,"
        f" packets, dropped, verdict, reason, score, client_country, server_country, client_asn, server_asn,"
        f" flow_id FROM flows WHERE {where} ORDER BY at DESC LIMIT :limit",
        parameters,
    )


_SUMS = (
    "count(*) AS flows, sum(verdict <> 'pass') AS blocked, sum(sent) AS sent, sum(received) AS received,"
    " max(at) AS last"
)


def hosts(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """Top talkers: who opened most traffic, by bytes in both directions."""
    return _grouped(database, which, "client AS host", "client")


def servers(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """The same of servers."""
    return _grouped(
        database, which, "server AS host, max(server_country) AS country, max(server_asn) AS asn", "server"
    )


def domains(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """Names that were asked for, by bytes."""
    return _grouped(
        database, which, "host AS domain, count(DISTINCT client) AS clients", "host", "host <> ''"
    )


def apps(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """Applications, by bytes."""
    return _grouped(database, which, "app", "app")


def countries(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """Countries of servers, by bytes; without a database there is none."""
    return _grouped(database, which, "server_country AS country", "server_country", "server_country <> ''")


def _grouped(
    database: sqlite3.Connection, which: Filter, columns: str, by: str, condition: str = "1"
) -> list[Row]:
    where, parameters = which.where("host", "domain", "verdict")
    return _ask(
        database,
        f"SELECT {columns}, {_SUMS} FROM flows WHERE {where} AND {condition} GROUP BY {by}"
        f" ORDER BY sum(sent + received) DESC, {by} LIMIT :limit",
        parameters,
    )


def scripts(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """What scripts said: flows that they set a status on, how many of these were blocked, and alerts."""
    where, parameters = which.where("host", "domain", "verdict")
    alerted, _ = which.where("host", "domain", "script")
    script = "AND value ->> 0 = :script" if which.script else ""
    return _ask(
        database,
        f"SELECT script, sum(flows) AS flows, sum(blocked) AS blocked, sum(score) AS score,"
        f" sum(alerts) AS alerts, max(last) AS last FROM ("
        f" SELECT value ->> 0 AS script, 1 AS flows, verdict <> 'pass' AS blocked, value ->> 1 AS score,"
        f" 0 AS alerts, at AS last FROM flows, json_each(statuses) WHERE {where} {script}"
        f" UNION ALL SELECT script, 0, 0, 0, 1, at FROM alerts WHERE {alerted})"
        f" GROUP BY script ORDER BY flows DESC, script LIMIT :limit",
        parameters,
    )


def drops(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """Flows an hour, and how many were blocked; the latest hours first."""
    where, parameters = which.where("host", "domain")
    return _ask(
        database,
        f"SELECT at / {HOUR} * {HOUR} AS hour, count(*) AS flows, sum(verdict <> 'pass') AS blocked,"
        f" sum(dropped) AS dropped_packets, count(DISTINCT CASE WHEN verdict <> 'pass' THEN client END)"
        f" AS clients_blocked FROM flows WHERE {where} GROUP BY at / {HOUR} ORDER BY hour DESC LIMIT :limit",
        parameters,
    )


def alerts(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """The latest alerts."""
    where, parameters = which.where("host", "domain", "script")
    rows = _ask(
        database,
        f"SELECT at, client, server, host, app, status, severity, action, script, info, flow_id FROM alerts"
        f" WHERE {where} ORDER BY at DESC LIMIT :limit",
        parameters,
    )
    for row in rows:
        known = STATUS_BY_KEY.get(row["status"])
        row["status"] = known.name if known else f"status_{row['status']}"
    return rows


def verdicts(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """The latest changes of what happens to a flow, and hosts that were put in quarantine."""
    where, parameters = which.where("host", "domain", "verdict")
    rows = _ask(
        database,
        f"SELECT at, client, server, host, app, verdict, reason, flow_id FROM verdicts WHERE {where}"
        f" ORDER BY at DESC LIMIT :limit",
        parameters,
    )
    if not which.domain and which.verdict in ("", "drop"):
        own, parameters = _of_host(which)
        rows += _ask(
            database,
            f"SELECT at, host AS client, '' AS server, '' AS host, '' AS app, 'quarantine' AS verdict,"
            f" 'score ' || score || ', until ' || strftime('%Y-%m-%d %H:%M:%S', until / 1000000, 'unixepoch')"
            f" AS reason, NULL AS flow_id FROM quarantines WHERE {own} ORDER BY at DESC LIMIT :limit",
            parameters,
        )
        rows.sort(key=lambda row: str(row["at"]), reverse=True)
    return rows[: which.limit]


def scores(database: sqlite3.Connection, which: Filter) -> list[Row]:
    """Scores of hosts: the highest, the latest, and how often one was seen (once a minute)."""
    own, parameters = _of_host(which)
    return _ask(
        database,
        f"SELECT host, vlan, highest, latest, minutes, last FROM"
        f" (SELECT host, vlan, max(score) AS highest, count(*) AS minutes FROM scores WHERE {own}"
        f" GROUP BY host, vlan)"
        f" JOIN (SELECT host, vlan, score AS latest, max(at) AS last FROM scores WHERE {own}"  # of that row
        f" GROUP BY host, vlan) USING (host, vlan) ORDER BY highest DESC, host LIMIT :limit",
        parameters,
    )


def _of_host(which: Filter) -> tuple[str, dict[str, Any]]:
    """A condition on the rows of a table about single hosts."""
    where, parameters = which.where()
    return (where + " AND host = :host" if which.host else where), parameters


def _ask(database: sqlite3.Connection, question: str, parameters: dict[str, Any]) -> list[Row]:
    from nedge.export.eve import eve_time

    try:
        rows: list[Row] = database.execute(question, parameters).fetchall()
    except sqlite3.Error as error:
        raise HistoryError(f"the history cannot be read: {error}") from None
    for row in rows:
        for name in ("at", "began", "last", "hour"):
            if row.get(name) is not None:
                row[name] = eve_time(row[name] / 1e6)
    return rows


QUESTIONS: dict[str, Callable[[sqlite3.Connection, Filter], list[Row]]] = {
    "flows": flows,
    "hosts": hosts,
    "servers": servers,
    "domains": domains,
    "apps": apps,
    "countries": countries,
    "scripts": scripts,
    "drops": drops,
    "alerts": alerts,
    "verdicts": verdicts,
    "scores": scores,
}
"""By the name that `nedge history` knows them by."""
