"""Find and load libndpi, and know which release it is."""

from __future__ import annotations

import ctypes
import ctypes.util
import importlib.metadata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from nedge.dpi.abi import SUPPORTED, Abi, abi_of
from nedge.errors import DpiError as DpiError

# Debian and Ubuntu name the library by release, ntop's packages by major number only.
_SYSTEM_NAMES = ("libndpi.so.4.2", "libndpi.so.4", "libndpi.so.5", "libndpi.so")
_HOW_TO_GET = "install it with 'apt install libndpi4.2', or nDPI 5.0 with 'pip install nedge[ndpi5]'"


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded libndpi of a supported release."""

    handle: ctypes.PyDLL
    path: str
    version: str
    abi: Abi

    def __str__(self) -> str:
        return f"nDPI {self.version} at {self.path}"

    def function(self, name: str, result: Any, *arguments: Any) -> Callable[..., Any]:
        """A C function by name, with its own types: ctypes' shared one would be changed for everyone."""
        function = self.handle[name]
        function.restype, function.argtypes = result, arguments
        return function

    def exports(self, name: str) -> bool:
        """Whether the library has a function of this name."""
        return hasattr(self.handle, name)


def load_library(choice: str = "auto") -> Library:
    """Load nDPI: `auto` (the system's, else the nfstream wheel's), `system`, `nfstream`, or a path.

    Raises `DpiError` if there is none, or none of a supported release.
    """
    refusal: DpiError | None = None
    for name in _candidates(choice):
        try:
            handle = _open(name)
        except OSError as error:
            if choice == name:
                raise DpiError(f"nDPI cannot be loaded from {name} ({error}).") from error
            continue
        try:
            return identify(handle, name)
        except DpiError as error:
            refusal = refusal or error
    raise refusal or DpiError(_missing(choice))


def identify(handle: ctypes.PyDLL, name: str) -> Library:
    """Ask an opened library for its release; `DpiError` if that is not a supported one."""
    try:
        handle.ndpi_revision.restype = ctypes.c_char_p
        version = (handle.ndpi_revision() or b"").decode()
    except AttributeError:
        raise DpiError(f"{name} is not nDPI (it exports no ndpi_revision); {_HOW_TO_GET}.") from None
    path = _path_of(handle.ndpi_revision) or name
    return Library(handle, path, version, require_abi(version, path))


def require_abi(version: str, path: str) -> Abi:
    """The calling conventions of a release; `DpiError` if they are not known."""
    abi = abi_of(version)
    if abi is None:
        raise DpiError(f"nDPI {version} at {path} is not supported, only {SUPPORTED}; {_HOW_TO_GET}.")
    return abi


def _candidates(choice: str) -> Iterator[str]:
    if choice not in ("auto", "system", "nfstream"):
        yield choice
    if choice in ("auto", "system"):
        yield from _SYSTEM_NAMES
        # Last, since it starts programs (ldconfig, gcc) and so takes tens of milliseconds.
        if found := ctypes.util.find_library("ndpi"):
            yield found
    if choice in ("auto", "nfstream"):
        yield from _nfstream_objects()


def _nfstream_objects() -> Iterator[str]:
    """Shared objects of the installed nfstream wheel, found without importing it (it takes seconds)."""
    try:
        files = importlib.metadata.files("nfstream") or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name.endswith(".so") and "engine" in file.name:
            yield str(file.locate())


def _open(name: str) -> ctypes.PyDLL:
    # PyDLL keeps the GIL during calls. They take microseconds, while giving it away for each packet would let
    # another thread take it for a whole switch interval of 5 ms.
    return ctypes.PyDLL(name)


def _missing(choice: str) -> str:
    where = {"system": " in the system", "nfstream": " in the nfstream wheel"}.get(choice, "")
    return f"nDPI was not found{where}; {_HOW_TO_GET}."


class _DlInfo(ctypes.Structure):
    """Dl_info of dladdr(3)."""

    _fields_ = [
        ("file_name", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("symbol", ctypes.c_char_p),
        ("address", ctypes.c_void_p),
    ]


def _path_of(function: Any) -> str:
    """Path of the file that a C function was loaded from, or ""."""
    info = _DlInfo()
    address = ctypes.cast(function, ctypes.c_void_p)
    if not ctypes.PyDLL(None).dladdr(address, ctypes.byref(info)):
        return ""
    return (info.file_name or b"").decode(errors="replace")
