from __future__ import annotations

import pytest

from nedge.testing import (
    Bench,
    Packet,
    Tcp,
    client_hello,
    dns,
    http_request,
    load_script,
    ping,
    quic_initial,
    tls,
)


def run(packets: list[Packet], toml: str = "", library: str = "auto") -> Bench:
    script = load_script("tls_old_version", config=toml, library=library)
    script.judge(packets)
    return script


@pytest.mark.parametrize(("version", "number"), [("1.0", 769), ("1.1", 770)])
@pytest.mark.parametrize("name", ["example.com", None])
def test_old_versions(version: str, number: int, name: str | None, library: str) -> None:
    judged = run(tls(version, name).packets, "", library)
    assert judged.flow.statuses == ["status_tls_old_protocol_version"]
    assert judged.flow.scores == (30, 10, 10)
    assert judged.flow.verdict == "pass"
    assert [alert.info for alert in judged.alerts] == [{"tls_version": number}]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("name", ["example.com", None])
def test_new_versions(version: str, name: str | None, library: str) -> None:
    judged = run(tls(version, name).packets, "", library)
    assert (judged.flow.statuses, judged.flow.scores) == ([], (0, 0, 0))


def test_a_client_that_still_offers_old_versions_is_fine(library: str) -> None:
    assert run(tls("1.3", offered="1.3").packets, "", library).flow.statuses == []
    hello = Tcp().handshake().client(client_hello("example.com", "1.0", "1.3")).packets
    assert run(hello, "", library).flow.statuses == []


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_an_old_server_that_a_new_client_gives_in_to(version: str, library: str) -> None:
    judged = run(tls(version, offered="1.2").packets, "", library)
    assert judged.flow.statuses == ["status_tls_old_protocol_version"]


def test_old_versions_on_mail_ports(library: str) -> None:
    assert run(tls("1.0", dport=993).packets, "", library).flow.statuses == [
        "status_tls_old_protocol_version"
    ]


@pytest.mark.parametrize(
    "packets",
    [
        quic_initial("example.com"),
        dns("example.com").packets,
        Tcp(dport=80).handshake().client(http_request("example.com")).packets,
        Tcp(dport=443).handshake().packets,
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, "", library).flow.statuses == []


@pytest.mark.parametrize(
    ("minimum", "fires"),
    [("1.0", []), ("1.1", ["1.0"]), ("1.2", ["1.0", "1.1"]), ("1.3", ["1.0", "1.1", "1.2"])],
)
def test_the_minimum_is_configured(minimum: str, fires: list[str]) -> None:
    toml = f'[scripts.tls_old_version]\nminimum = "{minimum}"'
    assert [
        version for version in ("1.0", "1.1", "1.2") if run(tls(version).packets, toml).flow.statuses
    ] == fires


def test_tls_1_3_is_known_once_the_server_has_answered() -> None:
    # Its ClientHello looks like 1.2 (RFC 8446, 4.1.2).
    judged = run(tls("1.3").packets, '[scripts.tls_old_version]\nminimum = "1.2"')
    assert judged.flow.statuses == []


def test_it_blocks_if_so_configured(library: str) -> None:
    judged = run(tls("1.0").packets, "[scripts.tls_old_version]\nscore = 100", library)
    assert judged.actions.index("drop") == 3  # the ClientHello
