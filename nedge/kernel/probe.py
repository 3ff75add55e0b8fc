"""What this machine offers and lacks, before anything is changed.

`probe()` changes nothing and lists what is wrong; `load_modules()` loads what the kernel has as modules.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nedge.kernel.bridge import check_ports
from nedge.kernel.errors import KernelError
from nedge.kernel.links import Link, links, read_sysctl, write_sysctl
from nedge.kernel.queue import PROC_STATS
from nedge.kernel.rules import CHAIN_PREFIX, FAMILIES, RESTORE, SAVE, RuleSet, save

_SET_MARK = re.compile(r" --set-x?mark (0x[0-9a-f]+)/(0x[0-9a-f]+)")
_COPY_MARK = re.compile(r" --(save|restore)-mark --nfmask (0x[0-9a-f]+) --ctmask (0x[0-9a-f]+)")
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
_CALLS = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")


@dataclass(frozen=True)
class Problem:
    """One thing that is not as it should be."""

    text: str
    fatal: bool = True
    """Whether the gateway cannot run with it."""


def probe(
    bridge: str, lan: Sequence[str], wan: Sequence[str], *, queue: int = 0, mark_mask: int = 0
) -> list[Problem]:
    """All that keeps the gateway from running here (fatal), or its operator should know.

    mark_mask: the bits of marks that are to be ours.
    """
    if problem := missing_capabilities():
        return [problem]  # without them nothing else can be looked at
    problems = [*missing_tools(), *missing_modules()]
    if not lan or not wan:
        return [*problems, Problem("gateway.lan and gateway.wan must name at least one interface each")]
    try:
        rules = RuleSet(bridge, tuple(lan), tuple(wan), queue, bypass=True)
        found = links()
        check_ports(found, bridge, (*lan, *wan))
    except KernelError as error:
        return [*problems, Problem(str(error))]
    if problems:
        return problems
    return [
        *refused_rules(rules),
        *foreign_marks(mark_mask),
        *doubtful_links(found, bridge, lan, wan),
        *other_filters(),
    ]


def require(problems: Iterable[Problem]) -> None:
    """Raise KernelError for the first fatal problem."""
    for problem in problems:
        if problem.fatal:
            raise KernelError(problem.text)


def load_modules() -> None:
    """Load br_netfilter and nfnetlink_queue where they are modules; that fails without a word."""
    if not PROC_STATS.exists():
        _modprobe("nfnetlink_queue")
    if read_sysctl(_CALLS[0]) is None and _modprobe("br_netfilter"):
        # Loaded, it at once sends the traffic of *every* bridge through iptables. Nobody asked for that:
        # ours is switched on by its own option.
        for path in _CALLS:
            write_sysctl(path, "0")


def missing_capabilities(status: Path = Path("/proc/self/status")) -> Problem | None:
    """Whether this process may change the network."""
    line = next(line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    held = int(line.split()[1], 16)
    if all(held >> bit & 1 for bit in _CAPABILITIES.values()):
        return None
    return Problem(f"nedge run needs root ({' and '.join(_CAPABILITIES)}); run it with sudo")


def missing_tools() -> list[Problem]:
    """Programs that are not on the PATH."""
    programs = [*RESTORE.values(), *SAVE.values()]
    absent = [name for name in programs if not shutil.which(name)]
    return [Problem(f"{', '.join(absent)} not found: install iptables")] if absent else []


def missing_modules() -> list[Problem]:
    """Parts of the kernel that are not there."""
    problems = []
    if read_sysctl(_CALLS[0]) is None:
        problems.append(
            Problem(
                "the kernel has no br_netfilter, so bridged packets do not meet iptables: "
                "modprobe br_netfilter, or use a kernel with CONFIG_BRIDGE_NETFILTER"
            )
        )
    if not PROC_STATS.exists():
        problems.append(
            Problem(
                "the kernel has no nfnetlink_queue: modprobe nfnetlink_queue, or use a kernel with "
                "CONFIG_NETFILTER_NETLINK_QUEUE"
            )
        )
    return problems


def refused_rules(rules: RuleSet) -> list[Problem]:
    """Try the very rules in a network namespace of their own, which ends with the trial."""
    if not shutil.which("unshare"):
        return []  # then `install()` will tell
    problems = []
    for family in FAMILIES:
        trial = ["unshare", "--net", RESTORE[family], "--noflush", "--wait=5"]
        done = subprocess.run(
            trial, input=rules.render(family), capture_output=True, text=True, timeout=30, check=False
        )
        if done.returncode:
            said = " ".join(done.stderr.split())
            problems.append(
                Problem(
                    f"{RESTORE[family]} refused nedge's rules ({said}): the kernel needs xt_NFQUEUE, "
                    "xt_physdev, xt_conntrack, xt_pkttype and xt_hl"
                )
            )
    return problems


def doubtful_links(
    found: dict[str, Link], bridge: str, lan: Sequence[str], wan: Sequence[str]
) -> list[Problem]:
    """Interfaces that will work otherwise than one may think."""
    ports = (*lan, *wan)
    problems = []
    if len({found[name].mtu for name in ports}) > 1:
        sizes = ", ".join(f"{name} {found[name].mtu}" for name in ports)
        problems.append(Problem(f"ports differ in MTU ({sizes}): a bridge drops what is too large", False))
    if owner := found.get(bridge):
        extra = [
            link.name for link in found.values() if link.master == owner.index and link.name not in ports
        ]
        if extra:
            problems.append(
                Problem(
                    f"bridge {bridge} has ports neither LAN nor WAN, not filtered: {', '.join(extra)}",
                    False,
                )
            )
    return problems


def other_filters() -> list[Problem]:
    """Rules of others that bridged packets will meet after ours."""
    return [
        Problem(
            f"the {family} filter FORWARD chain drops by default (Docker does that): it will drop what nedge "
            "passes unless a rule there accepts bridged packets (-m physdev --physdev-is-bridged -j ACCEPT)",
            False,
        )
        for family in FAMILIES
        if forward_policy(save(family)) == "DROP"
    ]


def foreign_marks(mask: int) -> list[Problem]:
    """Rules of others that would set, clear or copy the bits of marks that are to be ours."""
    return [
        Problem(
            f"a rule of the {family} firewall changes the mark bits {mask:#x} that nedge is to use ({line}): "
            "set gateway.mark_mask to bits that nothing else uses, or have that rule leave these alone"
        )
        for family in FAMILIES
        for line in save(family)
        if touched_bits(line) & mask
    ]


def touched_bits(rule: str) -> int:
    """The bits that a rule of iptables-save may change in marks of connections, or set in marks of packets.

    (That others clear bits of a packet's mark does no harm.) 0 for our own rules.
    """
    if not rule.startswith("-A ") or rule.startswith(f"-A {CHAIN_PREFIX}"):
        return 0
    connection = " -j CONNMARK " in rule
    if not connection and " -j MARK " not in rule:
        return 0
    if found := _SET_MARK.search(rule):
        value, mask = (int(text, 0) for text in found.groups())
        return value | mask if connection else value
    if found := _COPY_MARK.search(rule):
        packet, of_connection = int(found[2], 0), int(found[3], 0)
        return of_connection if found[1] == "save" else packet
    return 0


def forward_policy(saved: list[str]) -> str:
    """The policy of filter FORWARD in the output of iptables-save."""
    table = ""
    for line in saved:
        if line.startswith("*"):
            table = line
        elif table == "*filter" and line.startswith(":FORWARD "):
            return line.split()[1]
    return "ACCEPT"


def _modprobe(module: str) -> bool:
    try:
        done = subprocess.run(["modprobe", "-q", module], capture_output=True, check=False, timeout=30)
    except FileNotFoundError:
        return False
    return done.returncode == 0
