"""For tests of installer and package, in clean machines. Slow (minutes): not part of tests/run.sh."""

from __future__ import annotations

import itertools
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from machine import PROJECT, Machine, in_memory, install_dependencies, make_root, make_wheels
from support import require

from nedge.lab.servers import ServerSet
from nedge.lab.topology import Lab

sys.path.insert(0, str(PROJECT / "tests/live"))  # its helpers for traffic

TOOLS = ("debootstrap", "systemd-nspawn", "nsenter", "dpkg-deb")


@pytest.fixture(scope="session", autouse=True)
def _means() -> None:
    require(os.geteuid() == 0, "needs root")
    for tool in TOOLS:
        require(shutil.which(tool), f"{tool} is not installed")


@pytest.fixture(scope="session")
def bare_root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Debian with systemd, and nothing that nedge needs."""
    if kept := os.environ.get("NEDGE_TEST_ROOT"):  # made once, for many runs
        path = Path(kept)
        yield path if (path / "etc").exists() else make_root(path)
        return
    with in_memory(tmp_path_factory.mktemp("bare") / "root") as path:
        yield make_root(path)


@pytest.fixture(scope="session")
def root(bare_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with the Debian packages that nedge needs."""
    with in_memory(tmp_path_factory.mktemp("ready") / "root", bare_root) as path:
        install_dependencies(path)
        yield path


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wheels(tmp_path_factory.mktemp("python"))


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.fixture
def servers(lab: Lab) -> Iterator[ServerSet]:
    with ServerSet(lab) as servers:
        yield servers


@pytest.fixture
def boot(lab: Lab, wheels: Path, tmp_path: Path) -> Iterator[Callable[[Path], Machine]]:
    """Boots a copy of a root in the place of the lab's gateway."""
    numbers = itertools.count()
    with ExitStack() as stack:

        def boot(root: Path) -> Machine:
            copy = stack.enter_context(in_memory(tmp_path / f"machine{next(numbers)}", root))
            binds = {PROJECT: "/project", wheels: "/wheels"}
            return stack.enter_context(Machine(copy, lab.gateway.namespace, binds))

        yield boot
