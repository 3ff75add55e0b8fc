"""Putting an engine together from a configuration: the one place where all parts meet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path

import maxminddb
import structlog

from nedge.config import Config, ConfigError
from nedge.core.engine import Engine
from nedge.core.events import Sink, ignore
from nedge.core.facts import Classifier
from nedge.core.hosts import CountryLookup, Directory
from nedge.core.inspection import Inspector, NameLists
from nedge.core.limits import Limits
from nedge.core.lists import DomainSet, Network, NetworkSet
from nedge.core.status import STATUS_TYPES
from nedge.core.verdict import Action, Failure, Policy
from nedge.dpi import NdpiClassifier, load_library
from nedge.export.eve import EveFile
from nedge.scripts import budget
from nedge.scripts.api import Context
from nedge.scripts.loader import load_scripts
from nedge.scripts.lua.host import Host
from nedge.scripts.runner import Runner, ScriptLimits
from nedge.scripts.script import Script

_ACTIONS = {action.label: action for action in Action}
_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Assembly:
    """An engine and what was made for it. `close()` when done."""

    engine: Engine
    runner: Runner
    classifier: NdpiClassifier

    @property
    def scripts(self) -> list[Script]:
        """The scripts that run now."""
        return self.runner.scripts

    def renew(self, config: Config) -> None:
        """Judge by another configuration from now on. Raises ConfigError, and then nothing has changed."""
        directory, names = make_directory(config), make_name_lists(config)
        runner = make_runner(config, self.classifier)
        runner.context = self.runner.context
        self.engine.renew(
            scripts=runner,
            policy=make_policy(config),
            directory=directory,
            limits=make_limits(config),
            names=names,
        )
        self.engine.inspector.keep_match_payload = runner.wants_match_packet
        self.runner.close()
        self.runner = runner

    def close(self) -> None:
        self.runner.close()
        self.classifier.close()


def assemble(config: Config, sink_for: Callable[[Classifier], Sink] = lambda _: ignore) -> Assembly:
    """Build everything that judges; `sink_for` makes what its events go to.

    Raises ConfigError, or DpiError if no usable libndpi is found.
    """
    directory = make_directory(config)
    names = make_name_lists(config)
    classifier = NdpiClassifier(load_library(config.dpi.library))
    runner = make_runner(config, classifier)
    inspector = Inspector(
        classifier,
        names=names,
        detection_packets=config.limits.detection_packets,
        watch_http=config.dpi.watch_http,
        keep_match_payload=runner.wants_match_packet,
    )
    engine = Engine(
        inspector,
        scripts=runner,
        policy=make_policy(config),
        directory=directory,
        limits=make_limits(config),
        sink=sink_for(classifier),
    )
    runner.context = Context(
        facts=inspector.facts,
        directory=lambda: engine.hosts.directory,
        risk_names=classifier.risk_names,
        risks=lambda flow: flow.dpi.risks() if flow.dpi is not None else flow.risks,
        action=lambda flow: engine.verdicts.action(flow, engine.now),
    )
    return Assembly(engine, runner, classifier)


def make_host(config: Config, classifier: NdpiClassifier) -> Host:
    """What Lua scripts may do."""
    return Host(
        protocol_id=classifier.protocol_id,
        protocol_name=lambda number: classifier.describe((number & 0xFFFF) << 16).app,
        risk_name=lambda number: "".join(classifier.risk_names(1 << number)) if 0 <= number < 64 else "",
        memory_mb=config.scripts.lua_memory_mb,
        allow=frozenset(config.scripts.lua_allow),
    )


def make_runner(config: Config, classifier: NdpiClassifier) -> Runner:
    """All scripts, loaded and set up. Raises ConfigError with every script's problems."""
    off: dict[str, str] = {}
    scripts, problems = load_scripts(
        config.scripts.directories,
        config.scripts.settings,
        classifier.protocol_id,
        off,
        make_host(config, classifier),
    )
    for problem in problems:
        if not problem.fatal:
            _log.warning("script_skipped", problem=str(problem))
    fatal = [str(problem) for problem in problems if problem.fatal]
    if fatal:
        for script in scripts:
            if script.release is not None:
                script.release()
        raise ConfigError("\n".join(fatal))
    limits = ScriptLimits(budget_ms=config.scripts.budget_ms, max_errors=config.scripts.max_errors)
    runner = Runner(scripts, limits)
    runner.skipped, runner.off = problems, off
    return runner


def make_policy(config: Config) -> Policy:
    """The verdict policy that a configuration asks for."""
    bits = 0
    for name in config.verdict.block_statuses:
        bits |= STATUS_TYPES[name].bit
    return Policy(
        block_action=_ACTIONS[config.verdict.action],
        drop_score=config.verdict.drop_score,
        host_drop_score=config.verdict.host_drop_score,
        block_statuses=bits,
        failures={cause: _ACTIONS[getattr(config.failures, cause)] for cause in Failure},
    )


def make_limits(config: Config) -> Limits:
    """The engine's bounds."""
    limits, failures = config.limits, config.failures
    return Limits(
        max_flows=limits.max_flows,
        detection_seconds=limits.detection_seconds,
        closed_seconds=limits.closed_seconds,
        idle_seconds=limits.idle_seconds,
        quarantine_seconds=config.verdict.quarantine_seconds,
        table_full=_ACTIONS[failures.table_full],
        malformed=_ACTIONS[failures.malformed],
        fragment=_ACTIONS[failures.fragment],
    )


def make_directory(config: Config) -> Directory:
    """What is known of addresses. Raises ConfigError for an unreadable list or database."""
    return Directory(
        local_networks=config.network.local,
        own_addresses=config.network.own_addresses,
        malware=NetworkSet(_networks(config.lists.malware_hosts)),
        allowed=NetworkSet(_networks(config.lists.allow_hosts)),
        country=_country_lookup(config.geoip.country_database),
    )


def make_name_lists(config: Config) -> NameLists:
    """The domain lists. Raises ConfigError for an unreadable one."""
    lists = config.lists
    return NameLists(
        malware=_domains(lists.malware_domains),
        mining=_domains(lists.mining_domains),
        advertisement=_domains(lists.advertisement_domains),
    )


def _entries(path: Path) -> list[tuple[int, str]]:
    """Line number and entry, comments and empty lines left out."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(f"list {path}: cannot be read: {error.strerror}") from None
    stripped = ((number, line.partition("#")[0].strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(number, entry) for number, entry in stripped if entry]


def allowed_networks(config: Config) -> list[str]:
    """Networks and addresses whose traffic is never blocked. Raises ConfigError for an unreadable list."""
    return [*config.network.own_addresses, *map(str, _networks(config.lists.allow_hosts))]


def _networks(paths: list[Path]) -> list[Network]:
    entries: list[Network] = []
    for path in paths:
        for number, entry in _entries(path):
            try:
                entries.append(ip_network(entry, strict=False))
            except ValueError:
                raise ConfigError(
                    f"list {path}:{number}: found {entry!r}; allowed is an address or a network"
                ) from None
    return entries


def _domains(paths: list[Path]) -> DomainSet:
    return DomainSet(entry for path in paths for _, entry in _entries(path))


def _country_lookup(path: Path | None) -> CountryLookup | None:
    if path is None:
        return None
    try:
        reader = maxminddb.open_database(str(path))
    except (OSError, maxminddb.InvalidDatabaseError) as error:
        raise ConfigError(f"geoip.country_database: {path} cannot be used: {error}") from None

    def lookup(ip: str) -> str | None:
        try:
            record = reader.get(ip)
        except ValueError:  # an IPv6 address in an IPv4 database
            return None
        country = record.get("country") if isinstance(record, dict) else None
        code = country.get("iso_code") if isinstance(country, dict) else None
        return code if isinstance(code, str) else None

    return lookup


def rehearse(config: Config) -> None:
    """Build all that a live engine needs, once, so that what is wrong with it is found before workers start.

    Raises ConfigError or DpiError.
    """
    with budget.enforced():
        assembly = assemble(config)
        if config.eve.path is not None:
            _event_file(config.eve.path, assembly.classifier).close()
        assembly.close()


def _event_file(path: Path, classifier: Classifier) -> EveFile:
    try:
        return EveFile(path, classifier)
    except OSError as error:
        raise ConfigError(f"eve.path: {path}: cannot be written: {error.strerror}") from None


@contextmanager
def live(config: Config) -> Iterator[Assembly]:
    """What judges live traffic; its events go to the configured EVE file. Ends all of it.

    Scripts are held to their time budget: this is for the main thread of a process.
    """
    files: list[EveFile] = []

    def sink_for(classifier: Classifier) -> Sink:
        if config.eve.path is None:
            return ignore
        files.append(_event_file(config.eve.path, classifier))
        return files[0]

    with budget.enforced():
        assembly = assemble(config, sink_for)
        try:
            yield assembly
        finally:
            _log.info("engine_totals", **assembly.engine.figures(), events_lost=sum(f.lost for f in files))
            assembly.close()
            for file in files:
                file.close()
