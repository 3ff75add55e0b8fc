"""When hooks run, for which flows, in which order, and what becomes of scripts that fail."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest
from kit import (
    ACK,
    CLIENT,
    CLIENT6,
    SERVER,
    SERVER6,
    SYN,
    T0,
    Packet,
    Tcp,
    Udp,
    ask,
    bench,
    client_hello,
    dns,
    http_request,
    http_response,
    ip,
    judge,
    merge,
    noise,
    ping,
    quic_initial,
    tls,
    with_script,
)

from nedge.core.verdict import Action
from nedge.scripts import Flow

NO_PORT = 47123
QUIET = "[verdict]\ndrop_score = 0\nblock_statuses = []\n"
HOOKS = ("protocolDetected", "protocolUpdated", "periodicUpdate", "statusChanged", "flowEnd")
HEAD = "from kit import note\nfrom nedge.scripts import *\n"


def script(body: str) -> str:
    return HEAD + textwrap.dedent(body)


def recorder(*hooks: str, value: str = "flow.getPackets()", more: str = "") -> str:
    """A script that notes (hook, value) in each hook."""
    functions = [f"def {hook}(flow, now, conf): note(({hook!r}, {value}))\n" for hook in hooks or HOOKS]
    return HEAD + textwrap.dedent(more) + "".join(functions)


def calls(
    packets: list[Packet], *hooks: str, value: str = "flow.getPackets()", more: str = "", **how: Any
) -> list[Any]:
    return judge(packets, QUIET, {"script": recorder(*hooks, value=value, more=more)}, **how).seen


def noisy_tcp(count: int, gap: float = 0.01) -> list[Packet]:
    """`count` packets of a TCP connection that no release of nDPI can name."""
    session = Tcp(dport=NO_PORT, gap=gap).handshake()
    for n in range(count - 3):
        session.segment("sc"[n % 2], ACK | 8, noise(40, n))
    return session.packets


def noisy_udp(count: int, gap: float = 0.01) -> list[Packet]:
    talk = Udp(dport=NO_PORT, gap=gap)
    for n in range(count):
        talk.client(noise(60, n))
    return talk.packets


# protocolDetected


@pytest.mark.parametrize(
    ("packets", "at_packet"),
    [
        (tls(name="example.com").packets, 4),
        (Tcp().handshake().client(client_hello("example.com"), 200).packets, 6),
        (
            Tcp(dport=80)
            .handshake()
            .client(http_request("example.com"))
            .server(http_response())
            .fin()
            .packets,
            4,
        ),
        (dns("a.example.com", "b.example.com").packets, 1),
        (quic_initial("example.com"), 1),
        (ping(), 1),
        (ping(CLIENT6, SERVER6), 1),
        ([Packet(T0 + n, ip(47, CLIENT, SERVER, noise(40))) for n in range(3)], 1),  # GRE
        ([Packet(T0 + n, ip(253, CLIENT, SERVER, noise(40))) for n in range(3)], 1),  # for experiments
        (noisy_tcp(30), 12),  # given up
        (noisy_tcp(12), 12),
        (noisy_udp(30), 12),
    ],
)
def test_protocol_detected_runs_once(packets: list[Packet], at_packet: int, library: str) -> None:
    assert calls(packets, "protocolDetected", library=library) == [("protocolDetected", at_packet)]


@pytest.mark.parametrize(
    ("packets", "at_packet"),
    [
        (Tcp().handshake().packets, 3),
        (Tcp(dport=NO_PORT).segment("c", SYN).packets, 1),
        (noisy_tcp(11), 11),
        (noisy_udp(1), 1),
        (noisy_udp(11), 11),
    ],
)
def test_protocol_detected_after_5_seconds_of_silence(packets: list[Packet], at_packet: int) -> None:
    seen = calls(packets, "protocolDetected", value=f"(flow.getPackets(), now - {T0})", until=T0 + 30)
    ((_, (count, after)),) = seen
    assert count == at_packet
    assert 5 <= after <= 6


def test_silence_counts_from_the_latest_packet() -> None:
    packets = noisy_udp(6, gap=4)
    ((_, after),) = calls(packets, "protocolDetected", value=f"now - {T0}", until=T0 + 60)
    assert 25 <= after <= 26


def test_protocol_detected_at_the_end_of_a_short_flow() -> None:
    seen = calls(noisy_udp(1), "protocolDetected", "flowEnd")
    assert seen == [("protocolDetected", 1), ("flowEnd", 1)]


@pytest.mark.parametrize("limit", [1, 5, 32])
def test_packets_to_wait_for_as_configured(limit: int) -> None:
    toml = f"[limits]\ndetection_packets = {limit}"
    assert ask(noisy_udp(40), "flow.getPackets()", toml=toml) == [limit]


def test_seconds_to_wait_for_as_configured() -> None:
    (after,) = ask(noisy_udp(1), f"now - {T0}", toml="[limits]\ndetection_seconds = 20", until=T0 + 50)
    assert 20 <= after <= 21


@pytest.mark.parametrize(
    ("packets", "dropped"),
    [
        (tls(name="example.com").packets, 4),
        (Tcp(dport=80).handshake().client(http_request("example.com")).server(http_response()).packets, 4),
        (dns("example.com").packets, 1),
        (ping(), 1),
        (noisy_udp(20), 12),
    ],
)
def test_the_packet_that_detects_gets_the_hooks_verdict(packets: list[Packet], dropped: int) -> None:
    source = "def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_blacklisted, 100)\n"
    judged = with_script(source, packets)
    passed = dropped - 1
    assert judged.actions == [Action.PASS] * passed + [Action.DROP] * (len(packets) - passed)
    assert judged.flow["nedge"]["decided_at_packet"] == dropped


# protocolUpdated


def test_protocol_updated_never_comes_first() -> None:
    for packets in (tls().packets, dns("a.example.com", "b.example.com").packets, noisy_tcp(30), ping()):
        seen = [hook for hook, _ in calls(packets)]
        assert seen[0] == "protocolDetected"
        assert seen.count("protocolDetected") == 1


def test_each_further_dns_query_is_an_update() -> None:
    names = ["a.example.com", "b.example.com", "c.example.com"]
    packets = [packet for n, packet in enumerate(dns(*names).packets) if n % 2 == 0]  # queries only
    assert calls(packets, "protocolDetected", "protocolUpdated", value="flow.getHostName()") == [
        ("protocolDetected", names[0]),
        ("protocolUpdated", names[1]),
        ("protocolUpdated", names[2]),
    ]


def test_each_further_http_request_is_an_update() -> None:
    session = Tcp(dport=80).handshake()
    for name in ("a.example.com", "b.example.com", "c.example.com"):
        session.client(http_request(name)).server(http_response())
    names = [
        name
        for _, name in calls(
            session.packets, "protocolDetected", "protocolUpdated", value="flow.getHostName()"
        )
    ]
    assert list(dict.fromkeys(names)) == ["a.example.com", "b.example.com", "c.example.com"]


@pytest.mark.parametrize(
    ("declared", "toml", "codes"),
    [
        ("", "", {0}),
        ("http_answers = True", "", {0, 404}),
        ("http_answers = False", "dpi.http_answers = true", {0, 404}),
    ],
)
def test_answers_are_looked_at_if_somebody_wants_them(declared: str, toml: str, codes: set[int]) -> None:
    session = Tcp(dport=80).handshake().client(http_request("a.example.com")).server(http_response(code=404))
    value = "flow.getFacts().http_code"
    source = recorder("protocolDetected", "protocolUpdated", value=value, more=f"{declared}\n")
    judged = judge(session.packets, toml, {"script": source}, library="auto")
    assert {code for _, code in judged.seen} == codes


def test_the_first_request_only_if_so_configured() -> None:
    session = Tcp(dport=80).handshake()
    for name in ("a.example.com", "b.example.com"):
        session.client(http_request(name)).server(http_response())
    source = recorder("protocolDetected", "protocolUpdated", value="flow.getHostName()")
    judged = judge(session.packets, "[dpi]\nwatch_http = false", {"script": source}, library="auto")
    assert {name for _, name in judged.seen} == {"a.example.com"}


def test_an_update_is_judged_before_its_packet_goes_on() -> None:
    source = """
    def protocolDetected(flow, now, conf):
        if flow.getHostName() == "bad.example.com": flow.setStatus(status_types.status_blacklisted, 100)
    protocolUpdated = protocolDetected
    """
    session = Tcp(dport=80).handshake()
    session.client(http_request("good.example.com")).server(http_response()).client(
        http_request("bad.example.com")
    )
    judged = with_script(source, session.packets)
    assert judged.actions == [Action.PASS] * 5 + [Action.DROP]


def test_the_certificate_is_an_update(library: str) -> None:
    seen = calls(
        tls("1.2").packets,
        "protocolDetected",
        "protocolUpdated",
        value="flow.getFacts().cert_not_after",
        library=library,
    )
    assert seen[0] == ("protocolDetected", 0)
    assert seen[-1] == ("protocolUpdated", T0 + 86400)


def test_a_late_classification_is_an_update(library: str) -> None:
    source = recorder("protocolDetected", "protocolUpdated", value="(flow.getPackets(), flow.getHostName())")
    toml = "[limits]\ndetection_packets = 2"
    seen = judge(tls("1.3", "late.example.com").packets, toml, {"script": source}, library).seen
    assert seen[0] == ("protocolDetected", (2, ""))
    assert seen[1] == ("protocolUpdated", (4, "late.example.com"))


# periodicUpdate


def long_flow(seconds: int, start: float = T0) -> list[Packet]:
    """A ping every 10 seconds."""
    packets = [packet for n in range(0, seconds + 1, 10) for packet in ping(start=start + n)]
    return [packet for packet in packets if packet.time <= start + seconds]


@pytest.mark.parametrize(
    ("setting", "ticks"),
    [
        ("", [0, 4, 8]),  # 120 s by default; the first tick always runs
        ("periodic_update_seconds = 30", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("periodic_update_seconds = 60", [0, 2, 4, 6, 8]),
        ("periodic_update_seconds = 90", [0, 3, 6]),
        ("periodic_update_seconds = 120", [0, 4, 8]),
        ("periodic_update_seconds = 300", [0]),
        ("periodic_update_seconds = 45", [0, 4, 8]),  # no multiple of 30: the default
        ("periodic_update_seconds = 29", [0, 4, 8]),
        ("periodic_update_seconds = 0", [0, 4, 8]),
        ("periodic_update_seconds = -30", [0, 4, 8]),
    ],
)
def test_periodic_update_ticks(setting: str, ticks: list[int]) -> None:
    seen = calls(long_flow(280), "periodicUpdate", value=f"now - {T0}", more=setting + "\n")
    assert [(after // 30) - 1 for _, after in seen] == ticks
    assert all(after % 30 <= 1 for _, after in seen)


def test_ticks_count_from_detection() -> None:
    packets = noisy_udp(5, gap=4)  # silent from T0 + 16 on: detected at T0 + 21
    packets += [packet._replace(time=T0 + 40) for packet in noisy_udp(1)]
    seen = calls(packets, "protocolDetected", "periodicUpdate", value=f"now - {T0}", until=T0 + 90)
    assert [hook for hook, _ in seen] == ["protocolDetected", "periodicUpdate"]
    assert seen[1][1] - seen[0][1] in (30, 31)


def test_no_periodic_update_before_detection_or_after_the_end() -> None:
    packets = noisy_udp(11, gap=4)  # never silent for 5 s, never 12 packets, for 40 s
    assert calls(packets, "periodicUpdate", until=T0 + 44) == []
    assert [hook for hook, _ in calls(ping(), "periodicUpdate", "flowEnd", until=T0 + 500)] == [
        "periodicUpdate",
        "flowEnd",
    ]


def test_two_scripts_with_their_own_periods() -> None:
    scripts = {
        "half": recorder("periodicUpdate", value="'half'", more="periodic_update_seconds = 30\n"),
        "full": recorder("periodicUpdate", value="'full'", more="periodic_update_seconds = 60\n"),
    }
    seen = [value for _, value in judge(long_flow(130), QUIET, scripts).seen]
    assert seen == ["full", "half", "half", "full", "half", "half"]


def test_periods_that_do_not_divide_each_other() -> None:
    scripts = {
        "two": recorder("periodicUpdate", value=f"(2, now - {T0})", more="periodic_update_seconds = 60\n"),
        "three": recorder("periodicUpdate", value=f"(3, now - {T0})", more="periodic_update_seconds = 90\n"),
    }
    seen = [value for _, value in judge(long_flow(280), QUIET, scripts).seen]
    assert [after // 30 - 1 for steps, after in seen if steps == 2] == [0, 2, 4, 6, 8]
    assert [after // 30 - 1 for steps, after in seen if steps == 3] == [0, 3, 6]


def test_ticks_that_come_late_are_made_up_for() -> None:
    # No packet at all, of any flow, between 0 and 55 s: the engine hears of the time only then.
    packets = [*ping(), *ping(start=T0 + 55), *ping(start=T0 + 100)]
    seen = calls(
        packets, "periodicUpdate", value=f"(now - {T0}) // 30", more="periodic_update_seconds = 30\n"
    )
    assert [tick for _, tick in seen] == [1, 2, 3]


# statusChanged

SET = "flow.setStatus(status_types.status_user_0{0}, 1)"


@pytest.mark.parametrize(
    ("statement", "times"),
    [
        ("pass", 0),
        (SET.format(1), 1),
        (SET.format(1) + "; " + SET.format(2), 1),
        (SET.format(1) + "; flow.clearStatus(status_types.status_user_01)", 0),
        ("flow.triggerStatus(status_types.status_user_01, 'x', 1)", 1),
        ("flow.clearStatus(status_types.status_user_01)", 0),
    ],
)
def test_status_changed_follows_a_call_that_changed_the_bitmap(statement: str, times: int) -> None:
    source = script(f"""
    def protocolDetected(flow, now, conf): {statement}
    def statusChanged(flow, now, conf): note(flow.getStatus())
    """)
    assert len(judge(ping(), QUIET, {"script": source}).seen) == times


def test_status_changed_runs_once_after_all_scripts() -> None:
    source = (
        "def protocolDetected(flow, now, conf): {}\n"
        "def statusChanged(flow, now, conf): note(('{}', flow.getStatus()))\n"
    )
    scripts = {key: HEAD + source.format(SET.format(n), key) for n, key in ((1, "a"), (2, "b"))}
    both = 1 << 59 | 1 << 60
    assert judge(ping(), QUIET, scripts).seen == [("a", both), ("b", both)]


def test_status_changed_does_not_trigger_itself() -> None:
    source = script(f"""
    def protocolDetected(flow, now, conf): {SET.format(1)}
    def statusChanged(flow, now, conf):
        note(flow.getStatus())
        {SET.format(2)}
    def flowEnd(flow, now, conf): note(flow.getStatus())
    """)
    judged = judge(ping(), QUIET, {"script": source})
    assert judged.seen == [1 << 59, 1 << 59 | 1 << 60]
    assert judged.scores[0] == 2


def test_status_changed_follows_every_hook() -> None:
    source = script("""
    def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_user_01)
    def periodicUpdate(flow, now, conf): flow.setStatus(status_types.status_user_02)
    def flowEnd(flow, now, conf): flow.clearStatus(status_types.status_user_01)
    def statusChanged(flow, now, conf): note(flow.getStatus() >> 59)
    """)
    assert judge(ping(), QUIET, {"script": source}, until=T0 + 100).seen == [0b01, 0b11, 0b10]


def test_what_status_changed_sets_counts_for_the_verdict() -> None:
    source = script("""
    def protocolDetected(flow, now, conf): flow.setStatus(status_types.status_user_01)
    def statusChanged(flow, now, conf): flow.triggerStatus(status_types.status_user_02, "late", 100)
    """)
    judged = judge(ping(), "", {"script": source})
    assert judged.actions == [Action.DROP] * 2
    assert [record["nedge"]["info"] for record in judged.alerts] == ["late"]


# flowEnd


def session() -> Tcp:
    return Tcp(dport=NO_PORT).handshake().client(noise(50)).server(noise(50))


@pytest.mark.parametrize(
    ("packets", "idle"),
    [
        (session().fin().packets, 15),
        (session().segment("c", 0x11).packets, 15),  # one FIN is enough
        (session().rst("s").packets, 15),
        (Tcp().segment("c", SYN).packets, 15),  # incomplete handshakes
        (Tcp().segment("c", SYN).segment("s", SYN | ACK).packets, 15),
        (session().packets, 60),
        (Tcp().handshake().packets, 60),
        (Tcp(dport=NO_PORT).client(noise(50)).packets, 60),  # picked up mid-stream
        (noisy_udp(3), 60),
        (dns("example.com").packets, 60),
        (ping(), 60),
    ],
)
def test_seconds_of_silence_that_end_a_flow(packets: list[Packet], idle: int) -> None:
    judged = judge(packets, QUIET, {}, until=T0 + 500)
    (ended,) = judged.ended
    assert idle <= ended - packets[-1].time <= idle + 1.5


# Its timer was put off to the 60 seconds of an open flow by then.
@pytest.mark.parametrize("end", ["fin", "rst"])
def test_a_flow_that_closes_after_a_while_ends_15_seconds_later(end: str) -> None:
    talk = session().wait(20)
    getattr(talk, end)()
    (ended,) = judge(talk.packets, QUIET, {}, until=T0 + 500).ended
    assert 15 <= ended - talk.packets[-1].time <= 16.5


def test_packets_put_the_end_off() -> None:
    packets = [*ping(), *ping(start=T0 + 59), *ping(start=T0 + 118)]
    judged = judge(packets, QUIET, {}, until=T0 + 500)
    assert judged.flow["flow"]["pkts_toserver"] == 3
    assert 178 <= judged.ended[0] - T0 <= 179.5


def test_idle_times_as_configured() -> None:
    toml = "[limits]\nidle_seconds = 20\nclosed_seconds = 8"
    packets = merge(ping(), session().fin().packets)
    judged = judge(packets, toml, {}, until=T0 + 100)
    assert [record["proto"] for record in judged.flows] == ["TCP", "ICMP"]
    assert judged.ended[0] - T0 == pytest.approx(8.5, abs=1)
    assert judged.ended[1] - T0 == pytest.approx(20.5, abs=1)


def test_flow_end_runs_once_and_last() -> None:
    for until in (None, T0 + 500):
        seen = [hook for hook, _ in calls(tls().fin().packets, until=until)]
        assert seen.count("flowEnd") == 1
        assert seen[-1] == "flowEnd"


def test_a_new_connection_on_the_same_ports_ends_the_old_one() -> None:
    first = session().fin()
    second = Tcp(dport=NO_PORT, start=T0 + 5).handshake().client(noise(60))
    judged = judge([*first.packets, *second.packets], QUIET, {"script": recorder("flowEnd")})
    assert judged.seen == [("flowEnd", len(first.packets)), ("flowEnd", len(second.packets))]
    assert judged.flows[0]["flow"]["reason"] == "replaced"


def test_shutdown_ends_all_flows() -> None:
    packets = merge(*(ping(CLIENT, f"203.0.113.{n}") for n in range(1, 6)))
    assert calls(packets, "flowEnd") == [("flowEnd", 2)] * 5


def test_what_flow_end_sets_is_in_the_record() -> None:
    judged = with_script(
        "def flowEnd(flow, now, conf): flow.setStatus(status_types.status_user_01, 7, 8, 9)\n", ping()
    )
    assert (judged.statuses, judged.scores) == (["status_user_01"], (7, 8, 9))


# all


def test_all_stands_for_ntopngs_four_hooks_and_overrides_them() -> None:
    source = script("""
    periodic_update_seconds = 30
    def all(flow, now, conf): note("all"); flow.setStatus(status_types.status_user_01)
    def protocolDetected(flow, now, conf): note("overridden")
    def flowEnd(flow, now, conf): note("overridden")
    """)
    # detected, statusChanged, one tick, the end
    assert judge(ping(), QUIET, {"script": source}, until=T0 + 100).seen == ["all"] * 4


# Filters

KINDS: dict[str, list[Packet]] = {
    "tcp": Tcp(dport=80).handshake().client(http_request("example.com")).packets,
    "udp": dns("example.com").packets,
    "icmp": ping(),
    "icmp6": ping(CLIENT6, SERVER6),
    "gre": [Packet(T0, ip(47, CLIENT, SERVER, noise(40)))],
}


@pytest.mark.parametrize(
    ("l4", "runs_for"),
    [
        ("", {"tcp", "udp", "icmp", "icmp6", "gre"}),
        ("tcp", {"tcp"}),
        ("udp", {"udp"}),
        ("icmp", {"icmp", "icmp6"}),
    ],
)
def test_l4_filter(l4: str, runs_for: set[str]) -> None:
    more = f"l4_proto = {l4!r}\n" if l4 else ""
    for hook in ("protocolDetected", "flowEnd"):
        assert {kind for kind, packets in KINDS.items() if calls(packets, hook, more=more)} == runs_for


@pytest.mark.parametrize(
    ("l7", "packets", "runs"),
    [
        ("HTTP", KINDS["tcp"], True),
        ("http", KINDS["tcp"], True),
        ("DNS", KINDS["tcp"], False),
        ("DNS", KINDS["udp"], True),
        ("ICMP", KINDS["icmp"], True),
        ("ICMP", KINDS["udp"], False),
        ("TLS", tls(name="www.google.com").packets, True),  # TLS.Google: the master protocol
        ("Google", tls(name="www.google.com").packets, True),  # the application protocol
        ("Google", tls(name="example.com").packets, False),
        ("QUIC", tls(name="www.google.com").packets, False),
        ("TLS", noisy_tcp(14), False),
    ],
)
def test_l7_filter(l7: str, packets: list[Packet], runs: bool, library: str) -> None:
    seen = calls(packets, "protocolDetected", more=f"l7_proto = {l7!r}\n", library=library)
    assert bool(seen) is runs


def test_an_unknown_l7_protocol_skips_only_that_script(capfd: pytest.CaptureFixture[str]) -> None:
    scripts = {
        "a": recorder("protocolDetected", value="'a'", more="l7_proto = 'NoSuchProtocol'\n"),
        "b": recorder("protocolDetected", value="'b'"),
    }
    assert judge(ping(), QUIET, scripts).seen == [("protocolDetected", "b")]
    said = "".join(capfd.readouterr())
    assert "NoSuchProtocol" in said
    assert "a.py" in said


@pytest.mark.parametrize(
    ("packets", "runs"),
    [
        (KINDS["tcp"], True),
        (Tcp(dport=80).client(http_request("example.com")).packets, False),  # picked up mid-stream
        (Tcp(dport=80).segment("c", SYN).packets, False),
        (Tcp(dport=80).segment("c", SYN).segment("s", SYN | ACK).packets, False),
        (KINDS["udp"], True),  # for TCP only
        (KINDS["icmp"], True),
    ],
)
def test_three_way_handshake_filter(packets: list[Packet], runs: bool) -> None:
    for hook in ("protocolDetected", "flowEnd"):
        assert bool(calls(packets, hook, more="three_way_handshake_ok = True\n")) is runs
        assert calls(packets, hook, more="three_way_handshake_ok = False\n")


WEB = Tcp(dport=80).handshake().client(http_request("example.com")).server(http_response()).fin().packets


@pytest.mark.parametrize(
    ("needs", "packets", "runs"),
    [
        ("isTLS", tls(name="example.com").packets, True),
        ("isTLS", quic_initial("example.com"), True),
        ("isTLS", WEB, False),
        ("isTwhOK", WEB, True),
        ("isTwhOK", dns("a.example.com").packets, False),
        ("getDnsQuery", dns("a.example.com").packets, True),
        ("getDnsQuery", WEB, False),
        ("isRemoteToRemote", WEB, False),
        ("hasRisk", WEB, False),
    ],
)
def test_scripts_are_called_if_what_they_need_is_true(needs: str, packets: list[Packet], runs: bool) -> None:
    for hook in ("protocolDetected", "flowEnd"):
        assert bool(calls(packets, hook, more=f"needs = {needs!r}\n")) is runs


def test_what_scripts_need_is_asked_for_once_in_each_call(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []
    true = Flow.isTLS

    def ask_for(flow: Flow) -> bool:
        asked.append(true(flow))
        return asked[-1]

    monkeypatch.setattr(Flow, "isTLS", ask_for)
    needs = {"a": "isTLS", "b": "isTwhOK", "c": "isTLS"}
    scripts = {
        key: recorder("protocolDetected", value=repr(key), more=f"needs = {name!r}\n")
        for key, name in needs.items()
    }
    seen = judge(merge(tls(name="example.com").packets, WEB), QUIET, scripts).seen
    assert sorted(key for _, key in seen) == ["a", "b", "b", "c"]
    assert sorted(asked) == [False, True]


def test_the_periodic_divisor_comes_before_the_other_filters() -> None:
    more = "l4_proto = 'icmp'\nl7_proto = 'ICMP'\nperiodic_update_seconds = 60\n"
    assert len(calls(long_flow(130), "periodicUpdate", more=more)) == 2


@pytest.mark.parametrize(
    ("prios", "order"),
    [
        ({"a": 0, "b": 0, "c": 0}, "abc"),
        ({"a": 1, "b": 2, "c": 3}, "cba"),
        ({"a": 0, "b": 10, "c": 0}, "bac"),
        ({"a": -1, "b": 0, "c": -2}, "bac"),
        ({"a": 5, "c": 5, "b": -5}, "acb"),
    ],
)
def test_higher_prio_runs_first_then_by_key(prios: dict[str, int], order: str) -> None:
    scripts = {
        key: recorder("protocolDetected", "flowEnd", value=repr(key), more=f"prio = {prio}\n")
        for key, prio in prios.items()
    }
    assert "".join(value for _, value in judge(ping(), QUIET, scripts).seen) == order * 2


# Arguments


def test_hooks_get_the_time_in_whole_seconds_and_the_settings() -> None:
    more = "default_value = {'limit': 5}\n"
    (hook,) = calls(ping(start=T0 + 0.9), "protocolDetected", value="(now, type(now), dict(conf))", more=more)
    assert hook[1] == (T0, int, {"limit": 5})


def test_settings_are_never_none() -> None:
    ((_, conf),) = calls(ping(), "protocolDetected", value="dict(conf)")
    assert conf == {}


def test_module_variables_persist_between_calls() -> None:
    source = script("""
    count = 0
    def protocolDetected(flow, now, conf):
        global count
        count += 1
        note(count)
    """)
    packets = merge(*(ping(CLIENT, f"203.0.113.{n}", T0 + n) for n in range(1, 4)))
    assert judge(packets, QUIET, {"script": source}).seen == [1, 2, 3]
    assert judge(packets, QUIET, {"script": source}).seen == [1, 2, 3]  # loaded anew: from the start


# setup, teardown, switches


@pytest.mark.parametrize(
    ("more", "runs"),
    [
        ("", True),
        ("def setup(): return True\n", True),
        ("def setup(): return 1\n", True),
        ("def setup(): return False\n", False),
        ("def setup(): pass\n", False),  # returns nothing
        ("default_enabled = True\n", True),
        ("default_enabled = False\n", False),
        ("nedge_only = True\n", True),
        ("nedge_exclude = True\n", False),
        ("nedge_exclude = False\n", True),
        ("packet_interface_only = True\n", True),
    ],
)
def test_which_scripts_run(more: str, runs: bool) -> None:
    assert bool(calls(ping(), "protocolDetected", more=more)) is runs


@pytest.mark.parametrize(
    ("default", "setting", "runs"),
    [("True", "true", True), ("True", "false", False), ("False", "true", True), ("False", "false", False)],
)
def test_the_configuration_switches_scripts(default: str, setting: str, runs: bool) -> None:
    source = recorder("protocolDetected", more=f"default_enabled = {default}\n")
    toml = f"[scripts.script]\nenabled = {setting}"
    assert bool(judge(ping(), toml, {"script": source}).seen) is runs


def test_setup_and_teardown_run_once() -> None:
    source = script("""
    def setup(): note("setup"); return True
    def teardown(): note("teardown")
    def protocolDetected(flow, now, conf): note("hook")
    """)
    with bench(QUIET, {"script": source}) as made:
        made.feed(ping())
        made.engine.finish(T0 + 1)
    # Notes are of the run itself: setup() ran before it.
    assert made.judged.seen == ["hook", "teardown"]


def test_a_disabled_script_is_not_set_up() -> None:
    source = script("""
    default_enabled = False
    def setup(): raise RuntimeError
    def protocolDetected(flow, now, conf): note("hook")
    """)
    assert judge(ping(), QUIET, {"script": source}).seen == []


# Errors


@pytest.mark.parametrize(
    "error", ["raise ValueError('no')", "raise SystemExit(1)", "1 / 0", "flow.noSuchFunction()"]
)
def test_a_script_that_raises_stops_nothing_else(error: str) -> None:
    scripts = {
        "a": recorder("protocolDetected", value="'a'"),
        "b": script(f"def protocolDetected(flow, now, conf): {error}\n"),
        "c": recorder("protocolDetected", value="'c'"),
    }
    with bench(QUIET, scripts) as made:
        made.feed([*ping(), *dns("example.com", start=T0 + 1).packets])
        made.engine.finish(T0 + 2)
    assert [value for _, value in made.judged.seen] == ["a", "c", "a", "c"]
    assert made.engine.counters.script_errors == 2
    assert made.judged.actions == [Action.PASS] * 4


def test_what_a_failing_script_did_before_stays() -> None:
    source = """
    def protocolDetected(flow, now, conf):
        flow.setStatus(status_types.status_user_01, 9)
        1 / 0
    """
    judged = with_script(source, ping())
    assert (judged.statuses, judged.scores) == (["status_user_01"], (9, 0, 0))


@pytest.mark.parametrize(("policy", "verdict"), [("pass", "pass"), ("drop", "drop")])
def test_the_failure_policy_of_scripts(policy: str, verdict: str) -> None:
    source = "def protocolDetected(flow, now, conf): 1 / 0\n"
    judged = with_script(source, ping(), f"[failures]\nscript_error = '{policy}'")
    assert judged.verdict == verdict


def test_a_failing_script_is_named_with_its_line_once_a_minute(capfd: pytest.CaptureFixture[str]) -> None:
    source = "x = 1\ndef protocolDetected(flow, now, conf):\n    helper()\n"
    source += "def helper():\n    raise ValueError('broken')\n"
    packets = merge(*(ping(CLIENT, f"203.0.113.{n}", T0 + n) for n in range(1, 100)))
    with bench(QUIET, {"bad": source}) as made:
        made.feed(packets)
        made.engine.finish(T0 + 200)
    said = "".join(capfd.readouterr())
    assert made.engine.counters.script_errors == 99
    assert said.count("ValueError: broken") == 2  # at 1 s and 61 s
    assert "bad.py:5" in said


def test_a_broken_hook_does_not_keep_the_other_hooks_of_its_script() -> None:
    source = script("""
    def protocolDetected(flow, now, conf): 1 / 0
    def flowEnd(flow, now, conf): note("end")
    """)
    assert judge(ping(), QUIET, {"script": source}).seen == ["end"]
