"""What is compared: each set-up is a lab of its own with something between client and server."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from endpoints import Endpoints, Tools

from nedge.core.flow import Share
from nedge.core.marks import Marks
from nedge.kernel.rules import RuleSet
from nedge.lab.gateway import EVENTS, PORTS, Gateway
from nedge.lab.host import LabError, pids_in
from nedge.lab.topology import LAN_PORT, WAN_PORT, Lab

RULES = 20
"""Of Suricata; nedge has as many policies that are on."""
SETTLED = 0.02
"""A gateway that uses less of a CPU than this has nothing left to do."""
SETTLE_DEADLINE = 25.0
CLOSED_SECONDS = 8
"""How long connection tracking remembers closed connections, in every set-up that has it (nedge sets it)."""

_TICKS = os.sysconf("SC_CLK_TCK")


class Setup:
    """A plain bridge, and the base of the others. On entry everything runs."""

    bridged = True
    linger = 0.0
    """Seconds after which it may still come back to a closed connection, unless its table says it won't."""

    def __init__(self, name: str, tools: Tools, *, events: bool) -> None:
        self.name = name
        self.events = events
        self._tools = tools
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.lab = stack.enter_context(Lab(bridge=self.bridged, offloads=True, sites=1))
            self.ends = stack.enter_context(Endpoints(self.lab, self._tools))
            self._start(stack)
            self._exit = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._exit.__exit__(kind, error, trace)

    def _start(self, stack: ExitStack) -> None:
        """Start what is between."""

    # What its processes have used

    def pids(self) -> list[int]:
        """All processes of the gateway."""
        return pids_in(self.lab.gateway.namespace)

    def cpu(self) -> float:
        """Seconds of CPU, user and system, that they have used so far, with their ended children."""
        return sum(cpu_ticks(pid) for pid in self.pids()) / _TICKS

    def memory(self) -> int:
        """Proportional set size in bytes: shared pages count once."""
        total = 0
        for pid in self.pids():
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        return total

    def connections(self) -> int:
        """Entries of the gateway's connection table."""
        done = self.lab.gateway.run(["cat", "/proc/sys/net/netfilter/nf_conntrack_count"])
        return int(done.stdout or 0)

    def settle(self, *, loaded: bool = False, connections: int = 50) -> None:
        """Wait until all is done that connections leave to do: they are forgotten, their records written.

        `loaded`: there were some just now. `connections`: so many stay.
        """
        if not self.pids():
            return
        start = time.monotonic()
        before, quiet = self.cpu(), 0
        while quiet < 2 and time.monotonic() < start + SETTLE_DEADLINE:
            time.sleep(0.5)
            now = self.cpu()
            idle = now - before <= SETTLED / 2 and self._forgotten(connections)
            quiet = quiet + 1 if idle and (time.monotonic() > start + self.linger or not loaded) else 0
            before = now

    def _forgotten(self, connections: int) -> bool:
        """Whether it has no more than so many connections in mind."""
        return True


class Netfilter(Setup):
    """A bridge whose packets meet iptables and connection tracking, and nothing else."""

    RULES = (
        "*filter\n"
        "-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n"
        "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT\n"
        "COMMIT\n"
    )

    def _start(self, stack: ExitStack) -> None:
        gateway = self.lab.gateway
        gateway.run(["iptables-restore"], input=self.RULES, check=True)
        timeouts = (f"net.netfilter.nf_conntrack_tcp_timeout_{state}" for state in ("time_wait", "close"))
        keys = ["net.bridge.bridge-nf-call-iptables=1", *(f"{key}={CLOSED_SECONDS}" for key in timeouts)]
        gateway.run(["sysctl", "-qw", *keys], check=True)


class Floor(Netfilter):
    """nedge's rules, and a program in C that passes at once what they send up: nothing can cost less."""

    QUEUE = 1

    def _start(self, stack: ExitStack) -> None:
        super()._start(stack)
        marks = Marks()
        rules = RuleSet("br0", (LAN_PORT,), (WAN_PORT,), self.QUEUE, bypass=True, marks=marks)
        gateway = self.lab.gateway
        gateway.run(["iptables-restore", "--noflush"], input=rules.render("ip"), check=True)
        command = [self._tools.pass_queue, str(self.QUEUE), str(marks.value(Share.WATCH))]
        process = gateway.popen(command, stdout=subprocess.PIPE)
        stack.callback(gateway.stop, process)
        assert process.stdout is not None
        if process.stdout.readline().strip() != "ready":
            raise LabError("pass_queue did not start")


class Nedge(Setup):
    """nedge as it comes, with its policies (those that are on), and so many workers."""

    bridged = False

    def _forgotten(self, connections: int) -> bool:
        return self.connections() <= connections  # it makes the kernel forget them, and hears of each

    def __init__(self, name: str, tools: Tools, *, events: bool, workers: int, extra: str = "") -> None:
        super().__init__(name, tools, events=events)
        self._workers = workers
        self._extra = extra
        self.gateway: Gateway | None = None

    def _start(self, stack: ExitStack) -> None:
        text = PORTS + f"workers = {self._workers}\n" + (EVENTS if self.events else "") + self._extra
        self.gateway = stack.enter_context(Gateway(self.lab, text))


class Suricata(Netfilter):
    """Suricata on a queue, with a small configuration and 20 rules; `bypass`: as its documentation has it."""

    QUEUE = 1
    linger = 4.0

    def __init__(self, name: str, tools: Tools, *, events: bool, bypass: bool) -> None:
        super().__init__(name, tools, events=events)
        self._bypass = bypass
        self.RULES = _BYPASS_RULES if bypass else _QUEUE_RULES

    def _start(self, stack: ExitStack) -> None:
        super()._start(stack)
        folder = self.lab.directory / "suricata"
        folder.mkdir()
        (folder / "bench.rules").write_text("".join(_suricata_rules()))
        (folder / "suricata.yaml").write_text(
            (Path(__file__).parent / "suricata.yaml")
            .read_text()
            .replace("@DIRECTORY@", str(folder))
            .replace("@BYPASS@", "yes" if self._bypass else "no")
            .replace("@EVENTS@", "yes" if self.events else "no")
        )
        command = ["suricata", "-c", folder / "suricata.yaml", "-q", str(self.QUEUE), "-k", "none"]
        with (folder / "log").open("w") as log:
            process = self.lab.gateway.popen([*command, "-l", folder], stdout=log, stderr=log)
        stack.callback(self.lab.gateway.stop, process)
        self._await_queue(process, folder / "log")

    def _await_queue(self, process: subprocess.Popen[str], log: Path) -> None:
        deadline = time.monotonic() + 30
        while not self.lab.gateway.run(["cat", "/proc/net/netfilter/nfnetlink_queue"]).stdout.strip():
            if process.poll() is not None or time.monotonic() > deadline:
                raise LabError(f"suricata did not start:\n{log.read_text()}")
            time.sleep(0.1)


_QUEUE_RULES = f"*mangle\n-A FORWARD -j NFQUEUE --queue-num {Suricata.QUEUE}\nCOMMIT\n"
_BYPASS_RULES = (
    "*mangle\n"
    "-A PREROUTING -j CONNMARK --restore-mark\n"
    f"-A FORWARD -m mark ! --mark 1/1 -j NFQUEUE --queue-num {Suricata.QUEUE}\n"
    "-A POSTROUTING -m mark --mark 1/1 -j CONNMARK --save-mark\n"
    "COMMIT\n"
)


def _suricata_rules() -> list[str]:
    rules = []
    for number in range(RULES):
        if number % 3 == 0:
            match = f'http any any -> any any (http.host; content:"blocked-{number}.example"; endswith; '
        elif number % 3 == 1:
            match = f'tls any any -> any any (tls.sni; content:"blocked-{number}.example"; endswith; '
        else:
            match = f'tcp any any -> any any (flow:to_server,established; content:"blocked-{number}"; '
        rules.append(f'drop {match}msg:"Benchmark {number}"; sid:{9_000_000 + number}; rev:1;)\n')
    return rules


def known() -> list[str]:
    """The names of the set-ups that are possible here."""
    names = ["plain", "netfilter", "floor", "nedge-1", "nedge-2"]
    if shutil.which("suricata"):
        names += ["suricata", "suricata-bypass"]
    return names


def make(name: str, tools: Tools, *, events: bool, extra: str = "") -> Setup:
    """The set-up of this name. `extra`: more of nedge's configuration."""
    match name.split("-"):
        case ["plain"]:
            return Setup(name, tools, events=events)
        case ["netfilter"]:
            return Netfilter(name, tools, events=events)
        case ["floor"]:
            return Floor(name, tools, events=events)
        case ["nedge", workers]:
            return Nedge(name, tools, events=events, workers=int(workers), extra=extra)
        case ["suricata", *bypass]:
            return Suricata(name, tools, events=events, bypass=bool(bypass))
    raise ValueError(name)


def cpu_ticks(pid: int) -> int:
    """User and system time of a process, all its threads and its children that ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(map(int, fields[11:15]))
