"""The functions of Python that a Lua script's functions go to.

Nothing but numbers, truths, bytes and tables made here goes into Lua: no script ever holds an object of
Python. Errors go back as text, for the Lua side to raise with the script's line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from operator import methodcaller
from typing import TYPE_CHECKING, Any, cast

import structlog

from nedge.core.status import Severity, StatusType
from nedge.scripts.api import Flow
from nedge.scripts.budget import WATCH
from nedge.scripts.fullinfo import basic_info
from nedge.scripts.lua.host import Host
from nedge.scripts.lua.values import MakeTable, plain_info, signed, to_lua
from nedge.scripts.reads import MAY_CHANGE, READS

if TYPE_CHECKING:
    from nedge.core.flow import Flow as CoreFlow

LINES_PER_SECOND = 20
"""What a script says beyond that, in one second of flow time, is left out."""

SEVERITIES: dict[str, Severity] = {
    "notice": "notice",
    "warning": "warning",
    "error": "error",
    "critical": "error",
    "alert": "error",
    "emergency": "error",
}
"""ntopng's, as ours; all others are info."""
_LEVELS = {b"error": 40, b"warning": 30, b"info": 20, b"debug": 10}
_log = structlog.get_logger(__name__)


class NoFlowError(Exception):
    """There is no flow outside of hooks."""


class _NoFlow:
    """The flow outside of hooks: there is none."""

    def __getattr__(self, name: str) -> Any:
        raise NoFlowError(NoFlowError.__doc__)


NO_FLOW = cast("Flow", _NoFlow())


SCALARS = [name for name, kind in READS.items() if kind in ("int", "float", "bool")]
VALUES = [name for name in READS if name not in SCALARS]
_COSTLY = frozenset(("getClientTCPIssues", "getServerTCPIssues", "getTLSVersion", "isTLS"))
AHEAD = frozenset(SCALARS) - MAY_CHANGE - _COSTLY
"""Reads whose values can be sent along with a hook call, to scripts that will ask: cheaper than asking."""
_KEYS_OF_TEXTS = {"getnDPIProtocolName": "protocol_key", "getnDPICategoryName": "getnDPICategoryId"}
"""Texts that the Lua side keeps, by the number that stands for them."""
MAX_AHEAD = 8
_CALL = re.compile(rb"\bflow\s*\.\s*(\w+)")


def protocol_key(flow: Flow) -> int:
    """A number for nDPI's protocol name."""
    return flow.getnDPIMasterProtoId() << 16 | flow.getnDPIAppProtoId()


def asked_for(sources: Iterable[bytes]) -> list[str]:
    """The reads that a script's sources mention, and that can be sent along."""
    mentioned = (name.decode() for source in sources for name in _CALL.findall(source))
    keys = (_KEYS_OF_TEXTS.get(name, name) for name in mentioned)
    return list(dict.fromkeys(key for key in keys if key in AHEAD or key == "protocol_key"))[:MAX_AHEAD]


class Bindings:
    """What one script's functions work on: the flow of the hook under way."""

    __slots__ = ("_host", "_key", "_said", "_second", "_statuses", "flow", "make_table", "memory_used")

    def __init__(self, key: str, host: Host, statuses: dict[int, StatusType]) -> None:
        """`key`: the script's. `statuses`: by number, all that there are."""
        self.flow: Flow = NO_FLOW
        self.make_table: MakeTable = dict
        """The runtime's, as is the next; set before the first call."""
        self.memory_used: Callable[[], int] = int
        """Bytes that the runtime has allocated."""
        self._key = key
        self._host = host
        self._statuses = statuses
        self._second = -1
        self._said = 0

    @property
    def now(self) -> int:
        """The time of the hook under way; 0 outside."""
        return 0 if self.flow is NO_FLOW else self.flow._call.now

    def functions(self) -> dict[str, Callable[..., Any]]:
        """All of them, by the name that the Lua side knows."""
        return {
            **{name: self._scalar(methodcaller(name)) for name in SCALARS},
            **{name: self._value(methodcaller(name)) for name in VALUES},
            "getStatus": self._scalar(lambda flow: signed(flow.getStatus())),
            "getRiskInfo": lambda: self._to_lua({name: n for n, name in self.flow.getRiskInfo().items()}),
            "getFacts": lambda: self._to_lua(asdict(self.flow.getFacts())),
            "protocol_key": self._scalar(protocol_key),
            "basic_info": self._basic_info,
            "hasRisk": self._scalar(lambda flow, *number: flow.hasRisk(*number)),
            "isStatusSet": self._scalar(lambda flow, number: flow.isStatusSet(number)),
            "setStatus": self._set_status,
            "clearStatus": self._clear_status,
            "triggerStatus": self._trigger_status,
            "set_severity": self._set_severity,
            "overdue": WATCH.overdue,
            "memory_used": lambda: self.memory_used(),
            "say": self.say,
            "now": lambda: self.now,
            "get_cache": lambda key: self._host.cache.get(key, self.now),
            "set_cache": self._set_cache,
            "protocol_name": lambda number: self._host.protocol_name(number).encode(),
            "protocol_id": lambda name: self._host.protocol_id(name.decode(errors="replace")),
            "risk_name": lambda number: self._host.risk_name(number).encode(),
        }

    def _scalar(self, method: Callable[..., Any]) -> Callable[..., Any]:
        """A read that gives a number or a truth; None where there is no flow. It must not raise."""

        def read(*arguments: int) -> Any:
            try:
                return method(self.flow, *arguments)
            except NoFlowError:
                return None

        return read

    def _value(self, method: Callable[[Flow], Any]) -> Callable[[], Any]:
        return lambda: self._to_lua(method(self.flow))

    def _to_lua(self, value: Any) -> Any:
        return to_lua(value, self.make_table)

    def _basic_info(self) -> tuple[Any, ...]:
        flow: CoreFlow = self.flow._flow
        return tuple(
            value.encode() if isinstance(value, str) else value
            for value in basic_info(flow, self.flow.getInfo())
        )

    # Statuses. Each gives what is wrong as bytes, or None.

    def _set_status(self, key: int, *scores: Any) -> tuple[bytes | None, bool]:
        try:
            return None, self.flow.setStatus(self._status(key), *scores[:3])
        except (TypeError, ValueError, OverflowError) as error:
            return str(error).encode(), False

    def _clear_status(self, key: int) -> bytes | None:
        try:
            self.flow.clearStatus(self._status(key))
        except (TypeError, ValueError) as error:
            return str(error).encode()
        return None

    def _trigger_status(self, key: int, info: Any = None, *scores: Any) -> bytes | None:
        try:
            self.flow.triggerStatus(self._status(key), plain_info(info), *scores[:3])
        except (TypeError, ValueError, OverflowError) as error:
            return str(error).encode()
        return None

    def _set_severity(self, key: int, severity: bytes) -> None:
        """How bad the script's alerts about a status are, from now on."""
        status, found = self._statuses.get(key), SEVERITIES.get(severity.decode(errors="replace"), "info")
        if status is not None and status.severity != found:
            self._statuses[key] = replace(status, severity=found)

    def _status(self, key: int) -> StatusType:
        status = self._statuses.get(key)
        if status is None:
            raise ValueError(f"there is no status {key}")
        return status

    # The rest

    def _set_cache(self, key: bytes, value: bytes | None = None, seconds: int | None = None) -> None:
        self._host.cache.set(key, value, self.now + seconds if seconds else 0)

    def say(self, level: bytes, text: bytes) -> None:
        """A line of the script's for the log, unless it says too much."""
        now = self.now
        if now != self._second:
            self._second, self._said = now, 0
        self._said += 1
        if self._said > LINES_PER_SECOND:
            if self._said == LINES_PER_SECOND + 1:
                _log.warning("script_says_too_much", script=self._key, left_out="the rest of this second")
            return
        line = text.decode(errors="backslashreplace").rstrip("\n")
        _log.log(_LEVELS[level], "script_says", script=self._key, text=line)
