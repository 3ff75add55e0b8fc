"""What the engine tells the world, beside its verdicts. Flows in events are live: read, do not keep."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from nedge.core.flow import EndReason, Flow
from nedge.core.hooks import AlertCandidate
from nedge.core.hosts import Host
from nedge.core.verdict import Action, Verdict


class AlertRaised(NamedTuple):
    flow: Flow
    time: float
    alert: AlertCandidate
    action: Action
    """What the flow's verdict is with it."""


class VerdictChanged(NamedTuple):
    """A flow's action changed (from passing, at first)."""

    flow: Flow
    time: float
    previous: Verdict


class HostQuarantined(NamedTuple):
    """A host's live score met the limit: its flows are blocked until `until`."""

    host: Host
    time: float
    until: float


class FlowEnded(NamedTuple):
    """The flow's record is complete."""

    flow: Flow
    time: float
    reason: EndReason


Event = AlertRaised | VerdictChanged | HostQuarantined | FlowEnded
Sink = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The sink of an engine nobody listens to."""
