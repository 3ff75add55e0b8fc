"""Connections that are silent for long: whoever speaks then is judged by what its server takes."""

from __future__ import annotations

import pytest
from core_kit import ACK, CLIENT, FIN, PSH, SERVER, SYN, T0, Rig, ip4, tcp
from test_engine import block_names

from nedge.core import silent
from nedge.core.flow import Handshake, Share
from nedge.core.verdict import Action

BAD = b"GET / HTTP/1.1\r\nHost: bad.example\r\n\r\n"
GOOD = b"GET / HTTP/1.1\r\nHost: fine.example\r\n\r\n"
DECOY = b"SSH-2.0-decoy\r\n"
LAN, WAN = 2, 3


class Connection:
    """A client's and a server's packets, through an engine that is a gateway's."""

    def __init__(self, sport: int = 40000, rig: Rig | None = None) -> None:
        self.rig = rig or Rig(scripts=block_names("bad.example"))
        self.engine = self.rig.engine
        self.engine.remark = lambda flow: None
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
    assert talk.client(DECOY, seq=101) is Action.DROP  # in the place of the junk, and behind it
    assert talk.client(request_, seq=105) is action


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


@pytest.mark.parametrize("flags", [SYN, SYN | ACK])
def test_a_new_connection_has_its_own_start(flags: int) -> None:
    talk = Connection()
    talk.open()
    talk.fall_silent()
    if flags == SYN:
        talk.client(flags=SYN, seq=5000)
    else:
        talk.server(flags=flags, ack=5001)
    (flow,) = talk.engine.table
    assert flow.isn == (5000 if flags == SYN else -1)


def test_what_was_closed_is_not_remembered() -> None:
    talk = Connection()
    talk.open()
    talk.client(flags=FIN | ACK)
    talk.fall_silent()
    assert talk.client(GOOD) is Action.PASS
    assert talk.engine.counters.midstream == 1


def test_of_very_many_the_oldest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silent, "MAX_REMEMBERED", 2)
    first = Connection()
    talks = [first, *(Connection(sport, first.rig) for sport in (40001, 40002))]
    for talk in talks:
        talk.open()
    first.fall_silent()
    for talk in talks:
        talk.now = first.now
        talk.client(GOOD)
    assert first.engine.counters.midstream == 1
    assert len(first.engine._silent) == 0
