"""What `nedge new-script` writes: a script to start from, and a test of it that passes."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

_NAME = re.compile(r"[a-z][a-z0-9_]{0,62}")

_SCRIPT = '''"""Tells of flows that ask for a name in `domains`, and of all that is below it.

What this script does, and what its settings mean, stands here: `nedge check` and people read it.

Default score: 50, an alert. Set `score = 100` to block such flows.
"""

from nedge.scripts import Conf, DomainSet, Flow, status_types

title = "{title}"
category = "security"

# Filters: the fewer flows a script is called for, the less it costs. Take the # away where they fit.
# l4_proto = "tcp"  # or "udp", "icmp"
# l7_proto = "TLS"  # a protocol of nDPI, as master or application: TLS is TLS.Google, too
# three_way_handshake_ok = True  # TCP only if its handshake was seen
# needs = "isTLS"  # a function of the flow that must give something true: hasRisk, isBlacklisted, …

# The settings, and their defaults. A table [scripts.{name}] in the configuration replaces single ones.
default_value = {{
    "domains": ["blocked.example"],
    "score": 50,  # of the flow: from verdict.drop_score (100) on it is dropped
    "client_score": 10,  # of the client, while the flow lives
    "server_score": 0,
}}

domains = DomainSet()


def setup(conf: Conf) -> bool:
    """Called once, when the script is loaded. What it raises is a fault of the settings; false: it is off."""
    global domains
    domains = DomainSet(conf["domains"])
    return len(domains) > 0


def protocolDetected(flow: Flow, now: int, conf: Conf) -> None:
    """Called once for a flow: its protocol and the server's name are known. The packet that told waits."""
    entry = domains.match(flow.getHostName())
    if entry:
        flow.triggerStatus(
            status_types.status_user_01,
            {{"host": flow.getHostName(), "entry": entry}},  # goes with the alert
            conf["score"],
            conf["client_score"],
            conf["server_score"],
        )


# Called when more is known: the next DNS query, the next HTTP request, a certificate. Leave it out if nothing
# of that matters: then the kernel takes flows over sooner.
protocolUpdated = protocolDetected

# Other hooks: periodicUpdate (every two minutes), flowEnd, statusChanged. The guide has all that there is.
'''

_TEST = '''"""Tests of {name}.py. pytest runs them: `pytest test_{name}.py`."""

from pathlib import Path

import pytest

from nedge.testing import Tcp, client_hello, dns, load_script, make_flow

SCRIPT = Path(__file__).with_name("{name}.py")


@pytest.mark.parametrize("name", ["blocked.example", "www.blocked.example", "WWW.Blocked.Example"])
def test_a_name_that_is_listed(name):
    script = load_script(SCRIPT)
    flow = script.run(make_flow("TLS", hostname=name))  # a flow in one line
    assert flow.statuses == ["status_user_01"]
    assert flow.scores == (50, 10, 0)  # flow, client, server
    assert flow.verdict == "pass"
    assert flow.alerts[0].info == {{"host": name.lower(), "entry": "blocked.example"}}


@pytest.mark.parametrize("name", ["example", "blocked.example.com", "notblocked.example", ""])
def test_other_names(name):
    script = load_script(SCRIPT)
    assert script.run(make_flow("TLS", hostname=name)).statuses == []


def test_it_blocks_if_so_configured():
    script = load_script(SCRIPT, settings={{"score": 100}})
    packets = Tcp(dport=443).handshake().client(client_hello("blocked.example")).packets
    (flow,) = script.judge(packets)  # through the real engine
    assert flow.verdict == "drop"
    assert script.actions.index("drop") == 3  # SYN, SYN+ACK and ACK pass; the ClientHello does not


def test_every_dns_query_counts():
    script = load_script(SCRIPT)
    script.judge(dns("example.com", "www.blocked.example").packets)
    assert len(script.alerts) == 1


# A capture of your own network: its flows with this script's verdicts.
#
# def test_office():
#     flows = load_script(SCRIPT).replay("office.pcap")
#     assert {{flow.verdict for flow in flows}} == {{"pass"}}
'''


class NewScriptError(Exception):
    """The script was not written, and why."""


def create(name: str, directory: Path, taken: Path) -> tuple[Path, Path]:
    """Write a script and its test; gives their paths. `taken`: a directory whose scripts' names are in use.

    Raises NewScriptError, and then nothing was written; OSError if writing fails.
    """
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise NewScriptError(
            f"name: found {name!r}; allowed are a to z, digits and underscores, a letter first, 63 at most: "
            "no_torrents"
        )
    if name.startswith("test_"):
        raise NewScriptError(f"name: found {name!r}; files that start with test_ are taken for tests")
    if any(taken.glob(f"{name}.*")):
        raise NewScriptError(f"name: a script that comes with nedge is called {name!r}; take another")
    if not directory.is_dir():
        raise NewScriptError(f"directory: {directory} is no directory")
    script, test = directory / f"{name}.py", directory / f"test_{name}.py"
    for path in (script, test, directory / f"{name}.lua"):
        if path.exists():
            raise NewScriptError(f"{path} exists already; it is left as it is")
    title = name.replace("_", " ").capitalize()
    script.write_text(_SCRIPT.format(name=name, title=title))
    test.write_text(_TEST.format(name=name))
    return script, test
