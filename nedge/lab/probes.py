"""The clients of the demo: real programs, each with what should become of it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from nedge.lab.host import Host
from nedge.lab.servers import ServerSet

PATIENCE = 10
"""Seconds that a client which should be answered may take, on a busy machine."""
CUT_OFF_PATIENCE = 2
"""Seconds that a client which should be cut off waits for the answer that must not come."""


class Outcome(StrEnum):
    """What became of a client."""

    ANSWERED = "answered"
    CUT_OFF = "cut off"
    FAILED = "failed"
    """Neither: the program itself could not do its work."""


# Exit statuses of programs that got no answer. curl: timeout, TLS handshake cut, empty reply, reset.
_CUT_OFF_STATUSES = {"curl": (28, 35, 52, 56), "dig": (9,), "quic_client": (1,), "ssh": (255,)}


@dataclass(frozen=True)
class Probe:
    """One client: its command line, and what is expected."""

    proto: str
    """As in the servers' log of what they received."""
    host: str
    command: Sequence[str]
    expected: Outcome
    shown: str
    """The command line without what only the lab needs."""

    @property
    def program(self) -> str:
        return "quic_client" if "nedge.lab.quic_client" in self.command else self.command[0]


@dataclass(frozen=True)
class Result:
    """What became of a probe."""

    probe: Probe
    outcome: Outcome
    detail: str
    arrived: bool
    """Whether a server saw the request."""

    @property
    def as_expected(self) -> bool:
        return self.outcome is self.probe.expected and self.arrived is (self.outcome is Outcome.ANSWERED)


def demo_probes(servers: ServerSet, allowed: str, blocked: str) -> list[Probe]:
    """Every protocol over IPv4 and IPv6, to an allowed and to a blocked name."""
    return [
        probe
        for host, expected in ((allowed, Outcome.ANSWERED), (blocked, Outcome.CUT_OFF))
        for version in (4, 6)
        for probe in _probes(servers, host, expected, version)
    ]


def _probes(servers: ServerSet, host: str, expected: Outcome, version: int) -> Iterable[Probe]:
    address = servers.address.v4 if version == 4 else servers.address.v6
    record = "A" if version == 4 else "AAAA"
    patience = PATIENCE if expected is Outcome.ANSWERED else CUT_OFF_PATIENCE
    for proto, port, options in (("http", 80, ""), ("https", 443, "k")):
        # Allowed names come from the lab's DNS; a blocked one would not get as far as HTTP that way.
        bracketed = address if version == 4 else f"[{address}]"
        resolve = [] if expected is Outcome.ANSWERED else ["--resolve", f"{host}:{port}:{bracketed}"]
        shown = ["curl", f"-{version}sS{options}", *resolve, f"{proto}://{host}/"]
        command = [*shown, "--max-time", str(patience), "-o", "/dev/null", "-w", "HTTP %{http_code}"]
        yield Probe("tls" if proto == "https" else proto, host, command, expected, " ".join(shown))
    for transport in ([], ["+tcp"]):
        shown = ["dig", *transport, f"@{address}", host, record]
        command = [*shown, "+short", "+tries=1", f"+time={patience}"]
        yield Probe("dns", host, command, expected, " ".join(shown))
    if "quic" in servers.services:
        program = [sys.executable, "-m", "nedge.lab.quic_client"]
        command = [*program, address, host, "--timeout", str(patience)]
        yield Probe("h3", host, command, expected, f"quic_client {address} {host}")
    if "ssh" in servers.services and expected is Outcome.ANSWERED:
        command = servers.ssh_command("echo", "logged in", address=address)
        yield Probe("ssh", "", command, expected, f"ssh root@{address} echo logged in")


def run_probes(client: Host, servers: ServerSet, probes: Sequence[Probe]) -> list[Result]:
    """Run all of them at once; most of the blocked ones' time is waiting."""
    running = [
        client.popen(probe.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for probe in probes
    ]
    deadline = time.monotonic() + 2 * PATIENCE
    outputs = [_finish(client, process, deadline) for process in running]
    received = {(request.proto, request.host) for request in servers.received()}
    return [
        Result(probe, *_judge(probe, process.returncode, output), (probe.proto, probe.host) in received)
        for probe, process, output in zip(probes, running, outputs, strict=True)
    ]


def _finish(client: Host, process: subprocess.Popen[str], deadline: float) -> str:
    try:
        out, err = process.communicate(timeout=max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        client.stop(process, grace=0)
        return "did not end"
    words = out if process.returncode == 0 else err.strip() or out
    return words.strip(" \n;").replace("\n", " ")


def _judge(probe: Probe, status: int, output: str) -> tuple[Outcome, str]:
    if status == 0:
        return Outcome.ANSWERED, output
    if status in _CUT_OFF_STATUSES[probe.program]:
        return Outcome.CUT_OFF, output
    return Outcome.FAILED, f"exit status {status}: {output}"
