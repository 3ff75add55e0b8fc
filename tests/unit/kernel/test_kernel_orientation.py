"""Whether the traffic shows LAN and WAN swapped."""

from __future__ import annotations

import pytest

from nedge.core.hosts import Directory, ip_bytes
from nedge.gateway.orientation import ENOUGH, Orientation

LAN, WAN = 3, 4
LOCAL, REMOTE = ("10.0.0.1", "fd00::1"), ("192.0.2.1", "2001:db8::1")


def packet(source: str, target: str) -> bytes:
    if ":" in source:
        return b"\x60" + bytes(7) + ip_bytes(source) + ip_bytes(target)
    return b"\x45" + bytes(11) + ip_bytes(source) + ip_bytes(target) + bytes(20)


def orientation() -> Orientation:
    return Orientation([LAN], Directory(local_networks=["10.0.0.0/8", "fd00::/8"]).is_local)


@pytest.mark.parametrize("family", [0, 1])
@pytest.mark.parametrize(("lan", "swapped"), [(LAN, False), (WAN, True)])
def test_both_directions_tell(family: int, lan: int, swapped: bool) -> None:
    seen = orientation()
    local, remote = LOCAL[family], REMOTE[family]
    for _ in range(ENOUGH // 2):
        assert not seen.done
        seen.see(packet(local, remote), lan)
        seen.see(packet(remote, local), LAN + WAN - lan)
    assert (seen.done, seen.swapped) == (True, swapped)


def test_what_tells_nothing() -> None:
    seen = orientation()
    for data in (packet(LOCAL[0], "10.0.0.2"), packet(REMOTE[0], "192.0.2.2"), b"\x45", b""):
        for _ in range(ENOUGH):
            seen.see(data, WAN)
    assert not seen.done


def test_a_few_strays_are_no_swap() -> None:
    seen = orientation()
    for number in range(ENOUGH):
        seen.see(packet(LOCAL[0], REMOTE[0]), WAN if number % 2 else LAN)
    assert (seen.done, seen.swapped) == (True, False)
