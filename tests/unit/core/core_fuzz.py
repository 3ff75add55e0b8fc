"""Child of test_engine: random and mutated traffic through an engine with the real libndpi.

nDPI is C: if it crashes, it ends this process only. Prints the number of packets that were judged.
"""

from __future__ import annotations

import sys

from core_kit import T0
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from test_engine import check_counts, traffic

from nedge.core.engine import Engine
from nedge.core.inspection import Inspector
from nedge.dpi import NdpiClassifier, load_library


def main(choice: str) -> None:
    classifier = NdpiClassifier(load_library(choice))
    judged = 0

    @seed(1)
    @settings(max_examples=250, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(traffic(), st.integers(0, 4094))
    def feed(packets: list[tuple[bytes, float]], vlan: int) -> None:
        nonlocal judged
        events: list[object] = []
        engine = Engine(Inspector(classifier), sink=events.append)
        for data, at in packets:
            engine.packet(data, T0 + at, vlan)
        engine.finish(T0 + 1000)
        check_counts(engine, [data for data, _ in packets], events)
        assert engine.counters.dpi_errors == 0
        judged += len(packets)

    feed()
    classifier.close()
    print(judged)


if __name__ == "__main__":
    main(sys.argv[1])
