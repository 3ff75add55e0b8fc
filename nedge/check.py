"""`nedge check`: all that a configuration makes is built once, and all that is wrong with it told at once."""

from __future__ import annotations

from collections.abc import Iterator

from nedge import log
from nedge.assemble import assemble, make_host
from nedge.config import Config
from nedge.dpi import NdpiClassifier, load_library
from nedge.dpi.selftest import check as check_dpi
from nedge.errors import ConfigError
from nedge.scripts.budget import enforced
from nedge.scripts.lint import lint
from nedge.scripts.loader import find_scripts, load_scripts
from nedge.scripts.runner import Runner


def check(config: Config, where: str) -> Iterator[str]:
    """Lines for people: what was found, script by script. `where`: the configuration came from.

    Raises DpiError, or ConfigError with every problem of lists, databases and scripts, warnings included.
    """
    log.configure("error", config.log.format)  # what would be logged is told here
    dpi = check_dpi(config.dpi.library)
    classifier = NdpiClassifier(load_library(config.dpi.library))
    off: dict[str, str] = {}
    with enforced():
        scripts, found = load_scripts(
            config.scripts.directories,
            config.scripts.settings,
            classifier.protocol_id,
            off,
            make_host(config, classifier),
        )
        Runner(scripts).close()
    problems = [str(problem) for problem in found] if any(problem.fatal for problem in found) else []
    try:
        with enforced():
            assemble(config).close()
    except ConfigError as error:
        problems += [line for line in str(error).splitlines() if line not in problems]
    classifier.close()
    if problems:
        raise ConfigError("\n".join([*problems, *_warnings(config, off)]))

    yield f"configuration: ok ({where})"
    yield f"nDPI: ok ({dpi.version}, {dpi.path})"
    for script in scripts:
        yield f"script {script.key}: ok (hooks: {', '.join(script.hooks)})"
    for key, why in off.items():
        yield f"script {key}: off ({why})"
    for problem in found:
        yield f"script {problem.path.stem}: {problem}"
    yield from _warnings(config, off)


def _warnings(config: Config, off: dict[str, str]) -> Iterator[str]:
    """What is no error, but surely not meant."""
    for path in find_scripts(config.scripts.directories):
        for warning in lint(path):
            yield f"warning: {warning}"
    for key, settings in config.scripts.settings.items():
        if key in off and settings.keys() - {"enabled"}:
            names = ", ".join(sorted(settings.keys() - {"enabled"}))
            yield f"warning: [scripts.{key}] {names}: no effect, as the script is off ({off[key]})"
