"""Checks of arguments: what passes, and what the messages say."""

import fractions
import math
import re

import numpy as np
import pytest

from tf_rigl._base.arguments import check_integer, check_number, check_sparsity, unknown_name


@pytest.mark.parametrize("value", [0.5, 1, np.float32(0.5), np.int64(1), fractions.Fraction(1, 2)])
def test_numbers_of_any_kind_pass_and_come_back_as_floats(value):
    found = check_number("x", value, above=0, at_most=1)
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize(
    ("value", "bounds", "words"),
    [
        (0, {"above": 0, "at_most": 1}, "a number in (0, 1]"),
        (1, {"at_least": 0, "below": 1}, "a number in [0, 1)"),
        (0, {"above": 0}, "a positive number"),
        (2, {"above": 2}, "a number above 2"),
        (0.5, {"at_least": 1}, "a number of at least 1"),
        (3, {"below": 3}, "a number below 3"),
        (4, {"at_most": 3}, "a number of at most 3"),
        ("1", {}, "a number"),
        (None, {}, "a number"),
        (True, {}, "a number"),
        (math.nan, {"finite": False}, "a number"),
        (math.inf, {"above": 0}, "a positive number"),
        (10**400, {"above": 0}, "a positive number"),
        (np.ones(2), {}, "a number"),
    ],
)
def test_other_values_are_refused_with_the_bounds_in_the_message(value, bounds, words):
    message = f"Argument `x` must be {words}. Received: x={value!r}"
    with pytest.raises(ValueError, match=re.escape(message)):
        check_number("x", value, **bounds)


def test_the_message_says_what_the_number_means():
    with pytest.raises(ValueError, match=r"in \[0, 1\): the fraction of zeros\. Received: s=1"):
        check_sparsity("s", 1)


def test_infinity_passes_if_allowed():
    assert check_number("x", math.inf, at_least=1, finite=False) == math.inf


@pytest.mark.parametrize("value", [0, 1.0, True, "1", None])
def test_integers_are_checked(value):
    with pytest.raises(ValueError, match=r"`n` must be an integer of at least 1\. Received: n="):
        check_integer("n", value, 1)
    assert check_integer("n", np.int64(1), 1) == 1


def test_an_unknown_name_gets_the_closest_ones():
    message = str(unknown_name("method", "rigle", ["rigl", "set"], or_object=False))
    assert message == (
        "Argument `method` must be one of 'rigl', 'set'. Did you mean 'rigl'? "
        "Received: method='rigle'"
    )
