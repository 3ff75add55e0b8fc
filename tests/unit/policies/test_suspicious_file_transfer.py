from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import (
    Bench,
    Packet,
    Tcp,
    dns,
    http_request,
    http_response,
    load_script,
    make_flow,
    ping,
    tls,
)

STATUS = ["status_suspicious_file_transfer"]
PROGRAM = b"MZ\x90\0\x03\0\0\0\x04\0\0\0\xff\xff" + bytes(600)


def run(packets: list[Packet], library: str = "auto", config: str = "", **settings: Any) -> Bench:
    script = load_script("suspicious_file_transfer", settings=settings, config=config, library=library)
    script.judge(packets)
    return script


def fetch(
    *paths: str, body: bytes = b"some text", host: str = "dl.example.com", kind: str = "text/plain"
) -> list[Packet]:
    session = Tcp(dport=80).handshake()
    for path in paths:
        session.client(http_request(host, path))
        session.server(http_response(body).replace(b"text/html", kind.encode()))
    return session.fin().packets


@pytest.mark.parametrize(
    ("path", "extension"),
    [
        ("/setup.exe", "exe"),
        ("/a/b/Setup.EXE?id=5", "exe"),
        ("/x.msi#top", "msi"),
        ("/report.pdf.scr", "scr"),
        ("/lib.so.dll?file=a.txt", "dll"),
    ],
)
def test_names_of_programs(path: str, extension: str, library: str) -> None:
    judged = run(fetch(path), library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (30, 30, 10)
    assert judged.flow.verdict == "pass"
    (alert,) = judged.alerts
    assert alert.info["extension"] == extension
    assert alert.info["url"].startswith("dl.example.com/")


@pytest.mark.parametrize(
    "path", ["/", "/exe", "/setup.exe.txt", "/exe/", "/?file=setup.exe", "/a.exe/b", "/v1.2/x"]
)
def test_other_names(path: str, library: str) -> None:
    assert run(fetch(path), library).flow.statuses == []


def test_what_nobody_would_guess_from_its_name(library: str) -> None:
    packets = fetch("/download?id=3", body=PROGRAM)
    judged = run(packets, library, "dpi.http_answers = true", score=100)
    assert judged.flow.statuses == STATUS
    assert judged.alerts[0].info["content"] == "a program"
    assert judged.actions.index("drop") == 4  # the answer
    assert run(packets, library, score=100).flow.statuses == []  # answers pass unseen


def test_content_types() -> None:
    script = load_script("suspicious_file_transfer")
    flow = script.run(make_flow("HTTP", hostname="example.com"))
    assert flow.statuses == []
    script.run(flow.update(http_content_type="application/x-msdownload"), "protocolUpdated")
    assert flow.statuses == STATUS


def test_every_request_is_looked_at(library: str) -> None:
    judged = run(fetch("/index.html", "/logo.png", "/setup.exe"), library, score=100)
    assert judged.actions.index("drop") == 7  # the third request


@pytest.mark.parametrize(
    "packets",
    [
        fetch("/setup.exe", host="au.download.windowsupdate.com"),
        tls().packets,
        dns("setup.exe").packets,
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, library).flow.statuses == []


def test_the_lists_are_configured() -> None:
    assert run(fetch("/x.iso"), extensions=["iso"]).flow.statuses == STATUS
    assert run(fetch("/x.exe"), extensions=["iso"]).flow.statuses == []
    assert run(fetch("/x.exe"), ignore=["example.com"]).flow.statuses == []
