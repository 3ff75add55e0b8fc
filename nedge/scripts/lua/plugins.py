"""ntopng's plugin directories: where a plugin has its scripts, modules and definitions.

blacklisted/
  manifest.lua                       makes it a plugin (older: plugin.lua), and may switch it off
  user_scripts/flow/*.lua            scripts (other kinds of scripts are not for flows: left alone)
  status_definitions/status_*.lua    status types
  alert_definitions/alert_*.lua      alert types
  locales/en.lua                     texts for i18n: `i18n("blacklisted.title")`
  modules/*.lua                      modules: `plugins_utils.loadModule("blacklisted", name)`
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MARKS = ("manifest.lua", "plugin.lua", "user_scripts/flow")
MAX_DEPTH = 5
"""How deep plugins may lie in a directory of scripts: ntopng has alerts/security/<plugin>."""


@dataclass(frozen=True, slots=True)
class Plugin:
    """A directory in ntopng's layout; or one of single scripts, which may have modules/ beside them."""

    root: Path

    @property
    def key(self) -> str:
        return self.root.name

    def manifest(self) -> Path:
        """What describes it, if it is there."""
        path = self.root / "manifest.lua"
        return path if path.is_file() else self.root / "plugin.lua"

    def scripts(self) -> list[Path]:
        """Its flow scripts."""
        return _lua_files(self.root / "user_scripts" / "flow")

    def statuses(self) -> list[Path]:
        """Its status definitions."""
        return _lua_files(self.root / "status_definitions")

    def alerts(self) -> list[Path]:
        """Its alert definitions."""
        return _lua_files(self.root / "alert_definitions")

    def locale(self) -> Path | None:
        """Its English texts."""
        path = self.root / "locales" / "en.lua"
        return path if path.is_file() else None

    def modules(self) -> dict[str, Path]:
        """What its scripts can require: each module by its name, and by the plugin's and its name."""
        found = {}
        for path in _lua_files(self.root / "modules"):
            found[path.stem] = found[f"{self.key}.{path.stem}"] = path
        return found


def find_plugins(directory: Path) -> list[Plugin]:
    """All plugins in a directory, or the directory itself if it is one."""
    return list(_walk(directory, MAX_DEPTH))


def find_scripts(directory: Path) -> list[Path]:
    """All Lua scripts in a directory: those of its plugins, and single ones."""
    plugins = find_plugins(directory)
    found = [path for plugin in plugins for path in plugin.scripts()]
    return found if Plugin(directory) in plugins else [*found, *directory.glob("*.lua")]


def plugin_of(script: Path) -> Plugin | None:
    """The plugin that a script belongs to, by where it lies; None if it is a single one."""
    lies_in = script.parent
    return Plugin(lies_in.parents[1]) if lies_in.parts[-2:] == ("user_scripts", "flow") else None


def _walk(directory: Path, depth: int) -> Iterator[Plugin]:
    if any((directory / mark).exists() for mark in _MARKS):
        yield Plugin(directory)
    elif depth:
        for inside in sorted(directory.iterdir()):
            if inside.is_dir() and not inside.is_symlink() and not inside.name.startswith((".", "_")):
                yield from _walk(inside, depth - 1)


def _lua_files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.glob("*.lua") if not path.name.startswith("_"))
