"""The control protocol, version 1: what goes over the gateway's unix socket. In full: deploy/CONTROL.md.

A request is a line of JSON, and so is each part of the answer. Further requests may go over the same
connection; they are answered in order.

    -> {"version": 1, "command": "flows", "sort": "bytes", "limit": 10}
    <- {"version": 1, "columns": ["id", "src_ip", ...], "rows": [["0-17", "10.0.0.5", ...], ...]}
    <- {"version": 1, "ok": true, "result": {"matched": 2, "looked_at": 40, "silent": []}}

Listings have any number of lines with rows before the last; all other answers are the last line alone. Where
a request fails, that is

    <- {"version": 1, "ok": false, "kind": "usage", "error": "a sentence"}
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

VERSION = 1
MAX_REQUEST = 64 * 1024
"""Bytes of a request line at most."""
MAX_LIMIT = 100_000
MAX_REASON = 200
LONGEST_ORDER = 10 * 366 * 86400.0
"""Seconds."""

Message = dict[str, Any]


class Kind(StrEnum):
    """Why a request failed."""

    USAGE = "usage"
    """The request is wrong: nothing was done."""
    PERMISSION = "permission"
    """This user may not."""
    BUSY = "busy"
    """Too many clients."""
    FAILED = "failed"
    """It was tried, and failed."""


class ControlError(Exception):
    """A request that failed. The message is a sentence, or a line for each problem."""

    def __init__(self, kind: Kind, sentence: str) -> None:
        super().__init__(sentence)
        self.kind = kind


class FlowSort(StrEnum):
    """By what flows are sorted, the highest first."""

    START = "start"
    LAST = "last"
    SCORE = "score"
    BYTES = "bytes"
    PACKETS = "packets"
    DROPPED = "dropped"


class HostSort(StrEnum):
    """By what hosts are sorted, the highest first."""

    SCORE = "score"
    FLOWS = "flows"
    BYTES = "bytes"
    BLOCKED = "blocked"


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


def encode(message: Message) -> bytes:
    """A message as a line. Text that is no Unicode becomes replacement characters."""
    try:
        return orjson.dumps(message, option=orjson.OPT_APPEND_NEWLINE)
    except TypeError:
        cleaned: Message = plain(message)
        return orjson.dumps(cleaned, option=orjson.OPT_APPEND_NEWLINE)


MAX_TEXT = 1000
_MAX_ITEMS, _MAX_DEPTH = 200, 8


def plain(value: Any, depth: int = 0) -> Any:
    """Anything as something that JSON can hold, cut where it is very long or deep."""
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -(1 << 63) <= value < 1 << 63 else str(value)
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        items = list(value.items())[:_MAX_ITEMS]
        return {plain(str(key)): plain(item, depth + 1) for key, item in items}
    if isinstance(value, list | tuple | set | frozenset) and depth < _MAX_DEPTH:
        return [plain(item, depth + 1) for item in list(value)[:_MAX_ITEMS]]
    try:
        text = str(value)
    except Exception as error:
        text = f"({type(value).__name__} that cannot be printed: {type(error).__name__})"
    text = text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
    return text.encode("utf-8", "replace").decode()
