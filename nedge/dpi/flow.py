"""Inspection of one flow. `feed` runs for every packet that nDPI sees: each attribute there counts."""

from __future__ import annotations

from ctypes import c_char_p, c_uint16, c_uint32, c_void_p
from typing import Any, Final

from nedge.core.facts import Facts
from nedge.dpi.abi import STATE_CLASSIFIED
from nedge.dpi.facts import CERTIFICATE, read_facts
from nedge.dpi.module import Module, refuse

_MAX_PACKET: Final = 0xFFFF  # the length argument is 16 bits wide
_APP: Final = 0xFFFF << 16  # the application id in a classification word
_Dates = c_uint32 * 2  # notBefore and notAfter, side by side
_KNOWN_FACTS: Final = 1024
_LONG_TEXT: Final = 2048
"""Facts kept for the next flow like this, and the longest text that they are kept for: 4 MB at most."""


class _Closed:
    """In place of the pointer of a closed flow: ctypes refuses it (ArgumentError), where NULL would crash."""


_CLOSED: Final[Any] = _Closed()


class NdpiFlow:
    """Inspection state of one flow; `close` it exactly once, as soon as nothing more is asked."""

    __slots__ = ("_buffer", "_flow", "_given_up", "_module", "_state", "_word")

    def __init__(self, module: Module) -> None:
        self._module = module
        self._buffer = module.new_buffer()
        self._flow = self._buffer.pointer
        self._word = 0
        self._state = 0
        self._given_up = False

    def feed(self, packet: bytes, time_ms: int) -> int:
        """Inspect one packet, from its IP header on, and give the classification word so far."""
        raise NotImplementedError

    def more_possible(self) -> bool:
        """Whether further packets can still add facts or refine the protocol."""
        if self._given_up:
            return False
        if self._word >> 16 & 0xFFFF in self._module.tls_like:
            return True  # 4.2 says no, and goes on to read the certificate
        extra_possible = self._module.extra_possible
        if extra_possible is None:
            return self._state != STATE_CLASSIFIED
        return not self._word & _APP or bool(extra_possible(self._module.handle, self._flow))

    def give_up(self) -> int:
        """End detection, guessing by port and address where possible; gives the final word."""
        module = self._module
        self._given_up = True
        result = module.give_up(module.handle, self._flow, *module.give_up_arguments)
        self._word = result if isinstance(result, int) else result.ids | result.category << 32
        return self._word

    def hostname(self) -> str:
        """The server name seen so far, lower case (its last 79 characters), or ""."""
        name: bytes = self._module.flow_name(self._flow) or b""
        name = name.rpartition(b"@")[2]  # without user and password in a Host header
        return name.decode("utf-8", "replace").lower()

    def risks(self) -> int:
        """nDPI's 64-bit flow risk bitmap."""
        if self._flow is _CLOSED:
            refuse()
        return self._buffer.risks(self._module.risk_at)

    @property
    def address(self) -> int:
        """Where the ndpi_flow_struct is."""
        return self._flow.value or 0

    def json(self) -> bytes:
        """What nDPI writes about the flow. There may be passwords in it."""
        return self._module.json(self._flow, self._word)

    def facts(self) -> Facts:
        """All facts seen so far; flows that nDPI says the same of share them. Costs microseconds."""
        module = self._module
        text, name = self.json(), self.hostname()
        dates = (0, 0)
        if module.dates_at and CERTIFICATE in text:
            # nDPI fails to write these: it takes its 32-bit times for 64-bit ones.
            dates = tuple(_Dates.from_address(self.address + module.dates_at))
        key = text, name, dates
        facts = module.known_facts.get(key)
        if facts is None:
            facts, sound = read_facts(*key)
            module.json_errors += not sound
            if len(module.known_facts) >= _KNOWN_FACTS:
                module.known_facts.clear()
            if len(text) <= _LONG_TEXT:
                module.known_facts[key] = facts
        return facts

    def http_answer(self) -> tuple[int, str] | None:
        """Status code and content type of the latest HTTP response; None if `facts` has to say it."""
        module, word = self._module, self._word
        places = module.http_at
        if places is None or (word & 0xFFFF or word >> 16 & 0xFFFF) not in module.http_ids:
            return None
        address = self.address
        if not c_void_p.from_address(address + places.url).value:
            return None
        kind = c_char_p.from_address(address + places.content_type).value or b""
        text = kind.decode("ascii", "replace")
        # What the JSON leaves out or writes otherwise is for `facts` to read.
        return (c_uint16.from_address(address + places.code).value, text) if text.isprintable() else None

    def close(self) -> None:
        """Free the state."""
        if self._flow is not _CLOSED:
            self._flow = _CLOSED
            self._module.free_buffer(self._buffer)


class RegisterFlow(NdpiFlow):
    """A flow of a release whose result is the classification word itself, in a register."""

    __slots__ = ()

    def feed(self, packet: bytes, time_ms: int) -> int:
        """Inspect one packet, from its IP header on, and give the classification word so far."""
        module = self._module
        if time_ms > module.now_ms:
            module.now_ms = module.clock.value = time_ms
        size = len(packet)
        if size > _MAX_PACKET:
            size = _MAX_PACKET
        word: int = module.process(module.handle, self._flow, packet, size, module.clock)
        self._word = word
        return word


class MemoryFlow(NdpiFlow):
    """A flow of a release whose result is a structure in memory."""

    __slots__ = ()

    def feed(self, packet: bytes, time_ms: int) -> int:
        """Inspect one packet, from its IP header on, and give the classification word so far."""
        module = self._module
        if time_ms > module.now_ms:
            module.now_ms = module.clock.value = time_ms
        size = len(packet)
        if size > _MAX_PACKET:
            size = _MAX_PACKET
        # The last argument, hints about the flow, came in with this kind of result.
        result = module.process(module.handle, self._flow, packet, size, module.clock, None)
        if module.extra_possible is None:
            self._state = result.state
        word: int = result.ids | result.category << 32
        self._word = word
        return word


def open_flow(module: Module) -> NdpiFlow:
    """Fresh inspection state, of the class that suits the release."""
    return RegisterFlow(module) if module.in_registers else MemoryFlow(module)
