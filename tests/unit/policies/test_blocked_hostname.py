from __future__ import annotations

import struct

import pytest

from nedge.testing import (
    Bench,
    ConfigError,
    Packet,
    Tcp,
    client_hello,
    dns,
    dns_query,
    http_request,
    http_response,
    load_script,
    ping,
    quic_initial,
    tls,
)

DOMAINS = 'domains = ["blocked.example", "*.Star.Example", "sub.parent.example."]'


def run(packets: list[Packet], settings: str = DOMAINS, library: str = "auto") -> Bench:
    script = load_script(
        "blocked_hostname", config=f"[scripts.blocked_hostname]\n{settings}", library=library
    )
    script.judge(packets)
    return script


def web(*hosts: str) -> list[Packet]:
    session = Tcp(dport=80).handshake()
    for host in hosts:
        session.client(http_request(host)).server(http_response())
    return session.packets


BLOCKED = {
    "blocked.example": "blocked.example",
    "www.blocked.example": "blocked.example",
    "a.b.c.blocked.example": "blocked.example",
    "BLOCKED.Example": "blocked.example",
    "www.star.example": "star.example",
    "sub.parent.example": "sub.parent.example",
    "x.sub.parent.example": "sub.parent.example",
}
FREE = [
    "example",
    "blocked.example.com",
    "notblocked.example",
    "blocked-example",
    "parent.example",
    "other.parent.example",
]


@pytest.mark.parametrize(("name", "entry"), BLOCKED.items())
def test_blocked_names(name: str, entry: str, library: str) -> None:
    for packets, dropped_at in (
        (dns(name).packets, 0),
        (quic_initial(name), 0),
        (web(name), 3),
        (tls(name=name).packets, 3),
        (Tcp().handshake().client(client_hello(name), 100).packets, None),
    ):
        judged = run(packets, DOMAINS, library)
        assert judged.flow.statuses == ["status_blacklisted"]
        assert judged.flow.scores == (100, 0, 0)
        assert judged.flow.verdict == "drop"
        assert judged.alerts[0].info == {"host": name.lower(), "blocked_by": entry}
        if dropped_at is not None:
            assert judged.actions.index("drop") == dropped_at


@pytest.mark.parametrize("name", FREE)
def test_free_names(name: str, library: str) -> None:
    for packets in (dns(name).packets, quic_initial(name), web(name), tls(name=name).packets):
        judged = run(packets, DOMAINS, library)
        assert (judged.flow.statuses, judged.flow.scores, judged.flow.verdict) == ([], (0, 0, 0), "pass")


@pytest.mark.parametrize("packets", [ping(), tls(name=None).packets, Tcp().handshake().packets])
def test_flows_without_a_name(packets: list[Packet]) -> None:
    assert run(packets).flow.statuses == []


@pytest.mark.parametrize("settings", ["", "domains = []", 'domains = [""]'])
def test_without_names_it_is_off(settings: str) -> None:
    with pytest.raises(ConfigError, match="is off"):
        run([], settings)


def test_each_dns_query_is_judged(library: str) -> None:
    names = ("a.example", "blocked.example", "b.example", "www.blocked.example")
    queries = [packet for n, packet in enumerate(dns(*names).packets) if n % 2 == 0]
    assert run(queries, DOMAINS, library).actions == ["pass", "drop", "pass", "drop"]


def test_dns_queries_over_tcp(library: str) -> None:
    session = Tcp(dport=53).handshake()
    for name in ("a.example", "blocked.example"):
        message = dns_query(name)
        session.client(struct.pack("!H", len(message)) + message)
    assert run(session.packets, DOMAINS, library).actions == ["pass"] * 4 + ["drop"]


def test_each_http_request_is_judged(library: str) -> None:
    packets = web("a.example", "b.example", "blocked.example", "a.example")
    # handshake, two requests and answers; what follows the third request is dropped with it
    assert run(packets, DOMAINS, library).actions == ["pass"] * 7 + ["drop"] * 4


def test_with_a_port_in_the_host_header(library: str) -> None:
    assert run(web("blocked.example:8080"), DOMAINS, library).flow.verdict == "drop"


def test_the_status_blocks_whatever_the_score() -> None:
    assert run(dns("blocked.example").packets, f"{DOMAINS}\nscore = 1").flow.verdict == "drop"
    alert_only = f"{DOMAINS}\nscore = 1\n[verdict]\nblock_statuses = []"
    judged = run(dns("blocked.example").packets, alert_only)
    assert (len(judged.alerts), judged.flow.verdict) == (1, "pass")
