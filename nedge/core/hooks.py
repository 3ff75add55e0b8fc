"""How the core calls user scripts: the hooks, one call of a hook, and the runner as a protocol."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from nedge.core.flow import Flow, clamp_score
from nedge.core.status import StatusType


class Hook(StrEnum):
    """When scripts are called. Names are ntopng's; protocolUpdated is ours."""

    PROTOCOL_DETECTED = "protocolDetected"
    """Once per flow: first classified, or given up. Before that packet's verdict."""
    PROTOCOL_UPDATED = "protocolUpdated"
    """What is known grew: the application was refined, dissection completed, a new name was asked for."""
    PERIODIC_UPDATE = "periodicUpdate"
    """Every 30 s of a live flow after protocolDetected."""
    STATUS_CHANGED = "statusChanged"
    """After a call that changed the status bitmap. Changes made here do not fire it again."""
    FLOW_END = "flowEnd"


class AlertCandidate(NamedTuple):
    """The status that a hook call would alert about."""

    status: StatusType
    score: int
    script: str
    info: Any


class HookCall:
    """One call of a hook on one flow: passed to every script in turn."""

    __slots__ = ("candidate", "failed", "flow", "hook", "now", "put_aside", "timed_out")

    def __init__(self, flow: Flow, hook: Hook, now: int) -> None:
        self.flow = flow
        self.hook = hook
        self.now = now
        """Epoch seconds."""
        self.candidate: AlertCandidate | None = None
        self.failed = 0
        """Scripts that raised."""
        self.timed_out = 0
        """Scripts that were interrupted, since they took too long."""
        self.put_aside = 0
        """Scripts that will not be called any more, since they keep failing."""

    def trigger(
        self,
        status: StatusType,
        info: Any,
        flow_score: int,
        client_score: int,
        server_score: int,
        script: str,
    ) -> None:
        """Set a status and make it the alert candidate: the highest score wins, then the lowest key."""
        self.flow.set_status(status, flow_score, client_score, server_score, script, info, self.now)
        score = clamp_score(flow_score)
        best = self.candidate
        if (
            best is None
            or score > best.score
            or (score == best.score and status.status_key < best.status.status_key)
        ):
            self.candidate = AlertCandidate(status, score, script, info)


class ScriptRunner(Protocol):
    """Runs user scripts. Exceptions of scripts never come out of it."""

    def run(self, call: HookCall) -> None:
        """Call every script that hooks this and whose filters let the flow through, in order."""

    def wants(self, hook: Hook, proto: int) -> bool:
        """Whether any script hooks this for this L4 protocol."""


class NoScripts:
    """The runner of an engine without scripts."""

    def run(self, call: HookCall) -> None:
        """Nothing to call."""

    def wants(self, hook: Hook, proto: int) -> bool:  # noqa: ARG002
        return False
