"""Rejecting on a bridge that has no address: both ends are told, in each other's name.

The packet is dropped, and its answers are sent through the ports, past bridge and packet filter:

    TCP        a RST to both ends
    UDP        ICMP port unreachable, which lets a client fail at once, to its sender; if its destination
               has spoken before, as the client of a rejected answer has, to that too
    others     ICMP administratively prohibited, to the sender

(The kernel's own REJECT sends nothing here. Making a RST of the queued packet itself fails with large
segments: the kernel throws away what is left of them.)

Frames bear the MAC that the addressee would see in any case: the other end's, or the port's own where that is
not known. So switches learn nothing that is wrong.

One RST is not always enough: with data in flight its sequence number is stale, and it is ignored. So the next
packets of the flow have to come to the queue and be rejected as well, and bare ACKs have to pass.

Rules: RFC 9293 3.10.7 (which RST), RFC 1812 4.3.2 and RFC 4443 2.4 (what ICMP never answers, and how much of
the original it carries).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from nedge.core.packet import ACK, FIN, ICMP, ICMPV6, RST, SYN, TCP, UDP, Packet, decode
from nedge.core.rewrite import checksum
from nedge.kernel.errors import KernelError

RATE = 1000.0
"""Rejections per second and injector; a flood must not be answered by another."""

_HOPS = 64
_DONT_FRAGMENT = 0x4000
_PRECEDENCE = 0xC0  # of ICMP errors: internetwork control, RFC 1812 4.3.2.5
_UNREACHABLE, _UNREACHABLE6 = 3, 1
# Codes. For the first a connected socket gets ECONNREFUSED on every system; the second is what ping shows.
_PORT, _PROHIBITED = 3, 13
_PORT6, _PROHIBITED6 = 4, 1
_QUOTE, _QUOTE6 = 576 - 20 - 8, 1280 - 40 - 8  # bytes of the original

# Only what waits for an answer is given one; an error message never is.
_REQUESTS = frozenset((8, 13, 15, 17, 42))  # echo, timestamp, information, address mask, extended echo
_REQUESTS6 = frozenset((128, 139, 160))  # echo, node information, extended echo

_ROUTING, _FRAGMENT, _AUTHENTICATION = 43, 44, 51
_UNSPECIFIED, _LOOPBACK = bytes(16), bytes(15) + b"\1"
_ETH_P_IP, _ETH_P_IPV6, _ETH_P_8021Q = 0x0800, 0x86DD, 0x8100
_SHORTEST_FRAME = 60  # without its checksum; not every driver fills up

_ipv4 = struct.Struct("!BBHHHBBH4s4s")
_ipv6 = struct.Struct("!IHBB16s16s")
_tcp = struct.Struct("!4sIIBBHHH")
_u16 = struct.Struct("!H")
_u32 = struct.Struct("!I")


class Frame(NamedTuple):
    """What to send through a port: its interface index, MAC addresses, the packet from its IP header on."""

    port: int
    destination: bytes
    source: bytes
    """Empty: the port's own."""
    packet: bytes
    vlan: int = 0
    """The tag (priority and number); 0: none."""


def rejection(
    data: bytes, in_port: int, out_port: int, source_mac: bytes, destination_mac: bytes = b"", vlan: int = 0
) -> list[Frame]:
    """What to send in place of a packet, which is to be dropped. Never raises.

    data: the packet from its IP header on, or its start. in_port, out_port: the ports of the bridge that it
    came by and would leave by. source_mac: from whom it came, on this segment. destination_mac: that of the
    other direction's packets; without it (none came yet) only the sender is told.
    """
    packet = _parse(data)
    if packet is None:
        return []
    frames = []
    if source_mac and (answer := _answer(packet)):
        frames.append(Frame(in_port, source_mac, destination_mac, answer, vlan))
    if destination_mac and (notice := _notice(packet)):
        frames.append(Frame(out_port, destination_mac, source_mac, notice, vlan))
    return frames


def answer_to(data: bytes) -> bytes | None:
    """The packet that tells the sender of this one, in its destination's name, that it is rejected."""
    packet = _parse(data)
    return _answer(packet) if packet else None


def reset_for(data: bytes) -> bytes | None:
    """The RST that goes to the destination of a TCP packet in its place."""
    packet = _parse(data)
    return _reset(packet) if packet and packet.proto == TCP else None


def _parse(data: bytes) -> Packet | None:
    """The packet, if it can be answered: whole, between two hosts, no tunnel's (that would hit all in it)."""
    packet = decode(data)
    if not isinstance(packet, Packet) or packet.tunnelled or packet.flaw:
        return None
    data = packet.data
    if data[0] >> 4 == 4:
        # Whole; from and to a unicast address: not "this host", loopback, multicast, reserved, broadcast.
        plain = not data[6] & 0x20 and 0 < data[12] < 224 and data[12] != 127 and data[16] < 224
    else:
        source = data[8:24]
        plain = source[0] != 0xFF and data[24] != 0xFF and source not in (_UNSPECIFIED, _LOOPBACK)
        plain = plain and (packet.l4 == 40 or _plain_extensions(packet))
    return packet if plain else None


def _plain_extensions(packet: Packet) -> bool:
    """Whether an IPv6 packet is no fragment, and goes to the address in its header in the end."""
    data, at, kind = packet.data, 40, packet.data[6]
    while at < packet.l4:  # decode() has walked them, so they are sound
        if kind == _FRAGMENT or (kind == _ROUTING and data[at + 3]):
            return False
        units = data[at + 1]
        step = (units + 2) * 4 if kind == _AUTHENTICATION else (units + 1) * 8
        kind, at = data[at], at + step
    return True


def _answer(packet: Packet) -> bytes | None:
    """What the sender gets."""
    if packet.proto == TCP:
        return _answering_reset(packet)
    source, target = _ends(packet.data)
    if packet.proto in (ICMP, ICMPV6):
        own, requests = (ICMP, _REQUESTS) if len(source) == 4 else (ICMPV6, _REQUESTS6)
        if packet.proto != own or packet.data[packet.l4] not in requests:
            return None
    return _unreachable(target, source, packet.data, closed=packet.proto == UDP)


def _notice(packet: Packet) -> bytes | None:
    """What the destination gets."""
    if packet.proto == TCP:
        return _reset(packet)
    if packet.proto != UDP:
        return None
    # As if in answer to a datagram of its own, of which all that counts is known: addresses and ports.
    (source, target), ports = _ends(packet.data), packet.data[packet.l4 : packet.l4 + 4]
    datagram = _ip(UDP, target, source, ports[2:] + ports[:2] + b"\0\x08\0\0")
    return _unreachable(source, target, datagram, closed=True)


def _answering_reset(packet: Packet) -> bytes | None:
    """Numbered as its receiver expects, or else (to a SYN, say) confirming what that has sent."""
    flags, data, l4 = packet.flags, packet.data, packet.l4
    if flags & RST:
        return None
    source, target = _ends(data)
    ports = data[l4 + 2 : l4 + 4] + data[l4 : l4 + 2]
    if flags & ACK:
        (expected,) = _u32.unpack_from(data, l4 + 8)
        return _rst((target, source), ports, RST, expected, 0)
    length = packet.payload_length + bool(flags & SYN) + bool(flags & FIN)
    return _rst((target, source), ports, RST | ACK, 0, packet.seq + length & 0xFFFFFFFF)


def _reset(packet: Packet) -> bytes | None:
    """Numbered as the packet, which its destination never sees and so expects."""
    flags, data, l4 = packet.flags, packet.data, packet.l4
    if flags & (SYN | ACK) == SYN:  # nobody there to tell yet
        return None
    number = packet.seq + bool(flags & SYN) & 0xFFFFFFFF
    confirmed = _u32.unpack_from(data, l4 + 8)[0] if flags & ACK else 0
    hops = data[8] if data[0] >> 4 == 4 else data[7]
    return _rst(_ends(data), data[l4 : l4 + 4], RST | flags & ACK, number, confirmed, hops=hops)


def _ends(data: bytes) -> tuple[bytes, bytes]:
    """Source and destination address."""
    return (data[12:16], data[16:20]) if data[0] >> 4 == 4 else (data[8:24], data[24:40])


def _rst(ends: tuple[bytes, bytes], ports: bytes, flags: int, *numbers: int, hops: int = _HOPS) -> bytes:
    """numbers: sequence and acknowledgement number."""
    source, target = ends
    segment = _tcp.pack(ports, *numbers, 5 << 4, flags, 0, 0, 0)
    total = checksum(source + target + segment, _tcp.size + TCP)
    return _ip(TCP, source, target, segment[:16] + _u16.pack(total) + segment[18:], hops)


def _unreachable(source: bytes, target: bytes, original: bytes, *, closed: bool) -> bytes:
    """closed: say that the port is, else that it is prohibited."""
    if len(source) == 4:
        head = bytes((_UNREACHABLE, _PORT if closed else _PROHIBITED))
        rest = bytes(4) + original[:_QUOTE]
        return _ip(ICMP, source, target, head + _u16.pack(checksum(head + rest)) + rest)
    head = bytes((_UNREACHABLE6, _PORT6 if closed else _PROHIBITED6))
    rest = bytes(4) + original[:_QUOTE6]
    total = checksum(source + target + head + rest, len(rest) + 4 + ICMPV6)
    return _ip(ICMPV6, source, target, head + _u16.pack(total) + rest)


def _ip(proto: int, source: bytes, target: bytes, payload: bytes, hops: int = _HOPS) -> bytes:
    if len(source) == 16:
        return _ipv6.pack(6 << 28, len(payload), proto, hops, source, target) + payload
    service = _PRECEDENCE if proto == ICMP else 0
    head = _ipv4.pack(0x45, service, 20 + len(payload), 0, _DONT_FRAGMENT, hops, proto, 0, source, target)
    return head[:10] + _u16.pack(checksum(head)) + head[12:] + payload


class Injector:
    """Sends frames through ports of the bridge, as often as is allowed. Never raises once it is made."""

    def __init__(self, ports: Iterable[int], rate: float = RATE) -> None:
        """ports: interface indexes. rate: rejections per second. Raises KernelError."""
        self.sent = 0
        """Rejections that went out, to all they were for."""
        self.failed = 0
        """Rejections of which a frame could not be sent: the port is down, gone, or its buffer is full."""
        self.limited = 0
        """Rejections that were not sent since there were too many."""
        self.rate = self._tokens = rate
        """May be changed."""
        self._filled = time.monotonic()
        self._ports: dict[int, tuple[socket.socket, bytes]] = {}
        try:
            for port in ports:
                self._ports[port] = _open(port)
        except OSError as error:
            self.close()
            raise KernelError(
                f"packets cannot be sent through interface {port} ({error}): it takes root, or CAP_NET_RAW"
            ) from error

    def send(self, frames: Sequence[Frame]) -> bool:
        """Send what `rejection` gave. Says whether all of it went out."""
        if not frames:
            return False
        now = time.monotonic()
        self._tokens = min(self.rate, self._tokens + (now - self._filled) * self.rate)
        self._filled = now
        if self._tokens < 1:
            self.limited += 1
            return False
        self._tokens -= 1
        failed = False
        for frame in frames:
            try:
                sock, own = self._ports[frame.port]
                sock.send(_ethernet(frame, own))
            except (OSError, KeyError):
                failed = True
        self.failed += failed
        self.sent += not failed
        return not failed

    def close(self) -> None:
        """Let the ports go."""
        for sock, _own in self._ports.values():
            sock.close()
        self._ports.clear()


def _open(port: int) -> tuple[socket.socket, bytes]:
    """A socket that sends through a port and receives nothing, and the port's MAC address."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, 0)
    try:
        sock.bind((socket.if_indextoname(port), 0))
        return sock, sock.getsockname()[4]
    except OSError:
        sock.close()
        raise


def _ethernet(frame: Frame, own: bytes) -> bytes:
    ethertype = _ETH_P_IP if frame.packet[0] >> 4 == 4 else _ETH_P_IPV6
    tag = _u32.pack(_ETH_P_8021Q << 16 | frame.vlan) if frame.vlan else b""
    head = frame.destination + (frame.source or own) + tag + _u16.pack(ethertype)
    return (head + frame.packet).ljust(_SHORTEST_FRAME, b"\0")
