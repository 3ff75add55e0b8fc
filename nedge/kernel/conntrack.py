"""The kernel's connection table: marks, counters and ends of flows that it took over."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import threading
from collections import deque
from collections.abc import Sequence

from nedge.core.flow import Share
from nedge.core.marks import Marks
from nedge.core.packet import reverse_key
from nedge.kernel import ctnetlink as ct
from nedge.kernel.ctnetlink import Connection
from nedge.kernel.errors import KernelError

RECEIVE_BUFFER = 16 << 20
_READ = 1 << 16
_EVENTS, _EVENT_SIZE = 16, 1 << 13
"""Events that are read at once, and the largest. (One has a few hundred bytes.)"""
_BATCH = 100
"""Messages that are sent in one go."""
_DUMP_SECONDS = 2.0
_CONTROL_SECONDS = 0.5
"""The kernel answers within the call; this is for when something is very wrong."""
_PARTS = 8
"""Of a dump, that wait to be taken; more are not read."""

_NETLINK_NETFILTER = 12
_GROUP_DESTROY = 3
_SOL_NETLINK, _ADD_MEMBERSHIP = 270, 1


class Conntrack:
    """A control socket and an event socket."""

    def __init__(self) -> None:
        self._control = _open()
        self._events = _open()
        self._events.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, _GROUP_DESTROY)
        self._events.setblocking(False)
        self._dumps = _open_for_dumps()
        self._parts: deque[bytes] = deque()
        self._arrived = os.eventfd(0, os.EFD_SEMAPHORE | os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        """Counts the parts of a dump that are there."""
        self._room = threading.Semaphore(_PARTS)
        self._reader: threading.Thread | None = None
        self._closed = False
        self._ends, self._live = ct.Reader(gone=True), ct.Reader(gone=False)
        self._dumping = False
        self.dump_failed = False
        """A dump ended with an error; the caller clears it."""
        self.failed_dumps = 0
        self._control.settimeout(_CONTROL_SECONDS)
        self.lost_events = 0
        """Times that the kernel had to throw events away since we were slow."""

    def close(self) -> None:
        self._closed = True
        if self._reader is not None:
            self._room.release()  # it may wait there
            self._reader.join()
        for sock in (self._control, self._events, self._dumps):
            sock.close()
        os.close(self._arrived)

    # Marks

    def set_mark(self, key: bytes, value: int, mask: int) -> bool:
        """Change the masked bits of a connection's mark, by either direction's key. False: there is none."""
        for candidate in (key, reverse_key(key)):
            if self._request(ct.set_mark(candidate, value, mask, ct.REQUEST | ct.ACK)):
                return True
        return False

    def set_marks(self, changes: Sequence[tuple[bytes, int]], mask: int) -> None:
        """Change the masked bits of many marks, by key and value; passes over connections that are gone."""
        for start in range(0, len(changes), _BATCH):
            batch = changes[start : start + _BATCH]
            # Without asking for answers: the kernel tells of those that it refuses, before `send` returns.
            self._control.send(b"".join(ct.set_mark(key, value, mask, ct.REQUEST) for key, value in batch))
            while select.select([self._control], [], [], 0)[0]:
                for code in ct.refusals(self._control.recv(_READ)):
                    if code != errno.ENOENT:
                        raise KernelError(f"conntrack refused a mark: {os.strerror(code)}")

    def find(self, key: bytes) -> Connection | None:
        """The connection as it is now, by either direction's key; None: there is none."""
        self._control.send(ct.message(ct.GET, ct.REQUEST, ct.family(key), ct.identity(key)))
        answer = self._control.recv(_READ)
        for code in ct.refusals(answer):
            if code != errno.ENOENT:
                raise KernelError(f"conntrack refused to tell of a connection: {os.strerror(code)}")
        return next((connection for _, connection in self._live.read(answer)), None)

    def _request(self, message: bytes) -> bool:
        self._control.send(message)
        answer = self._control.recv(_READ)
        (code,) = struct.unpack_from("=i", answer, 16)
        if code == 0:
            return True
        if -code == errno.ENOENT:
            return False
        raise KernelError(f"conntrack refused a request: {os.strerror(-code)}")

    # Ends

    def fileno(self) -> int:
        """Readable when connections have ended."""
        return self._events.fileno()

    def ended(self) -> list[Connection]:
        """Some connections that ended, with their final counters. Does not block.

        Not all at once, as packets may wait: `fileno` is readable while there are more.
        """
        found: list[Connection] = []
        for _ in range(_EVENTS):  # each comes as a message of its own
            try:
                data = self._events.recv(_EVENT_SIZE)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.lost_events += 1
                break
            found += [connection for _, connection in self._ends.read(data) if connection is not None]
        return found

    # Dumps

    @property
    def dump_fileno(self) -> int:
        """Readable when a part of a dump has arrived."""
        return self._arrived

    def start_dump(self, mark: int, mask: int) -> bool:
        """Ask for all connections whose masked mark is `mark`; `dumped` gives them in parts.

        As a side effect the kernel lets go of connections that have run out, which it else does late, up to
        minutes: their ends then arrive as events. False if a dump is under way, or none can be made now.

        The kernel walks its table within our system calls: tens of milliseconds, even if it finds nothing. So
        a thread makes those calls.
        """
        if self._dumping:
            return False
        attributes = ct.u32(ct.MARK, mark) + ct.u32(ct.MARK_MASK, mask)
        request = ct.message(ct.GET, ct.REQUEST | ct.DUMP, socket.AF_UNSPEC, attributes)
        reader = threading.Thread(target=self._read_dump, args=(request,), name="dump", daemon=True)
        try:
            reader.start()
        except RuntimeError:  # there are too many threads; later there may be fewer
            self.dump_failed, self.failed_dumps = True, self.failed_dumps + 1
            return False
        self._dumping, self._reader = True, reader
        return True

    def _read_dump(self, request: bytes) -> None:
        """The thread: one dump, to its end. An empty part stands for a failure."""
        part = b""
        try:
            self._room.acquire()
            self._dumps.send(request)
            while not self._closed:
                part = self._dumps.recv(_READ)
                self._put(part)
                if ct.ends_dump(part):
                    return
                self._room.acquire()
        except OSError:
            self._put(b"")

    def _put(self, part: bytes) -> None:
        self._parts.append(part)
        os.eventfd_write(self._arrived, 1)

    def dumped(self) -> list[Connection]:
        """The part of the dump that is there. Does not block."""
        try:
            os.eventfd_read(self._arrived)
        except BlockingIOError:
            return []
        part = self._parts.popleft()
        self._room.release()
        if not part:
            self._dump_ended(failed=True)
            return []
        found = []
        for kind, connection in self._live.read(part):
            if kind in (ct.DONE, ct.ERROR):
                self._dump_ended(failed=kind == ct.ERROR)
            elif connection is not None:
                found.append(connection)
        return found

    def _dump_ended(self, *, failed: bool) -> None:
        self._dumping = False
        if failed:  # what is left of it must not be taken for a part of the next
            self._dumps.close()
            self._dumps = _open_for_dumps()
        self.dump_failed |= failed
        self.failed_dumps += failed

    @property
    def dumping(self) -> bool:
        return self._dumping

    def clear_marks(self, marks: Marks, *, but: int | None = None) -> int:
        """Take our bits off every connection that has a share in them; says how many. Blocks.

        `but`: leave the connections of this generation alone.
        """
        cleared = 0
        one_bit = Share.PASS << marks.shift  # PASS and WATCH have it
        for mark, mask in ((one_bit, one_bit), (Share.DROP << marks.shift, marks.share_mask)):
            self.start_dump(mark, mask)
            found: list[Connection] = []
            while self._dumping and select.select([self._arrived], [], [], 2 * _DUMP_SECONDS)[0]:
                found += self.dumped()
            self.failed_dumps += self._dumping
            if but is not None:
                found = [one for one in found if marks.generation_of(one.mark) != but]
            for start in range(0, len(found), _BATCH):
                batch = found[start : start + _BATCH]
                # Without asking for answers: one that has ended meanwhile needs nothing.
                self._control.send(b"".join(ct.set_mark(one.key, 0, marks.mask, ct.REQUEST) for one in batch))
                cleared += len(batch)
        return cleared


def _open() -> socket.socket:
    try:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        sock.bind((0, 0))
        sock.setsockopt(socket.SOL_SOCKET, 33, RECEIVE_BUFFER)  # SO_RCVBUFFORCE
    except OSError as error:
        raise KernelError(f"conntrack cannot be reached ({error.strerror}): it takes root") from error
    return sock


def _open_for_dumps() -> socket.socket:
    sock = _open()
    sock.settimeout(_DUMP_SECONDS)
    return sock
