"""nDPI behind `nedge.core.facts.Classifier`.

One rule keeps nDPI from corrupting memory, and is the caller's: packets of one flow share the L4 protocol.
The rest is kept in this package: buffers live as long as nDPI may point to them, lengths fit 16 bits, the
clock never goes back, and a closed flow or module raises instead of crashing.
"""

from __future__ import annotations

from nedge.core.facts import Classification
from nedge.dpi.flow import NdpiFlow, open_flow
from nedge.dpi.library import Library
from nedge.dpi.module import Module
from nedge.dpi.names import Names
from nedge.dpi.probe import locate

_HTTP = ("HTTP", "HTTP_Connect", "HTTP_Proxy")
"""What nDPI writes the facts of HTTP for."""
_TLS_INSIDE = ("IMAPS", "POPS", "SMTPS", "FTPS")


class NdpiClassifier:
    """One nDPI detection module, with its own memory. Never shared between threads. Close it when done."""

    def __init__(self, library: Library) -> None:
        self.version = library.version
        self._module = Module(library)
        try:
            self._names = Names(library, self._module.handle)
            self._module.tls_id = self._names.protocol_id("TLS") or 0
            self._module.tls_like = self._names.ids(_TLS_INSIDE)
            self._module.http_ids = self._names.ids(_HTTP)
            locate(self._module)
        except BaseException:
            self._module.close()
            raise

    @property
    def json_errors(self) -> int:
        """How often facts could not be read since nDPI wrote broken JSON."""
        return self._module.json_errors

    @property
    def risk_offset(self) -> int:
        """Where the risk bitmap is in a flow's memory."""
        return self._module.risk_at

    @property
    def has_certificate_dates(self) -> bool:
        """Whether this build's place for the dates of certificates was found."""
        return bool(self._module.dates_at)

    def open(self) -> NdpiFlow:
        """Fresh inspection state for a flow."""
        return open_flow(self._module)

    def describe(self, word: int) -> Classification:
        """Names for a word. Cheap: answers are kept."""
        return self._names.describe(word)

    def protocol_id(self, name: str) -> int | None:
        """The id of a protocol by its name here or in another release, in any case; None if there is none."""
        return self._names.protocol_id(name)

    def protocol_names(self) -> list[str]:
        """Names of all protocols, by id."""
        return list(self._names.protocols)

    def category_id(self, name: str) -> int | None:
        """The id of a category by its name, in any case; None if this release has none of that name."""
        return self._names.category_id(name)

    def category_of(self, master: int, app: int) -> int:
        """The id of the category that flows of a protocol have, unless their content says otherwise."""
        return self._names.category_of(master, app)

    def risk_names(self, risks: int) -> list[str]:
        """Names of the bits set in a risk bitmap."""
        return self._names.risk_names(risks)

    def close(self) -> None:
        """Free the module; its flows can then only be closed. Closing again does nothing."""
        self._module.close()
        self._names.close()
