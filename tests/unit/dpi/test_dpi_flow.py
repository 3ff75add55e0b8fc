from __future__ import annotations

import ctypes
import struct
import time
from pathlib import Path

import dpi_conversations as talk
import pytest

from nedge.core.facts import Classifier, DpiFlow, Facts
from nedge.dpi import DpiError, NdpiClassifier, samples

NOW_MS = 1_750_000_000_000
CLIENT, RESOLVER = (samples.CLIENT, 40000), (samples.SERVER, 53)
REQUEST = (
    b"GET /a/b?c=d HTTP/1.1\r\nHost: Www.Example.com:8080\r\n"
    b"User-Agent: Mozilla/5.0 (X11; Linux)\r\nAccept: */*\r\n\r\n"
)


def inspect(classifier: NdpiClassifier, packets: list[bytes]) -> tuple[str, Facts]:
    flow = classifier.open()
    for packet in packets:
        word = flow.feed(packet, NOW_MS)
    facts = flow.facts()
    flow.close()
    return classifier.describe(word).protocol, facts


def test_implements_the_protocols_of_the_core(classifier: NdpiClassifier) -> None:
    as_core: Classifier = classifier
    flow: DpiFlow = as_core.open()
    flow.close()


def test_tls_server_name_alpn_and_version(classifier: NdpiClassifier, ndpi5: bool) -> None:
    packets = talk.stream(443, [("c", samples.client_hello("WWW.Google.com"))])
    flow = classifier.open()
    words = [flow.feed(packet, NOW_MS) for packet in packets]
    assert words[:3] == [0, 0, 0]
    assert flow.hostname() == "www.google.com"
    described = classifier.describe(words[-1])
    assert (described.protocol, described.master, described.app) == ("TLS.Google", "TLS", "Google")
    assert (described.category, described.breed) == ("Web", "Acceptable")
    assert flow.more_possible()
    facts = flow.facts()
    assert facts.hostname == facts.tls_sni == "www.google.com"
    assert facts.tls_alpn == "h2,http/1.1"
    assert (facts.tls_cipher, facts.cert_not_after, facts.cert_names) == ("", 0, ())
    assert bool(facts.ja4) == ndpi5
    assert bool(facts.ja3) == (not ndpi5)
    flow.close()


@pytest.mark.parametrize("size", [20, 100])
def test_tls_server_name_over_several_segments(classifier: NdpiClassifier, size: int) -> None:
    packets = talk.stream(443, [("c", samples.client_hello("www.google.com"))], size)
    protocol, facts = inspect(classifier, packets)
    assert (protocol, facts.tls_sni) == ("TLS.Google", "www.google.com")


def test_tls_certificate(classifier: NdpiClassifier) -> None:
    flow = classifier.open()
    for packet in talk.stream(443, talk.tls_handshake("TLSv1_2")):
        flow.feed(packet, int(time.time() * 1000))
    facts = flow.facts()
    assert facts.tls_version == 0x0303
    assert facts.tls_cipher.startswith("TLS_ECDHE_ECDSA_WITH_")
    assert len(facts.ja3s) == 32
    assert facts.cert_names == talk.CERT_NAMES
    assert facts.cert_subject == facts.cert_issuer == f"O=Nedge Test, CN={talk.CERT_NAMES[0]}"
    assert facts.cert_sha1 == talk.certificate_sha1()
    assert (facts.cert_not_before, facts.cert_not_after) == talk.certificate_validity()
    assert "self-signed" in " ".join(classifier.risk_names(flow.risks())).lower()
    assert not flow.more_possible()
    flow.close()


def test_tls_1_3(classifier: NdpiClassifier) -> None:
    protocol, facts = inspect(classifier, talk.stream(443, talk.tls_handshake("TLSv1_3")))
    assert protocol == "TLS"
    assert facts.tls_version == 0x0304
    assert facts.tls_cipher.startswith("TLS_AES_")


def test_http_request_and_response(classifier: NdpiClassifier) -> None:
    response = b"HTTP/1.1 404 Not Found\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nno"
    protocol, facts = inspect(classifier, talk.stream(80, [("c", REQUEST), ("s", response)]))
    assert protocol == "HTTP"
    assert facts.hostname == "www.example.com"  # without the port
    assert facts.http_url == "Www.Example.com:8080/a/b?c=d"
    assert facts.http_user_agent == "Mozilla/5.0 (X11; Linux)"
    assert facts.http_code == 404


RESPONSE = b"HTTP/1.1 %d Status\r\nContent-Type: %s\r\nContent-Length: 2\r\n\r\nno"


@pytest.mark.parametrize("code", [100, 200, 404, 503])
@pytest.mark.parametrize("kind", ["", "text/html", "application/json; charset=utf-8", "image/svg+xml"])
@pytest.mark.parametrize("early", [False, True], ids=["answered", "answer first"])
def test_http_answer_is_that_of_the_facts(
    classifier: NdpiClassifier, code: int, kind: str, early: bool
) -> None:
    turns = [("c", REQUEST), ("s", RESPONSE % (code, kind.encode()))]
    packets = talk.stream(80, turns[::-1] if early else turns)
    flow = classifier.open()
    for packet in packets:
        flow.feed(packet, NOW_MS)
    facts, answer = flow.facts(), flow.http_answer()
    assert answer in ((facts.http_code, facts.http_content_type), None if early else 0)
    assert early or facts.http_code == code
    flow.close()


@pytest.mark.parametrize(
    "packets",
    [
        talk.stream(80, [("s", RESPONSE % (200, b"text/html"))]),
        talk.stream(443, talk.tls_handshake("TLSv1_3")),
        samples.dns_query(),
        samples.http_request()[:3],
    ],
    ids=["no request", "TLS", "DNS", "handshake"],
)
def test_no_http_answer(classifier: NdpiClassifier, packets: list[bytes]) -> None:
    flow = classifier.open()
    for packet in packets:
        flow.feed(packet, NOW_MS)
    assert flow.http_answer() is None
    assert (flow.facts().http_code, flow.facts().http_content_type) == (0, "")
    flow.close()


def test_an_answer_with_odd_bytes_is_left_to_the_facts(classifier: NdpiClassifier) -> None:
    flow = classifier.open()
    for packet in talk.stream(80, [("s", RESPONSE % (200, b"text/\xff\x01")), ("c", REQUEST)]):
        flow.feed(packet, NOW_MS)
    assert flow.http_answer() in (None, (flow.facts().http_code, flow.facts().http_content_type))
    flow.close()


def test_flows_of_one_kind_share_their_facts(classifier: NdpiClassifier) -> None:
    def facts_of(*turns: tuple[str, bytes]) -> Facts:
        return inspect(classifier, talk.stream(443, list(turns)))[1]

    handshake = talk.tls_handshake("TLSv1_2")
    one, same = facts_of(*handshake), facts_of(*handshake)
    other = facts_of(("c", samples.client_hello("other.example")))
    assert one is same
    assert one.cert_not_after
    assert (other.tls_sni, other.cert_not_after, other.cert_sha1) == ("other.example", 0, "")


def test_known_facts_are_bounded(classifier: NdpiClassifier) -> None:
    for number in range(1100):
        name = f"host-{number}.example"
        _, facts = inspect(classifier, talk.stream(443, [("c", samples.client_hello(name))])[3:])
        assert facts.tls_sni == name
    assert 0 < len(classifier._module.known_facts) <= 1024


@pytest.mark.parametrize(("kind", "number"), [("A", 1), ("AAAA", 28), ("TXT", 16)])
def test_dns_query(classifier: NdpiClassifier, kind: str, number: int) -> None:
    query = samples.udp(CLIENT, RESOLVER, talk.dns_question("Host.Example.com", number))
    protocol, facts = inspect(classifier, [query])
    assert (protocol, facts.dns_query, facts.dns_query_type) == ("DNS", "host.example.com", number)


def test_dns_answer(classifier: NdpiClassifier) -> None:
    packets = [
        samples.udp(CLIENT, RESOLVER, talk.dns_question("host.example.com")),
        samples.udp(RESOLVER, CLIENT, talk.dns_answer("host.example.com", b"", 3)),
    ]
    _, facts = inspect(classifier, packets)
    assert (facts.dns_query, facts.dns_reply_code, facts.hostname) == (
        "host.example.com",
        3,
        "host.example.com",
    )


def test_ssh(classifier: NdpiClassifier) -> None:
    protocol, facts = inspect(classifier, talk.ssh())
    assert protocol == "SSH"
    assert facts.ssh_client == "SSH-2.0-OpenSSH_9.2p1 Debian-2"
    assert facts.ssh_server == "SSH-2.0-OpenSSH_9.6"
    assert len(facts.hassh_client) == len(facts.hassh_server) == 32


def test_quic(classifier: NdpiClassifier) -> None:
    protocol, facts = inspect(classifier, talk.quic_initial("www.Facebook.com"))
    assert protocol == "QUIC.Facebook"
    assert (facts.hostname, facts.tls_sni) == ("www.facebook.com", "www.facebook.com")
    assert (facts.tls_alpn, facts.tls_version) == ("h3", 0x0304)


def test_passwords_stay_inside(classifier: NdpiClassifier) -> None:
    login = [("s", b"220 FTP ready\r\n"), ("c", b"USER bob\r\n"), ("s", b"331 password\r\n")]
    protocol, facts = inspect(
        classifier, talk.stream(21, [*login, ("c", b"PASS s3cret\r\n"), ("s", b"230 in\r\n")])
    )
    assert protocol == "FTP_CONTROL"
    assert "s3cret" not in repr(facts)


def test_risks(classifier: NdpiClassifier) -> None:
    flow = classifier.open()
    for packet in samples.http_request(8080):
        flow.feed(packet, NOW_MS)
    assert flow.risks() & (1 << 5 | 1 << 12) == 1 << 5 | 1 << 12
    names = classifier.risk_names(1 << 5 | 1 << 12)
    assert len(names) == 2
    assert "on Non St" in names[0]
    assert "Numeric" in names[1]
    assert classifier.risk_names(0) == []
    flow.close()


def test_give_up_guesses_by_port(classifier: NdpiClassifier) -> None:
    flow = classifier.open()
    for packet in talk.stream(22, [("c", b"\x99\x88")]):
        assert flow.feed(packet, NOW_MS) == 0
    assert flow.more_possible()
    assert classifier.describe(flow.give_up()).protocol == "SSH"
    assert not flow.more_possible()
    flow.close()


def test_give_up_keeps_what_was_detected(classifier: NdpiClassifier) -> None:
    flow = classifier.open()
    for packet in samples.http_request():
        word = flow.feed(packet, NOW_MS)
    assert flow.give_up() == word
    flow.close()


def test_unreadable_bytes_in_names(classifier: NdpiClassifier) -> None:
    request = b'GET /\xff\x01 HTTP/1.1\r\nHost: a\xffb.example\r\nUser-Agent: q"\\\xff\x02\r\n\r\n'
    protocol, facts = inspect(classifier, talk.stream(80, [("c", request)]))
    assert protocol == "HTTP"
    assert facts.hostname.endswith("b.example")


def test_packets_of_odd_sizes(classifier: NdpiClassifier) -> None:
    flow = classifier.open()
    for packet in (b"", b"\x45", bytes(19), samples.http_request()[3] + bytes(70_000)):
        flow.feed(packet, NOW_MS)
    flow.close()


def test_time_never_goes_back(classifier: NdpiClassifier) -> None:
    flow = classifier.open()
    for packet, time_ms in zip(samples.http_request(), (NOW_MS, NOW_MS - 5000, 0, NOW_MS + 1), strict=True):
        word = flow.feed(packet, time_ms)
    assert classifier.describe(word).protocol == "HTTP"
    assert classifier._module.clock.value == NOW_MS + 1
    flow.close()


def test_closed_flow_and_module_raise(classifier: NdpiClassifier) -> None:
    closed, left_open = classifier.open(), classifier.open()
    closed.close()
    closed.close()
    with pytest.raises(ctypes.ArgumentError):
        closed.feed(samples.dns_query()[0], NOW_MS)
    with pytest.raises(ctypes.ArgumentError):
        closed.facts()
    known = classifier.describe(classifier.protocol_id("DNS") << 16)
    classifier.close()
    classifier.close()
    with pytest.raises(DpiError):
        classifier.open()
    with pytest.raises(DpiError):
        left_open.feed(samples.dns_query()[0], NOW_MS)
    assert known.protocol == "DNS"
    left_open.close()


def test_flows_do_not_leak(classifier: NdpiClassifier) -> None:
    conversations = [
        talk.stream(443, talk.tls_handshake("TLSv1_2")),
        talk.stream(80, [("c", REQUEST)]),
        samples.dns_query(),
        talk.quic_initial("www.example.com"),
    ]

    def rounds(count: int) -> None:
        for number in range(count):
            flow = classifier.open()
            for packet in conversations[number % len(conversations)]:
                flow.feed(packet, NOW_MS)
            flow.facts()
            flow.close()

    rounds(1000)
    before = _resident_bytes()
    rounds(10_000)
    assert _resident_bytes() - before < 2_000_000


def test_many_flows_at_once(classifier: NdpiClassifier) -> None:
    flows = [classifier.open() for _ in range(1000)]
    for number, packet in enumerate(samples.http_request()):
        words = {flow.feed(packet, NOW_MS + number) for flow in flows}
    assert {classifier.describe(word).protocol for word in words} == {"HTTP"}
    for flow in flows:
        flow.close()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * struct.calcsize("P") * 512
