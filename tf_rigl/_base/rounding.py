"""Whole parts of numbers that floating point may put just below an integer."""

import numpy as np

_ROUNDING = 1e-12  # Relative: more than what rounding adds up to, less than any real fraction.


def floor_near(number, scale):
    """Returns `floor(number)`; a number that rounding put just below an integer counts as that.

    Args:
        number: float or array.
        scale: int or array, the size of what the number is a part of.

    Returns:
        A float or an array of floats that are whole numbers, by NumPy's broadcasting.
    """
    return np.floor(number + np.multiply(_ROUNDING, scale))


def floor_product(fraction, count):
    """Returns `floor(fraction * count)`, exact also where rounding makes the product less.

    Args:
        fraction: float or array.
        count: int or array, at least 0.

    Returns:
        As `floor_near`.

    Example:

    >>> int(floor_product(0.7, 90)), int(0.7 * 90)
    (63, 62)
    """
    return floor_near(np.multiply(fraction, count), count)
