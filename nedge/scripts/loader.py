"""Finding, loading and checking user scripts.

A Python script is a file in one of the script directories; its key is the file name without `.py`. It is an
ordinary module: functions named after hooks are its hooks, variables with ntopng's names its filters.
"""

from __future__ import annotations

import ast
import inspect
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any, TypeVar

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

_T = TypeVar("_T")
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
    default_enabled: bool = True
    excluded: bool = False
    """It does not want to run here."""
    setup: Callable[..., Any] | None = None
    teardown: Callable[[], Any] | None = None
    calls: int = 0
    errors: int = 0
    time_ns: int = 0
    last_error: str = ""
    last_error_at: str = ""
    """`file:line` of the script where that happened; empty if it was in none of its lines."""


def load_scripts(
    directories: Iterable[Path],
    settings: dict[str, dict[str, Any]],
    protocol_id: ProtocolIds,
    off: dict[str, str] | None = None,
) -> tuple[list[Script], list[Problem]]:
    """Load every enabled script, in the order in which they run: higher `prio` first, then by key.

    A "directory" may be a single script, too. Their `setup()` has run. All problems of all scripts are
    collected, not only the first. `off` gets the keys of scripts that are switched off, and by what.
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
                scripts.append(_load(path, settings.get(key, {}), protocol_id))
            except ScriptErrors as errors:
                problems += (Problem(path, *error) for error in errors.found)
            except _OffError as why:
                if off is not None:
                    off[key] = str(why)
    for key in settings.keys() - seen.keys():
        near = get_close_matches(key, seen, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"found: {', '.join(sorted(seen)) or 'none'}"
        where = Path(f"[scripts.{key}]")
        problems.append(Problem(where, 0, f"settings for a script that does not exist; {hint}"))
    problems += _status_conflicts(scripts)
    scripts.sort(key=lambda script: (-script.prio, script.key))
    return scripts, problems


def find_scripts(directories: Iterable[Path]) -> list[Path]:
    """Paths of all scripts there are, switched off or not."""
    found: list[Path] = []
    for directory in directories:
        found += [directory] if directory.is_file() else _scripts_in(directory) or []
    return found


def _scripts_in(directory: Path) -> list[Path] | None:
    """Paths of a directory's scripts, helpers and tests left out; None if there is no such directory."""
    if not directory.is_dir():
        return None
    return [path for path in sorted(directory.glob("*.py")) if not path.name.startswith(("_", "test_"))]


class ScriptErrors(Exception):  # noqa: N818 (there may be several)
    """What is wrong with one script: line, message and whether it is fatal, of each."""

    def __init__(self, *found: tuple[int, str, bool]) -> None:
        super().__init__(found)
        self.found = found


class _OffError(Exception):
    """The script is switched off: by what."""


class _Reader:
    """Reads a script's variables, and collects what is wrong with them."""

    def __init__(self, module: ModuleType, tree: ast.Module, key: str) -> None:
        self.module = module
        self.key = key
        self.errors: list[tuple[int, str, bool]] = []
        self._lines: dict[str, int] = {}
        for node in tree.body:
            named = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
            for target in named:
                name = getattr(target, "id", getattr(target, "name", None))
                if name:
                    self._lines[name] = node.lineno

    def wrong(self, name: str, message: str, *, fatal: bool = True) -> None:
        """Something is wrong with what has this name; its line is found."""
        self.errors.append((self._lines.get(name, 0), message, fatal))

    def get(self, name: str, kind: type[_T], default: _T) -> _T:
        """A variable, checked for its type."""
        value = getattr(self.module, name, default)
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            self.wrong(name, f"{name}: found {value!r}; allowed is a value of type {kind.__name__}")
            return default
        return value


def _load(path: Path, settings: dict[str, Any], protocol_id: ProtocolIds) -> Script:
    """One script, ready to run. Raises ScriptErrors, or _OffError if it is switched off."""
    if settings.get("enabled") is False:
        raise _OffError("enabled = false in the configuration")
    script = read_script(path, settings, protocol_id)
    if script.excluded:
        raise _OffError("it excludes nedge (nedge_exclude)")
    if not script.default_enabled and "enabled" not in settings:
        raise _OffError("by default; enabled = true in the configuration switches it on")
    setup = script.setup
    if setup is not None:
        takes_conf = callable(setup) and bool(inspect.signature(setup).parameters)
        if not _run(path, "in setup()", (lambda: setup(script.conf)) if takes_conf else setup):
            raise _OffError("its setup() found nothing to do")
    return script


def read_script(path: Path, settings: dict[str, Any], protocol_id: ProtocolIds) -> Script:
    """One script with its settings, checked, but not set up. Raises ScriptErrors, with all that is wrong."""
    key = path.stem
    tree, code = _compile(path)
    module = ModuleType(f"nedge_script_{key}")
    module.__file__ = str(path)
    _run(path, "while loading", lambda: exec(code, module.__dict__))  # noqa: S102 (running scripts is the point)
    read = _Reader(module, tree, key)
    script = Script(
        key=key,
        path=path,
        title=read.get("title", str, key),
        description=read.get("description", str, inspect.getdoc(module) or ""),
        hooks=_hooks(read),
        l4=_l4(read),
        l7=_l7(read, protocol_id),
        three_way_handshake_ok=read.get("three_way_handshake_ok", bool, False),
        prio=read.get("prio", int, 0),
        conf=_conf(read, settings),
        statuses=_user_statuses(read),
        wants_match_packet=_mentions(code, _MATCH_PACKET),
        default_enabled=read.get("default_enabled", bool, True),
        excluded=read.get("nedge_exclude", bool, False),
        setup=getattr(module, "setup", None),
        teardown=getattr(module, "teardown", None),
    )
    category = read.get("category", str, "other")
    script.category = category if category in CATEGORIES else "other"
    seconds = read.get("periodic_update_seconds", int, PERIODIC_DEFAULT)
    if seconds > 0 and seconds % PERIODIC_STEP == 0:
        script.periodic_ticks = seconds // PERIODIC_STEP
    if not script.hooks and not read.errors:
        read.wrong("", f"has no hook (a function named {', '.join(Hook)} or all); skipped", fatal=False)
    if read.errors:
        raise ScriptErrors(*sorted(read.errors))
    return script


def _compile(path: Path) -> tuple[ast.Module, CodeType]:
    try:
        tree = ast.parse(path.read_bytes(), str(path))
        return tree, compile(tree, str(path), "exec")
    except SyntaxError as error:
        raise ScriptErrors((error.lineno or 0, f"syntax error: {error.msg}", True)) from None
    except OSError as error:
        raise ScriptErrors((0, f"cannot be read: {error.strerror}", True)) from None
    except ValueError as error:  # null bytes
        raise ScriptErrors((0, f"not Python source: {error}", True)) from None


def _run(path: Path, when: str, function: Callable[[], Any]) -> Any:
    """Call into the script; what it raises becomes a problem with the script's own line."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        said = f"{type(error).__name__} {when}: {error}"
        raise ScriptErrors((script_line(error, path), said, True)) from None


def script_line(error: BaseException, path: Path) -> int:
    """The script's own innermost line in a traceback; 0 if it has none."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return lines[-1] or 0 if lines else 0


def _hooks(read: _Reader) -> dict[Hook, HookFunction]:
    found: dict[Hook, HookFunction] = {}
    for hook in Hook:
        function = getattr(read.module, hook, None)
        if function is not None and _is_hook(read, function, hook):
            found[hook] = function
    everything = getattr(read.module, ALL, None)
    if everything is not None and inspect.isfunction(everything) and _is_hook(read, everything, ALL):
        found |= dict.fromkeys(_NTOPNG_HOOKS, everything)
    return found


def _is_hook(read: _Reader, function: Any, name: str) -> bool:
    if not callable(function):
        read.wrong(name, f"{name} is not a function")
        return False
    try:
        inspect.signature(function).bind(None, 0, {})
    except TypeError:
        read.wrong(name, f"{name} must take three arguments: (flow, now, conf)")
        return False
    return True


def _l4(read: _Reader) -> tuple[int, ...]:
    l4 = read.get("l4_proto", str, "")
    if l4 and l4 not in L4_PROTOCOLS:
        read.wrong("l4_proto", f"l4_proto: found {l4!r}; allowed are {', '.join(L4_PROTOCOLS)}")
    return L4_PROTOCOLS.get(l4, ())


def _l7(read: _Reader, protocol_id: ProtocolIds) -> int | None:
    name = read.get("l7_proto", str, "")
    number = protocol_id(name) if name else None
    if name and number is None:
        read.wrong("l7_proto", f"l7_proto: this nDPI knows no protocol {name!r}; skipped", fatal=False)
    return number


def _conf(read: _Reader, settings: dict[str, Any]) -> dict[str, Any]:
    """default_value, overridden by the configuration; keys and types must be those of default_value."""
    defaults: dict[str, Any] = read.get("default_value", dict, {})
    conf = dict(defaults)
    for name, value in settings.items():
        where = f"[scripts.{read.key}] {name}"
        if name == "enabled":
            if not isinstance(value, bool):
                read.wrong("", f"{where}: found {value!r}; allowed is true or false")
            continue
        if name not in defaults:
            near = get_close_matches(name, defaults, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            allowed = ", ".join(["enabled", *defaults])
            read.wrong("", f"{where}: unknown key; allowed here are {allowed}{hint}")
            continue
        default = defaults[name]
        same = isinstance(value, type(default)) and isinstance(value, bool) == isinstance(default, bool)
        number = isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool)
        if default is not None and not (same or number):
            kind = type(default).__name__
            read.wrong("", f"{where}: found {value!r}; allowed is a value of type {kind}")
        conf[name] = value
    return conf


def _user_statuses(read: _Reader) -> tuple[StatusType, ...]:
    """The statuses that the script defines, each once, whatever its names in the module."""
    found: dict[int, StatusType] = {}
    for name, value in vars(read.module).items():
        if not isinstance(value, StatusType) or STATUS_BY_KEY.get(value.status_key) is value:
            continue
        key = value.status_key
        if not FIRST_USER_KEY <= key <= LAST_KEY:
            read.wrong(name, f"status {key} is not the user's: allowed are {FIRST_USER_KEY} to {LAST_KEY}")
        elif found.setdefault(key, value) is not value:
            read.wrong(name, f"status {key} is defined twice")
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
