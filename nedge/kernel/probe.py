"""What this machine offers and lacks, before anything is changed.

`examine()` is the one list of checks: `nedge run` acts on it, `nedge doctor` prints it. It changes nothing;
`load_modules()` loads what the kernel has as modules.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nedge.core.marks import Marks
from nedge.kernel.bridge import SYSCTLS, check_ports
from nedge.kernel.errors import KernelError
from nedge.kernel.links import Link, links, read_sysctl, write_sysctl
from nedge.kernel.problem import Check, Problem
from nedge.kernel.queue import PROC_STATS
from nedge.kernel.rules import CHAIN_PREFIX, FAMILIES, RESTORE, SAVE, RuleSet, save
from nedge.kernel.survey import connection_table, docker, large_receive, other_queues, wireless

_SET_MARK = re.compile(r" --set-x?mark (0x[0-9a-f]+)/(0x[0-9a-f]+)")
_COPY_MARK = re.compile(r" --(save|restore)-mark --nfmask (0x[0-9a-f]+) --ctmask (0x[0-9a-f]+)")
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_NET_RAW": 13}
CAP_SYS_ADMIN = 21
_STATUS = Path("/proc/self/status")
_CALLS = ("net/bridge/bridge-nf-call-iptables", "net/bridge/bridge-nf-call-ip6tables")


def examine(
    bridge: str,
    lan: Sequence[str],
    wan: Sequence[str],
    *,
    queue: int = 0,
    mark_mask: int = 0,
    max_flows: int = 0,
    workers: int = 1,
    before_loading: bool = False,
) -> Iterator[Check]:
    """Look at one thing after the other, and end where what is missing keeps us from looking further.

    mark_mask: the bits of marks that are to be ours. max_flows: that each worker is to hold.
    before_loading: modules that can be loaded are no problem yet.
    """
    denied = missing_capabilities()
    yield Check("privileges", "may change the network", [denied] if denied else [])
    if denied:
        return
    ports = (*lan, *wan)
    found = links()
    first = (
        Check("programs", "iptables is installed", missing_tools()),
        Check("kernel", "br_netfilter and nfnetlink_queue", missing_modules(loadable_ok=before_loading)),
        Check("interfaces", f"{', '.join(ports)}: can be bridged", unusable_ports(found, bridge, lan, wan)),
    )
    yield from first
    if any(problem.fatal for check in first for problem in check.problems):
        return
    marks = Marks(mark_mask) if mark_mask else None
    rules = RuleSet(bridge, tuple(lan), tuple(wan), queue, bypass=True, marks=marks)
    yield Check("rules", "the kernel takes them", refused_rules(rules))
    yield Check("marks", f"nothing else uses {mark_mask:#x}", foreign_marks(mark_mask))
    yield Check("ports", f"MTU {found[ports[0]].mtu}", doubtful_links(found, bridge, lan, wan))
    yield Check("receive offload", "no LRO", [*large_receive(found, ports)])
    yield Check("firewall", "no other drops forwarded packets by default", other_filters())
    yield Check("queues", "no other rule queues packets", other_queues())
    yield Check("Docker", "not here, or lets bridged packets pass", docker(found))
    yield Check("sysctls", "all that are to be set are there", missing_sysctls())
    yield Check("connection table", "large enough", connection_table(max_flows, workers))


def probe(
    bridge: str,
    lan: Sequence[str],
    wan: Sequence[str],
    *,
    queue: int = 0,
    mark_mask: int = 0,
    max_flows: int = 0,
    workers: int = 1,
) -> list[Problem]:
    """All that keeps the gateway from running here (fatal), or its operator should know."""
    checks = examine(bridge, lan, wan, queue=queue, mark_mask=mark_mask, max_flows=max_flows, workers=workers)
    return [problem for check in checks for problem in check.problems]


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


def missing_capabilities(status: Path = _STATUS) -> Problem | None:
    """Whether this process may change the network."""
    if all(has_capability(bit, status) for bit in _CAPABILITIES.values()):
        return None
    return Problem(f"nedge run needs root ({' and '.join(_CAPABILITIES)}); run it with sudo")


def has_capability(bit: int, status: Path = _STATUS) -> bool:
    """Whether this process holds a capability (by its number), effectively."""
    line = next(line for line in status.read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> bit & 1)


def missing_tools() -> list[Problem]:
    """Programs that are not on the PATH."""
    programs = [*RESTORE.values(), *SAVE.values()]
    absent = [name for name in programs if not shutil.which(name)]
    return [Problem(f"{', '.join(absent)} not found: install iptables")] if absent else []


def missing_modules(*, loadable_ok: bool = False) -> list[Problem]:
    """Parts of the kernel that are not there; or (loadable_ok) neither there nor to be loaded."""
    absent = []
    if read_sysctl(_CALLS[0]) is None:
        absent.append(("br_netfilter", "BRIDGE_NETFILTER", ", so bridged packets do not meet iptables"))
    if not PROC_STATS.exists():
        absent.append(("nfnetlink_queue", "NETFILTER_NETLINK_QUEUE", ""))
    return [
        Problem(
            f"the kernel has no {module}{effect}: modprobe {module}, or use a kernel with CONFIG_{option}"
        )
        for module, option, effect in absent
        if not (loadable_ok and _modprobe(module, "--dry-run"))
    ]


def missing_sysctls() -> list[Problem]:
    """Settings that this kernel does not have: connections are not counted, or forgotten late."""
    if read_sysctl("net/netfilter/nf_conntrack_max") is None:
        return []  # not loaded yet: the rules load it
    return [
        Problem(f"the kernel has no sysctl {path.replace('/', '.')}: use a newer one, or do without", False)
        for path in SYSCTLS
        if read_sysctl(path) is None
    ]


def unusable_ports(
    found: dict[str, Link], bridge: str, lan: Sequence[str], wan: Sequence[str]
) -> list[Problem]:
    """What keeps the interfaces from being ports of the bridge."""
    if not lan or not wan:
        return [Problem("gateway.lan and gateway.wan must name at least one interface each")]
    try:
        RuleSet(bridge, tuple(lan), tuple(wan), 0, bypass=True)  # the names can be used in rules
        check_ports(found, bridge, (*lan, *wan))
    except KernelError as error:
        return [Problem(str(error))]
    return wireless((*lan, *wan))


def refused_rules(rules: RuleSet) -> list[Problem]:
    """Try the very rules in a network namespace of their own, which ends with the trial."""
    if not shutil.which("unshare") or not has_capability(CAP_SYS_ADMIN):
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
                    "xt_physdev, xt_conntrack, xt_pkttype and xt_hl; to offload, xt_connmark and xt_bpf"
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


def _modprobe(*arguments: str) -> bool:
    try:
        done = subprocess.run(["modprobe", "-q", *arguments], capture_output=True, check=False, timeout=30)
    except FileNotFoundError:
        return False
    return done.returncode == 0
