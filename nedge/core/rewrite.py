"""Packets changed on their way, and checksums (RFC 1071)."""

from __future__ import annotations

from typing import Final

from nedge.core.packet import MAX_IP_LENGTH, TCP, UDP, Packet

URG: Final = 0x20
_CHECKSUM_AT: Final = {TCP: 16, UDP: 6}


def checksum(data: bytes, more: int = 0) -> int:
    """The Internet checksum; of a segment behind its addresses, `more` is the rest of the pseudo header.

    The sum of 16-bit words, with carries brought round, is the remainder by 65535: of one big number as well.
    Checksum fields count as 0, so one at an even place may be left out.
    """
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    return -(number + more) % 0xFFFF


def is_whole(packet: Packet) -> bool:
    """Whether all of it was captured, it is nothing but itself (no tunnel's), and its headers are sound."""
    return not packet.tunnelled and packet.flaw is None and len(packet.data) == packet.ip_length


def checksum_holds(packet: Packet) -> bool:
    """Whether its receiver takes a TCP segment or a datagram for undamaged; true of what cannot be said."""
    at = _CHECKSUM_AT.get(packet.proto)
    if at is None or not is_whole(packet):
        return True
    data, l4 = packet.data, packet.l4
    if packet.proto == UDP and data[l4 + at : l4 + at + 2] == b"\0\0":  # none was made
        return True
    size = len(data) - l4
    return checksum(_addresses(data) + data[l4:], size + packet.proto) == 0


def carrying(packet: Packet, payload: bytes) -> bytes:
    """The packet with this payload instead of its own: lengths set, checksums not."""
    headers = bytearray(packet.data[: packet.payload])
    length = min(len(headers) + len(payload), MAX_IP_LENGTH)
    if headers[0] >> 4 == 4:
        headers[2:4] = length.to_bytes(2)
        headers[6:8] = b"\0\0"
    else:
        headers[4:6] = (length - 40).to_bytes(2)
    if packet.proto == UDP:
        headers[packet.l4 + 4 : packet.l4 + 6] = (length - packet.l4).to_bytes(2)
    return bytes(headers) + payload[: length - len(headers)]


def without_first(packet: Packet, count: int) -> Packet:
    """A segment without the first bytes of its payload; to look at, not to send."""
    rest = Packet()
    data = carrying(packet, packet.payload_bytes()[count:])
    rest.seq = (packet.seq + count) & 0xFFFFFFFF
    rest.data = data[: packet.l4 + 4] + rest.seq.to_bytes(4) + data[packet.l4 + 8 :]
    rest.key, rest.proto, rest.l4, rest.payload = packet.key, packet.proto, packet.l4, packet.payload
    rest.ip_length, rest.payload_length = packet.ip_length - count, packet.payload_length - count
    rest.flags, rest.flaw, rest.tunnelled = packet.flags, packet.flaw, packet.tunnelled
    return rest


def with_payload(packet: Packet, payload: bytes) -> bytes:
    """A whole TCP segment with another payload, and without the urgent flag; lengths and checksums set.

    All of its payload is then as its receiver's program reads it: what it would read of urgent data depends
    on the program (RFC 6093).
    """
    data = bytearray(carrying(packet, payload))
    l4 = packet.l4
    if data[0] >> 4 == 4:
        data[10:12] = b"\0\0"
        data[10:12] = checksum(bytes(data[:l4])).to_bytes(2)
    data[l4 + 13] &= ~URG
    data[l4 + 16 : l4 + 20] = bytes(4)  # checksum and urgent pointer
    total = checksum(_addresses(bytes(data)) + bytes(data[l4:]), len(data) - l4 + TCP)
    data[l4 + 16 : l4 + 18] = total.to_bytes(2)
    return bytes(data)


def _addresses(data: bytes) -> bytes:
    return data[12:20] if data[0] >> 4 == 4 else data[8:40]
