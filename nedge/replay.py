"""Replay: a capture file through the engine, the very one that judges live traffic. Needs no root."""

from __future__ import annotations

import logging
import shutil
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from nedge.core.engine import Engine
from nedge.core.link import LINK_TYPES

MAX_FRAME = 0x40000
"""Largest frame that a capture is believed to hold (tcpdump's own limit)."""
_PROGRESS_EVERY = 2048

Frame = tuple[float, bytes, int, int]
"""Time (epoch seconds), bytes captured, bytes on the wire, link type."""


@dataclass(slots=True)
class Replayed:
    """Totals of a replay."""

    frames: int = 0
    not_ip: int = 0
    last_time: float = 0.0


class CaptureError(Exception):
    """The capture is broken, or no capture. What came before the break has been processed."""

    replayed = Replayed()
    """What that was."""


def replay(path: Path, engine: Engine, progress: Callable[[int], None] | None = None) -> Replayed:
    """Feed a capture to the engine and end all flows. `progress` gets the position in the file, in bytes.

    Raises CaptureError after all frames before a break were processed, their flows ended too.
    """
    totals = Replayed()
    try:
        for time, frame, wire_length, link_type in frames(path, progress):
            totals.frames += 1
            totals.last_time = max(totals.last_time, time)
            located = LINK_TYPES[link_type](frame)
            if located is None:
                totals.not_ip += 1
                continue
            offset, vlan, mac = located
            engine.packet(frame[offset:], time, vlan, mac, min(wire_length - offset, 0xFFFF))
    except CaptureError as error:
        error.replayed = totals
        raise
    finally:
        engine.finish(totals.last_time)
    return totals


def frames(path: Path, progress: Callable[[int], None] | None = None) -> Iterator[Frame]:
    """Frames of a pcap or pcapng file, gzipped or not. Raises CaptureError where it breaks."""
    with ExitStack() as kept:
        from scapy.utils import RawPcapNgReader, RawPcapReader  # slow to import: only replay pays

        logging.getLogger("scapy.runtime").setLevel(logging.ERROR)  # what is broken is said below
        file = path
        try:
            if not path.is_file():  # a pipe: the reader needs to know where it is
                file = Path(kept.enter_context(NamedTemporaryFile()).name)
                with path.open("rb") as pipe, file.open("wb") as copy:
                    shutil.copyfileobj(pipe, copy)
            if file.stat().st_size == 0:
                raise CaptureError(f"{path}: is empty, not a pcap or pcapng capture")
            reader = RawPcapReader(str(file))
        except OSError as error:
            raise CaptureError(f"{path}: cannot be read: {error.strerror or error}") from None
        except CaptureError:
            raise
        except Exception as error:  # scapy raises several kinds of its own, and EOFError, struct.error
            raise CaptureError(f"{path}: is not a pcap or pcapng capture ({error})") from None

        if isinstance(reader, RawPcapNgReader):
            _make_strict(reader)
        read = reader._read_block if isinstance(reader, RawPcapNgReader) else reader._read_packet
        to_frame = _from_pcapng if isinstance(reader, RawPcapNgReader) else _from_pcap
        count = 0
        with reader:
            try:
                while True:
                    start = reader.f.tell()
                    try:
                        found = read(size=MAX_FRAME)
                    except EOFError as error:  # scapy's word for the end, and for most of what is broken
                        if reader.f.tell() == start and not reader.f.read(1):
                            return
                        raise _BreakError(
                            str(error) or "it ends, or stops making sense, inside a frame"
                        ) from None
                    if found is None:  # a pcapng block without a packet
                        continue
                    frame = to_frame(reader, *found)
                    if frame[3] not in LINK_TYPES:
                        raise _BreakError(
                            f"link type {frame[3]} is not supported; supported are Ethernet, raw IP, "
                            "Linux cooked, null/loopback, PPP and 802.11"
                        )
                    count += 1
                    if progress is not None and count % _PROGRESS_EVERY == 0:
                        progress(_position(reader.f))
                    yield frame
            except (_BreakError, OSError, EOFError, OverflowError, zlib.error, struct.error) as error:
                raise CaptureError(f"{path}: broken after frame {count}: {error}") from None


class _BreakError(Exception):
    """How a capture breaks."""


def _make_strict(reader: Any) -> None:
    """Have scapy's pcapng reader count interfaces by section, and refuse blocks that it would pass over."""
    read_section, read_packet = reader._read_block_shb, reader.blocktypes[6]

    def section() -> None:
        read_section()
        reader.interfaces.clear()

    def packet(block: bytes, size: int) -> Any:
        if len(block) >= 20:
            interface, length = struct.unpack_from(reader.endian + "I8xI", block)
            if interface >= len(reader.interfaces):
                raise _BreakError(f"a frame from interface {interface}, which is not described")
            if length > len(block) - 20:
                raise _BreakError(f"a frame of {length} bytes in a block of {len(block)}")
        return read_packet(block, size)

    reader._read_block_shb = section
    reader.blocktypes[6] = packet


def _from_pcap(reader: Any, data: bytes, meta: Any) -> Frame:
    if meta.caplen > MAX_FRAME:
        raise _BreakError(f"a frame of {meta.caplen} bytes is more than any capture has")
    if len(data) < meta.caplen:
        raise _BreakError(f"the file ends inside a frame of {meta.caplen} bytes")
    # The bits above the link type's 16 say how long a frame check sequence is.
    link_type = reader.linktype & 0xFFFF
    return meta.sec + meta.usec * (1e-9 if reader.nano else 1e-6), data, meta.wirelen, link_type


def _from_pcapng(reader: Any, data: bytes, meta: Any) -> Frame:  # noqa: ARG001 (one shape for both)
    time = ((meta.tshigh << 32) + meta.tslow) / meta.tsresol if meta.tshigh is not None else 0.0
    return time, data, meta.wirelen, meta.linktype


def _position(file: Any) -> int:
    """Bytes read of the file as it lies on disk, compressed or not."""
    raw = getattr(file, "fileobj", None) or file
    return int(raw.tell())
