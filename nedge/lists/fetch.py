"""Downloads: a list's text, if there is news. Its size, its time and where it leads are not trusted."""

from __future__ import annotations

import time
import urllib.request
import zlib
from typing import NamedTuple
from urllib.parse import urlsplit, urlunsplit

import urllib3

from nedge import __version__

SILENCE = 30.0
"""Seconds that a server may be silent."""
PATIENCE = 300.0
"""Seconds that a whole download may take."""
_RETRIES = urllib3.Retry(connect=1, read=1, redirect=5, status=0, other=0, backoff_factor=0.5)
_CHUNK = 1 << 16
_GZIP = b"\x1f\x8b"


class FetchError(Exception):
    """A download failed. The message says why, without credentials."""


class Fetched(NamedTuple):
    """What a server sent."""

    body: bytes | None
    """None: nothing is new."""
    etag: str = ""
    last_modified: str = ""


def fetch(url: str, *, limit: int, etag: str = "", last_modified: str = "") -> Fetched:
    """Ask for a list, unless it is still the one with this tag or of this date.

    limit: bytes, unpacked. Raises FetchError.
    """
    headers = urllib3.make_headers(user_agent=f"nedge/{__version__}", accept_encoding="gzip")
    if etag:
        headers["If-None-Match"] = etag
    if last_modified:
        headers["If-Modified-Since"] = last_modified
    parts = urlsplit(url)
    if parts.username:
        headers |= urllib3.make_headers(basic_auth=f"{parts.username}:{parts.password or ''}")
    deadline = time.monotonic() + PATIENCE
    try:
        with _pool(parts.scheme, parts.hostname or "") as pool:
            response = pool.request("GET", _bare(url), headers=headers, preload_content=False)
            try:
                if parts.scheme == "https" and not (response.url or url).startswith(("https:", "/")):
                    raise FetchError("it leads from https to http")
                if response.status == 304 and (etag or last_modified):
                    return Fetched(None)
                if response.status != 200:
                    raise FetchError(f"the server answers {response.status} {response.reason or ''}".rstrip())
                body = _read(response, limit, deadline)
            finally:
                response.close()
    except (urllib3.exceptions.HTTPError, OSError, ValueError) as error:
        raise FetchError(_why(error)) from None
    return Fetched(body, response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""))


def redacted(source: object) -> str:
    """A source as it may be shown: a URL without what may be a password or a key in it."""
    parts = urlsplit(str(source))
    if not parts.netloc:
        return str(source)
    _user, at, host = parts.netloc.rpartition("@")
    return urlunsplit((parts.scheme, f"***@{host}" if at else host, parts.path, parts.query and "…", ""))


def _bare(url: str) -> str:
    """Without user and password, which go into a header."""
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _pool(scheme: str, host: str) -> urllib3.PoolManager:
    """Straight, or by the proxy that the environment names."""
    timeout = urllib3.Timeout(connect=10, read=SILENCE)
    proxy = urllib.request.getproxies().get(scheme)
    if proxy and not urllib.request.proxy_bypass(host):
        return urllib3.ProxyManager(proxy, timeout=timeout, retries=_RETRIES)
    return urllib3.PoolManager(timeout=timeout, retries=_RETRIES)


def _read(response: urllib3.BaseHTTPResponse, limit: int, deadline: float) -> bytes:
    body = bytearray()
    while chunk := response.read1(_CHUNK, decode_content=True):
        body += chunk
        _check_size(len(body), limit)
        if time.monotonic() > deadline:
            raise FetchError(f"it takes longer than {PATIENCE:.0f} s")
    if body.startswith(_GZIP):
        unpacker = zlib.decompressobj(wbits=31)
        try:
            body = bytearray(unpacker.decompress(body, limit + 1))
        except zlib.error as error:
            raise FetchError(f"it cannot be unpacked: {error}") from None
        _check_size(len(body), limit)
        if not unpacker.eof:
            raise FetchError("it is packed, and cut short")
    return bytes(body)


def _check_size(size: int, limit: int) -> None:
    if size > limit:
        raise FetchError(f"it is larger than {limit / 1e6:g} MB (lists.max_megabytes)")


def _why(error: BaseException) -> str:
    if isinstance(error, urllib3.exceptions.MaxRetryError) and error.reason:
        error = error.reason
    return f"{type(error).__name__}: {error}"
