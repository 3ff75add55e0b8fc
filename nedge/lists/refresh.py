"""From sources to packed lists. What is wrong with a source never costs the list that worked before."""

from __future__ import annotations

import hashlib
import math
import time
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import structlog

from nedge.config import Lists
from nedge.core.lists import DomainSet, FingerprintSet, NetworkSet, pack_networks
from nedge.errors import ConfigError
from nedge.lists.cache import Cache, Download, Packed, SourcePath
from nedge.lists.fetch import FetchError, fetch, redacted
from nedge.lists.parse import ALLOWED, FORMS, Form, Parsed, parse

VERSION = 1
"""Of the packed form."""
MAX_WRONG = 0.1
"""A download of which a larger part is no entry is no list."""
FIRST_RETRY = 600.0
"""Seconds after which a server that failed is asked again; twice as long after each further failure."""

_log = structlog.get_logger(__name__)


class ListError(ConfigError):
    """A list cannot be used as it is. The message has a line per problem."""


def configured(settings: Lists) -> dict[str, list[SourcePath]]:
    """The lists that have sources."""
    return {name: list(sources) for name in FORMS if (sources := getattr(settings, name))}


class CacheError(ListError):
    """The directory of packed lists cannot be read or written."""


def refresh(
    settings: Lists, names: Sequence[str] = (), *, due_only: bool = True, accept_shrunken: bool = False
) -> list[str]:
    """Ask all sources for news and pack what has changed. Gives the names of the lists that have.

    A source that cannot be used is logged and counted; its list stays as it was. Raises ListError for a cache
    that cannot be used.
    """
    try:
        return _refresh(settings, names, due_only=due_only, accept_shrunken=accept_shrunken)
    except OSError as error:
        raise unusable(settings, error) from None


def _refresh(settings: Lists, names: Sequence[str], *, due_only: bool, accept_shrunken: bool) -> list[str]:
    cache = Cache(settings.cache_directory)
    changed = []
    with cache.asking():
        for name, sources in configured(settings).items():
            if names and name not in names:
                continue
            fresh: dict[SourcePath, Parsed] = {}
            for url in sources:
                if isinstance(url, str) and not (
                    due_only and next_asked(cache, name, url, settings) > time.time()
                ):
                    parsed = _download(cache, name, url, settings, accept_shrunken=accept_shrunken)
                    if parsed:
                        fresh[url] = parsed
            with cache.locked():
                try:
                    if _pack(cache, name, sources, fresh):
                        changed.append(name)
                except ListError as error:
                    state = cache.packed(name, sources)
                    state.failures, state.error, state.looked = state.failures + 1, str(error), time.time()
                    cache.keep_packed(name, sources, state, None)
                    _log.error("list_refresh_failed", list=name, error=str(error), kept=state.total)
        with cache.locked():
            cache.sweep()
    return changed


def prepare(settings: Lists) -> None:
    """Pack the lists from files, and from what was downloaded before, where that was not done yet.

    Raises ListError for files that cannot be used, or a cache that cannot.
    """
    cache = Cache(settings.cache_directory)
    problems = []
    try:
        with cache.locked():
            for name, sources in configured(settings).items():
                try:
                    _pack(cache, name, sources, {})
                except ListError as error:
                    problems.append(str(error))
    except OSError as error:
        raise unusable(settings, error) from None
    if problems:
        raise ListError("\n".join(problems))


def is_prepared(settings: Lists) -> bool:
    """Whether `prepare` has nothing to do."""
    cache = Cache(settings.cache_directory)
    try:
        return all(_is_packed(cache, name, sources) for name, sources in configured(settings).items())
    except ListError:
        return False


def unusable(settings: Lists, error: OSError) -> CacheError:
    """What to say where the cache cannot be read or written."""
    return CacheError(f"lists.cache_directory: {settings.cache_directory}: cannot be used: {error.strerror}")


def next_asked(cache: Cache, name: str, url: str, settings: Lists) -> float:
    """When a URL is due to be asked for news, in epoch seconds.

    One that was asked in the future, as the machine's clock was wrong then, is due.
    """
    if not settings.refresh_hours:
        return math.inf
    state = cache.download(name, url)
    wait = settings.refresh_hours * 3600
    if state.failed:
        wait = min(wait, FIRST_RETRY * 2.0 ** min(state.failed - 1, 16))
    return state.asked + wait if state.asked <= time.time() else 0.0


def next_refresh(settings: Lists) -> float:
    """When `refresh` has something to do, in epoch seconds; infinite if never."""
    cache = Cache(settings.cache_directory)
    times = [math.inf]
    for name, sources in configured(settings).items():
        for source in sources:
            if isinstance(source, str):
                times.append(next_asked(cache, name, source, settings))
            elif settings.refresh_hours:
                looked = cache.packed(name, sources).looked
                times.append(looked + settings.refresh_hours * 3600 if looked <= time.time() else 0.0)
    return min(times)


def read_source(cache: Cache, name: str, source: SourcePath) -> Parsed:
    """A source's entries: of a file as it is now, of a URL as last downloaded. Raises ListError."""
    form = FORMS[name]
    downloaded = isinstance(source, str)
    path = cache.text_path(name, source) if isinstance(source, str) else source
    if downloaded and not path.exists():
        return Parsed()
    try:
        text = _decoded(path.read_bytes())
    except OSError as error:
        raise ListError(f"list {redacted(source)}: cannot be read: {error.strerror}") from None
    parsed = parse(form, text, downloaded=downloaded)
    if parsed.wrong and not downloaded:
        number, line = parsed.wrong[0]
        raise ListError(f"list {path}:{number}: found {line!r}; allowed is {ALLOWED[form]}")
    return parsed


def _decoded(content: bytes) -> str:
    return content.decode("utf-8-sig", errors="replace")


# Downloads


def _download(cache: Cache, name: str, url: str, settings: Lists, *, accept_shrunken: bool) -> Parsed | None:
    """What a URL has, if it is new."""
    state = cache.download(name, url)
    state.asked = time.time()
    kept = cache.text_path(name, url).exists()
    if not kept:
        state.digest = ""
    known = (state.etag, state.last_modified) if kept else ("", "")
    parsed = body = None
    try:
        body, etag, last_modified = fetch(
            url, limit=settings.max_megabytes * 1_000_000, etag=known[0], last_modified=known[1]
        )
        digest = hashlib.sha256(body).hexdigest() if body is not None else state.digest
        if body is not None and digest != state.digest:
            parsed = parse(FORMS[name], _decoded(body), downloaded=True)
            _check(parsed, body, FORMS[name])
            if kept and not accept_shrunken:
                _check_size(parsed, state, settings.min_fraction)
    except FetchError as error:
        state.failures, state.failed, state.error = state.failures + 1, state.failed + 1, str(error)
        cache.keep_download(name, state, None)
        _log.error(
            "list_refresh_failed",
            list=name,
            source=redacted(url),
            error=str(error),
            kept=state.entries if kept else 0,
            failures=state.failures,
        )
        return None
    state.failed, state.error = 0, ""
    if body is not None:
        state.etag, state.last_modified = etag, last_modified
    if parsed:
        state.digest, state.entries, state.taken = digest, len(parsed.entries), state.asked
        _log.info(
            "list_downloaded",
            list=name,
            source=redacted(url),
            entries=state.entries,
            wrong=parsed.wrong_count,
        )
    cache.keep_download(name, state, body if parsed else None)
    return parsed


def _check(parsed: Parsed, body: bytes, form: Form) -> None:
    """Whether it is a list at all: not an error page, nothing cut off at its head. Raises FetchError."""
    if not body.strip():
        raise FetchError("it is empty")
    if parsed.wrong_count > MAX_WRONG * (len(parsed.entries) + parsed.wrong_count):
        number, line = parsed.wrong[0]
        raise FetchError(
            f"{parsed.wrong_count} lines are no entries, such as line {number}: found {line!r}; "
            f"allowed is {ALLOWED[form]}"
        )


def _check_size(parsed: Parsed, state: Download, fraction: float) -> None:
    """Whether it has not lost too much. Raises FetchError."""
    if len(parsed.entries) < fraction * state.entries:
        raise FetchError(
            f"it has {len(parsed.entries)} entries, and had {state.entries}: "
            f"less than lists.min_fraction ({fraction:g}) are left"
        )


# Packing


def _inputs(cache: Cache, name: str, sources: Sequence[SourcePath]) -> list[list[Any]]:
    """What tells this version of the sources from others. Raises ListError."""
    inputs: list[list[Any]] = [[VERSION]]
    for source in sources:
        if isinstance(source, Path):
            try:
                status = source.stat()
            except OSError as error:
                raise ListError(f"list {source}: cannot be read: {error.strerror}") from None
            inputs.append([str(source), status.st_size, status.st_mtime_ns, status.st_ino])
        else:
            inputs.append([source, cache.download(name, source).digest])
    return inputs


def _is_packed(cache: Cache, name: str, sources: Sequence[SourcePath]) -> bool:
    """Whether the packed form is there, whole, and of these very sources. Raises ListError."""
    state = cache.packed(name, sources)
    if state.inputs != _inputs(cache, name, sources):
        return False
    try:
        return zlib.crc32(cache.packed_path(name, sources).read_bytes()) == state.crc
    except OSError:
        return False


def _pack(cache: Cache, name: str, sources: Sequence[SourcePath], fresh: dict[SourcePath, Parsed]) -> bool:
    """Pack a list, if its sources have changed; whether they have. Raises ListError.

    fresh: what has been read of them just now.
    """
    state = cache.packed(name, sources)
    looked = time.time()
    if _is_packed(cache, name, sources):
        state.looked, state.error = looked, ""
        cache.keep_packed(name, sources, state, None)
        return False
    started = time.perf_counter()
    inputs = _inputs(cache, name, sources)
    parsed = [fresh.get(source) or read_source(cache, name, source) for source in sources]
    data, total = _packed(FORMS[name], [entry for one in parsed for entry in one.entries])
    made = Packed(
        inputs=inputs,
        entries=[len(one.entries) for one in parsed],
        wrong=[one.wrong_count for one in parsed],
        total=total,
        crc=zlib.crc32(data),
        made=looked,
        looked=looked,
        failures=state.failures,
    )
    cache.keep_packed(name, sources, made, data)
    _log.info("list_packed", list=name, entries=total, seconds=round(time.perf_counter() - started, 2))
    return True


def _packed(form: Form, entries: list[Any]) -> tuple[bytes, int]:
    """The packed form of entries, and how many different ones there are."""
    if form == "networks":
        data = pack_networks(entries)
        return data, len(NetworkSet.of(data))
    made = DomainSet(entries) if form == "domains" else FingerprintSet(entries)
    return made.trie.tobytes(), len(made)
