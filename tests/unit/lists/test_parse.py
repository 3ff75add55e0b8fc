"""The formats of lists."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from nedge.core.lists import network_range
from nedge.lists.parse import FORMS, parse

JA3 = "e7d705a3286e19ea42f587b344ee6865"
JA4 = "t13d1516h2_8daaf6152771_e5627efa2ab1"


@pytest.mark.parametrize(
    ("line", "networks"),
    [
        ("192.0.2.7", ["192.0.2.7"]),
        ("192.0.2.0/24", ["192.0.2.0/24"]),
        ("192.0.2.9/24", ["192.0.2.0/24"]),
        ("192.0.2.0/255.255.255.0", ["192.0.2.0/24"]),
        ("  192.0.2.7  # one", ["192.0.2.7"]),
        ("192.0.2.0/24 ; SBL1", ["192.0.2.0/24"]),
        ("2001:DB8::/32", ["2001:db8::/32"]),
        ("2001:db8::1", ["2001:db8::1"]),
        ("0.0.0.0/0", ["0.0.0.0/0"]),
        ("", []),
        ("# 192.0.2.7", []),
        ("; 192.0.2.7", []),
        ("192.0.2.7 192.0.2.8", None),
        ("192.0.2", None),
        ("192.0.2.0/33", None),
        ("192.0.2.0/" + "9" * 5000, None),
        ("192.0.2.0/-1", None),
        ("192.0.2.0/", None),
        ("192.0.2.0/٣", None),
        ("192.0.02.7", None),
        ("2001:db8::/129", None),
        ("bad.example", None),
        ("<html>", None),
    ],
)
def test_networks(line: str, networks: list[str] | None) -> None:
    parsed = parse("networks", line)
    if networks is None:
        assert [(wrong.line, wrong.text) for wrong in parsed.wrong] == [(1, line[:80])]
        assert (parsed.entries, parsed.wrong_count) == ([], 1)
    else:
        expected = [ip_network(network) for network in networks]
        assert [(e.version, e.first, e.last) for e in parsed.entries] == [
            (net.version, int(net[0]), int(net[-1])) for net in expected
        ]
        assert parsed.wrong_count == 0


@pytest.mark.parametrize(
    ("line", "domains"),
    [
        ("bad.example", ["bad.example"]),
        ("BAD.Example.", ["bad.example"]),
        ("*.bad.example", ["bad.example"]),
        (".bad.example", ["bad.example"]),
        ("_dmarc.bad-1.example # why", ["_dmarc.bad-1.example"]),
        ("example", ["example"]),
        ("bücher.example", ["xn--bcher-kva.example"]),
        ("0.0.0.0 ads.example", ["ads.example"]),
        ("127.0.0.1\tads.example more.example", ["ads.example", "more.example"]),
        ("192.0.2.1 ads.example", ["ads.example"]),
        (":: ads.example", ["ads.example"]),
        ("127.0.0.1 localhost", []),
        ("0.0.0.0 0.0.0.0", []),
        ("ff02::1 ip6-allnodes", []),
        ("192.0.2.7", ["192.0.2.7"]),
        ("2001:db8::7", ["2001:db8::7"]),
        ("a.example b.example", None),
        ("10.0.0.0/8 a.example", None),
        ("0.0.0.0 a..example", None),
        ("||ads.example^", None),
        ("https://ads.example/x", None),
        ("a.*.example", None),
        ("*", None),
        ("-", ["-"]),
        ("a" * 64 + ".example", None),
        (".".join(["abcdefg"] * 32), None),
        ("ü" * 64, None),
        ("<!DOCTYPE", None),
    ],
)
def test_domains(line: str, domains: list[str] | None) -> None:
    parsed = parse("domains", line)
    assert parsed.entries == (domains or [])
    assert parsed.wrong_count == (domains is None)


@pytest.mark.parametrize(
    ("line", "fingerprints"),
    [
        (JA3, [JA3]),
        (JA3.upper(), [JA3]),
        (JA4, [JA4]),
        (f"{JA3},2020-01-01 10:00:00,Somebody", [JA3]),
        (f'"{JA3}","Somebody"', [JA3]),
        (f"  {JA3} # why", [JA3]),
        (JA3[:-1], None),
        (JA3 + "0", None),
        (f"x,{JA3}", []),  # taken for the names of the columns, as it is the first line
        ("bad.example", None),
    ],
)
def test_fingerprints(line: str, fingerprints: list[str] | None) -> None:
    parsed = parse("fingerprints", line)
    assert parsed.entries == (fingerprints or [])
    assert parsed.wrong_count == (fingerprints is None)


def test_csv_with_a_head() -> None:
    text = f"# ja3 list\nja3_md5,First,Reason\n{JA3},x,y\n{'0' * 32},z\nja3_md5,again\n"
    parsed = parse("fingerprints", text)
    assert parsed.entries == [JA3, "0" * 32]
    assert [wrong.line for wrong in parsed.wrong] == [5]


@pytest.mark.parametrize(
    ("form", "line", "good"),
    [
        ("networks", "10.0.0.0/8", True),
        ("networks", "8.0.0.0/7", False),
        ("networks", "0.0.0.0/0", False),
        ("networks", "2001::/16", True),
        ("networks", "2000::/15", False),
        ("domains", "co.uk", True),
        ("domains", "com", False),
        ("domains", "0.0.0.0 com", False),
    ],
)
def test_a_download_must_not_cover_too_much(form: str, line: str, good: bool) -> None:
    assert parse(form, line).wrong_count == 0  # type: ignore[arg-type]
    assert parse(form, line, downloaded=True).wrong_count == (not good)  # type: ignore[arg-type]


def test_lines_are_counted_and_few_are_kept() -> None:
    parsed = parse("networks", "192.0.2.1\r\n\n" + "wrong\n" * 50 + "x" * 500)
    assert (len(parsed.entries), parsed.wrong_count, len(parsed.wrong)) == (1, 51, 10)
    assert parsed.wrong[0] == (3, "wrong")
    assert len(parse("networks", "x" * 500).wrong[0].text) == 80


@pytest.mark.parametrize("text", ["192.0.2.1/32", "::1", "192.0.2.0/24"])
def test_ranges(text: str) -> None:
    net = ip_network(text)
    assert network_range(text) == network_range(net) == (net.version, int(net[0]), int(net[-1]))


def test_every_list_has_a_form() -> None:
    from nedge.config import Lists

    assert list(FORMS) == [name for name, value in Lists() if isinstance(value, list)]
