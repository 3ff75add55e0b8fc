"""Calling user scripts: the right ones, in order, each behind its own error wall."""

from __future__ import annotations

from time import perf_counter_ns
from traceback import extract_tb
from typing import Any

import structlog

from nedge.core.flow import Handshake
from nedge.core.hooks import Hook, HookCall
from nedge.core.packet import TCP
from nedge.scripts.api import Context, Flow
from nedge.scripts.loader import HookFunction, Problem, Script

LOG_SECONDS = 60
"""A script's errors are logged at most once in so many seconds of flow time."""

_Step = tuple[Script, HookFunction, dict[str, Any]]

_log = structlog.get_logger(__name__)


class Runner:
    """Runs a fixed set of scripts; implements `nedge.core.hooks.ScriptRunner`."""

    def __init__(self, scripts: list[Script]) -> None:
        """`scripts` in the order in which they run. `context` must be set before the first call."""
        self.scripts = scripts
        self.skipped: list[Problem] = []
        """Why scripts are not among them that should be, where that is no error."""
        self.off: dict[str, str] = {}
        """What switched scripts off, by key."""
        self.context: Context | None = None
        self.wants_match_packet = any(script.wants_match_packet for script in scripts)
        self._by_hook = {hook: [script for script in scripts if hook in script.hooks] for hook in Hook}
        self._wanted = {
            hook: frozenset(proto for proto in range(256) if any(not s.l4 or proto in s.l4 for s in chosen))
            for hook, chosen in self._by_hook.items()
        }
        self._plans: dict[tuple[Hook, int, int, int, bool], tuple[_Step, ...]] = {}
        self._logged: dict[str, int] = {}

    def wants(self, hook: Hook, proto: int) -> bool:
        return proto in self._wanted[hook]

    def run(self, call: HookCall) -> None:
        flow, hook = call.flow, call.hook
        incomplete = flow.proto == TCP and flow.handshake != Handshake.DONE
        classification = flow.classification
        key = (hook, flow.proto, classification.app_id, classification.master_id, incomplete)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = self._plan(*key)
        if not plan:
            return
        assert self.context is not None
        api = Flow(call, self.context)
        now = call.now
        periodic = hook is Hook.PERIODIC_UPDATE
        start = perf_counter_ns()
        for script, function, conf in plan:
            if periodic and flow.tick % script.periodic_ticks:
                continue
            api._script = script.key
            try:
                function(api, now, conf)
            except (Exception, SystemExit) as error:
                call.failed += 1
                self._report(script, call, error)
            script.calls += 1
            end = perf_counter_ns()
            script.time_ns += end - start
            start = end

    def _plan(self, hook: Hook, proto: int, app: int, master: int, incomplete: bool) -> tuple[_Step, ...]:
        """The scripts that the filters let such a flow's hook through to, in order."""
        return tuple(
            (script, script.hooks[hook], script.conf)
            for script in self._by_hook[hook]
            if (not script.l4 or proto in script.l4)
            and not (incomplete and script.three_way_handshake_ok)
            and (script.l7 is None or script.l7 in (app, master))
        )

    def _report(self, script: Script, call: HookCall, error: BaseException) -> None:
        """Count, and say where in the script it happened; not again for a while."""
        script.errors += 1
        frames = [f for f in extract_tb(error.__traceback__) if f.filename == str(script.path)]
        script.last_error = f"{type(error).__name__}: {error}"
        script.last_error_at = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
        last = self._logged.get(script.key)
        if last is not None and 0 <= call.now - last < LOG_SECONDS:
            return
        self._logged[script.key] = call.now
        _log.error(
            "script_error",
            script=script.key,
            hook=str(call.hook),
            error=script.last_error,
            where=[f"{frame.filename}:{frame.lineno} {frame.line}" for frame in frames],
            errors=script.errors,
        )

    def close(self) -> None:
        """Unload: every script's teardown() runs."""
        for script in self.scripts:
            if script.teardown is not None:
                try:
                    script.teardown()
                except (Exception, SystemExit) as error:
                    _log.error("script_error", script=script.key, hook="teardown", error=str(error))
