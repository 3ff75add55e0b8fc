from __future__ import annotations

from typing import Any

import pytest

from nedge.testing import CLIENT, CLIENT6, Bench, ConfigError, Packet, dns, load_script, make_flow, ping, tls

COUNTRIES = {"198.51.100.0/24": "KP", "203.0.113.0/24": "DE", "192.0.2.0/24": "IR", "2001:db8:1::/48": "KP"}


LISTED = {"countries": ["KP", "ir"]}


def run(packets: list[Packet], settings: dict[str, Any], countries: dict[str, str] = COUNTRIES) -> Bench:
    script = load_script("country_check", settings=settings, countries=countries)
    script.judge(packets)
    return script


@pytest.mark.parametrize(
    ("packets", "info"),
    [
        (ping(CLIENT, "198.51.100.1"), {"server": "KP"}),
        (ping("198.51.100.1", CLIENT), {"client": "KP"}),
        (ping("192.0.2.1", "198.51.100.1"), {"client": "IR", "server": "KP"}),
        (ping("203.0.113.1", "198.51.100.1"), {"server": "KP"}),
        (ping(CLIENT6, "2001:db8:1::1"), {"server": "KP"}),
        (dns("example.com", server="198.51.100.1").packets, {"server": "KP"}),
    ],
)
def test_listed_countries_are_blocked(packets: list[Packet], info: dict[str, str]) -> None:
    judged = run(packets, LISTED)
    assert judged.flow.statuses == ["status_blacklisted_country"]
    assert judged.flow.scores == (100, 10, 10)
    assert judged.flow.verdict == "drop"
    assert [alert.info for alert in judged.alerts] == [info]


@pytest.mark.parametrize(
    "packets",
    [
        ping(CLIENT, "203.0.113.1"),  # another country
        ping(CLIENT, "8.8.8.8"),  # unknown to the database
        ping(CLIENT, "192.168.1.11"),
        ping(CLIENT, "224.0.0.251", reply=False),
        tls().packets,
    ],
)
def test_others_are_left_alone(packets: list[Packet]) -> None:
    judged = run(packets, LISTED)
    assert (judged.flow.statuses, judged.flow.scores, judged.flow.verdict) == ([], (0, 0, 0), "pass")


def test_without_countries_it_is_off() -> None:
    with pytest.raises(ConfigError, match="is off"):
        run([], {})


@pytest.mark.parametrize("code", ["KPX", "", "K1", "North Korea"])
def test_what_is_no_country_is_told(code: str) -> None:
    with pytest.raises(ConfigError, match=r"countries: found .*; allowed are codes of two letters"):
        run([], {"countries": ["KP", code]})


def test_nothing_happens_without_a_database() -> None:
    assert run(ping(CLIENT, "198.51.100.1"), LISTED, {}).flow.statuses == []


def test_a_low_score_only_alerts() -> None:
    judged = run(ping(CLIENT, "198.51.100.1"), LISTED | {"score": 99})
    assert (len(judged.alerts), judged.flow.verdict) == (1, "pass")


def test_a_made_flow() -> None:
    script = load_script("country_check", settings=LISTED, countries=COUNTRIES)
    assert script.run(make_flow("TLS", server="198.51.100.1")).verdict == "drop"
    assert script.run(make_flow("TLS", server="203.0.113.1")).verdict == "pass"
