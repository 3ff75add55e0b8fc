"""The verdict: a pure function from what is known of a flow and its hosts, and the policy.

Nothing else decides. The rules stand in `decide` in their order of precedence.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum, StrEnum
from typing import Final, NamedTuple

from nedge.core.status import status_names, status_types

DEFAULT_DROP_SCORE = 100


class Action(IntEnum):
    """What happens to a packet. Falsy = it goes on its way."""

    PASS = 0
    DROP = 1
    REJECT = 2

    @property
    def label(self) -> str:
        """`pass`, `drop` or `reject`."""
        return self.name.lower()


class Rule(StrEnum):
    """The rule that decided."""

    UNDETECTED = "undetected"
    """Not classified yet: passes, within the limits."""
    OPERATOR_BLOCK = "operator_block"
    OPERATOR_UNBLOCK = "operator_unblock"
    ALLOW_LIST = "allow_list"
    FAILURE = "failure"
    """A failure (see `Failure`) whose named policy is not to pass."""
    STATUS = "status"
    FLOW_SCORE = "flow_score"
    HOST_SCORE = "host_score"
    CLEAN = "clean"
    """No rule objects."""


class Operator(IntEnum):
    """An operator's explicit word on a flow or host."""

    NONE = 0
    BLOCK = 1
    UNBLOCK = 2


class Failure(StrEnum):
    """Failures that have a named policy and concern one flow."""

    MIDSTREAM = "midstream"
    UNCLASSIFIED = "unclassified"
    SCRIPT_ERROR = "script_error"
    SCRIPT_TIMEOUT = "script_timeout"
    DPI_ERROR = "dpi_error"


class Verdict(NamedTuple):
    """An action and why."""

    action: Action
    rule: Rule
    detail: str = ""
    """What met the rule: an order, names of statuses, a score against its limit, a failure."""

    @property
    def reason(self) -> str:
        return f"{self.rule}: {self.detail}" if self.detail else str(self.rule)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the operator configured. Scores of 0 switch their rule off."""

    block_action: Action = Action.DROP
    """What "blocked" means: drop or reject."""
    drop_score: int = DEFAULT_DROP_SCORE
    host_drop_score: int = 0
    block_statuses: int = status_types.status_blacklisted.bit
    """Bitmap of the statuses that block by themselves."""
    failures: Mapping[Failure, Action] = field(default_factory=dict)
    """What happens to flows with these failures; all others let the flow go on."""


class Evidence:
    """What is known of a flow and its two hosts when it is judged."""

    __slots__ = (
        "allowed",
        "client_score",
        "detected",
        "failures",
        "operator",
        "order",
        "score",
        "server_score",
        "status_map",
    )

    def __init__(
        self,
        detected: bool = True,
        operator: Operator = Operator.NONE,
        allowed: bool = False,
        status_map: int = 0,
        score: int = 0,
        client_score: int = 0,
        server_score: int = 0,
        failures: tuple[Failure, ...] = (),
        order: str = "",
    ) -> None:
        self.detected = detected
        self.operator = operator
        """The strongest word there is: on the flow, else on one of its hosts or on the name asked for."""
        self.allowed = allowed
        """One end is allow-listed or under the management exemption."""
        self.status_map = status_map
        self.score = score
        self.client_score = client_score
        """Host score (live gauge) of the client; a quarantined host keeps the score that cut it."""
        self.server_score = server_score
        self.failures = failures
        self.order = order
        """The order that the operator's word is from."""


UNDETECTED: Final = Verdict(Action.PASS, Rule.UNDETECTED)
CLEAN: Final = Verdict(Action.PASS, Rule.CLEAN)


def decide(evidence: Evidence, policy: Policy) -> Verdict:
    """Judge a flow. The first rule that speaks wins."""
    if evidence.operator:
        if evidence.operator is Operator.UNBLOCK:
            return Verdict(Action.PASS, Rule.OPERATOR_UNBLOCK, evidence.order)
        return Verdict(policy.block_action, Rule.OPERATOR_BLOCK, evidence.order)
    if evidence.allowed:
        return Verdict(Action.PASS, Rule.ALLOW_LIST)
    blocking = evidence.status_map & policy.block_statuses
    if blocking:
        return Verdict(policy.block_action, Rule.STATUS, ", ".join(status_names(blocking)))
    if policy.drop_score and evidence.score >= policy.drop_score:
        return Verdict(policy.block_action, Rule.FLOW_SCORE, f"{evidence.score} >= {policy.drop_score}")
    if policy.host_drop_score:
        for end, score in (("client", evidence.client_score), ("server", evidence.server_score)):
            if score >= policy.host_drop_score:
                return Verdict(
                    policy.block_action, Rule.HOST_SCORE, f"{end} {score} >= {policy.host_drop_score}"
                )
    for failure in evidence.failures:
        # With a default: compiled, an optional action is true even if it is PASS.
        action = policy.failures.get(failure, Action.PASS)
        if action:
            return Verdict(action, Rule.FAILURE, failure)
    return CLEAN if evidence.detected else UNDETECTED
