"""Listed networks: what the kernel cuts off by itself, however many they are.

Per bridge and family there is one ipset, `nedge-<bridge>-d4` or `-d6`, beside those of the quarantine, whose
allowed networks are spared here, too. A new list is filled in a slice at a time; until all of it is there the
old one is in force.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from pyroute2 import IPSet

from nedge.core.lists import NetworkSet
from nedge.kernel.errors import KernelError
from nedge.kernel.ipsets import (
    VERSIONS,
    errors,
    has_size,
    make_networks,
    remove_sets,
    replace_networks,
    spare_name,
)
from nedge.kernel.quarantine import Quarantine, set_names
from nedge.kernel.rules import FAMILIES, Family

MAX_NETWORKS = 1 << 22


def listed_name(bridge: str, family: Family) -> str:
    """The set in force."""
    return f"nedge-{bridge}-d{VERSIONS[family]}"


class Listed:
    """The sets of one bridge; `sweep_listed` ends them. All methods may raise KernelError."""

    def __init__(self, bridge: str) -> None:
        self._names = {family: listed_name(bridge, family) for family in FAMILIES}
        self._allowed = {family: set_names(bridge, family)[1] for family in FAMILIES}
        self._sizes: dict[Family, int] = {}
        self._networks: NetworkSet | None = None
        """What is in force; None: nobody knows."""
        self._wanted: NetworkSet | None = None
        self._filling: Iterator[None] | None = None

    def open(self) -> None:
        """Make the sets. Those that a crash left stay in force until the first list is there."""
        with errors("set up"), contextlib.closing(IPSet()) as kernel:
            for family, name in self._names.items():
                make_networks(kernel, name, family, MAX_NETWORKS)

    def rules(self) -> dict[Family, list[str]]:
        """Rules for the chain, to stand before those that let packets of decided flows pass."""
        rules = {}
        for family, name in self._names.items():
            spared = " ".join(f"-m set ! --match-set {self._allowed[family]} {end}" for end in ("src", "dst"))
            rules[family] = [f"-m set --match-set {name} {end} {spared} -j DROP" for end in ("src", "dst")]
        return rules

    def take(self, networks: NetworkSet) -> None:
        """Have these in force from now on, and no others; `step` does it."""
        self._wanted = networks
        if self._networks != networks or self._filling is not None:
            self._filling = self._fill(networks)

    def step(self) -> bool:
        """Go on filling for some milliseconds. Says whether there is more to do."""
        if self._filling is None:
            return False
        try:
            next(self._filling)
        except StopIteration:
            self._filling = None
        except KernelError:
            self._filling = None
            raise
        return self._filling is not None

    def check(self) -> bool:
        """Whether the sets have what they should have, going by their size; if not, they are filled anew."""
        if self._wanted is None or self._filling is not None:
            return True
        sound = self._networks == self._wanted  # else it could not be filled
        if sound:
            with errors("read"), contextlib.closing(IPSet()) as kernel:
                sizes = self._sizes.items()
                sound = all(has_size(kernel, self._names[family], size) for family, size in sizes)
        if not sound:
            self._filling = self._fill(self._wanted)
        return sound

    def _fill(self, networks: NetworkSet) -> Iterator[None]:
        self._networks = None
        with errors("filled"), contextlib.closing(IPSet()) as kernel:
            for family, name in self._names.items():
                for count in replace_networks(kernel, name, family, networks, MAX_NETWORKS):
                    self._sizes[family] = count
                    yield
        self._networks = networks


def cut_rules(*parts: Quarantine | Listed | None) -> dict[Family, list[str]]:
    """The rules of all that cuts hosts off, as `RuleSet.cuts`."""
    rules = [part.rules() for part in parts if part is not None]
    return {family: [rule for one in rules for rule in one[family]] for family in FAMILIES}


def sweep_listed(bridge: str) -> bool:
    """Remove the sets of a bridge, whose rules are gone. Says if there was anything."""
    with errors("removed"), contextlib.closing(IPSet()) as kernel:
        names = [listed_name(bridge, family) for family in FAMILIES]
        return remove_sets(kernel, *names, *map(spare_name, names))
