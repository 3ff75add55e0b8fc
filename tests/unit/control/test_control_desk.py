"""The desk and its workers, with real engines and nDPI but no processes."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from control_kit import Office, Raw
from kit import CLIENT, SERVER, T0, Packet, Tcp, Udp, bench, client_hello, dns, http_request, ping

from nedge.core.verdict import Action
from nedge.gateway import answers, desk, questions
from nedge.gateway.answers import PAGE
from nedge.gateway.listing import FLOW_COLUMNS, HOST_COLUMNS, SCRIPT_COLUMNS
from nedge.gateway.orders import OrderFile
from nedge.gateway.summary import FAILURES, LOSSES, RATE_SECONDS, Rates

OTHER = "192.168.1.11"
SCRIPTS = {
    "judge_names": """
        "Blocks by name."
        from nedge.scripts import status_types, define_status
        title = "Names"
        l7_proto = "DNS"
        mine = define_status(59, "status_mine", "My problem")
        def protocolDetected(flow, now, conf):
            name = flow.getHostName()
            if name == "bad.example":
                flow.triggerStatus(status_types.status_web_mining_detected, {"why": name}, 100, 40, 10)
            if name == "odd.example":
                flow.setStatus(mine, 7, 0, 0)
            if name == "boom.example":
                raise RuntimeError("boom \\udcff")
    """,
    "quiet": """
        three_way_handshake_ok = True
        def periodicUpdate(flow, now, conf): pass
    """,
}


def tls(name: str, sport: int) -> list[Packet]:
    return Tcp(sport=sport, dport=443, start=T0 + 2).handshake().client(client_hello(name)).packets


def http(name: str, sport: int) -> list[Packet]:
    return Tcp(sport=sport, dport=80, start=T0 + 3).handshake().client(http_request(name)).packets


@pytest.fixture
def office(tmp_path: Path) -> Iterator[Office]:
    """Two workers; the first has four flows of one client, the second one of another."""
    with ExitStack() as stack:
        toml = "[verdict]\nhost_drop_score = 80\n"
        benches = [stack.enter_context(bench(toml, SCRIPTS)) for _ in range(2)]
        benches[0].feed(dns("good.example", sport=1001, start=T0).packets)
        benches[0].feed(dns("bad.example", sport=1002, start=T0 + 1).packets)
        benches[0].feed(tls("www.example", 1003))
        benches[0].feed(http("plain.example", 1004))
        benches[1].feed(dns("odd.example", client=OTHER, sport=2001, start=T0 + 2).packets)
        office = Office(tmp_path, *benches)
        yield office
        assert [worker.failures for worker in office.workers] == [[], []]
        office.close()


def ids(records: list[dict[str, Any]]) -> set[str]:
    return {record["id"] for record in records}


def by_name(office: Office) -> dict[str, dict[str, Any]]:
    return {flow["hostname"]: flow for flow in office.records(command="flows")}


# Flows


def test_flows_of_all_workers(office: Office) -> None:
    flows = by_name(office)
    assert set(flows) == {"good.example", "bad.example", "www.example", "plain.example", "odd.example"}
    assert ids(office.records(command="flows")) == {"0-1", "0-2", "0-3", "0-4", "1-1"}
    bad = flows["bad.example"]
    assert (bad["src_ip"], bad["src_port"], bad["dest_ip"], bad["dest_port"]) == (CLIENT, 1002, SERVER, 53)
    assert (bad["proto"], bad["app_proto"], bad["verdict"], bad["score"]) == ("UDP", "DNS", "drop", 100)
    assert (bad["cli_score"], bad["srv_score"]) == (40, 10)
    assert bad["reason"] == "flow_score: 100 >= 100"
    assert set(bad["status"]) == {"status_web_mining_detected", "status_blocked"}
    assert flows["odd.example"]["status"] == ["status_mine"]
    assert (bad["pkts_toserver"], bad["start"]) == (1, T0 + 1)
    result = office.result(command="flows", protocol="dns")
    assert result == {"looked_at": 5, "matched": 3, "silent": []}


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, {"0-1", "0-2", "0-3", "0-4", "1-1"}),
        ({"host": OTHER}, {"1-1"}),
        ({"host": SERVER}, {"0-1", "0-2", "0-3", "0-4", "1-1"}),
        ({"host": "192.168.1.10/31"}, {"0-1", "0-2", "0-3", "0-4", "1-1"}),
        ({"host": "192.168.1.11/32"}, {"1-1"}),
        ({"host": "2001:db8::/32"}, set()),
        ({"host": "example"}, {"0-1", "0-2", "0-3", "0-4", "1-1"}),
        ({"host": "bad.example"}, {"0-2"}),
        ({"protocol": "tls"}, {"0-3"}),
        ({"protocol": "TCP"}, {"0-3", "0-4"}),
        ({"protocol": "http", "host": CLIENT}, {"0-4"}),
        ({"protocol": "nonsense"}, set()),
        ({"category": "web"}, {"0-3", "0-4"}),
        ({"verdict": "drop"}, {"0-2"}),
        ({"verdict": "blocked"}, {"0-2"}),
        ({"verdict": "reject"}, set()),
        ({"verdict": "pass", "protocol": "dns"}, {"0-1", "1-1"}),
        ({"status": "web_mining_detected"}, {"0-2"}),
        ({"status": "status_blocked"}, {"0-2"}),
        ({"status": "mine"}, {"1-1"}),
        ({"min_score": 7}, {"0-2", "1-1"}),
        ({"min_score": 8}, {"0-2"}),
    ],
)
def test_filters(office: Office, wanted: dict[str, Any], found: set[str]) -> None:
    assert ids(office.records(command="flows", **wanted)) == found
    assert office.result(command="flows", **wanted)["matched"] == len(found)


def test_the_highest_come_from_each_worker(office: Office) -> None:
    for sort, reverse, found in (
        ("score", False, {"0-2", "1-1"}),
        ("start", False, {"0-4", "1-1"}),
        ("bytes", False, {"0-3", "1-1"}),
        ("packets", False, {"0-3", "1-1"}),
        ("dropped", False, {"0-2", "1-1"}),
        ("bytes", True, {"0-2", "1-1"}),  # the shorter name
    ):
        answer = office.records(command="flows", sort=sort, reverse=reverse, limit=1)
        if sort == "packets":  # two have as many
            assert len(answer) == 2
        else:
            assert (sort, ids(answer)) == (sort, found)
    assert office.result(command="flows", limit=1)["matched"] == 5


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"status": "nope"}, "status: found 'nope'; allowed are blacklisted, "),
        ({"host": "a b"}, "host: found 'a b'; allowed is an address, a network or a domain"),
        ({"host": "10.0.0.1/8"}, "host: found '10.0.0.1/8'"),
    ],
)
def test_filters_that_cannot_be_met(office: Office, wanted: dict[str, Any], said: str) -> None:
    kind, sentence = office.error(command="flows", **wanted)
    assert kind == "usage"
    assert said in sentence
    assert "mine" in sentence or "status" not in wanted


# Hosts and scripts


def test_hosts(office: Office) -> None:
    hosts = office.records(command="hosts")
    of = {(host["ip"], host["flows_as_client"] + host["flows_as_server"]): host for host in hosts}
    assert set(of) == {(CLIENT, 4), (SERVER, 4), (OTHER, 1), (SERVER, 1)}
    client = of[CLIENT, 4]
    assert (client["local"], client["score"], client["blocked_flows"]) == (True, 40, 1)
    flows = [flow for flow in office.records(command="flows") if flow["src_ip"] == CLIENT]
    assert client["bytes_sent"] == sum(flow["bytes_toserver"] for flow in flows)
    assert (
        of[SERVER, 4]["bytes_sent"] == client["bytes_rcvd"] == sum(flow["bytes_toclient"] for flow in flows)
    )
    assert {host["ip"] for host in office.records(command="hosts", protocol="tls")} == {CLIENT, SERVER}
    assert [host["ip"] for host in office.records(command="hosts", min_score=40)] == [CLIENT]
    assert [host["ip"] for host in office.records(command="hosts", host=OTHER)] == [OTHER]
    assert office.records(command="hosts", quarantined=True) == []
    assert office.error(command="hosts", host="www.example")[0] == "usage"


def test_scripts(office: Office) -> None:
    first, second = (
        [script for script in office.records(command="scripts") if script["script"] == key]
        for key in ("judge_names", "quiet")
    )
    first.sort(key=lambda script: -script["calls"])  # workers answer in any order
    assert [script["calls"] for script in first] == [2, 1]
    assert [(script["statuses_set"], script["flows_dropped"]) for script in first] == [(1, 1), (1, 0)]
    assert all(script["time_ns"] > 0 for script in first)
    assert (first[0]["title"], first[0]["hooks"], first[0]["filters"]["l7"]) == (
        "Names",
        ["protocolDetected"],
        "DNS",
    )
    assert second[0]["filters"]["three_way_handshake_ok"]
    assert second[0]["calls"] == 0


def test_errors_of_scripts_whatever_they_say(office: Office) -> None:
    office.workers[0].bench.feed(dns("boom.example", sport=7).packets)
    of_both = [one for one in office.records(command="scripts") if one["script"] == "judge_names"]
    (script,) = [one for one in of_both if one["errors"]]  # the workers answer in any order
    assert (script["errors"], script["last_error"]) == (1, "RuntimeError: boom ?")
    assert re.fullmatch(r".*/judge_names\.py:\d+", script["last_error_at"])
    assert (script["timeouts"], script["aside"]) == (0, "")


def test_scripts_that_are_put_aside(office: Office) -> None:
    (script, _other) = office.workers[0].bench.assembly.scripts
    script.timeouts, script.aside = 5, "keeps failing, or taking too long"
    (first, _other) = [one for one in office.records(command="scripts") if one["script"] == "judge_names"]
    assert (first["timeouts"], first["aside"]) == (5, "keeps failing, or taking too long")
    assert first["p99_ns"] == script.time_quantile(0.99) > 0


def test_columns(office: Office) -> None:
    """What is promised in deploy/CONTROL.md."""
    document = (Path(__file__).parents[3] / "deploy" / "CONTROL.md").read_text()
    for columns in (FLOW_COLUMNS, HOST_COLUMNS, SCRIPT_COLUMNS, desk.ORDER_COLUMNS):
        for name in columns:
            assert f"`{name}`" in document, name


# The story of a flow


def test_explain(office: Office) -> None:
    office.workers[0].kernel = {"connection": False}
    story = office.result(command="explain", flow="0-2")
    assert story["flow"]["id"] == "0-2"
    assert story["flow"]["client"]["score"] == 40
    detection = story["detection"]
    assert (detection["protocol"], detection["hostname"], detection["at_packet"]) == ("DNS", "bad.example", 1)
    assert detection["facts"]["dns_query"] == "bad.example"
    statuses = {status["status"]: status for status in story["statuses"]}
    mining = statuses["status_web_mining_detected"]
    assert (mining["script"], mining["score"], mining["cli_score"], mining["srv_score"]) == (
        "judge_names",
        100,
        40,
        10,
    )
    assert (mining["time"], mining["set"], mining["info"]) == (int(T0 + 1), True, {"why": "bad.example"})
    verdict = story["verdict"]
    assert (verdict["action"], verdict["rule"], verdict["detail"]) == ("drop", "flow_score", "100 >= 100")
    assert (verdict["at_packet"], verdict["time"]) == (1, T0 + 1)
    assert story["evidence"]["score"] == 100
    assert story["policy"]["drop_score"] == 100
    assert story["kernel"] == {"connection": False}
    assert office.result(command="explain", flow="1-1")["kernel"] is None


def test_explain_what_an_event_named(office: Office) -> None:
    for number, worker in enumerate(office.workers):
        for flow in worker.bench.engine.table.walk():
            flow.id += (number + 7) << 32
    event = (8 << 32) + 1
    story = office.result(command="explain", flow=str(event))
    assert story["flow"]["id"] == "1-1"
    assert story["flow"]["id"] in {flow["id"] for flow in office.records(command="flows")}
    assert office.error(command="explain", flow=str(event + 50))[0] == "failed"
    (order,) = [office.result(command="block", target=str(event))["order"]]
    assert order["kind"] == "flow"


@pytest.mark.parametrize(
    ("flow", "kind", "said"),
    [
        ("0-99", "failed", "there is no flow 0-99 (any more)"),
        ("9-1", "failed", "the worker that had it has been replaced"),
        ("x", "usage", "flow: found 'x'; allowed is a flow's id"),
        ("0", "usage", "flow: found '0'"),
        ("0-1 ", "usage", "flow: found '0-1 '"),
        ("-1-1", "usage", "flow: found '-1-1'"),
        ("1" * 30 + "-1", "usage", "flow: found"),
    ],
)
def test_explain_what_is_not_there(office: Office, flow: str, kind: str, said: str) -> None:
    found, sentence = office.error(command="explain", flow=flow)
    assert (found, said in sentence) == (kind, True), sentence


# Orders


def actions(office: Office) -> dict[str, str]:
    return {name: flow["verdict"] for name, flow in by_name(office).items()}


def test_block_and_forget_a_domain(office: Office) -> None:
    result = office.result(command="block", target="*.Example", seconds=60, reason="test")
    order = result["order"]
    assert (result["changed"], result["silent"], result["warning"]) == (4, [], "")
    assert (order["id"], order["kind"], order["target"], order["word"]) == (1, "domain", "example", "block")
    assert order["until"] == order["made"] + 60
    assert set(actions(office).values()) == {"drop"}
    assert by_name(office)["www.example"]["reason"] == "operator_block: order 1 on domain example (test)"
    listed = office.records(command="orders")
    assert listed == [order]
    assert office.result(command="forget", order=1)["changed"] == 4
    assert [name for name, verdict in actions(office).items() if verdict == "drop"] == ["bad.example"]
    assert office.records(command="orders") == []
    assert [order.target for order in office.workers[1].recalled] == ["example", "example"]


def test_unblock_wins_and_takes_the_place_of_a_block(office: Office) -> None:
    assert office.result(command="block", target=CLIENT)["changed"] == 3
    assert office.result(command="unblock", target=CLIENT)["changed"] == 4
    assert set(actions(office).values()) == {"pass"}
    assert [order["id"] for order in office.records(command="orders")] == [2]
    assert office.result(command="forget", target=CLIENT)["changed"] == 1


def test_an_order_on_a_flow(office: Office) -> None:
    result = office.result(command="block", target="0-3")
    order = result["order"]
    assert (order["kind"], order["target"]) == ("flow", f"tcp {CLIENT}:1003 > {SERVER}:443")
    assert order["until"] == order["made"] + desk.FLOW_ORDER_SECONDS
    assert [name for name, verdict in actions(office).items() if verdict == "drop"] == [
        "bad.example",
        "www.example",
    ]
    assert office.error(command="forget", target="0-1") == (
        "failed", f"there is no order with the target udp {CLIENT}:1001 > {SERVER}:53",
    )  # fmt: skip
    assert office.result(command="forget", target="0-3")["changed"] == 1
    assert office.error(command="block", target="0-99") == ("failed", "there is no flow 0-99 (any more)")
    office.result(command="block", target="0-3", seconds=5)
    assert office.result(command="forget", target=order["target"])["changed"] == 1


@pytest.mark.parametrize(
    ("request_", "kind", "said"),
    [
        ({"command": "block", "target": "10.0.0.1/8"}, "usage", "did you mean 10.0.0.0/8?"),
        ({"command": "block", "target": ""}, "usage", "neither a flow"),
        ({"command": "forget"}, "usage", "name either the order's number or its target"),
        ({"command": "forget", "order": 1, "target": "x"}, "usage", "name either"),
        ({"command": "forget", "order": 7}, "failed", "there is no order with the number 7"),
        (
            {"command": "forget", "target": "x.example"},
            "failed",
            "there is no order with the target x.example",
        ),
        (
            {"command": "release", "host": "x.example"},
            "usage",
            "host: found 'x.example'; allowed is an address",
        ),
        ({"command": "release", "host": "10.0.0.0/8"}, "usage", "allowed is an address"),
        ({"command": "release", "host": OTHER}, "failed", f"{OTHER} is not in quarantine"),
    ],
)
def test_orders_that_cannot_be(office: Office, request_: dict[str, Any], kind: str, said: str) -> None:
    found, sentence = office.error(**request_)
    assert (found, said in sentence) == (kind, True), sentence
    assert len(office.orders.book) == 0


def test_orders_end_by_themselves(office: Office) -> None:
    office.result(command="block", target="www.example", seconds=0.01)
    office.result(command="block", target="plain.example")
    time.sleep(0.02)
    office.desk.turn(time.monotonic())
    office.settle()
    assert actions(office)["www.example"] == "pass"
    assert actions(office)["plain.example"] == "drop"
    assert [order["target"] for order in office.records(command="orders")] == ["plain.example"]
    assert "www.example" not in office.orders.path.read_text()


def test_orders_are_there_after_a_restart(office: Office, tmp_path: Path) -> None:
    office.result(command="block", target="www.example", reason="one")
    office.result(command="unblock", target="2001:db8::/32")
    office.result(command="forget", order=2)
    file = OrderFile(tmp_path, "nedge0")
    file.load()
    assert [(order.target, order.reason) for order in file.book] == [("www.example", "one")]
    assert file.next == 3, "a number is not used twice"
    with bench("", SCRIPTS) as made:
        made.engine.verdicts.orders = file.book
        made.feed(tls("www.example", 5))
        assert made.judged.actions[-1] is Action.DROP


def test_an_order_that_cannot_be_stored_is_in_force_all_the_same(office: Office, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(office.orders, "path", Path("/proc/none/nedge0.orders.json"))
    result = office.result(command="block", target="www.example")
    assert "/proc/none/nedge0.orders.json: cannot be written" in result["warning"]
    assert actions(office)["www.example"] == "drop"
    assert office.result(command="status")["control"]["orders_unstored"] == 1


def test_there_is_a_bound_on_orders(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk, "MAX_ORDERS", 2)
    for target in ("a.example", "b.example", "a.example"):
        office.result(command="block", target=target)
    assert office.error(command="block", target="c.example") == (
        "failed", "there are 2 orders already; forget some first",
    )  # fmt: skip


# Quarantine


def cut(office: Office) -> None:
    """Two more names, and the client has a score of 120."""
    for number in range(2):
        office.workers[0].bench.feed(dns("bad.example", sport=50 + number, start=T0 + 9).packets)


def test_release(office: Office) -> None:
    let_go: list[str] = []
    office.desk.let_go = lambda target: bool(let_go.append(target))
    cut(office)
    (host,) = office.records(command="hosts", quarantined=True)
    assert (host["ip"], host["quarantined_until"]) == (CLIENT, T0 + 9 + 300)
    assert office.result(command="status")["quarantined"] == [CLIENT]
    assert actions(office)["www.example"] == "drop"
    result = office.result(command="release", host=CLIENT)
    assert result == {"host": CLIENT, "changed": 3, "going_on": False, "silent": [], "warning": ""}
    assert let_go == [CLIENT]
    assert actions(office)["www.example"] == "pass"
    assert office.records(command="hosts", quarantined=True) == []
    assert office.error(command="release", host=CLIENT)[0] == "failed"
    office.desk.let_go = lambda target: True  # the kernel alone had it
    assert office.result(command="release", host=CLIENT)["changed"] == 0


def test_unblock_tells_the_kernels_quarantine(office: Office) -> None:
    let_go: list[str] = []
    office.desk.let_go = lambda target: bool(let_go.append(target))
    cut(office)
    for target in ("192.168.1.0/24", SERVER, "www.example", "0-1"):
        office.result(command="unblock", target=target)
    office.result(command="block", target=OTHER)
    assert let_go == ["192.168.1.0/24", SERVER]
    assert office.records(command="hosts", quarantined=True) == []


# Status


def test_status(office: Office) -> None:
    status = office.result(command="status")
    assert (status["mode"], status["bridge"], status["fail"]) == ("inline", "nedge0", "open")
    assert (status["live_flows"], status["orders"], status["reloads"]) == (5, 0, 0)
    assert status["scripts"] == ["judge_names", "quiet"]
    assert [worker["health"] for worker in status["workers"]] == ["ok", "ok"]
    assert status["ndpi"]
    assert status["control"]["control_requests"] == 1
    office.workers[0].pid, office.workers[1].ready = 0, False
    status = office.result(command="status")
    assert [worker["health"] for worker in status["workers"]] == ["restarting", "starting"]
    assert status["silent"] == [0]
    assert status["live_flows"] == 1


def test_status_without_any_worker(office: Office) -> None:
    for worker in office.workers:
        worker.pid = 0
    assert office.result(command="status")["silent"] == [0, 1]
    assert office.error(command="flows") == ("failed", desk._NOBODY)
    assert office.error(command="explain", flow="0-1") == ("failed", desk._NOBODY)
    assert office.error(command="block", target="0-1") == ("failed", desk._NOBODY)
    assert office.result(command="block", target="www.example")["silent"] == [0, 1]  # but it is in force


def test_rates() -> None:
    rates = Rates()
    assert rates.per_second()["packets"] == 0
    for second in range(20):
        rates.note(second, {"packets": 100 * second, "flows": 7})
    assert rates.per_second() == {"packets": 100.0, "flows": 0.0, "bytes": 0.0, "dropped_packets": 0.0}
    rates.note(20, {"packets": 5})  # a worker was replaced
    assert rates.per_second()["packets"] == 0
    assert len(rates._samples) <= RATE_SECONDS + 2


# Workers that do not answer, and slow clients


def test_a_worker_that_says_nothing_is_not_waited_for(office: Office) -> None:
    office.workers[1].deaf = True
    client = Raw(office, office.server.path)
    client.ask(command="flows")
    office.settle()
    office.desk.turn(time.monotonic() + questions.ANSWER_SECONDS - 1)
    office.settle()
    assert not client.lines() or "ok" not in client.lines()[-1]
    office.desk.turn(time.monotonic() + questions.ANSWER_SECONDS + 1)
    assert client.answers(2)[-1]["result"] == {"looked_at": 4, "matched": 4, "silent": [1]}
    assert office.desk.figures()["control_unanswered"] == 1
    client.close()


def test_a_worker_that_dies_is_not_waited_for(office: Office) -> None:
    office.workers[1].deaf = True
    client = Raw(office, office.server.path)
    client.ask(command="scripts")
    office.settle()
    office.desk.lost(1)
    answer = client.answers(2)
    assert len(answer[0]["rows"]) == 2
    assert answer[-1]["result"] == {"silent": [1]}
    client.close()


def many(office: Office, count: int) -> None:
    packets = [packet for number in range(count) for packet in ping(f"10.{number >> 8}.{number & 255}.1")]
    office.workers[0].bench.feed(packets)


def test_large_listings_come_in_small_pages_to_whoever_reads(office: Office) -> None:
    many(office, 8000)
    client = Raw(office, office.server.path)
    client.ask(command="flows")
    for _ in range(500):  # it does not read
        office.turn(0.001)
    pending = office.workers[0].answers._jobs
    assert len(pending) == 1
    assert not pending[0].exhausted, "the worker must wait for the client"
    other = office.result(command="explain", flow="0-2")  # others are served meanwhile
    assert other["flow"]["id"] == "0-2"
    lines = client.answers(2)
    office.until(lambda: "ok" in client.lines()[-1])
    lines = client.lines()
    assert sum(len(line["rows"]) for line in lines[:-1]) == 8005
    assert len({row[0] for line in lines[:-1] for row in line["rows"]}) == 8005
    assert office.workers[0].wire.largest < PAGE + 4096
    assert not pending
    client.close()


def test_a_client_that_leaves_ends_its_question(office: Office) -> None:
    many(office, 8000)
    client = Raw(office, office.server.path)
    client.ask(command="flows")
    for _ in range(50):
        office.turn(0.001)
    assert office.workers[0].answers._jobs
    client.close()
    office.settle()
    assert not office.workers[0].answers._jobs
    assert not office.desk._questions._open


def test_a_full_link_is_tried_again(office: Office) -> None:
    office.workers[0].wire.full = True
    client = Raw(office, office.server.path)
    client.ask(command="flows")
    office.settle()
    assert office.workers[0].wire.refused == 1, "not again and again"
    office.workers[0].wire.full = False
    office.workers[0].answers.resume()
    assert client.answers(3)[-1]["result"]["matched"] == 5
    client.close()


def test_work_comes_in_slices(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packets are judged between: here one flow of them after each step."""
    many(office, 2000)
    monkeypatch.setattr(answers, "SLICE", 0.0)  # every step ends at once
    monkeypatch.setattr(answers, "PATIENCE", 100.0)
    client = Raw(office, office.server.path)
    client.ask(command="block", target="10.0.0.0/8")
    for number in range(20):
        office.turn()
        new = Udp(f"10.99.0.{number + 1}", SERVER, sport=9, dport=9).client(b"x").packets
        office.workers[0].bench.feed(new)
        assert office.workers[0].bench.judged.actions[-1] is Action.DROP, "a new flow, at once"
    monkeypatch.setattr(answers, "SLICE", 0.01)
    assert client.answers()[0]["result"]["changed"] >= 2000
    assert {flow["verdict"] for flow in office.records(command="flows", host="10.0.0.0/8")} == {"drop"}
    client.close()


def test_packets_go_first(office: Office) -> None:
    """Where some came since the last slice, there is a pause before the next."""
    (worker, _other) = office.workers
    office.result(command="flows")
    before, worker.held = worker.paused, True
    worker.bench.feed(dns("new.example", sport=9, start=T0 + 5).packets)
    client = Raw(office, office.server.path)
    client.ask(command="flows")
    office.settle()
    assert worker.paused == before + 1
    assert [job.rows for job in worker.answers._jobs] == [[]]
    worker.answers.resume()  # the pause is over, and no packet came
    assert client.answers(3)[-1]["result"]["matched"] == 6
    assert worker.paused == before + 1
    client.close()


def test_packets_that_wait_go_first(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """But however many there are: there is a slice between two pauses, so an answer comes."""
    (worker, _other) = office.workers
    many(office, 500)
    monkeypatch.setattr(answers, "SLICE", 0.0)  # every step ends at once
    worker.waiting = True
    before = worker.paused
    client = Raw(office, office.server.path)
    client.ask(command="flows")
    office.until(lambda: any("result" in line for line in client.lines()))
    assert client.lines()[-1]["result"]["matched"] >= 500
    assert worker.paused >= before + 500
    client.close()


def test_an_order_is_answered_before_it_has_come_to_all_flows(office: Office, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    many(office, 2000)
    monkeypatch.setattr(answers, "SLICE", 0.0)
    monkeypatch.setattr(answers, "PATIENCE", 1e-9)
    result = office.result(command="block", target="10.0.0.0/8")
    assert result["going_on"]
    assert result["changed"] < 2000
    office.until(lambda: not office.workers[0].answers._jobs)
    assert office.records(command="flows", host="10.0.0.0/8", verdict="pass") == []


@pytest.mark.parametrize("patience", [0.03, 100.0])
def test_an_order_is_obeyed_to_its_end_though_its_client_has_left(
    office: Office, monkeypatch: pytest.MonkeyPatch, patience: float
) -> None:
    many(office, 2000)
    monkeypatch.setattr(answers, "SLICE", 0.0)
    monkeypatch.setattr(answers, "PATIENCE", patience)
    client = Raw(office, office.server.path)
    client.ask(command="block", target="10.0.0.0/8")
    for _ in range(20):
        office.turn()
    client.close()
    office.until(lambda: not office.server.clients)
    assert office.workers[0].answers._jobs
    time.sleep(0.05)  # as if the work took long
    office.until(lambda: not office.workers[0].answers._jobs)
    monkeypatch.setattr(answers, "SLICE", 0.01)
    assert office.records(command="flows", host="10.0.0.0/8", verdict="pass") == []


# Reloads


def test_reload_waits_until_all_workers_have_taken_over(office: Office) -> None:
    client, second = Raw(office, office.server.path), Raw(office, office.server.path)
    client.ask(command="reload")
    office.settle()
    assert office.signals.reload
    office.signals.reload = False
    office.reloading.begins()
    second.ask(command="reload")
    office.settle()
    assert not office.signals.reload, "one after the other"
    office.workers[1].ready = False
    office.reloading.sent(["changes in [gateway] take effect when nedge starts again"])
    office.desk.turn(time.monotonic())
    office.settle()
    assert client.lines() == []
    office.workers[1].ready = True
    office.desk.turn(time.monotonic())
    (answer,) = client.answers()
    assert answer["result"]["notes"] == ["changes in [gateway] take effect when nedge starts again"]
    assert second.lines() == []
    assert office.signals.reload, "now the second's turn"
    office.reloading.begins()
    office.reloading.failed("nedge.toml: not valid TOML")
    assert second.answers()[0]["error"] == "nedge.toml: not valid TOML"
    assert office.reloading.count == 1
    client.close()
    second.close()


def test_reload_says_if_a_worker_does_not_take_over(office: Office) -> None:
    client = Raw(office, office.server.path)
    client.ask(command="reload")
    office.settle()
    office.reloading.begins()
    office.workers[0].ready = False
    office.reloading.sent([])
    office.desk.turn(time.monotonic() + 60)
    assert "worker 0 has not taken it over" in client.answers()[0]["error"]
    client.close()


def test_reload_tells_of_workers_that_had_to_be_replaced(office: Office) -> None:
    client = Raw(office, office.server.path)
    client.ask(command="reload")
    office.settle()
    office.reloading.begins()
    office.restarts += 1
    office.reloading.sent([])
    office.desk.turn(time.monotonic())
    assert client.answers()[0]["result"]["notes"] == ["1 worker(s) had to be started anew: see the log"]
    client.close()


def test_who_leaves_is_not_answered(office: Office) -> None:
    client = Raw(office, office.server.path)
    client.ask(command="reload")
    office.settle()
    client.close()
    office.settle()
    office.reloading.begins()
    office.reloading.failed("x")


README = Path(__file__).parents[3] / "README.md"


def test_status_shows_every_failure_that_the_documentation_names(office: Office) -> None:
    section = README.read_text().split("## When something fails")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)`", row.rsplit("|", 2)[1])}
    assert len(named) > 20
    elsewhere = {"malformed", "failures"}  # by kind; a column of `nedge lists`
    assert named - elsewhere <= {*LOSSES, *FAILURES, "orders_damaged", "orders_unstored"}
    office.desk.totals = lambda: dict.fromkeys((*LOSSES, *FAILURES), 3)
    status = office.result(command="status")
    assert status["losses"] == dict.fromkeys(LOSSES, 3)
    assert status["failures"] == dict.fromkeys(FAILURES, 3)
