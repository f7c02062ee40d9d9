"""Whole parts of products, against exact fractions."""

from fractions import Fraction

import numpy as np

from tf_rigl._base.rounding import floor_product


def test_the_floor_of_a_product_is_that_of_exact_fractions():
    """Thousandths of 0 to 2000, and of sizes of large kernels: one less by `int` at times."""
    sizes = [*range(2001), 235_200, 2_359_296, 10**9]
    wrong = 0
    for thousandths in range(1, 1001):
        fraction = thousandths / 1000
        exact = [int(Fraction(thousandths, 1000) * n) for n in sizes[:: 1 + thousandths % 7]]
        found = floor_product(fraction, np.array(sizes[:: 1 + thousandths % 7], np.int64))
        np.testing.assert_array_equal(found, exact, err_msg=str(fraction))
        naive = [int(fraction * n) for n in sizes[:: 1 + thousandths % 7]]
        wrong += sum(a != b for a, b in zip(naive, exact, strict=True))
    assert wrong > 100
