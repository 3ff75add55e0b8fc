"""One nDPI detection module: its C functions, bound once, and the memory handed to them."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any, Final, NamedTuple, NoReturn

from nedge.core.facts import Facts
from nedge.dpi.abi import FORMAT_JSON, PROTOCOL_BITMASK_SIZE, SERIALIZER_SIZE, GiveUp, result_type
from nedge.dpi.library import DpiError, Library

_ALIGNMENT: Final = 16  # what malloc gives, and nDPI expects
_SPARE_BUFFERS: Final = 512  # cleared buffers kept for new flows: 0.6 MB at most
_SERIALIZER_START = 4096  # bytes; it grows when needed


class Buffer:
    """Zeroed memory for one ndpi_flow_struct."""

    __slots__ = ("_memory", "_risks", "address", "pointer")

    def __init__(self, size: int) -> None:
        self._memory: Any = ctypes.create_string_buffer(size + _ALIGNMENT)
        self.address = -(-ctypes.addressof(self._memory) // _ALIGNMENT) * _ALIGNMENT
        self.pointer = c_void_p(self.address)
        self._risks: Any = None

    def risks(self, at: int) -> int:
        """The risk bitmap, which is at this offset."""
        if self._risks is None:
            self._risks = c_uint64.from_address(self.address + at)
        bitmap: int = self._risks.value
        return bitmap

    def clear(self, zeros: bytes) -> None:
        """Zero it all. `zeros`: as many as there are bytes; see `Module`."""
        self._memory.raw = zeros


class HttpPlaces(NamedTuple):
    """Offsets in a flow's memory."""

    code: int
    """16 bits."""
    url: int
    """Pointers to text; NULL if there was none."""
    content_type: int


class Module:
    """An initialized detection module. Its public attributes are for `flow.py`, where every call counts."""

    def __init__(self, library: Library) -> None:
        self.library = library
        self._bind(library)
        self.in_registers = library.abi.in_registers
        self._zeros = bytes(self.flow_size + _ALIGNMENT)
        self.risk_at = self.dates_at = 0  # set by probe.py, and these
        self.http_at: HttpPlaces | None = None
        self.tls_id, self.tls_like = 0, frozenset[int]()
        """Protocol ids: of TLS, and of what is TLS inside (mail ports, mostly)."""
        self.http_ids = frozenset[int]()
        """Of HTTP, proxied HTTP included."""
        self.now_ms = 0
        self.clock = c_uint64(0)
        self._spare: list[Buffer] = []
        self._serializer = ctypes.create_string_buffer(SERIALIZER_SIZE)
        self._json_length = c_uint32()
        self.json_errors = 0
        self.known_facts: dict[tuple[bytes, str, tuple[int, ...]], Facts] = {}
        """What was read before: by nDPI's text, the host name, and the certificate's dates."""
        self.closed = False
        self.handle = self._start(library)

    def _bind(self, library: Library) -> None:
        abi = library.abi
        protocol = result_type(abi)
        result: Any = c_uint64 if abi.in_registers else protocol

        # Without argtypes ctypes passes bytes, ints that fit a C int and its own objects straight on, at half
        # the price of a call. So those are all we pass; a larger int goes in a c_uint64.
        self.process: Any = library.handle["ndpi_detection_process_packet"]
        self.process.restype = result
        self.flow_name: Any = library.handle["ndpi_get_flow_name"]
        self.flow_name.restype = c_char_p
        self._free_flow_data: Any = library.handle["ndpi_free_flow_data"]
        self._free_flow_data.restype = None
        self.give_up: Any = library.handle["ndpi_detection_giveup"]
        self.give_up.restype = result
        self._guessed = c_uint8()
        self.give_up_arguments: tuple[Any, ...] = {
            GiveUp.GUESS: (1, ctypes.byref(self._guessed)),
            GiveUp.GUESSED: (ctypes.byref(self._guessed),),
            GiveUp.PLAIN: (),
        }[abi.giveup]
        self.extra_possible: Any = None
        if abi.state_at is None:
            name = "ndpi_extra_dissection_possible"
            self.extra_possible = library.function(name, c_uint8, c_void_p, c_void_p)
        self.flow_size = library.function("ndpi_detection_get_sizeof_ndpi_flow_struct", c_uint32)()

        self._protocol = protocol()
        self._to_json = library.function("ndpi_dpi2json", c_int, c_void_p, c_void_p, protocol, c_void_p)
        self._json_reset = library.function("ndpi_reset_serializer", None, c_void_p)
        self._json_text = library.function("ndpi_serializer_get_buffer", c_void_p, c_void_p, c_void_p)

    def _start(self, library: Library) -> c_void_p:
        module = c_void_p(library.function("ndpi_init_detection_module", c_void_p, c_void_p)(None))
        if not module:
            raise DpiError(f"{library} could not start a detection module.")
        if library.abi.bitmask:
            switch_on = library.function("ndpi_set_protocol_detection_bitmask2", None, c_void_p, c_void_p)
            switch_on(module, b"\xff" * PROTOCOL_BITMASK_SIZE)
        finalize = library.function("ndpi_finalize_initialization", c_int, c_void_p)
        status = finalize(module)
        if library.abi.finalize_status and status != 0:
            raise DpiError(f"{library} could not be initialized (error {status}).")
        init_serializer = library.function("ndpi_init_serializer_ll", c_int, c_void_p, c_int, c_uint32)
        if init_serializer(self._serializer, FORMAT_JSON, _SERIALIZER_START) < 0:
            raise DpiError(f"{library} could not make a JSON serializer.")
        return module

    def new_buffer(self) -> Buffer:
        """Zeroed memory for a flow."""
        if self.closed:
            refuse()
        return self._spare.pop() if self._spare else Buffer(self.flow_size)

    def free_buffer(self, buffer: Buffer) -> None:
        """Free what nDPI attached to a flow, and keep its memory for another one."""
        self._free_flow_data(buffer.pointer)
        if len(self._spare) < _SPARE_BUFFERS and not self.closed:
            buffer.clear(self._zeros)
            self._spare.append(buffer)

    def json(self, flow: c_void_p, word: int) -> bytes:
        """What nDPI writes about a flow; not always well-formed."""
        # dpi2json chooses the protocol's block by ids alone; the rest of the structure we do not read.
        ids = word & 0xFFFFFFFF
        if ids & 0xFFFF in self.tls_like or ids >> 16 in self.tls_like:
            ids = self.tls_id << 16  # TLS under another name has facts of TLS, which nDPI else leaves out
        self._protocol.ids = ids
        self._protocol.category = word >> 32
        self._json_reset(self._serializer)
        if self._to_json(self.handle, flow, self._protocol, self._serializer) != 0:
            return b""
        text = self._json_text(self._serializer, ctypes.byref(self._json_length))
        return ctypes.string_at(text, self._json_length.value) if text else b""

    def close(self) -> None:
        """Free the module; its flows can then only be closed."""
        if self.closed:
            return
        self.closed = True
        self.process = self.give_up = self.extra_possible = self._to_json = refuse
        self.library.function("ndpi_term_serializer", None, c_void_p)(self._serializer)
        self.library.function("ndpi_exit_detection_module", None, c_void_p)(self.handle)
        self._spare.clear()
        self.known_facts.clear()


def refuse(*_arguments: object) -> NoReturn:
    """In place of the C functions of a closed module or flow, which would crash."""
    raise DpiError("The nDPI module is closed.")
