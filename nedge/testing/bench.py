"""Scripts on the bench: the engine that judges live traffic, with nothing but the scripts under test."""

from __future__ import annotations

import inspect
import tomllib
import weakref
from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from nedge.assemble import Assembly, assemble
from nedge.config import SHIPPED_POLICIES
from nedge.config_file import from_mapping
from nedge.core.events import AlertRaised, Event, FlowEnded
from nedge.core.flow import EndReason
from nedge.core.flow import Flow as CoreFlow
from nedge.core.hooks import Hook
from nedge.core.hosts import CountryLookup
from nedge.errors import ConfigError
from nedge.replay import replay
from nedge.scripts.script import Script
from nedge.testing.flows import Alert, MadeFlow, SeenFlow
from nedge.testing.packets import T0, Packet, from_scapy


class ScriptError(AssertionError):
    """A script raised. The gateway would log this, count it, and go on."""


def load_script(
    script: str | Path,
    *others: str | Path,
    settings: Mapping[str, Any] | None = None,
    config: str = "",
    countries: Mapping[str, str] | None = None,
    library: str = "auto",
) -> Bench:
    """Load a script as the gateway does, and no other but `others`.

    `script`: the path of a script, or of a directory with several; or the key of one that comes with nedge.
    `settings`: of the (first) script, over its defaults. Scripts are on here, also those that are off by
    default; but not all in a directory. `config`: the rest of the configuration, in TOML; relative paths in
    it are relative to the current directory. `countries`: which network is in which country, in place of a
    database: {"198.51.100.0/24": "KP"}. `library`: the libndpi to use, as in `dpi.library`.

    Raises ConfigError, with file and line, if the script cannot be loaded or a setting is wrong.
    """
    paths = [_find(each) for each in (script, *others)]
    raw = tomllib.loads(config)
    raw["dpi"] = {"library": library} | raw.get("dpi", {})
    scripts = raw.setdefault("scripts", {})
    scripts["directories"] = [str(path) for path in paths]
    for path in paths:
        if path.is_file():
            scripts[path.stem] = {"enabled": True} | scripts.get(path.stem, {})
    if settings:
        scripts[paths[0].stem] = scripts.get(paths[0].stem, {}) | dict(settings)
    bench = Bench(raw)
    _all_loaded(bench, [path for path in paths if path.is_file()])
    if countries:
        bench.engine.hosts.directory.country_lookup = _country_lookup(countries)
    return bench


class Bench:
    """An engine with scripts, and what it did. `load_script` makes one."""

    def __init__(self, raw: dict[str, Any]) -> None:
        """`raw`: the configuration, as parsed TOML."""
        self.actions: list[str] = []
        """`pass` or `drop`, for every packet that was fed."""
        self._alerts: list[tuple[int, Alert]] = []
        self._seen: dict[int, SeenFlow] = {}
        events: list[Event] = []
        assembly = assemble(from_mapping(raw, "configuration", Path()), lambda _: events.append)
        self._events = events
        self.assembly = assembly
        self.engine = assembly.engine
        self.scripts: list[Script] = assembly.runner.scripts
        """The scripts that were loaded, in the order in which they run."""
        self._failed = 0
        weakref.finalize(self, _close, assembly)

    @property
    def variables(self) -> dict[str, Any]:
        """The first script's own variables: what it remembers, limits to change. Of Python scripts only."""
        hook = next(iter(self.scripts[0].hooks.values()))
        if self.scripts[0].path.suffix == ".lua" or not inspect.isfunction(hook):
            raise TypeError(f"{self.scripts[0].path}: only the variables of Python scripts can be had")
        return hook.__globals__

    # Made flows

    def run(self, flow: MadeFlow, hook: str = Hook.PROTOCOL_DETECTED) -> MadeFlow:
        """Call a hook of the scripts for a made flow, with all that follows; gives the flow.

        Filters hold, statusChanged follows if the statuses change, alerts are raised, the verdict is made
        anew. A flow's first hook is protocolDetected: it is called before another one. Raises ValueError for
        what is no hook, and ScriptError if a script raises.
        """
        if hook not in tuple(Hook):
            raise ValueError(f"hook: found {hook!r}; allowed are {', '.join(Hook)}")
        if flow.ended:
            raise ValueError("the flow has ended")
        if flow._core is None:
            now = self.now
            self.engine.advance(now)
            core = flow._enter(self.assembly, now)
            self._seen[core.id] = flow
            self.engine.inspector.on_news(core, Hook.PROTOCOL_DETECTED)
            if hook == Hook.PROTOCOL_DETECTED:
                self._check()
                return flow
        if hook == Hook.FLOW_END:
            self.engine._end(flow.core, self.now, EndReason.CLOSED)
        else:
            self.engine.run_hook(flow.core, Hook(hook), self.now)
        self._check()
        return flow

    def end(self, flow: MadeFlow) -> MadeFlow:
        """The flow ends: flowEnd."""
        return self.run(flow, Hook.FLOW_END)

    # Traffic

    def feed(self, packets: Iterable[Packet | Any]) -> list[str]:
        """Judge packets: those of `nedge.testing`, or scapy's. Gives what happens to each, `pass` or `drop`.

        Flows stay alive: `advance` or `finish` ends them. Raises ScriptError if a script raises.
        """
        actions = []
        for each in packets:
            packet = each if isinstance(each, Packet) else from_scapy(each)
            action = self.engine.packet(packet.data, packet.time, packet.vlan, packet.mac)
            actions.append(action.label)
            self._check()
        self.actions += actions
        return actions

    def judge(self, packets: Iterable[Packet | Any], *, until: float | None = None) -> list[SeenFlow]:
        """Judge packets, then end all flows; gives all flows, in the order in which they began.

        `until`: let time pass until then (epoch seconds) before they end.
        """
        self.feed(packets)
        if until is not None:
            self.engine.advance(until)
        return self.finish()

    def replay(self, capture: str | Path) -> list[SeenFlow]:
        """Judge a capture file (pcap or pcapng, gzipped or not); gives all flows. Raises CaptureError."""
        try:
            replay(Path(capture), self.engine)
        finally:
            self._check()
        return self.flows

    # Time

    @property
    def now(self) -> float:
        """The engine's time in epoch seconds: that of the latest packet, or as far as `advance` went."""
        return self.engine.now or float(T0)

    def advance(self, seconds: float) -> None:
        """Let time pass: periodicUpdate is called as due, silent flows end. Made flows are never silent."""
        end = self.now + seconds
        while self.now < end:
            made = [
                each.core for each in self._seen.values() if isinstance(each, MadeFlow) and not each.ended
            ]
            stop = min([end, *(core.timer for core in made if core.timer > self.now)])
            for core in made:
                core.last_seen = stop
            self.engine.advance(stop)
            self._check()

    def finish(self) -> list[SeenFlow]:
        """All flows end, as when the gateway stops; gives them."""
        self.engine.finish(self.now)
        self._check()
        return self.flows

    # What came of it

    @property
    def flows(self) -> list[SeenFlow]:
        """All flows so far, in the order in which they began."""
        for core in self.engine.table:
            self._view(core)
        return [self._seen[number] for number in sorted(self._seen)]

    @property
    def flow(self) -> SeenFlow:
        """The one flow there is."""
        flows = self.flows
        assert len(flows) == 1, f"{len(flows)} flows: {flows}"
        return flows[0]

    @property
    def alerts(self) -> list[Alert]:
        """All alerts, in order."""
        return [alert for _, alert in self._alerts]

    def host_score(self, ip: str, vlan: int = 0) -> int:
        """A host's live score: what its live flows added for it."""
        return next((host.score for host in self.engine.hosts if (host.ip, host.vlan) == (ip, vlan)), 0)

    def _check(self) -> None:
        """Take in what happened; raise if a script did."""
        for event in self._events:
            if isinstance(event, AlertRaised):
                candidate = event.alert
                alert = Alert(
                    status=candidate.status.name,
                    info=candidate.info,
                    score=candidate.score,
                    script=candidate.script,
                    time=event.time,
                    blocked=bool(event.action),
                )
                self._alerts.append((event.flow.id, alert))
                self._view(event.flow).alerts.append(alert)
            elif isinstance(event, FlowEnded):
                flow = self._view(event.flow)
                flow.ended, flow.end_time = event.reason.label, event.time
        self._events.clear()
        failed = sum(script.errors + script.timeouts for script in self.scripts)
        if failed > self._failed:
            self._failed = failed
            said = [
                f"{each.last_error_at or each.path}: {each.last_error}"
                for each in self.scripts
                if each.last_error
            ]
            raise ScriptError("; ".join(said))

    def _view(self, core: CoreFlow) -> SeenFlow:
        flow = self._seen.get(core.id)
        if flow is None:
            flow = self._seen[core.id] = SeenFlow(core, [], self.assembly.classifier)
        return flow


def _all_loaded(bench: Bench, paths: Iterable[Path]) -> None:
    """A script that is not there cannot be tested: say why."""
    runner = bench.assembly.runner
    for path in paths:
        if path.stem in runner.off:
            raise ConfigError(f"{path}: is off: {runner.off[path.stem]}")
        for problem in runner.skipped:
            if problem.path == path:
                raise ConfigError(str(problem))


def _close(assembly: Assembly) -> None:
    for flow in assembly.engine.table:
        assembly.engine.inspector.abandon(flow)
    assembly.close()


def _find(script: str | Path) -> Path:
    """The script's path: as given, or that of the one that comes with nedge and has this key."""
    path = Path(script)
    if path.exists():
        return path.absolute()
    if path.suffix or len(path.parts) > 1:
        raise ConfigError(f"{path}: no such script")
    found = [each for each in SHIPPED_POLICIES.glob(f"{path}.*") if each.suffix in (".py", ".lua")]
    if not found:
        keys = sorted(each.stem for each in SHIPPED_POLICIES.glob("*.py"))
        raise ConfigError(f"{path}: no such file, nor a script that comes with nedge: {', '.join(keys)}")
    return found[0]


def _country_lookup(countries: Mapping[str, str]) -> CountryLookup:
    networks = {ip_network(network): code for network, code in countries.items()}

    def lookup(ip: str) -> str | None:
        address = ip_address(ip)
        return next((code for network, code in networks.items() if address in network), None)

    return lookup
