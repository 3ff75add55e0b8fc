"""The requests of the control protocol as the gateway reads them: typed, and checked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from nedge.control.protocol import (
    LONGEST_ORDER,
    MAX_LIMIT,
    MAX_REASON,
    VERSION,
    ControlError,
    FlowSort,
    Kind,
)


class Filter(BaseModel):
    """Which flows; for hosts: those that are an end of such a flow. All that is given must hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    host: str | None = None
    """An address or network at either end, or a domain of the name asked for."""
    protocol: str | None = None
    """nDPI's name for the protocol or the application, or tcp, udp, icmp …; in any case."""
    category: str | None = None
    verdict: Literal["pass", "drop", "reject", "blocked"] | None = None
    """blocked: whatever does not pass."""
    status: str | None = None
    """A status that is set: its name, with or without `status_`."""
    min_score: Annotated[int, Field(ge=0)] = 0


Limit = Annotated[int, Field(ge=0, le=MAX_LIMIT)]
"""So many from each worker at most; 0 = all."""


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    version: int = VERSION


class Status(_Request):
    command: Literal["status"]


class Flows(Filter):
    version: int = VERSION
    command: Literal["flows"]
    sort: Annotated[FlowSort, Field(strict=False)] = FlowSort.START
    reverse: bool = False
    limit: Limit = 0


class Hosts(Filter):
    version: int = VERSION
    command: Literal["hosts"]
    quarantined: bool = False


class Explain(_Request):
    command: Literal["explain"]
    flow: str


class Give(_Request):
    """An order: see `nedge.core.orders`."""

    command: Literal["block", "unblock"]
    target: str
    """A flow's id, an address, a network or a domain."""
    seconds: Annotated[float, Field(gt=0, le=LONGEST_ORDER)] | None = None
    """When it ends by itself. None: never; on a flow after a day."""
    reason: Annotated[str, Field(max_length=MAX_REASON)] = ""


class Orders(_Request):
    command: Literal["orders"]


class Forget(_Request):
    command: Literal["forget"]
    order: int | None = None
    """Its number; or else its target."""
    target: str | None = None


class Release(_Request):
    command: Literal["release"]
    host: str


class Reload(_Request):
    command: Literal["reload"]


class Scripts(_Request):
    command: Literal["scripts"]


Request = Status | Flows | Hosts | Explain | Give | Orders | Forget | Release | Reload | Scripts
_request: TypeAdapter[Request] = TypeAdapter(Annotated[Request, Field(discriminator="command")])
COMMANDS = tuple(
    command
    for model in (Status, Flows, Hosts, Explain, Give, Orders, Forget, Release, Reload, Scripts)
    for command in model.model_fields["command"].annotation.__args__  # type: ignore[union-attr]
)


def parse_request(line: bytes) -> Request:
    """A line as a request. Raises ControlError that says what is wrong with it."""
    try:
        raw = orjson.loads(line)
    except orjson.JSONDecodeError as error:
        raise ControlError(Kind.USAGE, f"a request is a line of JSON; this one is not: {error}") from None
    if not isinstance(raw, dict):
        raise ControlError(Kind.USAGE, f"a request is a JSON object; found {_short(raw)}")
    version = raw.get("version", VERSION)
    if version != VERSION:
        raise ControlError(Kind.USAGE, f"version: found {_short(version)}; this gateway speaks {VERSION}")
    command = raw.get("command")
    if command not in COMMANDS:
        raise ControlError(Kind.USAGE, f"command: found {_short(command)}; allowed are {', '.join(COMMANDS)}")
    try:
        return _request.validate_python(raw)
    except ValidationError as error:
        raise ControlError(Kind.USAGE, "\n".join(_sentence(problem) for problem in error.errors())) from None


def _sentence(problem: Any) -> str:
    key = ".".join(str(part) for part in problem["loc"][1:])  # the first is the command
    if problem["type"] == "extra_forbidden":
        return f"{key}: unknown key"
    if problem["type"] == "missing":
        return f"{key}: missing"
    allowed = problem["msg"].removeprefix("Input should be ")
    return f"{key}: found {_short(problem['input'])}; allowed is {allowed}"


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
