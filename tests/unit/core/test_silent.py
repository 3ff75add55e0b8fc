"""Connections that are silent for long: whoever speaks then is judged by what its server takes."""

from __future__ import annotations

import pytest
from core_kit import ACK, CLIENT, FIN, PSH, RST, SERVER, SYN, T0, Rig, StubScripts, ip4, tcp
from test_engine import MINING, block_names
from test_shares import renew

from nedge.core import silent
from nedge.core.events import VerdictChanged
from nedge.core.flow import Handshake, Share
from nedge.core.hooks import Hook, HookCall
from nedge.core.verdict import Action, Operator, Policy, Rule

BAD = b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n"
GOOD = b"GET / HTTP/1.1\r\nHost: fine.example\r\n\r\n"
DECOY = b"SSH-2.0-decoy\r\n"
LAN, WAN = 2, 3


class Connection:
    """A client's and a server's packets, through an engine that is a gateway's."""

    def __init__(self, sport: int = 40000, rig: Rig | None = None) -> None:
        self.rig = rig or Rig(scripts=block_names("bad.example"))
        self.engine = self.rig.engine
        self.engine.offload.remark = lambda flow: None
        self.engine.normalizer.inline = True
        self.sport = sport
        self.now = T0

    def client(self, payload: bytes = b"", flags: int = ACK | PSH, seq: int = 101) -> Action:
        segment = tcp(payload, sport=self.sport, seq=seq, ack=901, flags=flags)
        return self.engine.packet(ip4(6, segment, CLIENT, SERVER), self.now, port=LAN)

    def server(self, payload: bytes = b"", flags: int = ACK, ack: int = 101, seq: int = 901) -> Action:
        segment = tcp(payload, sport=80, dport=self.sport, seq=seq, ack=ack, flags=flags)
        return self.engine.packet(ip4(6, segment, SERVER, CLIENT), self.now, port=WAN)

    def open(self) -> None:
        """The SYN comes up; its answer and the client's acknowledgement the kernel passes."""
        assert self.client(flags=SYN, seq=100) is Action.PASS

    def fall_silent(self, seconds: float = 100) -> None:
        """Until the flow has ended."""
        self.now += seconds
        self.engine.advance(self.now)
        assert self.engine.table.count == 0


def test_what_is_before_the_start_judges_nothing_after_a_silence() -> None:
    """The server throws it away, and acknowledges what it has."""
    talk = Connection()
    talk.open()
    talk.fall_silent()
    assert talk.client(DECOY, seq=60) is Action.PASS
    assert talk.engine.counters.early_data == 1  # it went on as an acknowledgement
    assert talk.server() is Action.PASS
    assert talk.engine.share is Share.NONE
    assert talk.client(BAD) is Action.DROP
    assert talk.engine.counters.midstream == 0


@pytest.mark.parametrize(("request_", "action"), [(BAD, Action.DROP), (GOOD, Action.PASS)])
def test_what_the_server_has_confirmed_before_is_remembered(request_: bytes, action: Action) -> None:
    talk = Connection()
    talk.open()
    assert talk.client(b"junk") is Action.PASS
    assert talk.server(ack=105) is Action.PASS
    talk.fall_silent()
    assert talk.client(DECOY, seq=105 - len(DECOY)) is Action.PASS
    assert talk.server(ack=105) is Action.PASS
    assert talk.engine.share is Share.NONE
    assert talk.client(request_, seq=105) is action
    assert talk.engine.counters.midstream == 1  # what it had said is forgotten


@pytest.mark.parametrize(("request_", "action"), [(BAD, Action.DROP), (GOOD, Action.PASS)])
def test_what_is_sent_again_with_more_behind_it_is_judged(request_: bytes, action: Action) -> None:
    """An honest client may not have heard what the server confirmed."""
    talk = Connection()
    talk.open()
    talk.client(b"junk")
    talk.server(ack=105)
    talk.fall_silent()
    assert talk.client(b"junk" + request_) is action
    assert talk.engine.normalizer.rewritten == b""


def test_without_a_silence_the_same() -> None:
    talk = Connection()
    talk.open()
    assert talk.client(DECOY, seq=60) is Action.PASS
    assert talk.server() is Action.PASS
    assert talk.client(BAD) is Action.DROP


def test_who_is_honest_goes_on() -> None:
    talk = Connection()
    talk.open()
    talk.fall_silent()
    assert talk.client(GOOD) is Action.PASS
    assert talk.server(ack=101 + len(GOOD)) is Action.PASS
    (flow,) = talk.engine.table
    assert (flow.hostname, flow.handshake, flow.failures) == ("fine.example", Handshake.DONE, ())
    assert flow.client.ip == CLIENT


def test_the_server_may_be_the_one_that_speaks() -> None:
    talk = Connection()
    talk.open()
    talk.fall_silent()
    assert talk.server(b"220 hello\r\n", ACK | PSH) is Action.PASS
    (flow,) = talk.engine.table
    assert (flow.client.ip, flow.packets_sent, flow.isn, flow.port) == (CLIENT, 0, 100, LAN)
    assert talk.client(DECOY, seq=60) is Action.PASS
    assert talk.client(BAD) is Action.DROP


def test_a_new_connection_has_its_own_start() -> None:
    """By what answers it: the SYN may be one that the server does not take."""
    talk = Connection()
    talk.open()
    talk.fall_silent()
    assert talk.client(flags=SYN, seq=5000) is Action.PASS
    assert talk.engine.normalizer.awaits_answer
    assert talk.server(flags=SYN | ACK, ack=5001) is Action.PASS
    (flow,) = talk.engine.table
    assert flow.isn == 5000


def test_a_syn_that_the_server_does_not_take_tells_nothing() -> None:
    talk = Connection()
    talk.open()
    talk.fall_silent()
    assert talk.client(flags=SYN, seq=100 - len(DECOY)) is Action.PASS
    talk.server()  # it says what it has
    talk.client(DECOY, seq=101 - len(DECOY))
    talk.server()
    assert talk.engine.share is Share.NONE
    assert talk.client(BAD) is Action.DROP


def test_an_answer_from_the_clients_side_turns_nobody_round() -> None:
    talk = Connection()
    talk.open()
    talk.fall_silent()
    forged = tcp(sport=80, dport=talk.sport, seq=900, ack=101, flags=SYN | ACK)
    talk.engine.packet(ip4(6, forged, SERVER, CLIENT), talk.now, port=LAN)
    talk.client(DECOY, seq=60)
    talk.server()
    assert talk.engine.share is Share.NONE
    assert talk.client(BAD) is Action.DROP


@pytest.mark.parametrize("flags", [FIN | ACK, RST])
def test_an_end_that_the_server_does_not_take_is_none(flags: int) -> None:
    talk = Connection()
    talk.open()
    talk.client(flags=flags, seq=77777)
    talk.fall_silent()
    assert talk.client(DECOY, seq=60) is Action.PASS
    assert talk.server() is Action.PASS
    assert talk.client(BAD) is Action.DROP


def test_several_syns_are_remembered_too() -> None:
    talk = Connection()
    talk.open()
    talk.client(flags=SYN, seq=5000)
    talk.fall_silent()
    assert talk.client(DECOY, seq=60) is Action.DROP  # not before it is known which of them counts
    talk.server(flags=SYN | ACK, ack=101)
    assert talk.client(BAD) is Action.DROP


def test_a_connection_whose_syn_was_missed_is_not_held_up() -> None:
    """The server's acknowledgement tells where it is."""
    talk = Connection()
    talk.open()
    talk.fall_silent()
    start = (100 - 5000) & 0xFFFFFFFF
    talk.client(GOOD, seq=start)  # before what is remembered, so it is made empty
    assert talk.engine.normalizer.rewritten
    talk.server(ack=start)
    assert talk.client(GOOD, seq=start) is Action.PASS
    assert talk.engine.normalizer.rewritten == b""


def test_without_a_kernel_what_is_not_followed_is_not_remembered() -> None:
    talk = Connection()
    talk.engine.offload.remark = None
    talk.open()
    talk.server(flags=SYN | ACK, seq=900)
    talk.client(flags=ACK)
    talk.client(b"SSH-2.0-x\r\n")
    talk.server(b"SSH-2.0-y\r\n", ack=112)
    talk.client(bytes(1000), seq=112)
    talk.fall_silent()
    assert not talk.engine._silent._silent


def test_of_very_many_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silent, "MAX_SILENT", 2)
    first = Connection()
    talks = [first, *(Connection(sport, first.rig) for sport in (40001, 40002))]
    for talk in talks:
        talk.open()
    first.fall_silent()
    for talk in talks:
        talk.now = first.now
        talk.client(GOOD)
    assert first.engine.counters.midstream == 1
    assert not first.engine._silent._silent


# Blocked ones: the server has half a request, and the kernel heard of a reset that the server did not get


REST = BAD[30:]
"""Of a request whose first 30 bytes the server has: it names nothing by itself."""


def blocked(rig: Rig | None = None) -> Connection:
    """A blocked connection, which the kernel has then forgotten."""
    talk = Connection(rig=rig)
    talk.open()
    talk.client(BAD[:30])
    talk.server(ack=131)
    assert talk.client(REST, seq=131) is Action.DROP
    assert talk.engine.share is Share.DROP
    talk.now += 10
    (flow,) = talk.engine.table
    talk.engine.offload.account(flow.key, (4, 300), (1, 60), talk.now, ended=True)
    assert talk.engine.table.count == 0
    return talk


def test_what_is_blocked_goes_on_being_blocked() -> None:
    talk = blocked()
    assert talk.client(REST, seq=131) is Action.DROP
    assert talk.engine.share is Share.DROP
    (flow,) = talk.engine.table
    assert (flow.hostname, flow.verdict.rule, flow.score) == ("bad.example", Rule.FLOW_SCORE, 100)
    assert (flow.client.score, flow.client_score) == (0, 0)  # it did so once
    assert [event.flow for event in talk.rig.of(VerdictChanged)][-1] is flow
    assert talk.engine.counters.midstream == 0


def test_it_does_so_again_and_whoever_speaks_first() -> None:
    talk = blocked()
    for number in range(3):
        assert talk.server(b"hurry up", ACK | PSH, ack=131, seq=901 + number) is Action.DROP
        (flow,) = talk.engine.table
        assert (flow.client.ip, flow.server_port, flow.port) == (CLIENT, 80, LAN)
        talk.engine.offload.account(flow.key, (4, 300), (9, 600), talk.now, ended=True)


def test_a_syn_that_the_server_does_not_take_changes_nothing() -> None:
    talk = blocked()
    talk.client(flags=SYN, seq=5000)
    talk.server(ack=131)
    assert talk.client(REST, seq=131) is Action.DROP
    talk.fall_silent()
    assert talk.client(REST, seq=131) is Action.DROP


def test_a_new_connection_on_the_same_ports_is_judged_by_itself() -> None:
    talk = blocked()
    talk.client(flags=SYN, seq=5000)
    talk.server(flags=SYN | ACK, ack=5001)
    assert talk.client(GOOD, seq=5001) is Action.PASS


def test_a_new_policy_judges_anew_what_was_blocked() -> None:
    talk = blocked()
    renew(talk.engine, StubScripts())
    assert talk.client(REST, seq=131) is Action.PASS
    (flow,) = talk.engine.table
    assert (flow.hostname, flow.score, flow.looking) == ("", 0, True)
    talk = blocked()
    renew(talk.engine, block_names("bad.example"), drop_score=0, block_statuses=MINING.bit)
    assert talk.client(REST, seq=131) is Action.DROP


def test_an_order_on_its_name_goes_on() -> None:
    rig = Rig()
    rig.order(Operator.BLOCK, "bad.example")
    talk = blocked(rig)
    assert talk.client(REST, seq=131) is Action.DROP
    rig.order(Operator.UNBLOCK, "bad.example")
    assert talk.client(REST, seq=131) is Action.PASS


def test_who_was_blocked_before_it_said_a_word_is_forgotten() -> None:
    """Its SYN went nowhere: there is no connection."""
    rig = Rig()
    rig.order(Operator.BLOCK, CLIENT)
    talk = Connection(rig=rig)
    assert talk.client(flags=SYN, seq=100) is Action.DROP
    (flow,) = talk.engine.table
    talk.engine.offload.account(flow.key, (1, 60), (0, 0), talk.now, ended=True)
    assert not talk.engine._silent._blocked


def test_the_blocked_do_not_push_out_the_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silent, "MAX_SILENT", 1)
    quiet = Connection(sport=50000)
    quiet.open()
    quiet.fall_silent()
    talk = blocked(quiet.rig)
    assert quiet.engine._silent._silent
    assert talk.client(REST, seq=131) is Action.DROP


@pytest.mark.parametrize("flags", [ACK, FIN | ACK, RST, ACK | PSH])
def test_a_syn_and_then_very_many_empty_segments_change_nothing(flags: int) -> None:
    talk = blocked()
    talk.client(flags=SYN, seq=5000)
    talk.server(ack=131)
    for _ in range(60):
        talk.client(flags=flags, seq=131)
        assert talk.engine.share is Share.NONE
    assert talk.client(REST, seq=131) is Action.DROP


def test_a_syn_and_a_server_that_sends_again_change_nothing() -> None:
    talk = blocked()
    talk.client(flags=SYN, seq=5000)
    for _ in range(60):
        talk.server(b"what it has said before", ACK | PSH, ack=131)
        assert talk.engine.share is Share.NONE
    assert talk.client(REST, seq=131) is Action.DROP


@pytest.mark.parametrize("known", [False, True])
def test_a_syn_in_the_servers_name_changes_nothing(known: bool) -> None:
    talk = blocked()
    if known:
        assert talk.client(REST, seq=131) is Action.DROP
    forged = tcp(sport=80, dport=talk.sport, seq=7777, flags=SYN)
    for port in (LAN, WAN, 0):
        assert talk.engine.packet(ip4(6, forged, SERVER, CLIENT), talk.now, port=port) is Action.DROP
        assert talk.client(REST, seq=131) is Action.DROP


def test_a_silent_clients_syn_in_the_servers_name_turns_nobody_round() -> None:
    talk = Connection()
    talk.open()
    talk.client(BAD[:30])
    talk.server(ack=131)
    talk.fall_silent()
    forged = tcp(sport=80, dport=talk.sport, seq=7777, flags=SYN)
    talk.engine.packet(ip4(6, forged, SERVER, CLIENT), talk.now, port=LAN)
    (flow,) = talk.engine.table
    assert flow.client.ip == CLIENT


@pytest.mark.parametrize("forgotten", [False, True])
@pytest.mark.parametrize("why", ["order", "quarantine"])
def test_who_was_blocked_for_a_while_is_inspected_after_it(why: str, forgotten: bool) -> None:
    rig = Rig(scripts=block_names("bad.example"), policy=Policy(drop_score=50, host_drop_score=100))
    talk = Connection(rig=rig)
    talk.open()
    if why == "order":
        rig.order(Operator.BLOCK, CLIENT)
    else:
        other = Connection(41000, rig)
        other.open()
        assert other.client(BAD) is Action.DROP
        *_, flow = other.engine.table
        other.engine.offload.account(flow.key, (2, 99), (1, 60), T0, ended=True)
    assert talk.client(b"GE") is Action.DROP
    assert talk.engine.share is Share.DROP
    (flow,) = talk.engine.table
    if forgotten:
        talk.engine.offload.account(flow.key, (4, 300), (1, 60), talk.now, ended=True)
    if why == "order":
        list(talk.engine.forget(rig.orders, talk.now))
    else:
        talk.now += 3600
        talk.engine.advance(talk.now) if forgotten else list(talk.engine.release(CLIENT, talk.now))
    assert talk.client(BAD) is Action.DROP
    assert talk.engine.share is Share.DROP
    assert {flow.hostname for flow in talk.engine.table} == {"bad.example"}


def test_what_a_script_finds_at_the_end_has_blocked_nothing() -> None:
    def script(call: HookCall) -> None:
        if call.hook is Hook.FLOW_END:
            call.trigger(MINING, None, 100, 0, 0, "test")

    talk = Connection(rig=Rig(scripts=StubScripts(script=script)))
    talk.open()
    assert talk.client(GOOD) is Action.PASS
    (flow,) = talk.engine.table
    talk.engine.offload.account(flow.key, (9, 900), (9, 900), talk.now, ended=True)
    assert talk.client(GOOD, seq=101 + len(GOOD)) is Action.PASS


def test_little_is_kept_of_what_a_client_says() -> None:
    talk = Connection()
    talk.open()
    request = b"GET /%b HTTP/1.1\r\nHost: bad.example\r\nUser-Agent: %b\r\n\r\n" % (b"u" * 2000, b"a" * 2000)
    assert talk.client(request[:1400]) is Action.PASS
    assert talk.client(request[1400:2800], seq=1501) is Action.PASS
    assert talk.client(request[2800:], seq=2901) is Action.DROP
    (flow,) = talk.engine.table
    talk.engine.offload.account(flow.key, (9, 900), (9, 900), talk.now, ended=True)
    ((why,),) = ([start.blocked] for start in talk.engine._silent._blocked.values())
    assert why is not None
    assert len(why.facts.http_url) == len(why.facts.http_user_agent) == 512


def test_empty_segments_do_not_use_up_inspection() -> None:
    """Also of a connection that nothing has happened to."""
    talk = Connection()
    talk.open()
    for number in range(100):
        talk.client(flags=(ACK, FIN | ACK, RST, PSH)[number % 4], seq=60)
        talk.client(b"x", seq=60)  # before the start: it goes on as an empty one
        assert talk.engine.share is Share.NONE
    assert talk.client(BAD) is Action.DROP
