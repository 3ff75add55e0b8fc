from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import CLIENT, SERVER, Bench, ConfigError, Packet, Tcp, dns, http_request, load_script, tls

STATUS = ["status_unexpected_smtp"]
SERVERS = ["192.168.1.25", "198.51.100.0/24"]
GREETING = [
    ("s", b"220 mail.example ESMTP Postfix\r\n"),
    ("c", b"EHLO me.example\r\n"),
    ("s", b"250-mail.example\r\n250 STARTTLS\r\n"),
    ("c", b"MAIL FROM:<a@me.example>\r\n"),
    ("s", b"250 2.1.0 Ok\r\n"),
    ("c", b"RCPT TO:<b@mail.example>\r\n"),
]


def run(packets: list[Packet], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("unexpected_smtp", settings={"servers": SERVERS} | settings, library=library)
    script.judge(packets)
    return script


def mail(server: str, client: str = CLIENT, port: int = 25) -> list[Packet]:
    return Tcp(client, server, dport=port).handshake().turns(GREETING).packets


@pytest.mark.parametrize(
    ("packets", "protocol"),
    [
        (mail(SERVER), "SMTP"),
        (mail("192.168.1.26"), "SMTP"),
        (mail(SERVER, port=587), "SMTP"),
        (mail(SERVER, port=2525), "SMTP"),
        (tls(name="mail.example", dport=465).packets, "SMTPS"),
    ],
)
def test_other_servers(packets: list[Packet], protocol: str, library: str) -> None:
    judged = run(packets, library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (50, 50, 0)
    assert judged.flow.verdict == "pass"
    assert [alert.info for alert in judged.alerts] == [{"server": judged.flow.server, "protocol": protocol}]


@pytest.mark.parametrize(
    "packets",
    [
        mail("192.168.1.25"),
        mail("198.51.100.7"),
        mail(SERVER, "192.168.1.25"),  # a listed server sends mail to the world
        tls(name="mail.example", dport=465, server="198.51.100.7").packets,
        tls(name="mail.example", dport=993).packets,
        Tcp(dport=80).handshake().client(http_request("mail.example")).packets,
        dns("mail.example").packets,
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, library).flow.statuses == []


def test_it_blocks_before_any_mail_is_sent(library: str) -> None:
    judged = run(mail(SERVER), library, score=100)
    assert judged.actions[-3:] == ["drop"] * 3  # from the sender's name on, at the latest


def test_without_servers_it_is_off() -> None:
    with pytest.raises(ConfigError, match="is off"):
        run([], servers=[])
