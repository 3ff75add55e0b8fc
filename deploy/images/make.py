"""Draws the screens that the README shows: `python deploy/images/make.py`, as root.

A gateway runs in the lab, real clients talk to real servers through it, and what `nedge top` and
`nedge explain` make of that is written beside this file.
"""

from __future__ import annotations

import asyncio
import io
import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from textual.widgets import DataTable

from nedge.control.client import Client
from nedge.control.story import story_page
from nedge.control.top import Top
from nedge.lab.gateway import PORTS, Gateway
from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

HERE = Path(__file__).parent
CONFIG = (
    PORTS
    + """\
workers = 2
[lists]
malware_domains = ["malware.txt"]
cache_directory = "cache"
[control]
socket = "control.sock"
state = "state"
[scripts.blocked_hostname]
domains = ["blocked.example"]
"""
)
DEADLINE = 20.0
WIDE, ROWS = 250, 19
"""Columns and rows of the screen, before it is made as narrow as what it shows."""


def main() -> None:
    os.environ.pop("NO_COLOR", None)
    with Lab() as lab, ServerSet(lab) as servers:
        (lab.directory / "gateway").mkdir()
        (lab.directory / "gateway" / "malware.txt").write_text("malware.example\n")
        with Gateway(lab, CONFIG) as gateway, Client(gateway.directory / "control.sock") as client:
            client.ask("block", target="games.example", seconds=3600)
            clients = [lab.client.popen(command, stdout=subprocess.DEVNULL) for command in commands(servers)]
            await_that(lambda: blocked(client, "malware.example", "blocked.example", "games.example"))
            await_that(lambda: len(list(client.ask("flows").records())) >= len(clients))
            save("top", asyncio.run(top_screen(client)))
            (flow,) = client.ask("flows", host="blocked.example", verdict="blocked").records()
            story = client.ask("explain", flow=flow["id"]).result
            screen = Console(record=True, width=118, force_terminal=True, file=io.StringIO())
            screen.print(story_page(story))
            save("explain", screen.export_svg(title=f"nedge explain {flow['id']}"))
            for process in clients:
                lab.client.stop(process)


def commands(servers: ServerSet) -> list[list[str]]:
    """The clients: a few that are answered, and three that are not."""
    v4, v6 = servers.address.v4, servers.address.v6
    curl = ["curl", "-sko", "/dev/null", "--max-time", str(DEADLINE)]

    def get(url: str, port: int, address: str) -> list[str]:
        host = url.split("/")[2]
        return [*curl, "--resolve", f"{host}:{port}:{address}", url]

    return [
        get("https://www.example/", 443, v4),
        get("https://mail.lab.example/", 443, f"[{v6}]"),
        get("http://news.lab.example/", 80, v4),
        ["dig", f"@{v4}", "www.example", "+short"],
        ["dig", f"@{v6}", "mail.lab.example", "AAAA", "+short"],
        ["ping", "-q", "-c", "3", "-i", "0.3", v4],
        list(map(str, servers.ssh_command("echo", "logged in"))),
        get("https://malware.example/", 443, v4),
        get("https://www.blocked.example/", 443, v4),
        get("https://games.example/", 443, v4),
    ]


def blocked(client: Client, *names: str) -> bool:
    """Whether flows that asked for these names have been cut off."""
    return all(list(client.ask("flows", host=name, verdict="blocked").records()) for name in names)


def await_that(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the clients did not fare as expected")
        time.sleep(0.2)


async def top_screen(client: Client) -> str:
    """`nedge top` after its first look."""
    app = Top(client)
    async with app.run_test(size=(WIDE, ROWS)) as pilot:
        deadline = time.monotonic() + DEADLINE
        while not app.records and time.monotonic() < deadline:
            await pilot.pause(0.1)
        await pilot.press("s")  # by score
        await pilot.pause(1.0)
        await pilot.press("ctrl+home")
        await pilot.resize_terminal(app.query_one(DataTable).virtual_size.width, ROWS)
        await pilot.pause(1.0)
        return app.export_screenshot(title="nedge top")


def save(name: str, svg: str) -> None:
    """Write an image that asks for nothing from the network: the fonts are those of the reader's machine."""
    svg = re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->", "", svg, flags=re.DOTALL)
    (HERE / f"{name}.svg").write_text("\n".join(line.rstrip() for line in svg.splitlines()) + "\n")


if __name__ == "__main__":
    main()
