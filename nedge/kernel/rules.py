"""The netfilter rules that send bridged packets to the queue, for IPv4 and IPv6.

All rules are in one chain, `NEDGE-<bridge>`, which one rule at the top of mangle FORWARD jumps to:

* mangle, because it is out of the way of users' own filter rules and lets marks be set;
* at the top, because a repeated packet (NF_REPEAT) starts over there and should not meet other rules twice.

Each family is one transaction of iptables-restore, which also takes out what a crash left: the new
rules follow the old without a gap.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from nedge.core.flow import Share
from nedge.core.marks import Marks
from nedge.kernel import nft
from nedge.kernel.errors import KernelError
from nedge.kernel.state import State

Family = Literal["ip", "ip6"]
FAMILIES: tuple[Family, ...] = ("ip", "ip6")
RESTORE = {"ip": "iptables-restore", "ip6": "ip6tables-restore"}
SAVE = {"ip": "iptables-save", "ip6": "ip6tables-save"}

TABLE = "mangle"
CHAIN_PREFIX = "NEDGE-"
SECTION = "rules"

# Interface names go into rule text; `+` at the end would match every longer name.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_.@:-]{1,15}")

# Router and neighbour solicitations and advertisements, redirect: no flows, and nothing works without them.
_NEIGHBOUR_DISCOVERY = range(133, 138)


def chain_name(bridge: str) -> str:
    """The chain that holds all rules of the gateway on this bridge."""
    return CHAIN_PREFIX + bridge


@dataclass(frozen=True)
class RuleSet:
    """The rules for one bridge. `state` remembers whether the mangle table was there before."""

    bridge: str
    lan: tuple[str, ...]
    wan: tuple[str, ...]
    queue: int
    bypass: bool
    """Pass packets (in the kernel) while nobody listens to the queue; otherwise they are dropped."""
    queues: int = 1
    """So many queues, from `queue` on; a pair of hosts keeps to one."""
    marks: Marks | None = None
    """The marks by which the kernel knows what was decided; None: every packet goes to the queue."""
    rejecting: bool = False
    """Ends of blocked flows are told, for which their MAC addresses must be known: so the server's first
    packet comes up."""
    cuts: Mapping[Family, Sequence[str]] = field(default_factory=dict)
    """Rules that cut hosts off; they come before all that lets packets pass."""
    state: State | None = None

    def __post_init__(self) -> None:
        for name in (self.bridge, *self.lan, *self.wan):
            check_name(name)

    @property
    def chain(self) -> str:
        """The name of the chain."""
        return chain_name(self.bridge)

    def rules(self, family: Family) -> list[str]:
        """The rules of the chain, in order."""
        rules = [
            # It turns connection tracking on, and so the reassembly of fragments: a fragment without its
            # ports could not be judged. And it marks what belongs to no connection, for the judge to know.
            "-m conntrack --ctstate INVALID" + (_note_untracked(self.marks) if self.marks else ""),
            # A flooded packet is several that share an unconfirmed connection; the queue would lose them.
            "-m pkttype ! --pkt-type unicast -j RETURN",
        ]
        if family == "ip6":
            # Hop limit 255: a neighbour said it. Anything else of these types is no neighbour discovery.
            rules += [
                f"-p ipv6-icmp -m icmp6 --icmpv6-type {kind} -m hl --hl-eq 255 -j RETURN"
                for kind in _NEIGHBOUR_DISCOVERY
            ]
        rules += self.cuts.get(family, ())
        if self.marks:
            rules += _mark_rules(self.marks, family, rejecting=self.rejecting)
        last = self.queue + self.queues - 1
        numbers = f"--queue-balance {self.queue}:{last}" if self.queues > 1 else f"--queue-num {self.queue}"
        target = f"-j NFQUEUE {numbers}{' --queue-bypass' if self.bypass else ''}"
        pairs = [pair for lan in self.lan for wan in self.wan for pair in ((lan, wan), (wan, lan))]
        rules += [
            f"-m physdev --physdev-is-bridged --physdev-in {source} --physdev-out {sink} {target}"
            for source, sink in pairs
        ]
        return rules

    def render(self, family: Family, leftovers: Iterable[str] = ()) -> str:
        """The transaction that puts the rules in. `leftovers`: jump rules (`-A …`) to take out with it."""
        lines = [f"*{TABLE}", *map(_delete, leftovers)]
        lines.append(f":{self.chain} - [0:0]")  # makes the chain, or empties the one there is
        lines += [f"-A {self.chain} {rule}" for rule in self.rules(family)]
        lines.append(f"-I FORWARD 1 -m physdev --physdev-is-bridged -j {self.chain}")
        return "\n".join([*lines, "COMMIT", ""])

    def install(self) -> None:
        """Put the rules in, in place of what a crash left. Both families, or (KernelError) neither."""
        saved = {family: save(family) for family in FAMILIES}
        if self.state and self.state.get(SECTION) is None:
            absent = [family for family in FAMILIES if f"*{TABLE}" not in saved[family]]
            self.state.put(SECTION, {"tables_made": absent})
        done: list[Family] = []
        try:
            for family in FAMILIES:
                restore(family, self.render(family, jumps(saved[family], self.chain)))
                done.append(family)
        except KernelError:
            for family in done:
                self._roll_back(family, saved[family])
            raise

    def remove(self) -> None:
        """Take the rules out; without complaint if they are not there."""
        sweep(self.bridge, self.state)

    def installed(self) -> bool:
        """Whether both families have all rules, once, as `install()` put them (others may flush tables)."""
        for family in FAMILIES:
            lines = save(family)
            expected = len(self.rules(family))
            if len(jumps(lines, self.chain)) != 1:
                return False
            # In this table only: frames have a chain of the same name in another.
            if sum(line.startswith(f"-A {self.chain} ") for line in table_lines(lines)) != expected:
                return False
        return True

    def counts(self, *texts: str) -> list[int]:
        """For each text the packets that met rules which have it in them, since they were put in."""
        lines = [line for family in FAMILIES for line in _run([SAVE[family], "-c"], "").splitlines()]
        # [packets:bytes] -A NEDGE-… -j …
        mine = [line for line in lines if f"] -A {self.chain} " in line]
        return [sum(int(line[1:].partition(":")[0]) for line in mine if text in line) for text in texts]

    def _roll_back(self, family: Family, saved: list[str]) -> None:
        """To what there was before `install()`: nothing, or the rules of a gateway that crashed."""
        before = jumps(saved, self.chain)
        if not before:
            remove_chain(family, self.chain)
            return
        now = jumps(save(family), self.chain)
        rules = [line for line in table_lines(saved) if line.startswith(f"-A {self.chain} ")]
        lines = [f"*{TABLE}", *map(_delete, now), f":{self.chain} - [0:0]", *rules]
        lines += [before[0].replace("-A FORWARD ", "-I FORWARD 1 ", 1), "COMMIT", ""]
        restore(family, "\n".join(lines))


def _note_untracked(marks: Marks) -> str:
    return f" -m mark --mark 0x0/{marks.mask:#x} -j MARK --set-xmark {marks.untracked:#x}/{marks.mask:#x}"


def _mark_rules(marks: Marks, family: Family, *, rejecting: bool) -> list[str]:
    """What the kernel does by itself: keep the mark of a judged packet, obey the marks of connections."""
    ours, share = f"{marks.mask:#x}", f"{marks.share_mask:#x}"
    passed, dropped, watched = (
        f"-m connmark --mark {marks.value(share):#x}/{ours}"
        for share in (Share.PASS, Share.DROP, Share.WATCH)
    )
    no_payload = f'-m bpf --bytecode "{NO_PAYLOAD[family]}"'
    tcp = "-p tcp -m tcp --tcp-flags SYN,FIN,RST,ACK"
    rules = [
        f"-m mark ! --mark 0x0/{share} -j CONNMARK --save-mark --nfmask {ours} --ctmask {ours}",
        # A packet that has been judged never meets the queue again, whether or not its connection could keep
        # the mark (an invalid packet has none).
        f"-m mark --mark {Share.DROP << marks.shift:#x}/{share} -j DROP",
        f"-m mark ! --mark 0x0/{share} -j RETURN",
        f"{passed} -j RETURN",
        f"{dropped} -j DROP",
        f"{watched} -m conntrack --ctdir REPLY -j RETURN",
        f"-p tcp -m tcp ! --syn {watched} {no_payload} -j RETURN",
        # A client's bare ACK tells nothing: that the handshake is done, the first data tells as well. (The
        # server's tell what it has of what the flow was judged by.)
        f"{tcp} ACK -m conntrack --ctdir ORIGINAL {no_payload} -j RETURN",
    ]
    if not rejecting:
        # The same goes for what answers a SYN. (A FIN must not pass: it would overtake the data before it.)
        rules.append(
            f"{tcp} SYN,ACK -m conntrack --ctdir REPLY -m connmark --mark 0x0/{ours} {no_payload} -j RETURN"
        )
    return rules


# Classic BPF that matches a TCP segment without payload; the packet starts at the IP header.
# IPv4: total length == header length (4 * low nibble of byte 0) + data offset (high nibble of TCP byte 12).
# IPv6 (TCP right behind the fixed header, else no match): payload length == data offset.
NO_PAYLOAD: dict[Family, str] = {
    "ip": "11,177 0 0 0,80 0 0 12,84 0 0 240,116 0 0 2,12 0 0 0,2 0 0 0,40 0 0 2,97 0 0 0,29 0 1 0,"
    "6 0 0 65535,6 0 0 0",
    "ip6": "10,48 0 0 6,21 0 7 6,48 0 0 52,84 0 0 240,116 0 0 2,7 0 0 0,40 0 0 4,29 0 1 0,"
    "6 0 0 65535,6 0 0 0",
}


def sweep(bridge: str, state: State | None = None) -> bool:
    """Remove the rules of the gateway on this bridge, also of one that crashed. Says if there were any."""
    found = [remove_chain(family, chain_name(bridge)) for family in FAMILIES]
    if state:
        for family in (state.get(SECTION) or {}).get("tables_made", ()):
            nft.remove_if_empty(family, TABLE)
        state.drop(SECTION)
    return any(found)


def check_name(name: str) -> None:
    """Refuse an interface name that would not be taken literally in a rule."""
    if not _PLAIN_NAME.fullmatch(name):
        raise KernelError(
            f"interface name {name!r} cannot be used in rules: it needs 1 to 15 letters, digits or _ . @ : -"
        )


def jumps(saved: list[str], chain: str, table: str = TABLE) -> list[str]:
    """The rules (`-A …`) of the table that jump to the chain from elsewhere."""
    end = f" -j {chain}"
    return [line for line in table_lines(saved, table) if line.startswith("-A ") and line.endswith(end)]


def save(family: Family) -> list[str]:
    """All tables there are, as lines. Naming a table would make the old iptables create it."""
    return _run([SAVE[family]], "").splitlines()


def restore(family: Family, text: str) -> None:
    """Apply one transaction. Raises KernelError with what iptables said of it."""
    _run([RESTORE[family], "--noflush", "--wait=5"], text)


def remove_chain(family: Family, chain: str, table: str = TABLE) -> bool:
    """Remove a chain and what jumps to it. Says if there was anything."""
    saved = save(family)
    lines = [_delete(jump) for jump in jumps(saved, chain, table)]
    if any(line.startswith(f":{chain} ") for line in table_lines(saved, table)):
        lines += [f"-F {chain}", f"-X {chain}"]
    if lines:
        restore(family, "\n".join([f"*{table}", *lines, "COMMIT", ""]))
    return bool(lines)


def _delete(rule: str) -> str:
    return rule.replace("-A ", "-D ", 1)


def table_lines(saved: list[str], table: str = TABLE) -> list[str]:
    """One table in the output of iptables-save."""
    with contextlib.suppress(ValueError):
        start = saved.index(f"*{table}")
        return saved[start : saved.index("COMMIT", start)]
    return []


def _run(command: list[str], text: str) -> str:
    try:
        done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as error:
        raise KernelError(f"{command[0]} was not found: install iptables") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{command[0]} did not finish in 30 s: does another hold its lock?") from error
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit status {done.returncode}"
        raise KernelError(f"{command[0]} refused the rules: {said}{_named_line(said, text)}")
    return done.stdout


def _named_line(said: str, text: str) -> str:
    """The line of our input that iptables complains of by its number."""
    match = re.search(r"line:? (\d+)", said)
    lines = text.splitlines()
    if match and 0 < int(match[1]) <= len(lines):
        return f" ({lines[int(match[1]) - 1]})"
    return ""
