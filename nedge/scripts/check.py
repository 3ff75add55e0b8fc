"""From what a script file declares to a checked `Script`, in the same way for all languages."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nedge.core.hooks import Hook
from nedge.core.packet import ICMP, ICMPV6, TCP, UDP
from nedge.core.status import StatusType
from nedge.scripts.script import PERIODIC_DEFAULT, PERIODIC_STEP, HookFunction, Script, ScriptError

CATEGORIES = ("other", "security", "internals", "network", "system")
L4_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "icmp": (ICMP, ICMPV6)}
ALL = "all"
"""A hook of this name stands for ntopng's four and overrides them."""
NTOPNG_HOOKS = (Hook.PROTOCOL_DETECTED, Hook.PERIODIC_UPDATE, Hook.STATUS_CHANGED, Hook.FLOW_END)

ProtocolIds = Callable[[str], int | None]
"""nDPI protocol name -> id, None if there is none."""


@dataclass(slots=True, kw_only=True)
class Declaration:
    """What a script file says of itself. Functions raise ScriptError for what the script raises."""

    key: str
    path: Path
    values: Mapping[str, Any]
    """The variables with ntopng's names, as Python values."""
    hooks: Callable[[dict[str, Any]], dict[Hook, HookFunction]]
    """Given the settings: its hooks. Asked after `setup`, which may have put them in place."""
    setup: Callable[[], Any] | None
    teardown: Callable[[], Any] | None = None
    release: Callable[[], None] | None = None
    one_number_type: bool = False
    """Integers and other numbers, and lists and tables, are one type to it."""
    statuses: tuple[StatusType, ...] = ()
    wants_match_packet: bool = False
    defaults: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.defaults = self.value("default_value", dict, {})

    def value(self, name: str, kind: type[Any], default: Any) -> Any:
        """A variable, which must be of this type if it is there."""
        value = self.values.get(name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ScriptError(f"{name}: found {value!r}; allowed is a value of type {kind.__name__}")
        return value


def check(declared: Declaration, settings: dict[str, Any], protocol_id: ProtocolIds) -> Script | None:
    """The script, set up; None if it is switched off. Raises ScriptError."""
    enabled = settings.get("enabled", declared.values.get("default_enabled", True))
    if not isinstance(enabled, bool):
        raise ScriptError(f"[scripts.{declared.key}] enabled: found {enabled!r}; allowed is true or false")
    script = Script(
        key=declared.key,
        path=declared.path,
        title=declared.value("title", str, declared.key),
        description=declared.value("description", str, ""),
        three_way_handshake_ok=declared.value("three_way_handshake_ok", bool, False),
        prio=declared.value("prio", int, 0),
        conf=_conf(declared, settings),
        statuses=declared.statuses,
        wants_match_packet=declared.wants_match_packet,
        teardown=declared.teardown,
        release=declared.release,
    )
    category = declared.value("category", str, "other")
    script.category = category if category in CATEGORIES else "other"
    l4 = declared.value("l4_proto", str, "")
    if l4:
        if l4 not in L4_PROTOCOLS:
            raise ScriptError(f"l4_proto: found {l4!r}; allowed are {', '.join(L4_PROTOCOLS)}")
        script.l4 = L4_PROTOCOLS[l4]
    script.l7 = _l7(declared, protocol_id)
    seconds = declared.value("periodic_update_seconds", int, PERIODIC_DEFAULT)
    if seconds > 0 and seconds % PERIODIC_STEP == 0:
        script.periodic_ticks = seconds // PERIODIC_STEP
    if not enabled or declared.value("nedge_exclude", bool, False):
        return None
    if declared.setup is not None and not declared.setup():
        return None
    script.hooks = declared.hooks(script.conf)
    if not script.hooks:
        raise ScriptError(f"has no hook (a function named {', '.join(Hook)} or all); skipped", fatal=False)
    return script


def _l7(declared: Declaration, protocol_id: ProtocolIds) -> int | None:
    """The filter by nDPI's name of a protocol, or its number."""
    number = declared.value("l7_proto_id", int, -1)
    if number >= 0:
        return int(number)
    name = declared.value("l7_proto", str, "")
    if not name:
        return None
    known = protocol_id(name)
    if known is None:
        raise ScriptError(f"l7_proto: this nDPI knows no protocol {name!r}; skipped", fatal=False)
    return known


def _conf(declared: Declaration, settings: dict[str, Any]) -> dict[str, Any]:
    """default_value, overridden by the configuration; keys and types must be those of default_value."""
    defaults = declared.defaults
    conf = dict(defaults)
    for name, value in settings.items():
        if name == "enabled":
            continue
        where = f"[scripts.{declared.key}] {name}"
        if name not in defaults:
            allowed = ", ".join(["enabled", *map(str, defaults)])
            raise ScriptError(f"{where}: unknown key; allowed here are {allowed}")
        default = defaults[name]
        if default is not None and not _alike(value, default, loose=declared.one_number_type):
            kind = type(default).__name__
            raise ScriptError(f"{where}: found {value!r}; allowed is a value of type {kind}")
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
