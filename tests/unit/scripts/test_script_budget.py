"""The watch on scripts' time: when it ticks, whom it interrupts, and whom never."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType

import pytest

from nedge.scripts import budget
from nedge.scripts.budget import WATCH, ScriptTimeoutError, enforced

LIMIT = 0.03


def as_of(directory: str, function: Callable[..., object]) -> Callable[..., object]:
    """The function, as if its code were of that place."""
    assert isinstance(function, FunctionType)
    code: CodeType = function.__code__.replace(co_filename=f"{directory}x.py")
    return FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)


def ours(function: Callable[..., object]) -> Callable[..., object]:
    """The function, as if it were nedge's."""
    return as_of(budget._OURS, function)


def _call(function: Callable[[], object]) -> str:
    WATCH.begin(LIMIT)
    try:
        function()
    except ScriptTimeoutError:
        WATCH.end()
        return "interrupted"
    return "fired" if WATCH.end() else "returned"


call = ours(_call)


@pytest.fixture
def _watched() -> Iterator[None]:
    with enforced():
        yield
    assert (WATCH.call.resting, WATCH.call.deadline) == (False, 0)
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def endless() -> None:
    while True:
        pass


@pytest.mark.usefixtures("_watched")
def test_a_script_is_interrupted_not_before_its_time() -> None:
    start = time.monotonic()
    assert call(endless) == "interrupted"
    assert time.monotonic() - start >= LIMIT


@pytest.mark.usefixtures("_watched")
def test_one_that_keeps_its_time_is_not() -> None:
    assert call(lambda: time.sleep(LIMIT / 10)) == "returned"
    assert call(lambda: None) == "returned"


@pytest.mark.usefixtures("_watched")
def test_one_that_catches_it_is_known_to_have_been() -> None:
    def swallow() -> None:
        try:
            endless()
        except BaseException:
            return

    assert call(swallow) == "fired"


@pytest.mark.usefixtures("_watched")
def test_code_of_ours_is_never_interrupted() -> None:
    """Not where a script has called it: it goes on to its end, and then the script is interrupted."""
    done: list[int] = []

    def work() -> None:
        end = time.monotonic() + 10 * LIMIT
        while time.monotonic() < end:
            for n in range(100):
                done[:] = [n]
        done.append(-1)

    engine = ours(work)
    after: list[int] = []

    def script() -> None:
        engine()
        after.append(1)
        while True:
            pass

    assert call(script) == "interrupted"
    assert done == [99, -1]


@pytest.mark.usefixtures("_watched")
def test_nobody_is_interrupted_between_calls() -> None:
    assert call(endless) == "interrupted"
    end = time.monotonic() + 5 * LIMIT
    while time.monotonic() < end:
        pass
    assert not WATCH.overdue()


@pytest.mark.usefixtures("_watched")
def test_who_begins_a_call_is_who_calls_the_script() -> None:
    """What other code of ours waits for meanwhile is no script."""

    def wait() -> None:
        time.sleep(3 * LIMIT)

    def other(function: Callable[[], object]) -> None:
        function()

    elsewhere = ours(other)

    def begin(function: Callable[[], object]) -> str:
        WATCH.begin(LIMIT)
        elsewhere(function)
        WATCH.end()
        return "returned"

    assert ours(begin)(wait) == "returned"
    assert WATCH.call.base is None


@pytest.mark.usefixtures("_watched")
def test_shipped_scripts_are_scripts() -> None:
    assert call(as_of(budget._SCRIPTS_IN_PACKAGE, endless)) == "interrupted"  # type: ignore[arg-type]


@pytest.mark.usefixtures("_watched")
def test_the_timer_rests_when_nothing_is_called() -> None:
    assert WATCH.call.resting
    call(lambda: None)
    assert not WATCH.call.resting
    assert signal.getitimer(signal.ITIMER_REAL)[1] > 0
    deadline = time.monotonic() + 30
    while not WATCH.call.resting and time.monotonic() < deadline:
        time.sleep(0.01)
    assert WATCH.call.resting
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert call(endless) == "interrupted"  # and wakes again


def test_without_a_timer_nothing_is_interrupted() -> None:
    assert not WATCH.call.resting
    assert call(lambda: time.sleep(2 * LIMIT)) == "returned"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_it_gives_the_signal_back() -> None:
    def mine(_number: int, _frame: object) -> None:
        pass

    before = signal.signal(signal.SIGALRM, mine)
    try:
        with enforced():
            with enforced():
                assert call(endless) == "interrupted"
            assert call(endless) == "interrupted"
        assert signal.getsignal(signal.SIGALRM) is mine
    finally:
        signal.signal(signal.SIGALRM, before)


def test_it_is_for_the_main_thread() -> None:
    errors: list[BaseException] = []

    def attempt() -> None:
        try:
            with enforced():
                pass
        except ValueError as error:
            errors.append(error)

    thread = threading.Thread(target=attempt)
    thread.start()
    thread.join()
    assert len(errors) == 1


def test_a_process_that_had_no_chance_is_not_blamed() -> None:
    """The deadline has passed when it is first looked at: nobody is interrupted before the next look."""
    WATCH.call.deadline = time.perf_counter_ns() - 1_000_000_000
    try:
        assert not WATCH.overdue()
        deadline = time.monotonic() + 30
        while not WATCH.overdue():
            assert time.monotonic() < deadline
    finally:
        WATCH.call.deadline = 0
