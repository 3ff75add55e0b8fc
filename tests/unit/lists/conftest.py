"""What tests of lists share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from list_server import ListServer, list_server

from nedge.config import Lists


@pytest.fixture
def server() -> Iterator[ListServer]:
    with list_server() as served:
        yield served


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Lists]:
    """Makes a [lists] section whose cache is the test's own."""

    def make(**keys: Any) -> Lists:
        return Lists.model_validate({"cache_directory": tmp_path / "cache", **keys})

    return make


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
