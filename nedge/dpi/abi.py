"""What differs between nDPI's releases, as a table: how results come back and which arguments calls take.

What the releases agree on is in `module.py`; where things are inside a flow's memory is found by `probe.py`.
The tests run 4.2 and 5.0. What other rows say was found on those releases' libraries, except for rows marked
"untried", which follow their neighbours: the self-test at start decides whether they hold.
"""

from __future__ import annotations

import ctypes
import functools
import re
from dataclasses import dataclass
from enum import Enum


class GiveUp(Enum):
    """Arguments of `ndpi_detection_giveup` after module and flow."""

    GUESS = "u8 enable_guess, u8 *was_guessed"
    GUESSED = "u8 *was_guessed"
    PLAIN = ""


@dataclass(frozen=True, slots=True)
class Abi:
    """One release's calling conventions."""

    release: tuple[int, int]
    result_size: int
    """sizeof(ndpi_protocol). Up to 16 bytes it comes back in registers, above in memory (SysV, AAPCS64)."""
    category_at: int
    """Offset of the category in ndpi_protocol; the two ids always lead."""
    state_at: int | None
    """Offset of the classification state in ndpi_protocol; None: ask ndpi_extra_dissection_possible."""
    giveup: GiveUp
    bitmask: bool
    """Whether protocols must be switched on with ndpi_set_protocol_detection_bitmask2."""
    finalize_status: bool
    """Whether ndpi_finalize_initialization returns a status (0 = fine) rather than nothing."""
    breed_name_module: bool
    """Whether ndpi_get_proto_breed_name wants the module before the breed."""

    @property
    def in_registers(self) -> bool:
        """Whether the first 8 bytes of a result are simply the call's integer result."""
        return self.result_size <= 16


_GUESS, _GUESSED, _PLAIN = GiveUp.GUESS, GiveUp.GUESSED, GiveUp.PLAIN
_ABIS = (
    #   release  result category state give up  bitmask finalize breed
    Abi((4, 2), 8, 4, None, _GUESS, True, False, True),
    Abi((4, 4), 16, 4, None, _GUESS, True, False, True),
    Abi((4, 5), 24, 8, None, _GUESS, True, False, True),
    Abi((4, 6), 24, 8, None, _GUESS, True, False, True),
    Abi((4, 7), 24, 8, None, _GUESS, True, False, True),
    Abi((4, 8), 24, 8, None, _GUESS, True, False, True),
    Abi((4, 10), 24, 8, None, _GUESSED, True, True, False),
    Abi((4, 11), 24, 8, None, _GUESSED, True, True, False),
    Abi((4, 12), 24, 8, None, _GUESSED, True, True, False),  # untried
    Abi((4, 14), 24, 8, None, _GUESSED, True, True, False),  # untried
    Abi((5, 0), 56, 24, 48, _PLAIN, False, True, False),
)
_BY_RELEASE = {abi.release: abi for abi in _ABIS}

SUPPORTED = "4.2, 4.4 to 4.8, 4.10 to 4.14 and 5.0"
"""The table's releases, for people."""

STATE_CLASSIFIED = 3
"""ndpi_classification_state of 5.0: 0 inspecting, 1 partial, 2 monitoring, 3 classified (ndpi_typedefs.h)."""

PROTOCOL_BITMASK_SIZE = 64
"""sizeof(NDPI_PROTOCOL_BITMASK): 512 protocols, one bit each (ndpi_define.h)."""

SERIALIZER_SIZE = 256
"""Room for an ndpi_serializer, which is opaque and 72 bytes in every release."""

FORMAT_JSON = 2
"""ndpi_serialization_format_json (ndpi_typedefs.h)."""


def abi_of(revision: str) -> Abi | None:
    """The row for what `ndpi_revision()` said (`4.2.0`, `5.0.0-1-375f99e`); None if not supported."""
    found = re.match(r"(\d+)\.(\d+)", revision)
    return _BY_RELEASE.get((int(found[1]), int(found[2]))) if found else None


class Result(ctypes.Structure):
    """An `ndpi_protocol`, whose layout depends on the release: see `result_type`."""

    ids: int
    """Master id, and application id << 16."""
    category: int
    state: int


@functools.cache
def result_type(abi: Abi) -> type[Result]:
    """The structure class for a release's `ndpi_protocol`. All words, as small ones go in registers."""
    names = {0: "ids", abi.category_at: "category", abi.state_at: "state"}
    fields = [(names.get(at, f"_{at}"), ctypes.c_uint32) for at in range(0, abi.result_size, 4)]
    return type("NdpiProtocol", (Result,), {"_fields_": fields})
