"""Metrics for Prometheus: the latest snapshot of the gateway, told when somebody asks.

Counters of workers have a `worker` label and begin anew with a worker's process, as Prometheus expects.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from nedge import __version__
from nedge.config import Config
from nedge.export.endpoint import Endpoint
from nedge.export.snapshot import Snapshot, WorkerState
from nedge.lists.status import list_status

RETRY_SECONDS = 10.0

_COUNTERS = {
    "packets": ("nedge_packets", "IP packets that came up from the kernel."),
    "bytes": ("nedge_bytes", "Bytes of these packets."),
    "dropped_packets": ("nedge_dropped_packets", "Packets dropped in user space."),
    "flows": ("nedge_flows", "Flows that began."),
    "alerts": ("nedge_alerts", "Alerts that scripts raised."),
    "quarantines": ("nedge_quarantines", "Hosts that were put in quarantine."),
}
"""Figure of a worker -> its metric."""
_GATEWAY = {
    "unjudged_packets": (
        "nedge_unjudged_packets",
        "Packets that no worker judged: a queue was full, or nobody there.",
    ),
    "listed_packets": ("nedge_listed_packets", "Packets of listed networks that the kernel cut off."),
    "rules_restored": ("nedge_rules_restored", "Times that rules were put back which others took out."),
    "bridge_restored": ("nedge_bridge_restored", "Ports and settings that were put back."),
    "restore_failures": ("nedge_restore_failures", "Things that could not be put back when it was tried."),
}
"""Figure of the gateway -> its metric."""
_CONTROL = {
    "control_clients": ("nedge_control_clients", "Clients that connected to the control socket."),
    "control_requests": ("nedge_control_requests", "Requests that they made."),
}
"""The same of the control API."""
_GATEWAY_FAILURES = (
    "supervisor_errors", "manager_failures", "list_job_failures", "orders_damaged", "orders_unstored",
    "control_refused", "control_busy", "control_malformed", "control_oversized", "control_timeouts",
    "control_stalled", "control_errors", "control_unanswered",
)  # fmt: skip
"""Figures of the gateway, called as `nedge status` does."""
_EXPORTER_FAILURES = ("metrics_failures", "metrics_refused")
_GAUGES = {
    "live_flows": ("nedge_live_flows", "Flows that are live now."),
    "live_hosts": ("nedge_live_hosts", "Hosts that are known now."),
    "scripts_aside": ("nedge_scripts_aside", "Scripts that failed too often, and are not called any more."),
    "queue_waiting": ("nedge_queue_waiting_packets", "Packets that wait in the kernel's queue."),
}
_FAILURES = {
    "midstream": "midstream",
    "unclassified": "unclassified",
    "fragments": "fragment",
    "table_full": "table_full",
    "script_errors": "script_error",
    "script_timeouts": "script_timeout",
    "dpi_errors": "dpi_error",
    "engine_errors": "engine_error",
    "conntrack_events_lost": "conntrack_events_lost",
}
"""Figure of a worker -> cause, as the configuration calls it."""
_FORGED = {
    "bad_checksums": "bad_checksum",
    "syn_data": "syn_data",
    "other_copies": "other_copy",
    "early_data": "early_data",
    "urgent_data": "urgent_data",
}
"""Figure of a worker -> what is odd about a packet."""
_QUEUE = {"queue_full": "full", "queue_lost": "not_read"}
_ELSEWHERE = frozenset(("events_lost",))
_MALFORMED = "malformed_"
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

_log = structlog.get_logger(__name__)


class Metrics:
    """An HTTP endpoint in a thread of its own. It is tried again where it cannot be opened."""

    def __init__(self, config: Config, snapshot: Snapshot, own_figures: Callable[[], dict[str, int]]) -> None:
        """own_figures: the exporter's."""
        listen = config.metrics.listen
        assert listen is not None
        self._host, _, port = listen.rpartition(":")
        self._port = int(port)
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(config, snapshot, own_figures))
        self._endpoint: Endpoint | None = None
        self._retry_at = 0.0
        self.failures = 0

    def tick(self) -> None:
        """Open the endpoint, if it is not."""
        if self._endpoint is not None or time.monotonic() < self._retry_at:
            return
        try:
            self._endpoint = Endpoint(self._host.strip("[]"), self._port, self._registry)
        except OSError as error:
            self._retry_at = time.monotonic() + RETRY_SECONDS
            self.failures += 1
            _log.error("metrics_failed", listen=f"{self._host}:{self._port}", error=error.strerror)

    def close(self) -> None:
        """Let the address go."""
        if self._endpoint is not None:
            self._endpoint.close()

    def figures(self) -> dict[str, int]:
        """Counters."""
        refused, errors = (self._endpoint.refused, self._endpoint.errors) if self._endpoint else (0, 0)
        return {"metrics_failures": self.failures + errors, "metrics_refused": refused}


class _Collector:
    """Makes all metrics from a snapshot."""

    def __init__(self, config: Config, snapshot: Snapshot, own_figures: Callable[[], dict[str, int]]) -> None:
        self._lists = config.lists
        self._snapshot = snapshot
        self._own_figures = own_figures

    def describe(self) -> list[Metric]:
        """Nothing beforehand: names are known when there is something to tell."""
        return []

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        workers = sorted(snapshot.workers.items())
        yield _single(GaugeMetricFamily, "nedge_build_info", "Always 1.", 1, {"version": __version__})
        yield _single(GaugeMetricFamily, "nedge_start_time_seconds", "When it began.", snapshot.started)
        restarts = "Workers that had to be replaced."
        yield _single(CounterMetricFamily, "nedge_worker_restarts", restarts, snapshot.restarts)
        for figure, (name, text) in (_GATEWAY | _CONTROL).items():
            yield _single(CounterMetricFamily, name, text, snapshot.counters.get(figure, 0))
        yield from _health(workers)
        yield from _processes(snapshot)
        yield from _traffic(workers)
        yield from _verdicts(workers)
        yield from _failures(workers)
        yield from _scripts(workers)
        yield from _latency(workers)
        own = self._own_figures()
        own = {name: own.get(name, 0) + snapshot.before.get(name, 0) for name in own | snapshot.before}
        yield _gateway_failures(snapshot, own)
        yield from _export(snapshot, own)
        yield from self._of_lists()

    def _of_lists(self) -> Iterator[Metric]:
        labels = ["list", "source"]
        entries = GaugeMetricFamily("nedge_list_entries", "Entries in force.", labels=labels)
        wrong = GaugeMetricFamily("nedge_list_wrong_lines", "Lines that are no entries.", labels=labels)
        age = GaugeMetricFamily(
            "nedge_list_age_seconds", "Since the entries in force were taken.", labels=labels
        )
        failures = CounterMetricFamily(
            "nedge_list_refresh_failures", "Refreshes that failed; the last good list stays.", labels=labels
        )
        now = time.time()
        for row in list_status(self._lists):
            key = [row["list"], row["source"]]
            entries.add_metric(key, row["entries"])
            wrong.add_metric(key, row["wrong_lines"])
            if row["taken"]:
                age.add_metric(key, max(0.0, now - row["taken"]))
            failures.add_metric(key, row["failures"])
        yield from (entries, wrong, age, failures)


_Workers = list[tuple[int, WorkerState]]


def _single(family: Any, name: str, text: str, value: float, labels: dict[str, str] | None = None) -> Metric:
    labels = labels or {}
    metric: Metric = family(name, text, labels=list(labels))
    metric.add_metric(list(labels.values()), value)  # type: ignore[attr-defined]
    return metric


def _health(workers: _Workers) -> Iterator[Metric]:
    up = GaugeMetricFamily("nedge_worker_up", "Whether it is ready.", labels=["worker"])
    age = GaugeMetricFamily(
        "nedge_worker_heartbeat_age_seconds", "Since its latest heartbeat.", labels=["worker"]
    )
    for number, worker in workers:
        up.add_metric([str(number)], float(worker.ready))
        age.add_metric([str(number)], worker.silent)
    yield from (up, age)


def _processes(snapshot: Snapshot) -> Iterator[Metric]:
    cpu = CounterMetricFamily(
        "nedge_process_cpu_seconds", "CPU time, user and system, of the process there is.", labels=["process"]
    )
    memory = GaugeMetricFamily(
        "nedge_process_resident_memory_bytes", "Memory in use, shared pages included.", labels=["process"]
    )
    processes = {f"worker-{number}": worker.pid for number, worker in snapshot.workers.items()}
    for name, pid in sorted((processes | snapshot.processes).items()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:  # it has ended
            continue
        cpu.add_metric([name], (int(fields[11]) + int(fields[12])) / _TICKS)
        memory.add_metric([name], int(fields[21]) * _PAGE)
    yield from (cpu, memory)


def _traffic(workers: _Workers) -> Iterator[Metric]:
    for families, kind in ((_COUNTERS, CounterMetricFamily), (_GAUGES, GaugeMetricFamily)):
        for figure, (name, text) in families.items():
            metric = kind(name, text, labels=["worker"])
            for number, worker in workers:
                if figure in worker.figures:
                    metric.add_metric([str(number)], worker.figures[figure])
            yield metric
    dropped = CounterMetricFamily(
        "nedge_queue_dropped_packets",
        "Packets that never came up: the queue was full, or nedge did not read it fast enough.",
        labels=["worker", "reason"],
    )
    others = GaugeMetricFamily(
        "nedge_worker_figure", "Whatever else a worker counts.", labels=["worker", "figure"]
    )
    for number, worker in workers:
        for figure, value in worker.figures.items():
            if figure in _QUEUE:
                dropped.add_metric([str(number), _QUEUE[figure]], value)
            elif not (
                figure in _COUNTERS
                or figure in _GAUGES
                or figure in _FAILURES
                or figure in _FORGED
                or figure in _ELSEWHERE
                or figure.startswith(_MALFORMED)
            ):
                others.add_metric([str(number), figure], value)
    yield from (dropped, others)


def _verdicts(workers: _Workers) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "nedge_flows_ended",
        "Flows that ended, by their last verdict and the rule that decided.",
        labels=["worker", "verdict", "rule"],
    )
    offloaded = CounterMetricFamily(
        "nedge_flows_offloaded", "Of these, those that the kernel had taken over.", labels=["worker"]
    )
    packets = CounterMetricFamily(
        "nedge_flow_packets", "Of these, all packets, those in the kernel too.", labels=["worker"]
    )
    for number, worker in workers:
        measures = worker.measures
        for key, count in measures.get("ended", {}).items():
            ended.add_metric([str(number), *key.split(" ", 1)], count)
        if measures:
            offloaded.add_metric([str(number)], measures["offloaded"])
            packets.add_metric([str(number)], measures["packets"])
    yield from (ended, offloaded, packets)


def _failures(workers: _Workers) -> Iterator[Metric]:
    failures = CounterMetricFamily(
        "nedge_failures", "What failed, by cause; see [failures].", labels=["worker", "cause"]
    )
    forged = CounterMetricFamily(
        "nedge_forged_packets",
        "Packets that their receiver may not take as they came: dropped, or made unambiguous. By kind.",
        labels=["worker", "kind"],
    )
    malformed = CounterMetricFamily(
        "nedge_malformed_packets", "Packets that contradict themselves, by kind.", labels=["worker", "kind"]
    )
    for number, worker in workers:
        for figure, cause in _FAILURES.items():
            if figure in worker.figures:
                failures.add_metric([str(number), cause], worker.figures[figure])
        for figure, kind in _FORGED.items():
            if figure in worker.figures:
                forged.add_metric([str(number), kind], worker.figures[figure])
        for figure, value in worker.figures.items():
            if figure.startswith(_MALFORMED):
                malformed.add_metric([str(number), figure.removeprefix(_MALFORMED)], value)
    yield from (failures, forged, malformed)


def _gateway_failures(snapshot: Snapshot, own: dict[str, int]) -> Metric:
    failures = CounterMetricFamily(
        "nedge_gateway_failures", "What failed beside the packets' way, by cause.", labels=["cause"]
    )
    for figures, causes in ((snapshot.counters, _GATEWAY_FAILURES), (own, _EXPORTER_FAILURES)):
        for cause in causes:
            failures.add_metric([cause], figures.get(cause, 0))
    return failures


def _scripts(workers: _Workers) -> Iterator[Metric]:
    labels = ["worker", "script"]
    calls = CounterMetricFamily("nedge_script_calls", "Calls of a script's hooks.", labels=labels)
    errors = CounterMetricFamily("nedge_script_errors", "Calls that raised.", labels=labels)
    seconds = CounterMetricFamily("nedge_script_seconds", "Time that they took.", labels=labels)
    for number, worker in workers:
        for key, (called, failed, nanoseconds) in worker.measures.get("scripts", {}).items():
            calls.add_metric([str(number), key], called)
            errors.add_metric([str(number), key], failed)
            seconds.add_metric([str(number), key], nanoseconds / 1e9)
    yield from (calls, errors, seconds)


def _latency(workers: _Workers) -> Iterator[Metric]:
    judge = HistogramMetricFamily(
        "nedge_judge_seconds", "Time that judging a packet took.", labels=["worker"]
    )
    for number, worker in workers:
        latency = worker.measures.get("latency")
        if latency:
            total = 0
            buckets = []
            for bound, count in zip([*latency["bounds"], None], latency["counts"], strict=True):
                total += count
                buckets.append(("+Inf" if bound is None else str(bound), total))
            judge.add_metric([str(number)], buckets, latency["seconds"])
    yield judge


def _export(snapshot: Snapshot, own: dict[str, int]) -> Iterator[Metric]:
    """own: figures of the exporter, and of those before it."""
    written = "Events written to the event file."
    yield _single(CounterMetricFamily, "nedge_events_written", written, own.get("events_written", 0))
    lost = CounterMetricFamily("nedge_events_lost", "Events lost, by where.", labels=["where"])
    workers = sum(worker.figures.get("events_lost", 0) for worker in snapshot.workers.values())
    for where, value in (
        ("channel", workers),
        ("file", own.get("events_lost", 0)),
        ("history", own.get("history_lost", 0)),
    ):
        lost.add_metric([where], value)
    yield lost
    for figure, text in (
        ("eve_rotations", "Rotations of the event file."),
        ("eve_failures", "Times that it could not be opened or rotated."),
        ("history_failures", "Times that the history could not be written, or was damaged."),
    ):
        yield _single(CounterMetricFamily, f"nedge_{figure}", text, own.get(figure, 0))
    rows = "Rows written to the history."
    yield _single(CounterMetricFamily, "nedge_history_rows", rows, own.get("history_written", 0))
    restarts = "Times that the exporter had to be replaced."
    counters = snapshot.counters
    yield _single(
        CounterMetricFamily, "nedge_exporter_restarts", restarts, counters.get("exporter_restarts", 0)
    )
