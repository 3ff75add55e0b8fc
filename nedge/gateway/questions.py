"""Questions to the workers: asked of several at once, answered in pages, never waited for.

Pages go through to the client as they come. The next one is asked for when the client has taken most of what
it has: a slow client makes its own listing slow, and nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from nedge.control.protocol import Kind, Message
from nedge.gateway.connection import Client
from nedge.gateway.supervisor import Supervisor

ANSWER_SECONDS = 5.0
"""Without a word for so long a worker is not waited for any more."""


class Question:
    """A question, and what has come back."""

    def __init__(self, number: int, client: Client | None, ended: Callable[[Question], None]) -> None:
        self.number = number
        self.client = client
        self.ended = ended
        self.pending: set[int] = set()
        """Workers that have not answered to the end."""
        self.owed: set[int] = set()
        """Workers that wait to be asked for their next page."""
        self.silent: list[int] = []
        """Workers that did not answer."""
        self.results: dict[int, dict[str, Any]] = {}
        self.errors: list[tuple[Kind, str]] = []
        self.heard = time.monotonic()

    def total(self, name: str) -> int:
        """A number of all results together."""
        return sum(result.get(name, 0) for result in self.results.values())


class Questions:
    """All that are open."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.unanswered = 0
        """Workers that did not answer in time."""
        self._supervisor = supervisor
        self._open: dict[int, Question] = {}
        self._next = 1

    def ask(
        self,
        client: Client | None,
        message: Message,
        ended: Callable[[Question], None],
        workers: Iterable[int] | None = None,
    ) -> None:
        """Ask these workers, or all; `ended` is called when all have answered, or cannot be waited for.

        A question that a worker found wrong is refused at once. `client`: gets the rows; None: nobody waits.
        """
        question = Question(self._next, client, ended)
        self._next += 1
        self._open[question.number] = question
        if client is not None:
            client.on_gone = lambda: self._cancel(question)
        everyone = self._supervisor.workers
        for number in range(len(everyone)) if workers is None else workers:
            asked = message | {"ask": question.number, "worker": everyone[number].serial}
            if self._supervisor.post_to(number, asked):
                question.pending.add(number)
            else:
                question.silent.append(number)
        self._end_if_over(question)

    def answered(self, number: int, message: Message) -> None:
        """A worker's answer, or a part of it."""
        question = self._open.get(message["answer"])
        if question is None or number not in question.pending:
            return  # given up meanwhile
        question.heard = time.monotonic()
        if "rows" in message:
            self._pass_on(question, number, message)
            return
        question.pending.discard(number)
        if "error" in message:
            question.errors.append((Kind(message["kind"]), message["error"]))
        else:
            question.results[number] = message["done"]
        self._end_if_over(question)

    def _pass_on(self, question: Question, number: int, message: Message) -> None:
        client = question.client
        if client is not None:
            client.rows(message["columns"], message["rows"])
        if client is None or client.room:
            self._supervisor.post_to(number, {"next": question.number})
        elif not client.closed:
            question.owed.add(number)
            client.on_room = lambda: self._go_on(question)

    def _go_on(self, question: Question) -> None:
        question.heard = time.monotonic()
        owed, question.owed = question.owed, set()
        for number in owed:
            self._supervisor.post_to(number, {"next": question.number})

    def lost(self, number: int) -> None:
        """A worker is gone."""
        for question in list(self._open.values()):
            if number in question.pending:
                question.pending.discard(number)
                question.owed.discard(number)
                question.silent.append(number)
                self._end_if_over(question)

    def turn(self, now: float) -> None:
        """Give up those that wait too long; not while it is the client that does not read."""
        for question in list(self._open.values()):
            if question.pending - question.owed and now - question.heard > ANSWER_SECONDS:
                self.unanswered += len(question.pending)
                self._supervisor.post({"cancel": question.number})
                question.silent += sorted(question.pending)
                question.pending.clear()
                self._end_if_over(question)

    def _cancel(self, question: Question) -> None:
        """The client is gone."""
        if self._open.pop(question.number, None) and question.pending:
            self._supervisor.post({"cancel": question.number})

    def _end_if_over(self, question: Question) -> None:
        if question.pending or self._open.pop(question.number, None) is None:
            return
        client = question.client
        if client is not None and question.errors:
            client.refuse(*question.errors[0])
        else:
            question.ended(question)
