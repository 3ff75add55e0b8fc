"""`nedge top`, driven by keys, on a gateway without processes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import structlog
from control_kit import Office, serving
from kit import CLIENT, SERVER, T0, bench, dns
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, OptionList, Static

from nedge.control.client import Client
from nedge.control.screens import OrderScreen, StoryScreen
from nedge.control.top import Top, View, parse_filter
from nedge.gateway import desk

DEADLINE = 60.0
SCRIPT = {
    "names": """
        from nedge.scripts import status_types
        def protocolDetected(flow, now, conf):
            if flow.getHostName() == "bad.example":
                flow.triggerStatus(status_types.status_web_mining_detected, "[red]x[/red]", 100, 0, 0)
    """
}

# What is typed as a filter


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", {}),
        ("drop", {"verdict": "drop"}),
        ("tls 10.0.0.0/8", {"protocol": "tls", "host": "10.0.0.0/8"}),
        ("ads.example", {"host": "ads.example"}),
        ("2001:db8::1", {"host": "2001:db8::1"}),
        (
            "score=50 status=blacklisted category=Web",
            {"min_score": 50, "status": "blacklisted", "category": "Web"},
        ),
    ],
)
def test_filters(text: str, wanted: dict[str, Any]) -> None:
    assert parse_filter(text) == wanted


@pytest.mark.parametrize(
    ("text", "said"), [("score=x", "score: found 'x'"), ("colour=red", "colour: unknown")]
)
def test_wrong_filters(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_filter(text)


# The application


@pytest.fixture
def office(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Office]:
    monkeypatch.setattr(desk, "log", structlog.wrap_logger(structlog.testing.ReturnLogger()))
    with bench("", SCRIPT) as made:
        made.feed(dns("good.example", sport=1, start=T0).packets)
        made.feed(dns("bad.example", sport=2, start=T0 + 1).packets)
        office = Office(tmp_path, made)
        with serving(office):
            yield office


Drive = Callable[[Top, Pilot[str]], Awaitable[None]]


def drive(office: Office, keys: Drive) -> Top:
    """Run the application, and press keys; gives it, ended."""

    async def run() -> Top:
        with Client(office.server.path) as client:
            app = Top(client)
            async with app.run_test(size=(150, 40)) as pilot:
                await until(pilot, lambda: app.records)
                await keys(app, pilot)
        return app

    return asyncio.run(run())


async def until(pilot: Pilot[str], condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await pilot.pause(0.02)


def line(app: Top) -> str:
    return str(app.query_one("#line", Static).render())


def shown(app: Top) -> list[str]:
    """The rows' keys, in order."""
    return [str(row.value) for row in app.query_one(DataTable).rows]


def test_views_and_quitting(office: Office) -> None:
    async def keys(app: Top, pilot: Pilot[str]) -> None:
        assert shown(app) == ["0-2", "0-1"]
        assert "live: 2 flows" in str(app.query_one("#head", Static).render())
        for key, view, rows in (
            ("2", View.HOSTS, [f"{SERVER}@0", f"{CLIENT}@0"]),
            ("3", View.SCRIPTS, ["names"]),
            ("4", View.DROPS, ["0-2"]),
            ("1", View.FLOWS, ["0-2", "0-1"]),
        ):
            await pilot.press(key)
            await until(pilot, lambda rows=rows: sorted(shown(app)) == sorted(rows))
            assert app.view is view
        await pilot.press("q")
        await until(pilot, lambda: not app.is_running)

    assert drive(office, keys).return_value is None


def test_sorting(office: Office) -> None:
    async def keys(app: Top, pilot: Pilot[str]) -> None:
        assert "by last" in line(app)
        await pilot.press("s")
        await until(pilot, lambda: "by score" in line(app))
        await pilot.press("r")
        await until(pilot, lambda: "by score, lowest first" in line(app))
        assert shown(app) == ["0-1", "0-2"]
        await pilot.press("r", "r")
        await until(pilot, lambda: shown(app) == ["0-1", "0-2"])

    drive(office, keys)


def test_filtering(office: Office) -> None:
    async def keys(app: Top, pilot: Pilot[str]) -> None:
        await pilot.press("slash", *"bad.example", "enter")
        await until(pilot, lambda: shown(app) == ["0-2"])
        assert "only bad.example" in line(app)
        await pilot.press("slash")
        app.query_one("#filter", Input).value = "score=x"
        await pilot.press("enter")
        await until(pilot, lambda: not app.records)  # a wrong filter is told, and nothing else happens
        app.filter = "status=nope"
        await until(pilot, lambda: not shown(app))
        app.filter = ""
        app.look()
        await until(pilot, lambda: shown(app) == ["0-2", "0-1"])

    drive(office, keys)


def test_explaining(office: Office) -> None:
    async def keys(app: Top, pilot: Pilot[str]) -> None:
        await pilot.press("e")
        await until(pilot, lambda: isinstance(app.screen, StoryScreen))
        await pilot.press("escape")
        await until(pilot, lambda: not isinstance(app.screen, StoryScreen))
        await pilot.press("down", "enter")
        await until(pilot, lambda: isinstance(app.screen, StoryScreen))
        assert app.screen._story["flow"]["id"] == "0-1"  # type: ignore[attr-defined]
        await pilot.press("q")
        await until(pilot, lambda: not isinstance(app.screen, StoryScreen))
        assert app.is_running

    drive(office, keys)


def test_blocking_and_unblocking(office: Office) -> None:
    async def keys(app: Top, pilot: Pilot[str]) -> None:
        await pilot.press("b")
        await until(pilot, lambda: isinstance(app.screen, OrderScreen))
        choices = app.screen.query_one(OptionList)
        prompts = [str(choices.get_option_at_index(n).prompt) for n in range(choices.option_count)]
        assert prompts == ["flow 0-2", f"client {CLIENT}", f"server {SERVER}", "domain bad.example"]
        await pilot.press("down", "tab", *"soon", "enter")
        assert isinstance(app.screen, OrderScreen), "a wrong time is told"
        await pilot.press("ctrl+u", *"1h", "tab", *"why", "enter")
        await until(pilot, lambda: len(office.orders.book))
        (order,) = office.orders.book
        assert (order.target, order.reason, order.until) == (CLIENT, "why", order.made + 3600)
        await until(pilot, lambda: {record["verdict"] for record in app.records.values()} == {"drop"})
        await pilot.press("b", "escape")
        await until(pilot, lambda: not isinstance(app.screen, OrderScreen))
        assert len(office.orders.book) == 1
        await pilot.press("2")
        await until(pilot, lambda: f"{CLIENT}@0" in shown(app))
        app.query_one(DataTable).move_cursor(row=shown(app).index(f"{CLIENT}@0"))
        await pilot.press("u")
        await until(pilot, lambda: isinstance(app.screen, OrderScreen))
        await pilot.press("enter")
        await until(pilot, lambda: [order.id for order in office.orders.book] == [2])
        await pilot.press("3")
        await until(pilot, lambda: shown(app) == ["names"])
        await pilot.press("b")
        assert not isinstance(app.screen, OrderScreen), "a script cannot be blocked"

    drive(office, keys)


def test_the_cursor_stays_on_its_flow(office: Office) -> None:
    async def keys(app: Top, pilot: Pilot[str]) -> None:
        await pilot.press("down")
        assert app.chosen_key() == "0-1"
        office.workers[0].bench.feed(dns("new.example", sport=3, start=T0 + 2).packets)
        app.look()
        await until(pilot, lambda: len(shown(app)) == 3)
        assert app.chosen_key() == "0-1"

    drive(office, keys)


def test_it_ends_with_the_gateway(office: Office) -> None:
    async def keys(app: Top, pilot: Pilot[str]) -> None:
        for client in list(office.server.clients):
            client._socket.shutdown(2)
        app.look()
        await until(pilot, lambda: not app.is_running)

    assert "hung up" in str(drive(office, keys).return_value)
