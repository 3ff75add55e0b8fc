"""The record on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nedge.kernel.errors import KernelError
from nedge.kernel.state import State, abandoned, namespace_id


def locked(bridge: str, directory: Path) -> State:
    state = State(bridge, directory)
    state.lock()
    return state


def test_sections_survive_a_crash(tmp_path: Path) -> None:
    directory = tmp_path / "run" / "netns-1"
    state = locked("br0", directory)
    assert not state.inherited
    state.put("bridge", {"made": True})
    state.put("rules", {"tables_made": ["ip"]})
    state.unlock()  # what the end of the process does

    again = locked("br0", directory)
    assert again.inherited
    assert again.get("bridge") == {"made": True}
    again.drop("bridge")
    again.drop("rules")
    again.drop("rules")
    assert not again.path.exists()
    again.socket(shared=False).touch()  # what a crash left
    again.unlock()
    assert not directory.exists()


def test_one_gateway_per_bridge(tmp_path: Path) -> None:
    first = locked("br0", tmp_path)
    with pytest.raises(KernelError, match=r"another nedge is running on bridge br0 .* \(process \d+\)"):
        State("br0", tmp_path).lock()
    other = locked("br1", tmp_path)
    other.unlock()
    first.unlock()
    locked("br0", tmp_path).unlock()


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    (tmp_path / "br0.json").write_text("{")
    with pytest.raises(KernelError, match=r"br0\.json, the record .* is damaged"):
        State("br0", tmp_path).lock()


def test_other_bridges_records(tmp_path: Path) -> None:
    crashed, alive, ours = (locked(name, tmp_path) for name in ("crashed", "alive", "ours"))
    for state in (crashed, alive, ours):
        state.put("bridge", {"name": state.bridge})
    crashed.unlock()
    assert [found["name"] for found in ours.others("bridge")] == ["alive", "crashed"]
    assert [state.bridge for state in abandoned("ours", tmp_path)] == ["crashed"]
    assert [state.bridge for state in abandoned("none", tmp_path)] == ["crashed"]
    alive.unlock()
    ours.unlock()


def test_the_namespace_has_a_name() -> None:
    assert namespace_id() == namespace_id()
    assert "-" in namespace_id()


def test_a_forked_process_that_lives_on_does_not_hold_the_lock(tmp_path: Path) -> None:
    state = locked("br0", tmp_path)
    inherited = os.dup(state._lock)  # what the gateway itself had, until it was killed
    state.forget_lock()
    assert not State("br0", tmp_path).try_lock(), "the gateway still lives"
    os.close(inherited)
    locked("br0", tmp_path).unlock()
