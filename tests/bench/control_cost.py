"""What the control API costs: `python tests/bench/control_cost.py`, as root.

A gateway in the lab with many live flows (50,000; UDP, real packets through the queue). Then, for each
request: how long the answer takes, all of it received, and for some the command as it is typed; and how long
the answers to DNS queries take, each judged in user space, while nobody asks anything, while somebody asks
once a second (as `--watch` and `nedge top` do), and all the time.

On two CPUs client, server, gateway and asker share them. So there is a row for a Python that starts again and
again and asks nothing: what it adds, any other work on the machine adds. Queries that met a CPU which stood
still for 2 ms, whatever its processes' priority, are left out, and counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from machine import Stalls

from nedge.control.client import Client
from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.host import LabError
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

PORTS_EACH = 100
"""Server ports that each client port talks to."""
FIRST_PORT = 20_000
SETTLE_SECONDS = 5.0
"""Between two orders: the first has come to all flows by then."""
CONFIG = (
    PORTS
    + "{workers}"
    + EVENTS
    + '[limits]\nidle_seconds = 3600\n[control]\nsocket = "control.sock"\nstate = "state"\n'
    + "[log]\nlevel = 'warning'\n"
)
LISTEN = f"""
import selectors, socket
selector = selectors.DefaultSelector()
for port in range({FIRST_PORT}, {FIRST_PORT + PORTS_EACH}):
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind(("10.99.0.1", port))
    selector.register(sock, selectors.EVENT_READ)
print("ready", flush=True)
while True:
    for key, _ in selector.select():
        key.fileobj.recv(100)
"""
# One datagram a flow, no faster than the gateway opens flows.
SEND = f"""
import socket, sys, time
for number in range(int(sys.argv[1])):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("10.99.0.2", 10_000 + number))
        for port in range({FIRST_PORT}, {FIRST_PORT + PORTS_EACH}):
            sock.sendto(b"bench", ("10.99.0.1", port))
    time.sleep({PORTS_EACH} / 4000)
"""
# DNS queries, evenly spaced: when each was sent, and answered.
QUERY = """
import json, socket, sys, time
count, gap = int(sys.argv[1]), float(sys.argv[2])
query = b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\3www\\7example\\0\\0\\1\\0\\1"
took = []
due = time.perf_counter()
for number in range(count):
    due += gap
    time.sleep(max(0, due - time.perf_counter()))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(2)
        sock.connect(("10.99.0.1", 53))
        start = time.perf_counter()
        sock.send(query)
        try:
            sock.recv(512)
        except TimeoutError:
            pass
        took.append((start, time.perf_counter()))
print(json.dumps(took))
"""
REQUESTS: dict[str, dict[str, Any]] = {
    "status": {},
    "flows, the latest 50": {"command": "flows", "limit": 50},
    "flows, 50 by bytes": {"command": "flows", "limit": 50, "sort": "bytes"},
    "flows of one protocol": {"command": "flows", "protocol": "dns"},
    "flows, all": {"command": "flows"},
    "hosts": {},
    "scripts": {},
    "orders": {},
    "explain the last flow": {"command": "explain"},
    "block a network (all flows change)": {"command": "block", "target": "10.99.0.2/31"},
    "forget it (all flows change)": {"command": "forget", "target": "10.99.0.2/31"},
    "block a domain (no flow changes)": {"command": "block", "target": "ads.example"},
}
NOTHING = "something else uses the CPU"
ASKED = ("flows, all", "flows, 50 by bytes", "block a domain (no flow changes)")
PACES = {"every second": 1.0, "all the time": 0.0}
"""Seconds between an answer and the next question."""
TYPE_FLOWS: list[str | Path] = ["-m", "nedge", "flows", "--socket"]
TYPED = (["status"], ["flows"], ["hosts"], ["scripts"])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flows", type=int, default=50_000, help="live flows (default: 50,000)")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--queries", type=int, default=1000, help="DNS queries a latency sample")
    parser.add_argument("--turns", type=int, default=5, help="latency samples of each kind, in turn")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    try:
        with Lab(offloads=True) as lab, ServerSet(lab):
            results = measure(lab, options)
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    if options.json:
        print(json.dumps(results, indent=1))
    return 0


def measure(lab: Lab, options: argparse.Namespace) -> dict[str, Any]:
    config = CONFIG.format(workers=f"workers = {options.workers}\n")
    with QuietGateway(lab, config) as gateway:
        path = gateway.directory / "control.sock"
        few = latency(lab, options.queries)
        fill(lab, path, options.flows)
        with Client(path) as client:
            live = client.ask("status").result["live_flows"]
        say(options, f"{live} live flows, {options.workers} worker(s)\n")
        answers = {name: answer(path, name, options.rounds) for name in REQUESTS}
        say(options, f"{'answer [ms]':36}  median  longest   rows")
        for name, (took, rows) in answers.items():
            say(options, f"{name:36} {statistics.median(took):7.1f} {max(took):8.1f} {rows:6}")
        typed = {}
        for command in TYPED:
            took = [typed_ms(lab, path, command) for _ in range(options.rounds)]
            typed[" ".join(command)] = took
            title = f"nedge {' '.join(command)}, as typed"
            say(options, f"{title:36} {statistics.median(took):7.1f} {max(took):8.1f}")
        samples = {"nobody asks, few flows": few} | answer_times(lab, path, options)
        say(options, f"\n{'DNS answer [ms]':48}     p50      p95      p99  longest  left out")
        for name, (took, left_out) in samples.items():
            ordered = sorted(took)
            at = [ordered[int(len(ordered) * share)] for share in (0.5, 0.95, 0.99)]
            figures = " ".join(f"{figure:8.2f}" for figure in (*at, ordered[-1]))
            say(options, f"{name:48}{figures} {left_out:9}")
        with Client(path) as client:
            left = client.ask("status").result["live_flows"]
        say(options, f"\n{left} flows are live at the end")
        return {
            "flows": live,
            "flows_at_the_end": left,
            "answers": answers,
            "typed": typed,
            "latency": samples,
        }


def say(options: argparse.Namespace, text: str) -> None:
    if not options.json:
        print(text, flush=True)


class QuietGateway(Gateway):
    """A gateway that says no more than it must; ready when its socket is there."""

    def _await_ready(self, process: subprocess.Popen[str]) -> None:
        deadline = time.monotonic() + 15
        while not (self.directory / "control.sock").exists():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"nedge run did not start:\n{self.log}")
            time.sleep(0.02)


def fill(lab: Lab, path: Path, count: int) -> None:
    """Open so many flows, and have them be classified, as far as they can be."""
    keys = [f"net.netfilter.nf_conntrack_udp_timeout{suffix}=3600" for suffix in ("", "_stream")]
    lab.gateway.run(["sysctl", "-qw", *keys], check=True)  # else the flows end with their connections
    server = lab.server.popen([sys.executable, "-c", LISTEN], stdout=subprocess.PIPE)
    assert server.stdout
    server.stdout.readline()
    lab.client.run([sys.executable, "-c", SEND, str(count // PORTS_EACH)], timeout=300, check=True)
    with Client(path) as client:
        deadline = time.monotonic() + 60
        while client.ask("status").result["live_flows"] < count * 0.99:
            if time.monotonic() > deadline:
                raise LabError(f"only {client.ask('status').result['live_flows']} flows came to be")
            time.sleep(0.2)
        time.sleep(6)  # silence for as long as detection waits


def parameters(path: Path, name: str) -> tuple[str, dict[str, Any]]:
    """Command and parameters of a request."""
    found = dict(REQUESTS[name])
    command = found.pop("command", name)
    if command == "explain":
        with Client(path) as client:
            columns = (answer := client.ask("flows", limit=1)).columns
            found["flow"] = answer.rows[0][columns.index("id")]
    return command, found


def answer(path: Path, name: str, rounds: int) -> tuple[list[float], int]:
    """Milliseconds of each round, connecting included; and the rows that came."""
    took, rows = [], 0
    for number in range(rounds):
        command, found = parameters(path, name)
        start = time.perf_counter()
        with Client(path) as client:
            rows = len(client.ask(command, **found).rows)
        took.append((time.perf_counter() - start) * 1000)
        if command in ("block", "forget"):
            time.sleep(SETTLE_SECONDS)
        if command == "forget" and number + 1 < rounds:
            with Client(path) as client:
                client.ask("block", **found)
            time.sleep(SETTLE_SECONDS)
    return took, rows


def typed_ms(lab: Lab, path: Path, command: list[str]) -> float:
    start = time.perf_counter()
    lab.gateway.run([sys.executable, "-m", "nedge", *command, "--socket", path], check=True)
    return (time.perf_counter() - start) * 1000


Times = tuple[list[float], int]
"""Milliseconds from each query to its answer; how many are left out."""


def answer_times(lab: Lab, path: Path, options: argparse.Namespace) -> dict[str, Times]:
    """How long DNS answers take while this or that goes on. Each in turn: what disturbs one disturbs all."""
    kinds: dict[str, Callable[[], AbstractContextManager[Any]]] = {
        "nobody asks": nullcontext,
        NOTHING: lambda: repeating(lab, ["-c", "import rich.table"]),
    }
    for pace, pause in PACES.items():
        kinds[f"{pace}: nedge flows, typed"] = partial(repeating, lab, [*TYPE_FLOWS, path], pause)
        kinds |= {f"{pace}: {name}": partial(asking, path, name, pause) for name in ASKED}
    samples: dict[str, Times] = {name: ([], 0) for name in kinds}
    for _ in range(options.turns):
        for name, goes_on in kinds.items():
            with goes_on():
                took, left_out = latency(lab, options.queries)
            samples[name] = samples[name][0] + took, samples[name][1] + left_out
    return samples


def latency(lab: Lab, queries: int) -> Times:
    with Stalls() as stalls:
        done = lab.client.run([sys.executable, "-c", QUERY, str(queries), "0.003"], timeout=300, check=True)
    times = json.loads(done.stdout)
    took = [(end - start) * 1000 for start, end in times if not stalls.met(start, end)]
    return took, len(times) - len(took)


@contextmanager
def repeating(lab: Lab, arguments: Sequence[str | Path], pause: float = 0) -> Iterator[None]:
    """Python runs this in the gateway again and again."""

    def run(over: threading.Event) -> None:
        while not over.wait(pause):
            lab.gateway.run([sys.executable, *arguments], check=True)

    with meanwhile(run):
        yield


@contextmanager
def asking(path: Path, name: str, pause: float) -> Iterator[None]:
    """Somebody asks one thing again and again."""
    asked = 0

    def run(over: threading.Event) -> None:
        nonlocal asked
        command, found = parameters(path, name)
        with Client(path) as client:
            while not over.wait(pause):
                client.ask(command, **found)
                asked += 1

    with meanwhile(run):
        yield
    assert asked


@contextmanager
def meanwhile(run: Callable[[threading.Event], None]) -> Iterator[None]:
    """This runs in a thread, which is told when it is over."""
    over = threading.Event()
    thread = threading.Thread(target=run, args=(over,))
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


if __name__ == "__main__":
    sys.exit(main())
