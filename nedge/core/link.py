"""Link layers: where the IP packet starts in a captured frame.

Numbers are libpcap's LINKTYPE_ values. Formats: IEEE 802.3 and 802.1Q, RFC 1661 (PPP), RFC 2516 (PPPoE),
RFC 3032 (MPLS), and the tcpdump.org pages on LINUX_SLL, LINUX_SLL2, NULL and radiotap.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Located(NamedTuple):
    """An IP packet inside a frame."""

    offset: int
    vlan: int
    """Innermost VLAN id; 0 if untagged."""
    mac: bytes
    """Sender's MAC address; empty where the link layer has none."""


Locate = Callable[[bytes], Located | None]
"""Frame -> where its IP packet is; None for other traffic or a frame cut short."""

_IPV4, _IPV6, _MPLS, _MPLS_MULTICAST, _PPPOE_SESSION = 0x0800, 0x86DD, 0x8847, 0x8848, 0x8864
_VLANS = frozenset((0x8100, 0x88A8, 0x9100))
_IP = frozenset((_IPV4, _IPV6))
_PPP_IP = frozenset((0x0021, 0x0057))
_SNAP = b"\xaa\xaa\x03"


def _after_ethertype(frame: bytes, ethertype: int, offset: int, mac: bytes) -> Located | None:
    """What follows an EtherType: tags and labels down to IP."""
    vlan = 0
    while ethertype in _VLANS:
        if len(frame) < offset + 4:
            return None
        vlan = (frame[offset] << 8 | frame[offset + 1]) & 0x0FFF
        ethertype = frame[offset + 2] << 8 | frame[offset + 3]
        offset += 4
    if ethertype in (_MPLS, _MPLS_MULTICAST):
        bottom = False
        while not bottom:
            if len(frame) < offset + 4:
                return None
            bottom = bool(frame[offset + 2] & 1)
            offset += 4
        ethertype = _IPV4 if len(frame) > offset and frame[offset] >> 4 in (4, 6) else 0
    elif ethertype == _PPPOE_SESSION:
        if len(frame) < offset + 8 or (frame[offset + 6] << 8 | frame[offset + 7]) not in _PPP_IP:
            return None
        ethertype = _IPV4
        offset += 8
    return Located(offset, vlan, mac) if ethertype in _IP and len(frame) > offset else None


def _ethernet(frame: bytes) -> Located | None:
    if len(frame) < 15:
        return None
    ethertype = frame[12] << 8 | frame[13]
    if ethertype == _IPV4:  # nearly always
        return Located(14, 0, frame[6:12])
    if ethertype <= 1500:  # a length: LLC, perhaps with SNAP
        if frame[14:17] != _SNAP or len(frame) < 22:
            return None
        return _after_ethertype(frame, frame[20] << 8 | frame[21], 22, frame[6:12])
    return _after_ethertype(frame, ethertype, 14, frame[6:12])


def _cooked(frame: bytes) -> Located | None:
    if len(frame) < 16:
        return None
    mac = frame[6:12] if frame[4:6] == b"\x00\x06" else b""
    return _after_ethertype(frame, frame[14] << 8 | frame[15], 16, mac)


def _cooked_v2(frame: bytes) -> Located | None:
    if len(frame) < 20:
        return None
    mac = frame[12:18] if frame[11] == 6 else b""
    return _after_ethertype(frame, frame[0] << 8 | frame[1], 20, mac)


def _raw(frame: bytes) -> Located | None:
    return Located(0, 0, b"") if frame and frame[0] >> 4 in (4, 6) else None


def _loopback(frame: bytes) -> Located | None:
    """The address family's number and byte order differ between systems; the IP version does not."""
    return Located(4, 0, b"") if len(frame) > 4 and frame[4] >> 4 in (4, 6) else None


def _ppp(frame: bytes) -> Located | None:
    offset = 2 if frame[:2] == b"\xff\x03" else 0
    if len(frame) < offset + 3 or (frame[offset] << 8 | frame[offset + 1]) not in _PPP_IP:
        return None
    return Located(offset + 2, 0, b"")


def _ppp_serial(frame: bytes) -> Located | None:
    """PPP in HDLC framing, or Cisco HDLC: four bytes, the last two a protocol."""
    if len(frame) < 5:
        return None
    protocol = frame[2] << 8 | frame[3]
    return Located(4, 0, b"") if protocol in _PPP_IP or protocol in _IP else None


def _radiotap(frame: bytes) -> Located | None:
    if len(frame) < 4:
        return None
    return _wifi(frame, frame[2] | frame[3] << 8)


def _wifi(frame: bytes, start: int = 0) -> Located | None:
    """802.11 data frames, unencrypted."""
    if len(frame) < start + 32:
        return None
    control, flags = frame[start], frame[start + 1]
    if control & 0x0C != 0x08 or flags & 0x40:
        return None
    offset = start + 24 + (6 if flags & 3 == 3 else 0) + (2 if control & 0x80 else 0)
    if frame[offset : offset + 3] != _SNAP or len(frame) < offset + 8:
        return None
    mac = frame[start + 10 : start + 16]
    return _after_ethertype(frame, frame[offset + 6] << 8 | frame[offset + 7], offset + 8, mac)


LINK_TYPES: dict[int, Locate] = {
    0: _loopback,
    1: _ethernet,
    9: _ppp,
    12: _raw,
    14: _raw,
    50: _ppp_serial,
    101: _raw,
    104: _ppp_serial,
    105: _wifi,
    108: _loopback,
    113: _cooked,
    127: _radiotap,
    228: _raw,
    229: _raw,
    276: _cooked_v2,
}
"""Link type -> how to find IP in its frames."""
