"""What a worker's process does, from its start to its end, with what judges there."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

from nedge.config import Config
from nedge.core.engine import Engine
from nedge.core.marks import Marks
from nedge.core.orders import OrderBook
from nedge.export.outlet import Outlet
from nedge.gateway.latency import Latency
from nedge.gateway.link import Link
from nedge.gateway.rejecting import Rejector
from nedge.gateway.signals import StopSignals, stop_signals
from nedge.gateway.worker import Worker
from nedge.scripts.script import Script

FLUSH_SECONDS = 0.25
MEASURE_SECONDS = 1.0
PATIENCE_SECONDS = 3.0


class Judging(Protocol):
    """What judges, in one worker."""

    engine: Engine
    outlet: Outlet
    """Where its events go."""

    @property
    def scripts(self) -> list[Script]:
        """The scripts that run now."""

    def renew(self, config: Config | None) -> None:
        """Judge by another configuration, or (None) by newer lists. Raises, and then nothing has changed."""

    def measures(self) -> dict[str, Any]:
        """What is to be told of it, beside the engine's figures."""


JudgingMaker = Callable[[Config, socket.socket], AbstractContextManager[Judging]]
"""Makes what judges in one worker, in that worker's process, and ends it; events go to the socket."""


def work(
    config: Config,
    make_judging: Callable[[Config], AbstractContextManager[Judging]],
    marks: Marks | None,
    fail_open: bool,
    orders: OrderBook,
    number: int,
    link: Link,
) -> int:
    """What a worker process does: judge what its queue brings, until it is told to stop."""
    gateway = config.gateway
    with stop_signals(signal.SIGTERM) as signals, make_judging(config) as judging:
        ports = [socket.if_nametoindex(name) for name in (*gateway.lan, *gateway.wan)]
        latency = Latency() if config.metrics.listen else None
        rejector = Rejector(judging.engine, ports, config.verdict.rejects_per_second)
        worker = Worker(
            judging.engine,
            number=gateway.queue + number,
            length=gateway.queue_length,
            mode=gateway.mode,
            fail_open=fail_open,
            marks=marks,
            rejector=rejector,
            vlan_mask=gateway.vlan_mask if gateway.vlans else 0,
            latency=latency,
        )

        def measures() -> dict[str, Any]:
            return judging.measures() | ({"latency": latency.measures()} if latency else {})

        worker.orient(ports[: len(gateway.lan)])
        worker.loop.watch(signals, partial(stop_if_told, worker, signals))
        judging.engine.verdicts.orders = orders  # as it was when this process was forked; changes are told
        worker.report_to(link, partial(take_over, judging, rejector))
        worker.answer(lambda: judging.scripts)
        worker.figures = lambda: {"events_lost": judging.outlet.lost}
        worker.loop.every(FLUSH_SECONDS, judging.outlet.flush)
        worker.loop.every(MEASURE_SECONDS, lambda: link.send({"measures": measures()}))
        link.send({"ready": True})
        worker.loop.run()
        judging.outlet.be_patient(PATIENCE_SECONDS)  # all flows end at once
        worker.close(judging.outlet.close)
    return 0


def take_over(judging: Judging, rejector: Rejector, config: Config | None) -> None:
    """Another configuration, or (None) newer lists, in a worker. Raises, and then nothing has changed."""
    judging.renew(config)
    if config:
        rejector.renew(config.verdict.rejects_per_second)


def stop_if_told(worker: Worker, signals: StopSignals) -> None:
    """A signal has come. It need not be one to stop: the scripts' time budget has a timer."""
    signals.consume()
    if signals.stop is not None:
        worker.loop.stop()
