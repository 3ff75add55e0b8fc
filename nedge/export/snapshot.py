"""What the gateway is like now, as the supervisor tells it: the source of stats events and of metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from nedge.export.eve import eve_time

GAUGES = frozenset(("live_flows", "live_hosts", "queue_waiting"))
"""Figures that go up and down; all others only grow, while their worker lives."""


@dataclass(slots=True)
class WorkerState:
    """One worker, whatever process does its work at the moment."""

    pid: int = 0
    ready: bool = False
    silent: float = 0.0
    """Seconds since its latest heartbeat."""
    figures: dict[str, int] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)
    """What is not a plain figure: see `nedge.live`."""
    before: dict[str, int] = field(default_factory=dict)
    """What its former processes counted."""


@dataclass(slots=True)
class Snapshot:
    """The latest of everything."""

    started: float = field(default_factory=time.time)
    """Epoch seconds."""
    restarts: int = 0
    """Workers that had to be replaced."""
    workers: dict[int, WorkerState] = field(default_factory=dict)
    processes: dict[str, int] = field(default_factory=dict)
    """Processes beside the workers: what they are, and their number."""
    counters: dict[str, int] = field(default_factory=dict)
    """Counters of the gateway as a whole."""

    def take(self, message: dict[str, Any]) -> None:
        """Something new from the supervisor."""
        if "gateway" in message:
            gateway = message["gateway"]
            self.started, self.restarts = gateway["started"], gateway["restarts"]
            self.processes, self.counters = gateway["processes"], gateway["counters"]
        for told in message.get("workers", ()):
            worker = self.workers.setdefault(told["number"], WorkerState())
            if worker.pid not in (0, told["pid"]) and told["pid"]:
                _add(worker.before, {n: value for n, value in worker.figures.items() if n not in GAUGES})
                worker.figures = {}
            worker.pid = told["pid"] or worker.pid
            worker.ready, worker.silent = told["ready"], told["silent"]
            worker.figures = told["figures"] or worker.figures
            worker.measures = told["measures"] or worker.measures

    def totals(self) -> dict[str, int]:
        """All figures of all workers together; those that only grow include what ended processes counted."""
        sums: dict[str, int] = {}
        for worker in self.workers.values():
            _add(sums, worker.figures)
            _add(sums, worker.before)
        _add(sums, self.counters)
        return sums | {"worker_restarts": self.restarts}


def _add(sums: dict[str, int], figures: dict[str, int]) -> None:
    for name, value in figures.items():
        sums[name] = sums.get(name, 0) + value


def stats_record(snapshot: Snapshot, now: float) -> dict[str, Any]:
    """The counters as EVE's stats event; what Suricata has no name for is in `nedge`."""
    totals = snapshot.totals()
    malformed = sum(value for name, value in totals.items() if name.startswith("malformed_"))
    packets, dropped = totals.get("packets", 0), totals.get("dropped_packets", 0)
    return {
        "timestamp": eve_time(now),
        "event_type": "stats",
        "stats": {
            "uptime": max(0, int(now - snapshot.started)),
            "capture": {
                "kernel_packets": packets,
                "kernel_drops": totals.get("queue_full", 0) + totals.get("queue_lost", 0),
            },
            "decoder": {"pkts": packets, "bytes": totals.get("bytes", 0), "invalid": malformed},
            "flow": {"total": totals.get("flows", 0), "active": totals.get("live_flows", 0)},
            "detect": {"alert": totals.get("alerts", 0)},
            "ips": {"accepted": packets - dropped, "blocked": dropped},
            "nedge": totals,
        },
    }
