from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import (
    Bench,
    Packet,
    Tcp,
    certificate,
    client_hello,
    dns,
    http_request,
    load_script,
    make_flow,
    ping,
    tls,
)

STATUS = ["status_tls_certificate_mismatch"]


def run(packets: list[Packet], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("tls_certificate_mismatch", settings=settings, library=library)
    script.judge(packets)
    return script


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("other.example", ("cert.example.org",)),
        ("example.org", ("*.example.org",)),
        ("a.b.example.org", ("*.example.org",)),  # the star is one label
        ("www.example.com", ("*.com.example", "example.com")),
        ("aexample.org", ("*.example.org", "example.org")),
    ],
)
def test_another_name(asked: str, names: tuple[str, ...], library: str) -> None:
    judged = run(tls(name=asked, cert=certificate(names)).packets, library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (20, 0, 10)
    assert judged.flow.verdict == "pass"
    (alert,) = judged.alerts
    assert alert.info == {"asked": asked, "names": list(names), "issuer": "CN=Example Issuing CA"}


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("cert.example.org", ("cert.example.org",)),
        ("CERT.Example.org", ("cert.example.ORG",)),
        ("www.example.org", ("*.example.org",)),
        ("n39.example.org", tuple(f"n{n}.example.org" for n in range(40))),
    ],
)
def test_the_right_name(asked: str, names: tuple[str, ...], library: str) -> None:
    judged = run(tls(name=asked, cert=certificate(names)).packets, library)
    assert (judged.flow.statuses, judged.flow.scores) == ([], (0, 0, 0))


@pytest.mark.parametrize(("asked", "fires"), [("www.example.org", False), ("www.example.com", True)])
def test_a_certificate_with_a_common_name_alone(asked: str, fires: bool, library: str) -> None:
    cert = certificate((), subject="www.example.org")
    assert run(tls(name=asked, cert=cert).packets, library).flow.statuses == (STATUS if fires else [])


@pytest.mark.parametrize(
    "packets",
    [
        tls(name=None).packets,  # nothing was asked for
        tls("1.3", "other.example").packets,  # nothing to be seen
        tls(name=f"{'a' * 60}.{'b' * 40}.example.org").packets,  # cut by nDPI
        Tcp().handshake().client(client_hello("other.example")).packets,
        Tcp(dport=80).handshake().client(http_request("other.example")).packets,
        dns("other.example").packets,
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, library).flow.statuses == []


def test_mail_servers_count_too(library: str) -> None:
    assert run(tls(name="other.example", dport=993).packets, library).flow.statuses == STATUS


def test_exempt_domains() -> None:
    assert run(tls(name="www.other.example").packets, ignore=["other.example"]).flow.statuses == []
    assert run(tls(name="www.other.example").packets, ignore=["example.org"]).flow.statuses == STATUS


def test_it_blocks_if_so_configured(library: str) -> None:
    judged = run(tls(name="other.example").packets, library, score=100)
    assert judged.actions.index("drop") == 4  # the packet with the certificate


def test_what_comes_later_is_seen_when_it_comes() -> None:
    script = load_script("tls_certificate_mismatch")
    flow = script.run(make_flow("TLS", hostname="www.example.com"))
    assert flow.statuses == []
    script.run(flow.update(cert_names=("www.example.org",)), "protocolUpdated")
    assert flow.statuses == STATUS
