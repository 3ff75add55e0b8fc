"""The operator's desk, in the supervisor: what each request of the control API does.

It keeps the orders, asks the workers, and has the gateway read its configuration again. The kernel's
quarantine can be hooked in: see `let_go`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import structlog

from nedge.config import Config
from nedge.control.protocol import ControlError, Kind, Message
from nedge.control.requests import (
    Explain,
    Flows,
    Forget,
    Give,
    Hosts,
    Orders,
    Release,
    Reload,
    Request,
    Scripts,
    Status,
)
from nedge.core.marks import Marks
from nedge.core.orders import MAX_ORDERS, Order, TargetError, flow_target, parse_target
from nedge.core.orders import Kind as Target
from nedge.core.verdict import Operator
from nedge.gateway.connection import Client
from nedge.gateway.control import ControlServer
from nedge.gateway.orders import OrderFile, order_message
from nedge.gateway.questions import Question, Questions
from nedge.gateway.reloading import Reloading
from nedge.gateway.summary import Rates, summarize
from nedge.gateway.supervisor import Supervisor

FLOW_ORDER_SECONDS = 86400.0
"""An order on a flow ends after a day, unless told otherwise: by then its ports will be another's."""
ORDER_COLUMNS = ("id", "word", "kind", "target", "key", "until", "made", "by", "reason")
_TURN_SECONDS = 1.0
_NOBODY = "no worker answers; is one just starting? The gateway's log says more"
_FLOW_ID = re.compile(r"(\d{1,9})-(\d{1,18})|\d{10,16}")
"""WORKER-NUMBER, as `nedge flows` has it, or the `flow_id` of events and history."""

log = structlog.get_logger()


class Desk:
    """Answers requests; implements `nedge.gateway.supervisor.Attendant`."""

    def __init__(
        self,
        config: Config,
        marks: Marks | None,
        supervisor: Supervisor,
        server: ControlServer,
        orders: OrderFile,
        reloading: Reloading,
    ) -> None:
        self.config = config
        self.marks = marks
        self.let_go: Callable[[str], bool] = lambda target: False  # noqa: ARG005
        """Have the kernel let a host out of quarantine, or all of a network. Says whether any was in."""
        self.orders_changed: Callable[[], None] = lambda: None
        """Told after orders on hosts or networks have come or gone."""
        self.totals: Callable[[], Message] = supervisor.totals
        """All counters that there are; the workers' alone, unless told otherwise."""
        self._supervisor = supervisor
        self._server = server
        self._orders = orders
        self._reloading = reloading
        self._questions = Questions(supervisor)
        self._rates = Rates()
        self._started, self._began = time.time(), time.monotonic()
        self._next_turn = 0.0
        server.handle = self.handle
        supervisor.attendant = self

    # What the supervisor tells

    def answered(self, number: int, message: Message) -> None:
        with self._guarded():
            self._questions.answered(number, message)

    def lost(self, number: int) -> None:
        with self._guarded():
            self._questions.lost(number)

    def forked(self) -> None:
        self._server.forked()

    def turn(self, now: float) -> None:
        with self._guarded():
            self._turn(now)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Whatever goes wrong at the desk, the supervisor has workers to look after."""
        try:
            yield
        except Exception as error:
            self._server.count("errors")
            log.error("control_error", error=repr(error), exc_info=error)

    def _turn(self, now: float) -> None:
        self._server.turn(now)
        self._questions.turn(now)
        self._reloading.turn(now)
        if now >= self._next_turn:
            self._next_turn = now + _TURN_SECONDS
            self._rates.note(now, self._supervisor.totals())
            self._end_orders(time.time())

    # What clients ask

    def handle(self, client: Client, request: Request) -> None:
        """Answer a request, now or later. Raises ControlError where it cannot be done."""
        match request:
            case Status():
                self._questions.ask(client, {"what": "status"}, self._status)
            case Flows() | Hosts():
                wanted = request.model_dump()
                self._questions.ask(client, {"what": request.command, "wanted": wanted}, _listed)
            case Scripts():
                self._questions.ask(client, {"what": "scripts"}, _listed)
            case Explain():
                workers, number = self._flow(request.flow)
                question = {"what": "explain", "flow": number}
                self._questions.ask(client, question, lambda q: _told(q, request.flow), workers)
            case Give():
                self._with_target(client, request.target, lambda order: self._give(client, request, order))
            case Orders():
                client.rows(
                    ORDER_COLUMNS, [list(order_message(order).values()) for order in self._orders.book]
                )
                client.done({"matched": len(self._orders.book)})
            case Forget():
                self._forget(client, request)
            case Release():
                self._release(client, request.host)
            case Reload():
                self._reloading.ask(client)

    def figures(self) -> dict[str, int]:
        """What the control API itself counted."""
        return {f"control_{name}": count for name, count in self._server.counters.items()} | {
            "control_unanswered": self._questions.unanswered,
            "orders_damaged": self._orders.damaged,
            "orders_unstored": self._orders.unstored,
        }

    def _status(self, question: Question) -> None:
        assert question.client is not None
        summary = summarize(
            self.config,
            self._supervisor,
            self.totals(),
            self.marks,
            self._rates,
            question.results,
            question.silent,
        )
        question.client.done(
            {
                "started": self._started,
                "uptime": round(time.monotonic() - self._began, 1),
                "reloads": self._reloading.count,
            }
            | summary
            | {"orders": len(self._orders.book), "control": self.figures(), "silent": question.silent}
        )

    def _flow(self, text: str) -> tuple[list[int] | None, int]:
        """A flow's id as the worker that has it (None: any may), and its number there."""
        match = _FLOW_ID.fullmatch(text)
        if not match:
            raise ControlError(
                Kind.USAGE,
                f"flow: found {text!r}; allowed is a flow's id, such as 0-17 (see nedge flows), or "
                "the flow_id of an event",
            )
        if not match[1]:
            return None, int(text)
        for worker in self._supervisor.workers:
            if worker.serial == int(match[1]):
                return [worker.number], int(match[2])
        raise ControlError(Kind.FAILED, f"there is no flow {text}: the worker that had it has been replaced")

    # Orders

    def _with_target(self, client: Client, text: str, then: Callable[[Order], None]) -> None:
        """Call `then` with a draft of an order on what the operator named. A flow is looked up first."""
        if not _FLOW_ID.fullmatch(text):
            try:
                kind, target = parse_target(text)
            except TargetError as error:
                raise ControlError(Kind.USAGE, f"target: {error}") from None
            then(Order(id=0, word=Operator.NONE, kind=kind, target=target))
            return
        workers, number = self._flow(text)

        def found(question: Question) -> None:
            key = bytes.fromhex(_only(question, "key") or "")
            if not key:
                client.refuse(Kind.FAILED, _no_flow(question, text))
                return
            try:
                then(Order(id=0, word=Operator.NONE, kind=Target.FLOW, target=flow_target(key), key=key))
            except ControlError as error:
                client.refuse(error.kind, str(error))

        self._questions.ask(client, {"what": "key", "flow": number}, found, workers)

    def _give(self, client: Client, request: Give, draft: Order) -> None:
        book, now = self._orders.book, time.time()
        if len(book) >= MAX_ORDERS and book.find(draft.kind, draft.target) is None:
            raise ControlError(Kind.FAILED, f"there are {MAX_ORDERS} orders already; forget some first")
        seconds = request.seconds or (FLOW_ORDER_SECONDS if draft.kind is Target.FLOW else 0)
        order = replace(
            draft,
            id=self._orders.next,
            word=Operator[request.command.upper()],
            until=now + seconds if seconds else 0.0,
            made=now,
            by=str(client.peer),
            reason=request.reason,
        )
        self._orders.next += 1
        book.add(order)
        warning = self._orders.store()
        told = order_message(order)
        log.info("order_given", **told)
        if order.kind in (Target.HOST, Target.NETWORK):
            if order.word is Operator.UNBLOCK:
                self.let_go(order.target)
            self.orders_changed()

        def obeyed(question: Question) -> None:
            client.done({"order": told} | _changed(question, warning))

        self._questions.ask(client, {"what": "order", "order": told}, obeyed)

    def _forget(self, client: Client, request: Forget) -> None:
        book = self._orders.book
        if (request.order is None) == (request.target is None):
            raise ControlError(Kind.USAGE, "forget: name either the order's number or its target")
        if request.target is None:
            assert request.order is not None
            self._take_out(client, book.get(request.order), f"number {request.order}")
            return
        text = request.target.strip()
        written = next((order for order in book if order.target == text), None)
        if written is not None:
            self._take_out(client, written, "")
            return
        self._with_target(
            client,
            text,
            lambda draft: self._take_out(
                client,
                book.on_flow(draft.key) if draft.key else book.find(draft.kind, draft.target),
                f"target {draft.target}",
            ),
        )

    def _take_out(self, client: Client, order: Order | None, what: str) -> None:
        if order is None:
            raise ControlError(Kind.FAILED, f"there is no order with the {what}")
        self._orders.book.remove(order.id)
        warning = self._orders.store()
        told = order_message(order)
        log.info("order_forgotten", **told | {"forgotten_by": str(client.peer)})
        if order.kind in (Target.HOST, Target.NETWORK):
            self.orders_changed()

        def obeyed(question: Question) -> None:
            client.done({"order": told} | _changed(question, warning))

        self._questions.ask(client, {"what": "forget", "order": order.id}, obeyed)

    def _end_orders(self, now: float) -> None:
        """Orders whose time is over end."""
        over = self._orders.book.over(now)
        for order in over:
            self._orders.book.remove(order.id)
            log.info("order_over", **order_message(order))
            self._questions.ask(None, {"what": "forget", "order": order.id}, lambda question: None)  # noqa: ARG005
        if over:
            self._orders.store()
            self.orders_changed()

    def _release(self, client: Client, text: str) -> None:
        try:
            kind, host = parse_target(text)
        except TargetError:
            kind, host = Target.DOMAIN, text
        if kind is not Target.HOST:
            raise ControlError(Kind.USAGE, f"host: found {text!r}; allowed is an address")
        was_cut = self.let_go(host)

        def released(question: Question) -> None:
            if was_cut or any(result["released"] for result in question.results.values()):
                log.info("host_released", host=host, by=str(client.peer))
                client.done({"host": host} | _changed(question, ""))
            else:
                client.refuse(Kind.FAILED, f"{host} is not in quarantine" if question.results else _NOBODY)

        self._questions.ask(client, {"what": "release", "host": host}, released)


def _listed(question: Question) -> None:
    """A listing is complete."""
    assert question.client is not None
    if not question.results:
        question.client.refuse(Kind.FAILED, _NOBODY)
        return
    names = {name for result in question.results.values() for name in result}
    question.client.done({name: question.total(name) for name in sorted(names)} | {"silent": question.silent})


def _told(question: Question, flow: str) -> None:
    assert question.client is not None
    story = _only(question, "story")
    if story is None:
        question.client.refuse(Kind.FAILED, _no_flow(question, flow))
    else:
        question.client.done(story)


def _only(question: Question, name: str) -> Any:
    """What the one worker said that had something to say."""
    return next((result[name] for result in question.results.values() if name in result), None)


def _no_flow(question: Question, flow: str) -> str:
    return f"there is no flow {flow} (any more)" if question.results else _NOBODY


def _changed(question: Question, warning: str) -> dict[str, Any]:
    """What came of an order."""
    return {
        "changed": question.total("changed"),
        "going_on": bool(question.total("going_on")),
        "silent": question.silent,
        "warning": warning,
    }
