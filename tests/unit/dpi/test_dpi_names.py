from __future__ import annotations

import pytest

from nedge.core.facts import UNKNOWN
from nedge.dpi import NdpiClassifier
from nedge.dpi.facts import read_facts


def word_of(classifier: NdpiClassifier, master: str, app: str, category: int = 5) -> int:
    ids = [classifier.protocol_id(name) or 0 for name in (master, app)]
    return ids[0] | ids[1] << 16 | category << 32


@pytest.mark.parametrize(
    ("master", "app", "protocol", "breed"),
    [
        ("TLS", "Google", "TLS.Google", "Acceptable"),
        ("", "DNS", "DNS", "Acceptable"),
        ("DNS", "", "DNS", "Acceptable"),
        ("HTTP", "HTTP", "HTTP", "Acceptable"),
        ("", "Telnet", "Telnet", "Unsafe"),
        ("QUIC", "YouTube", "QUIC.YouTube", "Fun"),
    ],
)
def test_describe(classifier: NdpiClassifier, master: str, app: str, protocol: str, breed: str) -> None:
    described = classifier.describe(word_of(classifier, master, app))
    assert (described.protocol, described.category, described.breed) == (protocol, "Web", breed)


def test_describe_nothing_known(classifier: NdpiClassifier) -> None:
    assert classifier.describe(0) == UNKNOWN


def test_one_level_has_no_master(classifier: NdpiClassifier) -> None:
    number = classifier.protocol_id("DNS")
    described = classifier.describe(word_of(classifier, "DNS", "DNS"))
    assert (described.master_id, described.master) == (0, "")
    assert (described.app_id, described.app) == (number, "DNS")


def test_ids_beyond_the_tables_have_names(classifier: NdpiClassifier) -> None:
    assert isinstance(classifier.describe(0xFFFFFFFFFFFE).protocol, str)


def test_descriptions_are_kept(classifier: NdpiClassifier) -> None:
    word = word_of(classifier, "TLS", "Google")
    assert classifier.describe(word) is classifier.describe(word)


def test_protocol_id_in_any_case(classifier: NdpiClassifier) -> None:
    assert classifier.protocol_id("tls") == classifier.protocol_id("TLS") == 91
    assert classifier.protocol_id("no such protocol") is None


@pytest.mark.parametrize(
    ("old", "new"), [("Z39.50", "Z3950"), ("Skype_Teams", "Teams"), ("redis", "RESP"), ("DCE_RPC", "DCERPC")]
)
def test_protocol_id_knows_renamed_protocols(classifier: NdpiClassifier, old: str, new: str) -> None:
    names = {name.casefold() for name in classifier.protocol_names()}
    both_exist = old.casefold() in names and new.casefold() in names
    assert classifier.protocol_id(old) is not None
    assert classifier.protocol_id(new) is not None
    assert both_exist or classifier.protocol_id(old) == classifier.protocol_id(new)


def test_protocol_names_are_ordered_by_id(classifier: NdpiClassifier) -> None:
    names = classifier.protocol_names()
    assert len(names) > 250
    assert names[classifier.protocol_id("http") or 0] == "HTTP"


def test_category_id(classifier: NdpiClassifier) -> None:
    assert classifier.category_id("socialnetwork") == 6
    assert classifier.category_id("Malware") == 100
    assert classifier.category_id("no such category") is None


def test_facts_in_the_layout_up_to_4_4() -> None:
    text = b"""{"ndpi": {"proto": "TLS"}, "tls": {"version": "TLSv1.2", "ja3": "j", "alpn": "h2",
        "client_requested_server_name": "A.example", "cipher": "TLS_NULL_WITH_NULL_NULL"}}"""
    facts, sound = read_facts(text, "a.example")
    assert sound
    assert (facts.tls_version, facts.tls_sni, facts.tls_alpn, facts.ja3) == (0x0303, "a.example", "h2", "j")
    assert facts.tls_cipher == ""


def test_facts_in_the_layout_from_4_5_on() -> None:
    text = b"""{"ndpi": {"proto": "QUIC", "hostname": "a.example",
        "quic": {"tls": {"version": "TLSv1.3", "ja4": "j", "advertised_alpns": "h3"}}}}"""
    facts, sound = read_facts(text, "a.example")
    assert sound
    assert (facts.tls_version, facts.tls_sni, facts.tls_alpn, facts.ja4) == (0x0304, "a.example", "h3", "j")


@pytest.mark.parametrize(
    ("version", "number"),
    [("SSLv3", 0x0300), ("TLSv1", 0x0301), ("TLSv1.1", 0x0302), ("TLSv1.3", 0x0304), ("DTLSv1.2", 0)],
)
def test_tls_version_numbers(version: str, number: int) -> None:
    facts, _ = read_facts(b'{"ndpi": {"tls": {"version": "%s"}}}' % version.encode(), "")
    assert facts.tls_version == number


@pytest.mark.parametrize("text", [b"", b'{"ndpi": {"tls": {', b"\xff", b'{"ndpi": "x" "y"}'])
def test_broken_json_leaves_the_host_name(text: bytes) -> None:
    facts, sound = read_facts(text, "a.example")
    assert (facts.hostname, sound) == ("a.example", False)


@pytest.mark.parametrize("text", [b"[]", b'{"ndpi": []}', b'{"ndpi": {"http": {"code": "x", "url": 5}}}'])
def test_json_of_unexpected_shape(text: bytes) -> None:
    facts, sound = read_facts(text, "")
    assert sound
    assert (facts.http_code, facts.http_url) == (0, "")


def test_json_with_bytes_that_are_not_text() -> None:
    facts, sound = read_facts(b'{"http": {"user_agent": "a\xff\x01b"}}', "")
    assert sound
    assert facts.http_user_agent == "a\ufffd\x01b"


def test_broken_json_is_counted(classifier: NdpiClassifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(classifier._module, "json", lambda flow, word: b"{")
    flow = classifier.open()
    flow.facts()
    flow.close()
    assert classifier.json_errors == 1
