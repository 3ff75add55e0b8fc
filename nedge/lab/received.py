"""What the lab's servers received, as JSON lines: the proof that a request arrived, or never did."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class Request:
    """One thing that a server saw."""

    time: float
    proto: str
    """http, https, h3: a request. tls: a ClientHello. dns: a query. ssh: a connection."""
    host: str
    """The name the client asked for: Host, `:authority`, SNI, or the query's name."""
    path: str
    """Of the URL; the type of a DNS query, as A or AAAA."""
    client: str
    """The client's address."""


class ReceivedLog:
    """The writing end. Each line is one write, before the answer goes out."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)

    def __call__(self, proto: str, host: str, path: str, client: str) -> None:
        request = Request(round(time.time(), 6), proto, host, path, client)
        os.write(self._fd, json.dumps(asdict(request)).encode() + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        os.close(self._fd)


def read_received(path: Path) -> list[Request]:
    """The reading end."""
    return [Request(**json.loads(line)) for line in path.read_text().splitlines()]
