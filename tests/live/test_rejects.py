"""`action = "reject"` in the running gateway: whoever is blocked hears of it at once, both ends do."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest
from test_offload import kept, until
from test_reject import DATAGRAM, FAMILIES, STREAM, Peer, outcome

from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import SERVER, Lab

SOON = 2.0
"""Seconds. Whoever hears nothing waits longer: the clients below for 10."""
BLOCKED = '\n[scripts.blocked_hostname]\ndomains = ["blocked.example"]\n'
REJECT = PORTS + EVENTS + '\n[verdict]\naction = "reject"\n' + BLOCKED


@pytest.fixture
def peer(lab: Lab) -> Iterator[Peer]:
    peer = Peer(lab.server)
    yield peer
    lab.server.stop_all()


def curl(lab: Lab, url: str, family: str, *options: str) -> tuple[int, float]:
    """Exit status of curl, and the seconds it took. The URL's name is resolved for it."""
    address = getattr(SERVER, family)
    name = url.split("/")[2]
    where = f"[{address}]" if ":" in address else address
    resolve = ["--resolve", f"{name}:80:{where}", "--resolve", f"{name}:443:{where}"]
    start = time.monotonic()
    done = lab.client.run(["curl", "-sSk", "-m", "10", "-o", "/dev/null", *resolve, *options, url])
    return done.returncode, time.monotonic() - start


@FAMILIES
@pytest.mark.parametrize("offload", ["true", "false"])
def test_names(lab: Lab, servers: ServerSet, family: str, offload: str) -> None:
    with Gateway(lab, REJECT.replace("[gateway]", f"[gateway]\noffload = {offload}")) as gateway:
        for scheme, error in (("https", 35), ("http", 56)):  # in the handshake; receiving: both by RST
            assert curl(lab, f"{scheme}://good.example/", family)[0] == 0
            status, seconds = curl(lab, f"{scheme}://blocked.example/", family)
            assert (status, seconds < SOON) == (error, True), (scheme, status, seconds)
        for transport in ("+notcp", "+tcp"):
            start = time.monotonic()
            asked = ["dig", "+tries=1", "+time=10", transport, f"@{getattr(SERVER, family)}"]
            assert lab.client.run([*asked, "good.example"]).returncode == 0
            assert lab.client.run([*asked, "blocked.example"]).returncode == 9
            assert time.monotonic() - start < SOON
        assert not servers.received(host="blocked.example")
        gateway.stop()
        verdicts = {(event["ndpi"]["hostname"], event["nedge"]["verdict"]) for event in gateway.events()}
        assert verdicts == {("good.example", "pass"), ("blocked.example", "reject")}
    (totals,) = gateway.logged("gateway_totals")
    assert totals["rejects_sent"] >= 4
    assert totals["rejects_failed"] == totals["rejects_limited"] == 0


def test_both_ends_hear_of_it(lab: Lab, peer: Peer) -> None:
    """A connection that nobody can name, on which both have spoken."""
    with Gateway(lab, PORTS + '[failures]\nunclassified = "reject"\n[limits]\ndetection_packets = 4\n'):
        client = outcome(lab, STREAM, SERVER.v4, 90, "words", 100, 5)
        server = peer.ending()
        assert client["end"] == server["end"] == "ConnectionResetError"
        assert client["seconds"] < SOON


@FAMILIES
def test_packets_without_room_in_the_table(lab: Lab, peer: Peer, family: str) -> None:
    with Gateway(lab, PORTS + '[failures]\ntable_full = "reject"\n[limits]\nmax_flows = 1\n'):
        # The flow that takes the only place, for a minute of silence.
        assert outcome(lab, DATAGRAM, getattr(SERVER, family), 92, "first")["end"] == "answer"
        status, seconds = curl(lab, "http://any.example/", family)
        assert (status, seconds < SOON) == (7, True)
        result = outcome(lab, DATAGRAM, getattr(SERVER, family), 92, "words")
        assert (result["end"], result["seconds"] < SOON) == ("ConnectionRefusedError", True)


def test_a_flow_that_the_kernel_passes_is_reset_by_a_reload(lab: Lab, servers: ServerSet) -> None:
    config = REJECT.replace("blocked.example", "none.example")
    with Gateway(lab, config) as gateway, kept(lab, "blocked.example") as connection:
        assert connection.ask() == "answered"
        (gateway.directory / "nedge.toml").write_text(REJECT)
        lab.gateway.run(["kill", f"-{signal.SIGHUP.value}", str(gateway.pid)], check=True)
        until(lambda: "reloaded" in gateway.log)
        assert connection.ask() in ("", "closed")  # no silence: it ended


def test_who_only_watches_rejects_nothing(lab: Lab, servers: ServerSet) -> None:
    with Gateway(lab, REJECT.replace("[gateway]", '[gateway]\nmode = "monitor"')) as gateway:
        assert curl(lab, "https://blocked.example/", "v4")[0] == 0
        gateway.stop()
        assert [event["nedge"]["verdict"] for event in gateway.events()] == ["reject"]
