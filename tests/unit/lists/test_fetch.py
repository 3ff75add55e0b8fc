"""Downloads from a server that may misbehave."""

from __future__ import annotations

import base64
import gzip
import socket
import ssl
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from list_server import ListServer, list_server

from nedge.lab.certificates import make_certificates
from nedge.lists import fetch as module
from nedge.lists.fetch import FetchError, fetch, redacted

LIMIT = 100_000


def refusal(url: str, **options: str) -> str:
    with pytest.raises(FetchError) as error:
        fetch(url, limit=LIMIT, **options)
    return str(error.value)


def test_a_download(server: ListServer) -> None:
    url = server.put("/list", "bad.example\n", headers={"ETag": '"1"', "Last-Modified": "yesterday"})
    assert fetch(url, limit=LIMIT) == (b"bad.example\n", '"1"', "yesterday")
    (headers,) = server.asked
    assert headers["User-Agent"].startswith("nedge/")
    assert headers["If-None-Match"] is headers["If-Modified-Since"] is headers["Authorization"] is None


@pytest.mark.parametrize("name", ["ETag", "Last-Modified"])
def test_what_is_known_is_not_sent_again(server: ListServer, name: str) -> None:
    url = server.put("/list", "x", headers={name: "v1"})
    known = {"etag": "v1"} if name == "ETag" else {"last_modified": "v1"}
    assert fetch(url, limit=LIMIT, **known).body is None
    assert server.statuses == [304]
    server.pages["/list"].headers[name] = "v2"
    assert fetch(url, limit=LIMIT, **known).body == b"x"


@pytest.mark.parametrize(
    ("status", "words"), [(404, "404"), (403, "403"), (500, "500"), (304, "304"), (204, "204")]
)
def test_other_answers(server: ListServer, status: int, words: str) -> None:
    assert words in refusal(server.put("/list", "x", status=status))


def test_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert "refused" in refusal(f"http://127.0.0.1:{port}/")


def test_a_name_that_does_not_exist() -> None:
    assert refusal("http://nowhere.invalid/")


def test_a_download_that_is_cut_short(server: ListServer) -> None:
    assert "IncompleteRead" in refusal(server.put("/list", "bad.example\n" * 10, promised=5000))


@pytest.mark.parametrize("packed", [False, True])
def test_a_download_that_is_too_large(server: ListServer, packed: bool) -> None:
    body = b"x" * (LIMIT + 1)
    url = server.put("/list", gzip.compress(body) if packed else body)
    assert "larger than 0.1 MB" in refusal(url)
    server.pages["/list"].body = gzip.compress(body[:-1]) if packed else body[:-1]
    assert fetch(url, limit=LIMIT).body == body[:-1]


def test_content_encoding_is_undone_within_the_limit(server: ListServer) -> None:
    url = server.put("/list", gzip.compress(b"a.example\n"), headers={"Content-Encoding": "gzip"})
    assert fetch(url, limit=LIMIT).body == b"a.example\n"
    server.pages["/list"].body = gzip.compress(b"0" * 50_000_000)
    assert "larger than" in refusal(url)


@pytest.mark.parametrize("damage", [lambda data: data[:-9], lambda data: data[:12] + b"\xff" * 20])
def test_packed_and_damaged(server: ListServer, damage) -> None:  # type: ignore[no-untyped-def]
    assert "packed" in refusal(server.put("/list", damage(gzip.compress(b"bad.example\n" * 1000))))


def test_a_server_that_drips(server: ListServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    url = server.put("/list", b"x" * 100, chunk=1)
    start = time.monotonic()
    assert "takes longer" in refusal(url)
    assert time.monotonic() - start < 4  # all of it would take 5 s


def test_a_server_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.2)
    monkeypatch.setattr(module, "_RETRIES", module._RETRIES.new(read=0))
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert "timed out" in refusal(f"http://127.0.0.1:{server.getsockname()[1]}/")


def test_redirects_are_followed(server: ListServer) -> None:
    server.put("/new", "x")
    url = server.put("/old", "", status=302, headers={"Location": "/new"})
    assert fetch(url, limit=LIMIT).body == b"x"
    assert refusal(server.put("/round", "", status=302, headers={"Location": "/round"}))


def test_a_password_goes_into_a_header_and_nowhere_else(server: ListServer) -> None:
    server.put("/list", "x")
    url = server.url.replace("//", "//me:secret@") + "/list"
    assert fetch(url, limit=LIMIT).body == b"x"
    assert server.asked[0]["Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
    assert "secret" not in refusal(url.replace("/list", "/none"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert "secret" not in refusal(f"http://me:secret@127.0.0.1:{free.getsockname()[1]}/?key=secret")


def test_the_proxy_of_the_environment(server: ListServer, monkeypatch: pytest.MonkeyPatch) -> None:
    server.put("http://lists.invalid/list", "by proxy")
    monkeypatch.setenv("http_proxy", server.url)
    assert fetch("http://lists.invalid/list", limit=LIMIT).body == b"by proxy"
    monkeypatch.setenv("no_proxy", "lists.invalid")
    assert refusal("http://lists.invalid/list")


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("/etc/list.txt", "/etc/list.txt"),
        ("https://lists.example/a/b.txt", "https://lists.example/a/b.txt"),
        ("https://me:secret@lists.example:8443/a", "https://***@lists.example:8443/a"),
        ("https://lists.example/a?key=secret#part", "https://lists.example/a?…"),
    ],
)
def test_how_sources_are_shown(source: str, shown: str) -> None:
    assert redacted(source) == shown


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("certificates")
    make_certificates(directory, ["localhost"])
    return directory


def https_server(certificates: Path, name: str) -> AbstractContextManager[ListServer]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / f"{name}.pem", certificates / f"{name}.key")
    return list_server(context)


def test_https(certificates: Path, server: ListServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    with https_server(certificates, "valid") as secure:
        url = secure.put("/list", "x")
        assert fetch(url, limit=LIMIT).body == b"x"
        away = secure.put("/away", "", status=302, headers={"Location": server.put("/list", "evil")})
        assert "https to http" in refusal(away)
        there = server.put("/there", "", status=302, headers={"Location": url})
        assert fetch(there, limit=LIMIT).body == b"x"
        here = secure.put("/here", "", status=302, headers={"Location": "/list"})
        assert fetch(here, limit=LIMIT).body == b"x"


@pytest.mark.parametrize("name", ["expired", "unknown"])
def test_https_with_a_certificate_that_is_none(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name == "expired":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates / "ca.pem"))
    with https_server(certificates, "expired" if name == "expired" else "valid") as secure:
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(secure.put("/list", "x"))
