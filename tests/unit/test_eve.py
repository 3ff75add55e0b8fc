"""Events as EVE JSON: the fields that other tools read, and a file that may fail."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kit import CLIENT, SERVER, T0, Tcp, bench, dns, http_request, http_response, judge, ping, tls

from nedge.core.events import AlertRaised, FlowEnded, HostQuarantined, VerdictChanged
from nedge.export.eve import eve_time, event_record, proto_name, to_json
from nedge.export.table import endpoint, flow_table

CONTRACT = {
    "": ["timestamp", "src_ip", "src_port", "dest_ip", "dest_port", "proto", "vlan", "app_proto",
         "event_type"],
    "flow": ["pkts_toserver", "pkts_toclient", "bytes_toserver", "bytes_toclient", "start", "end", "age"],
    "ndpi": ["proto", "master_id", "app_id", "category", "breed", "hostname", "risks"],
    "nedge": ["status", "status_map", "score", "cli_score", "srv_score", "verdict", "reason",
              "decided_at_packet", "dropped_packets"],
}  # fmt: skip
"""What every flow event has at least."""


def check_contract(event: dict[str, Any]) -> None:
    for place, names in CONTRACT.items():
        where = event[place] if place else event
        assert [name for name in names if name not in where] == []
    assert event["event_type"] == "flow"
    assert isinstance(event["nedge"]["status"], list)
    assert event["nedge"]["verdict"] in ("pass", "drop", "reject")
    for text in (event["timestamp"], event["flow"]["start"], event["flow"]["end"]):
        assert datetime.strptime(text, "%Y-%m-%dT%H:%M:%S.%f%z").utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (0, "1970-01-01T00:00:00.000000+0000"),
        (1_750_000_000, "2025-06-15T15:06:40.000000+0000"),
        (1_750_000_000.25, "2025-06-15T15:06:40.250000+0000"),
        (1_750_000_000.000001, "2025-06-15T15:06:40.000001+0000"),
        (1_750_000_000.07, "2025-06-15T15:06:40.070000+0000"),
        (1_750_000_000.9999999, "2025-06-15T15:06:41.000000+0000"),
        (-5.0, "1970-01-01T00:00:00.000000+0000"),
        (1e15, "9999-12-31T23:59:59.000000+0000"),
        (4_294_967_295, "2106-02-07T06:28:15.000000+0000"),
    ],
)
def test_time(when: float, text: str) -> None:
    assert eve_time(when) == text


@pytest.mark.parametrize(
    ("proto", "name"),
    [
        (1, "ICMP"),
        (2, "IGMP"),
        (6, "TCP"),
        (17, "UDP"),
        (47, "GRE"),
        (58, "IPv6-ICMP"),
        (132, "SCTP"),
        (9, "9"),
    ],
)
def test_proto_names(proto: int, name: str) -> None:
    assert proto_name(proto) == name


def test_flow_record_of_http() -> None:
    talk = Tcp(dport=80, vlan=7, gap=0.5).handshake().client(http_request("www.example.com", "/a"))
    talk.server(http_response()).fin()
    event = judge(talk.packets, scripts={}).flow
    check_contract(event)
    assert (event["src_ip"], event["src_port"], event["dest_ip"], event["dest_port"]) == (
        CLIENT,
        40000,
        SERVER,
        80,
    )
    assert (event["proto"], event["vlan"], event["app_proto"]) == ("TCP", 7, "HTTP")
    flow = event["flow"]
    client = [packet for packet in talk.packets if packet.data[20:22] == (40000).to_bytes(2)]
    assert (flow["pkts_toserver"], flow["pkts_toclient"]) == (len(client), len(talk.packets) - len(client))
    assert flow["bytes_toserver"] == sum(len(packet.data) for packet in client)
    assert flow["bytes_toserver"] + flow["bytes_toclient"] == sum(len(packet.data) for packet in talk.packets)
    assert (flow["start"], flow["end"]) == (eve_time(T0), eve_time(talk.packets[-1].time))
    assert flow["age"] == int(talk.packets[-1].time) - T0
    assert (flow["state"], flow["reason"]) == ("closed", "shutdown")
    assert (event["ndpi"]["hostname"], event["ndpi"]["http_url"]) == ("www.example.com", "www.example.com/a")
    assert (event["nedge"]["verdict"], event["nedge"]["reason"]) == ("pass", "clean")
    assert event["nedge"]["decided_at_packet"] == 4


def test_flow_record_of_tls() -> None:
    event = judge(tls("1.2", "www.example.com").packets, scripts={}, library="system").flow
    check_contract(event)
    assert (event["app_proto"], event["ndpi"]["tls_version"], event["ndpi"]["sni"]) == (
        "TLS",
        "TLSv1.2",
        "www.example.com",
    )
    assert len(event["ndpi"]["ja3"]) == 32
    assert event["ndpi"]["cert_not_after"].endswith("+0000")


def test_flow_record_of_what_has_no_ports() -> None:
    event = judge(ping(), scripts={}).flow
    check_contract(event)
    assert (event["proto"], event["src_port"], event["dest_port"]) == ("ICMP", 0, 0)


BLOCKING = {
    "block": """
    from nedge.scripts import *
    def protocolDetected(flow, now, conf):
        flow.triggerStatus(status_types.status_web_mining_detected, {"why": b"\\xff"}, 100, 20, 3)
    """
}


def test_records_of_a_blocked_flow() -> None:
    judged = judge(dns("a.example").packets, scripts=BLOCKING)
    assert [event["event_type"] for event in judged.events] == ["alert", "drop", "flow"]
    alert, drop, flow = judged.events
    check_contract(flow)
    assert flow["nedge"]["status"] == ["status_blocked", "status_web_mining_detected"]
    assert flow["nedge"]["status_map"] == 1 << 3 | 1 << 27
    assert (flow["nedge"]["score"], flow["nedge"]["cli_score"], flow["nedge"]["srv_score"]) == (100, 20, 3)
    assert (flow["nedge"]["verdict"], flow["nedge"]["reason"]) == ("drop", "flow_score: 100 >= 100")
    assert (flow["nedge"]["decided_at_packet"], flow["nedge"]["dropped_packets"]) == (1, 2)
    assert flow["flow"]["alerted"] is True
    assert flow["nedge"]["statuses"]["27"]["script"] == "block"
    # Suricata's alert object
    assert alert["alert"]["signature_id"] == 27
    assert alert["alert"]["signature"]
    assert 1 <= alert["alert"]["severity"] <= 3
    assert alert["alert"]["action"] in ("allowed", "blocked")
    assert drop["nedge"]["previous"] == "undetected"
    assert len({event["flow_id"] for event in judged.events}) == 1
    for event in judged.events:
        assert json.loads(to_json(event))["timestamp"] == event["timestamp"]


def test_alert_of_a_blocked_flow_says_so() -> None:
    judged = judge(dns("a.example").packets, scripts=BLOCKING)
    assert judged.alerts[0]["alert"]["action"] == "blocked"


def test_record_of_a_quarantine() -> None:
    judged = judge(dns("a.example").packets, "verdict.host_drop_score = 20", BLOCKING)
    (event,) = [event for event in judged.events if event["event_type"] == "quarantine"]
    assert (event["src_ip"], event["nedge"]["score"]) == (CLIENT, 20)
    assert event["nedge"]["until"] == eve_time(T0 + 300)


def test_every_event_has_a_record() -> None:
    with bench("verdict.host_drop_score = 20", BLOCKING) as made:
        events: list[Any] = []
        made.engine._sink = events.append
        made.feed(dns("a.example").packets)
        made.engine.finish(made.engine.now)
        assert {type(event) for event in events} == {AlertRaised, VerdictChanged, HostQuarantined, FlowEnded}
        for event in events:
            assert event_record(event, made.assembly.classifier)["timestamp"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": 1}, {"a": 1}),
        ({1: {2: "x"}}, {"1": {"2": "x"}}),
        ({"a": (1, 2)}, {"a": [1, 2]}),
        ({"a": b"\xff"}, {"a": "b'\\xff'"}),
        ({"a": Path("/x")}, {"a": "/x"}),
        ({"a": "ü\n\x00"}, {"a": "ü\n\x00"}),
        ({"a": float("nan")}, {"a": None}),
    ],
)
def test_json(value: Any, written: Any) -> None:
    line = to_json(value)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert json.loads(line) == written


@pytest.mark.parametrize(
    "value", [{"a": 1 << 64}, {"a": "\ud800"}, {("a", 1): 2}], ids=["big", "surrogate", "key"]
)
def test_json_of_what_it_cannot_hold(value: Any) -> None:
    assert json.loads(to_json(value))


# The table for people


@pytest.mark.parametrize(
    ("address", "port", "text"),
    [
        ("10.0.0.1", 80, "10.0.0.1:80"),
        ("10.0.0.1", 0, "10.0.0.1"),
        ("10.0.0.1", None, "10.0.0.1"),
        ("fd00::1", 80, "[fd00::1]:80"),
        ("fd00::1", 0, "fd00::1"),
    ],
)
def test_endpoint(address: str, port: int | None, text: str) -> None:
    assert endpoint(address, port) == text


def test_names_off_the_wire_cannot_move_the_cursor() -> None:
    from io import StringIO

    from rich.console import Console

    event = judge(dns("a.example").packets, scripts={}).flow
    event["ndpi"]["hostname"] = "\x1b[2Jevil\r\n[bold]x[/bold]\u202e"
    out = StringIO()
    Console(file=out, width=160).print(flow_table([event]))
    text = out.getvalue()
    assert "\x1b" not in text
    assert "\r" not in text
    assert "\u202e" not in text
    assert "[bold]x[/bold]" in text
