"""What is measured: each measure takes one sample in one set-up; the run repeats them in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from endpoints import MAX_HELD
from setups import Setup

Sample = dict[str, float]
FEW = 1000


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    key: str
    title: str
    unit: str
    scale: float = 1.0
    digits: int = 0
    relative: str = "ratio"
    """ratio: to the reference set-ups; added: the difference to them; "": neither."""


@dataclass(frozen=True)
class Measure:
    """How one sample is taken, and which figures it gives."""

    name: str
    sample: Callable[[Setup, float], Sample]
    figures: tuple[Figure, ...]
    seconds: float
    rounds: int
    usual: bool = True
    again: bool = True
    """Whether to repeat a sample that others disturbed."""


def connections(setup: Setup, seconds: float) -> Sample:
    """As many new connections as go; then everything that they leave to do, which counts as CPU time too."""
    setup.settle()
    before = setup.cpu()
    result = setup.ends.open(seconds)
    sample = {"rate": result["completed"] / result["seconds"], "failed": result["failed"]}
    if setup.pids():
        setup.settle(loaded=True)
        sample["cpu"] = (setup.cpu() - before) / result["used"]
    return sample


def sustained(setup: Setup, seconds: float) -> Sample:
    """The rate when old connections end while new ones come: the first half of the time does not count."""
    setup.settle()
    result = setup.ends.open(seconds)
    late = result["per_second"][int(seconds / 2) : int(seconds)]
    return {"rate": sum(late) / len(late), "failed": result["failed"]}


def latency(setup: Setup, seconds: float) -> Sample:
    """From the start of connect() to the first byte of the answer, at a steady rate."""
    result = setup.ends.open(seconds, rate=500)
    return {"p50": result["p50"], "p99": result["p99"], "failed": result["failed"]}


def tcp(setup: Setup, seconds: float) -> Sample:
    """One TLS-like stream towards the client."""
    return {"rate": setup.ends.stream("tls", seconds)}


def download(setup: Setup, seconds: float) -> Sample:
    """One large plain-HTTP answer."""
    return {"rate": setup.ends.stream("http", seconds)}


def udp(setup: Setup, seconds: float) -> Sample:
    """One UDP flow of small datagrams towards the server."""
    sent, arrived = setup.ends.flood(seconds)
    return {"rate": arrived, "lost": max(0.0, 1 - arrived / sent)}


def live_flows(setup: Setup, seconds: float) -> Sample:
    """Set-up rate while few flows live, and while many do; the memory that those between cost."""
    few, many = FEW, MAX_HELD
    sample: Sample = {}
    with setup.ends.hold(few, "tls") as first:
        setup.settle(loaded=True, connections=few + 50)
        sample["rate_few"] = rate(setup, seconds)
        setup.settle(loaded=True, connections=few + 50)
        memory, start = setup.memory(), time.monotonic()
        with setup.ends.hold(many - few, "tls") as second:
            sample["open_rate"] = (many - few) / (time.monotonic() - start)
            setup.settle(loaded=True, connections=many + 50)
            sample["bytes"] = (setup.memory() - memory) / max(1, second.held)
            sample["rate_many"] = rate(setup, seconds)
            sample["change"] = sample["rate_many"] / sample["rate_few"]
            sample["held"] = setup.connections()
            sample["failed"] = first.failed + second.failed
    return sample


def rate(setup: Setup, seconds: float) -> float:
    """New connections a second, now."""
    result = setup.ends.open(seconds)
    return float(result["completed"] / result["seconds"])


MEASURES = (
    Measure(
        "connections",
        connections,
        (
            Figure("rate", "new HTTP connections", "/s"),
            Figure("cpu", "gateway CPU per connection", "µs", 1e6, relative=""),
            Figure("failed", "failed connections", "", relative=""),
        ),
        seconds=3,
        rounds=2,
    ),
    Measure(
        "sustained",
        sustained,
        (Figure("rate", "the same, sustained", "/s"),),
        seconds=24,
        rounds=1,
        usual=False,
    ),
    Measure(
        "latency",
        latency,
        (
            Figure("p50", "first byte at 500 connections/s, p50", "ms", 1e3, 3, "added"),
            Figure("p99", "first byte at 500 connections/s, p99", "ms", 1e3, 3, "added"),
        ),
        seconds=2,
        rounds=2,
    ),
    Measure("tcp", tcp, (Figure("rate", "one TCP stream", "Gbit/s", digits=1),), seconds=1, rounds=3),
    Measure(
        "download", download, (Figure("rate", "HTTP download", "Gbit/s", digits=1),), seconds=1, rounds=3
    ),
    Measure(
        "udp",
        udp,
        (
            Figure("rate", "one UDP flow", "kpackets/s", 1e-3),
            Figure("lost", "of it lost", "%", 100, 1, relative=""),
        ),
        seconds=1,
        rounds=3,
    ),
)

LIVE_FLOWS = Measure(
    "live_flows",
    live_flows,
    (
        Figure("rate_few", f"new HTTP connections with {FEW:,} live flows", "/s", relative=""),
        Figure("rate_many", f"new HTTP connections with {MAX_HELD:,} live flows", "/s", relative=""),
        Figure("change", "    of that", "", digits=2, relative=""),
        Figure("bytes", "memory per decided flow", "bytes", relative=""),
    ),
    seconds=3,
    rounds=1,
    again=False,
)
