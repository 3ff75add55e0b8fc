"""What is on disk: downloads with what is known of them, and lists packed for matching.

    downloads/<list>-<hash of URL>.text, .json         the last good one
    packed/<list>-<hash of sources>.data, .json        what workers map into memory

Files are replaced whole, by renaming: who has one open keeps what it has.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson

UNUSED_SECONDS = 60 * 86400
"""Files that were not renewed for so long belong to a configuration that is no more."""

SourcePath = Path | str


@dataclass(slots=True)
class Download:
    """What is known of a URL. Times are epoch seconds."""

    url: str = ""
    etag: str = ""
    last_modified: str = ""
    digest: str = ""
    """SHA-256 of the last good one."""
    entries: int = 0
    """Of the last good one."""
    taken: float = 0.0
    """When the last good one came; 0: there is none."""
    asked: float = 0.0
    """When the server was last asked."""
    failures: int = 0
    """In all."""
    failed: int = 0
    """Since the last time that it went well."""
    error: str = ""
    """Why it failed last; empty if it went well since."""


@dataclass(slots=True)
class Packed:
    """What a packed list was made of."""

    inputs: list[list[Any]] = field(default_factory=list)
    """For each source what tells this version of it from others."""
    entries: list[int] = field(default_factory=list)
    """For each source."""
    wrong: list[int] = field(default_factory=list)
    """For each source: lines that are no entries."""
    total: int = 0
    """Different entries."""
    crc: int = 0
    """CRC-32 of the packed form."""
    made: float = 0.0
    looked: float = 0.0
    """When its sources were last looked at."""
    failures: int = 0
    error: str = ""
    """Why the sources, as they are now, cannot be used."""


class Cache:
    """One cache directory. All methods raise OSError where it cannot be read or written."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._downloads = directory / "downloads"
        self._packed = directory / "packed"

    def locked(self) -> AbstractContextManager[None]:
        """Keep others from packing meanwhile. Reloads wait for this: who has it waits for nobody."""
        return self._alone("lock")

    def asking(self) -> AbstractContextManager[None]:
        """Be the only one who asks servers, which may take minutes."""
        return self._alone("asking")

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Make the directory, and hold a lock in it."""
        for directory in (self.directory, self._downloads, self._packed):
            directory.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.directory / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    # Downloads

    def text_path(self, name: str, url: str) -> Path:
        """Where the last good download of a list's URL is."""
        return self._downloads / f"{name}-{_hash(url)}.text"

    def download(self, name: str, url: str) -> Download:
        """What is known of a list's URL."""
        state: Download = _read(Download(url=url), self.text_path(name, url).with_suffix(".json"))
        return state

    def keep_download(self, name: str, state: Download, body: bytes | None) -> None:
        """Keep what is known of a URL, and the text if there is a new one."""
        path = self.text_path(name, state.url)
        if body is not None:
            _replace(path, body)
        _replace(path.with_suffix(".json"), orjson.dumps(asdict(state)))

    # Packed lists

    def packed_path(self, name: str, sources: Sequence[SourcePath]) -> Path:
        """Where the packed form of a list with these sources is."""
        return self._packed / f"{name}-{_hash(*map(str, sources))}.data"

    def packed(self, name: str, sources: Sequence[SourcePath]) -> Packed:
        """What is known of the packed form of a list with these sources."""
        state: Packed = _read(Packed(), self.packed_path(name, sources).with_suffix(".json"))
        return state

    def keep_packed(
        self, name: str, sources: Sequence[SourcePath], state: Packed, data: bytes | None
    ) -> None:
        """Keep what is known of a list, and its packed form if there is a new one."""
        path = self.packed_path(name, sources)
        if data is not None:
            _replace(path, data)
        _replace(path.with_suffix(".json"), orjson.dumps(asdict(state)))

    def sweep(self) -> None:
        """Remove what no configuration has used for long."""
        limit = time.time() - UNUSED_SECONDS
        for state in [*self._downloads.glob("*.json"), *self._packed.glob("*.json")]:
            if state.stat().st_mtime < limit:
                for path in list(state.parent.glob(f"{state.stem}.*")):
                    path.unlink(missing_ok=True)


def _hash(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]


def _read(state: Any, path: Path) -> Any:
    """The state with what a file says of it; as it is, if there is no file, or one that is damaged."""
    with suppress(OSError, ValueError):
        known = orjson.loads(path.read_bytes())
        for name in state.__slots__ if isinstance(known, dict) else ():
            kind = type(getattr(state, name))
            if isinstance(known.get(name), (float, int) if kind is float else kind):
                setattr(state, name, known[name])
    return state


def _replace(path: Path, content: bytes) -> None:
    """Write a file so that at any time there is the old one or the new one, also after a power cut."""
    temporary = path.with_suffix(f"{path.suffix}.new")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
