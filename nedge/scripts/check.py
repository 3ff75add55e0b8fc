"""From what a script file declares to a checked `Script`, in the same way for all languages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from nedge.core.hooks import Hook
from nedge.core.packet import ICMP, ICMPV6, TCP, UDP
from nedge.core.status import StatusType
from nedge.scripts.reads import CONDITIONS, MAY_CHANGE
from nedge.scripts.script import (
    PERIODIC_DEFAULT,
    PERIODIC_STEP,
    HookFunction,
    Script,
    ScriptError,
    ScriptErrors,
)

CATEGORIES = ("other", "security", "internals", "network", "system")
L4_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "icmp": (ICMP, ICMPV6)}
ALL = "all"
"""A hook of this name stands for ntopng's four and overrides them."""
NTOPNG_HOOKS = (Hook.PROTOCOL_DETECTED, Hook.PERIODIC_UPDATE, Hook.STATUS_CHANGED, Hook.FLOW_END)

ProtocolIds = Callable[[str], int | None]
"""nDPI protocol name -> id, None if there is none."""

_T = TypeVar("_T")


@dataclass(slots=True, kw_only=True)
class Declaration:
    """What a script file says of itself. Functions raise ScriptError for what the script raises."""

    key: str
    path: Path
    values: Mapping[str, Any]
    """The variables with ntopng's names, as Python values."""
    lines: Mapping[str, int] = field(default_factory=dict)
    """Where names get their values, as far as the language can tell."""
    hooks: Callable[[dict[str, Any]], dict[Hook, HookFunction]]
    """Given the settings: its hooks. Asked after `setup`, which may have put them in place."""
    setup: Callable[[dict[str, Any]], Any] | None
    """Given the settings."""
    teardown: Callable[[], Any] | None = None
    release: Callable[[], None] | None = None
    one_number_type: bool = False
    """Integers and other numbers, and lists and tables, are one type to it."""
    statuses: tuple[StatusType, ...] = ()
    wants_match_packet: bool = False
    errors: list[ScriptError] = field(default_factory=list)
    """What is wrong with it, as far as is known."""

    def wrong(self, name: str, message: str, *, fatal: bool = True) -> None:
        """Something is wrong with what has this name; its line is found."""
        self.errors.append(ScriptError(message, self.lines.get(name, 0), fatal=fatal))

    def value(self, name: str, kind: type[_T], default: _T) -> _T:
        """A variable, which must be of this type if it is there."""
        value = self.values.get(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.wrong(name, f"{name}: found {value!r}; allowed is a value of type {kind.__name__}")
            return default
        return value


def check(declared: Declaration, settings: dict[str, Any], protocol_id: ProtocolIds) -> Script:
    """The script with its settings, but for its hooks. Raises ScriptErrors, with all that is wrong."""
    script = Script(
        key=declared.key,
        path=declared.path,
        title=declared.value("title", str, declared.key),
        description=declared.value("description", str, ""),
        l4=_l4(declared),
        l7=_l7(declared, protocol_id),
        three_way_handshake_ok=declared.value("three_way_handshake_ok", bool, False),
        needs=_needs(declared),
        prio=declared.value("prio", int, 0),
        conf=_conf(declared, settings),
        statuses=declared.statuses,
        wants_match_packet=declared.wants_match_packet,
        http_answers=declared.value("http_answers", bool, False),
        default_enabled=declared.value("default_enabled", bool, True),
        excluded=declared.value("nedge_exclude", bool, False),
        teardown=declared.teardown,
        release=declared.release,
    )
    category = declared.value("category", str, "other")
    script.category = category if category in CATEGORIES else "other"
    seconds = declared.value("periodic_update_seconds", int, PERIODIC_DEFAULT)
    if seconds > 0 and seconds % PERIODIC_STEP == 0:
        script.periodic_ticks = seconds // PERIODIC_STEP
    if declared.errors:
        raise ScriptErrors(declared.errors)
    return script


def hook_up(script: Script, declared: Declaration) -> None:
    """Give a script its hooks. Raises ScriptError or ScriptErrors if they are wrong, or there are none."""
    script.hooks = declared.hooks(script.conf)
    if not script.hooks:
        raise ScriptError(f"has no hook (a function named {', '.join(Hook)} or all); skipped", fatal=False)


def _l4(declared: Declaration) -> tuple[int, ...]:
    l4 = declared.value("l4_proto", str, "")
    if l4 and l4 not in L4_PROTOCOLS:
        declared.wrong("l4_proto", f"l4_proto: found {l4!r}; allowed are {', '.join(L4_PROTOCOLS)}")
    return L4_PROTOCOLS.get(l4, ())


def _l7(declared: Declaration, protocol_id: ProtocolIds) -> int | None:
    """The filter by nDPI's name of a protocol, or its number."""
    number = declared.value("l7_proto_id", int, -1)
    if number >= 0:
        return number
    name = declared.value("l7_proto", str, "")
    known = protocol_id(name) if name else None
    if name and known is None:
        declared.wrong("l7_proto", f"l7_proto: this nDPI knows no protocol {name!r}; skipped", fatal=False)
    return known


def _needs(declared: Declaration) -> str:
    """The function of the flow that must give something true."""
    name = declared.value("needs", str, "")
    if name and name not in CONDITIONS:
        near = get_close_matches(name, CONDITIONS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        declared.wrong(
            "needs",
            f"needs: found {name!r}; allowed are functions of the flow that take no arguments, such as isTLS "
            f"or isBlacklisted, but not {', '.join(sorted(MAY_CHANGE))}{hint}",
        )
    return name


def _conf(declared: Declaration, settings: dict[str, Any]) -> dict[str, Any]:
    """default_value, overridden by the configuration; keys and types must be those of default_value."""
    defaults: dict[str, Any] = declared.value("default_value", dict, {})
    conf = dict(defaults)
    for name, value in settings.items():
        where = f"[scripts.{declared.key}] {name}"
        if name == "enabled":
            if not isinstance(value, bool):
                declared.wrong("", f"{where}: found {value!r}; allowed is true or false")
            continue
        if name not in defaults:
            names = [str(known) for known in defaults]
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            declared.wrong(
                "", f"{where}: unknown key; allowed here are {', '.join(['enabled', *names])}{hint}"
            )
            continue
        default = defaults[name]
        if default is not None and not _alike(value, default, loose=declared.one_number_type):
            kind = type(default).__name__
            declared.wrong("", f"{where}: found {value!r}; allowed is a value of type {kind}")
        conf[name] = value
    return conf


def _alike(value: Any, default: Any, *, loose: bool) -> bool:
    """Whether a setting has the type of its default."""
    if isinstance(value, bool) or isinstance(default, bool):
        return isinstance(value, bool) and isinstance(default, bool)
    if isinstance(value, int | float) and isinstance(default, int | float):
        return loose or isinstance(default, float) or isinstance(value, int)
    if loose and isinstance(value, dict | list) and isinstance(default, dict | list):
        return True
    return isinstance(value, type(default))
