"""What the gateway is like now, as the supervisor tells it: the source of stats events and of metrics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from nedge.export.eve import eve_time


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
    """Figures of the gateway as a whole: of all workers, those that ended too, and all else that counts."""

    before: dict[str, int] = field(default_factory=dict)
    """Figures of exporters that are no more."""

    def take(self, message: dict[str, Any]) -> None:
        """Something new from the supervisor."""
        if "gateway" in message:
            gateway = message["gateway"]
            self.started, self.restarts = gateway["started"], gateway["restarts"]
            self.processes, self.counters = gateway["processes"], gateway["counters"]
            self.before = gateway["before"]
        for told in message.get("workers", ()):
            worker = self.workers.setdefault(told["number"], WorkerState())
            worker.pid = told["pid"] or worker.pid
            worker.ready, worker.silent = told["ready"], told["silent"]
            worker.figures = told["figures"] or worker.figures
            worker.measures = told["measures"] or worker.measures


def stats_record(snapshot: Snapshot, now: float) -> dict[str, Any]:
    """The counters as EVE's stats event; what Suricata has no name for is in `nedge`."""
    totals = snapshot.counters
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
