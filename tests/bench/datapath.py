"""What nedge costs on the data path, beside other bridges: `python tests/bench/datapath.py`, as root.

Client, gateway and server are network namespaces of this machine. It takes gcc and the lab's tools. Set-ups:

    plain             a Linux bridge
    netfilter         a bridge whose packets meet iptables and connection tracking
    floor             nedge's rules, and a C program that passes at once what they send to the queue
    nedge-1, nedge-2  nedge with one and with two workers, and its policies that are on: 20
    suricata          Suricata on NFQUEUE, where it is installed (Debian: bookworm-backports), with 20 rules
    suricata-bypass   the same with its stream bypass and connection marks, as its documentation has them

All of them run at once, idle but for one, and each measure goes round them. Figures are medians of the
rounds, ratios ("of plain") the medians of each round's ratio. --json keeps every sample.

* New HTTP connections: one request each, 64 at a time, as many as go, every one from a 5-tuple that was not
  there before. Client and server are small C programs of one thread (an asyncio server answers 4,000
  connections/s, these 18,000 over the plain bridge), so that what is between counts. They share the CPUs with
  the gateway: the rate is what all of them together manage.
* Gateway CPU per connection: user and system time of all processes in the gateway's namespace, from the first
  connection until all are forgotten and their records written, by the number of connections. A process is
  charged for what its system calls set off: a verdict forwards the packet, and often runs the receiver's TCP.
  Not in it: interrupts, kernel threads, and what the bridge does in the time of client and server.
* Sustained (on demand): the rate in the second half of a longer time, when old connections end as well.
* First byte: from connect() to the answer's first byte, at 500 connections/s, evenly spaced.
* One TCP stream: from the server, after a TLS hello and its answer; nedge leaves such a flow to the kernel.
  HTTP download: a plain answer without end; nedge goes on watching what the client sends.
* One UDP flow: datagrams of 64 bytes, as they arrive at the server's port; the flow is decided before.
* Live flows: TLS connections that stay open. Memory is the growth of the proportional set size of all of
  nedge's processes together. nedge only, and with one worker only unless this measure is asked for.

Noise: on a quiet machine rates vary by 5 %, streams by 20 % from second to second, p99 most. Other processes
disturb everything, so each sample waits for calm (--patience) and is taken again (--retries) if others used
more than a little CPU meanwhile; how many stayed disturbed is said. CPU per connection is the steadiest.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import machine
import setups
import table
from endpoints import Tools
from measures import LIVE_FLOWS, MEASURES, Measure, Sample
from setups import Setup

from nedge.lab.host import LabError

CALM = 0.15
"""CPUs that other processes may use before a sample counts as disturbed."""


class Run:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._started = time.monotonic()
        self.results: dict[str, Any] = {}
        self.lines: list[tuple[str, dict[str, str]]] = []
        self.disturbed = 0

    def interleaved(self, measures: Sequence[Measure], names: Sequence[str], tools: Tools) -> None:
        """All set-ups at once; each measure goes round them."""
        if not measures:
            return
        with ExitStack() as stack:
            running = []
            for name in names:
                self._say(f"starting {name}")
                setup = setups.make(name, tools, events=self._options.events)
                running.append(stack.enter_context(setup))
            for measure in measures:
                self._measure(measure, running)

    def live_flows(self, names: Sequence[str], tools: Tools) -> None:
        """Each set-up by itself, as it fills the memory."""
        measure = LIVE_FLOWS
        samples: dict[str, list[Sample]] = {}
        for name in names:
            self._say(f"{measure.name}: {name}")
            setup = setups.make(
                name, tools, events=self._options.events, extra="[limits]\nidle_seconds = 3600\n"
            )
            with setup:
                samples[name] = [self._sample(measure, setup)]
        self._keep(measure, samples)

    def _measure(self, measure: Measure, running: Sequence[Setup]) -> None:
        samples: dict[str, list[Sample]] = {setup.name: [] for setup in running}
        for number in range(self._options.rounds or measure.rounds):
            for setup in running:
                self._say(f"{measure.name}, round {number + 1}: {setup.name}")
                samples[setup.name].append(self._sample(measure, setup))
        self._keep(measure, samples)

    def _sample(self, measure: Measure, setup: Setup) -> Sample:
        """One sample; another if others disturbed it, and then the less disturbed one."""
        best: Sample = {}
        for _ in range(1 + (self._options.retries if measure.again else 0)):
            machine.await_calm(CALM, self._options.patience)
            others = machine.Others()
            sample = measure.sample(setup, self._options.seconds or measure.seconds)
            sample["others"] = others.share()
            if not best or sample["others"] < best["others"]:
                best = sample
            if sample["others"] < CALM:
                return best
        self.disturbed += 1
        return best

    def _keep(self, measure: Measure, samples: dict[str, list[Sample]]) -> None:
        cells = table.summary(measure, samples)
        self.results[measure.name] = {"figures": cells, "samples": samples}
        self.lines += table.rows(measure, cells)

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._started:6.1f} s  {what}", file=sys.stderr, flush=True)


def main() -> int:
    known = setups.known()
    by_name = {measure.name: measure for measure in (*MEASURES, LIVE_FLOWS)}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--setups", nargs="+", choices=known, default=known, metavar="NAME")
    parser.add_argument("--measures", nargs="+", choices=by_name, metavar="NAME", help=", ".join(by_name))
    parser.add_argument("--rounds", type=int, help="instead of each measure's own number")
    parser.add_argument("--seconds", type=float, help="per sample, instead of each measure's own time")
    parser.add_argument("--retries", type=int, default=1, help="of samples that other processes disturbed")
    parser.add_argument("--patience", type=float, default=5, help="seconds to wait for a calm machine")
    parser.add_argument("--no-events", dest="events", action="store_false", help="no record of each flow")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    options = parser.parse_args()
    chosen = [by_name[name] for name in options.measures or (m.name for m in by_name.values() if m.usual)]
    run = Run(options)
    try:
        with machine.roomy_conntrack(), Tools() as tools:
            run.interleaved(
                [measure for measure in chosen if measure is not LIVE_FLOWS], options.setups, tools
            )
            if LIVE_FLOWS in chosen:
                several = [name for name in options.setups if name.startswith("nedge")]
                run.live_flows(several if options.measures else several[:1], tools)  # minutes, each
    except LabError as error:
        print(error, file=sys.stderr)
        return 1
    about = machine.describe()
    print(", ".join(f"{key} {value}" for key, value in about.items() if value))
    table.print_table(run.lines, options.setups)
    if run.disturbed:
        print(f"{run.disturbed} samples were disturbed by other processes")
    if options.json:
        report = {"machine": about, "events": options.events, "disturbed": run.disturbed, **run.results}
        options.json.write_text(json.dumps(report, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
