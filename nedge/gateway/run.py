"""`nedge run`: set everything up, forward packets until a signal comes, put everything back.

From the inside out, and back: queues, rules, bridge. So no packet meets a queue that nobody listens to, and
none crosses a bridge of ours without having met the rules.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import partial
from typing import Protocol

import structlog

from nedge.config import Config
from nedge.core.engine import Engine
from nedge.core.marks import Marks
from nedge.gateway.signals import StopSignals, stop_signals
from nedge.gateway.supervisor import Link, Supervisor
from nedge.gateway.worker import Worker
from nedge.kernel import bridge as bridges
from nedge.kernel import rules as rulesets
from nedge.kernel.bridge import Bridge
from nedge.kernel.conntrack import Conntrack
from nedge.kernel.errors import KernelError
from nedge.kernel.probe import load_modules, missing_capabilities, probe, require
from nedge.kernel.rules import RuleSet
from nedge.kernel.state import State, abandoned

LINK_DEADLINE = 5.0
MARKS = "marks"
"""Section of the state: which generation of marks the kernel knows."""

log = structlog.get_logger()


class Judging(Protocol):
    """What judges, in one worker."""

    engine: Engine

    def renew(self, config: Config) -> None:
        """Judge by another configuration. Raises, and then nothing has changed."""


JudgingMaker = Callable[[Config], AbstractContextManager[Judging]]
"""Makes what judges in one worker, in that worker's process, and ends it."""


def run(config: Config, make_judging: JudgingMaker, reread: Callable[[], Config] | None = None) -> int:
    """Run the gateway until SIGTERM or SIGINT. Gives the exit status: 0 if all went well, or 1.

    reread: reads the configuration again, and checks all of it, when SIGHUP comes; raises ValueError or the
    like if it cannot be used: then the old one stays.
    """
    try:
        with ExitStack() as undo:
            _run(config, make_judging, reread, undo)
    except KernelError as error:
        log.error("gateway_failed", reason=str(error))
        return 1
    log.info("gateway_stopped", bridge=config.gateway.bridge)
    return 0


def _run(
    config: Config, make_judging: JudgingMaker, reread: Callable[[], Config] | None, undo: ExitStack
) -> None:
    """Every step leaves in `undo` what takes it back; the last is taken back first."""
    gateway = config.gateway
    fail_open = gateway.fail == "open" or gateway.mode == "monitor"  # who only watches never cuts traffic
    signals = undo.enter_context(stop_signals())

    require(filter(None, [missing_capabilities()]))
    state = State(gateway.bridge)
    state.lock()
    undo.callback(state.unlock)
    clear_abandoned(but=gateway.bridge)
    check(config)

    def put_back(step: Callable[[], None]) -> None:
        """A start that fails leaves what a crashed gateway left: open or closed, as it was told to fail."""

        def leave(kind: object, _error: object, _trace: object) -> None:
            if kind is None or not state.inherited:
                step()

        undo.push(leave)

    count = gateway.workers or os.cpu_count() or 1
    marks = None
    if gateway.offload:
        marks = adopt_marks(gateway.mark_mask, state)
        put_back(partial(forget_marks, marks, state))
    supervisor = Supervisor(count, partial(work, config, make_judging, marks, fail_open), signals)
    undo.callback(supervisor.stop)
    supervisor.start()
    lan, wan = tuple(gateway.lan), tuple(gateway.wan)
    rules = RuleSet(
        gateway.bridge,
        lan,
        wan,
        gateway.queue,
        bypass=fail_open,
        queues=count,
        marks=marks,
        state=state,
    )
    rules.install()  # in place of what a crash left, without a gap
    put_back(rules.remove)
    bridge = Bridge(gateway.bridge, lan, wan, state)
    bridge.open()
    put_back(bridge.close)
    state.inherited = False
    await_link(supervisor, bridge)

    log.info(
        "gateway_ready",
        bridge=gateway.bridge,
        lan=list(gateway.lan),
        wan=list(gateway.wan),
        mode=gateway.mode,
        fail=gateway.fail,
        queue=gateway.queue,
        workers=count,
    )
    started = time.monotonic()
    while True:
        supervisor.serve()
        if signals.stop is not None:
            break
        signals.reload = False
        renewed = renew(config, reread) if reread else None
        if renewed is None:
            continue
        config, marks = renewed, marks.next() if marks else None
        if marks:
            state.put(MARKS, {"generation": marks.generation})
        supervisor.renew(partial(work, config, make_judging, marks, fail_open), config, marks)
        # The kernel knows the old generation's marks no more: every flow comes up, to be judged anew.
        rules = replace(rules, marks=marks)
        rules.install()
        if marks:  # generations go round: marks of old ones must not come alive again
            clear_marks(marks, but=marks.generation)
        log.info("reloaded")
    log.info("gateway_totals", **supervisor.totals())
    log.info("gateway_stopping", signal=signals.stop, seconds=round(time.monotonic() - started, 1))


def adopt_marks(mask: int, state: State) -> Marks:
    """The marks of a crashed gateway, so that what it decided stays decided; else none are left."""
    left = state.get(MARKS) if state.inherited else None
    marks = Marks(mask, left["generation"] if left else 0)
    if left is None:
        forget_marks(marks, state)
    state.put(MARKS, {"generation": marks.generation})
    return marks


def forget_marks(marks: Marks, state: State) -> None:
    """Take our marks off all connections: another start may decide by another policy."""
    clear_marks(marks)
    state.drop(MARKS)


def clear_marks(marks: Marks, *, but: int | None = None) -> None:
    """Take our marks off all connections, except for those of one generation."""
    conntrack = Conntrack()
    try:
        cleared = conntrack.clear_marks(marks, but=but)
    finally:
        conntrack.close()
    if cleared:
        log.info("marks_cleared", connections=cleared)


def renew(config: Config, reread: Callable[[], Config]) -> Config | None:
    """The configuration as it is now; None, and a line in the log, if it cannot be used."""
    try:
        renewed = reread()
    except Exception as error:
        log.error("reload_failed", reason=str(error))
        return None
    if renewed.gateway != config.gateway:
        log.warning("reload_in_part", reason="changes in [gateway] take effect when nedge starts again")
        renewed = renewed.model_copy(update={"gateway": config.gateway})
    return renewed


def work(
    config: Config, make_judging: JudgingMaker, marks: Marks | None, fail_open: bool, number: int, link: Link
) -> int:
    """What a worker process does: judge what its queue brings, until it is told to stop."""
    gateway = config.gateway
    with stop_signals(signal.SIGTERM) as signals, make_judging(config) as judging:
        worker = Worker(
            judging.engine,
            number=gateway.queue + number,
            length=gateway.queue_length,
            mode=gateway.mode,
            fail_open=fail_open,
            marks=marks,
        )
        worker.watch(signals, partial(stop_if_told, worker, signals))
        worker.report_to(link, judging.renew)
        link.send({"ready": True})
        worker.run()
        worker.close()
    return 0


def stop_if_told(worker: Worker, signals: StopSignals) -> None:
    """A signal has come. It need not be one to stop: the scripts' time budget has a timer."""
    signals.consume()
    if signals.stop is not None:
        worker.stop()


def await_link(supervisor: Supervisor, bridge: Bridge) -> None:
    """Work until all ports have a link, and forward; but only so long: one may have no cable."""
    deadline = time.monotonic() + LINK_DEADLINE
    while (missing := bridge.ports_without_link()) and not supervisor.stopping:
        if time.monotonic() > deadline:
            log.warning("port_without_link", ports=missing)
            return
        supervisor.serve(0.05)


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
        state.drop(MARKS)
