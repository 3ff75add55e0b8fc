"""CPU per packet and memory per flow of the engine, without a network: `python tests/bench/replay_cost.py`.

Packets are made beforehand and handed to the engine as `nedge replay` does. Undecided: the packets of flows
from their first to the one that settles them, a mix of HTTPS, HTTP and DNS, nDPI and the shipped scripts
included. Decided: further data packets of the same flows, in random order.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import random
import ssl
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from nedge.assemble import assemble
from nedge.cli import tame_garbage_collector
from nedge.config import Config
from nedge.core.packet import ACK, PSH, SYN, TCP, UDP

_CLIENT_ISN, _SERVER_ISN = 1000, 9000


def ip(proto: int, source: int, target: int, segment: bytes) -> bytes:
    head = struct.pack("!BBHHHBBHII", 0x45, 0, 20 + len(segment), 0, 0, 64, proto, 0, source, target)
    return head + segment


def tcp(flow: tuple[int, int, int, int], back: bool, seq: int, flags: int, payload: bytes = b"") -> bytes:
    client, port, server, server_port = flow
    ports = (server_port, port) if back else (port, server_port)
    header = struct.pack("!HHIIBBHHH", *ports, seq, 1, 0x50, flags, 65535, 0, 0)
    return ip(TCP, *((server, client) if back else (client, server)), header + payload)


def handshake(name: str) -> tuple[bytes, bytes]:
    """What client and server say first in a real TLS 1.3 handshake."""
    with tempfile.TemporaryDirectory() as directory:
        key, certificate = f"{directory}/key", f"{directory}/certificate"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={name}"]
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
        server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_context.load_cert_chain(certificate, key)
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(to_client, to_server, server_hostname=name)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    hello = to_server.read()
    to_server.write(hello)
    server = server_context.wrap_bio(to_server, to_client, server_side=True)
    with contextlib.suppress(ssl.SSLWantReadError):
        server.do_handshake()
    return hello, to_client.read()


def dns(name: str, answer: bool) -> bytes:
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0\0\x01\0\x01"
    head = struct.pack("!HHHHHH", 7, 0x8180 if answer else 0x0100, 1, int(answer), 0, 0)
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\x0a\0\0\x01" if answer else b""
    return head + question + record


class Traffic:
    """Flow number n is always the same flow."""

    def __init__(self) -> None:
        self.hello, self.server_hello = handshake("www.example.org")
        self.request = b"GET /index.html HTTP/1.1\r\nHost: www.example.org\r\nUser-Agent: bench\r\n\r\n"
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 200000\r\n\r\n"
        self.response = head + b"x" * 800
        self.dns = [dns("www.example.org", answer) for answer in (False, True)]

    @staticmethod
    def five_tuple(n: int, server_port: int) -> tuple[int, int, int, int]:
        return 0x0A000000 + n // 5000, 2000 + n % 5000 * 10, 0xC6336400 + n % 200, server_port

    def opening(self, n: int) -> list[bytes]:
        """Packets of a new flow up to its decision."""
        kind = n % 3
        if kind == 2:
            client, port, server, server_port = self.five_tuple(n, 53)
            query, answer = self.dns
            there = struct.pack("!HHHH", port, server_port, 8 + len(query), 0) + query
            back = struct.pack("!HHHH", server_port, port, 8 + len(answer), 0) + answer
            return [ip(UDP, client, server, there), ip(UDP, server, client, back)]
        flow = self.five_tuple(n, 443 if kind == 0 else 80)
        there, back = (self.hello, self.server_hello) if kind == 0 else (self.request, self.response)
        return [
            tcp(flow, False, _CLIENT_ISN, SYN),
            tcp(flow, True, _SERVER_ISN, SYN | ACK),
            tcp(flow, False, _CLIENT_ISN + 1, ACK),
            tcp(flow, False, _CLIENT_ISN + 1, PSH | ACK, there),
            tcp(flow, True, _SERVER_ISN + 1, PSH | ACK, back),
            tcp(flow, True, _SERVER_ISN + 1 + len(back), PSH | ACK, bytes(400)),
        ]

    def settled(self, n: int) -> bytes:
        """One more data packet from the server of a TLS flow."""
        return tcp(self.five_tuple(n, 443), True, 500_000, ACK, bytes(1200))


def rss() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def measure(flows: int, decided: int, *, scripts: bool) -> dict[str, float]:
    """One engine, `flows` new flows, then `decided` packets of its settled ones."""
    config = Config()
    if not scripts:
        config = config.model_copy(update={"scripts": config.scripts.model_copy(update={"directories": []})})
    assembly = assemble(config)
    engine = assembly.engine
    tame_garbage_collector()
    traffic = Traffic()
    before = rss()
    now = time.time()
    packets = 0
    spent = 0.0
    for chunk in chunks(flows, 2000):
        made = [packet for n in chunk for packet in traffic.opening(n)]
        packets += len(made)
        start = time.process_time()
        for packet in made:
            engine.packet(packet, now)
        spent += time.process_time() - start
    gc.collect()
    memory = rss() - before
    settled = range(0, flows, 3)
    drawn = [traffic.settled(random.choice(settled)) for _ in range(decided)]
    start = time.process_time()
    for packet in drawn:
        engine.packet(packet, now)
    decided_time = time.process_time() - start
    looking = sum(flow.looking for flow in engine.table if flow.server_port == 443)
    result = {
        "flows": engine.table.count,
        "undecided_us_per_packet": spent / packets * 1e6,
        "decided_us_per_packet": decided_time / decided * 1e6,
        "bytes_per_flow": memory / engine.table.count,
        "https_flows_still_inspected": looking,
    }
    engine.table = type(engine.table)(1)
    assembly.close()
    return result


def chunks(count: int, size: int) -> Iterator[range]:
    for start in range(0, count, size):
        yield range(start, min(start + size, count))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flows", type=int, nargs="+", default=[1_000, 30_000, 1_000_000])
    parser.add_argument("--decided", type=int, default=200_000)
    parser.add_argument("--no-scripts", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    for flows in options.flows:
        result = measure(flows, options.decided, scripts=not options.no_scripts)
        if options.json:
            print(json.dumps(result))
        else:
            print(", ".join(f"{name} {value:,.2f}" for name, value in result.items()))


if __name__ == "__main__":
    main()
