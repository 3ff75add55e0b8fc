"""Putting an engine together from a configuration: the one place where all parts meet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import maxminddb
import structlog

from nedge.config import Config, Lists
from nedge.core.engine import Engine
from nedge.core.events import Sink, ignore
from nedge.core.facts import Classifier
from nedge.core.hosts import AsnLookup, CountryLookup, Directory
from nedge.core.inspection import Inspector, NameLists
from nedge.core.limits import Limits
from nedge.core.lists import NetworkSet, Range
from nedge.core.status import STATUS_TYPES
from nedge.core.verdict import Action, Failure, Policy
from nedge.dpi import NdpiClassifier, load_library
from nedge.errors import ConfigError
from nedge.lists.loading import ListSets, Loader, read_lists
from nedge.scripts.api import Context
from nedge.scripts.loader import load_scripts
from nedge.scripts.lua.host import Host
from nedge.scripts.runner import Runner, ScriptLimits
from nedge.scripts.script import Script

_ACTIONS = {action.label: action for action in Action}
_PLACES_KEPT = 1 << 16
"""Addresses whose country and autonomous system are kept: asking a database takes microseconds."""
_log = structlog.get_logger(__name__)


class Databases(NamedTuple):
    """What databases say of addresses."""

    country: CountryLookup | None = None
    asn: AsnLookup | None = None


@dataclass(slots=True)
class Assembly:
    """An engine and what was made for it. `close()` when done."""

    engine: Engine
    runner: Runner
    classifier: NdpiClassifier
    config: Config
    load: Loader
    databases: Databases

    @property
    def scripts(self) -> list[Script]:
        """The scripts that run now."""
        return self.runner.scripts

    def renew(self, config: Config | None) -> None:
        """Judge by another configuration from now on; None: by the lists as they are now.

        With the same configuration scripts stay, with all they know. Raises ConfigError, and then nothing
        has changed.
        """
        runner, databases = self.runner, self.databases
        if config:
            databases = open_databases(config)
            runner = make_runner(config, self.classifier)
        config = config or self.config
        lists = self.load(config.lists)
        directory = make_directory(config, lists, databases)
        runner.context = self.runner.context
        self.engine.renew(
            scripts=runner,
            policy=make_policy(config),
            directory=directory,
            limits=make_limits(config),
            names=make_name_lists(lists),
        )
        if runner.context is not None:
            runner.context.fingerprints = lists.malware_fingerprints
        inspector = self.engine.inspector
        inspector.keep_match_payload = runner.wants_match_packet
        inspector.detection_packets = config.limits.detection_packets
        inspector.watch_http = config.dpi.watch_http
        inspector.http_answers = config.dpi.http_answers or runner.wants_http_answers
        if runner is not self.runner:
            self.runner.close()
            self.runner = runner
        self.config, self.databases = config, databases

    def close(self) -> None:
        self.runner.close()
        self.classifier.close()


def assemble(
    config: Config,
    sink_for: Callable[[Classifier], Sink] = lambda _: ignore,
    load: Loader = read_lists,
    first_id: int = 1,
) -> Assembly:
    """Build everything that judges; `sink_for` makes what its events go to, `load` gives the lists.

    `first_id`: the number of the first flow. Raises ConfigError, or DpiError if no usable libndpi is found.
    """
    lists, databases = load(config.lists), open_databases(config)
    directory = make_directory(config, lists, databases)
    classifier = NdpiClassifier(load_library(config.dpi.library))
    runner = make_runner(config, classifier)
    inspector = Inspector(
        classifier,
        names=make_name_lists(lists),
        detection_packets=config.limits.detection_packets,
        watch_http=config.dpi.watch_http,
        http_answers=config.dpi.http_answers or runner.wants_http_answers,
        keep_match_payload=runner.wants_match_packet,
    )
    engine = Engine(
        inspector,
        scripts=runner,
        policy=make_policy(config),
        directory=directory,
        limits=make_limits(config),
        sink=sink_for(classifier),
        first_id=first_id,
    )
    runner.context = Context(
        facts=inspector.facts,
        directory=lambda: engine.hosts.directory,
        risk_names=classifier.risk_names,
        risks=inspector.risks,
        action=lambda flow: engine.verdicts.action(flow, engine.now),
        fingerprints=lists.malware_fingerprints,
    )
    return Assembly(engine, runner, classifier, config, load, databases)


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


def make_directory(config: Config, lists: ListSets, databases: Databases) -> Directory:
    """What is known of addresses."""
    return Directory(
        local_networks=config.network.local,
        own_addresses=config.network.own_addresses,
        malware=lists.malware_hosts,
        allowed=lists.allow_hosts,
        country=databases.country,
        asn=databases.asn,
    )


def make_name_lists(lists: ListSets) -> NameLists:
    """What is known of names."""
    return NameLists(
        malware=lists.malware_domains,
        mining=lists.mining_domains,
        advertisement=lists.advertisement_domains,
        allowed=lists.allow_domains,
    )


def allowed_networks(config: Config, load: Loader = read_lists) -> list[str | Range]:
    """Networks and addresses whose traffic is never blocked. Raises ConfigError for an unreadable list."""
    lists = config.lists
    allowed = load(Lists(allow_hosts=lists.allow_hosts, cache_directory=lists.cache_directory)).allow_hosts
    return [*config.network.own_addresses, *allowed.ranges()]


def dropped_networks(config: Config, load: Loader = read_lists) -> NetworkSet:
    """Networks that the kernel cuts off by itself. Raises ConfigError for an unreadable list."""
    lists = config.lists
    return load(Lists(drop_hosts=lists.drop_hosts, cache_directory=lists.cache_directory)).drop_hosts


def open_databases(config: Config) -> Databases:
    """The address databases that are configured. Raises ConfigError for one that cannot be used."""
    geoip = config.geoip
    return Databases(_country_lookup(geoip.country_database), _asn_lookup(geoip.asn_database))


def _country_lookup(path: Path | None) -> CountryLookup | None:
    if path is None:
        return None
    get = _database(path, "geoip.country_database")

    @lru_cache(maxsize=_PLACES_KEPT)
    def lookup(ip: str) -> str | None:
        country = get(ip).get("country")
        code = country.get("iso_code") if isinstance(country, dict) else None
        return code if isinstance(code, str) else None

    return lookup


def _asn_lookup(path: Path | None) -> AsnLookup | None:
    if path is None:
        return None
    get = _database(path, "geoip.asn_database")

    @lru_cache(maxsize=_PLACES_KEPT)
    def lookup(ip: str) -> tuple[int, str] | None:
        record = get(ip)
        number, name = (record.get(f"autonomous_system_{key}") for key in ("number", "organization"))
        return (number, name if isinstance(name, str) else "") if isinstance(number, int) else None

    return lookup


def _database(path: Path, key: str) -> Callable[[str], dict[str, Any]]:
    """What gives the record of an address in a database of MaxMind's format."""
    try:
        reader = maxminddb.open_database(str(path))
    except (OSError, maxminddb.InvalidDatabaseError) as error:
        raise ConfigError(f"{key}: {path} cannot be used: {error}") from None

    def get(ip: str) -> dict[str, Any]:
        try:
            record = reader.get(ip)
        except ValueError:  # an IPv6 address in an IPv4 database
            return {}
        return record if isinstance(record, dict) else {}

    return get
