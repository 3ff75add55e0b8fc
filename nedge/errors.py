"""Errors that commands tell of, apart from what raises them: so a command loads only what it works with."""

from __future__ import annotations


class ConfigError(Exception):
    """The configuration cannot be used. The message has a line per problem."""


class DpiError(Exception):
    """nDPI cannot be used; the text is one sentence for the administrator."""
