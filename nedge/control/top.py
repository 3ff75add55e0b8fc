"""`nedge top`: a live view, full screen."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Any, ClassVar, NamedTuple, Protocol

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Footer, Input, Static

from nedge.control import show
from nedge.control.client import Answer
from nedge.control.protocol import ControlError, FlowSort, HostSort
from nedge.control.screens import OrderScreen, StoryScreen

REFRESH_SECONDS = 2.0
ROWS = 200
"""Rows that are fetched and shown at most."""

_VERDICTS = ("pass", "drop", "reject", "blocked")
_KEYED = ("host", "protocol", "category", "status", "verdict")


class Asker(Protocol):
    """The client."""

    def ask(self, command: str, **parameters: Any) -> Answer:
        """Raises ControlError."""


class View(StrEnum):
    """What the table shows."""

    FLOWS = "flows"
    HOSTS = "hosts"
    SCRIPTS = "scripts"
    DROPS = "drops"


class Shown(NamedTuple):
    """One look at the gateway."""

    status: dict[str, Any]
    records: list[dict[str, Any]]
    matched: int


_HEADINGS = {
    View.FLOWS: show.FLOW_HEADINGS,
    View.DROPS: show.FLOW_HEADINGS,
    View.HOSTS: show.HOST_HEADINGS,
    View.SCRIPTS: show.SCRIPT_HEADINGS,
}
_CELLS: dict[View, Callable[[show.Record], list[Text]]] = {
    View.FLOWS: show.flow_cells,
    View.DROPS: show.flow_cells,
    View.HOSTS: show.host_cells,
    View.SCRIPTS: show.script_cells,
}


def parse_filter(text: str) -> dict[str, Any]:
    """Words to a filter: `drop`, `10.0.0.0/8`, `ads.example`, `tls`, `score=50`, `status=blacklisted`.

    A word that is no verdict and has none of `.`, `:`, `/` is a protocol. Raises ValueError with a sentence.
    """
    wanted: dict[str, Any] = {}
    for word in text.split():
        name, equals, value = word.partition("=")
        if equals and name == "score":
            if not value.isdecimal():
                raise ValueError(f"score: found {value!r}; allowed is a number")
            wanted["min_score"] = int(value)
        elif equals and name in _KEYED:
            wanted[name] = value
        elif equals:
            raise ValueError(f"{name}: unknown; allowed are score, {', '.join(_KEYED)}")
        elif word in _VERDICTS:
            wanted["verdict"] = word
        else:
            wanted["host" if any(mark in word for mark in ".:/") else "protocol"] = word
    return wanted


class Top(App[str]):
    """The application. `run()` gives why it had to end, or None."""

    TITLE = "nedge"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: auto; padding: 0 1; background: $panel; }
    #line { height: 1; padding: 0 1; }
    #filter { display: none; }
    #filter.open { display: block; }
    DataTable { height: 1fr; }
    ModalScreen { align: center middle; }
    #box { width: 90%; max-width: 110; height: auto; max-height: 90%; border: round $accent; padding: 0 1;
           background: $surface; }
    #box OptionList { height: auto; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("1", "view('flows')", "Flows"),
        Binding("2", "view('hosts')", "Hosts"),
        Binding("3", "view('scripts')", "Scripts"),
        Binding("4", "view('drops')", "Drops"),
        Binding("s", "sort", "Sort"),
        Binding("r", "reverse", "Reverse"),
        Binding("slash", "filter", "Filter"),
        Binding("e", "explain", "Explain"),
        Binding("b", "order('block')", "Block"),
        Binding("u", "order('unblock')", "Unblock"),
        Binding("q", "quit", "Quit"),
    ]

    def __init__(self, client: Asker) -> None:
        super().__init__()
        self._client = client
        self._lock = threading.Lock()
        """One request at a time goes over the connection."""
        self.view = View.FLOWS
        self.sorts: dict[View, FlowSort | HostSort] = {
            View.FLOWS: FlowSort.LAST,
            View.DROPS: FlowSort.DROPPED,
            View.HOSTS: HostSort.SCORE,
        }
        self.reverse = False
        self.filter = ""
        self.records: dict[str, dict[str, Any]] = {}
        """What the table shows, by row key."""

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="line")
        yield Input(
            id="filter", placeholder="drop  tls  10.0.0.0/8  ads.example  score=50  status=blacklisted"
        )
        yield DataTable(id="table", cursor_type="row", zebra_stripes=True)
        yield Footer()

    def on_mount(self) -> None:
        self.query_one(DataTable).focus()
        self.set_interval(REFRESH_SECONDS, self.look)
        self.look()

    # Looking

    def ask(self, command: str, **parameters: Any) -> Answer:
        """Ask the gateway, in a thread. Raises ControlError."""
        with self._lock:
            return self._client.ask(command, **parameters)

    @work(thread=True, exclusive=True, group="look")
    def look(self) -> None:
        """Fetch what the view shows. A gateway that is gone ends the application; a wrong filter does not."""
        view = self.view
        try:
            status = self.ask("status").result
        except (ControlError, OSError) as error:
            self.call_from_thread(self.exit, str(error))
            return
        try:
            shown = self._fetch(view, status)
        except (ControlError, ValueError) as error:
            self.call_from_thread(self._say, str(error))
            shown = Shown(status, [], 0)
        if view is self.view:
            self.call_from_thread(self._show, view, shown)

    def _fetch(self, view: View, status: dict[str, Any]) -> Shown:
        if view is View.SCRIPTS:
            scripts = show.merge_scripts(self.ask("scripts").records())
            return Shown(status, scripts, len(scripts))
        wanted = parse_filter(self.filter)
        sort = self.sorts[view]
        if isinstance(sort, HostSort):
            hosts = show.merge_hosts(self.ask("hosts", **wanted).records())
            show.sort_hosts(hosts, sort, reverse=self.reverse)
            return Shown(status, hosts[:ROWS], len(hosts))
        if view is View.DROPS:
            wanted.setdefault("verdict", "blocked")
        answer = self.ask("flows", **wanted, sort=sort, reverse=self.reverse, limit=ROWS)
        flows = list(answer.records())
        show.sort_flows(flows, sort, reverse=self.reverse)
        return Shown(status, flows[:ROWS], answer.result["matched"])

    def _show(self, view: View, shown: Shown) -> None:
        """Put it on the screen; the cursor stays on its row."""
        if not self.is_running:
            return
        head = [show.text(line) for line in show.headlines(shown.status)]
        troubles = {name: count for name, count in show.troubles(shown.status).items() if count}
        if troubles:
            words = ", ".join(f"{name.replace('_', ' ')} {count}" for name, count in troubles.items())
            head.append(show.text(words, "bold"))
        self.query_one("#head", Static).update(Text("\n").join(head))
        table: DataTable[Text] = self.query_one(DataTable)
        chosen, scroll = self.chosen_key(), table.scroll_offset
        headings = _HEADINGS[view]
        if [str(column.label) for column in table.columns.values()] != list(headings):
            table.clear(columns=True)
            table.add_columns(*headings)
        else:
            table.clear()
        self.records = {_key(view, record): record for record in shown.records}
        for key, record in self.records.items():
            table.add_row(*_CELLS[view](record), key=key)
        if chosen in self.records:
            table.move_cursor(row=list(self.records).index(chosen), scroll=False)
            table.scroll_to(y=scroll.y, animate=False)
        self._say(self._summary(view, shown))

    def _summary(self, view: View, shown: Shown) -> str:
        of = (
            f"{len(shown.records)} of {shown.matched}"
            if shown.matched > len(shown.records)
            else shown.matched
        )
        words = [f"{view}: {of}"]
        if view in self.sorts:
            words.append(f"by {self.sorts[view]}{', lowest first' if self.reverse else ''}")
        if self.filter and view is not View.SCRIPTS:
            words.append(f"only {self.filter}")
        return "; ".join(words)

    def _say(self, text: str) -> None:
        self.query_one("#line", Static).update(show.text(text, "bold"))

    def chosen_key(self) -> str:
        """The key of the row under the cursor, or nothing."""
        table: DataTable[Text] = self.query_one(DataTable)
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return ""
        return str(table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value)

    # Keys

    def action_view(self, view: str) -> None:
        self.view = View(view)
        self.look()

    def action_sort(self) -> None:
        """The next thing to sort by."""
        sort = self.sorts.get(self.view)
        if sort is not None:
            order: Sequence[Any] = list(type(sort))
            self.sorts[self.view] = order[(order.index(sort) + 1) % len(order)]
            self.look()

    def action_reverse(self) -> None:
        self.reverse = not self.reverse
        self.look()

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.add_class("open")
        box.focus()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """The filter is complete."""
        if event.input.id != "filter":
            return
        self.filter = event.value.strip()
        event.input.remove_class("open")
        self.query_one(DataTable).focus()
        self.look()

    def on_data_table_row_selected(self, _event: DataTable.RowSelected) -> None:
        self.action_explain()

    def action_explain(self) -> None:
        """The story of the flow under the cursor."""
        key = self.chosen_key()
        if key and self.view in (View.FLOWS, View.DROPS):
            self.explain(key)
        else:
            self.notify("only a flow can be explained: 1 or 4 shows them")

    @work(thread=True, group="explain")
    def explain(self, flow: str) -> None:
        """Fetch a flow's story, and show it."""
        try:
            story = self.ask("explain", flow=flow).result
        except (ControlError, OSError) as error:
            self.call_from_thread(self.notify, str(error), severity="error", markup=False)
            return
        self.call_from_thread(self.push_screen, StoryScreen(story))

    def action_order(self, command: str) -> None:
        """Block or unblock what is under the cursor."""
        record = self.records.get(self.chosen_key())
        targets = _targets(self.view, record) if record else []
        if not targets:
            self.notify("there is nothing here to block or unblock: 1, 2 or 4 shows flows and hosts")
            return

        def given(order: dict[str, Any] | None) -> None:
            if order is not None:
                self.give(command, order)

        self.push_screen(OrderScreen(command, targets), given)

    @work(thread=True, group="order")
    def give(self, command: str, order: dict[str, Any]) -> None:
        """Give an order, and say what came of it."""
        try:
            result = self.ask(command, **order).result
        except (ControlError, OSError) as error:
            self.call_from_thread(self.notify, str(error), severity="error", markup=False)
            return
        told = result["order"]
        words = f"{command}ed {told['kind']} {told['target']}: {result['changed']} live flows changed"
        self.call_from_thread(self.notify, words, markup=False)
        if result["warning"]:
            self.call_from_thread(self.notify, result["warning"], severity="error", markup=False)
        self.call_from_thread(self.look)


def _key(view: View, record: dict[str, Any]) -> str:
    if view is View.HOSTS:
        return f"{record['ip']}@{record['vlan']}"
    return str(record["script"] if view is View.SCRIPTS else record["id"])


def _targets(view: View, record: dict[str, Any]) -> list[tuple[str, str]]:
    """What an order can be about: words for it, and the target."""
    if view is View.HOSTS:
        return [(f"host {record['ip']}", record["ip"])]
    if view is View.SCRIPTS:
        return []
    targets = [
        (f"flow {record['id']}", record["id"]),
        (f"client {record['src_ip']}", record["src_ip"]),
        (f"server {record['dest_ip']}", record["dest_ip"]),
    ]
    if record["hostname"]:
        targets.append((f"domain {record['hostname']}", record["hostname"]))
    return targets
