"""What the tests of the control API share: a loop, raw clients, an engine with flows."""

from __future__ import annotations

import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
from kit import Bench

from nedge.config import Config
from nedge.control.protocol import Message
from nedge.core.orders import Order, OrderBook
from nedge.gateway.answers import Answers, Means
from nedge.gateway.control import ControlServer
from nedge.gateway.desk import Desk
from nedge.gateway.orders import OrderFile
from nedge.gateway.reloading import Reloading

DEADLINE = 60.0


class Loop:
    """The supervisor's selector, without a supervisor."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self.longest = 0.0
        """Seconds that the longest turn took."""

    def watch(self, fileobj: Any, ready: Callable[[int], None], events: int = selectors.EVENT_READ) -> None:
        self._selector.register(fileobj, events, ready)

    def watch_for(self, fileobj: Any, events: int) -> None:
        self._selector.modify(fileobj, events, self._selector.get_key(fileobj).data)

    def unwatch(self, fileobj: Any) -> None:
        self._selector.unregister(fileobj)

    @property
    def watched(self) -> int:
        return len(self._selector.get_map())

    def turn(self, timeout: float = 0.0) -> bool:
        """Whether anything happened."""
        happened = self._selector.select(timeout)
        begun = time.perf_counter()
        for key, events in happened:
            key.data(events)
        self.longest = max(self.longest, time.perf_counter() - begun)
        return bool(happened)

    def settle(self) -> None:
        """Turn until nothing happens any more."""
        while self.turn(0.02):
            pass

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + DEADLINE
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            self.turn(0.02)

    def close(self) -> None:
        self._selector.close()


class Raw:
    """A client that sends what it likes, in the same thread as the loop."""

    def __init__(self, loop: Loop, path: Path) -> None:
        self._loop = loop
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.connect(str(path))
        self.socket.setblocking(False)
        self.ended = False
        self._rest = b""
        self._lines: list[Message] = []

    def send(self, data: bytes) -> None:
        """As much as the socket takes, while the loop goes on."""
        while data:
            try:
                sent = self.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:  # hung up
                return
            data = data[sent:]
            self._loop.turn()

    def ask(self, **request: Any) -> None:
        self.send(orjson.dumps(request) + b"\n")

    def read(self) -> None:
        """What is there."""
        while not self.ended:
            try:
                data = self.socket.recv(1 << 16)
            except BlockingIOError:
                return
            except ConnectionResetError:
                data = b""
            self.ended = self.ended or not data
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines += map(orjson.loads, lines)

    def lines(self) -> list[Message]:
        """The whole lines so far."""
        self.read()
        return list(self._lines)

    def answers(self, count: int = 1) -> list[Message]:
        """Wait for so many lines."""
        self._loop.until(lambda: len(self.lines()) >= count)
        return self.lines()

    def hung_up(self) -> bool:
        self.read()
        return self.ended

    def close(self) -> None:
        self.socket.close()


class Wire:
    """A worker's end of a link. `full`: nothing fits in."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.full = False
        self.refused = 0
        self.largest = 0
        self.sent: deque[Message] = deque()

    def send(self, message: Message) -> bool:
        data = orjson.dumps(message)
        self.largest = max(self.largest, len(data))
        if self.full:
            self.refused += 1
            return False
        self.sent.append(orjson.loads(data))
        return True


class Worker:
    """A worker without a process: a real engine, real scripts, and its answers."""

    def __init__(self, number: int, bench: Bench) -> None:
        self.number = self.serial = number
        self.bench = bench
        self.engine = bench.engine
        self.wire = Wire(number)
        self.pid, self.ready, self.deaf = 1000 + number, True, False
        self.heard = self.started = time.monotonic()
        self.beat: Message = {}
        self.kernel: dict[str, Any] | None = None
        self.recalled: list[Order] = []
        self.failures: list[BaseException] = []
        self.paused, self.held, self.waiting = 0, False, False
        means = Means(
            bench.engine,
            lambda: bench.assembly.scripts,
            lambda: self.engine.now,
            lambda flow: self.kernel,
            self.recalled.append,
            nullcontext,
            lambda: self.waiting,
            self.pause,
            self.failures.append,
        )
        self.answers = Answers(means, self.wire)

    def pause(self) -> None:
        """What a timer does in a real worker."""
        self.paused += 1
        if not self.held:
            self.answers.resume()


class Office(Loop):
    """A gateway without processes: the loop, the socket, the desk, and workers that answer in this thread."""

    def __init__(self, directory: Path, *benches: Bench, config: Config | None = None) -> None:
        super().__init__()
        self.workers = [Worker(number, bench) for number, bench in enumerate(benches)]
        self.restarts = 0
        self.attendant: Any = None
        self.signals = SimpleNamespace(reload=False)
        self.orders = OrderFile(directory, "nedge0")
        self.orders.load()
        self.server = ControlServer(directory / "s.sock", None, self)
        self.server.open()
        supervisor: Any = self
        self.reloading = Reloading(supervisor, self.signals)  # type: ignore[arg-type]
        self.desk = Desk(config or Config(), None, supervisor, self.server, self.orders, self.reloading)
        for worker in self.workers:
            self._join(worker)

    def _join(self, worker: Worker) -> None:
        worker.engine.verdicts.orders = OrderBook(self.orders.book)
        self.watch(worker.answers, lambda _events: worker.answers.step())

    def turn(self, timeout: float = 0.0) -> bool:
        delivered = False
        for worker in self.workers:
            while worker.wire.sent:
                self.desk.answered(worker.number, worker.wire.sent.popleft())
                delivered = True
        return super().turn(0 if delivered else timeout) or delivered

    def ask(self, **request: Any) -> list[Message]:
        """All lines of the answer, over a connection of its own."""
        client = Raw(self, self.server.path)
        client.ask(**request)
        self.until(lambda: client.lines() and "ok" in client.lines()[-1])
        lines = client.lines()
        client.close()
        return lines

    def result(self, **request: Any) -> Any:
        """The result of a request that works."""
        answer = self.ask(**request)[-1]
        assert answer["ok"], answer
        return answer["result"]

    def error(self, **request: Any) -> tuple[str, str]:
        """Kind and sentence of one that does not."""
        answer = self.ask(**request)[-1]
        assert not answer["ok"], answer
        return answer["kind"], answer["error"]

    def records(self, **request: Any) -> list[dict[str, Any]]:
        """A listing."""
        *parts, last = self.ask(**request)
        assert last["ok"], last
        return [dict(zip(part["columns"], row, strict=True)) for part in parts for row in part["rows"]]

    def totals(self) -> Message:
        return {"packets": sum(worker.engine.counters.packets for worker in self.workers)}

    def post(self, message: Message) -> list[int]:
        return [worker.number for worker in self.workers if self.post_to(worker.number, message)]

    def post_to(self, number: int, message: Message) -> bool:
        worker = self.workers[number]
        if not worker.pid:
            return False
        if not worker.deaf:
            worker.answers.hear(orjson.loads(orjson.dumps(message)))
        return True

    def close(self) -> None:
        self.server.close()
        for worker in self.workers:
            self.unwatch(worker.answers)
            worker.answers.close()
        assert self.watched == 0
        super().close()


@contextmanager
def serving(office: Office) -> Iterator[None]:
    """A thread turns the loop."""
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            office.turn(0.01)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        office.settle()
        office.close()
