"""Finding and loading user scripts, in Python and in Lua.

A script is a file in one of the script directories; its key is the file name without the ending. Directories
of ntopng's plugins in there hold scripts, too (see `nedge.scripts.lua.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from nedge.scripts import python
from nedge.scripts.check import Declaration, ProtocolIds, check, hook_up
from nedge.scripts.lua.host import Host
from nedge.scripts.lua.loader import LuaLoader
from nedge.scripts.lua.plugins import find_scripts as find_lua_scripts
from nedge.scripts.script import Problem, Script, ScriptError, ScriptErrors

_NO_SCRIPTS = ("_", "test_")
"""How the names of helpers and tests start, that lie among scripts."""


def load_scripts(
    directories: Iterable[Path],
    settings: dict[str, dict[str, Any]],
    protocol_id: ProtocolIds,
    off: dict[str, str] | None = None,
    host: Host | None = None,
) -> tuple[list[Script], list[Problem]]:
    """Load every enabled script, in the order in which they run: higher `prio` first, then by key.

    A "directory" may be a single script, too. Their `setup()` has run. All problems of all scripts are
    collected, not only the first. `off` gets the keys of scripts that are switched off, and by what.
    `host`: what Lua scripts may do.
    """
    scripts: list[Script] = []
    problems: list[Problem] = []
    seen: dict[str, Path] = {}
    lua = LuaLoader(host or Host(protocol_id=protocol_id))
    for path in _sources(directories, lua, problems):
        key = path.stem
        if key in seen:
            problems.append(Problem(path, 0, f"a script with the key {key!r} exists: {seen[key]}"))
            continue
        seen[key] = path
        try:
            scripts.append(_load(path, settings.get(key, {}), protocol_id, lua))
        except ScriptErrors as errors:
            problems += (_problem(path, error) for error in errors.found)
        except ScriptError as error:
            problems.append(_problem(path, error))
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
    for place in directories:
        found += [place] if place.is_file() else _scripts_in(place, find_lua_scripts)
    return found


def read_script(
    path: Path, settings: dict[str, Any], protocol_id: ProtocolIds, host: Host | None = None
) -> Script:
    """One script with its settings and hooks, checked, but not set up. `release` it when done, if it can be.

    Raises ScriptErrors, with all that is wrong.
    """
    problems: list[Problem] = []
    lua = LuaLoader(host or Host(protocol_id=protocol_id))
    if path.suffix == ".lua":
        lua.find(path, problems)
    if problems:
        raise ScriptErrors(ScriptError(each.message, each.line, path=each.path) for each in problems)
    try:
        return _read(path, settings, protocol_id, lua, _leave_be)
    except ScriptError as error:
        raise ScriptErrors([error]) from None


def _sources(directories: Iterable[Path], lua: LuaLoader, problems: list[Problem]) -> list[Path]:
    """All script files. Plugins are looked into first, since scripts may use each other's statuses."""
    sources: list[Path] = []
    for place in directories:
        if place.is_dir():
            sources += _scripts_in(place, lambda directory: lua.find(directory, problems))
        elif not place.is_file():
            problems.append(Problem(place, 0, "no such directory of scripts"))
        else:
            sources += lua.find(place, problems) if place.suffix == ".lua" else [place]
    return sources


def _scripts_in(directory: Path, find_lua: Callable[[Path], list[Path]]) -> list[Path]:
    """A directory's scripts, helpers and tests left out; none if there is no such directory."""
    if not directory.is_dir():
        return []
    found = sorted([*directory.glob("*.py"), *find_lua(directory)])
    return [path for path in found if not path.name.startswith(_NO_SCRIPTS)]


class _OffError(Exception):
    """The script is switched off: by what."""


def _load(path: Path, settings: dict[str, Any], protocol_id: ProtocolIds, lua: LuaLoader) -> Script:
    """One script, ready to run. Raises ScriptErrors or ScriptError, or _OffError if it is switched off."""
    if settings.get("enabled") is False:
        raise _OffError("enabled = false in the configuration")

    def set_up(script: Script, declared: Declaration) -> None:
        if script.excluded:
            raise _OffError("it excludes nedge (nedge_exclude)")
        if not script.default_enabled and "enabled" not in settings:
            raise _OffError("by default; enabled = true in the configuration switches it on")
        if declared.setup is not None and not declared.setup(script.conf):
            raise _OffError("its setup() found nothing to do")

    return _read(path, settings, protocol_id, lua, set_up)


def _read(
    path: Path,
    settings: dict[str, Any],
    protocol_id: ProtocolIds,
    lua: LuaLoader,
    set_up: Callable[[Script, Declaration], None],
) -> Script:
    """One script, with its hooks as they are after `set_up`. If anything raises, nothing of it is left."""
    declare = lua.declare if path.suffix == ".lua" else python.declare
    declared = declare(path, path.stem)
    try:
        script = check(declared, settings, protocol_id)
        set_up(script, declared)
        hook_up(script, declared)
    except BaseException:
        if declared.release is not None:
            declared.release()
        raise
    return script


def _leave_be(_script: Script, _declared: Declaration) -> None:
    """Not set up."""


def _problem(path: Path, error: ScriptError) -> Problem:
    return Problem(error.path or path, error.line, error.message, error.fatal)


def _status_conflicts(scripts: list[Script]) -> list[Problem]:
    """Statuses that two scripts define. Scripts of one plugin share theirs."""
    problems = []
    owners: dict[int, Script] = {}
    for script in scripts:
        for status in script.statuses:
            owner = owners.setdefault(status.status_key, script)
            if not any(status is theirs for theirs in owner.statuses):
                problems.append(
                    Problem(script.path, 0, f"status {status.status_key} is defined by {owner.path} already")
                )
    return problems
