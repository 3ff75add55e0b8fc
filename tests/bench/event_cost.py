"""What a flow's record costs, from the engine to the disk: `python tests/bench/event_cost.py`. No root.

Worker: CPU in the process that judges packets, to make a line of the record and hand it over. Exporter: CPU
in the process that writes, for each line; without and with history. Rows/s: how fast rows get into the
history, file and all. Flows are HTTP, TLS and DNS in equal parts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from replay_cost import Traffic

from nedge.assemble import assemble
from nedge.cli import tame_garbage_collector
from nedge.config import Config, Eve
from nedge.config import History as HistorySection
from nedge.core.events import Event, FlowEnded
from nedge.export.eve import event_record, to_json
from nedge.export.history import History
from nedge.export.outlet import Outlet, channel
from nedge.gateway.exporting import ExporterProcess

KINDS = 3


def ended_flows() -> tuple[list[FlowEnded], Any]:
    """One flow of each kind, as it is when it ends."""
    ended: list[FlowEnded] = []

    def sink(event: Event) -> None:
        if isinstance(event, FlowEnded):
            ended.append(event)

    assembly = assemble(Config(), lambda _: sink)
    traffic = Traffic()
    for number in range(KINDS):
        for packet in traffic.opening(number):
            assembly.engine.packet(packet, time.time())
    assembly.engine.finish(time.time())
    return ended, assembly.classifier


def microseconds(step: Callable[[int], object], count: int) -> float:
    """CPU of this process for one step, of the best of five times: others disturb."""
    spent = []
    for _ in range(5):
        start = time.process_time()
        for number in range(count // 5):
            step(number)
        spent.append((time.process_time() - start) / (count // 5) * 1e6)
    return min(spent)


def exporter(lines: list[bytes], count: int, config: Config) -> float:
    """CPU of the exporter's process for one line, in microseconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = ExporterProcess(config)
    process.start()
    process.writer.setblocking(True)
    batch = b"".join(lines[number % KINDS] for number in range(60))
    for _ in range(count // 60):
        process.writer.send(batch)
    process.close()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert process.figures.get("events_lost", 0) == process.figures.get("history_lost", 0) == 0
    return (after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime) / count * 1e6


def measure(count: int, directory: Path) -> dict[str, float]:
    ended, classifier = ended_flows()
    tame_garbage_collector()
    records = [event_record(event, classifier) for event in ended]
    lines = [to_json(record) for record in records]
    result: dict[str, float] = {"bytes": sum(map(len, lines)) / KINDS}
    result["worker_record_us"] = microseconds(lambda n: event_record(ended[n % KINDS], classifier), count)
    result["worker_json_us"] = microseconds(lambda n: to_json(records[n % KINDS]), count)

    writer, reader = channel()
    if os.fork() == 0:
        writer.close()
        reader.setblocking(True)
        while reader.recv(1 << 20):
            pass
        os._exit(0)
    outlet = Outlet(writer, classifier)
    outlet.be_patient(3600)
    result["worker_all_us"] = microseconds(lambda n: outlet(ended[n % KINDS]), count)
    outlet.flush()
    reader.close()
    writer.close()
    os.wait()
    outlet.wanted = False
    result["worker_counting_only_us"] = microseconds(lambda n: outlet(ended[n % KINDS]), count)

    idle = exporter(lines, 60, Config(eve=Eve(path=directory / "idle.json"))) * 60  # to start and end it
    for name, config in (
        ("eve", Config(eve=Eve(path=directory / "eve.json"))),
        ("history", Config(history=HistorySection(path=directory / "only.db"))),
        (
            "both",
            Config(eve=Eve(path=directory / "both.json"), history=HistorySection(path=directory / "both.db")),
        ),
    ):
        result[f"exporter_{name}_us"] = exporter(lines, count, config) - idle / count

    history = History(directory / "rows.db", max_days=30, max_bytes=1 << 40)
    batch = b"".join(lines[number % KINDS] for number in range(300))
    start = time.perf_counter()
    for _ in range(count // 300):
        history.add(batch)
    history.close()
    result["history_rows_per_second"] = history.written / (time.perf_counter() - start)
    result["history_bytes_per_row"] = (directory / "rows.db").stat().st_size / history.written
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", type=int, default=200_000)
    parser.add_argument("--directory", type=Path, help="for the files, instead of the system's temporary one")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.directory) as directory:
        result = measure(options.flows, Path(directory))
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:26} {value:12,.2f}")


if __name__ == "__main__":
    main()
