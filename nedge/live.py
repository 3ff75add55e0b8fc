"""What judges live traffic in one worker: an engine, and where its events go."""

from __future__ import annotations

import gc
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import structlog

from nedge import log
from nedge.assemble import Assembly, assemble
from nedge.config import Config
from nedge.core.engine import Engine
from nedge.core.events import Sink
from nedge.core.facts import Classifier
from nedge.core.flow import FLOWS_PER_WORKER
from nedge.errors import ConfigError
from nedge.export.outlet import Outlet
from nedge.lists import job
from nedge.lists.loading import load_lists
from nedge.lists.refresh import CacheError
from nedge.scripts import budget
from nedge.scripts.script import Script

_WORKERS = 1 << 21
"""Ids of flows have 53 bits, all that JSON readers hold: those of the worker, and then a count."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Live:
    """Implements `nedge.gateway.work.Judging`."""

    engine: Engine
    assembly: Assembly
    outlet: Outlet

    @property
    def scripts(self) -> list[Script]:
        """The scripts that run now."""
        return self.assembly.scripts

    def renew(self, config: Config | None) -> None:
        """Judge by another configuration from now on; None: by the lists as they are now."""
        self.assembly.renew(config)
        if config:
            self.outlet.wanted = wants_events(config)
            log.configure(config.log.level, config.log.format)

    def measures(self) -> dict[str, Any]:
        """For metrics: flows that ended, by `verdict rule`; scripts: their calls, errors and nanoseconds."""
        outlet = self.outlet
        return {
            "ended": {f"{action.label} {rule}": count for (action, rule), count in outlet.ended.items()},
            "offloaded": outlet.offloaded,
            "packets": outlet.packets,
            "scripts": {
                script.key: [script.calls, script.errors, script.time_ns]
                for script in self.assembly.runner.scripts
            },
        }


def wants_events(config: Config) -> bool:
    """Whether anybody reads events."""
    return bool(config.eve.path or config.history.path)


@contextmanager
def live(config: Config, writer: socket.socket) -> Iterator[Live]:
    """What judges live traffic; its events go to the channel. Ends all of it.

    Scripts are held to their time budget: this is for the main thread of a process.
    """
    outlets: list[Outlet] = []

    def sink_for(classifier: Classifier) -> Sink:
        outlets.append(Outlet(writer, classifier, wanted=wants_events(config)))
        return outlets[0]

    first = secrets.randbelow(_WORKERS) * FLOWS_PER_WORKER + 1
    with budget.enforced():
        assembly = assemble(config, sink_for, load_lists, first)
        try:
            yield Live(assembly.engine, assembly, outlets[0])
        finally:
            _log.info("engine_totals", **assembly.engine.figures(), events_lost=outlets[0].lost)
            assembly.close()


def rehearse(config: Config, *, starting: bool = False) -> None:
    """Build all that a live engine needs, once, so that what is wrong with it is found before workers start.

    starting: a disk that is full does not keep the gateway from judging: lists are as they were packed last,
    or read from their sources. Raises ConfigError or DpiError.
    """
    try:
        job.prepare(config)
    except CacheError as error:
        if not starting:
            raise
        _log.error("lists_not_packed", error=str(error))
    try:
        with budget.enforced():
            assemble(config, load=load_lists).close()
    finally:
        gc.collect()  # an engine has cycles, and holds lists open
    for key, path in (("eve.path", config.eve.path), ("history.path", config.history.path)):
        if path is not None:
            try:
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK, 0o640))
            except OSError as error:
                raise ConfigError(f"{key}: {path}: cannot be written: {error.strerror}") from None
