"""Telling both ends of a packet that it was rejected."""

from __future__ import annotations

from nedge.core.engine import Engine
from nedge.core.packet import Packet, decode
from nedge.kernel.reject import Injector, rejection


class Rejector:
    """Answers rejected packets of one engine. A `nedge.kernel.queue.Reject`."""

    def __init__(self, engine: Engine, ports: list[int], rate: float) -> None:
        """ports: indexes of the bridge's ports. rate: answers per second, at most. Raises KernelError."""
        self._engine = engine
        self.injector = Injector(ports, rate)

    def __call__(self, data: bytes, mac: bytes, vlan: int, in_port: int, out_port: int) -> None:
        target = self._destination_mac(data, vlan)
        self.injector.send(rejection(data, in_port, out_port, mac, target, vlan))

    def _destination_mac(self, data: bytes, vlan: int) -> bytes:
        """The other end's, as packets from there showed it; empty if none came yet."""
        packet = decode(data, vlan)
        flow = self._engine.table.get(packet.key) if isinstance(packet, Packet) else None
        if flow is None or not isinstance(packet, Packet):
            return b""
        return (flow.server if packet.key == flow.key else flow.client).mac

    def renew(self, rate: float) -> None:
        """So many answers per second from now on."""
        self.injector.rate = rate

    def figures(self) -> dict[str, int]:
        """Counters."""
        injector = self.injector
        return {
            "rejects_sent": injector.sent,
            "rejects_failed": injector.failed,
            "rejects_limited": injector.limited,
        }

    def close(self) -> None:
        self.injector.close()
