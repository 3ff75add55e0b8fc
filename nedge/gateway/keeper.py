"""Keeps in the kernel what belongs there while the gateway runs: rules, bridge, hosts that are cut off.

Others flush rules, reset sysctls and take ports away: firewall scripts, container engines, a cable pulled.
What they changed is put back: rules at once where the kernel tells of changes (nf_tables), all else within
seconds. Once the gateway runs nothing here raises: what cannot be done is counted and tried again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address, ip_network

import structlog

from nedge.core.lists import NetworkSet, Range
from nedge.core.marks import Marks
from nedge.errors import ConfigError
from nedge.kernel.bridge import Bridge
from nedge.kernel.errors import KernelError
from nedge.kernel.frames import SECTION as FRAMES
from nedge.kernel.frames import FrameRules, forget_frames
from nedge.kernel.listed import Listed, cut_rules, sweep_listed
from nedge.kernel.nft import RuleNews
from nedge.kernel.quarantine import Quarantine, sweep
from nedge.kernel.rules import RuleSet
from nedge.kernel.state import State

CHECK_SECONDS = 5.0
SECTION = "quarantine"
LISTED = "listed"
"""Of the state: there are sets of either."""
_LONGER = 2.0
"""Seconds that the kernel holds a host in quarantine longer than workers, who have to pardon it first."""
_FILLING = 0.02
"""Seconds of work on listed networks at a time."""
_PAUSE = 0.2
"""Seconds between checks, however much others change."""

log = structlog.get_logger()


class Keeper:
    """The gateway's part of the kernel. Open: quarantine, then rules, then bridge; close in reverse."""

    def __init__(self, rules: RuleSet, frames: FrameRules, bridge: Bridge, state: State) -> None:
        self.rules = rules
        self.frames = frames
        self.bridge = bridge
        self.quarantine: Quarantine | None = None
        self.listed: Listed | None = None
        self._state = state
        self._unfinished: Callable[[], None] | None = None
        """What a reload has yet to put in."""
        self._news: RuleNews | None = None
        self._next_check = 0.0
        self._changed = False
        self._watching = False
        self._installs = 0
        self._listed_before = self._listed_now = 0
        self.rules_restored = 0
        self.bridge_restored = 0
        self.failures = 0
        """Things that could not be put back, or a host that could not be cut, when it was tried."""

    # At the start, at a reload, at the end

    def enforce(
        self,
        marks: Marks | None,
        exempt: Sequence[str | Range] | None,
        listed: NetworkSet | None = None,
        *,
        rejecting: bool = False,
    ) -> None:
        """Put the rules in, in place of those there are, without a gap. Raises KernelError.

        exempt: networks that are never cut; None: no host is put in quarantine, or listed.
        rejecting: see `RuleSet`.
        listed: networks that are cut; the first are in force on return, newer ones within seconds.
        """
        if listed is not None:
            self._list(listed)
        unwanted = self.quarantine if exempt is None else None
        if exempt is not None:
            if self.quarantine is None:
                self._state.put(SECTION, {})
                self.quarantine = Quarantine(self.rules.bridge)
                self.quarantine.open()
            self.quarantine.allow(exempt)
        quarantine = None if exempt is None else self.quarantine
        cuts = cut_rules(quarantine, None if listed is None else self.listed)
        self.rules = replace(self.rules, marks=marks, rejecting=rejecting, cuts=cuts)
        if self._state.get(FRAMES) is None or not self.frames.installed():
            self.frames.install(self._state)
        self._install_rules()
        if listed is None:
            self._unlist()
        if unwanted:
            self._end_quarantine()
        elif exempt is None and self._state.get(SECTION) is not None:  # a crash left it
            forget_quarantine(self._state)

    def renew(
        self,
        marks: Marks | None,
        exempt: Callable[[], Sequence[str | Range] | None],
        listed: Callable[[], NetworkSet | None],
        *,
        rejecting: bool = False,
        then: Callable[[], None] = lambda: None,
    ) -> bool:
        """As `enforce`, while the gateway runs, and `then` what comes after it; says if all went well.

        What did not is tried again, all of it.
        """

        def step() -> None:
            self.enforce(marks, exempt(), listed(), rejecting=rejecting)
            then()

        self._unfinished = step
        self._finish()
        return self._unfinished is None

    def _finish(self) -> None:
        if self._unfinished is not None and self._try(self._unfinished):
            self._unfinished = None

    def _list(self, networks: NetworkSet) -> None:
        if self.listed is None:
            self._state.put(LISTED, {})
            self.listed = Listed(self.rules.bridge)
            self.listed.open()
            self.listed.take(networks)
            while self.listed.step():
                pass
        else:
            self.listed.take(networks)

    def spare(self, exempt: Sequence[str | Range] | None) -> None:
        """From now on these are never cut, and no others."""
        if self.quarantine is not None and exempt is not None:
            quarantine = self.quarantine
            self._try(lambda: quarantine.allow(exempt))

    def _install_rules(self) -> None:
        self._installs += 1
        self._listed_before, self._listed_now = self._listed_before + self._listed_now, 0
        self.rules.install()

    def sent(self) -> tuple[int, int]:
        """For `Unjudged`: the packets that the rules sent to the queues, and how often they were put in."""
        queued, self._listed_now = self.rules.counts(
            " -j NFQUEUE ", f"--match-set nedge-{self.rules.bridge}-d"
        )
        return queued, self._installs

    def release(self) -> None:
        """Take out rules and quarantine. Raises KernelError."""
        self._watching = False
        self.rules.remove()
        forget_frames(self._state)
        self._unlist()
        self._end_quarantine()

    def _unlist(self) -> None:
        self.listed = None
        forget_listed(self._state)

    def _end_quarantine(self) -> None:
        if self.quarantine is not None:
            self.quarantine.close()
            self.quarantine = None
            self._state.drop(SECTION)

    # While it runs

    def watch(self, watch: Callable[[RuleNews, Callable[[int], None]], None]) -> None:
        """Begin to look after everything; have `watch(fileobj, ready)` tell of changes to rules."""
        self._watching = True
        try:
            self._news = RuleNews()
        except OSError:  # a kernel without nf_tables
            return
        watch(self._news, self._heard)

    def _heard(self, _events: int) -> None:
        assert self._news is not None
        self._news.consume()
        self._changed = True
        self.tick()

    def tick(self) -> None:
        """To be called a few times a second: looks after what is due."""
        now = time.monotonic()
        if not self._watching:
            return
        if self.listed is not None:
            self._try(partial(self._fill, self.listed, now + _FILLING))
        if now >= self._next_check or (self._changed and now >= self._next_check - CHECK_SECONDS + _PAUSE):
            self._changed = False
            self._next_check = now + CHECK_SECONDS
            self.check()

    def _fill(self, listed: Listed, until: float) -> None:
        while listed.step() and time.monotonic() < until:
            pass

    def check(self) -> None:
        """Put back what others changed."""
        self._try(self._check_rules)
        self._try(self._check_bridge)
        self._finish()  # last, as what is unfinished may be so for a reason that nobody thought of

    def _check_rules(self) -> None:
        if self.quarantine is not None:
            self.quarantine.check()
        if self.listed is not None and not self.listed.check():
            log.warning("listed_networks_restored", why="somebody took them out of the kernel's set")
        rules, frames = self.rules.installed(), self.frames.installed()
        if rules and frames:
            return
        if not frames:
            self.frames.install(self._state)
        if not rules:
            self._install_rules()
        self.rules_restored += 1
        log.warning("rules_restored", why="somebody took them out or changed them", times=self.rules_restored)

    def _check_bridge(self) -> None:
        if restored := self.bridge.check():
            self.bridge_restored += len(restored)
            log.warning("bridge_restored", what=restored)

    def _try(self, step: Callable[[], None]) -> bool:
        try:
            step()
        except (KernelError, OSError, ConfigError) as error:
            self.failures += 1
            if self.failures & (self.failures - 1) == 0:  # 1st, 2nd, 4th, 8th …
                log.error("not_restored", reason=str(error), failures=self.failures)
            return False
        return True

    def cut(self, ip: str, seconds: float) -> None:
        """Cut a host off for so long."""
        if self.quarantine is None:
            return
        if self.quarantine.add(ip, seconds + _LONGER):
            log.warning("host_quarantined", host=ip, seconds=seconds)
        else:
            self.failures += 1
            log.error("host_not_quarantined", host=ip, reason="the kernel refused: is the set full?")

    def let_go(self, target: str) -> bool:
        """Let a host out of quarantine, or all of a network (CIDR). Says whether any was in."""
        if self.quarantine is None:
            return False
        network = ip_network(target)
        hosts = [host for host in self.quarantine.hosts() if ip_address(host) in network]
        return sum(self.quarantine.release(host) for host in hosts) > 0

    def figures(self) -> dict[str, int]:
        """Counters and gauges."""
        quarantine = self.quarantine
        return {
            "rules_restored": self.rules_restored,
            "bridge_restored": self.bridge_restored,
            "restore_failures": self.failures + (quarantine.failures if quarantine else 0),
            "listed_packets": self._listed_before + self._listed_now,
            "quarantined_hosts": len(quarantine.hosts()) if quarantine else 0,
        }


def forget_quarantine(state: State) -> None:
    """Remove the sets that a crashed gateway left; its rules are gone."""
    if state.get(SECTION) is not None:
        sweep(state.bridge)
        state.drop(SECTION)


def forget_listed(state: State) -> None:
    """Remove the sets of listed networks; the rules that refer to them are gone."""
    if state.get(LISTED) is not None:
        sweep_listed(state.bridge)
        state.drop(LISTED)
