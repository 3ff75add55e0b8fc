"""Scripts on the bench: what they see of a made flow, when they are called, what comes of it."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nedge.testing import (
    CLIENT,
    CLIENT6,
    RST,
    SERVER6,
    SHIPPED_POLICIES,
    SYN,
    T0,
    Bench,
    CaptureError,
    ConfigError,
    MadeFlow,
    ScriptError,
    Tcp,
    dns,
    load_script,
    make_flow,
    ping,
    tls,
    write_pcap,
)

Load = Callable[..., Bench]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Loads a script given as text, with the usual imports."""

    def load_text(source: str, name: str = "mine", **how: Any) -> Bench:
        path = tmp_path / f"{name}.py"
        path.write_text(f"from nedge.scripts import *\nseen = []\n{source}")
        return load_script(path, **how)

    return load_text


def ask(load: Load, expression: str, flow: MadeFlow, **how: Any) -> Any:
    """What an expression of `flow` is in protocolDetected."""
    script = load(f"def protocolDetected(flow, now, conf): seen.append({expression})\n", **how)
    script.run(flow)
    (value,) = script.variables["seen"]
    return value


# What scripts see of a made flow


@pytest.mark.parametrize(
    ("expression", "flow", "value"),
    [
        ("flow.getnDPIProtocolName()", make_flow("TLS.Google"), "TLS.Google"),
        ("flow.getnDPIProtocolName()", make_flow("dns"), "DNS"),
        ("flow.getnDPIProtocolName()", make_flow(), "Unknown"),
        ("flow.getnDPICategoryName()", make_flow("SSH"), "RemoteAccess"),
        ("flow.getnDPICategoryId()", make_flow("Mining"), 99),
        ("flow.getnDPICategoryName()", make_flow("TLS", category="Media"), "Media"),
        ("(flow.getClientIP(), flow.getServerIP())", make_flow(client="10.0.0.1", server="10.0.0.2"), None),
        ("(flow.getServerPort(), flow.getL4Proto())", make_flow("TLS"), (443, 6)),
        ("(flow.getServerPort(), flow.getL4Proto())", make_flow("DNS"), (53, 17)),
        ("(flow.getServerPort(), flow.getL4Proto())", make_flow("ICMP"), (0, 1)),
        (
            "(flow.getServerPort(), flow.getL4Proto())",
            make_flow("TLS", server_port=8443, l4="udp"),
            (8443, 17),
        ),
        ("(flow.getServerPort(), flow.getL4Proto())", make_flow("BitTorrent"), (9999, 6)),
        ("flow.getL4Proto()", make_flow("ICMP", client=CLIENT6, server=SERVER6), 58),
        ("flow.getL4Proto()", make_flow(l4=47), 47),
        ("flow.getClientKey()", make_flow(client="10.0.0.1", vlan=5), "10.0.0.1@5"),
        ("flow.getHostName()", make_flow("TLS", hostname="A.Example"), "a.example"),
        ("flow.getDnsQuery()", make_flow("DNS", hostname="a.example"), "a.example"),
        ("flow.getDnsQuery()", make_flow("TLS", hostname="a.example"), ""),
        ("flow.getInfo()", make_flow("HTTP", hostname="a.example", http_url="a.example/x"), "a.example/x"),
        ("flow.getHTTPInfo()['protos.http.last_url']", make_flow("HTTP", hostname="a.example"), "a.example/"),
        ("flow.getTLSVersion()", make_flow("TLS"), 0x0303),
        ("flow.getTLSVersion()", make_flow("TLS", tls_version=0x0301), 0x0301),
        ("flow.getFacts().cert_subject", make_flow("TLS", cert_subject="CN=a"), "CN=a"),
        ("flow.isTwhOK()", make_flow("TLS"), True),
        ("flow.isTwhOK()", make_flow("TLS", handshake=False), False),
        ("flow.isTwhOK()", make_flow("DNS"), False),
        (
            "(flow.getBytesSent(), flow.getBytesRcvd())",
            make_flow(bytes_sent=7, bytes_rcvd=1 << 40),
            (7, 1 << 40),
        ),
        (
            "(flow.getPacketsSent(), flow.isBidirectional())",
            make_flow(packets_sent=3, packets_rcvd=0),
            (3, False),
        ),
        ("flow.getGoodputBytes()", make_flow("DNS", bytes_sent=128, packets_sent=1, bytes_rcvd=0), 100),
        ("flow.getGoodputBytes()", make_flow("ICMP"), 0),
        ("(flow.getFirstSeen(), flow.getDuration())", make_flow(duration=100), (T0 - 100, 100)),
        ("flow.hasRisk(RISKS['exploit'])", make_flow(risks=["exploit"]), True),
        ("flow.hasRisk(7)", make_flow(risks=[7]), True),
        ("flow.getRiskInfo()", make_flow(), {}),
        ("flow.getTCPStats()['tcp.flags']", make_flow("SSH", tcp_flags=SYN | RST), SYN | RST),
        ("flow.isBlacklisted()", make_flow("TLS", blacklisted=True), True),
        ("flow.isBlacklisted()", make_flow("TLS"), False),
        ("flow.getnDPIMatchPacket()", make_flow(payload=b"abc"), {"payload_len": 3, "payload": b"abc"}),
        ("flow.isLocalToRemote()", make_flow(), True),
        ("flow.isRemoteToLocal()", make_flow(client="8.8.8.8", server=CLIENT), True),
        ("flow.getFullInfo()['proto.ndpi']", make_flow("SSH"), "SSH"),
        ("flow.isPassVerdict()", make_flow(), True),
    ],
)
def test_what_scripts_see(expression: str, flow: MadeFlow, value: Any, load: Load) -> None:
    assert ask(load, expression, flow) == (value if value is not None else ("10.0.0.1", "10.0.0.2"))


def test_countries_and_lists_and_networks(load: Load, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("bad.example\n")
    countries = {"203.0.113.0/24": "DE"}
    assert ask(load, "flow.getServerCountry()", make_flow(), countries=countries) == "DE"
    assert ask(load, "flow.getClientCountry()", make_flow(), countries=countries) is None
    config = f'[lists]\nmalware_domains = ["{tmp_path}/names"]\n[network]\nlocal = ["203.0.113.0/24"]\n'
    flow = make_flow("TLS", hostname="www.bad.example")
    assert ask(load, "(flow.isBlacklisted(), flow.getnDPICategoryId())", flow, config=config) == (True, 100)
    assert ask(load, "flow.isRemoteToLocal()", make_flow(), config=config) is True


def test_each_made_flow_is_another() -> None:
    script = load_script("longlived")
    flows = [script.run(make_flow("TLS")) for _ in range(3)]
    assert len({flow.core.id for flow in flows}) == 3
    assert script.flows == flows


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"protocol": "TSL"}, "knows no 'TSL'.*did you mean TLS"),
        ({"protocol": "TLS.Nosuch"}, "knows no 'TLS.Nosuch'"),
        ({"category": "Nosuch"}, "knows no 'Nosuch'"),
        ({"l4": "gre"}, "l4: found 'gre'; allowed are tcp, udp, icmp, sctp, or a number"),
        ({"client": "nobody"}, "nobody"),
        ({"risks": ["sqli"]}, "risks: found 'sqli'; allowed are xss"),
    ],
)
def test_a_flow_that_cannot_be(arguments: dict[str, Any], said: str) -> None:
    script = load_script("longlived")
    with pytest.raises(ValueError, match=said):
        script.run(make_flow(**arguments))
    assert script.flows == []


def test_an_argument_that_is_none() -> None:
    with pytest.raises(TypeError, match="make_flow: there is no 'hostnam'; did you mean 'hostname'"):
        make_flow("TLS", hostnam="a.example")
    with pytest.raises(TypeError, match="update: there is no 'zzz'; allowed are blacklisted, bytes_rcvd"):
        make_flow("TLS").update(zzz=1)
    with pytest.raises(TypeError, match="update: client, vlan cannot change"):
        make_flow("TLS").update(client="10.0.0.1", vlan=2)


def test_what_no_script_has_seen() -> None:
    flow = make_flow("TLS")
    assert repr(flow) == "<flow that no script has seen>"
    with pytest.raises(RuntimeError, match=r"script\.run\(flow\)"):
        _ = flow.verdict


# When scripts are called, and what comes of it

NOTING = "".join(
    f"def {hook}(flow, now, conf): seen.append(('{hook}', now - {T0}))\n"
    for hook in ("protocolDetected", "protocolUpdated", "periodicUpdate", "flowEnd")
)


def test_hooks_one_by_one(load: Load) -> None:
    script = load(NOTING)
    flow = script.run(make_flow("TLS"))
    script.run(flow, "protocolUpdated")
    script.advance(10)
    script.end(flow)
    assert script.variables["seen"] == [("protocolDetected", 0), ("protocolUpdated", 0), ("flowEnd", 10)]
    assert (flow.ended, flow.end_time) == ("closed", T0 + 10)
    with pytest.raises(ValueError, match="has ended"):
        script.run(flow)


def test_protocol_detected_comes_first(load: Load) -> None:
    script = load(NOTING)
    script.run(make_flow("TLS"), "flowEnd")
    assert [hook for hook, _ in script.variables["seen"]] == ["protocolDetected", "flowEnd"]


def test_a_wrong_hook() -> None:
    with pytest.raises(ValueError, match="hook: found 'protocoldetected'; allowed are protocolDetected, "):
        load_script("longlived").run(make_flow(), "protocoldetected")


@pytest.mark.parametrize(
    ("line", "times"), [("", [30, 150, 270]), ("periodic_update_seconds = 60", [30, 90, 150, 210, 270])]
)
def test_periodic_updates_as_time_passes(line: str, times: list[int], load: Load) -> None:
    script = load(
        f"{line}\ndef periodicUpdate(flow, now, conf): seen.append((now - {T0}, flow.getDuration()))\n"
    )
    script.run(make_flow("TLS", duration=1000))
    script.advance(100)
    script.advance(200)
    ticks = script.variables["seen"]
    assert [at for at, _ in ticks] == pytest.approx(times, abs=9)  # a tick is at its second or after
    assert [duration - 1000 - at for at, duration in ticks] == [0] * len(times)


def test_made_flows_do_not_fall_silent(load: Load) -> None:
    script = load(NOTING)
    flow = script.run(make_flow("DNS"))
    script.advance(24 * 3600)
    assert flow.ended == ""
    script.finish()
    assert flow.ended == "shutdown"


def test_filters_hold(load: Load) -> None:
    script = load(
        "l7_proto = 'TLS'\nthree_way_handshake_ok = True\n"
        "def protocolDetected(flow, now, conf): seen.append(1)\n"
    )
    script.run(make_flow("DNS"))
    script.run(make_flow("TLS", handshake=False))
    assert script.variables["seen"] == []
    script.run(make_flow("TLS.Google"))
    script.run(make_flow("TLS"))
    assert script.variables["seen"] == [1, 1]


def test_status_changed_follows(load: Load) -> None:
    script = load(
        "def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_user_01, 5, 6, 7)\n"
        "def statusChanged(flow, now, conf): seen.append(flow.getScore())\n"
    )
    flow = script.run(make_flow())
    assert script.variables["seen"] == [5]
    assert (flow.statuses, flow.scores, flow.alerts) == (["status_user_01"], (5, 6, 7), [])


TRIGGER = """
def protocolDetected(flow, now, conf):
    flow.triggerStatus(status_types.status_user_01, {'a': 1}, 100, 20, 3)
"""


def test_verdict_alerts_and_host_scores(load: Load) -> None:
    script = load(TRIGGER)
    flow = script.run(make_flow("TLS"))
    assert (flow.verdict, flow.reason) == ("drop", "flow_score: 100 >= 100")
    (alert,) = flow.alerts
    assert (alert.status, alert.info, alert.score) == ("status_user_01", {"a": 1}, 100)
    assert (alert.script, alert.time, alert.blocked) == ("mine", T0, True)
    assert script.alerts == flow.alerts
    script.run(make_flow("SSH"))
    assert (script.host_score(CLIENT), script.host_score("203.0.113.5")) == (40, 6)
    script.end(flow)
    assert script.host_score(CLIENT) == 20  # a live gauge
    assert script.host_score("192.0.2.1") == 0


def test_verdict_settings(load: Load) -> None:
    script = load(TRIGGER, config="[verdict]\ndrop_score = 101\nhost_drop_score = 30")
    assert script.run(make_flow()).verdict == "pass"
    second = script.run(make_flow())
    assert second.reason == "host_score: client 40 >= 30"


def test_updates_are_seen(load: Load) -> None:
    script = load(
        "def protocolUpdated(flow, now, conf): seen.append((flow.getBytes(), flow.getDuration()))\n"
    )
    flow = script.run(make_flow("TLS", bytes_sent=1, bytes_rcvd=0))
    script.advance(50)
    script.run(flow.update(bytes_sent=10), "protocolUpdated")
    script.run(flow.update(duration=7), "protocolUpdated")
    assert script.variables["seen"] == [(10, 50), (10, 7)]


def test_two_flows_cannot_be_one() -> None:
    script = load_script("longlived")
    first = script.run(make_flow("ICMP"))
    with pytest.raises(ValueError, match="alive already"):
        script.run(make_flow("ICMP"))
    script.end(first)
    script.run(make_flow("ICMP"))


# What goes wrong


def test_a_script_that_raises(load: Load) -> None:
    script = load("def protocolDetected(flow, now, conf):\n    return flow.nosuch\n")
    with pytest.raises(ScriptError, match=r"mine\.py:4: AttributeError: .*nosuch"):
        script.run(make_flow())
    with pytest.raises(ScriptError, match="nosuch"):
        script.feed(ping())
    with pytest.raises(AssertionError):  # a failed test, not a broken one
        script.run(make_flow())


@pytest.mark.parametrize("hook", ["periodicUpdate", "flowEnd"])
def test_a_script_that_raises_later(hook: str, load: Load) -> None:
    script = load(f"def {hook}(flow, now, conf):\n    1 / 0\n")
    script.run(make_flow())
    with pytest.raises(ScriptError, match=r"mine\.py:4: ZeroDivisionError"):
        script.advance(40) if hook == "periodicUpdate" else script.finish()


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("x = = 1\n", r"mine\.py:3: syntax error"),
        ("x = 1\n", "has no hook"),
        ("l7_proto = 'Nosuch'\ndef flowEnd(a, b, c): pass\n", "knows no protocol 'Nosuch'"),
        ("def setup(): return False\ndef flowEnd(a, b, c): pass\n", "is off: its setup"),
        ("nedge_exclude = True\ndef flowEnd(a, b, c): pass\n", "is off: it excludes nedge"),
    ],
)
def test_a_script_that_does_not_load(source: str, said: str, load: Load) -> None:
    with pytest.raises(ConfigError, match=said):
        load(source)


def test_wrong_settings(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"\[scripts\.longlived\] second: unknown key.*'seconds'"):
        load_script("longlived", settings={"second": 5})
    with pytest.raises(ConfigError, match=r"verdict\.drop_scores: unknown key"):
        load_script("longlived", config="[verdict]\ndrop_scores = 5")


def test_settings_go_over_configuration() -> None:
    config = "[scripts.longlived]\nseconds = 5\nscore = 7\n"
    (script,) = load_script("longlived", config=config, settings={"score": 8}).scripts
    assert (script.conf["seconds"], script.conf["score"], script.conf["client_score"]) == (5, 8, 10)


def test_no_such_script() -> None:
    with pytest.raises(
        ConfigError, match=r"nosuch: no such file, nor a script that comes with nedge: .*longlived"
    ):
        load_script("nosuch")
    with pytest.raises(ConfigError, match=r"some/where\.py: no such script"):
        load_script("some/where.py")


# Traffic


def test_packets_and_their_actions() -> None:
    script = load_script("blocked_hostname", settings={"domains": ["bad.example"]})
    assert script.feed(dns("good.example").packets) == ["pass", "pass"]
    assert script.feed(dns("bad.example", sport=5000, start=T0 + 1).packets[:1]) == ["drop"]
    assert script.actions == ["pass", "pass", "drop"]
    assert [flow.ended for flow in script.flows] == ["", ""]
    script.advance(61)
    assert [flow.ended for flow in script.flows] == ["idle", "idle"]
    assert [flow.verdict for flow in script.flows] == ["pass", "drop"]
    assert [flow.dropped_packets for flow in script.flows] == [0, 1]


def test_the_one_flow() -> None:
    script = load_script("longlived")
    with pytest.raises(AssertionError, match="0 flows"):
        _ = script.flow
    script.judge(tls().packets)
    assert (script.flow.protocol, script.flow.l4, script.flow.server_port) == ("TLS", "TCP", 443)
    assert script.flow.record["app_proto"] == "TLS"


def test_a_capture(tmp_path: Path) -> None:
    capture = write_pcap(tmp_path / "x.pcap", dns("a.example").packets + ping(start=T0 + 5))
    script = load_script("longlived")
    assert [flow.protocol for flow in script.replay(capture)] == ["DNS", "ICMP"]
    (tmp_path / "broken.pcap").write_bytes(capture.read_bytes()[:-3])
    script = load_script("longlived")
    with pytest.raises(CaptureError, match="broken after frame 3"):
        script.replay(tmp_path / "broken.pcap")
    assert len(script.flows) == 2  # those before the break


def test_a_capture_of_any_time(tmp_path: Path, load: Load) -> None:
    packets = [packet._replace(time=1000.0 + n) for n, packet in enumerate(ping())]
    script = load(NOTING.replace(str(T0), "1000"))
    script.replay(write_pcap(tmp_path / "old.pcap", packets))
    assert script.variables["seen"] == [("protocolDetected", 0), ("flowEnd", 1)]


def test_until() -> None:
    script = load_script("udp_unidirectional")
    (flow,) = script.judge(dns("a.example").packets[:1], until=T0 + 100)
    assert (flow.ended, flow.statuses) == ("idle", ["status_udp_unidirectional"])


def test_several_scripts_and_whole_directories() -> None:
    script = load_script("longlived", "elephant_flow")
    assert [each.key for each in script.scripts] == ["elephant_flow", "longlived"]
    shipped = {each.key for each in load_script(SHIPPED_POLICIES).scripts}
    assert {"longlived", "blacklisted"} < shipped
    assert "syn_probing" not in shipped  # off by default
    assert [each.key for each in load_script("syn_probing").scripts] == ["syn_probing"]


LUA = """
local flow_consts = require("flow_consts")
local script = {l7_proto = "TLS", default_value = {score = 50}, hooks = {}}
function script.hooks.protocolDetected(now, conf)
  if flow.getDuration() > 900 then error("too old") end
  flow.triggerStatus(flow_consts.status_types.status_user_01, {host = flow.getHostName()}, conf.score)
end
return script
"""


def test_a_script_in_lua(tmp_path: Path, library: str) -> None:
    path = tmp_path / "mine.lua"
    path.write_text(LUA)
    script = load_script(path, settings={"score": 100}, library=library)
    flow = script.run(make_flow("TLS", hostname="bad.example"))
    assert (flow.statuses, flow.score, flow.verdict) == (["status_user_01"], 100, "drop")
    assert flow.alerts[0].info == {"host": "bad.example"}
    assert script.run(make_flow("DNS")).statuses == []
    with pytest.raises(TypeError, match="only the variables of Python scripts"):
        script.variables  # noqa: B018
    with pytest.raises(ScriptError, match=r"mine\.lua:5: too old"):
        script.run(make_flow("TLS", duration=1000))
    path.write_text("return {hooks = 5}")
    with pytest.raises(ConfigError, match=r"mine\.lua: hooks is not a table"):
        load_script(path, library=library)


def test_nothing_stays_behind(load: Load) -> None:
    script = load("def flowEnd(flow, now, conf): pass\ndef teardown(): left.append(1)\nleft = []\n")
    left = script.variables["left"]
    classifier = weakref.ref(script.assembly.classifier)
    script.feed(Tcp().handshake().packets)
    del script
    gc.collect()
    assert left == [1]
    assert classifier() is None


def test_plain_pytest_is_enough(tmp_path: Path) -> None:
    (tmp_path / "test_it.py").write_text(
        "from nedge.testing import load_script, make_flow\n\n"
        "def test_it():\n"
        "    script = load_script('web_mining')\n"
        "    assert script.run(make_flow('Mining', client='192.168.1.5')).score == 50\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--noconftest", str(tmp_path)]
    environment = {"PYTHONPATH": str(Path(__file__).parents[3]), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path, env=environment
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
