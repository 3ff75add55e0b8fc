"""Calling user scripts: the right ones, in order, each behind its own error wall."""

from __future__ import annotations

from time import perf_counter_ns
from traceback import extract_tb

import structlog

from nedge.core.flow import Handshake
from nedge.core.hooks import Hook, HookCall
from nedge.core.packet import TCP
from nedge.scripts.api import Context, Flow
from nedge.scripts.loader import Script

LOG_SECONDS = 60
"""A script's errors are logged at most once in so many seconds of flow time."""

_log = structlog.get_logger(__name__)


class Runner:
    """Runs a fixed set of scripts; implements `nedge.core.hooks.ScriptRunner`."""

    def __init__(self, scripts: list[Script]) -> None:
        """`scripts` in the order in which they run. `context` must be set before the first call."""
        self.scripts = scripts
        self.context: Context | None = None
        self.wants_match_packet = any(script.wants_match_packet for script in scripts)
        self._by_hook = {hook: [script for script in scripts if hook in script.hooks] for hook in Hook}
        self._chosen: dict[tuple[Hook, int], tuple[Script, ...]] = {}
        self._logged: dict[str, int] = {}

    def wants(self, hook: Hook, proto: int) -> bool:
        return bool(self._choose(hook, proto))

    def _choose(self, hook: Hook, proto: int) -> tuple[Script, ...]:
        """Scripts for a hook and an L4 protocol, kept once found."""
        chosen = self._chosen.get((hook, proto))
        if chosen is None:
            chosen = tuple(s for s in self._by_hook[hook] if not s.l4 or proto in s.l4)
            self._chosen[hook, proto] = chosen
        return chosen

    def run(self, call: HookCall) -> None:
        flow, hook = call.flow, call.hook
        assert self.context is not None
        api = Flow(call, self.context)
        periodic = hook is Hook.PERIODIC_UPDATE
        incomplete = flow.proto == TCP and flow.handshake != Handshake.DONE
        protocols = (flow.classification.app_id, flow.classification.master_id)
        for script in self._choose(hook, flow.proto):
            if periodic and flow.tick % script.periodic_ticks:
                continue
            if incomplete and script.three_way_handshake_ok:
                continue
            if script.l7 is not None and script.l7 not in protocols:
                continue
            api._script = script.key
            start = perf_counter_ns()
            try:
                script.hooks[hook](api, call.now, script.conf)
            except (Exception, SystemExit) as error:
                call.failed += 1
                self._report(script, call, error)
            script.calls += 1
            script.time_ns += perf_counter_ns() - start

    def _report(self, script: Script, call: HookCall, error: BaseException) -> None:
        """Count, and say where in the script it happened; not again for a while."""
        script.errors += 1
        frames = [f for f in extract_tb(error.__traceback__) if f.filename == str(script.path)]
        script.last_error = f"{type(error).__name__}: {error}"
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
