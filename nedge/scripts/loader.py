"""Finding, loading and checking user scripts.

A Python script is a file in one of the script directories; its key is the file name without `.py`. It is an
ordinary module: functions named after hooks are its hooks, variables with ntopng's names its filters.
"""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from nedge.core.hooks import Hook
from nedge.core.packet import ICMP, ICMPV6, TCP, UDP
from nedge.core.status import FIRST_USER_KEY, LAST_KEY, STATUS_BY_KEY, StatusType

CATEGORIES = ("other", "security", "internals", "network", "system")
L4_PROTOCOLS = {"tcp": (TCP,), "udp": (UDP,), "icmp": (ICMP, ICMPV6)}
PERIODIC_STEP = 30
PERIODIC_DEFAULT = 120
ALL = "all"
"""A hook function of this name stands for ntopng's four and overrides them."""

HookFunction = Callable[[Any, int, Any], Any]
ProtocolIds = Callable[[str], int | None]
"""nDPI protocol name -> id, None if there is none."""

_NTOPNG_HOOKS = (Hook.PROTOCOL_DETECTED, Hook.PERIODIC_UPDATE, Hook.STATUS_CHANGED, Hook.FLOW_END)
_MATCH_PACKET = "getnDPIMatchPacket"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a script."""

    path: Path
    line: int
    """0 if it concerns no particular line."""
    message: str
    fatal: bool = True
    """A fatal problem is an error; any other skips the script with a warning."""

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}" if self.line else str(self.path)
        return f"{where}: {self.message}"


@dataclass(slots=True, kw_only=True)
class Script:
    """A loaded script, its settings, and what it did so far."""

    key: str
    path: Path
    title: str
    description: str = ""
    category: str = "other"
    hooks: dict[Hook, HookFunction] = field(default_factory=dict)
    l4: tuple[int, ...] = ()
    """L4 protocols it wants; () = all."""
    l7: int | None = None
    """nDPI protocol it wants, as master or application; None = all."""
    three_way_handshake_ok: bool = False
    periodic_ticks: int = PERIODIC_DEFAULT // PERIODIC_STEP
    prio: int = 0
    conf: dict[str, Any] = field(default_factory=dict)
    statuses: tuple[StatusType, ...] = ()
    """User statuses it defines."""
    wants_match_packet: bool = False
    teardown: Callable[[], Any] | None = None
    calls: int = 0
    errors: int = 0
    time_ns: int = 0
    last_error: str = ""
    last_error_at: str = ""
    """`file:line` of the script where that happened; empty if it was in none of its lines."""


def load_scripts(
    directories: Iterable[Path], settings: dict[str, dict[str, Any]], protocol_id: ProtocolIds
) -> tuple[list[Script], list[Problem]]:
    """Load every enabled script, in the order in which they run: higher `prio` first, then by key.

    A "directory" may be a single script, too. Their `setup()` has run. All problems are collected, not only
    the first.
    """
    scripts: list[Script] = []
    problems: list[Problem] = []
    seen: dict[str, Path] = {}
    for directory in directories:
        paths = [directory] if directory.is_file() else _scripts_in(directory)
        if paths is None:
            problems.append(Problem(directory, 0, "no such directory of scripts"))
            continue
        for path in paths:
            key = path.stem
            if key in seen:
                problems.append(Problem(path, 0, f"a script with the key {key!r} exists: {seen[key]}"))
                continue
            seen[key] = path
            try:
                script = _load(path, key, settings.get(key, {}), protocol_id)
            except _ScriptError as error:
                problems.append(Problem(path, error.line, error.message, error.fatal))
            else:
                if script is not None:
                    scripts.append(script)
    for key in settings.keys() - seen.keys():
        known = ", ".join(sorted(seen)) or "none"
        problems.append(
            Problem(Path(f"[scripts.{key}]"), 0, f"settings for a script that does not exist; found: {known}")
        )
    problems += _status_conflicts(scripts)
    scripts.sort(key=lambda script: (-script.prio, script.key))
    return scripts, problems


def _scripts_in(directory: Path) -> list[Path] | None:
    """Paths of a directory's scripts, helpers and tests left out; None if there is no such directory."""
    if not directory.is_dir():
        return None
    return [path for path in sorted(directory.glob("*.py")) if not path.name.startswith(("_", "test_"))]


class _ScriptError(Exception):
    def __init__(self, message: str, line: int = 0, *, fatal: bool = True) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.fatal = fatal


def _load(path: Path, key: str, settings: dict[str, Any], protocol_id: ProtocolIds) -> Script | None:
    """One script; None if it is switched off."""
    code = _compile(path)
    module = ModuleType(f"nedge_script_{key}")
    module.__file__ = str(path)
    _run(path, "while loading", lambda: exec(code, module.__dict__))  # noqa: S102 (running scripts is the point)
    enabled = settings.get("enabled", getattr(module, "default_enabled", True))
    if not isinstance(enabled, bool):
        raise _ScriptError(f"[scripts.{key}] enabled: found {enabled!r}; allowed is true or false")
    script = Script(
        key=key,
        path=path,
        title=_setting(module, "title", str, key),
        description=_setting(module, "description", str, inspect.getdoc(module) or ""),
        hooks=_hooks(module),
        three_way_handshake_ok=_setting(module, "three_way_handshake_ok", bool, False),
        prio=_setting(module, "prio", int, 0),
        conf=_conf(module, key, settings),
        statuses=_user_statuses(module),
        wants_match_packet=_mentions(code, _MATCH_PACKET),
        teardown=getattr(module, "teardown", None),
    )
    category = _setting(module, "category", str, "other")
    script.category = category if category in CATEGORIES else "other"
    l4 = _setting(module, "l4_proto", str, "")
    if l4:
        if l4 not in L4_PROTOCOLS:
            raise _ScriptError(f"l4_proto: found {l4!r}; allowed are {', '.join(L4_PROTOCOLS)}")
        script.l4 = L4_PROTOCOLS[l4]
    l7 = _setting(module, "l7_proto", str, "")
    if l7:
        script.l7 = protocol_id(l7)
        if script.l7 is None:
            raise _ScriptError(f"l7_proto: this nDPI knows no protocol {l7!r}; skipped", fatal=False)
    seconds = _setting(module, "periodic_update_seconds", int, PERIODIC_DEFAULT)
    if seconds > 0 and seconds % PERIODIC_STEP == 0:
        script.periodic_ticks = seconds // PERIODIC_STEP
    if not enabled or _setting(module, "nedge_exclude", bool, False):
        return None
    if not script.hooks:
        raise _ScriptError(f"has no hook (a function named {', '.join(Hook)} or all); skipped", fatal=False)
    setup = getattr(module, "setup", None)
    if setup is not None and not _run(path, "in setup()", setup):
        return None
    return script


def _compile(path: Path) -> CodeType:
    try:
        return compile(path.read_bytes(), str(path), "exec")
    except SyntaxError as error:
        raise _ScriptError(f"syntax error: {error.msg}", error.lineno or 0) from None
    except OSError as error:
        raise _ScriptError(f"cannot be read: {error.strerror}") from None
    except ValueError as error:  # null bytes
        raise _ScriptError(f"not Python source: {error}") from None


def _run(path: Path, when: str, function: Callable[[], Any]) -> Any:
    """Call into the script; what it raises becomes a problem with the script's own line."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise _ScriptError(f"{type(error).__name__} {when}: {error}", script_line(error, path)) from None


def script_line(error: BaseException, path: Path) -> int:
    """The script's own innermost line in a traceback; 0 if it has none."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return lines[-1] or 0 if lines else 0


def _setting(module: ModuleType, name: str, kind: type[Any], default: Any) -> Any:
    value = getattr(module, name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise _ScriptError(f"{name}: found {value!r}; allowed is a value of type {kind.__name__}")
    return value


def _hooks(module: ModuleType) -> dict[Hook, HookFunction]:
    found: dict[Hook, HookFunction] = {}
    for hook in Hook:
        function = getattr(module, hook, None)
        if function is not None:
            found[hook] = _checked(function, hook)
    everything = getattr(module, ALL, None)
    if everything is not None and inspect.isfunction(everything):
        found |= dict.fromkeys(_NTOPNG_HOOKS, _checked(everything, ALL))
    return found


def _checked(function: Any, name: str) -> HookFunction:
    line = function.__code__.co_firstlineno if inspect.isfunction(function) else 0
    if not callable(function):
        raise _ScriptError(f"{name} is not a function")
    try:
        inspect.signature(function).bind(None, 0, {})
    except TypeError:
        raise _ScriptError(f"{name} must take three arguments: (flow, now, conf)", line) from None
    hook: HookFunction = function
    return hook


def _conf(module: ModuleType, key: str, settings: dict[str, Any]) -> dict[str, Any]:
    """default_value, overridden by the configuration; keys and types must be those of default_value."""
    defaults = _setting(module, "default_value", dict, {})
    conf = dict(defaults)
    for name, value in settings.items():
        if name == "enabled":
            continue
        where = f"[scripts.{key}] {name}"
        if name not in defaults:
            allowed = ", ".join(["enabled", *defaults])
            raise _ScriptError(f"{where}: unknown key; allowed here are {allowed}")
        default = defaults[name]
        same = isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
        number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if default is not None and not (same or number):
            kind = type(default).__name__
            raise _ScriptError(f"{where}: found {value!r}; allowed is a value of type {kind}")
        conf[name] = value
    return conf


def _user_statuses(module: ModuleType) -> tuple[StatusType, ...]:
    """The statuses that the script defines, each once, whatever its names in the module."""
    found: dict[int, StatusType] = {}
    for value in vars(module).values():
        if not isinstance(value, StatusType) or STATUS_BY_KEY.get(value.status_key) is value:
            continue
        key = value.status_key
        if not FIRST_USER_KEY <= key <= LAST_KEY:
            raise _ScriptError(f"status {key} is not the user's: allowed are {FIRST_USER_KEY} to {LAST_KEY}")
        if found.setdefault(key, value) is not value:
            raise _ScriptError(f"status {key} is defined twice")
    return tuple(found.values())


def _status_conflicts(scripts: list[Script]) -> list[Problem]:
    problems = []
    owners: dict[int, Script] = {}
    for script in scripts:
        for status in script.statuses:
            owner = owners.setdefault(status.status_key, script)
            if owner is not script:
                problems.append(
                    Problem(script.path, 0, f"status {status.status_key} is defined by {owner.path} already")
                )
    return problems


def _mentions(code: CodeType, name: str) -> bool:
    return name in code.co_names or any(
        _mentions(constant, name) for constant in code.co_consts if isinstance(constant, CodeType)
    )
