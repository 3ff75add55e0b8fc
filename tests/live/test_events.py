"""Events of a running gateway: none is lost or torn when files move, processes die and disks are full."""

from __future__ import annotations

import base64
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from test_offload import curl, https, until

import nedge.export
from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

WORKERS = PORTS + "workers = 2\n"
SCHEMA = Path(nedge.export.__file__).parent / "schema" / "eve.json"


def requests(lab: Lab, count: int) -> None:
    """So many HTTP requests over IPv4 and IPv6, a connection each."""
    urls = [f"http://{host}/{number}" for number in range(count // 2) for host in ("10.99.0.1", "[fd99::1]")]
    config = "".join(f'url = "{url}"\noutput = /dev/null\n' for url in urls)
    command = ["curl", "-sS", "-H", "Connection: close", "-m", "60", "-K", "-"]
    done = lab.client.run(command, input=config, timeout=90)
    assert done.returncode == 0, done.stderr


def lines(*paths: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def flows(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [event for event in events if event["event_type"] == "flow" and event["proto"] == "TCP"]


def exporter(lab: Lab, gateway: Gateway) -> int:
    """The process that writes; 0 if there is none."""
    found = lab.gateway.run(["pgrep", "-P", str(gateway.pid), "nedge-exporter"]).stdout.split()
    return int(found[0]) if found else 0


def test_files_move_while_two_workers_write(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, WORKERS + EVENTS) as gateway:
        path = gateway.directory / "eve.json"
        moved = []
        for number in range(3):
            requests(lab, 40)
            moved.append(path.with_name(f"moved.{number}"))
            path.rename(moved[-1])
            os.kill(gateway.pid, signal.SIGUSR1)
            until(path.exists)
        requests(lab, 40)
        gateway.stop()
        events = lines(*moved, path)
        assert len(flows(events)) == 160
        assert len({event["flow_id"] for event in flows(events)}) == 160
        validator = Draft202012Validator(json.loads(SCHEMA.read_text()))
        for event in events:
            validator.validate(event)
        assert '"events_lost": 0' in gateway.log


def test_the_exporter_dies(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, WORKERS + EVENTS) as gateway:
        until(lambda: exporter(lab, gateway))
        requests(lab, 20)
        first = exporter(lab, gateway)
        os.kill(first, signal.SIGKILL)
        requests(lab, 20)
        until(lambda: exporter(lab, gateway) not in (0, first))
        requests(lab, 20)
        gateway.stop()
        assert gateway.status == 0
        assert len(flows(gateway.events())) == 60
        assert gateway.log.count("exporter_restarted") == 1
        assert "worker_restarted" not in gateway.log


@contextmanager
def small_disk(path: Path) -> Iterator[Path]:
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "nedge-test", path], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


def test_a_full_disk_stops_no_traffic(lab: Lab, servers: ServerSet, tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk") as disk:
        path = disk / "eve.json"
        settings = WORKERS + f'[eve]\npath = "{path}"\n[limits]\nclosed_seconds = 1\nidle_seconds = 2\n'
        with Gateway(lab, settings) as gateway:
            requests(lab, 200)
            until(lambda: "eve_write_failed" in gateway.log, 30)
            assert https(lab, "www.example")
            assert flows(lines(path)), "whole lines as far as there is room"
            os.truncate(path, 0)
            requests(lab, 2)
            until(lambda: flows(lines(path)), 30)
            gateway.stop()
            assert gateway.status == 0
            totals = next(json.loads(x) for x in gateway.log.splitlines() if "exporter_totals" in x)
            assert totals["events_lost"] > 0
            assert "worker_restarted" not in gateway.log


def test_a_reload_changes_where_events_go(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, WORKERS) as gateway:
        requests(lab, 2)
        config = gateway.directory / "nedge.toml"
        for name in ("first.json", "second.json"):
            config.write_text(WORKERS + f'[eve]\npath = "{name}"\n')
            before = gateway.log.count('"reloaded"')
            os.kill(gateway.pid, signal.SIGHUP)
            until(lambda before=before: gateway.log.count('"reloaded"') > before)
            until(lambda before=before: gateway.log.count("worker_ready") == 4 + 2 * before)
            requests(lab, 10)
        gateway.stop()
        # What ends after the second reload is in the second file, whenever it began.
        first, second = (lines(gateway.directory / name) for name in ("first.json", "second.json"))
        assert len(flows(first)) + len(flows(second)) == 22
        assert len(flows(second)) >= 10


def test_stats_and_passwords(lab: Lab, servers: ServerSet) -> None:
    secret = "hunter2hunter2"
    with Gateway(lab, WORKERS + EVENTS + "stats_seconds = 1\n") as gateway:
        curl(lab, f"http://me:{secret}@10.99.0.1/a?password={secret}")
        curl(lab, "http://10.99.0.1/b", "-H", f"Authorization: Bearer {secret}")
        curl(lab, "http://target.example/", "-x", f"http://me:{secret}@10.99.0.1:80")

        def blocks() -> list[dict[str, Any]]:
            return [event["stats"] for event in gateway.events("stats")]

        until(lambda: blocks() and blocks()[-1]["flow"]["total"] >= 3, 20)
        gateway.stop()
        assert len(gateway.events()) >= 3
        urls = [event["ndpi"].get("http_url") for event in gateway.events()]
        assert "10.99.0.1/a?password=***" in urls
        written = (gateway.directory / "eve.json").read_text() + gateway.log
        for text in (secret, base64.b64encode(f"me:{secret}".encode()).decode()):
            assert text not in written


def test_history_and_metrics(lab: Lab, servers: ServerSet) -> None:
    settings = '[history]\npath = "history.db"\n[metrics]\nlisten = "127.0.0.1:9750"\n'
    settings += "[verdict]\nhost_drop_score = 1000\n"
    settings += '[scripts.blocked_hostname]\ndomains = ["blocked.example"]\nclient_score = 7\n'
    dashboard = json.loads((Path(__file__).parents[2] / "deploy/grafana-dashboard.json").read_text())
    queries = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ()))

    def scrape() -> str:
        return lab.gateway.run(["curl", "-sS", "-m", "5", "http://127.0.0.1:9750/metrics"]).stdout

    def value(name: str) -> float:
        """The sum over all labels."""
        return sum(
            float(line.split()[-1]) for line in scrape().splitlines() if re.match(rf"{name}[ {{]", line)
        )

    with Gateway(lab, WORKERS + settings) as gateway:
        requests(lab, 20)
        assert not https(lab, "blocked.example")
        until(lambda: value("nedge_flows_total") >= 21, 20)
        until(lambda: value("nedge_flows_offloaded_total") >= 20, 30)
        until(lambda: value("nedge_history_rows_total") >= 20, 20)
        text = scrape()
        for name in set(re.findall(r"\bnedge_\w+", queries)):
            family = re.sub("_(total|bucket|sum|count)$", "", name)
            assert re.search(rf"^# TYPE {family}(_total)? ", text, re.MULTILINE), name
        assert value("nedge_worker_up") == 2
        until(lambda: value("nedge_judge_seconds_count") == value("nedge_packets_total") > 40)
        assert value("nedge_events_lost_total") == 0
        assert 0 < value("nedge_script_seconds_total") < 60
        gateway.stop()
        assert '"events_lost": 0' in gateway.log

        def ask(question: str, *options: str) -> list[dict[str, Any]]:
            command = [sys.executable, "-m", "nedge", "history", question, "--json", "--limit", "1000"]
            done = lab.gateway.run(
                [*command, "--config", gateway.directory / "nedge.toml", *options], timeout=60
            )
            assert done.returncode == 0, done.stderr
            return [json.loads(line) for line in done.stdout.splitlines()]

        assert len([row for row in ask("flows") if row["app"] == "HTTP"]) == 20
        (blocked,) = ask("flows", "--domain", "blocked.example")
        assert (blocked["verdict"], blocked["client"]) == ("drop", "10.99.0.2")
        talkers = {row["host"]: row for row in ask("hosts")}
        assert talkers["10.99.0.2"]["blocked"] == 1
        assert talkers["fd99::2"]["flows"] == 10
        assert [row["script"] for row in ask("scripts") if row["blocked"]] == ["blocked_hostname"]
        assert [row["host"] for row in ask("alerts", "--script", "blocked_hostname")] == ["blocked.example"]
        assert {row["highest"] for row in ask("scores", "--host", "10.99.0.2")} <= {7}
        assert sum(row["blocked"] for row in ask("drops")) == 1
