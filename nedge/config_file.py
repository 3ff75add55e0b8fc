"""Reading the configuration: one TOML file.

Every error names the file, the key, what was found and what is allowed.
"""

from __future__ import annotations

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from nedge.config import Config, GeoIP
from nedge.errors import ConfigError


def load(path: Path) -> Config:
    """Read and check a configuration file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            raw = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    # Whoever reads this file means the same paths, wherever it runs: packed lists are known by them.
    return from_mapping(raw, str(path), path.parent.resolve())


def from_mapping(raw: dict[str, Any], where: str, base: Path) -> Config:
    """The configuration in parsed TOML. `where`: what errors start with; `base`: of relative paths.

    Raises ConfigError.
    """
    try:
        config = Config.model_validate(raw)
    except ValidationError as error:
        lines = [f"{where}: {_sentence(problem)}" for problem in error.errors()]
        raise ConfigError("\n".join(dict.fromkeys(lines))) from None
    return _resolve(config, base)


def _sentence(problem: Any) -> str:
    """One pydantic error as: key, what was found, what is allowed."""
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        allowed = _keys_of(location[:-1])
        near = get_close_matches(location[-1], allowed, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        return f"{key}: unknown key; allowed here are {', '.join(allowed)}{hint}"
    found = problem["input"]
    message = problem["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    if problem["type"] == "string_pattern_mismatch":
        message = "1 to 15 characters, without spaces or slashes (a network interface name)"
    if message.startswith(f"{key}."):  # a sentence already
        return str(message)
    return f"{key}: found {found!r}; allowed is {message}"


def _keys_of(location: list[str]) -> list[str]:
    """Keys that the configuration knows at a place."""
    model: Any = Config
    for part in location:
        model = model.model_fields[part].annotation
    return list(model.model_fields)


def _resolve(config: Config, base: Path) -> Config:
    """Make relative paths relative to the configuration file, not to where we happen to run."""

    def at(path: Path) -> Path:
        return base / path.expanduser()

    lists: dict[str, Any] = {
        name: [at(source) if isinstance(source, Path) else source for source in value]
        for name, value in config.lists
        if isinstance(value, list)
    }
    lists["cache_directory"] = at(config.lists.cache_directory)
    events, history = config.eve.path, config.history.path
    control = {"state": at(config.control.state)}
    if config.control.socket:
        control["socket"] = at(config.control.socket)
    return config.model_copy(
        update={
            "lists": config.lists.model_copy(update=lists),
            "geoip": GeoIP(**{name: at(database) for name, database in config.geoip if database}),
            "eve": config.eve.model_copy(update={"path": at(events) if events else None}),
            "history": config.history.model_copy(update={"path": at(history) if history else None}),
            "control": config.control.model_copy(update=control),
            "scripts": config.scripts.model_copy(
                update={"directories": [at(path) for path in config.scripts.directories]}
            ),
        }
    )
