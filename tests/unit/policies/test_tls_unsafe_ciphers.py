from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import (
    Bench,
    Packet,
    Tcp,
    certificate,
    dns,
    http_request,
    load_script,
    make_flow,
    ping,
    quic_initial,
    tls,
    tls_turns,
)

STATUS = ["status_tls_unsafe_ciphers"]
RSA = certificate(rsa=True)


def run(packets: list[Packet], library: str = "auto", **settings: Any) -> Bench:
    script = load_script("tls_unsafe_ciphers", settings=settings, library=library)
    script.judge(packets)
    return script


def chosen(suite: int) -> list[Packet]:
    """A handshake whose ServerHello chooses a cipher suite that no library of today would."""
    (hello, _), (_, answer), *_rest = [(data, data) for _, data in tls_turns()]
    at = 44 + answer[43]  # behind record and handshake headers, version, random and session id
    answer = answer[:at] + suite.to_bytes(2) + answer[at + 2 :]
    turns = [("c", hello), ("s", answer)]
    return Tcp().handshake().turns(turns).packets


@pytest.mark.parametrize(
    ("suite", "name"),
    [
        (0x0001, "TLS_RSA_WITH_NULL_MD5"),
        (0x0003, "TLS_RSA_EXPORT_WITH_RC4_40_MD5"),
        (0x0005, "TLS_RSA_WITH_RC4_128_SHA"),
        (0x0009, "TLS_RSA_WITH_DES_CBC_SHA"),
        (0x000A, "TLS_RSA_WITH_3DES_EDE_CBC_SHA"),
        (0x003B, "TLS_RSA_WITH_NULL_SHA256"),
        (0x0034, "TLS_DH_ANON_WITH_AES_128_CBC_SHA"),
        (0xC011, "TLS_ECDHE_RSA_WITH_RC4_128_SHA"),
    ],
)
def test_broken_ciphers(suite: int, name: str, library: str) -> None:
    judged = run(chosen(suite), library)
    assert judged.flow.statuses == STATUS
    assert judged.flow.scores == (30, 10, 10)
    assert judged.flow.verdict == "pass"
    assert [alert.info for alert in judged.alerts] == [{"cipher": name}]


@pytest.mark.parametrize("suite", [0x002F, 0x009C, 0xC013, 0xC02F, 0xCCA8])
def test_ciphers_that_are_not_broken(suite: int, library: str) -> None:
    judged = run(chosen(suite), library)
    assert judged.flow.core.facts.tls_cipher
    assert (judged.flow.statuses, judged.flow.scores) == ([], (0, 0, 0))


def test_real_handshakes(library: str) -> None:
    for ciphers, fires in (("NULL-SHA256", True), ("ECDHE-RSA-NULL-SHA", True), ("AES128-SHA", False)):
        judged = run(tls(cert=RSA, ciphers=ciphers).packets, library, score=100)
        assert judged.flow.statuses == (STATUS if fires else [])
        assert judged.actions.count("drop") == (3 if fires else 0)  # from the server's answer on


@pytest.mark.parametrize(
    ("suite", "fires"), [(0x002F, True), (0x009D, True), (0xC013, False), (0x0033, False)]
)
def test_forward_secrecy_if_so_configured(suite: int, fires: bool, library: str) -> None:
    judged = run(chosen(suite), library, forward_secrecy=True)
    assert judged.flow.statuses == (STATUS if fires else [])


def test_the_words_are_configured() -> None:
    assert run(chosen(0x0005), unsafe=["NULL"]).flow.statuses == []
    assert run(chosen(0xC013), unsafe=["CBC"]).flow.statuses == STATUS


@pytest.mark.parametrize(
    "packets",
    [
        tls("1.3").packets,
        quic_initial("example.com"),
        Tcp(dport=80).handshake().client(http_request("example.com")).packets,
        dns("example.com").packets,
        ping(),
    ],
)
def test_others_are_left_alone(packets: list[Packet], library: str) -> None:
    assert run(packets, library, forward_secrecy=True).flow.statuses == []


def test_a_word_is_a_whole_word() -> None:
    script = load_script("tls_unsafe_ciphers")
    assert script.run(make_flow("TLS", tls_cipher="TLS_X_WITH_DESMOND_SHA")).statuses == []
    assert script.run(make_flow("TLS", tls_cipher="TLS_X_WITH_DES_SHA")).statuses == STATUS
