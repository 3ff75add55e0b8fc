"""What the judging rules (see `rules`) cannot do, as they see IP packets only, and not their tags.

* VLANs that are to be told apart put their number into bits of a packet's mark (ebtables), and get a table of
  connections of their own (a zone; iptables, table raw), as the same addresses may be in several.
* What is no IP is dropped, if it shall be (ebtables).

Nothing is put in unless one of these is asked for.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from nedge.kernel import nft
from nedge.kernel import rules as iptables
from nedge.kernel.errors import KernelError
from nedge.kernel.links import links
from nedge.kernel.rules import FAMILIES, chain_name, jumps, remove_chain, save, table_lines
from nedge.kernel.state import State

SECTION = "frames"
_ZONES = "raw"
"""The table with the zones."""
VLAN_BITS = 12

# Those that IP packets come in, which the judging rules see.
_JUDGED = ("IPv4", "IPv6", "802_1Q", "0x8864")
_TABLES = {"nat": "PREROUTING", "filter": "FORWARD"}


@dataclass(frozen=True)
class Vlans:
    """VLANs that are told apart, and the bits of a packet's mark that carry the number."""

    numbers: tuple[int, ...]
    mask: int

    @property
    def shift(self) -> int:
        return (self.mask & -self.mask).bit_length() - 1

    def of(self, mark: int) -> int:
        """The VLAN in a packet's mark; 0 for none."""
        return (mark & self.mask) >> self.shift

    def zone_rules(self) -> list[str]:
        """iptables rules that give each VLAN a connection table of its own, for chains in table raw."""
        return [
            f"-m mark --mark {number << self.shift:#x}/{self.mask:#x} -j CT --zone {number}"
            for number in self.numbers
        ]


@dataclass(frozen=True)
class FrameRules:
    """The rules for one bridge. All methods but `sweep` may raise KernelError."""

    bridge: str
    vlans: Vlans | None = None
    drop_arp: bool = False
    drop_others: bool = False
    """All that is neither ARP nor IP."""

    @property
    def chain(self) -> str:
        return chain_name(self.bridge)

    def rules(self) -> dict[str, list[str]]:
        """Table -> the rules of our chain there."""
        found = {}
        if self.vlans:
            found["nat"] = [
                f"-p 802_1Q --vlan-id {number} -j mark --mark-or {number << self.vlans.shift:#x} "
                "--mark-target CONTINUE"
                for number in self.vlans.numbers
            ]
        if self.drop_arp or self.drop_others:
            judged = [f"-p {kind} -j RETURN" for kind in _JUDGED]
            arp = f"-p ARP -j {'DROP' if self.drop_arp else 'RETURN'}"
            found["filter"] = [*judged, arp, *(["-j DROP"] if self.drop_others else [])]
        return found

    def install(self, state: State) -> None:
        """Put the rules in, in place of what a crash left."""
        wanted = self.rules()
        left = state.get(SECTION)
        if wanted or left is not None:
            made = [family for family in FAMILIES if f"*{_ZONES}" not in save(family)]
            state.put(SECTION, left or {"tables_made": made})
            sweep(self.bridge)
        if self.vlans:
            self._install_zones(self.vlans)
        for table, rules in wanted.items():
            _ebtables(table, "-N", self.chain, "-P", "RETURN")
            for rule in rules:
                _ebtables(table, "-A", self.chain, *rule.split())
            self._jump(table)
        if not wanted:
            forget_frames(state)

    def installed(self) -> bool:
        """Whether all rules are there."""
        wanted = self.rules()
        if not wanted:
            return True
        if self.vlans:
            numbers = len(self.vlans.numbers)
            for family in FAMILIES:
                lines = table_lines(saved := save(family), _ZONES)
                ours = [line for line in lines if line.startswith(f"-A {self.chain} ")]
                if len(ours) != numbers or len(jumps(saved, self.chain, _ZONES)) != 1:
                    return False
        return all(
            _count(table, self.chain) == len(rules) and _count(table, _TABLES[table]) >= 1
            for table, rules in wanted.items()
        )

    def _install_zones(self, vlans: Vlans) -> None:
        rules = [f"-A {self.chain} {rule}" for rule in vlans.zone_rules()]
        jump = f"-I PREROUTING 1 -m mark ! --mark 0x0/{vlans.mask:#x} -j {self.chain}"
        text = "\n".join([f"*{_ZONES}", f":{self.chain} - [0:0]", *rules, jump, "COMMIT", ""])
        for family in FAMILIES:
            iptables.restore(family, text)

    def _jump(self, table: str) -> None:
        """Traffic of this bridge only, where the kernel can tell; else all, if there is no other bridge."""
        hook = _TABLES[table]
        done = _try(table, "-A", hook, "--logical-in", self.bridge, "-j", self.chain)
        if done.returncode == 0:
            return
        others = [one.name for one in links().values() if one.kind == "bridge" and one.name != self.bridge]
        if others and table == "filter":
            said = " ".join(done.stderr.split())
            raise KernelError(
                f"this kernel's ebtables cannot tell {self.bridge} from {', '.join(others)} ({said}): set "
                "gateway.arp and gateway.other_frames to pass, or remove the other bridges"
            )
        _ebtables(table, "-A", hook, "-j", self.chain)


def sweep(bridge: str) -> None:
    """Remove the rules of a bridge, also those that a crash left."""
    chain = chain_name(bridge)
    for table, hook in _TABLES.items():
        for jump in (["--logical-in", bridge, "-j", chain], ["-j", chain]):
            while _try(table, "-D", hook, *jump).returncode == 0:
                pass
        _try(table, "-F", chain)
        _try(table, "-X", chain)
    for family in FAMILIES:
        remove_chain(family, chain, _ZONES)


def forget_frames(state: State) -> None:
    """Remove the rules of a gateway that ends, or has crashed."""
    left = state.get(SECTION)
    if left is not None:
        sweep(state.bridge)
        for family in left["tables_made"]:
            nft.remove_if_empty(family, _ZONES)
        state.drop(SECTION)


def _count(table: str, chain: str) -> int:
    """Rules in a chain; -1 if there is none."""
    done = _try(table, "-L", chain)
    if done.returncode:
        return -1
    return sum(line.startswith("-") for line in done.stdout.splitlines())


def _ebtables(table: str, *arguments: str) -> None:
    done = _try(table, *arguments)
    if done.returncode:
        said = " ".join(done.stderr.split())
        raise KernelError(f"ebtables refused a rule of table {table} ({' '.join(arguments)}): {said}")


def _try(table: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command: Sequence[str] = ["ebtables", "--concurrent", "-t", table, *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError as error:
        raise KernelError("ebtables was not found: install ebtables") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError("ebtables did not finish in 30 s: does another hold its lock?") from error
