"""From a Lua script, or ntopng's plugin, to what it declares."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from lupa.lua53 import lua_type

from nedge.core.hooks import Hook
from nedge.core.status import (
    FIRST_USER_KEY,
    LAST_KEY,
    STATUS_BY_KEY,
    STATUS_TYPES,
    StatusType,
    define_status,
)
from nedge.scripts.check import ALL, CATEGORIES, NTOPNG_HOOKS, Declaration
from nedge.scripts.lua.bindings import SEVERITIES
from nedge.scripts.lua.host import Host
from nedge.scripts.lua.plugins import Plugin, find_plugins, find_scripts, plugin_of
from nedge.scripts.lua.runtime import Runtime
from nedge.scripts.lua.values import numbered, to_python
from nedge.scripts.script import Problem, ScriptError, ScriptErrors

_VALUES = (
    "default_enabled",
    "default_value",
    "http_answers",
    "l4_proto",
    "l7_proto",
    "l7_proto_id",
    "needs",
    "nedge_exclude",
    "periodic_update_seconds",
    "prio",
    "three_way_handshake_ok",
)
_MATCH_PACKET = b"getnDPIMatchPacket"
_KEY_OF_TEXT = re.compile(r"\w+(\.\w+)+")


class LuaLoader:
    """Loads all Lua scripts of one configuration."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._plugins: dict[Path, Plugin] = {}
        """Script -> the plugin that it belongs to."""
        self._statuses: dict[Plugin, tuple[StatusType, ...]] = {}
        self._given: dict[Path, int] = {}
        """Status definition without a number -> the one that it got here."""

    def find(self, place: Path, problems: list[Problem]) -> list[Path]:
        """The Lua scripts in a directory, or the one that `place` is.

        What is wrong with their plugins is added to `problems`.
        """
        plugin = plugin_of(place)
        if place.is_dir():
            plugins, scripts = find_plugins(place), find_scripts(place)
        else:
            plugins, scripts = [plugin] if plugin else [], [place]
        broken: list[Path] = []
        for plugin in plugins:
            try:
                if self._is_disabled(plugin):
                    why = "the plugin's manifest has disabled = true; skipped"
                    problems.append(Problem(plugin.root, 0, why, fatal=False))
                    broken += plugin.scripts()
                    continue
                self._statuses[plugin] = self._read_statuses(plugin)
            except ScriptError as error:
                problems.append(Problem(error.path or plugin.root, error.line, error.message))
                broken += plugin.scripts()
            else:
                self._plugins |= dict.fromkeys(plugin.scripts(), plugin)
        return [path for path in scripts if path not in broken]

    def declare(self, path: Path, key: str) -> Declaration:
        """Run a script's file, and see what it declares. Raises ScriptError."""
        plugin = self._plugins.get(path) or Plugin(path.parent)
        sources = [_read(file) for file in (path, *dict.fromkeys(plugin.modules().values()))]
        runtime = self._open(key, plugin, sources)
        try:
            if path in self._plugins:
                self._define(runtime, plugin)
            return self._declare(runtime, plugin, path, key, sources)
        except BaseException:
            runtime.release()
            raise

    def _open(self, key: str, plugin: Plugin, sources: Iterable[bytes] = ()) -> Runtime:
        statuses = [status for defined in self._statuses.values() for status in defined]
        return Runtime(
            key,
            self._host,
            directory=plugin.root,
            modules=plugin.modules(),
            user_statuses=statuses,
            sources=sources,
        )

    # Definitions of plugins

    def _is_disabled(self, plugin: Plugin) -> bool:
        """Whether a plugin's manifest switches it off. Raises ScriptError if it cannot be run."""
        manifest = plugin.manifest()
        if b"disabled" not in _read(manifest, b""):
            return False
        runtime = self._open(plugin.key, plugin)
        try:
            return runtime.get(_table(runtime.run(manifest), manifest), "disabled") is True
        finally:
            runtime.release()

    def _read_statuses(self, plugin: Plugin) -> tuple[StatusType, ...]:
        """The user statuses that a plugin defines. Raises ScriptError for what is wrong with a definition."""
        if not plugin.statuses():
            return ()
        runtime = self._open(plugin.key, plugin)
        try:
            return self._define(runtime, plugin)
        finally:
            runtime.release()

    def _define(self, runtime: Runtime, plugin: Plugin) -> tuple[StatusType, ...]:
        """Make all definitions of a plugin known to a runtime; gives the user statuses."""
        locale = plugin.locale()
        if locale is not None:
            runtime.add_texts(_table(runtime.run(locale), locale), plugin.key)
        for path in plugin.alerts():
            runtime.define_alert(path.stem, _table(runtime.run(path), path))
        found: dict[int, StatusType] = {}
        for path in plugin.statuses():
            definition = _table(runtime.run(path), path)
            key = self._status_key(runtime, definition, path)
            status = _status(runtime, definition, key, path)
            if status is not None and found.setdefault(key, status) is not status:
                raise ScriptError(f"status {key} is defined twice", path=path)
            runtime.define_status(path.stem, key, definition)
        return tuple(found.values())

    def _status_key(self, runtime: Runtime, definition: Any, path: Path) -> int:
        """The number of a status. Raises ScriptError if it is none.

        ntopng's definitions have them since the spring of 2020: older ones of its own types have its old
        numbers, or none. Who has none gets one of the user's, the highest that is free.
        """
        built_in = STATUS_TYPES.get(path.stem)
        key = runtime.get(definition, "status_key")
        if key is None and built_in is not None:
            return built_in.status_key
        if key is None:
            key = runtime.get(definition, "status_id")
        if key is None and path not in self._given:
            taken = {status.status_key for defined in self._statuses.values() for status in defined}
            free = {*range(FIRST_USER_KEY, LAST_KEY + 1)} - taken - {*self._given.values()}
            if not free:
                raise ScriptError("has no status_key, and no number for users is left", path=path)
            self._given[path] = max(free)
        key = self._given[path] if key is None else key
        if isinstance(key, float) and key.is_integer():
            key = int(key)
        if not isinstance(key, int) or isinstance(key, bool):
            allowed = f"those of flow_keys, and {FIRST_USER_KEY} to {LAST_KEY} for users"
            raise ScriptError(f"status_key: found {to_python(key)!r}; allowed are {allowed}", path=path)
        return key

    # Scripts

    def _declare(
        self, runtime: Runtime, plugin: Plugin, path: Path, key: str, sources: Iterable[bytes]
    ) -> Declaration:
        script = runtime.run(path)
        if lua_type(script) != "table":
            raise ScriptError("returns no table (it should end with: return script); skipped", fatal=False)
        runtime.set(script, "key", key)
        values: dict[str, Any] = {}
        errors: list[ScriptError] = []
        for name in _VALUES:
            found = runtime.get(script, name)
            try:
                value = to_python(found)
            except ScriptError as error:
                errors.append(ScriptError(f"{name}: {error.message}"))
                continue
            if value is not None:
                values[name] = int(value) if isinstance(value, float) and value.is_integer() else value
        if values.get("default_value") == []:
            values["default_value"] = {}
        gui = runtime.get(script, "gui")
        if lua_type(gui) == "table":
            values["title"] = _text(runtime, runtime.get(gui, "i18n_title")) or key
            values["description"] = _text(runtime, runtime.get(gui, "i18n_description"))
        values["category"] = _category(runtime, runtime.get(script, "category"))
        defaults = values.get("default_value", {})
        setup = _function(runtime, script, "setup")
        return Declaration(
            key=key,
            path=path,
            values=values,
            hooks=lambda conf: runtime.hooks(_functions(runtime, script), _settings(conf, defaults)),
            setup=(lambda _conf: setup()) if setup is not None else None,
            teardown=_function(runtime, script, "teardown"),
            release=runtime.release,
            one_number_type=True,
            statuses=self._statuses.get(plugin, ()),
            wants_match_packet=any(_MATCH_PACKET in source for source in sources),
            errors=errors,
        )


def _read(path: Path, missing: bytes | None = None) -> bytes:
    """A file's content. `missing`: what stands for a file that is not there."""
    try:
        return path.read_bytes()
    except OSError as error:
        if missing is not None and isinstance(error, FileNotFoundError):
            return missing
        raise ScriptError(f"cannot be read: {error.strerror}", path=path) from None


def _settings(conf: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The settings as Lua gets them: with numbers for keys where the script's defaults have them."""
    for name, value in conf.items():
        conf[name] = numbered(value, defaults.get(name))
    return conf


def _functions(runtime: Runtime, script: Any) -> dict[Hook, Any]:
    """The script's functions for hooks."""
    hooks = runtime.get(script, "hooks")
    if hooks is None:
        return {}
    if lua_type(hooks) != "table":
        raise ScriptError("hooks is not a table of functions")
    found: dict[Hook, Any] = {}
    errors: list[ScriptError] = []
    names = {str(hook): (hook,) for hook in Hook} | {ALL: NTOPNG_HOOKS}
    for name, stands_for in names.items():  # `all` comes last: it overrides
        function = runtime.get(hooks, name)
        if lua_type(function) == "function":
            found |= dict.fromkeys(stands_for, function)
        elif function is not None:
            errors.append(ScriptError(f"hooks.{name} is not a function"))
    if errors:
        raise ScriptErrors(errors)
    return found


def _function(runtime: Runtime, script: Any, name: str) -> Any:
    function = runtime.get(script, name)
    return partial(runtime.ask, function, f"in {name}()") if lua_type(function) == "function" else None


def _category(runtime: Runtime, category: Any) -> str:
    """A category's name: scripts give its entry in user_scripts.script_categories."""
    if lua_type(category) == "table":
        number = runtime.get(category, "id")
        return CATEGORIES[number] if isinstance(number, int) and 0 <= number < len(CATEGORIES) else "other"
    return category.decode(errors="replace") if isinstance(category, bytes) else "other"


def _text(runtime: Runtime, key: Any) -> str:
    """A text by its key in the locale, or the text itself; empty if there is none."""
    if not isinstance(key, bytes):
        return ""
    name = key.decode(errors="replace")
    found = runtime.text(name)
    if found is not None:
        return found
    return "" if _KEY_OF_TEXT.fullmatch(name) else name


def _table(value: Any, path: Path) -> Any:
    if lua_type(value) != "table":
        raise ScriptError("returns no table", path=path)
    return value


def _status(runtime: Runtime, definition: Any, key: int, path: Path) -> StatusType | None:
    """The user status of a status definition; None if it is one of ours, under its number and name."""
    name = path.stem
    if not FIRST_USER_KEY <= key <= LAST_KEY:
        built_in = STATUS_BY_KEY.get(key)
        if built_in is not None and built_in.name == name:
            return None
        taken = f" ({built_in.name})" if built_in else ""
        raise ScriptError(
            f"status {key}{taken} is not the user's: allowed are {FIRST_USER_KEY} to {LAST_KEY}", path=path
        )
    severity = runtime.get(definition, "alert_severity")
    level = runtime.get(severity, "key") if lua_type(severity) == "table" else None
    level = level.decode(errors="replace") if isinstance(level, bytes) else ""
    return define_status(
        key,
        name,
        _text(runtime, runtime.get(definition, "i18n_title")) or name,
        severity=SEVERITIES.get(level, "info"),
        description=_text(runtime, runtime.get(definition, "i18n_description")),
    )
