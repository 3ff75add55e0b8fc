from __future__ import annotations

import base64
import hashlib
import struct

import pytest

from nedge.testing import (
    CLIENT,
    T0,
    Bench,
    Packet,
    Tcp,
    Udp,
    dns,
    dns_query,
    http_request,
    load_script,
    merge,
    ping,
    tls,
)

POLICY = "dns_exfiltration"


def run(packets: list[Packet], settings: str = "", library: str = "auto") -> Bench:
    script = load_script(POLICY, config=f"[scripts.{POLICY}]\n{settings}", library=library)
    script.judge(packets)
    return script


def ask(*names: str, client: str = CLIENT, start: float = T0, gap: float = 0.01) -> list[Packet]:
    """Queries without answers, on one 5-tuple."""
    talk = Udp(client, start=start, gap=gap)
    for number, name in enumerate(names):
        talk.client(dns_query(name, number=number))
    return talk.packets


def found(judged: Bench) -> list[set[str]]:
    """What each alert found, beside the query."""
    return [set(alert.info) - {"query"} for alert in judged.alerts]


def named(length: int, labels: int = 4) -> str:
    """A name of so many characters and labels, that repeats itself, below example.com."""
    text = "ab" * 128
    body = length - len(".example.com") - (labels - 3)
    size = -(-body // (labels - 2))
    parts = [text[start : start + min(size, body - start)] for start in range(0, body, size)]
    name = ".".join([*parts, "example", "com"])
    assert (len(name), name.count(".") + 1) == (length, labels)
    return name


def encoded(size: int, domain: str = "t.example.com") -> str:
    """What a tunnel asks: data in base32, in labels of at most 50 characters."""
    data = b"".join(hashlib.sha256(bytes([n])).digest() for n in range(8))[:size]
    text = base64.b32encode(data).decode().lower().rstrip("=")
    return ".".join([*(text[start : start + 50] for start in range(0, len(text), 50)), domain])


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (encoded(60), {"entropy"}),
        (encoded(120), {"length", "entropy"}),
        (named(121, 5), {"length"}),
        (named(100, 11), {"labels"}),
    ],
)
def test_suspicious_queries(name: str, what: set[str], library: str) -> None:
    judged = run(ask(name), "", library)
    assert judged.flow.statuses == ["status_dns_data_exfiltration"]
    assert judged.flow.scores == (50, 50, 0)
    assert judged.flow.verdict == "pass"
    assert found(judged) == [what]
    assert judged.alerts[0].info["query"] == name


ORDINARY = [
    "www.example.com",
    "example.co.uk",
    "localhost",
    "r4---sn-4g5edn6r.googlevideo.com",
    "e6858.dscx.akamaiedge.net",
    "ec2-203-0-113-25.compute-1.amazonaws.com",
    "dualstack.python.map.fastly.net",
    "7a1f3c9e5b2d4f6a8c0e1b3d5f7a9c2e.cloudfront.net",
    "d41d8cd98f00b204e9800998ecf8427e.cdn.example.net",
    "_ldap._tcp.dc._msdcs.corp.example.com",
    "selector1._domainkey.example.com",
    "5.113.0.203.in-addr.arpa",
    "b.a.9.8.7.6.5.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.0.8.b.d.0.1.0.0.2.ip6.arpa",
    "a-very-long-but-readable-host-name-of-a-cloud-service.eu-central-1.elb.amazonaws.com",
]


@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_queries(name: str, library: str) -> None:
    judged = run(dns(name).packets, "", library)
    assert (judged.flow.statuses, judged.flow.scores) == ([], (0, 0, 0))


@pytest.mark.parametrize(
    "packets",
    [
        tls(name=encoded(60)).packets,
        Tcp(dport=80).handshake().client(http_request(encoded(60))).packets,
        ping(),
    ],
)
def test_only_dns_is_looked_at(packets: list[Packet]) -> None:
    assert run(packets).flow.statuses == []


@pytest.mark.parametrize(("length", "fires"), [(119, False), (120, False), (121, True), (200, True)])
def test_the_length_to_the_character(length: int, fires: bool) -> None:
    assert bool(run(ask(named(length, 6))).flow.statuses) is fires


@pytest.mark.parametrize(("labels", "fires"), [(9, False), (10, False), (11, True), (20, True)])
def test_the_labels_to_the_label(labels: int, fires: bool) -> None:
    assert bool(run(ask(named(100, labels))).flow.statuses) is fires


@pytest.mark.parametrize(
    ("text", "fires"),
    [
        ("0123456789abcdef" * 2 + "0123456", False),  # 39 characters
        ("0123456789abcdef" * 2 + "01234567", False),  # 40: 16 different ones are 4 bits at most
        ("0123456789abcdefg" * 3, True),  # 17 different ones, equally often: 4.09 bits
        ("0123456789abcdefg" * 2, False),  # but only 34 characters
    ],
)
def test_randomness(text: str, fires: bool) -> None:
    assert bool(run(ask(f"{text}.example.com")).flow.statuses) is fires


def test_limits_are_configured() -> None:
    assert found(run(ask("abc.example.com"), "max_length = 14")) == [{"length"}]
    assert found(run(ask("abc.example.com"), "max_labels = 2")) == [{"labels"}]
    assert found(run(ask("abc.example.com"), "min_random = 3\nmax_entropy = 1.5")) == [{"entropy"}]
    assert run(ask(encoded(60)), 'ignore = ["example.com"]').flow.statuses == []
    assert run(ask(encoded(60)), 'ignore = ["other.example"]').flow.statuses == [
        "status_dns_data_exfiltration"
    ]


def test_every_query_of_a_flow_is_looked_at(library: str) -> None:
    judged = run(ask("www.example.com", "example.org", encoded(60)), "", library)
    assert judged.flow.statuses == ["status_dns_data_exfiltration"]


def test_queries_over_tcp(library: str) -> None:
    message = dns_query(encoded(60))
    session = Tcp(dport=53).handshake().client(struct.pack("!H", len(message)) + message)
    assert run(session.packets, "", library).flow.statuses == ["status_dns_data_exfiltration"]


# The volume: 10 characters a query


def texts(count: int, first: int = 0) -> list[str]:
    return [f"{first + n:05}aaaaa" for n in range(count)]


def below(domain: str, count: int, first: int = 0) -> list[str]:
    return [f"{text}.{domain}" for text in texts(count, first)]


@pytest.mark.parametrize(("count", "fires"), [(9, False), (10, False), (11, True)])
def test_the_volume_to_the_character(count: int, fires: bool) -> None:
    judged = run(ask(*below("example.com", count)), "max_volume = 100")
    assert bool(judged.flow.statuses) is fires
    assert found(judged) == ([{"volume"}] if fires else [])


def test_the_volume_is_over_all_flows_of_a_client() -> None:
    names = below("example.com", 11)
    flows = [dns(name, sport=5000 + n, start=T0 + n).packets for n, name in enumerate(names)]
    judged = run(merge(*flows), "max_volume = 100")
    assert [bool(flow.score) for flow in judged.flows].count(True) == 1


@pytest.mark.parametrize(
    "packets",
    [
        ask(*below("example.com", 10), *below("example.org", 10)),  # another domain
        merge(ask(*below("example.com", 10)), ask(*below("example.com", 10, 50), client="192.168.1.11")),
        ask(*below("example.com", 10) * 5),  # the same names again
        ask(*below("example.com", 10)) + ask(*below("example.com", 10, 50), start=T0 + 60),  # a minute later
        ask(*below("example.co.uk", 10), *below("other.co.uk", 10, 50)),  # co.uk is no domain
    ],
)
def test_what_does_not_count_together(packets: list[Packet]) -> None:
    judged = run(packets, "max_volume = 100")
    assert judged.alerts == []


@pytest.mark.parametrize("domain", ["example.com", "example.co.uk"])
def test_subdomains_count_together(domain: str) -> None:
    names = [f"{name.partition('.')[0]}.sub{n}.{domain}" for n, name in enumerate(below(domain, 8))]
    assert run(ask(*names), "max_volume = 100").flow.statuses == ["status_dns_data_exfiltration"]


def test_memory_is_of_this_minute_only() -> None:
    script = load_script(POLICY)
    memory = script.variables
    script.feed(ask(*below("example.com", 20)))
    assert len(memory["seen"]) == 20
    script.feed(dns("www.example.net", start=T0 + 61).packets)
    assert memory["seen"] == {(f"{CLIENT}@0", "example.net", "www")}
    assert dict(memory["totals"]) == {(f"{CLIENT}@0", "example.net"): 3}
    memory["MAX_SEEN"] = 5
    script.feed(ask(*below("example.com", 20), start=T0 + 62))
    assert len(memory["seen"]) <= 5


def test_it_blocks_if_so_configured() -> None:
    judged = run(ask("www.example.com", encoded(60), "www.example.org"), "score = 100")
    assert judged.actions == ["pass", "drop", "pass"]
