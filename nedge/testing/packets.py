"""Packets made by hand: IPv4 and IPv6 with TCP, UDP and ICMP, checksums and all.

A capture file, or scapy's packets, do as well; these are quick to write down and always the same.
"""

from __future__ import annotations

import ipaddress
import random
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from nedge.core.link import LINK_TYPES

T0 = 1_750_000_000
"""When traffic starts: 2025-06-15 15:06:40 UTC."""
CLIENT, SERVER = "192.168.1.10", "203.0.113.5"
"""A local host (RFC 1918), and a remote one that no nDPI release knows (RFC 5737)."""
CLIENT6, SERVER6 = "fd00::10", "2001:db8::5"
FIN, SYN, RST, PSH, ACK = 0x01, 0x02, 0x04, 0x08, 0x10
_ETHERNET = 1


class Packet(NamedTuple):
    """An IP packet and when it is seen."""

    time: float
    data: bytes
    vlan: int = 0
    mac: bytes = b""


# Layers


def _checksum(data: bytes) -> int:
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip(proto: int, source: str, destination: str, payload: bytes) -> bytes:
    """An IPv4 or IPv6 packet, as the addresses are."""
    src, dst = ipaddress.ip_address(source), ipaddress.ip_address(destination)
    if src.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(payload), proto, 64) + src.packed + dst.packed + payload
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 1, 0x4000, 64, proto, 0)
    head += src.packed + dst.packed
    return head[:10] + struct.pack("!H", _checksum(head)) + head[12:] + payload


def _with_checksum(proto: int, source: str, destination: str, segment: bytes, at: int) -> bytes:
    src, dst = ipaddress.ip_address(source).packed, ipaddress.ip_address(destination).packed
    value = _checksum(src + dst + struct.pack("!II", len(segment), proto) + segment)
    return segment[:at] + struct.pack("!H", value) + segment[at + 2 :]


def tcp_segment(
    source: str,
    destination: str,
    sport: int,
    dport: int,
    *,
    seq: int = 0,
    ack: int = 0,
    flags: int = ACK,
    payload: bytes = b"",
) -> bytes:
    """One TCP segment as an IP packet; a SYN has the options that Linux sends."""
    options = bytes.fromhex("02040578 0402 080a0000000100000000 01 030307") if flags & SYN else b""
    offset = (20 + len(options)) // 4 << 4
    head = struct.pack("!HHIIBBHHH", sport, dport, seq, ack, offset, flags, 64240, 0, 0)
    return ip(6, source, destination, _with_checksum(6, source, destination, head + options + payload, 16))


def udp_datagram(source: str, destination: str, sport: int, dport: int, payload: bytes) -> bytes:
    """One UDP datagram as an IP packet."""
    head = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0)
    return ip(17, source, destination, _with_checksum(17, source, destination, head + payload, 6))


def icmp(source: str, destination: str, kind: int = 8, code: int = 0, payload: bytes = b"ping" * 14) -> bytes:
    """An ICMP or ICMPv6 message as an IP packet: an echo request unless told otherwise."""
    message = struct.pack("!BBHHH", kind, code, 0, 1, 1) + payload
    if ":" in source:
        return ip(58, source, destination, _with_checksum(58, source, destination, message, 2))
    return ip(1, source, destination, message[:2] + struct.pack("!H", _checksum(message)) + message[4:])


def ping(
    source: str = CLIENT,
    destination: str = SERVER,
    start: float = T0,
    *,
    reply: bool = True,
    payload: bytes = b"ping" * 14,
) -> list[Packet]:
    """An echo request, and its reply."""
    request, answer = (128, 129) if ":" in source else (8, 0)
    packets = [Packet(start, icmp(source, destination, request, payload=payload))]
    if reply:
        packets.append(Packet(start + 0.01, icmp(destination, source, answer, payload=payload)))
    return packets


def merge(*conversations: Iterable[Packet]) -> list[Packet]:
    """Several conversations in one, in order of time."""
    return sorted((packet for packets in conversations for packet in packets), key=lambda packet: packet.time)


def noise(size: int, seed: int = 0) -> bytes:
    """Bytes that no protocol starts with, the same for each seed."""
    return bytes([0xE5]) + random.Random(seed).randbytes(size - 1)  # noqa: S311 (no secret)


def from_scapy(packet: Any) -> Packet:
    """One of scapy's packets: Ethernet (VLANs and all), or bare IP. Its time is the packet's own `time`."""
    data, name = bytes(packet), type(packet).__name__
    if name in ("IP", "IPv6"):
        return Packet(float(packet.time), data)
    located = LINK_TYPES[_ETHERNET](data) if name == "Ether" else None
    if located is None:
        raise ValueError(
            f"{packet.summary()}: found {name}; allowed are IP and IPv6 packets, in Ether or bare"
        )
    return Packet(float(packet.time), data[located.offset :], located.vlan, located.mac)


def write_pcap(path: Path, packets: Iterable[Packet]) -> Path:
    """A capture file with Ethernet frames; VLAN tags where a packet has a VLAN."""
    from scapy.utils import RawPcapWriter  # slow to import

    writer = RawPcapWriter(str(path), linktype=_ETHERNET)
    writer.write_header(None)
    for packet in packets:
        frame = b"\x02\0\0\0\0\x02" + (packet.mac or b"\x02\0\0\0\0\x01")
        if packet.vlan:
            frame += struct.pack("!HH", 0x8100, packet.vlan)
        frame += struct.pack("!H", 0x86DD if packet.data[0] >> 4 == 6 else 0x0800) + packet.data
        seconds, micros = divmod(round(packet.time * 1e6), 1_000_000)
        writer.write_packet(frame, sec=seconds, usec=micros)
    writer.close()
    return path
