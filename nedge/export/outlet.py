"""Events on their way out of a worker: made into lines, and handed over in batches.

Never waits: what the other end does not take for now is kept for a while, and what is too much is lost and
counted. Who reads a batch finds whole lines in it.
"""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections import Counter, deque
from typing import Final

import structlog

from nedge.core.events import Event, FlowEnded
from nedge.core.facts import Classifier
from nedge.core.flow import Share
from nedge.core.verdict import Action, Rule
from nedge.export.eve import event_record, to_json

BATCH = 1 << 16
"""Bytes that are handed over at once; less, if the time has come."""
MAX_WAITING = 1 << 23
"""Bytes kept for a reader that takes nothing."""
SEND_BUFFER = 1 << 23
"""Bytes that the kernel may hold between all workers and the reader."""
_SO_SNDBUFFORCE: Final = 32
_NO_SHARE: Final = Share.NONE

_log = structlog.get_logger(__name__)


def channel() -> tuple[socket.socket, socket.socket]:
    """A writing end, which workers share, and a reading end. Each message is a batch."""
    writer, reader = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    writer.setblocking(False)
    reader.setblocking(False)
    try:
        writer.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, SEND_BUFFER)
    except PermissionError:  # not root: the kernel's limit has to do
        writer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    return writer, reader


def drained(reader: socket.socket) -> int:
    """Empty a channel; how many events were in it."""
    count = 0
    with contextlib.suppress(BlockingIOError):
        while batch := reader.recv(1 << 20):
            count += batch.count(b"\n")
    return count


class Outlet:
    """An event sink that writes lines to a channel, and counts flows as they end."""

    def __init__(self, writer: socket.socket, classifier: Classifier, *, wanted: bool = True) -> None:
        """wanted: somebody reads; else events are only counted. May be changed."""
        self.wanted = wanted
        self.lost = 0
        """Events that the channel did not take."""
        self.ended: Counter[tuple[Action, Rule]] = Counter()
        """Flows that ended, by their last verdict."""
        self.offloaded = 0
        """Of these, how many the kernel had taken over."""
        self.packets = 0
        """Of these, all packets, those in the kernel too."""
        self._writer = writer
        self._classifier = classifier
        self._lines: list[bytes] = []
        self._size = 0
        self._waiting: deque[tuple[bytes, int]] = deque()
        self._waiting_size = 0
        self._patient_until = 0.0

    def __call__(self, event: Event) -> None:
        if self.wanted:
            line = to_json(event_record(event, self._classifier))
            self._lines.append(line)
            self._size += len(line)
            if self._size >= BATCH:
                self.flush()
        if isinstance(event, FlowEnded):
            flow = event.flow
            self.ended[flow.verdict.action, flow.verdict.rule] += 1
            self.packets += flow.packets_sent + flow.packets_rcvd
            if flow.share is not _NO_SHARE:
                self.offloaded += 1

    def flush(self) -> None:
        """Hand over what there is, as far as it is taken."""
        if self._lines:
            self._waiting.append((b"".join(self._lines), len(self._lines)))
            self._waiting_size += self._size
            self._lines, self._size = [], 0
        while self._waiting:
            batch, _ = self._waiting[0]
            try:
                self._writer.send(batch)
            except BlockingIOError:
                if self._may_wait():
                    continue
                break
            except OSError:  # nobody is there to read
                self._drop()
                continue
            self._waiting.popleft()
            self._waiting_size -= len(batch)
        while self._waiting_size > MAX_WAITING:
            self._drop()

    def close(self) -> None:
        """Hand over the last; what is not taken is lost."""
        self.flush()
        while self._waiting:
            self._drop()

    def _drop(self) -> None:
        """Lose the oldest batch."""
        batch, count = self._waiting.popleft()
        self._waiting_size -= len(batch)
        before, self.lost = self.lost, self.lost + count
        if before.bit_length() != self.lost.bit_length():
            _log.error("events_lost", reason="they were not taken in time", lost=self.lost)

    def be_patient(self, seconds: float) -> None:
        """From now on, and for so long, wait for the reader rather than lose events."""
        self._patient_until = time.monotonic() + seconds

    def _may_wait(self) -> bool:
        left = self._patient_until - time.monotonic()
        return left > 0 and bool(select.select([], [self._writer], [], left)[1])
