"""The formats of lists: one entry a line, lines of a hosts file, or CSV with fingerprints in front."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from nedge.core.lists import Range, network_range

Form = Literal["networks", "domains", "fingerprints"]

FORMS: dict[str, Form] = {
    "malware_hosts": "networks",
    "drop_hosts": "networks",
    "malware_domains": "domains",
    "malware_fingerprints": "fingerprints",
    "mining_domains": "domains",
    "advertisement_domains": "domains",
    "allow_hosts": "networks",
    "allow_domains": "domains",
}
"""Every list, by its key in the configuration, and what it is made of."""

ALLOWED = {
    "networks": "an address or a network",
    "domains": "a domain, or a line of a hosts file",
    "fingerprints": "a JA3 or JA4 fingerprint, alone or as the first column of CSV",
}
"""Form -> what a line may have."""

MAX_SHOWN = 80
_KEPT = 10
_BROADEST = {4: 32 - 8, 6: 128 - 16}
"""Bits of host part of the largest network that a download may have: it must not block half the Internet."""
_DOMAIN = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*")
_FINGERPRINT = re.compile(r"[0-9a-f]{32}|[tqd][0-9a-z]{2}[di][0-9]{4}[0-9a-z]{2}_[0-9a-f]{12}_[0-9a-f]{12}")
_OWN_NAMES = frozenset(("localhost", "localhost.localdomain", "local", "broadcasthost", "0.0.0.0"))  # noqa: S104
"""Names that hosts files have for the machine itself."""
_NOWHERE = frozenset(("0.0.0.0", "127.0.0.1", "::", "::1"))  # noqa: S104


class Wrong(NamedTuple):
    """A line that is no entry."""

    line: int
    text: str


@dataclass(slots=True)
class Parsed:
    """What a text has."""

    entries: list[Any] = field(default_factory=list)
    """Ranges, or strings."""
    wrong: list[Wrong] = field(default_factory=list)
    """The first lines that are no entry."""
    wrong_count: int = 0


def parse(form: Form, text: str, *, downloaded: bool = False) -> Parsed:
    """Read a list. `downloaded`: by somebody else, so what would cover too much is wrong, too."""
    parsed = Parsed()
    take = parsed.entries.extend
    read = _READERS[form]
    for number, line in enumerate(text.splitlines(), 1):
        content = line.partition("#")[0].strip()
        if not content or content[0] == ";":
            continue
        try:
            take(read(content, downloaded))
        except ValueError:
            if form == "fingerprints" and not parsed.entries and not parsed.wrong and "," in content:
                continue  # the names of the columns
            parsed.wrong_count += 1
            if len(parsed.wrong) < _KEPT:
                parsed.wrong.append(Wrong(number, content[:MAX_SHOWN]))
    return parsed


def _networks(content: str, downloaded: bool) -> Iterable[Range]:
    entry = network_range(content.partition(";")[0].rstrip())
    if downloaded and (entry.last - entry.first).bit_length() > _BROADEST[entry.version]:
        raise ValueError
    return (entry,)


def _domains(content: str, downloaded: bool) -> Iterable[str]:
    words = content.lower().split()
    if len(words) == 1:
        names = words
    elif words[0] in _NOWHERE or _is_address(words[0]):
        names = [name for name in words[1:] if name not in _OWN_NAMES and not name.startswith("ip6-")]
    else:
        raise ValueError
    return [_domain(name, downloaded) for name in names]


def _domain(name: str, downloaded: bool) -> str:
    if name[0] in "*." or name[-1] == ".":
        name = name.removeprefix("*.").strip(".")
    if not name.isascii():
        name = name.encode("idna").decode()  # as it is asked for; raises UnicodeError, a ValueError
    if not _DOMAIN.fullmatch(name) and not (":" in name and _is_address(name)):
        raise ValueError
    if len(name) > 253 or (downloaded and "." not in name):
        raise ValueError
    return name


def _fingerprints(content: str, _downloaded: bool) -> Iterable[str]:
    fingerprint = content.partition(",")[0].strip(' \t"').lower()
    if not _FINGERPRINT.fullmatch(fingerprint):
        raise ValueError
    return (fingerprint,)


def _is_address(text: str) -> bool:
    if not text[0].isdigit() and ":" not in text:
        return False
    try:
        network_range(text)
    except ValueError:
        return False
    return "/" not in text


_READERS: dict[Form, Callable[[str, bool], Iterable[Any]]] = {
    "networks": _networks,
    "domains": _domains,
    "fingerprints": _fingerprints,
}
