"""The pages for people: links lead somewhere, commands exist, images ask nothing of the network."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import typer.main

from nedge.cli import app

PROJECT = Path(__file__).parents[2]
PAGES = [
    PROJECT / "README.md",
    *sorted((PROJECT / "deploy").glob("*.md")),
    PROJECT / "policies" / "README.md",
]
IMAGES = sorted((PROJECT / "deploy" / "images").glob("*.svg"))


def anchors(page: Path) -> set[str]:
    """The places in a page that a link can name, as Git's hosts make them of headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_links(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if path.startswith("http"):
            continue
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(PROJECT)))
def test_commands_and_files(page: Path) -> None:
    text = page.read_text()
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    fenced = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    blocks = "\n".join(block for language, block in fenced if language in ("", "sh"))
    typed = re.findall(r"^(?:\$ |\.venv/bin/)?nedge ([a-z][a-z-]*)(?![\w.])", blocks, re.MULTILINE)
    for command in [*typed, *re.findall(r"`nedge ([a-z][a-z-]*)", text)]:
        assert command in commands, command
    for script in re.findall(r"^(?:deploy|tests)/\S+\.(?:sh|py)", blocks, re.MULTILINE):
        assert (PROJECT / script).is_file(), script


def test_the_readme_shows_every_image() -> None:
    assert IMAGES
    shown = re.findall(r"!\[[^\]]+\]\((\S+)\)", (PROJECT / "README.md").read_text())
    assert sorted(PROJECT / path for path in shown) == IMAGES


@pytest.mark.parametrize("image", IMAGES, ids=lambda image: image.name)
def test_images_ask_nothing_of_the_network(image: Path) -> None:
    addresses = set(re.findall(r"https?://[^\"'\s<)]+", image.read_text()))
    assert addresses == {"http://www.w3.org/2000/svg"}
