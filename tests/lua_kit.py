"""Scripts in files of any name, as users have them, on the engine of `kit`."""

from __future__ import annotations

import tempfile
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kit import Bench, Judged, Packet, bench
from structlog.testing import capture_logs

from nedge.scripts.budget import enforced
from nedge.scripts.script import Script

QUIET = "[verdict]\ndrop_score = 0\nblock_statuses = []\n"
HEAD = """\
local user_scripts = require("user_scripts")
local flow_consts = require("flow_consts")
local status_types = flow_consts.status_types
local script = {category = user_scripts.script_categories.other, hooks = {}, gui = {i18n_title = "A script"}}
"""
HEAD_LINES = HEAD.count("\n")
TAIL = "\nreturn script\n"


def lua(body: str) -> str:
    """A script whose body puts its hooks into `script.hooks`."""
    return HEAD + textwrap.dedent(body) + TAIL


def hook(statements: str, name: str = "protocolDetected") -> str:
    """A script with one hook."""
    return lua(f"function script.hooks.{name}(now, conf)\n{textwrap.dedent(statements)}\nend")


def write(directory: Path, files: Mapping[str, str | bytes]) -> Path:
    """Files by their path in the directory."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


@contextmanager
def scripts(files: Mapping[str, str | bytes], toml: str = "", more: str = "") -> Iterator[Bench]:
    """An engine with these script files, held to their time. `more`: keys of [scripts]."""
    with tempfile.TemporaryDirectory() as directory:
        path = write(Path(directory), files)
        text = f'{textwrap.dedent(toml)}\n[scripts]\ndirectories = ["{path}"]\n{textwrap.dedent(more)}'
        with enforced(), bench(text) as made:
            yield made


def run(
    files: Mapping[str, str | bytes],
    packets: Iterable[Packet],
    toml: str = QUIET,
    more: str = "",
    *,
    until: float | None = None,
) -> tuple[Judged, dict[str, Script]]:
    """Judge packets to the end of all flows; what became of them, and the scripts by their keys."""
    with scripts(files, toml, more) as made:
        made.feed(packets)
        made.engine.finish(made.engine.now if until is None else until)
        ran = {script.key: script for script in made.assembly.runner.scripts}
    return made.judged, ran


def said(
    files: Mapping[str, str | bytes], packets: Iterable[Packet], toml: str = QUIET, more: str = ""
) -> list[str]:
    """What scripts print."""
    with capture_logs() as logs:
        run(files, packets, toml, more)
    return [entry["text"] for entry in logs if entry["event"] == "script_says"]


def ask(packets: Iterable[Packet], expression: str, before: str = "", name: str = "protocolDetected") -> Any:
    """The value of an expression in a hook's first call, as the info of a status keeps it."""
    statements = f"{before}\nflow.triggerStatus(status_types.status_user_05, {{value = {expression}}}, 1000)"
    once = "if done then return end done = true"
    source = lua(f"local done\nfunction script.hooks.{name}(now, conf)\n{once}\n{statements}\nend")
    judged, ran = run({"script.lua": source}, packets)
    assert ran["script"].last_error == ""
    return judged.alerts[-1]["nedge"]["info"].get("value")
