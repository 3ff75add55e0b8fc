"""One worker: a queue, an engine, and the loop between them.

packet waits -> engine -> verdict        as it comes, in batches
engine.advance()                         every second at least
signal                                   ends the loop
"""

from __future__ import annotations

import contextlib
import math
import select
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import structlog

from nedge.config import Config
from nedge.core.engine import Engine
from nedge.core.flow import Flow, Share
from nedge.core.hosts import Host
from nedge.core.marks import Marks
from nedge.core.orders import Order
from nedge.core.packet import ICMP, ICMPV6
from nedge.core.stream import MAX_HELD_INLINE
from nedge.gateway.accounting import Accounting
from nedge.gateway.answers import Answers, Means
from nedge.gateway.latency import Latency
from nedge.gateway.link import Link
from nedge.gateway.loop import Loop
from nedge.gateway.orientation import Orientation
from nedge.gateway.rejecting import Rejector
from nedge.gateway.supervisor import HOSTS_PER_MESSAGE
from nedge.gateway.verdicts import Mode, Verdicts
from nedge.kernel.conntrack import Conntrack
from nedge.kernel.errors import KernelError
from nedge.kernel.queue import PacketQueue
from nedge.scripts.script import Script

TICK = 1.0
"""Seconds between two runs of the engine's timers."""
SLICE = 8
"""Flows whose timers run between two looks for packets: thousands may be due in one second, with scripts and
alerts some 25 microseconds each, and neither packets nor heartbeats wait for all of them."""
BEAT = 0.25
OBSERVED = 16
"""Packets between two heartbeats that are looked at for their direction: it costs as much as a verdict."""
PAUSE = 0.001
"""Between two slices of an answer, when packets come."""
CLOCK_SECONDS, CLOCK_SET = 20.0, 10.0
"""Between two looks at the machine's clock, the first when all workers have started; if it was set by more
than this, another worker starts by it."""

log = structlog.get_logger()


class Worker:
    """Feeds what waits in one queue to one engine, until it is stopped."""

    def __init__(
        self,
        engine: Engine,
        *,
        number: int,
        length: int,
        mode: Mode,
        fail_open: bool,
        marks: Marks | None = None,
        gso: bool = False,
        rejector: Rejector | None = None,
        vlan_mask: int = 0,
        latency: Latency | None = None,
    ) -> None:
        """Bind the queue. Raises KernelError if it is taken.

        marks: the kernel takes decided flows over, by these.
        gso: take large segmented packets whole. Only the first 2 KB of each come up, so that a name behind
        them is not seen: undecided flows had better come in packets as they are on the wire.
        rejector: tells the ends of rejected packets; without, these are only dropped.
        vlan_mask: the bits of a packet's mark that hold its VLAN; 0: all count as untagged.
        latency: counts the time of each verdict.
        """
        self._rejector = rejector
        self.engine = engine
        engine.slice = SLICE
        if mode == "inline":
            engine.normalizer.inline = True
            engine.inspector.max_held = MAX_HELD_INLINE
        self.mode = mode
        self._offset = _clock_offset()
        self._marks = marks
        self._verdicts = Verdicts(engine, mode, marks, self._offset)
        self.clock = self._verdicts.now
        """Epoch seconds."""
        self._conntrack: Conntrack | None = None
        self._accounting: Accounting | None = None
        self._link: Link | None = None
        self.figures: Callable[[], dict[str, int]] = dict
        """Counters of others to send with the heartbeat."""
        self._orientation: Orientation | None = None
        self._length = length
        self._queue_figures = dict.fromkeys(
            ("queue_waiting", "queue_full", "queue_lost", "queue_taken", "queue_overloads"), 0
        )
        """Packets waiting; dropped since the queue was full, or our buffer was; that came at all; heartbeats
        at which the queue was full (fail-open, the kernel passes what comes then, and counts nothing)."""
        self._to_cut: list[tuple[str, float]] = []
        """Hosts, and for how many seconds."""
        self._answers: Answers | None = None
        self._gathered: list[tuple[bytes, int]] | None = None
        """Keys and marks that the kernel is to be told of together."""
        self.errors = 0
        """Exceptions out of the engine: each cost a packet its verdict, and the failure policy decided."""
        self._error_log = _OncePerSecond()
        self.loop = Loop(lambda: engine.late, lambda: self._guarded(engine.advance))
        self.loop.every(TICK, lambda: self._guarded(engine.advance))
        judge = self._verdicts.judge
        self.queue = PacketQueue(
            number,
            latency.around(judge) if latency else judge,
            length=length,
            fail_open=fail_open,
            on_error=self._engine_failed,
            mark_mask=marks.mask if marks else 0,
            untracked_mark=marks.untracked if marks else 0,
            gso=gso,
            reject=rejector,
            rewritten=lambda: engine.normalizer.rewritten,
            vlan_mask=vlan_mask,
        )
        self.loop.watch(self.queue, self.queue.drain)
        if marks:
            self._hand_over(marks)

    def _hand_over(self, marks: Marks) -> None:
        """Let the kernel take over decided flows, and keep account of them."""
        self._conntrack = conntrack = Conntrack()
        self._accounting = Accounting(self.engine, conntrack, marks, self.clock)
        accounting = self._accounting
        loop = self.loop
        loop.watch(conntrack.fileno(), lambda: self._guarded(lambda _now: accounting.ends_arrived()))
        loop.watch(conntrack.dump_fileno, lambda: self._guarded(lambda _now: accounting.dump_arrived()))
        loop.every(TICK, lambda: self._guarded(lambda _now: accounting.tick()))

        def remark(flow: Flow) -> None:
            if self._gathered is not None:
                self._gathered.append((flow.key, self._verdicts.mark(flow.share)))
                return
            self.queue.flush()  # a mark that waits there must not overwrite this one
            try:
                conntrack.set_mark(flow.key, self._verdicts.mark(flow.share), marks.mask)
            except (KernelError, OSError) as error:
                self._engine_failed(error)

        self.engine.offload.remark = remark

    @contextlib.contextmanager
    def _gathering(self) -> Iterator[None]:
        """Marks that change meanwhile are told to the kernel together. No packet may be judged meanwhile."""
        changes: list[tuple[bytes, int]] = []
        self._gathered = changes
        try:
            yield
        finally:
            self._gathered = None
            if changes and self._conntrack and self._marks:
                self.queue.flush()
                try:
                    self._conntrack.set_marks(changes, self._marks.mask)
                except (KernelError, OSError) as error:
                    self._engine_failed(error)

    def orient(self, lan_ports: Iterable[int]) -> None:
        """Find out from the traffic whether LAN and WAN are swapped. lan_ports: interface indexes."""
        orientation = Orientation(lan_ports, lambda ip: self.engine.hosts.directory.is_local(ip))

        left = 0

        def observe(data: bytes, in_port: int) -> None:
            nonlocal left
            orientation.see(data, in_port)
            left -= 1
            if not left or orientation.done:
                self.queue.observer = None

        def observe_some() -> None:
            nonlocal left
            if not orientation.done:
                left = OBSERVED
                self.queue.observer = observe

        self._orientation = orientation
        observe_some()
        self.loop.every(BEAT, observe_some)

    def report_to(self, link: Link, renew: Callable[[Config | None], None]) -> None:
        """Send heartbeats to the supervisor, hear its messages, and end when it does.

        renew: makes the engine judge by another configuration; None: by the same with newer lists.
        """
        self._link = link
        self._renew = renew
        self.engine.verdicts.cut = self._cut
        self.loop.watch(link, self._hear)
        self.loop.every(BEAT, self._beat)
        self.loop.every(CLOCK_SECONDS + self.queue.number % 10, self._look_at_clock)  # not all at once

    def _cut(self, host: Host, seconds: float) -> None:
        assert self._link is not None
        self._to_cut.append((host.ip, seconds))
        self._tell_cuts()

    def _tell_cuts(self) -> None:
        """Have the supervisor cut hosts off in the kernel; if it does not hear now, with the next beat."""
        assert self._link is not None
        while self._to_cut and self._link.send({"cut": self._to_cut[:HOSTS_PER_MESSAGE]}):
            del self._to_cut[:HOSTS_PER_MESSAGE]

    def answer(self, scripts: Callable[[], list[Script]]) -> None:
        """Answer the operator's questions, too, that come over the link."""
        assert self._link is not None
        again = self.loop.every(math.inf, lambda: None)
        waiting = select.poll()
        waiting.register(self.queue.fileno(), select.POLLIN)

        means = Means(
            engine=self.engine,
            scripts=scripts,
            clock=self.clock,
            kernel=self._kernel_view,
            recall=self._recall,
            gathering=self._gathering,
            packets_wait=lambda: bool(waiting.poll(0)),
            pause=lambda: self.loop.soon(again, PAUSE),
            failed=self._engine_failed,
        )
        self._answers = answers = Answers(means, self._link)
        again.step = answers.resume
        self.loop.watch(answers, answers.step)

    def _recall(self, order: Order) -> None:
        if self._accounting:
            self._accounting.recall(order)

    def _kernel_view(self, flow: Flow) -> dict[str, Any] | None:
        """What the kernel holds of a flow now; its counters become the flow's. None without offload."""
        if self._conntrack is None or self._marks is None:
            return None
        if flow.proto in (ICMP, ICMPV6) or flow.tunnelled:  # its connections are others than our flows
            return {"connection": False}
        try:
            found = self._conntrack.find(flow.key)
        except (KernelError, OSError) as error:
            return {"error": str(error)}
        if found is None:
            return {"connection": False}
        sent, received = (found.packets, found.bytes), (found.packets_back, found.bytes_back)
        self.engine.offload.account(found.key, sent, received, flow.last_seen, ended=False)
        ours = self._marks.share_of(found.mark), self._marks.generation_of(found.mark)
        return {
            "connection": True,
            "mark": found.mark,
            "share": ours[0].name.lower(),
            "generation": ours[1],
            "current": ours[0] is Share.NONE or ours[1] == self._marks.generation,
            "packets": [found.packets, found.packets_back],
            "bytes": [found.bytes, found.bytes_back],
        }

    def _beat(self) -> None:
        assert self._link is not None
        self._tell_cuts()
        self._look_at_queue()
        beat = self.engine.figures() | self._queue_figures | {"engine_errors": self.errors} | self.figures()
        if self._conntrack:
            beat["conntrack_events_lost"] = self._conntrack.lost_events
            beat["conntrack_dumps_failed"] = self._conntrack.failed_dumps
        if self._rejector:
            beat |= self._rejector.figures()
        if self._orientation:
            beat["lan_wan_swapped"] = int(self._orientation.swapped)
        self._link.send({"beat": beat})
        if self._answers:
            self._answers.resume()
        changed = self.engine.hosts.changed_scores()
        for start in range(0, len(changed), HOSTS_PER_MESSAGE):
            part = changed[start : start + HOSTS_PER_MESSAGE]
            if not self._link.send({"hosts": part}):
                self.engine.hosts.tell_again(part)

    def _look_at_queue(self) -> None:
        if stats := self.queue.stats():
            figures = self._queue_figures
            figures["queue_waiting"] = stats.waiting
            figures["queue_full"] = stats.dropped_full
            figures["queue_lost"] = stats.dropped_user
            figures["queue_taken"] = stats.taken
            figures["queue_overloads"] += stats.waiting >= self._length

    def _look_at_clock(self) -> None:
        """A box without a battery starts in 1970, and hears later what time it is: another is to start."""
        assert self._link is not None
        if abs(seconds := _clock_offset() - self._offset) > CLOCK_SET:
            self._link.send({"failed": f"the machine's clock was set by {seconds:.0f} s"})
            self.loop.stop()

    def _hear(self) -> None:
        assert self._link is not None
        messages = self._link.receive()
        if messages is None:
            self.loop.stop()  # no supervisor, no worker
            return
        for message in messages:
            for ip, vlan, score in message.get("hosts", ()):
                self.engine.set_score_elsewhere(ip, vlan, score)
            if "renew" in message:
                self._take_over(message["renew"], message["generation"])
            if self._answers:
                self._answers.hear(message)

    def _take_over(self, config: dict[str, Any] | None, generation: int) -> None:
        """Another configuration. It has been checked; should it fail here, another worker starts."""
        assert self._link is not None
        try:
            self._renew(Config.model_validate(config) if config else None)
        except Exception as error:
            self._engine_failed(error)
            self.loop.stop()
            return
        if self._marks:
            self._marks = Marks(self._marks.mask, generation)
            self._verdicts.mark_by(self._marks)
        self._link.send({"ready": True})

    def close(self, flows_ended: Callable[[], None] = lambda: None) -> None:
        """Judge what still waits, let the queue go, end the flows. The rules must be gone by now.

        flows_ended: called before the last heartbeat, which is to have all figures in it.
        """
        self.loop.close()
        if self._link is not None:
            self._look_at_queue()
        if self._answers:
            self._answers.close()
        self.queue.close()
        self._queue_figures["queue_waiting"] = 0
        if self._accounting:
            self._accounting.finish()
        self._guarded(self.engine.finish)
        flows_ended()
        if self._link is not None:
            self._beat()
        if self._conntrack:
            self._conntrack.close()
        if self._rejector:
            self._rejector.close()

    def _guarded(self, step: Callable[[float], object]) -> None:
        try:
            step(self.clock())
        except Exception as error:
            self._engine_failed(error)

    def _engine_failed(self, error: BaseException) -> None:
        """The engine must not raise; if it does, traffic goes on, and the log says so, not too often."""
        self.errors += 1
        if self._error_log.may():
            with contextlib.suppress(Exception):  # a log that cannot be written must not stop traffic
                log.error("engine_error", error=repr(error), errors=self.errors, exc_info=error)


def _clock_offset() -> float:
    return time.time() - time.monotonic()


class _OncePerSecond:
    def __init__(self) -> None:
        self._next = 0.0

    def may(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + 1.0
        return True
