"""The dialogues of `nedge top`."""

from __future__ import annotations

from typing import Any, ClassVar

import typer
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Footer, Input, Label, OptionList, Static

from nedge.control.show import text
from nedge.control.steering import duration
from nedge.control.story import story_page


class StoryScreen(ModalScreen[None]):
    """What `nedge explain` prints."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,e,enter", "dismiss", "Back")]

    def __init__(self, story: dict[str, Any]) -> None:
        super().__init__()
        self._story = story

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="box"):
            yield Static(story_page(self._story), id="story")
        yield Footer()


class OrderScreen(ModalScreen[dict[str, Any] | None]):
    """Asks what an order is about, for how long, and why. Gives its parameters, or None."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Cancel")]

    def __init__(self, command: str, targets: list[tuple[str, str]]) -> None:
        super().__init__()
        self._command = command
        self._targets = targets

    def compose(self) -> ComposeResult:
        with Vertical(id="box"):
            yield Label(
                f"{self._command.capitalize()} what? Enter gives the order, Tab leads on, Escape cancels."
            )
            yield OptionList(*(text(words) for words, _target in self._targets), id="targets")
            yield Input(id="for", placeholder="for how long: 30m, 2h, 1d; empty: for good, a flow a day")
            yield Input(id="reason", placeholder="reason", max_length=200)
        yield Footer()

    def on_mount(self) -> None:
        choice = self.query_one(OptionList)
        choice.highlighted = 0
        choice.focus()

    def on_option_list_option_selected(self, _event: OptionList.OptionSelected) -> None:
        self._give()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._give()

    def _give(self) -> None:
        wanted = self.query_one("#for", Input).value.strip()
        try:
            seconds = duration(wanted) if wanted else None
        except typer.BadParameter as error:
            self.notify(error.message, severity="error", markup=False)
            return
        number = self.query_one(OptionList).highlighted or 0
        reason = self.query_one("#reason", Input).value.strip()
        self.dismiss({"target": self._targets[number][1], "seconds": seconds, "reason": reason})
