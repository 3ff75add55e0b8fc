"""What the project's own tests need beyond `nedge.testing`: scripts as text, values out of them, EVE records.

`judge` runs packets through what `nedge.assemble.assemble` builds from a configuration, with a real libndpi:

    session = Tcp(server="203.0.113.5", dport=443).handshake().client(client_hello("example.com"))
    judged = judge(session.packets, toml="[verdict]\\ndrop_score = 50")
    assert judged.flow["nedge"]["verdict"] == "pass"

`with_script` runs one script given as text; what it passes to `note` comes back as `seen`. `ask` does that
for one expression in one hook. The builders of `nedge.testing` can be had from here, too.
"""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmdb_writer import MMDBWriter
from netaddr import IPSet  # type: ignore[import-untyped]
from support import require

from nedge.assemble import Assembly, assemble
from nedge.config import SHIPPED_POLICIES
from nedge.config_file import load
from nedge.core.events import Event, FlowEnded, Sink
from nedge.core.facts import Classifier
from nedge.core.verdict import Action
from nedge.dpi import DpiError, load_library
from nedge.export.eve import event_record
from nedge.testing import (  # noqa: F401 (tests import them from here)
    ACK,
    CLIENT,
    CLIENT6,
    FIN,
    PSH,
    RST,
    SERVER,
    SERVER6,
    SYN,
    T0,
    Packet,
    Tcp,
    Udp,
    certificate,
    client_hello,
    dns,
    dns_answer,
    dns_query,
    http_request,
    http_response,
    icmp,
    ip,
    merge,
    noise,
    ping,
    quic_initial,
    ssh_turns,
    tcp_segment,
    tls,
    tls_turns,
    udp_datagram,
    write_pcap,
)


def write_countries(path: Path, countries: Mapping[str, str]) -> Path:
    """A country database in MaxMind's format: network -> ISO code."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="Country", languages=["en"])
    for network, code in countries.items():
        writer.insert_network(IPSet([network]), {"country": {"iso_code": code}})
    writer.to_db_file(str(path))
    return path


def write_asns(path: Path, systems: Mapping[str, tuple[int, str]]) -> Path:
    """A database of autonomous systems in MaxMind's format: network -> number and name."""
    writer = MMDBWriter(ip_version=6, ipv4_compatible=True, database_type="ASN", languages=["en"])
    for network, (number, name) in systems.items():
        record = {"autonomous_system_number": number, "autonomous_system_organization": name}
        writer.insert_network(IPSet([network]), record)
    writer.to_db_file(str(path))
    return path


# The engine


@dataclass
class Judged:
    """What became of some packets."""

    events: list[dict[str, Any]] = field(default_factory=list)
    """All events as EVE records, in order."""
    ended: list[float] = field(default_factory=list)
    """When each flow of `flows` ended, by the engine's clock."""
    actions: list[Action] = field(default_factory=list)
    """One for each packet."""
    seen: list[Any] = field(default_factory=list)
    """What scripts passed to `note`."""

    @property
    def flows(self) -> list[dict[str, Any]]:
        """Flow records, in the order in which flows ended."""
        return self._of("flow")

    @property
    def alerts(self) -> list[dict[str, Any]]:
        """Alert records."""
        return self._of("alert")

    @property
    def flow(self) -> dict[str, Any]:
        """The record of the one flow there is."""
        flows = self.flows
        assert len(flows) == 1, f"{len(flows)} flows"
        return flows[0]

    @property
    def statuses(self) -> list[str]:
        """Names of the statuses of the one flow, without status_blocked."""
        names: list[str] = self.flow["nedge"]["status"]
        return [name for name in names if name != "status_blocked"]

    @property
    def scores(self) -> tuple[int, int, int]:
        """Flow, client and server score of the one flow."""
        nedge = self.flow["nedge"]
        return nedge["score"], nedge["cli_score"], nedge["srv_score"]

    @property
    def verdict(self) -> str:
        """`pass`, `drop` or `reject`: of the one flow, at its end."""
        verdict: str = self.flow["nedge"]["verdict"]
        return verdict

    def _of(self, event_type: str) -> list[dict[str, Any]]:
        return [event for event in self.events if event["event_type"] == event_type]


_notes: list[Any] = []


def note(value: Any) -> None:
    """For scripts under test: hand a value out, to `Judged.seen`."""
    _notes.append(value)


Scripts = Mapping[str, str] | Sequence[str] | None
"""Key -> source text; or keys of shipped policies; or None for all shipped policies."""


class Bench:
    """An assembled engine under test."""

    def __init__(self, assembly: Assembly, judged: Judged) -> None:
        self.assembly = assembly
        self.engine = assembly.engine
        self.judged = judged

    def feed(self, packets: Iterable[Packet]) -> None:
        """Judge packets."""
        for packet in packets:
            action = self.engine.packet(packet.data, packet.time, packet.vlan, packet.mac)
            self.judged.actions.append(action)


@contextmanager
def bench(toml: str = "", scripts: Scripts = None, library: str = "auto") -> Iterator[Bench]:
    """An engine made from a configuration and scripts. At the end it is closed; `engine.finish` is yours."""
    judged = Judged()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "nedge.toml")
        path.write_text(textwrap.dedent(toml))
        config = load(path)
        if scripts is not None:
            policies = Path(directory, "policies")
            policies.mkdir()
            for key in scripts:
                source = (
                    textwrap.dedent(scripts[key])
                    if isinstance(scripts, Mapping)
                    else (SHIPPED_POLICIES / f"{key}.py").read_text()
                )
                (policies / f"{key}.py").write_text(source)
            config = config.model_copy(
                update={"scripts": config.scripts.model_copy(update={"directories": [policies]})}
            )
        config = config.model_copy(update={"dpi": config.dpi.model_copy(update={"library": library})})

        def sink_for(classifier: Classifier) -> Sink:
            def sink(event: Event) -> None:
                judged.events.append(event_record(event, classifier))
                if isinstance(event, FlowEnded):
                    judged.ended.append(event.time)

            return sink

        assembly = assemble(config, sink_for)
        _notes.clear()
        try:
            yield Bench(assembly, judged)
        finally:
            assembly.close()
            judged.seen = list(_notes)


def judge(
    packets: Iterable[Packet],
    toml: str = "",
    scripts: Scripts = None,
    library: str = "auto",
    *,
    until: float | None = None,
) -> Judged:
    """Judge packets to the end of all flows. `until`: let time pass until then before shutting down."""
    with bench(toml, scripts, library) as made:
        made.feed(packets)
        end = made.engine.now if until is None else until
        made.engine.finish(end)
    return made.judged


def with_script(
    source: str,
    packets: Iterable[Packet],
    toml: str = "",
    library: str = "auto",
    *,
    until: float | None = None,
) -> Judged:
    """Judge packets with one script, given as text; its key is `script`.

    `note` and what scripts import from `nedge.scripts` is there already.
    """
    return judge(packets, toml, {"script": PRELUDE + textwrap.dedent(source)}, library, until=until)


PRELUDE = "from kit import note; from nedge.scripts import *\n"


def ask(
    packets: Iterable[Packet],
    expression: str,
    hook: str = "protocolDetected",
    toml: str = "",
    library: str = "auto",
    *,
    until: float | None = None,
) -> list[Any]:
    """The values of an expression of `flow`, `now` and `conf`, at each call of a hook."""
    source = f"def {hook}(flow, now, conf):\n    note({expression})\n"
    return with_script(source, packets, toml, library, until=until).seen


def require_library(choice: str) -> str:
    """`system` or `nfstream`, if it is there; else the test is skipped, or fails under CI=true."""
    try:
        load_library(choice)
    except DpiError as error:
        require(False, str(error))
    return choice
