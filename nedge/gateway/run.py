"""`nedge run`: set everything up, forward packets until a signal comes, put everything back.

From the inside out, and back: queues, rules, bridge. So no packet meets a queue that nobody listens to, and
none crosses a bridge of ours without having met the rules.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial

import structlog

from nedge.config import Config
from nedge.core.lists import NetworkSet, Range
from nedge.core.marks import Marks
from nedge.core.orders import Kind, OrderBook
from nedge.core.verdict import Operator
from nedge.errors import ConfigError
from nedge.gateway.control import ControlServer
from nedge.gateway.desk import Desk
from nedge.gateway.exporting import ExporterProcess
from nedge.gateway.keeper import Keeper, forget_listed, forget_quarantine
from nedge.gateway.link import Message
from nedge.gateway.notify import Notifier
from nedge.gateway.orders import OrderFile
from nedge.gateway.reloading import Reloading
from nedge.gateway.signals import HAND_OVER, StopSignals, stop_signals
from nedge.gateway.supervisor import Supervisor, add_figures
from nedge.gateway.trial import rehearse
from nedge.gateway.unjudged import Unjudged
from nedge.gateway.work import Judging, JudgingMaker, work
from nedge.kernel import bridge as bridges
from nedge.kernel import rules as rulesets
from nedge.kernel.bridge import Bridge
from nedge.kernel.conntrack import Conntrack
from nedge.kernel.errors import KernelError
from nedge.kernel.frames import FrameRules, Vlans, forget_frames
from nedge.kernel.probe import load_modules, missing_capabilities, probe, require
from nedge.kernel.rules import RuleSet
from nedge.kernel.state import State, abandoned
from nedge.lists.schedule import STEP, Refresher
from nedge.log import configure as configure_log

LINK_DEADLINE = 5.0
STATUS_SECONDS = 10.0
LOOK_SECONDS = 0.2
"""Between two looks at the exporter, or at the kernel."""
MARKS = "marks"
"""Section of the state: which generation of marks the kernel knows."""

log = structlog.get_logger()


@dataclass(frozen=True)
class Parts:
    """What the gateway is run with, beside its configuration."""

    make_judging: JudgingMaker
    exempt: Callable[[Config], list[str | Range]] = lambda _: []
    """The networks and addresses that are never cut off."""
    listed: Callable[[Config], NetworkSet] = lambda _: NetworkSet()
    """Those that the kernel cuts off by itself."""
    reread: Callable[[], Config] | None = None
    """Reads the configuration again, when SIGHUP comes. None: there is nothing to read."""
    rehearse: Callable[[Config], None] = lambda _: None
    """Packs the lists of a configuration and checks all of it, in a process of its own. This and `reread`
    raise ConfigError or the like if it cannot be used: then the old one stays."""


def run(config: Config, parts: Parts) -> int:
    """Run the gateway until SIGTERM or SIGINT; or SIGUSR2: bridge, rules and marks stay for the next start.

    Gives the exit status: 0 if all went well, or 1.
    """
    try:
        with ExitStack() as undo:
            _run(config, parts, undo)
    except KernelError as error:
        log.error("gateway_failed", reason=str(error))
        return 1
    log.info("gateway_stopped", bridge=config.gateway.bridge)
    return 0


def _run(config: Config, parts: Parts, undo: ExitStack) -> None:
    """Every step leaves in `undo` what takes it back; the last is taken back first."""
    gateway = config.gateway
    fail_open = gateway.fail == "open" or gateway.mode == "monitor"  # who only watches never cuts traffic
    signals = undo.enter_context(stop_signals())
    manager = Notifier()
    undo.callback(manager.close)

    require(filter(None, [missing_capabilities()]))
    state = State(gateway.bridge)
    state.lock()
    undo.callback(state.unlock)
    clear_abandoned(but=gateway.bridge)
    check(config)

    def put_back(step: Callable[[], None]) -> None:
        """A start that fails leaves what a crashed gateway left: open or closed, as it was told to fail.

        So does one that hands over: the kernel goes on by what is decided, until the next start."""

        def leave(kind: object, _error: object, _trace: object) -> None:
            if signals.stop != HAND_OVER and (kind is None or not state.inherited):
                step()

        undo.push(leave)

    count = gateway.workers or os.cpu_count() or 1
    marks = None
    if gateway.offload:
        marks = adopt_marks(gateway.mark_mask, state)
        put_back(partial(forget_marks, marks, state))
    orders = OrderFile(config.control.state, gateway.bridge)
    orders.load()
    exporter = ExporterProcess(config)

    def make(config: Config) -> AbstractContextManager[Judging]:
        return parts.make_judging(config, exporter.writer)

    supervisor = Supervisor(count, partial(work, config, make, marks, fail_open, orders.book), signals)

    def forked() -> None:
        supervisor.forked()
        state.forget_lock()

    exporter.forked = forked
    guarded = supervisor.guarded
    keeper: Keeper | None = None
    unjudged: Unjudged | None = None
    desk: Desk | None = None
    refresher: Refresher | None = None

    def totals() -> Message:
        sums = supervisor.totals()
        add_figures(sums, exporter.totals())
        for part in (keeper, unjudged, desk, refresher, manager):
            add_figures(sums, part.figures() if part else {})
        return sums

    undo.callback(lambda: log.info("gateway_totals", **totals()))  # the last words of all count
    undo.callback(exporter.close)  # when no worker writes any more
    undo.callback(supervisor.stop)
    supervisor.start()
    exporter.start()
    lan, wan = tuple(gateway.lan), tuple(gateway.wan)
    rules = RuleSet(
        gateway.bridge,
        lan,
        wan,
        gateway.queue,
        bypass=fail_open,
        queues=count,
        state=state,
    )
    bridge = Bridge(gateway.bridge, lan, wan, state)
    frames = FrameRules(
        gateway.bridge,
        vlans=Vlans(tuple(dict.fromkeys(gateway.vlans)), gateway.vlan_mask) if gateway.vlans else None,
        drop_arp=gateway.arp == "drop",
        drop_others=gateway.other_frames == "drop",
    )
    keeper = Keeper(rules, frames, bridge, state)
    put_back(keeper.release)
    # In place of what a crash left, without a gap.
    spared = exempt(config, parts, orders.book)
    keeper.enforce(marks, spared, listed(config, parts), rejecting=config.rejects)
    taken = lambda: int(supervisor.totals().get("queue_taken", 0))  # noqa: E731
    unjudged = Unjudged(keeper.sent, taken, range(gateway.queue, gateway.queue + count))
    unjudged.look()
    bridge.open()
    put_back(bridge.close)
    state.inherited = False
    await_link(supervisor, bridge)
    supervisor.on_cut = keeper.cut
    keeper.watch(supervisor.watch)
    supervisor.every(LOOK_SECONDS, "kernel", keeper.tick)
    supervisor.every(LOOK_SECONDS, "unjudged packets", unjudged.tick)
    server = ControlServer(
        config.control.socket or state.socket(shared=config.control.group is not None),
        config.control.group,
        supervisor,
    )
    server.open()
    undo.callback(server.close)
    reloading = Reloading(supervisor, signals)
    desk = Desk(config, marks, supervisor, server, orders, reloading)
    desk.let_go, desk.totals = keeper.let_go, totals
    desk.orders_changed = partial(spare, keeper, desk, parts, orders.book)
    tell_manager(manager, supervisor, gateway.mode, count)

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
    refresher = Refresher(config)
    undo.callback(refresher.close)
    supervisor.every(STEP, "lists", refresher.tick)
    supervisor.every(STATUS_SECONDS, "orders", orders.store_again)
    supervisor.every(LOOK_SECONDS, "event file", partial(reopen, exporter, signals))
    supervisor.every(LOOK_SECONDS, "exporter", partial(exporter.tick, supervisor, totals))
    manager.ready(how_it_is(supervisor, gateway.mode, count))
    started = time.monotonic()
    while True:
        supervisor.serve(until=refresher.changed)
        if signals.stop is not None:
            break
        renewed: Config | None = None
        notes: list[str] = []
        if signals.reload:
            signals.reload = False
            manager.reloading()
            reloading.begins()
            try:
                config, notes = renew(config, parts, supervisor, forked)
            except Exception as error:
                log.error("reload_failed", reason=str(error))
                reloading.failed(str(error))
                manager.ready("The configuration could not be used, the old one stays (the log says why)")
                continue
            renewed = config
            configure_log(config.log.level, config.log.format)
            with guarded("exporter"):
                exporter.renew(config)
        with guarded("lists"):
            refresher.renew(config)
        marks = marks.next() if marks else None
        desk.config, desk.marks = config, marks
        if marks:
            with guarded("marks"):
                state.put(MARKS, {"generation": marks.generation})
        supervisor.renew(partial(work, config, make, marks, fail_open, orders.book), renewed, marks)
        # The kernel knows the old generation's marks no more: every flow comes up, to be judged anew.
        with guarded("kernel"):
            unjudged.look()
            keeper.renew(
                marks,
                partial(exempt, config, parts, orders.book),
                partial(listed, config, parts),
                rejecting=config.rejects,
                # Generations go round: marks of old ones must not come alive again.
                then=partial(clear_marks, marks, but=marks.generation) if marks else lambda: None,
            )
            unjudged.look()
        if renewed:
            reloading.sent(notes)
            manager.ready(how_it_is(supervisor, gateway.mode, count))
        log.info("reloaded" if renewed else "lists_renewed")
    manager.stopping()
    unjudged.stop()
    log.info("gateway_stopping", signal=signals.stop, seconds=round(time.monotonic() - started, 1))


def tell_manager(manager: Notifier, supervisor: Supervisor, mode: str, count: int) -> None:
    """Keep the service manager informed; a sign of life comes only while all workers give one."""

    def sign_of_life() -> None:
        if supervisor.healthy:
            manager.alive()

    if manager.watchdog_seconds:
        supervisor.every(manager.watchdog_seconds / 4, "sign of life", sign_of_life)
    supervisor.every(
        STATUS_SECONDS, "service status", lambda: manager.status(how_it_is(supervisor, mode, count))
    )


def how_it_is(supervisor: Supervisor, mode: str, count: int) -> str:
    """The gateway's state in a line."""
    totals = supervisor.totals()
    well = "" if supervisor.healthy else ", not all well"
    return (
        f"{mode}, {count} worker{'s' if count > 1 else ''}{well}, {totals['worker_restarts']} restarted; "
        f"{totals.get('live_flows', 0)} flows"
    )


def exempt(config: Config, parts: Parts, orders: OrderBook) -> list[str | Range] | None:
    """Who is never cut off; None: nobody is."""
    if config.gateway.mode == "monitor" or not (config.verdict.host_drop_score or config.lists.drop_hosts):
        return None
    kinds = (Kind.HOST, Kind.NETWORK)
    unblocked = [one.target for one in orders if one.word is Operator.UNBLOCK and one.kind in kinds]
    return parts.exempt(config) + unblocked


def spare(keeper: Keeper, desk: Desk, parts: Parts, orders: OrderBook) -> None:
    """Orders have changed: who is unblocked is not cut off."""
    keeper.spare(exempt(desk.config, parts, orders))


def listed(config: Config, parts: Parts) -> NetworkSet | None:
    """Who is cut off by the kernel itself; None: there is no such list."""
    if config.gateway.mode == "monitor" or not config.lists.drop_hosts:
        return None
    return parts.listed(config)


def reopen(exporter: ExporterProcess, signals: StopSignals) -> None:
    """A step of the supervisor's loop: somebody moved the event file."""
    if signals.reopen:
        signals.reopen = False
        exporter.reopen()


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
    if conntrack.failed_dumps:
        log.error("marks_not_cleared", reason="the kernel's connections could not be read to the end")
    if cleared:
        log.info("marks_cleared", connections=cleared, mask=hex(marks.mask))


def renew(
    config: Config, parts: Parts, supervisor: Supervisor, forked: Callable[[], None]
) -> tuple[Config, list[str]]:
    """The configuration as it is now, and what of it has to wait. Raises if it cannot be used."""
    if parts.reread is None:
        raise ConfigError("there is no file to read again: nedge was started without --config")
    renewed, notes = parts.reread(), []
    rehearse(partial(parts.rehearse, renewed), supervisor, forked)
    for section in ("gateway", "control"):
        former = getattr(config, section)
        if getattr(renewed, section) != former:
            notes.append(f"changes in [{section}] take effect when nedge starts again")
            log.warning("reload_in_part", reason=notes[-1])
            renewed = renewed.model_copy(update={section: former})
    if renewed.metrics.listen and not config.metrics.listen:
        notes.append("metrics: nedge_judge_seconds is measured when nedge starts again")
    if renewed.dpi.library != config.dpi.library:
        notes.append("a change of dpi.library takes effect when nedge starts again")
    return renewed, notes


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
    mask = gateway.mark_mask if gateway.offload else 0
    problems = probe(
        gateway.bridge,
        gateway.lan,
        gateway.wan,
        queue=gateway.queue,
        mark_mask=mask,
        max_flows=config.limits.max_flows,
        workers=gateway.workers or os.cpu_count() or 1,
    )
    for problem in problems:
        if not problem.fatal:
            log.warning("gateway_doubt", what=problem.text)
    require(problems)


def clear_abandoned(but: str) -> None:
    """Undo what crashed gateways on other bridges left. (Our own leftovers are replaced without a gap.)"""
    for state in abandoned(but):
        log.warning("leftovers_removed", bridge=state.bridge)
        rulesets.sweep(state.bridge, state)
        forget_quarantine(state)
        forget_listed(state)
        forget_frames(state)
        bridges.undo(state)
        state.drop(MARKS)
