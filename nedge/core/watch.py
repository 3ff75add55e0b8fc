"""Watching flows that name many things: every DNS query, every request of a plain HTTP connection.

A watch is fed what one side sends, in order, and gives each request as it completes. Framing follows RFC 1035
(section 4.2.2 for TCP) and RFC 9112. What cannot be framed is skipped until the next recognisable start.
"""

from __future__ import annotations

import re
from typing import Final

from nedge.core.cursor import Cursor
from nedge.core.packet import TCP, Packet, ahead
from nedge.core.secrets import without_secrets

MAX_HEAD: Final = 64 * 1024
"""An HTTP request head, or a DNS message, that is longer is not waited for."""


class Request:
    """One thing that a client asks for."""

    __slots__ = ("head", "method", "name", "query_type", "url", "user_agent")

    def __init__(
        self,
        name: str,
        head: bytes,
        url: str = "",
        method: str = "",
        user_agent: str = "",
        query_type: int = 0,
    ) -> None:
        self.name = name
        """Host or queried name, lower case, no port; empty if the request names none."""
        self.head = head
        """The request as sent: HTTP head, or DNS message (with its length prefix over TCP)."""
        self.url = url
        """HTTP: host and path, as nDPI writes it."""
        self.method = method
        self.user_agent = user_agent
        self.query_type = query_type


# HTTP

_REQUEST_LINE: Final = re.compile(rb"([A-Z][A-Z-]{1,19}) +([^ \r\n]{1,65000}) +HTTP/1\.[0-9]\r?\n")
"""As servers take it, some of which mind neither several spaces nor a later minor version."""
REQUEST_START: Final = re.compile(rb"[\r\n]*(?:[A-Z][A-Z-]{0,19}(?: |\Z)|\Z)")
"""How a request starts, as far as its first bytes are there."""
_CHUNK_SIZE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;|\r?\Z)")
_NUMBER: Final = re.compile(rb"0*([0-9]*)")
_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)")
"""A target that is a whole URL, up to its path."""
_FOLD: Final = re.compile(rb"\r?\n[ \t]+")
"""Before a line that continues a header (RFC 9112, 5.2)."""
_CODING: Final = b"transfer-encoding"
_HEADERS: Final = {name[:4]: name for name in (b"host", b"user-agent", b"content-length", _CODING)}
"""Those that matter here, by their beginnings."""
_SPACE: Final = 0x20
_TAB: Final = 0x09
_COLON: Final = 0x3A


class HttpWatch:
    """The requests of one plain HTTP/1 connection, pipelined ones and split ones too."""

    __slots__ = ("_buffer", "_chunked", "_cursor", "_lost", "_skip", "_trailers")

    def __init__(self, start: int = -1) -> None:
        """`start`: number of the client's first byte, if known."""
        self._cursor = Cursor(start)
        self._buffer = b""
        self._skip = 0  # body bytes still to come
        self._chunked = False  # between chunks of a body
        self._trailers = False  # behind its last chunk
        self._lost = False  # framing unknown: wait for a segment that starts a request

    @property
    def between_requests(self) -> bool:
        """Whether all of the latest request was seen, and nothing of the next."""
        return not (self._skip or self._chunked or self._trailers or self._lost or self._buffer)

    def is_blank(self, packet: Packet) -> bool:
        """Whether a segment and all before it are empty lines, as may be in front of a request."""
        said = self._buffer + packet.payload_bytes()
        return not self._lost and not said.strip(b"\r\n")

    def skips(self, packet: Packet) -> bool:
        """Whether it is all the same what a segment holds: it is in a body, or framing is lost before it."""
        if self._lost:
            return not _REQUEST_LINE.match(packet.payload_bytes().lstrip(b"\r\n"))
        if not self._skip:
            return False
        at = ahead(packet.seq, self._cursor.top)
        return at >= 0 and at + packet.payload_length <= self._skip

    def feed(self, packet: Packet) -> list[Request]:
        """Requests that this packet completes. Retransmitted bytes are not looked at twice."""
        data, missing, uncaptured = self._cursor.take(packet)
        if not data and not uncaptured:
            return []
        if missing:
            self._jump(missing)
        requests = self._parse(data)
        if uncaptured:
            self._jump(uncaptured)
        return requests

    def _jump(self, count: int) -> None:
        """Bytes that were never seen."""
        if count <= self._skip:
            self._skip -= count
        else:
            self._lose()

    def _lose(self) -> None:
        self._lost, self._buffer = True, b""
        self._chunked = self._trailers = False
        self._skip = 0

    def _parse(self, data: bytes) -> list[Request]:
        requests: list[Request] = []
        if self._lost:
            data = data.lstrip(b"\r\n")  # as may be in front of a request
            if not _REQUEST_LINE.match(data):
                return requests
            self._lost = False
        searched = max(0, len(self._buffer) - 3)  # no head ends before there
        data = self._buffer + data
        self._buffer = b""
        while data:
            if self._skip:
                skipped = min(self._skip, len(data))
                self._skip -= skipped
                data = data[skipped:]
            elif self._chunked or self._trailers:
                line, newline, rest = data.partition(b"\n")
                if not newline:
                    break
                data = rest
                if self._chunked:
                    self._next_chunk(line)
                elif not line.strip():
                    self._trailers = False
            else:
                end = _head_end(data, searched)
                if not end:
                    if not REQUEST_START.match(data):  # another protocol, after CONNECT or Upgrade
                        self._lose()
                        return requests
                    break
                head, data, searched = data[:end], data[end:], 0
                if head[0] <= 0x20:
                    head = head.lstrip(b"\r\n")
                    if not head.strip():  # empty lines before a request
                        continue
                self._request(head, requests)
            if self._lost:
                return requests
        if len(data) > MAX_HEAD:
            self._request(data, requests)
            self._lose()
        else:
            self._buffer = data
        return requests

    def _next_chunk(self, line: bytes) -> None:
        """A chunk-size line: skip the chunk. Behind the last one, of size 0, come trailers."""
        size = _CHUNK_SIZE.match(line)
        if not size:
            self._lose()
        elif count := int(size[1], 16):
            self._skip = count + 2  # and its CRLF
        else:
            self._chunked, self._trailers = False, True

    def _request(self, head: bytes, requests: list[Request]) -> None:
        line = _REQUEST_LINE.match(head)
        if not line:  # lines, but none of HTTP/1: SMTP, RTSP, what follows an Upgrade
            self._lose()
            return
        method: bytes
        target: bytes
        method, target = line.groups()
        headers = _headers(head)
        length = headers.get(b"content-length")
        encoding = headers.get(_CODING)
        if encoding and encoding.lower().rpartition(b",")[2].strip() == b"chunked":
            self._chunked = True
        elif length and (size := _NUMBER.fullmatch(length)):
            self._skip = int(size[1][:20] or b"0")
        name, path = _host_name(headers.get(b"host", b"")), target
        if method == b"CONNECT":
            name, path = _host_name(target), b""
        elif not target.startswith(b"/") and (absolute := _ABSOLUTE.match(target)):
            # It wins over Host (RFC 9112, 3.2.2), but not with every server: both count.
            other, name, path = name, _host_name(absolute[1]) or name, target[absolute.end() :]
            if other and other != name:
                requests.append(_made(other, head, path, method, headers))
        requests.append(_made(name, head, path, method, headers))


def _made(name: str, head: bytes, path: bytes, method: bytes, headers: dict[bytes, bytes]) -> Request:
    return Request(
        name=name,
        head=head,
        url=without_secrets(name + path.decode("latin-1")),
        method=method.decode("latin-1"),
        user_agent=headers.get(b"user-agent", b"").decode("latin-1"),
    )


def _head_end(data: bytes, start: int) -> int:
    """Where the first head ends that does not end before `start`: behind an empty line; 0 if nowhere."""
    at = data.find(b"\n\r\n", start)
    bare = data.find(b"\n\n", start, at if at >= 0 else len(data))
    return bare + 2 if bare >= 0 else at + 3 if at >= 0 else 0


def _headers(head: bytes) -> dict[bytes, bytes]:
    """A head's headers that matter here, by their names in lower case.

    Of several of a name the first that is not empty; but all codings, which are one list (RFC 9110, 5.3).
    """
    headers: dict[bytes, bytes] = {}
    at = 0
    for line in head.lower().split(b"\n"):
        if at and line and line[0] in (_SPACE, _TAB):
            return _headers(_FOLD.sub(b" ", head))
        name = _HEADERS.get(line[:4])
        if name and at and line.startswith(name):  # the line at 0 is the request's
            value = _value(head, at + len(name), at + len(line))
            if not value:
                pass
            elif name not in headers:
                headers[name] = value
            elif name == _CODING:
                headers[name] += b"," + value
        at += len(line) + 1
    return headers


def _value(head: bytes, at: int, end: int) -> bytes | None:
    """The value of a header, behind its name; None if no colon follows: it has a longer name."""
    while at < end and head[at] in (_SPACE, _TAB):
        at += 1
    if at == end or head[at] != _COLON:
        return None
    at += 1
    while at < end and head[at] in (_SPACE, _TAB):
        at += 1
    return head[at:end].partition(b"\r")[0].rstrip()


def _host_name(host: bytes) -> str:
    """`user@Example.com:8080` -> `example.com`, `[::1]:80` -> `::1`."""
    text = host.decode("latin-1").strip().lower().rpartition("@")[2]
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


# DNS


def parse_dns_query(message: bytes) -> tuple[str, int] | None:
    """First question of a DNS query: its name (lower case, non-printables as `?`) and type; or None."""
    if len(message) < 17 or message[2] & 0x80 or not (message[4] or message[5]):
        return None
    labels = []
    at = 12
    for _ in range(128):
        if at >= len(message):
            return None
        length = message[at]
        at += 1
        if length == 0:
            break
        if length > 63:  # a compression pointer: nothing stands before the first question to point to
            return None
        labels.append(message[at : at + length])
        at += length
    if at + 2 > len(message):
        return None
    name = b".".join(labels).decode("latin-1").lower()
    if not name.isascii() or not name.isprintable():
        name = "".join(char if " " <= char < "\x7f" else "?" for char in name)
    return name, message[at] << 8 | message[at + 1]


class DnsWatch:
    """The queries of one UDP 5-tuple, or of one TCP connection."""

    __slots__ = ("_buffer", "_cursor", "reply_code")

    def __init__(self, start: int = -1) -> None:
        """`start`: number of the client's first byte over TCP, if known."""
        self.reply_code = 0
        """RCODE of the latest answer, over UDP."""
        self._cursor = Cursor(start)
        self._buffer = b""

    def feed(self, packet: Packet) -> list[Request]:
        """Requests that this packet completes. Retransmitted bytes are not looked at twice."""
        if packet.proto != TCP:
            message = packet.payload_bytes()
            if len(message) > 3 and message[2] & 0x80:
                self.reply_code = message[3] & 0x0F
                return []
            query = parse_dns_query(message)
            return [Request(name=query[0], query_type=query[1], head=message)] if query else []
        data, missing, uncaptured = self._cursor.take(packet)
        if missing:  # message borders are lost; segments usually start a message
            self._buffer = b""
        data = self._buffer + data
        requests = []
        while len(data) >= 2:
            end = 2 + (data[0] << 8 | data[1])
            if len(data) < end:
                break
            query = parse_dns_query(data[2:end])
            if query:
                requests.append(Request(name=query[0], query_type=query[1], head=data[:end]))
            data = data[end:]
        self._buffer = data
        if uncaptured:
            self._buffer = b""
        return requests


Watch = HttpWatch | DnsWatch
"""Compiled, a call of one of these is quicker than one by a protocol."""
