"""Calling user scripts: the right ones, in order, each behind its own wall."""

from __future__ import annotations

import linecache
import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter_ns
from typing import Any, Final

import structlog

from nedge.core.flow import Handshake
from nedge.core.hooks import Hook, HookCall
from nedge.core.packet import TCP
from nedge.scripts.api import Context, Flow
from nedge.scripts.budget import WATCH, ScriptTimeoutError
from nedge.scripts.python import script_lines
from nedge.scripts.script import HookFunction, Problem, Script, ScriptError, ScriptFault, Where

LOG_SECONDS = 60
"""A script's errors are logged at most once in so many seconds of flow time."""
TIMEOUT_WEIGHT = 20
"""A call that was interrupted counts as so many errors in a row: all traffic has waited for it."""

_DONE: Final = Handshake.DONE
_PERIODIC: Final = Hook.PERIODIC_UPDATE

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ScriptLimits:
    """What is asked of scripts."""

    budget_ms: int = 100
    """Longest time for one call of a hook."""
    max_errors: int = 100
    """Errors in a row that put a script aside; 0 = never."""


class _Step:
    """One script's turn in a hook: copies of what is asked for with every call."""

    __slots__ = ("bit", "condition", "conf", "function", "key", "periodic_ticks", "script")

    def __init__(self, script: Script, function: HookFunction, bit: int) -> None:
        self.script = script
        self.key = script.key
        self.function = function
        self.conf = script.conf
        self.periodic_ticks = script.periodic_ticks
        self.condition: Callable[[Flow], object] | None = getattr(Flow, script.needs) if bit else None
        self.bit = bit
        """Stands for the condition, which several scripts may share; 0: there is none."""


class Runner:
    """Runs a fixed set of scripts; implements `nedge.core.hooks.ScriptRunner`."""

    def __init__(self, scripts: list[Script], limits: ScriptLimits | None = None) -> None:
        """`scripts` in the order in which they run. `context` must be set before the first call."""
        self.scripts = scripts
        self.limits = limits or ScriptLimits()
        self.skipped: list[Problem] = []
        """Why scripts are not among them that should be, where that is no error."""
        self.off: dict[str, str] = {}
        """What switched scripts off, by key."""
        self.context: Context | None = None
        self.wants_match_packet = any(script.wants_match_packet for script in scripts)
        self.wants_http_answers = any(script.http_answers for script in scripts)
        self._budget_ns = self.limits.budget_ms * 1_000_000
        self._logged: dict[str, int] = {}
        self._arrange()

    def _arrange(self) -> None:
        """Who is called for what: all scripts that are not put aside."""
        active = [script for script in self.scripts if not script.aside]
        self._by_hook = {hook: [script for script in active if hook in script.hooks] for hook in Hook}
        self._wanted = {
            hook: frozenset(proto for proto in range(256) if any(not s.l4 or proto in s.l4 for s in chosen))
            for hook, chosen in self._by_hook.items()
        }
        self._plans: dict[tuple[Hook, int, int, int, bool], tuple[_Step, ...]] = {}

    def wants(self, hook: Hook, proto: int) -> bool:
        return proto in self._wanted[hook]

    def run(self, call: HookCall) -> None:
        flow, hook = call.flow, call.hook
        incomplete = flow.proto == TCP and flow.handshake != _DONE
        classification = flow.classification
        key = (hook, flow.proto, classification.app_id, classification.master_id, incomplete)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(*key)
        if not plan:
            return
        assert self.context is not None
        api = Flow(call, self.context)
        now: Any = call.now  # one object for all of them
        tick = flow.tick if hook is _PERIODIC else 0
        asked = true = 0  # the conditions, a bit each: each is asked for once, when a script needs it first
        budget = self._budget_ns
        under_way = WATCH.call
        if under_way.resting:
            WATCH.wake()
        under_way.base = sys._getframe()  # of what called this, where this is compiled
        start = perf_counter_ns()
        for step in plan:
            if (tick and tick % step.periodic_ticks) or (asked & step.bit and not true & step.bit):
                continue
            script = step.script
            api._script = step.key
            failure: BaseException | None = None
            under_way.deadline = start + budget
            try:
                if step.condition is not None and not asked & step.bit:
                    asked |= step.bit
                    if not step.condition(api):
                        continue  # what it took counts for who comes next: it is little
                    true |= step.bit
                step.function(api, now, step.conf)
            except KeyboardInterrupt:
                under_way.deadline, under_way.base = 0, None
                raise
            except BaseException as error:
                failure = error
            under_way.deadline = 0
            end = perf_counter_ns()
            took = end - start
            script.time_ns += took
            script.time_histogram[took.bit_length()] += 1
            if failure is not None or under_way.fired:
                self._failed(script, call, failure)
                end = perf_counter_ns()
            elif script.failures_in_a_row:
                script.failures_in_a_row = 0
            start = end
        under_way.deadline, under_way.base = 0, None

    def _plan(self, hook: Hook, proto: int, app: int, master: int, incomplete: bool) -> tuple[_Step, ...]:
        """The scripts that the filters let such a flow's hook through to, in order."""
        chosen = [
            script
            for script in self._by_hook[hook]
            if (not script.l4 or proto in script.l4)
            and not (incomplete and script.three_way_handshake_ok)
            and (script.l7 is None or script.l7 in (app, master))
        ]
        needs = sorted({script.needs for script in chosen if script.needs})
        bits = {name: 1 << number for number, name in enumerate(needs)}
        return tuple(_Step(script, script.hooks[hook], bits.get(script.needs, 0)) for script in chosen)

    def _failed(self, script: Script, call: HookCall, error: BaseException | None) -> None:
        """Count, say where in the script it happened, and put it aside if it keeps failing.

        `error`: None if the script was interrupted, and kept that to itself.
        """
        timed_out = WATCH.call.fired or isinstance(error, ScriptTimeoutError)
        WATCH.call.fired = False
        if timed_out:
            call.timed_out += 1
            script.timeouts += 1
            script.last_error = f"took longer than {self.limits.budget_ms} ms in {call.hook}"
        else:
            call.failed += 1
            script.errors += 1
            kind = "" if isinstance(error, ScriptFault) else f"{type(error).__name__}: "
            script.last_error = f"{kind}{error}"
        where = list(error.where) if isinstance(error, ScriptFault | ScriptTimeoutError) else []
        if error is not None and not where:
            where = script_lines(error, script.path)
        script.last_error_at = "{}:{}".format(*where[-1]) if where else ""
        self._report(script, call, where, timed_out)
        script.failures_in_a_row += TIMEOUT_WEIGHT if timed_out else 1
        if self.limits.max_errors and script.failures_in_a_row >= self.limits.max_errors and not script.aside:
            call.put_aside += 1
            self._put_aside(script)

    def _report(self, script: Script, call: HookCall, where: Where, timed_out: bool) -> None:
        """Say what happened; not again for a while."""
        last = self._logged.get(script.key)
        if last is not None and 0 <= call.now - last < LOG_SECONDS:
            return
        self._logged[script.key] = call.now
        linecache.checkcache()
        _log.error(
            "script_timeout" if timed_out else "script_error",
            script=script.key,
            hook=str(call.hook),
            error=script.last_error,
            where=[f"{path}:{line} {linecache.getline(str(path), line).strip()}" for path, line in where],
            errors=script.errors,
            timeouts=script.timeouts,
        )

    def _put_aside(self, script: Script) -> None:
        """Call it no more, until scripts are loaded anew."""
        script.aside = f"failed {self.limits.max_errors} times in a row; at last: {script.last_error}"
        if script.timeouts:
            script.aside = f"keeps failing, or taking too long; at last: {script.last_error}"
        _log.error("script_aside", script=script.key, reason=script.aside)
        self._arrange()
        if script.release is not None:
            script.release()

    def close(self) -> None:
        """Unload: every script's teardown() runs."""
        for script in self.scripts:
            if script.teardown is not None and not script.aside:
                try:
                    script.teardown()
                except ScriptError as error:
                    _log.error("script_error", script=script.key, hook="teardown", error=str(error))
            if script.release is not None:
                script.release()
