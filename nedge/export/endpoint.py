"""An HTTP server for metrics: few clients at a time, none of which keeps the others waiting for long."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from http.server import HTTPServer
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, MetricsHandler

MAX_CLIENTS = 8
PATIENCE = 2.0
"""Seconds that a client may take if others wait for its place."""
SLOWEST = 10.0
"""Seconds in which a client has to send something, and to take its answer."""


_log = structlog.get_logger(__name__)


class Endpoint(HTTPServer):
    """Serves in threads of its own, one per client."""

    request_queue_size = MAX_CLIENTS

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        """host: an address, IPv4 or IPv6, or a name. Raises OSError if it cannot be had."""
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        self.address_family, address = found[0], str(found[4][0])
        self.refused = 0
        """Clients that were sent away: too many at a time, or too slow."""
        self.errors = 0
        """Clients that got no answer for another reason."""
        self._clients: dict[socket.socket, float] = {}
        """Connection -> since when, the oldest first."""
        self._lock = threading.Lock()
        handler = type("Handler", (MetricsHandler,), {"registry": registry, "timeout": SLOWEST})
        super().__init__((address, port), handler)
        self._thread = threading.Thread(target=self.serve_forever, daemon=True, name="metrics")
        self._thread.start()

    def server_bind(self) -> None:
        """Without asking for the name of the address, which takes time where nobody answers."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()

    def process_request(self, request: Any, client_address: Any) -> None:
        """A client has connected: serve it, if there is a place for it."""
        if not self._has_place():
            self.refused += 1
            self.shutdown_request(request)
            return
        with self._lock:
            self._clients[request] = time.monotonic()
        try:
            threading.Thread(target=self._serve, args=(request, client_address), daemon=True).start()
        except RuntimeError:  # there can be no more threads
            self.refused += 1
            self._gone(request)

    def _has_place(self) -> bool:
        """Whether another client can be served; who takes too long makes room."""
        with self._lock:
            if len(self._clients) < MAX_CLIENTS:
                return True
            oldest, since = next(iter(self._clients.items()))
            if time.monotonic() - since < PATIENCE:
                return False
            del self._clients[oldest]
            self.refused += 1
            with contextlib.suppress(OSError):
                oldest.shutdown(socket.SHUT_RDWR)  # its thread notices, and ends
            return True

    def _serve(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:  # too slow, or gone
            pass
        except Exception as error:
            self.errors += 1
            _log.error("metrics_error", error=repr(error), exc_info=error)
        finally:
            self._gone(request)

    def _gone(self, request: socket.socket) -> None:
        with self._lock:
            self._clients.pop(request, None)
        self.shutdown_request(request)

    def close(self) -> None:
        """Let the address go. Who is being served, is served to the end."""
        self.shutdown()
        self.server_close()
        self._thread.join()
