"""The process in the lab's server namespace: `python -m nedge.lab.server_process`, started by `ServerSet`.

Serves HTTP, HTTPS and HTTP/3 itself, runs dnsmasq and dropbear and reads what they log. Makes the file
`ready` in its directory when every port has answered, and ends when one of its daemons does.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import json
import re
import ssl
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from nedge.lab import http_server, ports
from nedge.lab.received import ReceivedLog

PROBE_DEADLINE = 10.0

_DNS_QUERY = re.compile(r"query\[(\S+)\] (\S+) from (\S+)")
_SSH_CONNECTION = re.compile(r"Child connection from (\S+):\d+")

Probe = Awaitable[None]
Line = Callable[[str], None]


class Servers:
    """All services of one `ServerSet`."""

    def __init__(self, directory: Path, addresses: Sequence[str], received: ReceivedLog) -> None:
        self._directory = directory
        self._addresses = addresses
        self._received = received

    async def run(self, services: Sequence[str]) -> None:
        """Start the services, say when they answer, and serve until a daemon ends."""
        async with asyncio.TaskGroup() as tasks:  # the first error, of a daemon or a probe, ends all
            self._tasks = tasks
            probes = [await self._start(service) for service in services]
            await asyncio.gather(*itertools.chain.from_iterable(probes))
            (self._directory / "ready").touch()
            await asyncio.get_running_loop().create_future()

    async def _start(self, service: str) -> list[Probe]:
        """Start one service, and give the probes that return when it answers."""
        match service:
            case "http":
                return await self._http()
            case "https":
                return await self._https()
            case "dns":
                return await self._dns()
            case "ssh":
                return await self._ssh()
            case "quic":
                return await self._quic()
        raise ValueError(service)

    async def _http(self) -> list[Probe]:
        await self._listen(ports.HTTP, "http", None)
        return self._tcp_probes(ports.HTTP)

    async def _https(self) -> list[Probe]:
        tls12, tls13 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
        for port, certificate, versions in (
            (ports.HTTPS, "valid", (tls12, tls13)),
            (ports.HTTPS_TLS12, "valid", (tls12, tls12)),
            (ports.HTTPS_TLS13, "valid", (tls13, tls13)),
            (ports.HTTPS_EXPIRED, "expired", (tls12, tls12)),
        ):
            context = http_server.tls_context(
                self._directory, self._received, certificate=certificate, versions=versions
            )
            await self._listen(port, "https", context)
        return [
            probe
            for port in (ports.HTTPS, ports.HTTPS_TLS12, ports.HTTPS_TLS13, ports.HTTPS_EXPIRED)
            for probe in self._tcp_probes(port)
        ]

    async def _listen(self, port: int, proto: str, context: ssl.SSLContext | None) -> None:
        await http_server.listen(self._addresses, port, proto, self._received, context)

    async def _quic(self) -> list[Probe]:
        from nedge.lab import quic_client, quic_server  # aioquic is not installed everywhere

        await quic_server.listen(self._addresses, ports.HTTPS, self._directory, self._received)

        async def probe(address: str) -> None:
            async with _probing(address, f"QUIC on UDP port {ports.HTTPS}"):
                await quic_client.get(address, ports.PROBE_NAME, port=ports.HTTPS, timeout=PROBE_DEADLINE)

        return [probe(address) for address in self._addresses]

    async def _dns(self) -> list[Probe]:
        hosts: dict[str, list[str]] = json.loads((self._directory / "hosts.json").read_text())
        main = self._addresses[:2]
        await self._daemon(
            [
                *("dnsmasq", "--keep-in-foreground", "--user=root", "--group=root", "--pid-file="),
                *("--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--no-poll", "--cache-size=0"),
                "--local=/#/",  # "no such record" to other types than A and AAAA, not "refused"
                *("--log-facility=-", "--log-queries=extra"),
                *(f"--address=/#/{address}" for address in main),
                *(f"--host-record={name},{','.join(addresses)}" for name, addresses in hosts.items()),
            ],
            self._dns_line,
        )
        return [self._dns_probe(address) for address in self._addresses] + self._tcp_probes(ports.DNS)

    def _dns_line(self, line: str) -> None:
        if (match := _DNS_QUERY.search(line)) and match[2] != ports.PROBE_NAME:
            self._received("dns", match[2], match[1], match[3])

    async def _ssh(self) -> list[Probe]:
        await self._daemon(
            [
                *("dropbear", "-F", "-E", "-s", "-m", "-p", str(ports.SSH)),
                *("-r", str(self._directory / "ssh_host"), "-P", str(self._directory / "dropbear.pid")),
            ],
            self._ssh_line,
        )
        return self._tcp_probes(ports.SSH)

    def _ssh_line(self, line: str) -> None:
        if (match := _SSH_CONNECTION.search(line)) and match[1] not in self._addresses:
            self._received("ssh", "", "", match[1])

    async def _daemon(self, argv: Sequence[str], line: Line) -> None:
        """Start a daemon in the foreground and in our process group, with which it is ended."""
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.PIPE
        )
        self._tasks.create_task(_follow(argv[0], process, line))

    def _tcp_probes(self, port: int) -> list[Probe]:
        return [_tcp_probe(address, port) for address in self._addresses]

    async def _dns_probe(self, address: str) -> None:
        labels = b"".join(bytes([len(label)]) + label.encode() for label in ports.PROBE_NAME.split("."))
        query = struct.pack(">6H", 1, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)
        loop = asyncio.get_running_loop()
        async with _probing(address, f"UDP port {ports.DNS}"):
            while True:
                answered: asyncio.Future[None] = loop.create_future()
                transport, _ = await loop.create_datagram_endpoint(
                    functools.partial(_Datagram, answered), remote_addr=(address, ports.DNS)
                )
                try:
                    transport.sendto(query)
                    await asyncio.wait_for(answered, 0.05)
                    return
                except (TimeoutError, OSError):
                    continue  # not listening yet
                finally:
                    transport.close()


class _Datagram(asyncio.DatagramProtocol):
    """Resolves a future with the first datagram, or with the error that came instead."""

    def __init__(self, answered: asyncio.Future[None]) -> None:
        self._answered = answered

    def datagram_received(self, _data: bytes, _addr: object) -> None:
        if not self._answered.done():
            self._answered.set_result(None)

    def error_received(self, exc: Exception) -> None:
        if not self._answered.done():
            self._answered.set_exception(exc)


@asynccontextmanager
async def _probing(address: str, what: str) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(PROBE_DEADLINE):
            yield
    except TimeoutError:
        raise RuntimeError(f"{what} of {address} does not answer") from None


async def _tcp_probe(address: str, port: int) -> None:
    async with _probing(address, f"TCP port {port}"):
        while True:
            try:
                _, writer = await asyncio.open_connection(address, port)
            except OSError:
                await asyncio.sleep(0.02)  # not listening yet
            else:
                writer.close()
                return


async def _follow(name: str, process: asyncio.subprocess.Process, line: Line) -> None:
    """Hand each line that a daemon logs to its reader. Its end is an error: it should go on."""
    assert process.stderr is not None
    last: list[str] = []
    async for text in process.stderr:
        decoded = text.decode(errors="backslashreplace").rstrip()
        last = [*last[-9:], decoded]
        line(decoded)
    status = await process.wait()
    raise RuntimeError(f"{name} ended with status {status}: " + " / ".join(last))


def main() -> int:
    parser = argparse.ArgumentParser(prog="server_process", description=__doc__.split("\n")[0])
    parser.add_argument("--directory", type=Path, required=True)
    parser.add_argument("--services", type=lambda text: text.split(","), required=True)
    parser.add_argument("--addresses", type=lambda text: text.split(","), required=True)
    arguments = parser.parse_args()
    with ReceivedLog(arguments.directory / "received.jsonl") as received:
        try:
            asyncio.run(Servers(arguments.directory, arguments.addresses, received).run(arguments.services))
        except ExceptionGroup as errors:
            print(*errors.exceptions, sep="\n", file=sys.stderr)
    return 1  # serving ends by a signal, or by an error


if __name__ == "__main__":
    sys.exit(main())
