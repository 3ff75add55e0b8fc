"""How a worker answers the supervisor's questions: a little at a time, between packets.

    supervisor -> worker    {"ask": number, "what": command, ...}   a question
                            {"next": number}                        send another page
                            {"cancel": number}                      nobody wants the answer any more
    worker -> supervisor    {"answer": number, "columns": [...], "rows": [...]}
                            {"answer": number, "done": {...}}       the last
                            {"answer": number, "error": sentence, "kind": ...}   instead of it

Of each question one page at most is under way, and pages are small: the link keeps room for heartbeats.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import orjson

from nedge.control.protocol import ControlError, Kind, Message, plain
from nedge.control.requests import Flows, Hosts
from nedge.core.engine import Engine
from nedge.core.flow import FLOWS_PER_WORKER, Flow
from nedge.core.orders import Order
from nedge.gateway.listing import (
    FLOW_COLUMNS,
    HOST_COLUMNS,
    SCRIPT_COLUMNS,
    Row,
    known_statuses,
    list_flows,
    list_hosts,
    script_row,
)
from nedge.gateway.orders import order_from
from nedge.gateway.story import tell
from nedge.scripts.script import Script

SLICE = 0.0002
"""Seconds of work on questions at a stretch: so long may a packet have to wait for it."""
PATIENCE = 0.6
"""Seconds after which an order is answered, though it has not come to all live flows yet."""
PAGE = 24 * 1024
"""Bytes of rows from which a page is sent."""


class Sender(Protocol):
    def send(self, message: Message) -> bool:
        """Whether it was sent."""


class Means(NamedTuple):
    """What a worker has to answer with."""

    engine: Engine
    scripts: Callable[[], list[Script]]
    clock: Callable[[], float]
    """Epoch seconds, as the engine is told them."""
    kernel: Callable[[Flow], dict[str, Any] | None]
    """What the kernel holds of a flow now; None where it is not used."""
    recall: Callable[[Order], None]
    """Have connections that an order covers, but no flow here, come up to be judged."""
    gathering: Callable[[], AbstractContextManager[None]]
    """A slice of work, in which marks that change are told to the kernel together."""
    packets_wait: Callable[[], bool]
    """Whether there are packets to be judged."""
    pause: Callable[[], None]
    """Have `Answers.resume` called in a moment."""
    failed: Callable[[BaseException], None]
    """Told of what must not happen."""


class _Job:
    """One question, and how far its answer has got."""

    def __init__(self, number: int) -> None:
        self.number: int | None = number
        """The supervisor's; None once it has its answer."""
        self.steps: Iterator[Row | None] = iter(())
        self.columns: Sequence[str] = ()
        self.done: dict[str, Any] = {}
        self.rows: list[bytes] = []
        self.size = 0
        self.exhausted = False
        self.may_send = True
        """No page is under way."""
        self.is_order = False
        """It changes something: so it is done to its end."""
        self.patience = 0.0
        """When the answer has to go out, and the work goes on without anybody waiting; 0 = with its end."""

    @property
    def full(self) -> bool:
        return self.size >= PAGE or (self.exhausted and bool(self.rows))

    @property
    def is_overdue(self) -> bool:
        """Whether the answer has to go out, though the work is not done."""
        return self.number is not None and 0 < self.patience < perf_counter()

    @property
    def runnable(self) -> bool:
        return self.may_send or not (self.full or self.exhausted)


class Answers:
    """The questions in hand. `fileno()` is readable while there is something to do: then call `step`."""

    def __init__(self, means: Means, link: Sender) -> None:
        self._means = means
        self._link = link
        self._jobs: deque[_Job] = deque()
        self._event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._awake = False
        self._judged = 0  # packets, when the latest slice began
        self._paused = False  # since then

    def fileno(self) -> int:
        return self._event

    def close(self) -> None:
        os.close(self._event)

    def hear(self, message: Message) -> None:
        """A message from the supervisor; those that are not about questions are ignored."""
        if "ask" in message:
            job = _Job(message["ask"])
            try:
                self._begin(job, message["what"], message)
            except Exception as error:
                self._fail(job, error)
            else:
                self._jobs.append(job)
        elif "next" in message:
            for job in self._jobs:
                job.may_send = job.may_send or job.number == message["next"]
        elif "cancel" in message:
            for job in [job for job in self._jobs if job.number == message["cancel"]]:
                if job.is_order:
                    job.number, job.patience = None, 0.0  # it is in force, whoever waits for it or not
                else:
                    self._jobs.remove(job)
        self.resume()

    def resume(self) -> None:
        """Go on, if there is anything to do; also after the link was full."""
        if not self._awake and any(job.runnable for job in self._jobs):
            self._awake = True
            os.eventfd_write(self._event, 1)

    def _rest(self) -> None:
        if self._awake:
            self._awake = False
            os.eventfd_read(self._event)

    def step(self) -> None:
        """Work on one question for a moment. Where packets wait, or came since the last time, pause first.

        Only once: however many packets come, there is a slice between two pauses.
        """
        judged = self._means.engine.counters.packets
        if not self._paused and (judged != self._judged or self._means.packets_wait()):
            self._paused = True
            self._rest()
            self._means.pause()
            return
        self._judged, self._paused = judged, False
        job = next((job for job in self._jobs if job.runnable), None)
        if job is None:
            self._rest()
            return
        self._jobs.remove(job)
        self._jobs.append(job)  # then it is the others' turn
        try:
            with self._means.gathering():
                self._work(job, perf_counter() + SLICE)
        except Exception as error:
            self._jobs.remove(job)
            self._fail(job, error)
            return
        if job.full:
            self._send_page(job)
        elif job.exhausted or job.is_overdue:
            self._send_last(job)

    def _work(self, job: _Job, end: float) -> None:
        for row in job.steps:
            if row is not None:
                text = _encoded(row)
                job.rows.append(text)
                job.size += len(text)
                if job.full:
                    return
            if perf_counter() >= end:
                return
        job.exhausted = True

    def _send_page(self, job: _Job) -> None:
        if not job.may_send:
            return
        rows = orjson.Fragment(b"[" + b",".join(job.rows) + b"]")
        if self._link.send({"answer": job.number, "columns": job.columns, "rows": rows}):
            job.rows, job.size, job.may_send = [], 0, False
        else:
            self._rest()  # the link is full: `resume` will be called

    def _send_last(self, job: _Job) -> None:
        if not job.may_send:
            return
        if job.number is None:  # nobody waits any more
            self._jobs.remove(job)
        elif not self._link.send({"answer": job.number, "done": orjson.Fragment(_encoded(job.done))}):
            self._rest()
        elif job.exhausted:
            self._jobs.remove(job)
        else:
            job.number, job.patience = None, 0.0

    def _fail(self, job: _Job, error: Exception) -> None:
        kind = error.kind if isinstance(error, ControlError) else Kind.FAILED
        if not isinstance(error, ControlError):
            self._means.failed(error)
        text = plain(str(error) if isinstance(error, ControlError) else f"{type(error).__name__}: {error}")
        self._link.send({"answer": job.number, "error": text, "kind": kind})

    # The questions

    def _begin(self, job: _Job, what: str, message: Message) -> None:
        """Set the job up. Raises ControlError for a question that cannot be answered."""
        engine, now = self._means.engine, self._means.clock()
        match what:
            case "status":
                job.done = self._status()
            case "scripts":
                job.columns = SCRIPT_COLUMNS
                job.steps = (script_row(script, engine) for script in self._means.scripts())
            case "flows":
                job.columns = FLOW_COLUMNS
                job.done = {"looked_at": 0, "matched": 0}

                def count(matching: bool) -> None:
                    job.done["looked_at"] += 1
                    job.done["matched"] += matching

                wanted = Flows.model_validate(message["wanted"])
                statuses = known_statuses(self._means.scripts())
                job.steps = list_flows(engine, wanted, statuses, message["worker"], count)
            case "hosts":
                job.columns = HOST_COLUMNS
                hosts = Hosts.model_validate(message["wanted"])
                job.steps = list_hosts(engine, hosts, known_statuses(self._means.scripts()), now)
            case "explain":
                job.steps = self._explain(job, message["flow"], message["worker"])
            case "key":
                job.steps = self._key(job, message["flow"])
            case "order":
                order = order_from(message["order"])
                job.steps = _counted(job, engine.give(order, now))
                self._means.recall(order)
            case "forget":
                former = engine.verdicts.orders.get(message["order"])
                job.steps = _counted(job, engine.forget(message["order"], now))
                if former is not None:
                    self._means.recall(former)
            case "release":
                cut = any(host.ip == message["host"] for host in engine.verdicts.quarantined)
                job.steps = _counted(job, engine.release(message["host"], now))
                job.done["released"] = cut
            case _:
                raise ControlError(Kind.FAILED, f"this worker knows no question {what!r}")

    def _status(self) -> dict[str, Any]:
        engine = self._means.engine
        return {
            "ndpi": engine.inspector.classifier.version,
            "scripts": [script.key for script in self._means.scripts()],
            "epoch": engine.epoch,
            "live_flows": engine.table.count,
            "live_hosts": len(engine.hosts),
            "quarantined": [host.ip for host in engine.verdicts.quarantined],
            "orders": len(engine.verdicts.orders),
        }

    def _find(self, number: int) -> Iterator[Flow | None]:
        """The flow of this number, at the end; None after a step that did not find it.

        A number is a flow's id, as events have it, or counts this worker's flows, as in WORKER-NUMBER.
        """
        counts = number < FLOWS_PER_WORKER
        for flow in self._means.engine.table.walk():
            if number == (flow.id % FLOWS_PER_WORKER if counts else flow.id):
                yield flow
                return
            yield None

    def _explain(self, job: _Job, number: int, worker: int) -> Iterator[None]:
        for flow in self._find(number):
            if flow is not None:
                means = self._means
                kernel = means.kernel(flow)  # first: its counters become the flow's
                job.done = {"story": tell(means.engine, flow, worker, means.clock(), kernel)}
            yield None

    def _key(self, job: _Job, number: int) -> Iterator[None]:
        for flow in self._find(number):
            if flow is not None:
                job.done = {"key": flow.key.hex()}
            yield None


def _counted(job: _Job, steps: Iterator[bool]) -> Iterator[None]:
    """Count the flows whose action changed. Where that takes long, the answer does not wait for it."""
    job.is_order = True
    job.done = {"changed": 0, "going_on": 1}
    job.patience = perf_counter() + PATIENCE

    def count() -> Iterator[None]:
        for changed in steps:
            job.done["changed"] += changed
            yield None
        job.done["going_on"] = 0

    return count()


def _encoded(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # text that is no Unicode: a script's
        return orjson.dumps(plain(value))
