"""When masks change, and how much of them."""

import math

import pytest
from references import rigl_numpy

from tf_rigl import methods, schedules

every_decay = pytest.mark.parametrize("name", schedules.DECAYS)


@pytest.fixture(autouse=True)
def fresh_start():
    """Replaces that of conftest.py, which is slow: no test here makes a model."""


# Decays.


@every_decay
def test_a_decay_begins_at_one(name):
    assert schedules.get_decay(name)(0, 1000) == 1.0


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("cosine", [0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
        ("constant", [1.0, 1.0, 1.0, 1.0]),
        ("linear", [0.75, 0.5, 0.25, 0.0]),
        ("inverse_power", [27 / 64, 1 / 8, 1 / 64, 0.0]),
    ],
)
def test_a_decay_at_the_quarters_of_its_way(name, values):
    decay = schedules.get_decay(name)
    assert [decay(t, 1000) for t in (250, 500, 750, 1000)] == pytest.approx(values)


@every_decay
def test_a_decay_never_rises_nor_leaves_the_unit_interval(name):
    values = [schedules.get_decay(name)(t, 97) for t in range(98)]
    assert values == sorted(values, reverse=True)
    assert all(0 <= v <= 1 for v in values)


def test_cosine_is_that_of_the_paper_to_the_last_bit():
    for step in range(0, 1000, 7):
        expected = rigl_numpy.drop_fraction_at(step, 0.3, 1000)
        assert 0.3 * schedules.cosine(step, 1000) == expected


def test_get_decay_passes_functions_through():
    def decay(step, end_step):
        return 0.5

    assert schedules.get_decay(decay) is decay


def test_get_decay_offers_the_closest_name():
    with pytest.raises(
        ValueError, match=r"`decay`.*Did you mean 'cosine'.*Received: decay='cosin'"
    ):
        schedules.get_decay("cosin")


@pytest.mark.parametrize("identifier", [None, 1.0])
def test_get_decay_refuses_what_is_neither_a_name_nor_a_function(identifier):
    with pytest.raises(ValueError, match=r"`decay` must be one of 'constant', 'cosine'"):
        schedules.get_decay(identifier)


# Update steps.


def update_steps(start_step, end_step, update_interval, steps=1000):
    return [
        t
        for t in range(steps)
        if schedules.is_update_step(t, start_step, end_step, update_interval)
    ]


def test_the_start_counts_and_the_end_does_not():
    assert update_steps(100, 400, 100) == [100, 200, 300]


def test_steps_are_multiples_of_the_interval_not_of_the_start():
    assert update_steps(50, 350, 100) == [100, 200, 300]


def test_step_zero_is_an_update_step_if_the_start_is_there():
    assert update_steps(0, 11, 5) == [0, 5, 10]


def test_an_interval_of_one_updates_always():
    assert update_steps(3, 6, 1) == [3, 4, 5]


def test_there_is_none_where_the_end_is_not_after_the_start():
    assert update_steps(100, 100, 10) == []
    assert update_steps(100, 0, 10) == []


# What a method plans by them.


def planned(method, active=(100,), steps=100, **run):
    """The steps at which a method changes masks, and how many entries move at each."""
    plans = {t: method.plan(t, list(active), **run) for t in range(steps)}
    return {t: [grow for _, grow in plan] for t, plan in plans.items() if plan is not None}


def test_updates_begin_after_one_interval():
    assert list(planned(methods.RigL(update_interval=20, end_step=80))) == [20, 40, 60]


def test_a_start_of_zero_changes_masks_at_once():
    method = methods.RigL(update_interval=40, start_step=0, end_step=80)
    assert planned(method) == {0: [30], 40: [15]}


def test_what_moves_is_truncated_to_whole_entries():
    """0.3 / 2 of 39 is 5.85, of 6 is 0.9."""
    method = methods.RigL(update_interval=10, end_step=20)
    assert planned(method, active=(39, 6, 0)) == {10: [5, 0, 0]}


@pytest.mark.parametrize("decay", list(schedules.DECAYS))
def test_as_many_grow_as_are_dropped(decay):
    method = methods.SET(drop_fraction=0.7, update_interval=3, end_step=100, decay=decay)
    active = [1000, 17, 1]
    for step in range(3, 100, 3):
        plan = method.plan(step, active)
        assert [keep + grow for keep, grow in plan] == active
        assert all(keep >= 0 and grow >= 0 for keep, grow in plan)


def test_a_fractional_end_is_of_the_steps_of_the_run():
    method = methods.RigL(update_interval=10, end_step=0.5)
    assert method.needs_length
    assert list(planned(method, run_steps=100)) == [10, 20, 30, 40]


def test_a_fractional_end_counts_from_where_the_run_began():
    method = methods.RigL(update_interval=10, end_step=0.5)
    assert list(planned(method, first_step=40, run_steps=40)) == [10, 20, 30, 40, 50]


def test_an_integer_end_is_a_step_whatever_the_run():
    method = methods.RigL(update_interval=10, end_step=25)
    assert not method.needs_length
    assert list(planned(method, first_step=7, run_steps=1000)) == [10, 20]


def test_a_decay_of_ones_own_is_asked_with_step_and_end():
    method = methods.SET(update_interval=25, end_step=75, decay=lambda step, end: step / end)
    assert planned(method) == {25: [10], 50: [20]}


@pytest.mark.parametrize("factor", [-0.5, 4.0, float("nan")])
def test_a_decay_that_leaves_the_unit_interval_is_reported(factor):
    method = methods.SET(update_interval=10, end_step=50, decay=lambda step, end: factor)
    with pytest.raises(ValueError, match=r"`decay` must return a factor in"):
        planned(method)


def test_static_never_changes():
    assert planned(methods.Static()) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        {"drop_fraction": 0.0},
        {"drop_fraction": 1.1},
        {"drop_fraction": "0.3"},
        {"update_interval": 0},
        {"update_interval": 1.5},
        {"start_step": -1},
        {"start_step": 0.5},
        {"end_step": -1},
        {"end_step": 0.0},
        {"end_step": 1.5},
        {"end_step": None},
        {"end_step": True},
        {"decay": "cosin"},
    ],
    ids=repr,
)
def test_an_argument_out_of_range_is_named(arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"Argument `{name}` must be ") as error:
        methods.RigL(**arguments)
    assert f"Received: {name}={value!r}" in str(error.value)
