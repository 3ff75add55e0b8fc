"""The lab's HTTP/3 server. Needs aioquic."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.asyncio.server import QuicServer, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated, QuicEvent

from nedge.lab.http_server import body_of
from nedge.lab.ports import PROBE_NAME
from nedge.lab.received import ReceivedLog


async def listen(
    addresses: Sequence[str], port: int, certificates: Path, received: ReceivedLog
) -> list[QuicServer]:
    """Serve on a port of every address, by a socket each, so that answers come from the address asked."""
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(certificates / "valid.pem", certificates / "valid.key")

    def protocol(*args: Any, **keywords: Any) -> QuicConnectionProtocol:
        return _Protocol(received, *args, **keywords)

    return [
        await serve(address, port, configuration=configuration, create_protocol=protocol)
        for address in addresses
    ]


class _Protocol(QuicConnectionProtocol):
    def __init__(self, received: ReceivedLog, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._received = received
        self._http: H3Connection | None = None
        self._answers: set[asyncio.Task[None]] = set()

    def quic_event_received(self, event: QuicEvent) -> None:
        if isinstance(event, ProtocolNegotiated):
            self._http = H3Connection(self._quic)
        if self._http is not None:
            for http_event in self._http.handle_event(event):
                self._handle(self._http, http_event)

    def _handle(self, http: H3Connection, event: H3Event) -> None:
        if not isinstance(event, HeadersReceived):
            return
        headers = {name.decode(): value.decode("latin-1") for name, value in event.headers}
        path, host, method = headers.get(":path", "/"), headers.get(":authority", ""), headers[":method"]
        if host != PROBE_NAME:
            self._received("h3", host, path, "")
        task = asyncio.create_task(self._answer(http, event.stream_id, path, host, method))
        self._answers.add(task)  # the loop itself keeps only weak references
        task.add_done_callback(self._answers.discard)

    async def _answer(self, http: H3Connection, stream: int, path: str, host: str, method: str) -> None:
        pieces = body_of(path, host, method, "h3")
        http.send_headers(stream, [(b":status", b"200"), (b"content-type", await anext(pieces))])
        async for piece in pieces:
            http.send_data(stream, piece, end_stream=False)
            self.transmit()
        http.send_data(stream, b"", end_stream=True)
        self.transmit()
