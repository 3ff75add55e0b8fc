"""A web server on loopback that serves lists, and can misbehave."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Page:
    """What a path answers."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    promised: int | None = None
    """Content-Length, if it is not the body's."""
    chunk: int = 0
    """Send so many bytes at a time, with a pause behind each; 0 = all at once."""


class ListServer:
    """Pages by path; answers 304 to who has the page's ETag or Last-Modified already."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.pages: dict[str, Page] = {}
        self.asked: list[Message] = []
        """Headers of all requests."""
        self.statuses: list[int] = []

    def put(self, path: str, body: str | bytes, **options: object) -> str:
        """Serve a page; gives its URL."""
        content = body.encode() if isinstance(body, str) else body
        self.pages[path] = Page(content, **options)  # type: ignore[arg-type]
        return self.url + path


@contextmanager
def list_server(tls: ssl.SSLContext | None = None) -> Iterator[ListServer]:
    """Runs a server; with `tls`, over https."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.headers)
            page = served.pages.get(self.path.partition("?")[0], Page(status=404))
            status, body = page.status, page.body
            for ours, theirs in (("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since")):
                if page.headers.get(ours) and page.headers[ours] == self.headers.get(theirs):
                    status, body = 304, b""
            served.statuses.append(status)
            self.send_response(status)
            for name, value in page.headers.items():
                self.send_header(name, value)
            if status != 304:
                self.send_header("Content-Length", str(len(body) if page.promised is None else page.promised))
            self.end_headers()
            step = page.chunk or max(1, len(body))
            try:
                for start in range(0, len(body), step):
                    self.wfile.write(body[start : start + step])
                    time.sleep(0.05 if page.chunk else 0)
            except OSError:
                pass  # the client has had enough

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served = ListServer(server.server_port)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
        served.url = f"https://localhost:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
