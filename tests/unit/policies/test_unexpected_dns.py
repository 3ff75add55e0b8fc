from __future__ import annotations

import struct

import pytest

from nedge.testing import (
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    Bench,
    ConfigError,
    Packet,
    Tcp,
    Udp,
    dns,
    dns_query,
    http_request,
    load_script,
    ping,
    tls,
)

SERVERS = 'servers = ["192.168.1.1", "9.9.9.0/24", "2001:db8:53::/48"]'
STATUS = ["status_unexpected_dns"]


def run(packets: list[Packet], settings: str = SERVERS, library: str = "auto") -> Bench:
    script = load_script("unexpected_dns", config=f"[scripts.unexpected_dns]\n{settings}", library=library)
    script.judge(packets)
    return script


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (CLIENT, SERVER),
        (CLIENT, "192.168.1.2"),
        (CLIENT, "9.9.10.1"),
        (CLIENT, "8.8.8.8"),
        (CLIENT6, SERVER6),
    ],
)
def test_other_resolvers(client: str, server: str, library: str) -> None:
    judged = run(dns("example.com", client=client, server=server).packets, SERVERS, library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (50, 10, 0)
    assert judged.flow.verdict == "pass"
    assert [alert.info for alert in judged.alerts] == [{"server": server, "query": "example.com"}]


@pytest.mark.parametrize(
    ("client", "server"),
    [
        (CLIENT, "192.168.1.1"),
        (CLIENT, "9.9.9.9"),
        (CLIENT, "9.9.9.0"),
        (CLIENT6, "2001:db8:53::1"),
        ("192.168.1.1", SERVER),  # the resolver itself asks the world
    ],
)
def test_expected_resolvers(client: str, server: str, library: str) -> None:
    judged = run(dns("example.com", client=client, server=server).packets, SERVERS, library)
    assert (judged.flow.statuses, judged.flow.scores) == ([], (0, 0, 0))


@pytest.mark.parametrize(
    "packets",
    [
        Udp(CLIENT, "224.0.0.251", 5353, 5353).client(dns_query("example.local")).packets,
        Udp(CLIENT6, "ff02::fb", 5353, 5353).client(dns_query("example.local")).packets,
        Udp(CLIENT, "224.0.0.252", 5355, 5355).client(dns_query("host")).packets,  # LLMNR
        Tcp(dport=80).handshake().client(http_request("example.com")).packets,
        tls(name="example.com").packets,
        ping(),
    ],
)
def test_only_dns_is_looked_at(packets: list[Packet], library: str) -> None:
    assert run(packets, SERVERS, library).flow.statuses == []


def test_without_servers_it_is_off() -> None:
    with pytest.raises(ConfigError, match="is off"):
        run([], "")


def test_what_is_no_address_is_told() -> None:
    with pytest.raises(ConfigError, match=r"unexpected_dns\.py.*'dns\.example'"):
        run([], 'servers = ["9.9.9.9", "dns.example"]')


def test_queries_over_tcp() -> None:
    message = dns_query("example.com")
    packets = Tcp(dport=53).handshake().client(struct.pack("!H", len(message)) + message).packets
    assert run(packets).flow.statuses == STATUS


def test_names_of_services_are_dns_too(library: str) -> None:
    # nDPI 4.2 calls a query for such a name DNS.Google.
    assert run(dns("www.google.com").packets, SERVERS, library).flow.statuses == STATUS


@pytest.mark.parametrize(("score", "verdict"), [(99, "pass"), (100, "drop")])
def test_it_blocks_if_so_configured(score: int, verdict: str) -> None:
    assert run(dns("example.com").packets[:1], f"{SERVERS}\nscore = {score}").flow.verdict == verdict
