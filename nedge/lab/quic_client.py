"""An HTTP/3 client: `python -m nedge.lab.quic_client HOST NAME` prints the answer's body. Needs aioquic.

HOST is the address to connect to, NAME the server's name in the TLS handshake and the request.
Exit status 1: no answer within the time. Certificates are not verified.
"""

from __future__ import annotations

import argparse
import asyncio
import ssl
import sys
from typing import Any

from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent


class _Client(QuicConnectionProtocol):
    def __init__(self, *args: Any, **keywords: Any) -> None:
        super().__init__(*args, **keywords)
        self._http = H3Connection(self._quic)
        self._body = bytearray()
        self._done: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def get(self, name: str, path: str) -> bytes:
        stream = self._quic.get_next_available_stream_id()
        request = {":method": "GET", ":scheme": "https", ":authority": name, ":path": path}
        headers = [(key.encode(), value.encode()) for key, value in request.items()]
        self._http.send_headers(stream, headers, end_stream=True)
        self.transmit()
        return await self._done

    async def wait_closed(self) -> None:
        """Do not linger after the goodbye: if the connection was cut off, nobody answers it."""

    def quic_event_received(self, event: QuicEvent) -> None:
        for http_event in self._http.handle_event(event):
            if isinstance(http_event, DataReceived):
                self._body += http_event.data
            if isinstance(http_event, DataReceived | HeadersReceived) and http_event.stream_ended:
                self._done.set_result(bytes(self._body))


async def get(host: str, name: str, *, path: str = "/", port: int = 443, timeout: float = 5) -> bytes:
    """One request on a connection of its own. `TimeoutError` or `ConnectionError` if nothing comes back."""
    configuration = QuicConfiguration(
        is_client=True, alpn_protocols=H3_ALPN, server_name=name, verify_mode=ssl.CERT_NONE
    )
    async with (
        asyncio.timeout(timeout),
        connect(host, port, configuration=configuration, create_protocol=_Client) as client,
    ):
        assert isinstance(client, _Client)
        return await client.get(name, path)


def main() -> int:
    parser = argparse.ArgumentParser(prog="quic_client", description=__doc__.split("\n")[0])
    parser.add_argument("host")
    parser.add_argument("name")
    parser.add_argument("--path", default="/")
    parser.add_argument("--port", type=int, default=443)
    parser.add_argument("--timeout", type=float, default=5)
    asked = parser.parse_args()
    try:
        body = asyncio.run(
            get(asked.host, asked.name, path=asked.path, port=asked.port, timeout=asked.timeout)
        )
    except (TimeoutError, ConnectionError) as error:
        print(f"no answer: {str(error) or 'timeout'}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(body)
    return 0


if __name__ == "__main__":
    sys.exit(main())
