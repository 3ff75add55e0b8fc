"""What long lists cost: `python tests/bench/list_cost.py`. No network needed; root for what the kernel takes.

Lists of random domains and networks are made, and go the way of the real ones: files, packed in a process of
its own, mapped by several workers. Memory is the growth of the proportional set size of all workers together.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import multiprocessing
import random
import resource
import statistics
import string
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from nedge import log
from nedge.config import Config, Lists, Log
from nedge.core.hosts import Directory, HostBook
from nedge.core.lists import DomainSet, NetworkSet
from nedge.kernel.listed import Listed, sweep_listed
from nedge.lists import job
from nedge.lists.loading import load_lists
from nedge.lists.refresh import is_prepared

MATCHES = 50_000
_NEW_NET = 0x40000000  # CLONE_NEWNET


def domains(count: int) -> list[str]:
    """Different names of two to four labels, 18 characters long on average, as block-lists have them."""
    letters = string.ascii_lowercase + string.digits
    found: set[str] = set()
    while len(found) < count:
        labels = [
            "".join(random.choices(letters, k=random.randint(3, 12)))
            for _ in range(random.choice((1, 1, 2, 3)))
        ]
        found.add(".".join([*labels, random.choice(("com", "net", "org", "xyz", "top", "co.uk", "de"))]))
    return list(found)


def networks(count: int) -> list[str]:
    """Networks of several sizes, one in ten of them IPv6."""
    found = []
    for number in range(count):
        if number % 10:
            prefix = random.choice((32, 32, 32, 24, 22, 28))
            found.append(f"{'.'.join(str(random.randrange(1, 224)) for _ in range(4))}/{prefix}")
        else:
            found.append(f"2001:{random.randrange(1 << 16):x}:{random.randrange(1 << 16):x}::/48")
    return found


def microseconds(step: Callable[[str], object], names: list[str]) -> float:
    start = time.perf_counter()
    for name in names:
        step(name)
    return (time.perf_counter() - start) / len(names) * 1e6


def pss() -> int:
    """Proportional set size of this process, in bytes: shared pages count by their share."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def worker(settings: Lists, names: list[str], pipe: Connection) -> None:
    """Load, match, and say what it costs when all others have done so, too."""
    before = pss()
    start = time.perf_counter()
    lists = load_lists(settings)
    loaded = time.perf_counter() - start
    for name in names:
        lists.malware_domains.match(name)
    pipe.send(None)
    pipe.recv()
    pipe.send({"load_ms": loaded * 1e3, "memory_mb": (pss() - before) / 1e6})
    pipe.recv()


def in_workers(settings: Lists, names: list[str], count: int) -> dict[str, float]:
    context = multiprocessing.get_context("spawn")
    pipes = []
    processes = []
    for _ in range(count):
        ours, theirs = context.Pipe()
        processes.append(context.Process(target=worker, args=(settings, names, theirs)))
        pipes.append(ours)
    for process in processes:
        process.start()
    for pipe in pipes:
        pipe.recv()
    found = []
    for pipe in pipes:
        pipe.send(None)
        found.append(pipe.recv())
    for pipe, process in zip(pipes, processes, strict=True):
        pipe.send(None)
        process.join()
    return {
        "load_ms": max(one["load_ms"] for one in found),
        "memory_mb_together": sum(one["memory_mb"] for one in found),
    }


def swap(settings: Lists, count: int = 200) -> dict[str, float]:
    """What taking over new lists costs a worker with 100,000 live hosts, in milliseconds."""
    book = HostBook(Directory(malware=load_lists(settings).malware_hosts))
    for number in range(100_000):
        book.acquire((0x0A000000 + number).to_bytes(4), 0)
    gc.freeze()
    spent = []
    for _ in range(count):
        start = time.thread_time()
        book.replace_directory(Directory(malware=load_lists(settings).malware_hosts))
        spent.append((time.thread_time() - start) * 1e3)
    return {"swap_median_ms": statistics.median(spent), "swap_longest_ms": max(spent)}


def in_kernel(networks: NetworkSet) -> dict[str, float]:
    """Networks into the kernel's sets, in a network namespace of this process."""
    if ctypes.CDLL(None, use_errno=True).unshare(_NEW_NET):
        return {}
    listed = Listed("bench")
    listed.open()
    listed.take(networks)
    start, longest, more = time.perf_counter(), 0.0, True
    while more:
        before = time.perf_counter()
        more = listed.step()
        longest = max(longest, time.perf_counter() - before)
    result = {"kernel_fill_s": time.perf_counter() - start, "kernel_longest_step_ms": longest * 1e3}
    sweep_listed("bench")
    return result


def measure(count: int, ranges: int, workers: int) -> dict[str, float]:
    result: dict[str, float] = {"domains": count, "networks": ranges}
    with tempfile.TemporaryDirectory() as directory:
        base = Path(directory)
        names, nets = domains(count), networks(ranges)
        (base / "names").write_text("\n".join(f"0.0.0.0 {name}" for name in names))
        (base / "nets").write_text("\n".join(nets))
        settings = Lists(
            malware_domains=[base / "names"], malware_hosts=[base / "nets"], cache_directory=base / "cache"
        )
        start = time.perf_counter()
        job.prepare(Config(lists=settings, log=Log(level="warning")))
        result["pack_s"] = time.perf_counter() - start
        result["pack_peak_mb"] = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        start = time.perf_counter()
        assert is_prepared(settings)
        result["check_ms"] = (time.perf_counter() - start) * 1e3
        for kind in ("domains", "hosts"):
            (packed,) = (base / "cache" / "packed").glob(f"malware_{kind}-*.data")
            result[f"packed_{kind}_mb"] = packed.stat().st_size / 1e6
        hits = [f"www.{name}" for name in random.sample(names, min(MATCHES, count))]
        others = [f"www.{name}" for name in domains(MATCHES)]
        result |= in_workers(settings, hits[:10_000], workers)
        lists = load_lists(settings)
        result["match_listed_us"] = microseconds(lists.malware_domains.match, hits)
        result["match_other_us"] = microseconds(lists.malware_domains.match, others)
        v4 = [".".join(str(random.randrange(1, 224)) for _ in range(4)) for _ in range(MATCHES)]
        v6 = [f"2001:{random.randrange(1 << 16):x}::5" for _ in range(MATCHES)]
        result["match_v4_us"] = microseconds(lists.malware_hosts.__contains__, v4)
        result["match_v6_us"] = microseconds(lists.malware_hosts.__contains__, v6)
        result["match_empty_us"] = microseconds(DomainSet().match, others)
        result["match_empty_host_us"] = microseconds(NetworkSet().__contains__, v4)

        result |= swap(settings)
        result |= in_kernel(lists.malware_hosts)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--domains", type=int, default=1_000_000)
    parser.add_argument("--networks", type=int, default=200_000)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    random.seed(1)
    log.configure("warning")
    result = measure(options.domains, options.networks, options.workers)
    if options.json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name:24} {value:12,.2f}")


if __name__ == "__main__":
    sys.exit(main())
