"""Memory across flows: counts are right, and there is an end to it."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from nedge.scripts import LastUsed, Window


def test_different_items_within_the_window() -> None:
    window: Window[str, int] = Window()
    assert [window.add("a", item, 100, 60) for item in (1, 2, 2, 3)] == [1, 2, 2, 3]
    assert window.add("b", 1, 100, 60) == 1
    assert window.add("a", 4, 159, 60) == 4
    assert window.add("a", 2, 160, 60) == 2  # 1, 2 and 3 are of 60 seconds ago
    assert window.add("a", 5, 300, 60) == 1
    assert len(window) == 1


def test_an_item_that_comes_again_is_as_new() -> None:
    window: Window[str, int] = Window()
    window.add("a", 1, 100, 60)
    window.add("a", 1, 150, 60)
    assert window.add("a", 2, 170, 60) == 2


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 20)), max_size=60),
    st.integers(1, 40),
)
def test_as_a_plain_count_would_have_it(steps: list[tuple[int, int, int]], seconds: int) -> None:
    window: Window[int, int] = Window()
    seen: dict[int, dict[int, int]] = defaultdict(dict)
    now = 1000
    for key, item, wait in steps:
        now += wait
        seen[key][item] = now
        expected = sum(at > now - seconds for at in seen[key].values())
        assert window.add(key, item, now, seconds) == expected


def test_a_window_is_bounded() -> None:
    window: Window[int, int] = Window(limit=10)
    for item in range(1000):
        assert window.add(item % 3, item, 100, 60) <= 10
    assert len(window) == 10
    assert window.add(7, 7, 100, 0) == 0  # no time at all: nothing counts
    assert len(window) == 0


def test_last_used() -> None:
    memory: LastUsed[str, list[int]] = LastUsed(list, limit=3)
    for key in "abc":
        memory[key].append(1)
    memory["a"].append(2)  # used again
    memory["d"].append(1)
    assert ("b" in memory, len(memory)) == (False, 3)
    assert memory["a"] == [1, 2]
    assert memory["b"] == []  # made anew
    assert "c" not in memory
