"""Countries and autonomous systems: from databases to records, history and scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from kit import CLIENT, SERVER, T0, ask, bench, dns, judge, ping, write_asns, write_countries

from nedge.assemble import open_databases
from nedge.config import Config, GeoIP
from nedge.errors import ConfigError
from nedge.export.eve import to_json
from nedge.export.history import History
from nedge.export.questions import QUESTIONS, Filter, opened

SERVER6 = "2001:db8::5"


@pytest.fixture
def databases(tmp_path: Path) -> str:
    country = write_countries(tmp_path / "country.mmdb", {"203.0.113.0/24": "DE", "2001:db8::/32": "NL"})
    asn = write_asns(
        tmp_path / "asn.mmdb",
        {
            "203.0.113.0/24": (64500, "Example Networks"),
            "192.168.0.0/16": (64501, ""),
            "2001:db8::/32": (64502, "Six"),
        },
    )
    return f'[geoip]\ncountry_database = "{country}"\nasn_database = "{asn}"\n'


def places(event: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in event["nedge"].items() if name[4:] in ("country", "asn", "as_name")
    }


def test_records(databases: str) -> None:
    judged = judge(dns("a.example").packets + ping("fd00::1", SERVER6), databases, scripts={})
    assert [places(event) for event in judged.flows] == [
        {
            "srv_country": "DE",
            "cli_asn": 64501,
            "srv_asn": 64500,
            "srv_as_name": "Example Networks",
        },
        {"srv_country": "NL", "srv_asn": 64502, "srv_as_name": "Six"},
    ]


def test_without_databases_there_is_nothing() -> None:
    assert places(judge(dns("a.example").packets, scripts={}).flow) == {}


def test_only_one_database(databases: str) -> None:
    for line in databases.splitlines()[1:]:
        found = places(judge(dns("a.example").packets, f"[geoip]\n{line}\n", scripts={}).flow)
        assert ("srv_country" in found, "srv_asn" in found) == ("country" in line, "asn" in line)


def test_history(databases: str, tmp_path: Path) -> None:
    judged = judge(dns("a.example").packets, databases, scripts={})
    history = History(tmp_path / "history.db", max_days=30000, max_bytes=1 << 30)
    history.add(b"".join(to_json(event) for event in judged.events))
    history.close()
    with opened(tmp_path / "history.db") as database:
        (flow,) = QUESTIONS["flows"](database, Filter())
        (server,) = QUESTIONS["servers"](database, Filter())
        (country,) = QUESTIONS["countries"](database, Filter())
    assert (flow["client_country"], flow["server_country"]) == (None, "DE")
    assert (flow["client_asn"], flow["server_asn"]) == (64501, 64500)
    assert (server["country"], server["asn"], country["country"]) == ("DE", 64500, "DE")


def test_scripts(databases: str) -> None:
    expression = "(flow.getClientASN(), flow.getServerASN(), flow.getServerCountry())"
    assert ask(dns("a.example").packets, expression, toml=databases) == [(64501, 64500, "DE")]
    assert ask(dns("a.example").packets, expression) == [(0, 0, None)]
    full = "{k: v for k, v in flow.getFullInfo().items() if 'as' in k.split('.')[-1]}"
    (info,) = ask(dns("a.example").packets, full, toml=databases)
    assert (info["cli.asn"], info["srv.asn"], info["srv.as_name"]) == (64501, 64500, "Example Networks")


def test_databases_are_opened_anew_with_a_reload(databases: str, tmp_path: Path) -> None:
    with bench(databases, {}) as made:
        made.feed(dns("a.example").packets)
        new = write_countries(tmp_path / "new", {"203.0.113.0/24": "FR"})
        new.rename(tmp_path / "country.mmdb")
        made.assembly.renew(made.assembly.config)
        made.feed(dns("a.example", start=T0 + 1).packets)
        made.feed(dns("a.example", sport=7, start=T0 + 1).packets)
        made.engine.finish(T0 + 2)
        assert [places(event)["srv_country"] for event in made.judged.flows] == ["FR"] * len(
            made.judged.flows
        )
        assert made.engine.hosts.directory.country(SERVER) == "FR"


def test_new_lists_do_not_open_them(databases: str, tmp_path: Path) -> None:
    """A database that is damaged meanwhile must not stop a refresh of lists."""
    with bench(databases, {}) as made:
        (tmp_path / "country.mmdb").unlink()
        made.assembly.renew(None)
        made.feed(dns("a.example").packets)
        made.engine.finish(T0 + 2)
        assert places(made.judged.flow)["srv_country"] == "DE"
        with pytest.raises(ConfigError):
            made.assembly.renew(made.assembly.config)


@pytest.mark.parametrize("content", [None, b"", b"not a database" * 100])
@pytest.mark.parametrize("key", ["country_database", "asn_database"])
def test_unusable_databases(tmp_path: Path, key: str, content: bytes | None) -> None:
    path = tmp_path / "x.mmdb"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"geoip.{key}: .*x\.mmdb cannot be used"):
        open_databases(Config(geoip=GeoIP(**{key: path})))


def test_a_database_of_another_kind_gives_nothing(databases: str, tmp_path: Path) -> None:
    swapped = (
        databases.replace("country.mmdb", "x")
        .replace("asn.mmdb", "country.mmdb")
        .replace('/x"', '/asn.mmdb"')
    )
    assert places(judge(dns("a.example").packets, swapped, scripts={}).flow) == {}


def test_an_ipv4_database_knows_no_ipv6(tmp_path: Path) -> None:
    from mmdb_writer import MMDBWriter
    from netaddr import IPSet  # type: ignore[import-untyped]

    writer = MMDBWriter(ip_version=4, database_type="ASN")
    writer.insert_network(IPSet([f"{CLIENT}/32"]), {"autonomous_system_number": 5})
    writer.to_db_file(str(tmp_path / "asn.mmdb"))
    lookup = open_databases(Config(geoip=GeoIP(asn_database=tmp_path / "asn.mmdb"))).asn
    assert lookup is not None
    assert (lookup(CLIENT), lookup(SERVER), lookup(SERVER6)) == ((5, ""), None, None)


def test_what_is_looked_into_changes_with_a_reload() -> None:
    with bench("", {}) as made:
        config = made.assembly.config
        renewed = {"limits": {"detection_packets": 5}, "dpi": {"watch_http": False}}
        made.assembly.renew(Config.model_validate(config.model_dump() | renewed))
        inspector = made.engine.inspector
        assert (inspector.detection_packets, inspector.watch_http) == (5, False)
