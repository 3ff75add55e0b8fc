"""The schema of events: all that nedge writes meets it, and other things do not."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from kit import (
    CLIENT6,
    SERVER6,
    T0,
    Judged,
    Packet,
    Tcp,
    Udp,
    bench,
    client_hello,
    dns,
    http_request,
    http_response,
    judge,
    merge,
    noise,
    ping,
    quic_initial,
    require_library,
    ssh_turns,
    tls,
    write_asns,
    write_countries,
)

from nedge.export.eve import to_json
from nedge.export.snapshot import Snapshot, stats_record

SCHEMA = json.loads(files("nedge.export").joinpath("schema/eve.json").read_text())
TYPES = ["flow", "alert", "drop", "pass", "quarantine", "stats"]


def validator(event_type: str | None = None) -> Draft202012Validator:
    """For one type of event: its messages are clearer."""
    schema = {"$ref": f"#/$defs/{event_type}", "$defs": SCHEMA["$defs"]} if event_type else SCHEMA
    return Draft202012Validator(schema)


VALIDATORS = {name: validator(name) for name in TYPES}
ANY = validator()


def check(event: dict[str, Any]) -> None:
    event = json.loads(to_json(event))
    VALIDATORS[event["event_type"]].validate(event)
    ANY.validate(event)


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)
    assert [option["$ref"].rpartition("/")[2] for option in SCHEMA["oneOf"]] == TYPES


@functools.cache  # handshakes are never the same again
def some_of_everything() -> list[Packet]:
    request = Tcp(dport=80, vlan=7).handshake().client(http_request("www.example.com", "/a?b=c"))
    return merge(
        request.server(http_response()).fin().packets,
        tls("1.2", "www.example.com", sport=41000).packets,
        Tcp(CLIENT6, SERVER6, sport=42000).handshake().client(client_hello("six.example")).packets,
        dns("bad.example", sport=43000).packets,
        dns("good.example", sport=44000).packets,
        Tcp(dport=22, sport=45000).handshake().turns(ssh_turns()).packets,
        quic_initial("quic.example"),
        ping(),
        ping(CLIENT6, SERVER6),
        Udp(dport=4000).client(noise(300)).packets,
        Tcp(dport=4000, sport=46000).handshake().client(noise(300)).packets,
        Tcp(dport=81, sport=47000).client(b"no handshake").rst().packets,
    )


SCRIPTS = {
    "script": """
    from nedge.scripts import *
    own = define_status(59, "status_own", "Own")
    def protocolDetected(flow, now, conf):
        if flow.getHostName() == "bad.example":
            flow.triggerStatus(own, {"why": ["x", {"y": 1.5}], 3: None}, 100, 20, 3)
        elif flow.getHostName():
            flow.triggerStatus(status_types.status_flow_risk, "text", 10, 1, 1)
            flow.setStatus(status_types.status_longlived, 5)
            flow.clearStatus(status_types.status_longlived)
    """
}


@pytest.fixture(scope="module", params=["system", "nfstream"])
def judged(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Judged:
    library = require_library(request.param)
    directory = tmp_path_factory.mktemp("databases")
    country = write_countries(directory / "country.mmdb", {"203.0.113.0/24": "DE"})
    asn = write_asns(directory / "asn.mmdb", {"203.0.113.0/24": (64500, "Example"), "fd00::/8": (1, "")})
    toml = f'''
    verdict.host_drop_score = 20
    geoip.country_database = "{country}"
    geoip.asn_database = "{asn}"
    '''
    return judge(some_of_everything(), toml, SCRIPTS, library)


def test_everything_meets_it(judged: Judged) -> None:
    assert {event["event_type"] for event in judged.events} == {"flow", "alert", "drop", "quarantine"}
    assert len(judged.flows) >= 12
    for event in judged.events:
        check(event)


def test_every_field_of_a_flow_is_seen(judged: Judged) -> None:
    """The schema has nothing that never comes; which facts there are depends on the release of nDPI."""
    seen = {name for event in judged.flows for name in event["ndpi"]}
    rare = {"ja3", "ja3s", "ja4", "http_content_type", "dns_reply_code", "hassh_client", "hassh_server"}
    rare |= {"cert_not_before", "cert_not_after", "cert_names", "cert_sha1", "cert_issuer", "cert_subject"}
    rare |= {"tls_cipher", "http_code", "alpn"}
    assert set(SCHEMA["$defs"]["ndpi"]["properties"]) - seen <= rare


def test_a_flow_that_passes_again() -> None:
    from nedge.core.verdict import Operator

    with bench("", SCRIPTS) as made:
        made.feed(dns("bad.example").packets)
        (flow,) = made.engine.table
        flow.operator = Operator.UNBLOCK
        made.engine.judge(flow, T0 + 1)
        made.engine.finish(T0 + 1)
    events = made.judged.events
    assert [event["event_type"] for event in events] == ["alert", "drop", "pass", "flow"]
    assert events[2]["nedge"]["previous"] == "flow_score: 100 >= 100"
    for event in events:
        check(event)


def test_stats_meet_it() -> None:
    with bench() as made:
        made.feed(some_of_everything())
        figures = made.engine.figures()
    snapshot = Snapshot()
    gateway = {"started": T0, "restarts": 0, "processes": {}, "counters": figures, "before": {}}
    snapshot.take({"gateway": gateway})
    event = stats_record(snapshot, T0)
    check(event)
    assert event["stats"]["decoder"]["pkts"] == len(some_of_everything())


def test_a_start_before_the_first_heartbeat_meets_it() -> None:
    check(stats_record(Snapshot(), T0))


OPTIONAL = {
    name
    for part in ("ndpi", "nedge")
    for name in set(SCHEMA["$defs"][part]["properties"]) - set(SCHEMA["$defs"][part]["required"])
}
"""Facts and places: what is not known is not there."""


def paths(value: dict[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """All fields, inner ones too; but for what scripts say."""
    for name, item in value.items():
        if name != "info":
            yield (*path, name)
            if isinstance(item, dict) and (*path, name) != ("stats", "nedge"):
                yield from paths(item, (*path, name))


def changed(event: dict[str, Any], path: tuple[str, ...], change: str) -> dict[str, Any]:
    copied = copy.deepcopy(event)
    inner = copied
    for name in path[:-1]:
        inner = inner[name]
    value = inner.pop(path[-1])
    if change == "of another type":
        inner[path[-1]] = 5.5 if isinstance(value, str) else "text"
    elif change == "renamed":
        inner[f"{path[-1]}_"] = value
    return copied


@pytest.mark.parametrize("change", ["taken away", "of another type", "renamed"])
def test_other_things_do_not_meet_it(judged: Judged, change: str) -> None:
    events = [next(e for e in judged.events if e["event_type"] == name) for name in TYPES[:3] + TYPES[4:5]]
    for event in [json.loads(to_json(event)) for event in [*events, stats_record(Snapshot(), T0)]]:
        kind = event["event_type"]
        for path in paths(event):
            if change == "taken away" and (path[-1] in OPTIONAL or "statuses" in path[:-1]):
                continue
            wrong = changed(event, path, change)
            assert not VALIDATORS[kind].is_valid(wrong), (kind, path)
            assert not ANY.is_valid(wrong), (kind, path)


# A reader that knows Suricata's EVE


def test_questions_that_are_asked_of_suricatas_events(judged: Judged) -> None:
    events = [json.loads(to_json(event)) for event in judged.events]
    alerts = [event for event in events if event["event_type"] == "alert"]
    bad = next(event for event in alerts if event["alert"]["action"] == "blocked")
    assert (bad["alert"]["signature_id"], bad["alert"]["signature"], bad["alert"]["gid"]) == (59, "Own", 1)
    assert (bad["src_ip"], bad["dest_port"], bad["proto"], bad["app_proto"]) == (
        "192.168.1.10",
        53,
        "UDP",
        "DNS",
    )
    assert bad["alert"]["category"] == "own"
    allowed = [event["alert"]["signature"] for event in alerts if event["alert"]["action"] == "allowed"]
    assert "nDPI flow risk" in allowed
    drops = [event for event in events if event["event_type"] == "drop"]
    assert [event for event in drops if event["drop"]["reason"] == "flow_score: 100 >= 100"]
    assert {event["verdict"]["action"] for event in drops} == {"drop"}
    # alerts and flows belong together by flow_id
    flows = {event["flow_id"]: event for event in events if event["event_type"] == "flow"}
    assert len(flows) == len([event for event in events if event["event_type"] == "flow"])
    for event in alerts:
        assert flows[event["flow_id"]]["flow"]["alerted"]
        assert flows[event["flow_id"]]["src_port"] == event["src_port"]
    # bytes per client
    by_client: dict[str, int] = {}
    for event in flows.values():
        flow = event["flow"]
        total = flow["bytes_toserver"] + flow["bytes_toclient"]
        by_client[event["src_ip"]] = by_client.get(event["src_ip"], 0) + total
    assert sum(by_client.values()) == sum(len(packet.data) for packet in some_of_everything())
