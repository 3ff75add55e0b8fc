"""For tests on live traffic, in a lab of network namespaces."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import require

from nedge.kernel.state import RUN_DIR
from nedge.lab.host import ETC_NETNS
from nedge.lab.servers import ServerSet, has_quic
from nedge.lab.topology import Lab

TOOLS = ("ip", "ethtool", "sysctl", "tcpdump", "curl", "dig", "dnsmasq", "dropbear", "openssl", "ping", "ssh")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in this folder is `live`."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("live")


@pytest.fixture(scope="session", autouse=True)
def _means() -> None:
    require(os.geteuid() == 0, "live tests need root")
    for tool in TOOLS:
        require(shutil.which(tool), f"{tool} is not installed")
    require(has_quic(), "aioquic is not installed")


@pytest.fixture(scope="session", autouse=True)
def _shared_folders() -> Iterator[None]:
    """Where tests run side by side, no lab takes away a folder of all labs while another begins to use it."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    held = [folder / f"tests-{os.getpid()}" for folder in (ETC_NETNS, RUN_DIR)] if worker else []
    for folder in held:
        folder.mkdir(parents=True)
    yield
    for folder in held:
        folder.rmdir()
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # only when nobody else uses it


@pytest.fixture
def lab() -> Iterator[Lab]:
    """A lab whose gateway has two ports and nothing between them."""
    with Lab() as lab:
        yield lab


@pytest.fixture
def bridged_lab() -> Iterator[Lab]:
    """A lab with a plain bridge in the gateway."""
    with Lab(bridge=True) as lab:
        yield lab


@pytest.fixture
def servers(lab: Lab) -> Iterator[ServerSet]:
    """Servers in `lab`: all but QUIC's, which takes as long to start as the others together."""
    with ServerSet(lab, quic=False) as servers:
        yield servers
