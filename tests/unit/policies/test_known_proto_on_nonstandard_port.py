from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import (
    Bench,
    Packet,
    Tcp,
    dns,
    http_request,
    load_script,
    make_flow,
    noise,
    ping,
    ssh_turns,
    tls,
)

STATUS = ["status_known_proto_on_non_std_port"]


def run(packets: list[Packet], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("known_proto_on_nonstandard_port", settings=settings, library=library)
    script.judge(packets)
    return script


def ssh(port: int) -> list[Packet]:
    return Tcp(dport=port).handshake().turns(ssh_turns()).packets


def web(port: int) -> list[Packet]:
    return Tcp(dport=port).handshake().client(http_request("example.com")).packets


@pytest.mark.parametrize(
    ("packets", "protocol", "port"),
    [(ssh(2222), "SSH", 2222), (tls(dport=4444).packets, "TLS", 4444), (web(81), "HTTP", 81)],
)
def test_other_ports(packets: list[Packet], protocol: str, port: int, library: str) -> None:
    judged = run(packets, library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (10, 10, 10)
    assert judged.flow.verdict == "pass"
    assert [alert.info for alert in judged.alerts] == [{"protocol": protocol, "port": port}]


@pytest.mark.parametrize(
    "packets",
    [
        ssh(22),
        web(80),
        web(8080),  # in `ports`
        tls().packets,
        tls(dport=993).packets,
        dns("example.com").packets,
        ping(),
        Tcp(dport=4444).handshake().client(noise(200)).packets,  # nothing that is known
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, library).flow.statuses == []


def test_ports_and_protocols_are_configured() -> None:
    assert run(web(8080), ports=[]).flow.statuses == STATUS
    assert run(ssh(2222), ports=[2222]).flow.statuses == []
    assert run(ssh(2222), protocols=["SSH"]).flow.statuses == STATUS
    assert run(ssh(2222), protocols=["TLS"]).flow.statuses == []


def test_master_and_application_count() -> None:
    script = load_script("known_proto_on_nonstandard_port", settings={"protocols": ["TLS"]})
    flow = make_flow("TLS.Google", server_port=4444, risks=["nonstandard_port"])
    assert script.run(flow).statuses == STATUS
