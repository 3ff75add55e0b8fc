"""Passwords and keys in URLs: taken out where URLs are read, so that nobody gets to see them."""

from __future__ import annotations

import re

_USER = re.compile(r"(^|://)[^/?#\s]*@")
"""User and password before a host."""
_SECRET = re.compile(
    r"""([?&;] (?: [^=&;#\s]* (?:passw|passphrase|pwd|secret|token|api_?key|credential) [^=&;#\s]*
                 | pass | auth | key | sid ) =)
        [^&;#\s]*""",
    re.IGNORECASE | re.VERBOSE,
)
"""A parameter that by its name holds what nobody else should know."""


def without_secrets(url: str) -> str:
    """A URL, with or without its scheme, that may be shown."""
    if "@" in url:
        url = _USER.sub(r"\1", url)
    return _SECRET.sub(r"\1***", url) if "=" in url else url
