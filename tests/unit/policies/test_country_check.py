from __future__ import annotations

from pathlib import Path

import pytest
from kit import CLIENT, CLIENT6, Judged, Packet, dns, judge, ping, tls, write_countries

COUNTRIES = {"198.51.100.0/24": "KP", "203.0.113.0/24": "DE", "192.0.2.0/24": "IR", "2001:db8:1::/48": "KP"}


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = write_countries(tmp_path / "country.mmdb", COUNTRIES)
    return f'[geoip]\ncountry_database = "{path}"\n'


def run(packets: list[Packet], toml: str) -> Judged:
    return judge(packets, toml, ["country_check"])


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
def test_listed_countries_are_blocked(packets: list[Packet], info: dict[str, str], database: str) -> None:
    judged = run(packets, database + '[scripts.country_check]\ncountries = ["KP", "ir"]')
    assert judged.statuses == ["status_blacklisted_country"]
    assert judged.scores == (100, 10, 10)
    assert judged.verdict == "drop"
    assert [record["nedge"]["info"] for record in judged.alerts] == [info]


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
def test_others_are_left_alone(packets: list[Packet], database: str) -> None:
    judged = run(packets, database + '[scripts.country_check]\ncountries = ["KP", "ir"]')
    assert (judged.statuses, judged.scores, judged.verdict) == ([], (0, 0, 0), "pass")


def test_nothing_happens_by_default(database: str) -> None:
    assert run(ping(CLIENT, "198.51.100.1"), database).statuses == []


def test_nothing_happens_without_a_database() -> None:
    assert run(ping(CLIENT, "198.51.100.1"), '[scripts.country_check]\ncountries = ["KP"]').statuses == []


def test_a_low_score_only_alerts(database: str) -> None:
    judged = run(
        ping(CLIENT, "198.51.100.1"), database + '[scripts.country_check]\ncountries = ["KP"]\nscore = 99'
    )
    assert (len(judged.alerts), judged.verdict) == (1, "pass")
