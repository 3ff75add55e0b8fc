"""The flow API in Lua: every function, with the value that it has in Python."""

from __future__ import annotations

import inspect
from typing import Any

import kit
import lua_kit
import pytest
from kit import (
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    T0,
    Packet,
    Tcp,
    Udp,
    dns,
    http_request,
    http_response,
    ping,
    tls,
)
from lua_kit import QUIET, hook, lua, run
from test_api import BEYOND, CONTRACT

from nedge.scripts import Flow

TALKS: dict[str, list[Packet]] = {
    "tls": tls("1.2").packets,
    "dns": dns("www.example.com", "example.org").packets,
    "http": Tcp(dport=80)
    .handshake()
    .client(http_request("example.com", "/x"))
    .server(http_response())
    .packets,
    "ping6": ping(CLIENT6, SERVER6),
    "broadcast": Udp("0.0.0.0", "255.255.255.255", 68, 67).client(kit.noise(100)).packets,
}
READS = [name for name, parameters in CONTRACT.items() if not parameters]
MORE_READS = [name for name in BEYOND if list(inspect.signature(getattr(Flow, name)).parameters) == ["self"]]
OTHERWISE = ("getInfo", "getRiskInfo")  # tables of ntopng's shape
NAMES = [name for name in [*READS, *MORE_READS] if name not in OTHERWISE]
UNLIKE = {"getDnsQuery": TALKS["dns"], "getHTTPInfo": TALKS["http"], "isClientNoIP": TALKS["broadcast"]}


def plain(value: Any) -> Any:
    """A value of Python as it comes back from Lua: text for bytes; None and empty lists are nothing."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value] or {}
    return value.decode(errors="backslashreplace") if isinstance(value, bytes) else value


def of_all(names: list[str], call: str, form: str) -> str:
    """A table of what these functions give."""
    return "{" + ", ".join(form.format(name=name, call=call.format(name)) for name in names) + "}"


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("when", ["protocolDetected", "flowEnd"])
@pytest.mark.parametrize("call", ["flow.{}()", 'flow["{}"]()'], ids=["by name", "otherwise"])
def test_reads_give_what_they_give_in_python(talk: str, when: str, call: str) -> None:
    """What a script names is sent along with the call; anything else it finds only when it runs."""
    (expected,) = kit.ask(TALKS[talk], of_all(NAMES, "flow.{}()", "'{name}': {call}"), when)
    assert lua_kit.ask(TALKS[talk], of_all(NAMES, call, "{name} = {call}"), name=when) == plain(expected)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_sent_along_is_right(name: str) -> None:
    """Few enough reads to be sent along, each for itself."""
    flow = UNLIKE[name] if name in UNLIKE else TALKS["tls"]
    (expected,) = kit.ask(flow, f"flow.{name}()")
    assert lua_kit.ask(flow, f"flow.{name}()") == plain(expected)


def test_every_function_is_there() -> None:
    names = [name for name in dir(Flow) if not name.startswith("_")] + ["isTcpZeroWinAlert"]
    assert {*CONTRACT, *BEYOND} <= set(names)
    types = lua_kit.ask(ping(), of_all(names, "type(flow.{})", "{name} = {call}"))
    assert types == dict.fromkeys(names, "function")


def test_info_has_ntopngs_fields() -> None:
    info = lua_kit.ask(tls(name="www.google.com").packets, "flow.getInfo()")
    assert info | {"proto.ndpi_cat": "", "proto.ndpi_cat_id": 0, "proto.ndpi_breed": ""} == {
        "cli.ip": CLIENT,
        "cli.host": CLIENT,
        "cli.port": 40000,
        "srv.ip": SERVER,
        "srv.host": SERVER,
        "srv.port": 443,
        "vlan": 0,
        "proto.l4": "TCP",
        "proto.ndpi": "TLS.Google",
        "proto.ndpi_app": "Google",
        "proto.ndpi_cat": "",
        "proto.ndpi_cat_id": 0,
        "proto.ndpi_breed": "",
        "cli2srv.bytes": info["cli2srv.bytes"],
        "cli2srv.packets": 3,
        "srv2cli.bytes": 60,
        "srv2cli.packets": 1,
        "info": "www.google.com",
    }
    assert info["cli2srv.bytes"] > 500


RISKY = Tcp(dport=8099).handshake().client(http_request("203.0.113.5")).packets


def test_risks_are_numbers_by_name() -> None:
    (by_number,) = kit.ask(RISKY, "flow.getRiskInfo()", "flowEnd")
    assert by_number
    assert lua_kit.ask(RISKY, "flow.getRiskInfo()", name="flowEnd") == {
        name: n for n, name in by_number.items()
    }
    count = (
        "(function() local n = 0 for r = 0, 63 do if flow.hasRisk(r) then n = n + 1 end end return n end)()"
    )
    assert lua_kit.ask(RISKY, count, name="flowEnd") == len(by_number)


@pytest.mark.parametrize(("packets", "any_risk"), [(RISKY, True), (ping(), False)])
def test_has_risk_without_a_number_asks_for_any(packets: list[Packet], any_risk: bool) -> None:
    assert lua_kit.ask(packets, "flow.hasRisk()", name="flowEnd") is any_risk
    assert kit.ask(packets, "flow.hasRisk()", "flowEnd") == [any_risk]


def test_a_risk_by_ntopngs_name_for_it() -> None:
    def has(name: str) -> str:
        return f"flow.hasRisk(require('flow_risk_utils').risks.ndpi_{name})"

    assert lua_kit.ask(RISKY, has("known_protocol_on_non_standard_port"), name="flowEnd") is True
    assert lua_kit.ask(RISKY, has("tls_weak_cipher"), name="flowEnd") is False


def test_shares_of_segments_that_came_again() -> None:
    segment = Tcp(dport=9).handshake().client(b"x" * 50).packets
    again = [segment[-1]._replace(time=segment[-1].time + n) for n in (1, 2)]
    shares = "{flow.getClientRetrPercentage(), flow.getServerRetrPercentage()}"
    # SYN, ACK, the segment, and the segment twice more; SYN+ACK
    assert lua_kit.ask([*segment, *again], shares, name="flowEnd") == [0.4, 0]
    assert lua_kit.ask(ping()[:1], shares, name="flowEnd") == [0, 0]


def test_payloads_are_byte_exact() -> None:
    payload = bytes(range(256)) * 2
    head = b"GET /\xff HTTP/1.1\r\nHost: example.com\r\nX: "
    packets = Tcp(dport=80).handshake().client(head + payload.replace(b"\n", b"") + b"\r\n\r\n").packets
    hexadecimal = 'payload:gsub(".", function(c) return ("%02x"):format(c:byte()) end)'
    (expected,) = kit.ask(packets, "flow.getnDPIMatchPacket()")
    before = "local match = flow.getnDPIMatchPacket() local payload = match.payload"
    found = lua_kit.ask(packets, f"{{match.payload_len, #payload, (({hexadecimal}))}}", before)
    assert found == [expected["payload_len"]] * 2 + [expected["payload"].hex()]
    assert set(range(256)) - set(expected["payload"]) == {10} - set(head)


def test_no_payload_is_nil() -> None:
    talk = Udp(dport=47123)
    for n in range(12):
        talk.client(kit.noise(60, n))
    assert kit.ask(talk.packets, "flow.getnDPIMatchPacket()") == [{"payload_len": 0, "payload": None}]
    found = "{flow.getnDPIMatchPacket().payload_len, flow.getnDPIMatchPacket().payload == nil}"
    assert lua_kit.ask(talk.packets, found) == [0, True]


def test_the_bitmap_is_signed() -> None:
    before = (
        "flow.setStatus(status_types.status_user_05, 1) flow.setStatus(status_types.status_blacklisted, 1)"
    )
    judged, ran = run(
        {
            "script.lua": hook(f"""
        {before}
        local map = flow.getStatus()
        assert(map < 0 and map == -0x8000000000000000 | 2)
        assert(ntop.bitmapIsSet(map, 63) and ntop.bitmapIsSet(map, 1) and not ntop.bitmapIsSet(map, 2))
        assert(flow.getFullInfo().status_map == map)
        """)
        },
        ping(),
    )
    assert ran["script"].last_error == ""
    assert judged.flow["nedge"]["status_map"] == 1 << 63 | 2


@pytest.mark.parametrize(
    "call", ["flow.getScore()", "flow.getFullInfo()", "flow.getInfo()", "flow.getPackets()"]
)
def test_there_is_no_flow_outside_of_hooks(call: str, tmp_path: Any) -> None:
    from nedge.scripts.loader import load_scripts

    lua_kit.write(tmp_path, {"script.lua": lua(f"local x = {call}")})
    _, (problem,) = load_scripts([tmp_path], {}, lambda name: 1)
    assert "no flow outside of hooks" in problem.message
    assert problem.line == lua_kit.HEAD_LINES + 1


def test_counters_move_on_while_a_flow_lives() -> None:
    source = lua("""
        local function say() print(flow.getPackets(), flow.getBytes(), flow.getDuration()) end
        script.hooks.protocolDetected, script.hooks.flowEnd = say, say
        """)
    packets = [*ping(), *ping(start=T0 + 7)]
    size = len(packets[0].data)
    assert lua_kit.said({"a.lua": source}, packets) == [f"1\t{size}\t0", f"4\t{4 * size}\t7"]


def test_scores_and_verdict_are_those_of_this_moment() -> None:
    source = hook("""
        print(flow.getScore(), flow.isPassVerdict())
        flow.setStatus(status_types.status_user_01, 60)
        print(flow.getScore(), flow.isPassVerdict())
        flow.setStatus(status_types.status_user_02, 60)
        print(flow.getScore(), flow.isPassVerdict())
        """)
    assert lua_kit.said({"a.lua": source}, ping(), "") == ["0\ttrue", "60\ttrue", "120\tfalse"]


def test_countries_are_codes_or_nil(tmp_path: Any) -> None:
    database = tmp_path / "countries.mmdb"
    kit.write_countries(database, {"203.0.113.0/24": "KP"})
    toml = f'{QUIET}[geoip]\ncountry_database = "{database}"\n'
    source = hook("print(flow.getClientCountry(), flow.getServerCountry())")
    assert lua_kit.said({"a.lua": source}, ping(), toml) == ["nil\tKP"]


def test_functions_kept_while_loading_are_good_in_hooks() -> None:
    source = lua("""
        local get_packets, get_name, get_score = flow.getPackets, flow.getnDPIProtocolName, flow.getScore
        function script.hooks.protocolDetected() print(get_packets(), get_name(), get_score()) end
        function script.hooks.flowEnd() print(get_packets(), get_name(), get_score()) end
        """)
    assert lua_kit.said({"a.lua": source}, ping()) == ["1\tICMP\t0", "2\tICMP\t0"]


def test_a_script_may_put_its_own_function_in_place_of_one() -> None:
    source = lua("""
        function flow.getPackets() return "mine" end
        function script.hooks.protocolDetected() print(flow.getPackets()) end
        """)
    assert lua_kit.said({"a.lua": source}, ping()) == ["mine"]
