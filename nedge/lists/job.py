"""Work on lists in a process of its own: it takes seconds of CPU and much memory for a while, and may wait.

A request is a JSON object on its standard input, what came of it one on its standard output; its log goes to
standard error, as that of who started it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from typing import Any, Literal

import orjson

from nedge import interpreter, log
from nedge.config import Config, Lists, Log
from nedge.lists import refresh

NICENESS = 10
"""Packets come first."""

Task = Literal["prepare", "refresh"]


def start(task: Task, config: Config) -> subprocess.Popen[bytes]:
    """Begin: prepare packs what is not packed yet, refresh asks the sources that are due, too."""
    with interpreter.held(interpreter.SUPERVISORS):
        process = subprocess.Popen(
            interpreter.module("nedge.lists.job"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=interpreter.environment(),
        )
    assert process.stdin is not None
    request = {"task": task, "lists": config.lists.model_dump(mode="json"), "log": config.log.model_dump()}
    with process.stdin as pipe:
        pipe.write(orjson.dumps(request))
    process.stdin = None
    return process


def prepare(config: Config) -> None:
    """As `refresh.prepare`, in another process; nothing is started where there is nothing to do.

    Raises ListError; CacheError where it is not the lists that are to blame.
    """
    if refresh.is_prepared(config.lists):
        return
    process = start("prepare", config)
    output, _ = process.communicate()
    if problem := outcome(output, process.returncode):
        raise (refresh.CacheError if is_of_cache(output) else refresh.ListError)(problem)


def outcome(output: bytes, status: int) -> str:
    """What went wrong, by what the process said and its exit status; empty if nothing did."""
    try:
        return str(orjson.loads(output).get("error", ""))
    except orjson.JSONDecodeError:
        return f"the process that works on lists ended with exit status {status}"


def is_of_cache(output: bytes) -> bool:
    """Whether the cache is to blame for what went wrong, by what the process said."""
    with contextlib.suppress(orjson.JSONDecodeError):
        return bool(orjson.loads(output).get("of_cache"))
    return False


def main() -> None:
    """What the other process does."""
    interpreter.die_with_parent()
    interpreter.ignore(interpreter.SUPERVISORS)
    request: dict[str, Any] = orjson.loads(sys.stdin.buffer.read())
    settings = Lists.model_validate(request["lists"])
    logging = Log.model_validate(request["log"])
    log.configure(logging.level, logging.format)
    answer: dict[str, Any] = {}
    try:
        if request["task"] == "prepare":
            refresh.prepare(settings)
        else:
            os.nice(NICENESS)
            answer["changed"] = refresh.refresh(settings)
    except refresh.ListError as error:
        answer["error"] = str(error)
        answer["of_cache"] = isinstance(error, refresh.CacheError)
    sys.stdout.buffer.write(orjson.dumps(answer))


if __name__ == "__main__":
    main()
