"""Where nDPI keeps what it has no function for: found in a flow's memory, so that no build needs a table.

Known conversations are fed to a fresh module; then their memory is searched for the values they must give.
"""

from __future__ import annotations

import ctypes
import json
import struct

from nedge.dpi import samples
from nedge.dpi.flow import NdpiFlow, open_flow
from nedge.dpi.library import DpiError
from nedge.dpi.module import Module


def locate(module: Module) -> None:
    """Set the module's `risk_at` (64-bit risk bitmap) and `dates_at` (certificate's two 32-bit times)."""
    # Two bitmaps that differ: a field that happens to hold one of them does not hold the other.
    risk_at = _risk_offsets(module, 8080) & _risk_offsets(module, 80)
    if len(risk_at) != 1:
        raise DpiError(f"{module.library} keeps its risks where they cannot be found.")
    module.risk_at = risk_at.pop()

    flow = _fed(module, samples.tls_certificate())
    dates = struct.pack("=II", samples.CERT_NOT_BEFORE, samples.CERT_NOT_AFTER)
    dates_at = _offsets(module, flow, dates)
    flow.close()
    # Without them, certificates have no dates; the self-test says so.
    module.dates_at = min(dates_at, default=0)


def _risk_offsets(module: Module, port: int) -> set[int]:
    flow = _fed(module, samples.http_request(port))
    try:
        risks = json.loads(flow.json())["ndpi"]["flow_risk"]
        bitmap = sum(1 << int(bit) for bit in risks)
    except (ValueError, KeyError, TypeError):
        return set()
    else:
        return _offsets(module, flow, struct.pack("=Q", bitmap))
    finally:
        flow.close()


def _fed(module: Module, packets: list[bytes]) -> NdpiFlow:
    flow = open_flow(module)
    for packet in packets:
        flow.feed(packet, 0)
    return flow


def _offsets(module: Module, flow: NdpiFlow, value: bytes) -> set[int]:
    memory = ctypes.string_at(flow.address, module.flow_size)
    return {at for at in range(0, module.flow_size, len(value)) if memory.startswith(value, at)}
