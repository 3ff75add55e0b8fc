"""Names of a module's protocols, categories, breeds and risks, and ids by name."""

from __future__ import annotations

from collections.abc import Iterable
from ctypes import c_char_p, c_int, c_uint, c_uint16, c_void_p
from typing import Final

from nedge.core.facts import UNKNOWN, Classification
from nedge.dpi.abi import result_type
from nedge.dpi.library import Library
from nedge.dpi.module import refuse

# Names of the same protocol in different releases, found by comparing the tables of 4.2, 4.5, 4.7 and 5.0.
_RENAMED = (
    ("Hotmail", "Outlook"),
    ("SkypeCall", "Skype_TeamsCall", "TeamsCall"),
    ("Skype_Teams", "Teams"),
    ("DCE_RPC", "DCERPC", "RPC"),
    ("LotusNotes", "HCL_Notes"),
    ("UbuntuONE", "Canonical"),
    ("Redis", "RESP"),
    ("Messenger", "FacebookMessenger"),
    ("Sina(Weibo)", "SinaWeibo"),
    ("GoogleHangoutDuo", "GoogleMeet"),
    ("Guildwars", "GuildWars2"),
    ("Z39.50", "Z3950"),
    ("OSPF", "IP_OSPF"),
)
_ALIASES = {name.casefold(): group for group in _RENAMED for name in group}

_MAX_KEPT: Final = 4096
_MAX_CATEGORIES = 256  # ids above the last one give the "Invalid category" name


class Names:
    """Everything of a detection module that is a name. Reads the tables once, and keeps what it derives."""

    def __init__(self, library: Library, module: c_void_p) -> None:
        self._module = module
        self._protocol = library.function("ndpi_get_proto_name", c_char_p, c_void_p, c_uint16)
        self._category = library.function("ndpi_category_get_name", c_char_p, c_void_p, c_int)
        self._breed = library.function("ndpi_get_proto_breed", c_int, c_void_p, c_uint16)
        self._risk = library.function("ndpi_risk2str", c_char_p, c_int)
        self._result = result_type(library.abi)()
        self._category_of = library.function("ndpi_get_proto_category", c_int, c_void_p, type(self._result))
        if library.abi.breed_name_module:
            self._breed_name = library.function("ndpi_get_proto_breed_name", c_char_p, c_void_p, c_int)
            self._breed_arguments: tuple[c_void_p, ...] = (module,)
        else:
            self._breed_name = library.function("ndpi_get_proto_breed_name", c_char_p, c_int)
            self._breed_arguments = ()

        # Renamed in the 4.x series; both count ids, from 0.
        old, new = "ndpi_get_num_supported_protocols", "ndpi_get_num_protocols"
        count = library.function(old if library.exports(old) else new, c_uint, c_void_p)(module)
        self.protocols = [_text(self._protocol(module, number)) for number in range(count)]
        self._protocol_ids: dict[str, int] = {}
        for number, name in enumerate(self.protocols):
            self._protocol_ids.setdefault(name.casefold(), number)
        self._category_ids: dict[str, int] = {}
        for number in range(_MAX_CATEGORIES):
            name = _text(self._category(module, number))
            if name and not name.startswith("Invalid"):
                self._category_ids.setdefault(name.casefold(), number)
        self._described = {0: UNKNOWN}
        self._risks: dict[int, list[str]] = {}

    def describe(self, word: int) -> Classification:
        """Names for a classification word, as ndpi_protocol2name composes them."""
        known = self._described.get(word)
        if known is None:
            known = self._described[word] = self._describe(word)
        return known

    def protocol_id(self, name: str) -> int | None:
        """The id of a protocol by its name here or in another release, in any case."""
        key = name.casefold()
        found = self._protocol_ids.get(key)
        if found is None:
            for other in _ALIASES.get(key, ()):
                found = self._protocol_ids.get(other.casefold())
                if found is not None:
                    break
        return found

    def ids(self, names: Iterable[str]) -> frozenset[int]:
        """The ids of those of these protocols that there are."""
        return frozenset(found for found in map(self.protocol_id, names) if found)

    def category_id(self, name: str) -> int | None:
        """The id of a category by its name, in any case."""
        return self._category_ids.get(name.casefold())

    def category_of(self, master: int, app: int) -> int:
        """The id of the category that flows of a protocol have, unless their content says otherwise."""
        self._result.ids = master | app << 16
        return int(self._category_of(self._module, self._result))

    def risk_names(self, risks: int) -> list[str]:
        """nDPI's names of the bits set, lowest bit first."""
        known = self._risks.get(risks)
        if known is None:
            known, rest = [], risks
            while rest:
                lowest = rest & -rest
                known.append(_text(self._risk(lowest.bit_length() - 1)))
                rest ^= lowest
            if len(self._risks) < _MAX_KEPT:
                self._risks[risks] = known
        return list(known)

    def close(self) -> None:
        """Ask the module nothing any more; words described before stay known."""
        self._protocol = self._category = self._breed = self._category_of = refuse

    def _describe(self, word: int) -> Classification:
        master, app, category = word & 0xFFFF, word >> 16 & 0xFFFF, word >> 32
        if master == app:
            master = 0
        master_name = _text(self._protocol(self._module, master)) if master else ""
        app_name = _text(self._protocol(self._module, app)) if app else UNKNOWN.app
        protocol = f"{master_name}.{app_name}" if master and app else master_name or app_name
        breed = self._breed(self._module, app or master)
        return Classification(
            master_id=master,
            app_id=app,
            protocol=protocol,
            master=master_name,
            app=app_name,
            category_id=category,
            category=_text(self._category(self._module, category)),
            breed=_text(self._breed_name(*self._breed_arguments, breed)),
        )


def _text(name: bytes | None) -> str:
    # A copy: some names are in static buffers that the next call overwrites.
    return (name or b"").decode(errors="replace")
