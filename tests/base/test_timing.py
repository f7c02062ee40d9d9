"""The timer, on a clock that is made up."""

import pytest

from tf_rigl._base import timing


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told to; returns the function that moves it."""
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def spend(seconds):
        now[0] += seconds

    return spend


def test_the_median_of_each(clock):
    # The first of each is the call that warms up.
    spent = {"a": [9, 1, 2, 30], "b": [9, 10, 10, 10]}
    functions = {name: lambda own=own: clock(own.pop(0)) for name, own in spent.items()}
    assert timing.in_turns(functions, rounds=3) == {"a": 2, "b": 10}


def test_functions_take_turns_and_each_goes_first():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    timing.in_turns(functions, rounds=4, calls={"a": 1, "b": 2, "c": 1}, warm_up=0)
    assert "".join(calls) == "abbc" + "bbca" + "cabb" + "abbc"


def test_several_calls_are_divided_by_their_number(clock):
    functions = {"a": lambda: clock(1), "b": lambda: clock(2)}
    assert timing.in_turns(functions, rounds=2, calls=5) == {"a": 1, "b": 2}


def test_a_turn_ends_when_its_last_result_is_there(clock):
    waited = []

    def wait(result):
        waited.append(result)
        clock(4)

    results = iter(range(100))
    found = timing.in_turns({"a": lambda: next(results)}, 2, calls=2, wait=wait, warm_up=3)
    assert found == {"a": 2}
    assert waited == [2, 4, 6]


def test_how_many_calls_fill_a_time(clock):
    assert timing.calls_for(lambda: clock(0.25), 1) == 4
    assert timing.calls_for(lambda: clock(5), 1) == 1
    assert timing.calls_for(lambda: None, 1) >= 1


def test_no_functions_take_no_time():
    assert timing.in_turns({}, rounds=3) == {}
