"""One Lua interpreter for one script, and calls into it.

sandbox.lua takes everything away that reaches out, and sets the limits. What crosses from Python when a
script may have used up its memory is numbers, and the sandbox makes sure that there is room before anything
else does: an allocation that fails there would end the process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, NoReturn

from lupa.lua53 import LuaError, LuaMemoryError, LuaRuntime

from nedge.core.hooks import Hook
from nedge.core.status import STATUS_BY_KEY, STATUS_TYPES, StatusType
from nedge.scripts.api import Flow
from nedge.scripts.budget import LOAD_SECONDS, WATCH, ScriptTimeoutError
from nedge.scripts.fullinfo import BASIC_INFO
from nedge.scripts.lua.bindings import NO_FLOW, SCALARS, VALUES, Bindings, asked_for, protocol_key
from nedge.scripts.lua.host import Host
from nedge.scripts.lua.values import to_lua
from nedge.scripts.script import HookFunction, ScriptError, ScriptFault, Where

_ROOM = 1 << 20
"""Bytes of memory that must be left before Python makes values for Lua: more than they ever take."""
_TIME_OVER = "the time is over"
_HOOK = """
def make(call, bindings, fault, {names}):
    def hook(flow, now, conf, call=call, bindings=bindings, fault=fault, {defaults}):
        bindings.flow = flow
        try:
            call(now{arguments})
        except Exception as error:
            fault(error)
    return hook
"""
_AT = re.compile(r"([^\n:]+):(\d+): ")
_IN_GLOBALS = ("lua_utils", "flow_utils", "alert_utils")
"""Modules of ntopng whose functions are among the globals, as they are there."""


class Runtime:
    """A sandboxed interpreter. `release()` it when done."""

    def __init__(
        self,
        key: str,
        host: Host,
        *,
        directory: Path,
        modules: dict[str, Path] | None = None,
        user_statuses: Iterable[StatusType] = (),
        sources: Iterable[bytes] = (),
    ) -> None:
        """`directory`: of the script or its plugin. `user_statuses`: those that plugins define.

        `modules`: what can be required, beside what comes with nedge. `sources`: the script's files, which
        say what it will ask for.
        """
        self.bindings = Bindings(key, host, STATUS_BY_KEY | {s.status_key: s for s in user_statuses})
        self._memory_mb = host.memory_mb
        self._modules = modules or {}
        self._paths: dict[str, Path] = {}
        """Name of a chunk of the script's own -> its file."""
        self._directory = directory
        lua = LuaRuntime(
            encoding=None,
            register_eval=False,
            register_builtins=False,
            attribute_filter=_refuse,
            unpack_returned_tuples=True,
            max_memory=host.memory_mb << 20,
        )
        self._table = self.bindings.make_table = lua.table_from
        options = {
            "scalars": SCALARS,
            "values": VALUES,
            "basic_info": BASIC_INFO,
            "statuses": [
                {
                    "key": status.status_key,
                    "name": status.name,
                    "title": status.title,
                    "severity": status.severity,
                    "alert_type": status.alert_type,
                    "built_in": STATUS_TYPES.get(status.name) is status,
                }
                for status in (*STATUS_TYPES.values(), *user_statuses)
            ],
            "room": (host.memory_mb << 20) - _ROOM,
            "allowed": dict.fromkeys(host.allow, True),
            "directory": str(directory),
        }
        self.bindings.memory_used = lua.get_memory_used
        functions = self.bindings.functions() | {"module": self._module}
        raw = lua.table_from({name.encode(): function for name, function in functions.items()})
        given = raw, to_lua(options, self._table)
        self._main: Any = lua.execute(_part("sandbox.lua"), *given, name=b"=[nedge] sandbox")
        self._lines_of_fault = self._main[b"fault"]
        self._main[b"add"](_part("globals.lua"), b"[nedge] globals")
        names = asked_for(sources)
        self._make_hook = self._main[b"hook_maker"](to_lua(names, self._table))
        self._reads = tuple(getattr(Flow, name, protocol_key) for name in names)

    # Loading. All raise ScriptError for what is wrong with the script.

    def run(self, path: Path) -> Any:
        """Run a file of the script's, and give what it returns."""
        try:
            source = path.read_bytes()
        except OSError as error:
            raise ScriptError(f"cannot be read: {error.strerror}", path=path) from None
        name = self._name(path)
        try:
            result = self._call("while loading", self._main[b"run"], _without_head(source), name.encode())
        except ScriptError as error:
            error.path = error.path or path
            raise
        if isinstance(result, bytes):  # what is wrong with its text
            at = _AT.match(text := result.decode(errors="replace"))
            line, text = (int(at[2]), text[at.end() :]) if at else (0, text)
            raise ScriptError(f"syntax error: {text}", line, path=path)
        return result[1] if isinstance(result, tuple) and len(result) > 1 else None

    def get(self, table: Any, name: str) -> Any:
        """A field of a table of the script's."""
        return self._call("while loading", self._main[b"get"], table, name.encode())

    def set(self, table: Any, name: str, value: str) -> None:
        """Set a field of a table of the script's."""
        self._call("while loading", self._main[b"set"], table, name.encode(), value.encode())

    def ask(self, function: Any, when: str) -> bool:
        """Call a function of the script's: whether what it gives is true."""
        return bool(self._call(when, self._main[b"ask"], function))

    def define_alert(self, name: str, definition: Any) -> None:
        """Make a plugin's alert type known."""
        self._main[b"define_alert"](name.encode(), definition)

    def define_status(self, name: str, key: int, definition: Any) -> None:
        """Make a plugin's status type known, by its name and number."""
        self._main[b"define_status"](name.encode(), key, definition)

    def add_texts(self, texts: Any, prefix: str) -> None:
        """Make a locale's texts known, by `prefix.key`."""
        self._call("while reading the locale", self._main[b"add_texts"], texts, prefix.encode())

    def text(self, key: str) -> str | None:
        """A text of the locale."""
        found = self._main[b"text"](key.encode())
        return found.decode(errors="replace") if found is not None else None

    def _call(self, when: str, function: Any, *arguments: Any) -> Any:
        WATCH.begin(LOAD_SECONDS)
        try:
            return function(*arguments)
        except Exception as error:
            try:
                self.fault(error)
            except ScriptTimeoutError:
                raise ScriptError(f"takes longer than {LOAD_SECONDS:.0f} s {when}") from None
            except ScriptFault as fault:
                path, line = fault.where[-1] if fault.where else (None, 0)
                raise ScriptError(f"error {when}: {fault}", line, path=path) from None
        finally:
            WATCH.end()

    # Hooks

    def hooks(self, functions: dict[Hook, Any], conf: dict[str, Any]) -> dict[Hook, HookFunction]:
        """Functions of the script's, to be called as hooks. They raise ScriptFault, or ScriptTimeoutError."""
        table = to_lua(conf, self._table)
        to_hook = _hook_maker(len(self._reads))
        self._main[b"trust"]()
        return {
            hook: to_hook(self._make_hook(function, table), self.bindings, self.fault, *self._reads)
            for hook, function in functions.items()
        }

    def fault(self, error: Exception) -> NoReturn:
        """Raise what an error out of Lua means: ScriptFault, or ScriptTimeoutError."""
        WATCH.call.deadline = 0
        where: Where = []
        with suppress(LuaMemoryError):
            for line in self._lines_of_fault().decode().splitlines():
                name, _, number = line.rpartition(":")
                where.append((self._paths[name], int(number)))
        if isinstance(error, LuaMemoryError):
            raise ScriptFault(f"not enough memory (scripts.lua_memory_mb = {self._memory_mb})", []) from None
        message = str(error) if isinstance(error, LuaError) else f"{type(error).__name__}: {error}"
        if message == _TIME_OVER:
            timeout = ScriptTimeoutError()
            timeout.where = tuple(where)
            raise timeout from None
        at = _AT.match(message)
        if at and (at[1] in self._paths or at[1].startswith("[nedge]")):
            message = message[at.end() :]
            if not where and at[1] in self._paths:
                where = [(self._paths[at[1]], int(at[2]))]
        raise ScriptFault(message or "an error that is no message", where) from None

    def release(self) -> None:
        """Let go of the interpreter: its memory is free when nothing calls into it any more."""
        self.bindings.flow = NO_FLOW
        self.bindings.make_table = dict
        self.bindings.memory_used = int
        self._main = self._table = self._lines_of_fault = self._make_hook = None

    # For the Lua side

    def _module(self, name: bytes) -> tuple[bytes | None, bytes, bool]:
        """Source, name of the chunk, and whether it is ours; or None, and why not."""
        text = name.decode(errors="replace")
        if text in _IN_GLOBALS:
            return b"return {}", f"[nedge] {text}".encode(), True
        ours = _modules().get(text)
        if ours is not None:
            return ours, f"[nedge] {text}".encode(), True
        path = self._modules.get(text)
        if path is None:
            known = sorted({*_modules(), *_IN_GLOBALS, *self._modules})
            return None, f"there is no module {text!r}: there are {', '.join(known)}".encode(), False
        try:
            return _without_head(path.read_bytes()), self._name(path).encode(), False
        except OSError as error:
            return None, f"module {text!r} cannot be read: {error.strerror}".encode(), False

    def _name(self, path: Path) -> str:
        """A name for a chunk. Lua keeps 59 characters, so the end of the path has to do."""
        names = (path.name, str(path.relative_to(self._directory)), f"{len(self._paths)} {path.name}")
        return next(name for name in (n[-50:] for n in names) if self._paths.setdefault(name, path) == path)


@cache
def _hook_maker(reads: int) -> Callable[..., HookFunction]:
    """Makes what the runner calls. Written out for the number of reads: it runs for each script and event."""
    names = [f"read{n}" for n in range(reads)]
    arguments = "".join(f", {name}(flow)" for name in names)
    defaults = ", ".join(f"{name}={name}" for name in names)  # found faster than what a closure holds
    made: dict[str, Any] = {}
    source = _HOOK.format(names=", ".join(names), defaults=defaults, arguments=arguments)
    exec(source, made)  # noqa: S102 (nothing of a script's)
    maker: Callable[..., HookFunction] = made["make"]
    return maker


def _refuse(_object: Any, name: Any, _setting: bool) -> NoReturn:
    raise AttributeError(f"scripts cannot reach Python ({name!r})")


def _without_head(source: bytes) -> bytes:
    """Without a byte order mark, and what makes it executable."""
    source = source.removeprefix(b"\xef\xbb\xbf")
    return b"--" + source if source.startswith(b"#") else source


@cache
def _part(name: str) -> bytes:
    return files(__package__).joinpath(name).read_bytes()


@cache
def _modules() -> dict[str, bytes]:
    """The modules that come with nedge."""
    folder = files(__package__).joinpath("modules")
    return {
        entry.name.removesuffix(".lua"): entry.read_bytes()
        for entry in folder.iterdir()
        if entry.name.endswith(".lua")
    }
