"""A constant fan-in of single entries, against loops in plain Python."""

import numpy as np
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from references import patterns_numpy as reference

from tests.patterns.test_pattern_properties import arrays, axes_of, few, many, scores, shapes
from tf_rigl import methods
from tf_rigl.patterns import ConstantFanIn


def outputs_of(shape, pattern):
    """The indices of the entries of each output, in order of the inputs."""
    axes = pattern.axes or reference.default_axes(len(shape))
    places = reference.places(shape, (*axes, "all") if pattern.taps else axes)
    columns = {}
    for index, (stack, i, o) in places.items():
        # With taps, what is stacked counts as inputs after the input axes.
        columns.setdefault(o if pattern.taps else (stack, o), []).append((i, index))
    return [[index for _, index in sorted(columns[key], key=lambda e: e[0])] for key in columns]


def best(values, indices, number):
    order = reference.best_first([float(values[index]) for index in indices])
    return [indices[k] for k in order[:number]]


@st.composite
def cases(draw):
    shape = draw(shapes)
    taps = draw(st.booleans())
    # Without an order among taps, columns are compared where the order of inputs is plain.
    pattern = ConstantFanIn(draw(axes_of(shape, ascending=True)) if not taps else None, taps)
    return shape, pattern, draw(arrays(shape, scores)), draw(st.integers(0, 10**6))


@many
@given(cases())
def test_each_output_keeps_its_best_inputs(case):
    shape, pattern, values, drawn = case
    columns = outputs_of(shape, pattern)
    inputs = len(columns[0])
    assert pattern.step(shape) == len(columns)
    assert pattern.units(shape) == values.size
    each = drawn % inputs + 1
    mask = pattern.select(tf.constant(values), each * len(columns)).numpy()
    assert int(pattern.active(tf.constant(mask))) == each * len(columns)
    for column in columns:
        assert sum(mask[index] for index in column) == each
        if pattern.axes is None and not pattern.taps:  # Ties go by the order of the matrix.
            assert {i for i in column if mask[i]} == set(best(values, column, each))


@many
@given(cases(), st.data())
def test_growing_fills_each_output(case, data):
    """What an update of RigL does: some survive whatever their output, others fill it up."""
    shape, pattern, values, drawn = case
    columns = outputs_of(shape, pattern)
    each = drawn % len(columns[0]) + 1
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    random = rng.integers(-100, 100, shape).astype("float32")
    mask = pattern.select(tf.constant(random), each * len(columns))
    keep = data.draw(st.integers(0, each * len(columns)))
    kept = pattern.keep(tf.constant(values), keep, mask)
    grown = pattern.select(tf.constant(random), each * len(columns) - keep, kept=kept)
    assert np.count_nonzero(kept) == keep
    assert not (kept.numpy() & ~mask.numpy()).any()
    assert not (kept.numpy() & grown.numpy()).any()
    new = (kept | grown).numpy()
    assert all(sum(new[index] for index in column) == each for column in columns)


@few
@given(cases())
def test_compiled_it_is_the_same(case):
    shape, pattern, values, _ = case
    count = pattern.step(shape)
    compiled = tf.function(pattern.select, jit_compile=True)
    one, other = (f(tf.constant(values), count).numpy() for f in (pattern.select, compiled))
    np.testing.assert_array_equal(one, other)


def test_the_taps_of_a_convolution_are_inputs():
    pattern = methods.SRigL().suited(ConstantFanIn())
    assert pattern.step((3, 3, 4, 5)) == 5
    mask = pattern.select(tf.random.stateless_normal((3, 3, 4, 5), (0, 1)), 5 * 7).numpy()
    assert mask.sum(axis=(0, 1, 2)).tolist() == [7] * 5
