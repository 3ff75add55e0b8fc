"""When lists are refreshed in a running gateway, and whether those in use are the latest.

Somebody else may refresh them as well (`nedge lists refresh`): what counts is what is in the cache.
"""

from __future__ import annotations

import contextlib
import subprocess
import time

import structlog

from nedge.config import Config
from nedge.lists import job
from nedge.lists.cache import Cache
from nedge.lists.refresh import configured, next_refresh

STEP = 1.0
"""Seconds between two looks."""
PAUSE = 60.0
"""Seconds at least between two jobs."""
LONGEST = 1800.0
"""Seconds after which a job is ended."""

_log = structlog.get_logger(__name__)


class Refresher:
    """Refreshes lists as they are due, in another process, one at a time. `tick` never waits."""

    def __init__(self, config: Config) -> None:
        self._job: subprocess.Popen[bytes] | None = None
        self._started = -PAUSE
        self.failures = 0
        """Jobs that ended otherwise than they should."""
        self.renew(config)

    def renew(self, config: Config) -> None:
        """Look after these lists from now on, as they are packed now."""
        self._config = config
        self._due = self._next()
        self._in_use = self._packed_now()
        self._is_changed = False

    def figures(self) -> dict[str, int]:
        """Counters."""
        return {"list_job_failures": self.failures}

    def changed(self) -> bool:
        """Whether there are newer lists than those in use."""
        return self._is_changed

    def tick(self) -> None:
        """Do what is due; to be called every STEP."""
        now = time.monotonic()
        if self._job is not None:
            self._look_after(self._job, now)
        elif now >= max(self._due, self._started + PAUSE):
            self._due = self._next()  # somebody else may have refreshed them
            if now >= self._due:
                self._start(now)
        self._is_changed = self._packed_now() != self._in_use

    def _start(self, now: float) -> None:
        self._started = now
        try:
            self._job = job.start("refresh", self._config)
        except OSError as error:
            self._failed(str(error))

    def _look_after(self, process: subprocess.Popen[bytes], now: float) -> None:
        if process.poll() is None:
            if now > self._started + LONGEST:
                process.kill()
            return
        self._job = None
        self._due = self._next()
        output, _ = process.communicate()
        if error := job.outcome(output, process.returncode):
            self._failed(error)

    def _failed(self, why: str) -> None:
        self.failures += 1
        _log.error("list_refresh_failed", error=why, failures=self.failures)

    def _next(self) -> float:
        """When there is something to do, by the monotonic clock: the machine's may be set meanwhile."""
        return time.monotonic() + next_refresh(self._config.lists) - time.time()

    def _packed_now(self) -> list[tuple[int, int]]:
        """What tells the packed lists from later ones."""
        settings = self._config.lists
        cache = Cache(settings.cache_directory)
        found = []
        for name, sources in configured(settings).items():
            with contextlib.suppress(OSError):
                status = cache.packed_path(name, sources).stat()
                found.append((status.st_ino, status.st_mtime_ns))
        return found

    def close(self) -> None:
        """End a job that is running: what it has not finished, it leaves as it was."""
        if self._job is not None:
            self._job.kill()
            self._job.communicate()
            self._job = None
