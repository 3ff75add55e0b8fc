"""Passwords in the traffic reach no record, no table and no log."""

from __future__ import annotations

import base64
import json

import pytest
from kit import Packet, Tcp, Udp, http_request, http_response, judge, require_library
from structlog.testing import capture_logs

from nedge.core.secrets import without_secrets
from nedge.export.eve import to_json

SECRET = "hunter2hunter2"
ENCODED = [
    SECRET,
    base64.b64encode(f"me:{SECRET}".encode()).decode(),
    base64.b64encode(SECRET.encode()).decode(),
]


def request(line: str, *headers: str) -> bytes:
    return "\r\n".join([line, "Host: www.example.com", "User-Agent: x", *headers, "", ""]).encode()


def http(*requests: bytes, port: int = 80) -> list[Packet]:
    talk = Tcp(dport=port).handshake()
    for one in requests:
        talk.client(one).server(http_response())
    return talk.fin().packets


def lines(port: int, *turns: str) -> list[Packet]:
    """A protocol of lines; those of the server start with a digit, `+` or `*`."""
    talk = Tcp(dport=port).handshake()
    for turn in turns:
        data = f"{turn}\r\n".encode()
        talk = talk.server(data) if turn[0] in "0123456789+*" else talk.client(data)
    return talk.fin().packets


_BASIC = f"Basic {ENCODED[1]}"

TRAFFIC: dict[str, list[Packet]] = {
    "basic": http(request("GET /a HTTP/1.1", f"Authorization: {_BASIC}")),
    "proxy": http(request("GET http://www.example.com/a HTTP/1.1", f"Proxy-Authorization: {_BASIC}")),
    "bearer": http(request("GET /a HTTP/1.1", f"Authorization: Bearer {SECRET}")),
    "cookie": http(request("GET /a HTTP/1.1", f"Cookie: session={SECRET}")),
    "form": http(http_request("www.example.com", "/login", "POST", f"user=me&password={SECRET}".encode())),
    "query": http(request(f"GET /a?user=me&password={SECRET}&x=1 HTTP/1.1")),
    "query of the second": http(request("GET / HTTP/1.1"), request(f"GET /b?token={SECRET} HTTP/1.1")),
    "url": http(request(f"GET http://me:{SECRET}@www.example.com/a HTTP/1.1")),
    "url of a proxy": http(request(f"GET http://me:{SECRET}@www.example.com/a HTTP/1.1"), port=3128),
    "connect": http(request(f"CONNECT me:{SECRET}@www.example.com:443 HTTP/1.1"), port=8080),
    "host": http(f"GET / HTTP/1.1\r\nHost: me:{SECRET}@www.example.com\r\nUser-Agent: x\r\n\r\n".encode()),
    "url within a url": http(request(f"GET /go?to=ftp://me:{SECRET}@ftp.example/ HTTP/1.1")),
    "ftp": lines(
        21, "220 FTP server ready", "USER me", "331 Password", f"PASS {SECRET}", "230 ok", "SYST", "215 x"
    ),
    "pop": lines(110, "+OK POP3 ready", "USER me", "+OK", f"PASS {SECRET}", "+OK"),
    "imap": lines(143, "* OK IMAP4rev1 ready", f"a1 LOGIN me {SECRET}", "* OK", "a2 SELECT x", "* OK"),
    "smtp": lines(
        25, "220 mail.example ESMTP", "EHLO me", "250 AUTH PLAIN LOGIN", "AUTH LOGIN", "334 VXNlcm5hbWU6",
        "bWU=", "334 UGFzc3dvcmQ6", ENCODED[2], "235 ok",
    ),
    "smtp plain": lines(
        25, "220 mail.example ESMTP", "EHLO me", "250 AUTH PLAIN", f"AUTH PLAIN {ENCODED[1]}", "235 ok"
    ),
    "telnet": lines(23, "0 login:", "me", "0 Password:", SECRET, "0 ok"),
    "rtsp": http(f"DESCRIBE rtsp://me:{SECRET}@cam.example/1 RTSP/1.0\r\nCSeq: 1\r\n\r\n".encode(), port=554),
    "sip": Udp(dport=5060)
    .client(
        f"REGISTER sip:me:{SECRET}@sip.example SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.1\r\n"
        f"From: <sip:me:{SECRET}@sip.example>\r\n"
        f'Authorization: Digest username="me", response="{SECRET}"\r\n\r\n'.encode()
    )
    .packets,
    "redis": lines(6379, "*2", f"AUTH {SECRET}", "+OK"),
    "irc": lines(6667, f"PASS {SECRET}", "NICK me", "USER me 0 * :me", "0 001 me :Welcome"),
    "mqtt": Tcp(dport=1883)
    .handshake()
    .client(b"\x10\x2a\x00\x04MQTT\x04\xc2\x00\x3c\x00\x02id\x00\x02me\x00\x0e" + SECRET.encode())
    .packets,
}  # fmt: skip

NOISY = {
    "noisy": """
    from nedge.scripts import *
    def protocolDetected(flow, now, conf):
        info = {"info": flow.getInfo(), "url": flow.getHTTPInfo(), "all": flow.getFullInfo()}
        flow.triggerStatus(status_types.status_flow_risk, info, 10, 1, 1)
    protocolUpdated = protocolDetected
    def flowEnd(flow, now, conf):
        flow.triggerStatus(status_types.status_longlived, flow.getInfo(), 20, 1, 1)
        raise ValueError(flow.getInfo())
    """
}
"""A script that passes on all there is, and then raises."""


@pytest.mark.parametrize("watch", ["true", "false"])
@pytest.mark.parametrize("kind", TRAFFIC)
@pytest.mark.parametrize("library", ["system", "nfstream"])
def test_no_password_is_written(kind: str, library: str, watch: str) -> None:
    packets = TRAFFIC[kind]
    assert any(secret.encode() in packet.data for secret in ENCODED for packet in packets), "it is in there"
    with capture_logs() as logs:
        judged = judge(packets, f"dpi.watch_http = {watch}", NOISY, require_library(library))
    assert len(judged.flows) == 1
    assert judged.alerts
    written = b"".join(to_json(event) for event in judged.events).decode() + json.dumps(logs, default=str)
    assert [secret for secret in ENCODED if secret in written] == []


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("www.example.com/a?b=c&d=e", "www.example.com/a?b=c&d=e"),
        ("www.example.com/a?password=x", "www.example.com/a?password=***"),
        ("www.example.com/a?user=me&PassWord=x&b=c", "www.example.com/a?user=me&PassWord=***&b=c"),
        ("h/a?userpasswd=x;b=c", "h/a?userpasswd=***;b=c"),
        ("h/a?access_token=x#part", "h/a?access_token=***#part"),
        ("h/a?api_key=x&apikey=y&key=z", "h/a?api_key=***&apikey=***&key=***"),
        ("h/a?pass=x&compass=north&bypass=no", "h/a?pass=***&compass=north&bypass=no"),
        ("h/a?keyboard=x&monkey=y", "h/a?keyboard=x&monkey=y"),
        ("h/a?password=", "h/a?password=***"),
        ("http://me:x@h/a", "http://h/a"),
        ("me:x@h/a", "h/a"),
        ("me:p@ss@h/a", "h/a"),
        ("h/go?to=ftp://you:x@g/", "h/go?to=ftp://g/"),
        ("h/a@b?c=d", "h/a@b?c=d"),
        ("/@me", "/@me"),
        ("", ""),
    ],
)
def test_urls(url: str, shown: str) -> None:
    assert without_secrets(url) == shown
