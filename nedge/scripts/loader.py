"""Finding and loading user scripts, in Python and in Lua.

A script is a file in one of the script directories; its key is the file name without the ending. Directories
of ntopng's plugins in there hold scripts, too (see `nedge.scripts.lua.plugins`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nedge.scripts import python
from nedge.scripts.check import Declaration, ProtocolIds, check
from nedge.scripts.lua.host import Host
from nedge.scripts.lua.loader import LuaLoader
from nedge.scripts.script import HookFunction, Problem, Script, ScriptError

__all__ = ["HookFunction", "Problem", "Script", "load_scripts"]


@dataclass(frozen=True, slots=True)
class _Source:
    key: str
    path: Path
    declare: Callable[[Path, str], Declaration]


def load_scripts(
    directories: Iterable[Path],
    settings: dict[str, dict[str, Any]],
    protocol_id: ProtocolIds,
    host: Host | None = None,
) -> tuple[list[Script], list[Problem]]:
    """Load every enabled script, in the order in which they run: higher `prio` first, then by key.

    Their `setup()` has run. All problems are collected, not only the first. `host`: what Lua scripts may do.
    """
    scripts: list[Script] = []
    problems: list[Problem] = []
    seen: dict[str, Path] = {}
    lua = LuaLoader(host or Host(protocol_id=protocol_id))
    for source in _find(directories, lua, problems):
        key, path = source.key, source.path
        if key in seen:
            problems.append(Problem(path, 0, f"a script with the key {key!r} exists: {seen[key]}"))
            continue
        seen[key] = path
        try:
            script = _load(source, settings.get(key, {}), protocol_id)
        except ScriptError as error:
            problems.append(Problem(error.path or path, error.line, error.message, error.fatal))
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


def _find(directories: Iterable[Path], lua: LuaLoader, problems: list[Problem]) -> list[_Source]:
    """All script files. Plugins are looked into first, since scripts may use each other's statuses."""
    sources: list[_Source] = []
    for directory in directories:
        if not directory.is_dir():
            problems.append(Problem(directory, 0, "no such directory of scripts"))
            continue
        found = [_Source(path.stem, path, python.declare) for path in directory.glob("*.py")]
        found += [_Source(path.stem, path, lua.declare) for path in lua.find(directory, problems)]
        sources += sorted(found, key=lambda source: source.path)
    return [source for source in sources if not source.path.name.startswith(("_", "test_"))]


def _load(source: _Source, settings: dict[str, Any], protocol_id: ProtocolIds) -> Script | None:
    declared = source.declare(source.path, source.key)
    script = None
    try:
        script = check(declared, settings, protocol_id)
    finally:
        if script is None and declared.release is not None:
            declared.release()
    return script


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
