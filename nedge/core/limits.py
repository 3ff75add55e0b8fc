"""The engine's bounds and counters."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from nedge.core.packet import Malformed
from nedge.core.verdict import Action


@dataclass(kw_only=True)
class Limits:
    """Bounds on what the engine holds and waits for. Seconds are without any packet of the flow."""

    max_flows: int = 1_000_000
    detection_seconds: float = 5.0
    closed_seconds: float = 15.0
    """A flow that saw a FIN or RST, or never completed its handshake."""
    idle_seconds: float = 60.0
    quarantine_seconds: float = 300.0
    table_full: Action = Action.PASS
    """What happens to packets of new flows when the table is full."""
    malformed: Action = Action.PASS
    fragment: Action = Action.PASS
    """Non-first fragments; on a bridge the kernel reassembles before we see them."""


@dataclass
class Counters:
    """What the engine did. All only grow."""

    packets: int = 0
    bytes: int = 0
    flows: int = 0
    dropped_packets: int = 0
    fragments: int = 0
    table_full: int = 0
    dpi_errors: int = 0
    script_errors: int = 0
    script_timeouts: int = 0
    scripts_aside: int = 0
    midstream: int = 0
    unclassified: int = 0
    bad_checksums: int = 0
    """Dropped, unseen: nobody takes them."""
    syn_data: int = 0
    """SYNs whose data were taken out."""
    other_copies: int = 0
    """Segments in which a client sent something else than before at the same place: made what they were."""
    early_data: int = 0
    """Segments without a place in a stream that started: their data were taken out, or they were dropped."""
    urgent_data: int = 0
    """Segments with urgent data, which were made usual ones."""
    alerts: int = 0
    quarantines: int = 0
    malformed: Counter[Malformed] = field(default_factory=Counter)
