"""`nedge run`: set everything up, forward packets until a signal comes, put everything back.

The order keeps traffic going: the rules come last (no packet meets a queue without a listener) and go first.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING

import structlog

from nedge.gateway.worker import Engine, Worker, stop_signals
from nedge.kernel import bridge as bridges
from nedge.kernel import rules as rulesets
from nedge.kernel.bridge import Bridge
from nedge.kernel.errors import KernelError
from nedge.kernel.probe import load_modules, probe, require
from nedge.kernel.rules import RuleSet
from nedge.kernel.state import State, abandoned

if TYPE_CHECKING:
    from nedge.config import Config

log = structlog.get_logger()


def run(config: Config, build: Callable[[Config], Engine]) -> int:
    """Run the gateway until SIGTERM, SIGINT or SIGHUP. Gives the exit status: 0 if all went well, or 1.

    build: makes the engine (and with it whatever its events go to).
    """
    try:
        with ExitStack() as undo:
            _run(config, build, undo)
    except KernelError as error:
        log.error("gateway_failed", reason=str(error))
        return 1
    log.info("gateway_stopped", bridge=config.gateway.bridge)
    return 0


def _run(config: Config, build: Callable[[Config], Engine], undo: ExitStack) -> None:
    """Every step leaves in `undo` what takes it back; the last is taken back first."""
    gateway = config.gateway
    fail_open = gateway.fail == "open" or gateway.mode == "monitor"  # who only watches never cuts traffic
    signals = undo.enter_context(stop_signals())

    check(config)
    state = State(gateway.bridge)
    state.lock()
    undo.callback(state.unlock)
    clear_abandoned(but=gateway.bridge)

    def put_back(step: Callable[[], None]) -> None:
        """A start that fails leaves what a crashed gateway left: open or closed, as it was told to fail."""

        def leave(kind: object, _error: object, _trace: object) -> None:
            if kind is None or not state.inherited:
                step()

        undo.push(leave)

    engine = build(config)
    bridge = Bridge(gateway.bridge, gateway.lan, gateway.wan, state)
    bridge.open()
    put_back(bridge.close)
    worker = Worker(
        engine,
        number=gateway.queue,
        length=gateway.queue_length,
        mode=gateway.mode,
        fail_open=fail_open,
    )
    undo.callback(worker.close)
    rules = RuleSet(
        gateway.bridge, tuple(gateway.lan), tuple(gateway.wan), gateway.queue, bypass=fail_open, state=state
    )
    rules.install()  # in place of what a crash left, without a gap
    state.inherited = False
    undo.callback(rules.remove)

    log.info(
        "gateway_ready",
        bridge=gateway.bridge,
        lan=list(gateway.lan),
        wan=list(gateway.wan),
        mode=gateway.mode,
        fail=gateway.fail,
        queue=gateway.queue,
    )
    worker.watch(signals, worker.stop)
    started = time.monotonic()
    worker.run()
    log.info("gateway_stopping", signal=signals.received, seconds=round(time.monotonic() - started, 1))


def check(config: Config) -> None:
    """Probe the machine: warn of what is doubtful, raise KernelError for what makes it impossible."""
    gateway = config.gateway
    load_modules()
    problems = probe(gateway.bridge, gateway.lan, gateway.wan, queue=gateway.queue)
    for problem in problems:
        if not problem.fatal:
            log.warning("gateway_doubt", what=problem.text)
    require(problems)


def clear_abandoned(but: str) -> None:
    """Undo what crashed gateways on other bridges left. (Our own leftovers are replaced without a gap.)"""
    for state in abandoned(but):
        log.warning("leftovers_removed", bridge=state.bridge)
        rulesets.sweep(state.bridge, state)
        bridges.undo(state)
