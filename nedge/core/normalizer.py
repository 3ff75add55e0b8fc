"""Making sure that a flow is judged by what its server takes.

Packets may be made only to be judged: their hop limit ends behind us, their checksum is wrong, their SYN is
not the one that is answered. The server takes others in their place. So what can be understood in two ways is
made unambiguous on its way, and a verdict to pass holds once the server has answered or confirmed.
"""

from __future__ import annotations

from typing import Final

from nedge.core.flow import SEVERAL, Flow, Share
from nedge.core.limits import Counters
from nedge.core.packet import ACK, SYN, TCP, UDP, Packet, acknowledged, ahead, decode
from nedge.core.rewrite import URG, checksum_holds, is_whole, with_payload
from nedge.core.unconfirmed import WINDOW, Unconfirmed
from nedge.core.watch import HttpWatch

ASK_BYTES: Final = 8 * 1024
ASK_SPAN: Final = 1 << 28
"""Bytes kept of a watched flow's client, and numbers that it used, while nothing is confirmed; beyond, what
the server sends comes up again."""
UNANSWERED: Final = 24
"""Packets after which a UDP flow is one that nobody answers."""

_SYN_ACK: Final = SYN | ACK
_PASS: Final = Share.PASS
_DROP: Final = Share.DROP
_WATCH: Final = Share.WATCH


class Normalizer:
    """What comes by is asked of this first; `rewritten` is what goes on in the latest packet's place."""

    def __init__(self, counters: Counters) -> None:
        self._counters = counters
        self.rewritten = b""
        """Empty if the packet itself goes on."""
        self.inline = False
        """What happens to packets is up to us, so that data in SYNs can be taken out."""
        self.awaits_answer = False
        """The latest packet is a SYN, and what answers it must come up."""

    def before_flow(self, packet: Packet, *, tracked: bool) -> Packet | None:
        """The packet as it goes on, None if it does not. `tracked`: of a connection that the kernel knows."""
        if not tracked and not checksum_holds(packet):  # the kernel had its reason; the receiver has it too
            self._counters.bad_checksums += 1
            return None
        if packet.flags & _SYN_ACK == SYN and packet.payload_length and self.inline:
            # The server may throw them away, and take others then. The client sends them again (RFC 7413).
            self._counters.syn_data += 1
            return self._rewrite(packet, b"")
        return packet

    def opened_again(self, flow: Flow, number: int) -> bool:
        """Another SYN of the client's: which of them the server takes, its answer will tell.

        False: it cannot go on. It comes again, without data.
        """
        if not self.inline:
            if ahead(number, flow.isn) < 0:
                flow.isn = number
            return True
        flow.isn = SEVERAL
        self.awaits_answer = True
        return not self.rewritten

    def from_client(self, flow: Flow, packet: Packet) -> Packet | None:
        """A TCP segment with a payload, as it goes on: with what was sent there first. None: it does not."""
        if self.inline:
            if flow.isn == SEVERAL or packet.flags & SYN:
                self._counters.early_data += 1
                return None
            stale = ahead(flow.isn + 1, packet.seq)
            if flow.isn >= 0 and stale > 0 and flow.goodput_sent < WINDOW:  # later, numbers come round again
                # Nobody takes it, if that is where the stream starts.
                if stale >= packet.payload_length:
                    self._counters.early_data += 1
                    return self._rewrite(packet, b"")
                if not flow.resumed:  # else it may be sent again, with more behind it
                    self._counters.early_data += 1
                    return None
        unconfirmed = flow.unconfirmed
        if unconfirmed is None:
            unconfirmed = flow.unconfirmed = Unconfirmed(flow.isn)
        watch = flow.watch
        telling = flow.looking and not (isinstance(watch, HttpWatch) and watch.skips(packet))
        first = unconfirmed.take(packet, telling=telling)
        if first is not None:
            self._counters.other_copies += 1
            changed = self._rewrite(packet, first) if first else None
            return changed if self.inline or changed is not None else packet
        if packet.flags & URG and is_whole(packet):
            self._counters.urgent_data += 1
            return self._rewrite(packet, packet.payload_bytes())
        return packet

    def from_server(self, flow: Flow, packet: Packet, port: int) -> None:
        """What it tells of what the server has. `port`: of the bridge, that it came by; 0: not known."""
        if port and port == flow.port:  # the client says so, with the server's address
            return
        if flow.proto != TCP:
            flow.answered = True
        elif packet.flags & _SYN_ACK == _SYN_ACK:
            isn = (acknowledged(packet) - 1) & 0xFFFFFFFF
            if isn != flow.isn:
                flow.start_at(isn)
        elif packet.flags & ACK:
            if flow.unconfirmed is not None:
                flow.unconfirmed.confirm(acknowledged(packet))
            elif flow.resumed and flow.looking and flow.isn >= 0:
                # Nothing was taken of the client's so far. It may be another connection, whose SYN we missed.
                number = (acknowledged(packet) - 1) & 0xFFFFFFFF
                if number != flow.isn:
                    flow.start_at(number)

    def allows(self, flow: Flow, share: Share) -> bool:
        """Whether the kernel may have this share of a decided flow now: by what the server has told."""
        if flow.proto == UDP:
            return flow.answered or share is not _PASS or flow.packets > UNANSWERED
        if flow.isn == SEVERAL and share is not _DROP:
            return False
        unconfirmed = flow.unconfirmed
        if unconfirmed is None:
            return True
        if share is _WATCH:
            return unconfirmed.kept <= ASK_BYTES and unconfirmed.span <= ASK_SPAN
        if share is not _DROP and not unconfirmed.settled():
            return False
        if not (share is _DROP and flow.looking):  # else it may be judged anew
            flow.unconfirmed = None
        return True

    def _rewrite(self, packet: Packet, payload: bytes) -> Packet | None:
        if not is_whole(packet):
            return None
        self.rewritten = with_payload(packet, payload)
        changed = decode(self.rewritten, packet.key[0] << 8 | packet.key[1])
        assert isinstance(changed, Packet)
        return changed
