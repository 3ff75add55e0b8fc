"""The sets that the core matches with: from packed files, which workers share, or from the sources."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog
from marisa_trie import Trie

from nedge.config import Lists
from nedge.core.lists import DomainSet, FingerprintSet, NetworkSet
from nedge.lists.cache import Cache, SourcePath
from nedge.lists.parse import FORMS
from nedge.lists.refresh import configured, read_source

_log = structlog.get_logger(__name__)


@dataclass(slots=True, kw_only=True)
class ListSets:
    """All lists, ready to match; names are those of the configuration."""

    malware_hosts: NetworkSet = field(default_factory=NetworkSet)
    drop_hosts: NetworkSet = field(default_factory=NetworkSet)
    malware_domains: DomainSet = field(default_factory=DomainSet)
    malware_fingerprints: FingerprintSet = field(default_factory=FingerprintSet)
    mining_domains: DomainSet = field(default_factory=DomainSet)
    advertisement_domains: DomainSet = field(default_factory=DomainSet)
    allow_hosts: NetworkSet = field(default_factory=NetworkSet)
    allow_domains: DomainSet = field(default_factory=DomainSet)


Loader = Callable[[Lists], ListSets]


def read_lists(settings: Lists) -> ListSets:
    """Read all sources, of URLs what was last downloaded. Writes nothing. Raises ListError."""
    cache = Cache(settings.cache_directory)
    sets: dict[str, Any] = {n: _read(cache, n, sources) for n, sources in configured(settings).items()}
    return ListSets(**sets)


def load_lists(settings: Lists) -> ListSets:
    """Map the packed lists into memory: a matter of microseconds, however long they are.

    One that is not there, though `prepare` made it, is read from its sources. Raises ListError.
    """
    cache = Cache(settings.cache_directory)
    sets: dict[str, Any] = {}
    for name, sources in configured(settings).items():
        try:
            sets[name] = _open(cache.packed_path(name, sources), name)
        except (OSError, RuntimeError, ValueError) as error:
            _log.warning("list_not_packed", list=name, error=str(error))
            sets[name] = _read(cache, name, sources)
    return ListSets(**sets)


def _read(cache: Cache, name: str, sources: Sequence[SourcePath]) -> NetworkSet | DomainSet | FingerprintSet:
    entries = [entry for source in sources for entry in read_source(cache, name, source).entries]
    return _SETS[FORMS[name]](entries)


def _open(path: Path, name: str) -> NetworkSet | DomainSet | FingerprintSet:
    form = FORMS[name]
    if form == "networks":
        with path.open("rb") as file:
            return NetworkSet.of(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    trie = Trie().mmap(str(path))
    return DomainSet.of(trie) if form == "domains" else FingerprintSet.of(trie)


_SETS: dict[str, Callable[[list[Any]], NetworkSet | DomainSet | FingerprintSet]] = {
    "networks": NetworkSet,
    "domains": DomainSet,
    "fingerprints": FingerprintSet,
}
