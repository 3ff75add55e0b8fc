"""The two ends of the benchmark: client and server programs in C, and the 5-tuples that they use up."""

from __future__ import annotations

import json
import resource
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from replay_cost import handshake

from nedge.lab import ports
from nedge.lab.host import Address, LabError, call
from nedge.lab.topology import CLIENT, SERVER, Lab

HERE = Path(__file__).parent
SOURCES = 250
MAX_HELD = 200_000
BASE = "10.100.0.1"
NETWORK = "10.100.0.0/16"
"""The client's many addresses: a route makes them local, so none needs to be configured."""

NAME = "www.example.org"
REQUEST = (
    "GET {path} HTTP/1.1\r\n"
    f"Host: {NAME}\r\n"
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64) bench/1\r\n"
    "Accept: */*\r\n"
    "Connection: {connection}\r\n\r\n"
)
PLAY = b"\x17\x03\x03\x00\x20" + bytes(range(32))
"""A TLS record upon which the server sends without end."""


class Tools:
    """The compiled programs and what they send, in a directory of their own that is removed at the end."""

    def __enter__(self) -> Self:
        self._scratch = tempfile.TemporaryDirectory(prefix="nedge-bench-")
        self.directory = Path(self._scratch.name)
        for name in ("load_client", "load_server", "pass_queue"):
            source, program = HERE / f"{name}.c", self.directory / name
            call(["gcc", "-O2", "-Wall", "-o", str(program), str(source)])
        self.client, self.server = self.directory / "load_client", self.directory / "load_server"
        self.pass_queue = self.directory / "pass_queue"
        hello, answer = handshake(NAME)
        self._file("answer", answer)
        self._file("tls", hello)
        self._file("play", PLAY)
        for name, path, connection in (
            ("short", "/index.html", "close"),
            ("keep", "/keep", "keep-alive"),
            ("stream", "/stream.iso", "close"),
        ):
            self._file(name, REQUEST.format(path=path, connection=connection).encode())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._scratch.cleanup()

    def _file(self, name: str, content: bytes) -> None:
        (self.directory / name).write_bytes(content)


class Endpoints:
    """Client and server of one lab. On entry the server listens."""

    def __init__(self, lab: Lab, tools: Tools) -> None:
        self._lab = lab
        self._tools = tools
        self._used = 0
        self._servers: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        client, server = self._lab.client, self._lab.server
        client.run(["ip", "route", "add", "local", NETWORK, "dev", "lo"], check=True)
        server.run(["ip", "route", "add", NETWORK, "via", CLIENT.v4], check=True)
        for host in (client, server):
            # Either may close first; what the closing end remembers of it would slow later rounds down.
            host.run(["sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=1000"], check=True)
        self._listen(SERVER, 1)
        return self

    def _listen(self, address: Address, processes: int) -> None:
        """Start a server, of so many processes."""
        answer = self._tools.directory / "answer"
        ports_ = str(ports.HTTP), str(ports.HTTPS)
        server = self._lab.server.popen(
            [self._tools.server, address.v4, str(processes), answer, *ports_], stdout=subprocess.PIPE
        )
        self._servers.append(server)
        assert server.stdout is not None
        for _ in range(processes):
            if server.stdout.readline().strip() != "ready":
                raise LabError("the benchmark's server did not start")

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for server in self._servers:
            self._lab.server.stop(server)

    def open(self, seconds: float, *, rate: float = 0, inflight: int = 64) -> dict[str, Any]:
        """HTTP connections of one request each, for so long; what came of them."""
        options = {"seconds": seconds, "rate": rate, "inflight": inflight}
        return self._run("open", port=ports.HTTP, request="short", **options)

    def hold(self, count: int, kind: str) -> Held:
        """Open so many connections ("http" or "tls") and keep them open; the lab needs a site for them.

        A process may have but so many open files: several clients, one after the other, and servers.
        """
        per_process = resource.getrlimit(resource.RLIMIT_NOFILE)[1] * 9 // 10
        if len(self._servers) == 1:
            self._listen(self._lab.sites[0], 2 * MAX_HELD // per_process + 1)
        port, request = (ports.HTTP, "keep") if kind == "http" else (ports.HTTPS, "tls")
        target = self._lab.sites[0].v4
        held = Held(self._lab)
        for start in range(0, count, per_process):
            part = min(per_process, count - start)
            command = self._command("open", port=port, request=request, count=part, keep=1, target=target)
            self._used += part
            held.add(command)
        return held

    def stream(self, kind: str, seconds: float) -> float:
        """Gbit/s of one connection, "http" or "tls", in which the server sends."""
        if kind == "http":
            done = self._run("stream", port=ports.HTTP, request="stream", seconds=seconds)
        else:
            done = self._run("stream", port=ports.HTTPS, request="tls", then="play", seconds=seconds)
        return float(done["bytes"] * 8 / done["seconds"] / 1e9)

    def flood(self, seconds: float) -> tuple[float, float]:
        """Datagrams a second of one UDP flow: sent, and arrived at the server's interface."""
        before = self._received()
        done = self._run("flood", port=ports.HTTP, seconds=seconds)
        return done["sent"] / done["seconds"], (self._received() - before) / done["seconds"]

    def _received(self) -> int:
        """Packets that have arrived at the server."""
        for line in Path(f"/proc/{self._servers[0].pid}/net/dev").read_text().splitlines():
            name, _, numbers = line.partition(":")
            if name.strip() == "eth0":
                return int(numbers.split()[1])
        raise LabError("the server has no eth0")

    def _command(self, mode: str, **options: object) -> list[str | Path]:
        files = {"request", "then"}
        options = {
            key: self._tools.directory / str(value) if key in files else value
            for key, value in options.items()
        }
        options = {"target": SERVER.v4, **options}
        options |= {"base": BASE, "sources": SOURCES, "first": self._used}
        return [self._tools.client, mode, *(f"{key}={value}" for key, value in options.items())]

    def _run(self, mode: str, *, seconds: float, **options: object) -> dict[str, Any]:
        command = self._command(mode, seconds=seconds, **options)
        done = self._lab.client.run(command, timeout=seconds + 30)
        if done.returncode:
            raise LabError(f"load_client {mode}: {done.stderr.strip() or done.returncode}")
        result: dict[str, Any] = json.loads(done.stdout)
        self._used += result["used"]
        return result


class Held:
    """Connections that stay open until the end of a `with` block."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._processes: list[subprocess.Popen[str]] = []
        self.held = 0
        self.failed = 0

    def add(self, command: list[str | Path]) -> None:
        """Let one more client open its share, and wait until it has."""
        process = self._lab.client.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._processes.append(process)
        assert process.stdout is not None
        line = process.stdout.readline()
        if not line:
            raise LabError("load_client could not open the connections")
        result = json.loads(line)
        self.held += result["held"]
        self.failed += result["failed"]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        for process in self._processes:
            self._lab.client.stop(process)
