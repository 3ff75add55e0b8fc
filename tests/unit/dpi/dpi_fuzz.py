"""Child of test_dpi_library: feeds random packets to a library, whose crash ends this process only."""

from __future__ import annotations

import sys

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nedge.dpi import NdpiClassifier, load_library, samples

PORTS = st.sampled_from([21, 22, 25, 53, 80, 123, 443, 445, 1900, 3478, 5060, 8080, 40000])
STARTS = (b"", b"GET / HTTP/1.1\r\n", b"SSH-2.0-", b"\x16\x03\x01\x02\x00\x01", samples.client_hello()[:60])
PAYLOADS = st.builds(lambda start, rest: start + rest, st.sampled_from(STARTS), st.binary(max_size=600))
ADDRESSES = (samples.CLIENT, samples.SERVER)


@st.composite
def conversations(draw: st.DrawFn) -> list[bytes]:
    kind = draw(st.sampled_from(["tcp", "udp", "raw"]))
    ports = draw(PORTS), draw(PORTS)
    number = draw(st.integers(0, 255))
    packets = []
    for payload in draw(st.lists(PAYLOADS, min_size=1, max_size=12)):
        ends = list(zip(ADDRESSES, ports, strict=True))
        if draw(st.booleans()):
            ends.reverse()
        if kind == "tcp":
            packet = samples.tcp(*ends, payload, seq=draw(st.integers(0, 2**32 - 1)), ack=1)
        elif kind == "udp":
            packet = samples.udp(*ends, payload)
        else:
            packet = samples.ipv4(number, ends[0][0], ends[1][0], payload)
        packets.append(packet[: draw(st.integers(0, len(packet)))] if draw(st.booleans()) else packet)
    return packets


def main(choice: str) -> None:
    classifier = NdpiClassifier(load_library(choice))

    @settings(max_examples=300, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(conversations())
    def feed(packets: list[bytes]) -> None:
        flow = classifier.open()
        for number, packet in enumerate(packets):
            classifier.describe(flow.feed(packet, number))
            flow.more_possible()
            flow.hostname()
        flow.facts()
        classifier.describe(flow.give_up())
        classifier.risk_names(flow.risks())
        flow.facts()
        flow.close()

    feed()
    classifier.close()


if __name__ == "__main__":
    main(sys.argv[1])
