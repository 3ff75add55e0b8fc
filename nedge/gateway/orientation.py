"""Are LAN and WAN where the configuration says? The traffic tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from nedge.core.hosts import ip_text

ENOUGH = 50
"""Packets with one local end, after which the answer is given."""
_SURE = 0.9

log = structlog.get_logger()


class Orientation:
    """Counts by which ports packets of local hosts come, until there were enough of them."""

    def __init__(self, lan_ports: Iterable[int], is_local: Callable[[str], bool]) -> None:
        """lan_ports: interface indexes."""
        self._lan = frozenset(lan_ports)
        self._is_local = is_local
        self._right = self._wrong = 0
        self.swapped = False

    @property
    def done(self) -> bool:
        return self._right + self._wrong >= ENOUGH

    def see(self, data: bytes, in_port: int) -> None:
        """Take a packet from its IP header on, and the index of the port it came by."""
        if len(data) < 40 or self.done:
            return
        v4 = data[0] >> 4 == 4
        source, target = (data[12:16], data[16:20]) if v4 else (data[8:24], data[24:40])
        from_local = self._is_local(ip_text(source))
        if from_local is self._is_local(ip_text(target)):
            return
        if (in_port in self._lan) is from_local:
            self._right += 1
        else:
            self._wrong += 1
        if self.done and self._wrong >= _SURE * ENOUGH:
            self.swapped = True
            log.warning(
                "lan_wan_swapped",
                reason="hosts of network.local send from gateway.wan: swap gateway.lan and gateway.wan, or "
                "say in network.local which networks are yours",
            )
