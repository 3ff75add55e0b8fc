"""What the lists have, how old it is, and what is wrong with it."""

from __future__ import annotations

from typing import Any

from nedge.config import Lists
from nedge.lists.cache import Cache
from nedge.lists.fetch import redacted
from nedge.lists.refresh import configured


def list_status(settings: Lists) -> list[dict[str, Any]]:
    """A row for each source of each list. Times are epoch seconds, 0 = never."""
    cache = Cache(settings.cache_directory)
    rows = []
    for name, sources in configured(settings).items():
        packed = cache.packed(name, sources)
        of_source = {entry[0]: n for n, entry in enumerate(packed.inputs[1:])}
        for source in sources:
            at = of_source.get(str(source))
            row = {
                "list": name,
                "source": redacted(source),
                "entries": packed.entries[at] if at is not None else 0,
                "wrong_lines": packed.wrong[at] if at is not None else 0,
            }
            if isinstance(source, str):
                known = cache.download(name, source)
                row |= {"taken": known.taken, "asked": known.asked, "failures": known.failures}
                row["error"] = known.error
            else:
                row |= {"taken": packed.made, "asked": packed.looked, "failures": packed.failures}
                row["error"] = packed.error
            rows.append(row)
    return rows
