from __future__ import annotations

import pytest

from nedge.testing import (
    T0,
    Bench,
    Packet,
    Tcp,
    certificate,
    client_hello,
    dns,
    http_request,
    load_script,
    ping,
    tls,
)

DAY = 86400
NAME = ("cert.example.org",)
EXPIRED = certificate(NAME, T0 - 2 * DAY, T0 - DAY)
VALID = certificate(NAME, T0 - DAY, T0 + DAY)


def run(packets: list[Packet], toml: str = "", library: str = "auto") -> Bench:
    script = load_script("tls_certificate_expired", config=toml, library=library)
    script.judge(packets)
    return script


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_an_expired_certificate(version: str, library: str) -> None:
    judged = run(tls(version, cert=EXPIRED).packets, "", library)
    assert judged.flow.statuses == ["status_tls_certificate_expired"]
    assert judged.flow.scores == (30, 0, 10)
    assert judged.flow.verdict == "pass"
    (alert,) = judged.alerts
    assert (alert.info["not_before"], alert.info["not_after"]) == (
        T0 - 2 * DAY,
        T0 - DAY,
    )
    assert "cert.example.org" in alert.info["subject"]


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2", "1.3"])
def test_a_valid_certificate(version: str, library: str) -> None:
    assert run(tls(version, cert=VALID).packets, "", library).flow.statuses == []


@pytest.mark.parametrize(
    ("not_before", "not_after", "fires"),
    [
        (-DAY, -2, True),
        (-DAY, -1, True),
        (-DAY, 0, False),  # valid to the end of that second
        (-DAY, 1, False),
        (-1, DAY, False),
        (0, DAY, False),
        (1, DAY, True),  # not valid yet
        (2, DAY, True),
    ],
)
def test_to_the_second(not_before: int, not_after: int, fires: bool, library: str) -> None:
    cert = certificate(NAME, T0 + not_before, T0 + not_after)
    assert bool(run(tls("1.2", cert=cert).packets, "", library).flow.statuses) is fires


def test_the_time_is_that_of_the_packet() -> None:
    cert = certificate(NAME, T0 - DAY, T0 + 100)
    assert run(tls("1.2", cert=cert, start=T0 + 99).packets).flow.statuses == []
    assert run(tls("1.2", cert=cert, start=T0 + 102).packets).flow.statuses == [
        "status_tls_certificate_expired"
    ]


def test_without_a_server_name(library: str) -> None:
    assert run(tls("1.2", None, cert=EXPIRED).packets, "", library).flow.statuses == [
        "status_tls_certificate_expired"
    ]


def test_tls_1_3_hides_it(library: str) -> None:
    assert run(tls("1.3", cert=EXPIRED).packets, "", library).flow.statuses == []


def test_on_mail_ports(library: str) -> None:
    judged = run(tls("1.2", cert=EXPIRED, dport=993).packets, "", library)
    assert judged.flow.statuses == ["status_tls_certificate_expired"]


@pytest.mark.parametrize(
    "packets",
    [
        Tcp().handshake().client(client_hello("example.com")).packets,  # no certificate yet
        Tcp(dport=80).handshake().client(http_request("example.com")).packets,
        dns("example.com").packets,
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    assert run(packets).flow.statuses == []


def test_a_long_certificate_over_many_segments(library: str) -> None:
    names = tuple(f"host{n}.long-name-for-a-certificate.example.org" for n in range(100))
    cert = certificate(names, T0 - 2 * DAY, T0 - DAY)
    judged = run(tls("1.2", names[0], cert=cert).packets, "", library)
    assert judged.flow.core.packets_rcvd > 4
    assert judged.flow.statuses == ["status_tls_certificate_expired"]


def test_it_blocks_if_so_configured(library: str) -> None:
    packets = tls("1.2", cert=EXPIRED).packets
    judged = run(packets, "[scripts.tls_certificate_expired]\nscore = 100", library)
    assert judged.actions.index("drop") == 4  # the packet with the certificate
    assert judged.flow.verdict == "drop"
