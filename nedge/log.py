"""Logging: structlog on standard error, so that standard output stays for results."""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO, cast

import structlog


class _Lines:
    """Standard error, a system call a line: several processes write to it. A full disk stops nobody."""

    def __init__(self) -> None:
        self.lost = 0

    def write(self, text: str) -> None:
        data = text.encode(errors="backslashreplace")
        try:
            if os.write(sys.stderr.fileno(), data) != len(data):
                self.lost += 1
        except (OSError, ValueError, AttributeError):  # full, closed, or none
            self.lost += 1

    def flush(self) -> None:
        """Nothing is held back."""


_lines = _Lines()


def lost() -> int:
    """Lines of this process that could not be written."""
    return _lines.lost


def configure(level: str = "info", style: str = "auto") -> None:
    """`style`: console, json, or auto (console on a terminal)."""
    console = style == "console" or (style == "auto" and sys.stderr.isatty())
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if console else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(cast("TextIO", _lines)),
        cache_logger_on_first_use=False,
    )
