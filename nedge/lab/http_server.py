"""The lab's HTTP/1.1 server, plain or over TLS: small, and fast enough not to be what a benchmark measures.

`/bytes/N` is N bytes. `/slow` and `/slow/N` send headers at once, then a line a second, 10 or N of them:
a long-lived flow. Any other path is answered with what was asked, as JSON.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from nedge.lab.received import ReceivedLog

Pieces = AsyncIterator[bytes]
_Connection = ssl.SSLSocket | ssl.SSLObject

BACKLOG = 4096
CHUNK = b"nedge lab " * 6554
"""64 KiB, and a little."""


async def listen(
    addresses: Sequence[str], port: int, proto: str, received: ReceivedLog, tls: ssl.SSLContext | None = None
) -> asyncio.Server:
    """Serve on a port of every address."""
    handler = _Handler(proto, received)
    return await asyncio.start_server(handler.serve, addresses, port, ssl=tls, backlog=BACKLOG)


def tls_context(
    certificates: Path,
    received: ReceivedLog,
    *,
    certificate: str = "valid",
    versions: tuple[ssl.TLSVersion, ssl.TLSVersion] = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3),
) -> ssl.SSLContext:
    """A server's side of TLS. Names that begin with `expired.` get the expired certificate."""

    def name_asked(connection: _Connection, name: str | None, _context: ssl.SSLContext) -> None:
        received("tls", name or "", "", "")
        if name and name.startswith("expired."):
            connection.context = expired

    context, expired = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) for _ in range(2))
    for each, file in ((context, certificate), (expired, "expired")):
        each.minimum_version, each.maximum_version = versions
        each.load_cert_chain(certificates / f"{file}.pem", certificates / f"{file}.key")
        each.set_alpn_protocols(["http/1.1"])
    context.sni_callback = name_asked
    return context


async def body_of(path: str, host: str, method: str, proto: str) -> Pieces:
    """The answer to a path, piece by piece. The first piece is its type."""
    kind, _, number = path.lstrip("/").partition("/")
    if kind == "bytes" and number.isdecimal():
        yield b"application/octet-stream"
        left = int(number)
        while left > 0:
            yield CHUNK[:left]
            left -= len(CHUNK)
    elif kind == "slow":
        yield b"text/plain"
        for n in range(int(number) if number.isdecimal() else 10):
            yield b"line %d\n" % n
            await asyncio.sleep(1)
    else:
        yield b"application/json"
        yield json.dumps({"proto": proto, "method": method, "host": host, "path": path}).encode() + b"\n"


class _Handler:
    def __init__(self, proto: str, received: ReceivedLog) -> None:
        self._proto = proto
        self._received = received

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: its requests one after the other."""
        try:
            while await self._exchange(reader, writer):
                pass
        except (OSError, EOFError, asyncio.LimitOverrunError, ValueError):
            pass  # the client went away, was cut off, or does not speak HTTP
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. False when the connection is to be closed."""
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, path, version = lines[0].split(" ")
        fields = (line.partition(":") for line in lines[1:])
        headers = {name.lower(): value.strip() for name, _, value in fields}
        host = re.sub(r":\d+$", "", headers.get("host", ""))
        self._received(self._proto, host, path, writer.get_extra_info("peername")[0])
        await _skip(reader, int(headers.get("content-length", 0)))
        keep = version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"
        pieces = body_of(path, host, method, self._proto)
        await _answer(writer, pieces, path, keep=keep, head_only=method == "HEAD")
        return keep


async def _skip(reader: asyncio.StreamReader, length: int) -> None:
    """Read a request's body away."""
    while length > 0:
        piece = await reader.read(min(length, len(CHUNK)))
        if not piece:
            raise EOFError
        length -= len(piece)


async def _answer(
    writer: asyncio.StreamWriter, pieces: Pieces, path: str, *, keep: bool, head_only: bool
) -> None:
    kind = await anext(pieces)
    head = b"HTTP/1.1 200 OK\r\nServer: nedge-lab\r\nContent-Type: %s\r\n" % kind
    if not keep:
        head += b"Connection: close\r\n"
    if path.startswith("/bytes/"):
        await _stream(writer, head + b"Content-Length: %d\r\n\r\n" % int(path[7:]), pieces, head_only)
    elif kind == b"text/plain":
        await _stream(writer, head + b"Transfer-Encoding: chunked\r\n\r\n", _chunked(pieces), head_only)
    else:
        body = await anext(pieces)
        # Head and body in one write: one packet, as a real server's small answer is.
        writer.write(head + b"Content-Length: %d\r\n\r\n" % len(body) + (b"" if head_only else body))
        await writer.drain()


async def _stream(writer: asyncio.StreamWriter, head: bytes, pieces: Pieces, head_only: bool) -> None:
    writer.write(head)
    if not head_only:
        async for piece in pieces:
            writer.write(piece)
            await writer.drain()
    await writer.drain()


async def _chunked(pieces: Pieces) -> Pieces:
    async for piece in pieces:
        yield b"%x\r\n%s\r\n" % (len(piece), piece)
    yield b"0\r\n\r\n"
