"""Where nDPI keeps what it has no function for: found in a flow's memory, so that no build needs a table.

Known conversations are fed to a fresh module; then their memory is searched for the values they must give.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
from contextlib import suppress

from nedge.dpi import samples
from nedge.dpi.flow import NdpiFlow, open_flow
from nedge.dpi.library import DpiError
from nedge.dpi.module import HttpPlaces, Module


def locate(module: Module) -> None:
    """Set the module's `risk_at` (64 bits), `dates_at` (a certificate's, 2 × 32 bits) and `http_at`.

    Without the latter two the flow's JSON is all there is: certificates then have no dates, which the
    self-test tells, and answers of HTTP take longer to read.
    """
    # Two bitmaps that differ: a field that happens to hold one of them does not hold the other.
    risk_at = _risk_offsets(module, 8080) & _risk_offsets(module, 80)
    if len(risk_at) != 1:
        raise DpiError(f"{module.library} keeps its risks where they cannot be found.")
    module.risk_at = risk_at.pop()

    flow = _fed(module, samples.tls_certificate())
    dates = struct.pack("=II", samples.CERT_NOT_BEFORE, samples.CERT_NOT_AFTER)
    dates_at = _offsets(module, flow, dates)
    flow.close()
    module.dates_at = min(dates_at, default=0)
    module.http_at = _http_places(module)


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


def _http_places(module: Module) -> HttpPlaces | None:
    """Where the latest HTTP response is described; None if that is not certain."""
    codes, urls, types = [], [], []
    for code, kind in ((418, "application/json"), (507, "text/html")):
        flow = _fed(module, samples.http_exchange(code, kind))
        codes.append(_offsets(module, flow, struct.pack("=H", code)))
        urls.append(_pointers(module, flow, samples.HTTP_URL))
        kinds = _pointers(module, flow, kind)
        flow.close()
        # Releases before 5.0 note the content type only if they see the response first.
        flow = _fed(module, samples.http_exchange(code, kind, response_first=True))
        types.append(kinds | _pointers(module, flow, kind))
        flow.close()
    found = [first & second for first, second in (codes, urls, types)]
    if any(len(offsets) != 1 for offsets in found):
        return None
    return HttpPlaces(*(offsets.pop() for offsets in found))


def _fed(module: Module, packets: list[bytes]) -> NdpiFlow:
    flow = open_flow(module)
    for packet in packets:
        flow.feed(packet, 0)
    return flow


def _offsets(module: Module, flow: NdpiFlow, value: bytes) -> set[int]:
    memory = ctypes.string_at(flow.address, module.flow_size)
    return {at for at in range(0, module.flow_size, len(value)) if memory.startswith(value, at)}


def _pointers(module: Module, flow: NdpiFlow, text: str) -> set[int]:
    """Where pointers to a text are. What looks like one may be none: the kernel follows it, not we."""
    value = text.encode() + b"\0"
    memory = ctypes.string_at(flow.address, module.flow_size)
    found = set()
    with open("/proc/self/mem", "rb", buffering=0) as own:
        for at in range(0, module.flow_size - 7, 8):
            (address,) = struct.unpack_from("=Q", memory, at)
            with suppress(OSError, OverflowError):
                if os.pread(own.fileno(), len(value), address) == value:
                    found.add(at)
    return found
