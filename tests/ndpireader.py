"""Debian's `ndpiReader` 4.2 as the judge of `nedge replay`: the same flows, named and counted the same.

`compare(capture)` gives what differs, flow by flow; an empty list is agreement.
"""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

DEADLINE = 120

_NUMBERS = {"ICMP": 1, "IGMP": 2, "TCP": 6, "UDP": 17, "GRE": 47, "ICMPV6": 58, "IPv6-ICMP": 58, "VRRP": 112}
_SCTP = 132


class Endpoint(NamedTuple):
    """An address, written as ndpiReader writes it, and a port."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


class Key(NamedTuple):
    """What makes packets one flow: its endpoints stand in no order."""

    vlan: int
    proto: int
    endpoints: frozenset[Endpoint]


@dataclass(frozen=True, kw_only=True)
class ReaderFlow:
    """A flow, as one of the two programs sees it."""

    vlan: int
    proto: int
    """IP protocol number."""
    client: Endpoint
    server: Endpoint
    protocol: str
    """nDPI's name: `TLS.Google`."""
    category: str
    packets: tuple[int, int]
    """From the client, from the server."""

    @property
    def key(self) -> Key:
        return Key(self.vlan, self.proto, frozenset((self.client, self.server)))

    def __str__(self) -> str:
        vlan = f" vlan {self.vlan}" if self.vlan else ""
        return f"{self.proto}{vlan} {self.client} -> {self.server}"


class UnreadableFlowError(Exception):
    """ndpiReader wrote a flow line that is not understood."""


# ndpiReader

_FLOW = re.compile(
    r"^\t\d+\t(?P<proto>\S+) (?P<client>\S+) (?:->|<->) (?P<server>\S+) "
    r"(?:\[VLAN: (?P<vlan>\d+)\])?"
    r"(?:\[flowId: \d+\])?(?:\[score: [\d.]+\])?"
    r"\[proto: (?:[^\[\]]*?:)?(?P<ids>\d+(?:\.\d+)?)/(?P<protocol>[^\[\]]+)\]"
    r".*?"
    r"(?:\[cat: (?P<category>[^\[\]]+)/\d+\])?"
    r"\[(?P<sent>\d+) pkts/\d+ bytes (?:->|<->) (?P<received>\d+) pkts/\d+ bytes\]"
)
_FLOW_START = re.compile(r"^\t\d+\t(?:[A-Z]\w*|\d+) \S+ (?:->|<->) ")


def ndpi_reader(capture: Path) -> list[ReaderFlow]:
    """The flows that ndpiReader finds in a capture."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "flows"
        done = subprocess.run(
            ["ndpiReader", "-q", "-i", str(capture), "-v", "2", "-w", str(out)],
            capture_output=True,
            check=False,
            timeout=DEADLINE,
        )
        words = (done.stdout + done.stderr).decode(errors="replace").strip()
        if done.returncode != 0 or "ERROR" in words:  # its exit status is 0 also for a file that is not there
            raise RuntimeError(f"ndpiReader {capture}: exit status {done.returncode}: {words}")
        return parse_flows(out.read_text(errors="backslashreplace"))


def parse_flows(text: str) -> list[ReaderFlow]:
    """Every flow of ndpiReader's report, detected or not. Names off the wire may hold anything."""
    flows = []
    for line in text.split("\n"):
        if not _FLOW_START.match(line):
            continue
        found = _FLOW.match(line)
        if found is None:
            raise UnreadableFlowError(line)
        proto = found["proto"]
        flows.append(
            ReaderFlow(
                vlan=int(found["vlan"] or 0),
                proto=int(proto) if proto.isdecimal() else _NUMBERS[proto],
                client=_endpoint(found["client"]),
                server=_endpoint(found["server"]),
                protocol=found["protocol"],
                category=found["category"] or "Unspecified",
                packets=(int(found["sent"]), int(found["received"])),
            )
        )
    return flows


def _endpoint(text: str) -> Endpoint:
    address, _, port = text.rpartition(":")
    return Endpoint(address.strip("[]"), int(port))


# nedge


def nedge_replay(capture: Path) -> list[ReaderFlow]:
    """The flows that `nedge replay` finds, without scripts. Those that share a key are put together.

    ndpiReader looks at answers, too. It never ends a flow, so what we end after a silence, or at a new SYN,
    is one flow to it.
    """
    with tempfile.TemporaryDirectory() as folder:
        config, policies = Path(folder) / "nedge.toml", Path(folder) / "policies"
        config.write_text("[dpi]\nhttp_answers = true\n")
        policies.mkdir()
        command = [sys.executable, "-m", "nedge", "replay", capture, "--json", "--config", config]
        done = subprocess.run(
            [*command, "--policies", policies],
            capture_output=True,
            check=False,
            timeout=DEADLINE,
        )
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()
        raise RuntimeError(f"nedge replay {capture}: exit status {done.returncode}: {words}")
    return merge(flow_of_event(json.loads(line)) for line in done.stdout.splitlines())


def flow_of_event(event: dict[str, Any]) -> ReaderFlow:
    """An EVE flow event."""
    proto = event["proto"]
    number = int(proto) if proto.isdecimal() else _NUMBERS.get(proto, _SCTP)
    ports = (event["src_port"], event["dest_port"])
    if number == _SCTP:  # ndpiReader has ports for TCP and UDP only
        ports = (0, 0)
    return ReaderFlow(
        vlan=event["vlan"],
        proto=number,
        client=Endpoint(_spelled(event["src_ip"]), ports[0]),
        server=Endpoint(_spelled(event["dest_ip"]), ports[1]),
        protocol=event["app_proto"],
        category=event["ndpi"]["category"],
        packets=(event["flow"]["pkts_toserver"], event["flow"]["pkts_toclient"]),
    )


def _spelled(address: str) -> str:
    """An address as inet_ntop has it, with ndpiReader's own shortening: 2001:db8::1::1 is one of its own."""
    if ":" not in address:
        return address
    packed = socket.inet_pton(socket.AF_INET6, address)
    return socket.inet_ntop(socket.AF_INET6, packed).replace(":0:", "::")


def merge(flows: Iterable[ReaderFlow]) -> list[ReaderFlow]:
    """One flow per key, named and directed as the first of them; packets are summed."""
    merged: dict[Key, ReaderFlow] = {}
    for flow in flows:
        first = merged.get(flow.key)
        if first is None:
            merged[flow.key] = flow
            continue
        sent, received = flow.packets if flow.client == first.client else flow.packets[::-1]
        packets = (first.packets[0] + sent, first.packets[1] + received)
        merged[flow.key] = ReaderFlow(**{**first.__dict__, "packets": packets})
    return list(merged.values())


# Both


@dataclass(frozen=True)
class Difference:
    """One flow that the two do not see alike; None: one of them does not see it at all."""

    reader: ReaderFlow | None
    nedge: ReaderFlow | None

    @property
    def what(self) -> str:
        """`missing`, `extra`, or in what they differ: `direction`, `protocol`, `category`, `packets`."""
        if self.nedge is None:
            return "missing"
        if self.reader is None:
            return "extra"
        same = {
            "direction": self.reader.client == self.nedge.client,
            "protocol": self.reader.protocol == self.nedge.protocol,
            "category": self.reader.category == self.nedge.category,
            "packets": self.reader.packets == self.nedge.packets
            or (self.reader.client != self.nedge.client and self.reader.packets == self.nedge.packets[::-1]),
        }
        return "+".join(name for name, equal in same.items() if not equal)

    def __str__(self) -> str:
        flow = self.reader or self.nedge
        return f"{flow}: {self.what}: ndpiReader {_told(self.reader)}, nedge {_told(self.nedge)}"


def _told(flow: ReaderFlow | None) -> str:
    if flow is None:
        return "has no such flow"
    return f"{flow.protocol} ({flow.category}) {flow.packets[0]}/{flow.packets[1]} from {flow.client}"


def differences(reader: Iterable[ReaderFlow], nedge: Iterable[ReaderFlow]) -> list[Difference]:
    """What differs between the two views of one capture."""
    theirs = {flow.key: flow for flow in merge(reader)}
    ours = {flow.key: flow for flow in nedge}
    pairs = (Difference(theirs.get(key), ours.get(key)) for key in (*theirs, *(ours.keys() - theirs.keys())))
    return [pair for pair in pairs if pair.what]


def compare(capture: Path) -> list[Difference]:
    """What differs between ndpiReader's and nedge's view of a capture."""
    return differences(ndpi_reader(capture), nedge_replay(capture))
