"""What `nedge status` shows, from the workers' heartbeats and what they say when asked."""

from __future__ import annotations

import os
import time
from collections import deque
from typing import Any

from nedge import __version__
from nedge.config import Config
from nedge.core.marks import Marks
from nedge.gateway.supervisor import HUNG_SECONDS, Supervisor

RATE_SECONDS = 5.0
"""Rates are over so many seconds."""
RATES = ("packets", "flows", "bytes", "dropped_packets")
QUEUE = ("queue_waiting", "queue_full", "queue_lost")
LOSSES = (
    "queue_full", "queue_overloads", "queue_lost", "unjudged_packets", "conntrack_events_lost", "events_lost",
    "history_lost",
)  # fmt: skip
FAILURES = (
    "midstream", "unclassified", "fragments", "bad_checksums", "syn_data", "other_copies", "early_data",
    "urgent_data", "table_full", "script_errors", "script_timeouts",
    "scripts_aside", "dpi_errors", "engine_errors", "rejects_failed", "rejects_limited",
    "conntrack_dumps_failed", "worker_restarts", "exporter_restarts", "rules_restored",
    "bridge_restored", "restore_failures",
    "eve_failures", "history_failures", "metrics_failures", "metrics_refused", "list_job_failures",
    "supervisor_errors", "manager_failures",
)  # fmt: skip

Figures = dict[str, Any]


class Rates:
    """How fast counters grow."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, Figures]] = deque()

    def note(self, now: float, totals: Figures) -> None:
        """Counters as of now, by the monotonic clock."""
        self._samples.append((now, totals))
        while len(self._samples) > 2 and self._samples[1][0] <= now - RATE_SECONDS:
            self._samples.popleft()

    def per_second(self) -> dict[str, float]:
        """Growth a second of each of RATES. A counter that fell (a worker was replaced) did not grow."""
        if len(self._samples) < 2:
            return dict.fromkeys(RATES, 0.0)
        (start, before), (end, after) = self._samples[0], self._samples[-1]
        seconds = max(end - start, 0.001)
        return {name: round(max(0, after.get(name, 0) - before.get(name, 0)) / seconds, 1) for name in RATES}


def summarize(
    config: Config,
    supervisor: Supervisor,
    totals: Figures,
    marks: Marks | None,
    rates: Rates,
    answers: dict[int, Figures],
    silent: list[int],
) -> Figures:
    """All but what the desk itself adds.

    `totals`: every counter of the gateway. `answers`: what each worker said of itself.
    """
    gateway, said = config.gateway, next(iter(answers.values()), {})
    return {
        "version": __version__,
        "bridge": gateway.bridge,
        "lan": gateway.lan,
        "wan": gateway.wan,
        "mode": gateway.mode,
        "fail": gateway.fail,
        "offload": gateway.offload,
        "pid": os.getpid(),
        "ndpi": said.get("ndpi", ""),
        "scripts": said.get("scripts", []),
        "generation": marks.generation if marks else None,
        "live_flows": sum(answer["live_flows"] for answer in answers.values()),
        "live_hosts": sum(answer["live_hosts"] for answer in answers.values()),
        "quarantined": sorted({ip for answer in answers.values() for ip in answer["quarantined"]}),
        "rates": rates.per_second(),
        "losses": {name: totals.get(name, 0) for name in LOSSES},
        "failures": {name: totals.get(name, 0) for name in FAILURES}
        | {name: value for name, value in totals.items() if name.startswith("malformed_") and value},
        "counters": totals,
        "workers": _workers(supervisor, gateway.queue, silent),
    }


def _workers(supervisor: Supervisor, first_queue: int, silent: list[int]) -> list[Figures]:
    now = time.monotonic()
    rows = []
    for worker in supervisor.workers:
        heard = now - worker.heard
        health = "ok"
        if not worker.pid:
            health = "restarting"
        elif not worker.ready:
            health = "starting"
        elif heard > HUNG_SECONDS / 2 or worker.number in silent:
            health = "silent"
        rows.append(
            {
                "worker": worker.number,
                "pid": worker.pid,
                "health": health,
                "heard_seconds_ago": round(heard, 3),
                "uptime": round(now - worker.started, 1),
                "serial": worker.serial,
                "queue": first_queue + worker.number,
                "packets": worker.beat.get("packets", 0),
                "live_flows": worker.beat.get("live_flows", 0),
            }
            | {name: worker.beat.get(name, 0) for name in QUEUE}
        )
    return rows
