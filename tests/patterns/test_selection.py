"""`top_k_mask`: exactly k, the right ones, compiled or not."""

import numpy as np
import pytest
import tensorflow as tf
from references import rigl_numpy

from tf_rigl.patterns.selection import top_k_mask

FLOATS = ["float16", "bfloat16", "float32", "float64"]
INTEGERS = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
BITS = {"float16": np.uint16, "bfloat16": np.uint16, "float32": np.uint32, "float64": np.uint64}
INF, NAN = float("inf"), float("nan")

compiled = tf.function(top_k_mask, jit_compile=True)


@pytest.fixture(autouse=True)
def fresh_start():
    """Replaces that of conftest.py, which is slow: no test here makes a model."""


def few_values(dtype, shape=(7, 11, 30), seed=0):
    """Scores of both signs with many ties, exact in every type."""
    rng = np.random.default_rng(seed)
    return tf.cast(rng.integers(-100, 100, size=shape), dtype)


def any_values(dtype, size=3000, seed=1):
    """Scores over the whole range of a type: of a float, random bits, infinities and NaN too."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(BITS.get(dtype, dtype))
    scores = rng.integers(info.min, info.max, size=size, dtype=info.dtype, endpoint=True)
    if dtype not in BITS:
        return tf.constant(scores)
    scores[:8] = 0, 1, 2, 3, *(~np.arange(4, dtype=info.dtype))  # Denormals, and NaN.
    return tf.bitcast(scores, dtype)


def expect(scores, k, among=None):
    """What the stable sort of NumPy says."""
    scores = scores.numpy()
    if not np.issubdtype(scores.dtype, np.integer):
        with np.errstate(invalid="ignore"):  # Signalling NaN.
            scores = scores.astype(np.float64)
    return rigl_numpy.top_k_mask(scores, k, among)


@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
@pytest.mark.parametrize("k", [0, 1, 700, 2309, 2310])
def test_agrees_with_a_stable_sort(dtype, k):
    scores = few_values(dtype)
    np.testing.assert_array_equal(top_k_mask(scores, k), expect(scores, k))


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS])
@pytest.mark.parametrize("k", [0, 5, 1500, 2995, 3000])
def test_agrees_with_a_stable_sort_over_the_whole_range_of_a_type(dtype, k):
    scores = any_values(dtype)
    np.testing.assert_array_equal(top_k_mask(scores, k), expect(scores, k))


@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
def test_agrees_with_a_stable_sort_when_compiled_with_xla(dtype):
    everything = np.ones(3000, bool)
    some = np.random.default_rng(2).random(3000) < 0.4
    for scores in (any_values(dtype), few_values(dtype, 3000), tf.zeros(3000, dtype)):
        for among in (everything, some):
            for k in (0, 1, 500, np.count_nonzero(among) - 1, np.count_nonzero(among)):
                mask = compiled(scores, tf.constant(k), tf.constant(among))
                np.testing.assert_array_equal(mask, expect(scores, k, among))


def test_compiles_with_xla_for_a_fixed_count_and_all_candidates():
    scores = few_values("float32")
    np.testing.assert_array_equal(compiled(scores, 700), expect(scores, 700))


def test_is_the_same_in_a_graph():
    scores = any_values("float32")
    mask = tf.function(top_k_mask)(scores, tf.constant(1500))
    np.testing.assert_array_equal(mask, expect(scores, 1500))


@pytest.mark.parametrize("dtype", [*FLOATS, "int32"])
def test_chooses_among_candidates_only(dtype):
    scores = few_values(dtype)
    among = np.random.default_rng(3).random(scores.shape) < 0.4
    for k in (0, 1, 300, np.count_nonzero(among)):
        mask = top_k_mask(scores, k, tf.constant(among))
        np.testing.assert_array_equal(mask, expect(scores, k, among))


@pytest.mark.parametrize("k", [0, 1, 1023, 1024, 1025, 2048, 2999, 3000])
def test_ties_go_to_the_lower_flat_index(k):
    """Across the rows of 1024 in which ties are counted."""
    mask = top_k_mask(tf.ones([30, 100]), k).numpy()
    np.testing.assert_array_equal(mask.ravel(), np.arange(3000) < k)


def test_only_ties_with_the_last_one_chosen_are_cut():
    mask = top_k_mask(tf.constant([1.0, 2.0, 1.0, 3.0, 1.0, 2.0]), 4)
    np.testing.assert_array_equal(mask, [True, True, False, True, False, True])


@pytest.mark.parametrize("dtype", FLOATS)
def test_nan_is_lowest_and_infinities_are_the_ends(dtype):
    scores = tf.constant([NAN, -INF, 0.0, -NAN, INF, -1.0], dtype)
    best_first = [4, 2, 5, 1, 0, 3]
    for k in range(7):
        np.testing.assert_array_equal(top_k_mask(scores, k), np.isin(np.arange(6), best_first[:k]))


def test_a_candidate_of_nan_comes_before_what_is_no_candidate():
    scores = tf.constant([INF, NAN, 5.0, NAN])
    among = tf.constant([False, True, False, True])
    np.testing.assert_array_equal(top_k_mask(scores, 1, among), [False, True, False, False])
    np.testing.assert_array_equal(top_k_mask(scores, 2, among), [False, True, False, True])


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_two_zeros_are_equal(dtype):
    scores = tf.constant([-0.0, 0.0, -0.0, 0.0], dtype)
    for k in range(5):
        np.testing.assert_array_equal(top_k_mask(scores, k), np.arange(4) < k)


@pytest.mark.parametrize("dtype", FLOATS)
def test_denormals_are_told_apart(dtype):
    """The smallest there are: nothing flushes them to zero."""
    scores = tf.bitcast(np.array([2, 0, 3, 1], BITS[dtype]), dtype)
    np.testing.assert_array_equal(top_k_mask(scores, 1), [False, False, True, False])
    np.testing.assert_array_equal(top_k_mask(scores, 2), [True, False, True, False])
    np.testing.assert_array_equal(top_k_mask(scores, 3), [True, False, True, True])


def test_the_two_lowest_int32_are_told_apart():
    lowest = np.iinfo(np.int32).min
    np.testing.assert_array_equal(top_k_mask(tf.constant([lowest, lowest + 1]), 1), [False, True])


def test_the_lowest_int32_comes_before_what_is_no_candidate():
    scores = tf.fill([3], np.int32(np.iinfo(np.int32).min))
    mask = top_k_mask(scores, 1, tf.constant([False, False, True]))
    np.testing.assert_array_equal(mask, [False, False, True])


@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (3, 3, 4, 8)])
def test_keeps_the_shape(shape):
    mask = top_k_mask(tf.ones(shape), 1)
    assert mask.shape == shape
    assert mask.dtype == tf.bool
    assert np.count_nonzero(mask) == 1


@pytest.mark.parametrize("k", [2, np.int64(2), tf.constant(2), tf.constant(2, tf.int64)])
def test_k_may_be_a_python_int_or_a_tensor_of_any_integer_type(k):
    np.testing.assert_array_equal(top_k_mask(tf.constant([1.0, 3.0, 2.0]), k), [False, True, True])


def test_takes_numpy_arrays_and_lists():
    np.testing.assert_array_equal(top_k_mask(np.array([1.0, 3.0]), 1), [False, True])
    np.testing.assert_array_equal(top_k_mask([1.0, 3.0], 1, among=[True, False]), [True, False])


def test_is_exact_in_a_large_weight():
    scores = tf.random.stateless_normal([1000, 1000], seed=[1, 2])
    mask = top_k_mask(scores, 100_000).numpy()
    assert np.count_nonzero(mask) == 100_000
    assert scores.numpy()[mask].min() > scores.numpy()[~mask].max()
