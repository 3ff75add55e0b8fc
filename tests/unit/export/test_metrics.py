"""Metrics, as Prometheus gets them over HTTP, and the dashboard that asks for them."""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kit import bench, dns, merge, noise
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from nedge.config import Config, Eve, History, Lists
from nedge.config import Metrics as MetricsSection
from nedge.export import endpoint as endpoint_module
from nedge.export import metrics as module
from nedge.export.outlet import Outlet, channel
from nedge.export.snapshot import Snapshot
from nedge.gateway.control import ControlServer
from nedge.gateway.exporting import ExporterProcess
from nedge.gateway.latency import BOUNDS, Latency
from nedge.gateway.summary import FAILURES
from nedge.gateway.supervisor import GAUGES
from nedge.lists.refresh import prepare
from nedge.live import Live

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana-dashboard.json"

COUNTED = {
    "supervisor_errors": 2, "manager_failures": 3, "list_job_failures": 4, "orders_damaged": 5,
    "control_requests": 6, "control_clients": 7, "control_malformed": 8,
}  # fmt: skip
"""What the gateway counts beside its workers."""
SCRIPTS = {
    "block": """
    from nedge.scripts import *
    def protocolDetected(flow, now, conf):
        if flow.getHostName() == "bad.example":
            flow.triggerStatus(status_types.status_web_mining_detected, "", 100, 20, 3)
        if flow.getHostName() == "odd.example":
            raise ValueError("odd")
    """
}

Samples = dict[str, list[tuple[dict[str, str], float]]]


def until(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return result


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def scrape(port: int, host: str = "127.0.0.1") -> str:
    with urllib.request.urlopen(f"http://{host}:{port}/metrics", timeout=30) as answer:
        assert answer.status == 200
        text: str = answer.read().decode()
        return text


def samples(text: str) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((dict(sample.labels), sample.value))
    return found


def described_worker() -> dict[str, Any]:
    """What a worker with some traffic behind it tells."""
    writer, reader = channel()
    with bench("limits.idle_seconds = 3600", SCRIPTS) as made:
        outlet = Outlet(writer, made.assembly.classifier)
        made.engine._sink = outlet
        latency = Latency()
        judge = latency.around(
            lambda data, mac, vlan, _tracked, _port: made.engine.packet(data, made.engine.now, vlan, mac)
        )
        for packet in merge(dns("bad.example").packets, dns("odd.example", sport=5).packets):
            made.engine.now = packet.time
            judge(packet.data, b"", 0, True, 1)
        judge(noise(12), b"", 0, True, 1)
        judge(b"\x45\x00", b"", 0, True, 1)
        made.engine.finish(made.engine.now)
        live = Live(made.engine, made.assembly, outlet)
        measures = live.measures() | {"latency": latency.measures()}
        figures = made.engine.figures() | {"engine_errors": 0, "events_lost": 3, "new_counter": 7}
    writer.close()
    reader.close()
    figures |= {"queue_waiting": 5, "queue_full": 2, "queue_lost": 1, "conntrack_events_lost": 4}
    return {
        "number": 0,
        "pid": os.getpid(),
        "ready": True,
        "silent": 0.125,
        "figures": figures,
        "measures": json.loads(json.dumps(measures)),
    }


@contextmanager
def endpoint(tmp_path: Path, host: str = "127.0.0.1") -> Iterator[tuple[ExporterProcess, int]]:
    """A real exporter, told of a worker."""
    (tmp_path / "names").write_text("bad.example\nworse.example\n")
    lists = Lists(malware_domains=[tmp_path / "names"], cache_directory=tmp_path / "cache")
    prepare(lists)
    port = free_port(host)
    config = Config(
        eve=Eve(path=tmp_path / "eve.json"),
        history=History(path=tmp_path / "history.db"),
        lists=lists,
        metrics=MetricsSection(listen=f"[{host}]:{port}" if ":" in host else f"{host}:{port}"),
    )
    process = ExporterProcess(config)
    process.start()
    worker = described_worker()
    supervisor: Any = SimpleNamespace(restarts=2, describe=lambda: [worker], host_scores=list)
    shown = f"[{host}]" if ":" in host else host

    def is_up() -> bool:
        process.tick(supervisor, lambda: process.totals() | COUNTED)
        try:
            return "nedge_flows_total" in scrape(port, shown) and 'worker="0"' in scrape(port, shown)
        except OSError:
            return False

    try:
        until(is_up)
        yield process, port
    finally:
        process.close()


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> str:
    with endpoint(tmp_path_factory.mktemp("metrics")) as (process, port):
        process.writer.send(b'{"event_type":"stats"}\n')
        until(lambda: samples(scrape(port))["nedge_events_written_total"][0][1])
        return scrape(port)


def test_what_is_told(told: str) -> None:
    found = samples(told)

    def value(name: str, **labels: str) -> float:
        (match,) = [value for own, value in found[name] if own.items() >= labels.items()]
        return match

    worker = described_worker()
    for figure, name in (
        ("packets", "nedge_packets_total"),
        ("bytes", "nedge_bytes_total"),
        ("dropped_packets", "nedge_dropped_packets_total"),
        ("flows", "nedge_flows_total"),
        ("alerts", "nedge_alerts_total"),
        ("quarantines", "nedge_quarantines_total"),
        ("live_flows", "nedge_live_flows"),
        ("live_hosts", "nedge_live_hosts"),
        ("queue_waiting", "nedge_queue_waiting_packets"),
    ):
        assert value(name, worker="0") == worker["figures"][figure], name
    assert value("nedge_flows_ended_total", verdict="drop", rule="flow_score") == 1
    assert value("nedge_flows_ended_total", verdict="pass", rule="clean") == 1
    assert value("nedge_flow_packets_total") == 4
    assert value("nedge_flows_offloaded_total") == 0
    assert value("nedge_failures_total", cause="script_error") == 1
    assert value("nedge_failures_total", cause="script_timeout") == 0
    assert value("nedge_scripts_aside") == 0
    assert value("nedge_failures_total", cause="conntrack_events_lost") == 4
    assert sum(number for _, number in found["nedge_malformed_packets_total"]) == 2
    assert value("nedge_forged_packets_total", kind="other_copy") == 0
    assert value("nedge_queue_dropped_packets_total", reason="full") == 2
    assert value("nedge_queue_dropped_packets_total", reason="not_read") == 1
    assert value("nedge_script_calls_total", script="block") == 2
    assert value("nedge_script_errors_total", script="block") == 1
    assert 0 < value("nedge_script_seconds_total", script="block") < 10
    assert value("nedge_judge_seconds_count") == 6
    assert value("nedge_judge_seconds_bucket", le="+Inf") == 6
    assert value("nedge_judge_seconds_sum") > 0
    assert value("nedge_worker_figure", figure="new_counter") == 7
    assert [own for own, _ in found["nedge_worker_figure"]] == [{"worker": "0", "figure": "new_counter"}]
    assert (value("nedge_worker_up"), value("nedge_worker_heartbeat_age_seconds")) == (1, 0.125)
    assert value("nedge_worker_restarts_total") == 2
    for cause in ("supervisor_errors", "manager_failures", "list_job_failures", "orders_damaged"):
        assert value("nedge_gateway_failures_total", cause=cause) == COUNTED[cause]
    assert value("nedge_gateway_failures_total", cause="control_malformed") == 8
    assert value("nedge_gateway_failures_total", cause="orders_unstored") == 0
    assert value("nedge_gateway_failures_total", cause="metrics_refused") == 0
    assert (value("nedge_control_requests_total"), value("nedge_control_clients_total")) == (6, 7)
    assert value("nedge_events_written_total") == 1
    assert value("nedge_events_lost_total", where="channel") == 3
    assert value("nedge_events_lost_total", where="file") == 0
    assert value("nedge_list_entries", list="malware_domains") == 2
    assert 0 <= value("nedge_list_age_seconds", list="malware_domains") < 600
    assert value("nedge_list_refresh_failures_total", list="malware_domains") == 0
    assert {own["process"] for own, _ in found["nedge_process_cpu_seconds_total"]} == {
        "worker-0",
        "supervisor",
        "exporter",
    }
    assert value("nedge_process_resident_memory_bytes", process="exporter") > 1e6
    assert abs(value("nedge_start_time_seconds") - time.time()) < 600


def test_names_are_as_prometheus_wants_them(told: str) -> None:
    families = list(text_string_to_metric_families(told))
    assert len(families) > 30
    for family in families:
        assert re.fullmatch(r"nedge_[a-z]+(_[a-z]+)*", family.name), family.name
        assert family.documentation
        assert family.type in ("counter", "gauge", "histogram")
        assert not re.search(r"_(total|count|sum|milliseconds|ms|us)$", family.name), family.name
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter"), sample.name
    assert len({family.name for family in families}) == len(families)


def queries() -> list[str]:
    dashboard = json.loads(DASHBOARD.read_text())
    found = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    found += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    return found


def test_the_dashboard_asks_for_what_there_is(told: str) -> None:
    found = samples(told)
    labels = {name: set().union(*(own for own, _ in values)) for name, values in found.items()}
    assert len(queries()) >= 40
    for query in queries():
        names = re.findall(r"\bnedge_\w+", query)
        assert names, query
        for name in names:
            assert name in found, f"{name}: not among the metrics, but in the query {query}"
        known = set().union(*(labels[name] for name in names)) | {"instance"}
        used = {label for group in re.findall(r"by \(([^)]*)\)", query) for label in re.split(r", *", group)}
        used |= set(re.findall(r"[{,](\w+)(?:=|!=|=~|!~)\"", query))
        assert used <= known, query


def test_every_metric_is_on_the_dashboard(told: str) -> None:
    asked = set(re.findall(r"\bnedge_\w+", " ".join(queries())))
    left_out = {"nedge_eve_rotations_total"}
    missing = {name for name in samples(told) if name not in asked} - left_out
    assert missing <= {"nedge_judge_seconds_bucket"}


def test_no_failure_of_the_gateway_is_left_out() -> None:
    """What the control API and the rest beside the workers count, and `nedge status` shows, is all told."""
    counters = ControlServer(Path("socket"), None, SimpleNamespace()).counters  # type: ignore[arg-type]
    told = {*module._GATEWAY, *module._CONTROL, *module._GATEWAY_FAILURES, *module._EXPORTER_FAILURES}
    assert {f"control_{name}" for name in counters} <= told
    of_workers = {*module._FAILURES, *module._FORGED, *module._GAUGES}
    elsewhere = {
        "rejects_failed", "rejects_limited", "conntrack_dumps_failed",  # nedge_worker_figure
        "worker_restarts", "exporter_restarts", "eve_failures", "history_failures",
    }  # fmt: skip
    assert set(FAILURES) - of_workers - elsewhere <= told


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    panels = json.loads(DASHBOARD.read_text())["panels"]
    for panel in panels:
        at = panel["gridPos"]
        cells = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not cells & taken
        assert at["x"] + at["w"] <= 24
        taken |= cells
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_over_ipv6(tmp_path: Path) -> None:
    with endpoint(tmp_path, "::1") as (_process, port):
        assert "nedge_build_info" in scrape(port, "[::1]")


def test_the_address_is_free_again(tmp_path: Path) -> None:
    with endpoint(tmp_path) as (process, port):
        process.renew(Config())
        with pytest.raises(OSError):
            scrape(port)
        config = Config(metrics=MetricsSection(listen=f"127.0.0.1:{port}"))
        process.renew(config)
        until(lambda: _answers(port))


def _answers(port: int) -> bool:
    try:
        return "nedge_build_info" in scrape(port)
    except (OSError, http.client.HTTPException):
        return False


def test_an_address_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config = Config(metrics=MetricsSection(listen=f"127.0.0.1:{port}"))
        metrics = module.Metrics(config, Snapshot(), dict)
        with capture_logs() as logs:
            for _ in range(3):
                metrics.tick()
        assert metrics.failures == 1, "not at once again"
    assert [(entry["event"], entry["error"]) for entry in logs] == [
        ("metrics_failed", "Address already in use")
    ]
    until(lambda: metrics.tick() or _answers(port))
    metrics.close()


@contextmanager
def open_metrics() -> Iterator[tuple[module.Metrics, int]]:
    port = free_port()
    metrics = module.Metrics(Config(metrics=MetricsSection(listen=f"127.0.0.1:{port}")), Snapshot(), dict)
    metrics.tick()
    try:
        yield metrics, port
    finally:
        metrics.close()


def silent(port: int, count: int) -> list[socket.socket]:
    """Clients that say nothing, or not all of it."""
    made = [socket.create_connection(("127.0.0.1", port)) for _ in range(count)]
    for client in made[::2]:
        client.sendall(b"GET /metrics HTTP/1.1\r\nX-Slow: ")
    return made


def threads() -> int:
    return sum(thread.name.startswith("Thread-") for thread in threading.enumerate())


def test_clients_that_say_nothing_block_nobody_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "PATIENCE", 1.0)
    before = threads()
    with open_metrics() as (metrics, port):
        clients = silent(port, endpoint_module.MAX_CLIENTS)
        until(lambda: threads() == before + len(clients))
        refused = 0
        while not _answers(port):  # all places are taken, until one has been for a second
            refused += 1
            time.sleep(0.05)
        assert refused
        assert metrics.figures() == {"metrics_failures": 0, "metrics_refused": refused + 1}
        assert clients[0].recv(100) == b"", "who came first has lost its place"
        for client in clients:
            client.close()
        until(lambda: threads() == before)
        assert _answers(port)


def test_a_crowd_gets_no_more_threads_than_places(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "PATIENCE", 60.0)
    before = threads()
    with open_metrics() as (metrics, port):
        clients = silent(port, 50)
        until(lambda: metrics.figures()["metrics_refused"] == 50 - endpoint_module.MAX_CLIENTS)
        assert threads() == before + endpoint_module.MAX_CLIENTS
        for client in clients:
            client.close()
        until(lambda: _answers(port))


def test_a_client_that_says_nothing_is_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "SLOWEST", 0.3)
    with open_metrics() as (_metrics, port):
        (client,) = silent(port, 1)
        with client:
            client.settimeout(30)
            assert client.recv(100) == b""


def test_an_answer_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_self: object) -> Iterator[Any]:
        raise ValueError("broken")

    monkeypatch.setattr(module._Collector, "collect", broken)
    with open_metrics() as (metrics, port), capture_logs() as logs:
        assert not _answers(port)
        until(lambda: metrics.figures()["metrics_failures"] == 1)
    assert [(entry["event"], entry["error"]) for entry in logs] == [("metrics_error", "ValueError('broken')")]


def test_before_anything_is_known() -> None:
    port = free_port()
    metrics = module.Metrics(Config(metrics=MetricsSection(listen=f"127.0.0.1:{port}")), Snapshot(), dict)
    metrics.tick()
    try:
        found = samples(scrape(port))
        assert found["nedge_worker_restarts_total"] == [({}, 0)]
    finally:
        metrics.close()


def test_latency_counts_every_call() -> None:
    latency = Latency()
    judge = latency.around(lambda data, mac, vlan, _tracked, _port: len(data))
    assert [judge(b"x" * n, b"", 0, True, 1) for n in range(50)] == list(range(50))
    measures = latency.measures()
    assert sum(measures["counts"]) == 50
    assert len(measures["counts"]) == len(BOUNDS) + 1
    slow = Latency()

    def sleep(_data: bytes, _mac: bytes, _vlan: int, _tracked: bool, _port: int) -> int:
        time.sleep(0.12)
        return 1

    assert slow.around(sleep)(b"", b"", 0, True, 1) == 1
    assert slow.measures()["counts"] == [0] * len(BOUNDS) + [1]
    assert slow.measures()["seconds"] >= 0.12


def test_gauges_are_no_counters() -> None:
    """What a worker that died had of them is not kept."""
    assert set(module._GAUGES) <= GAUGES
