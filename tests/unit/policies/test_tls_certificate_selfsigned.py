from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import Bench, Packet, Tcp, certificate, dns, http_request, load_script, ping, tls

STATUS = ["status_tls_certificate_selfsigned"]
OWN = certificate(issuer="")


def run(packets: list[Packet], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("tls_certificate_selfsigned", settings=settings, library=library)
    script.judge(packets)
    return script


@pytest.mark.parametrize("version", ["1.0", "1.1", "1.2"])
def test_a_certificate_of_ones_own(version: str, library: str) -> None:
    judged = run(tls(version, cert=OWN).packets, library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (10, 0, 10)
    assert judged.flow.verdict == "pass"
    assert [alert.info["subject"] for alert in judged.alerts] == ["CN=cert.example.org"]


@pytest.mark.parametrize(
    "packets",
    [
        tls().packets,  # signed by another
        tls("1.3", cert=OWN).packets,  # nothing to be seen
        Tcp(dport=80).handshake().client(http_request("example.com")).packets,
        dns("example.com").packets,
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    judged = run(packets, library)
    assert (judged.flow.statuses, judged.flow.scores) == ([], (0, 0, 0))


@pytest.mark.parametrize("client", ["192.168.1.10", "203.0.113.77"])
def test_local_servers_count_if_so_configured(client: str) -> None:
    packets = tls(cert=OWN, client=client, server="192.168.1.44").packets
    assert run(packets).flow.statuses == []
    assert run(packets, local=True).flow.statuses == STATUS


def test_exempt_domains() -> None:
    assert run(tls(cert=OWN).packets, ignore=["example.org"]).flow.statuses == []
    assert run(tls(cert=OWN).packets, ignore=["example.com"]).flow.statuses == STATUS


def test_it_blocks_if_so_configured(library: str) -> None:
    judged = run(tls(cert=OWN).packets, library, score=100)
    assert judged.actions.index("drop") == 4  # the packet with the certificate
