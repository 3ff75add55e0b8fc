"""The client: finds the gateway's socket, asks, and gives the answer."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import orjson

from nedge.control.protocol import VERSION, ControlError, Kind, Message, encode
from nedge.kernel.state import SOCKET, namespace_dir

if TYPE_CHECKING:
    from nedge.config import Config

TIMEOUT = 30.0
"""Seconds without a word from the gateway. A reload has long lists to read."""
_READ = 1 << 18


@dataclass(slots=True)
class Answer:
    """What came back. `columns` and `rows` are empty but for listings."""

    result: dict[str, Any]
    columns: list[str] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)

    def records(self) -> Iterator[dict[str, Any]]:
        """The rows, each with the columns' names; what has an id, and comes twice, once."""
        records = (dict(zip(self.columns, row, strict=True)) for row in self.rows)
        if "id" not in self.columns:
            return records
        return iter({record["id"]: record for record in records}.values())


class Client:
    """One connection to a gateway; a context manager."""

    def __init__(self, path: Path, timeout: float = TIMEOUT) -> None:
        """Connect. Raises ControlError with a sentence where that fails."""
        self.path = path
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(os.fspath(path))
        except OSError as error:
            self._socket.close()
            raise _no_connection(path, error) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, command: str, **parameters: Any) -> Answer:
        """Ask, and wait for the whole answer. Raises ControlError where the gateway says no, or nothing."""
        request = {"version": VERSION, "command": command} | parameters
        # A gateway that refuses says why, and hangs up without having read: its words are still there.
        with contextlib.suppress(BrokenPipeError):
            self._socket.sendall(encode(request))
        answer = Answer({})
        while True:
            message = self._receive()
            if "rows" in message:
                answer.columns = message["columns"]
                answer.rows += message["rows"]
            elif message.get("ok"):
                answer.result = message["result"]
                return answer
            else:
                raise ControlError(Kind(message["kind"]), message["error"])

    def _receive(self) -> Message:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            try:
                data = self._socket.recv(_READ)
            except TimeoutError:
                raise ControlError(
                    Kind.FAILED, f"the gateway at {self.path} did not answer in time"
                ) from None
            except ConnectionResetError:
                data = b""
            if not data:
                raise ControlError(Kind.FAILED, f"the gateway at {self.path} hung up before it had answered")
            self._buffer += data
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        message: Message = orjson.loads(line)
        return message


def _no_connection(path: Path, error: OSError) -> ControlError:
    if isinstance(error, FileNotFoundError):
        return ControlError(Kind.FAILED, f"no gateway is running: there is no {path}")
    if isinstance(error, ConnectionRefusedError):
        return ControlError(Kind.FAILED, f"no gateway is running: nobody listens at {path}")
    if isinstance(error, PermissionError):
        return _no_permission(path)
    return ControlError(Kind.FAILED, f"{path}: cannot be reached: {error.strerror or error}")


def _no_permission(path: Path) -> ControlError:
    return ControlError(
        Kind.PERMISSION,
        f"{path}: permission denied; only root and the members of control.group may use it",
    )


def find_socket(config: Config | None = None, path: Path | None = None) -> Path:
    """Where the gateway listens: as told, else by its configuration, else the one that runs here.

    Raises ControlError with a sentence.
    """
    if path is not None:
        return path
    directory = namespace_dir()
    if config is not None:
        return config.control.socket or directory / f"{config.gateway.bridge}{SOCKET}"
    try:
        found = sorted(entry for entry in directory.iterdir() if entry.suffix == SOCKET)
    except FileNotFoundError:
        found = []
    except PermissionError:
        raise _no_permission(directory) from None
    if not found:
        raise ControlError(
            Kind.FAILED,
            f"no gateway is running in this network namespace: there is no socket in {directory}; "
            "for one that listens elsewhere give --config or --socket",
        )
    if len(found) > 1:
        found = [entry for entry in found if _is_alive(entry)] or found
    if len(found) > 1:
        names = ", ".join(str(entry) for entry in found)
        raise ControlError(Kind.USAGE, f"several gateways are running; name one by --socket: {names}")
    return found[0]


def _is_alive(path: Path) -> bool:
    """Whether somebody listens there: a gateway that crashed leaves its socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        return probe.connect_ex(os.fspath(path)) == 0
