"""What holds for every size, block and density: blocks against dense matrices and plain loops."""

import math

import keras
import numpy as np
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from references import patterns_numpy as reference

from tf_rigl import block_sparse, methods
from tf_rigl.block_sparse.geometry import Geometry
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.patterns import Block
from tf_rigl.weights.sparse_weight import Slot

# The same examples everywhere, and no files left behind.
FIXED = {"deadline": None, "derandomize": True, "database": None}
many = settings(max_examples=60, **FIXED)
some = settings(max_examples=25, **FIXED)

# Whole numbers, of which sums are exact in any order; few, hence ties.
whole = st.integers(-4, 4).map(float)
odd = st.sampled_from([0.0, -0.0, 1.0, math.inf, -math.inf, math.nan])
drawn = st.sampled_from([-(2**31), -(2**31) + 1, -1, 0, 1, 2**31 - 1])


@st.composite
def geometries(draw):
    sizes, sides = st.integers(1, 14), st.integers(1, 6)
    inputs, outputs, rows, cols = draw(sizes), draw(sizes), draw(sides), draw(sides)
    return Geometry(inputs, outputs, rows, cols, draw(st.integers(1, -(-inputs // rows))))


@st.composite
def placed(draw):
    """A geometry and places that fit it."""
    geometry = draw(geometries())
    seed = draw(st.integers(0, 2**16))
    order = np.random.default_rng(seed).random((geometry.across, geometry.down)).argsort(axis=1)
    return geometry, np.sort(order[:, : geometry.active], axis=1).astype("int32")


@st.composite
def patterns(draw):
    """A pattern with a constant fan-in, a shape, and how many blocks each column keeps."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=6))
    axes = None
    if len(shape) > 1 and draw(st.booleans()):
        order = draw(st.permutations(range(len(shape))))
        cut = draw(st.integers(1, len(shape) - 1))
        axes = (tuple(order[:cut]), tuple(order[cut:]))
    sides, score = st.integers(1, 4), draw(st.sampled_from(["sum", "mean", "max"]))
    pattern = Block(draw(sides), draw(sides), score, axes, constant_fan_in=True)
    down = pattern.units(shape) // pattern.step(shape)
    return pattern, shape, draw(st.integers(1, down))


def how(pattern):
    return pattern.rows, pattern.cols, pattern.score, pattern.axes


# From dense to blocks and back.


@many
@given(placed())
def test_what_is_packed_comes_back_and_the_rest_is_zero(case):
    geometry, places = case
    shape = (geometry.inputs, geometry.outputs)
    matrix = np.random.default_rng(0).normal(size=shape).astype("float32")
    values = geometry.pack(matrix, places)
    assert values.shape == geometry.values_shape
    mask = geometry.mask(tf.constant(places)).numpy()
    back = geometry.unpack(values, tf.constant(places)).numpy()
    np.testing.assert_array_equal(back, np.where(mask, matrix, 0))
    np.testing.assert_array_equal(geometry.pack(back, places), values)
    np.testing.assert_array_equal(geometry.places(tf.constant(mask)), places)
    for (i, o), kept in np.ndenumerate(mask):
        assert kept == (i // geometry.rows in places[o // geometry.cols])


@many
@given(geometries())
def test_all_blocks_are_the_matrix(geometry):
    matrix = np.random.default_rng(0).normal(size=(geometry.inputs, geometry.outputs))
    blocks = geometry.blocks(tf.constant(matrix))
    assert blocks.shape == (geometry.across, geometry.down, geometry.rows, geometry.cols)
    np.testing.assert_array_equal(geometry.matrix(blocks), matrix)


@many
@given(placed())
def test_the_mask_of_a_layer_is_one_of_its_pattern(case):
    geometry, places = case
    layer = built(geometry, places)
    item = BlockSparseWeight("kernel", layer)
    mask = item.mask.numpy()
    np.testing.assert_array_equal(
        item.pattern.expand(item.pattern.unit_mask(mask), mask.shape), mask
    )
    assert item.pattern.active(mask) == item.active() == item.target_active()
    kept = reference.kept_in_columns(mask, geometry.rows, geometry.cols)
    assert set(kept) == {geometry.active}


# Products.


def built(geometry, places):
    density = geometry.active / geometry.down
    block_size = (geometry.rows, geometry.cols)
    layer = block_sparse.Dense(geometry.outputs, block_size=block_size, density=density)
    layer.build((None, geometry.inputs))
    assert layer.geometry == geometry
    layer.places.assign(places)
    return layer


@many
@given(placed(), st.integers(0, 5))
def test_outputs_and_gradients_are_those_of_the_dense_kernel(case, batch):
    geometry, places = case
    layer = built(geometry, places)
    rng = np.random.default_rng(1)
    x = tf.constant(rng.normal(size=(batch, geometry.inputs)), tf.float32)
    kernel = tf.constant(layer.kernel)
    weight = tf.constant(rng.normal(size=(batch, geometry.outputs)), tf.float32)
    with BlockSparseWeight("kernel", layer).probe() as probe, tf.GradientTape() as tape:
        tape.watch([x, *probe.watched])
        y = layer(x)
        loss = tf.reduce_sum(y * weight)
    dx, values, seen = tape.gradient(loss, [x, layer.values.value, probe.watched])
    whole = probe.found(seen).dense()
    dense = tf.transpose(x) @ weight
    close = {"rtol": 1e-4, "atol": 1e-5}
    np.testing.assert_allclose(y, x @ kernel, **close)
    np.testing.assert_allclose(dx, weight @ tf.transpose(kernel), **close)
    np.testing.assert_allclose(whole, dense, **close)
    np.testing.assert_allclose(values, geometry.pack(dense, places), **close)


# Moving.


@some
@given(st.data())
def test_blocks_move_with_all_that_is_kept_of_them(data):
    """What stays keeps its values in a slot; what is new begins empty there."""
    geometry, places = data.draw(placed())
    layer = built(geometry, places)
    item = BlockSparseWeight("kernel", layer)
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    order = rng.random((geometry.across, geometry.down)).argsort(axis=1)[:, : geometry.active]
    new = geometry.mask(tf.constant(np.sort(order, axis=1), tf.int32))
    shape = (geometry.inputs, geometry.outputs)
    old, weight = item.mask.numpy(), rng.normal(size=shape).astype("float32") * new
    slot = keras.Variable(rng.normal(size=geometry.values_shape))
    before = item.dense(slot).numpy()
    for variable, value in item.replaced(None, new, weight, [Slot(slot)]):
        variable.assign(value)
    np.testing.assert_array_equal(item.mask, new)
    np.testing.assert_array_equal(item.dense(), weight)
    np.testing.assert_array_equal(item.dense(slot), np.where(old & new, before, 0))


# The pattern.


@many
@given(st.data())
def test_a_constant_fan_in_is_that_of_the_loop(data):
    """Of floats, infinities and NaN, and of integers; in a fresh mask, and beside what is kept."""
    pattern, shape, each = data.draw(patterns())
    down = pattern.units(shape) // pattern.step(shape)
    assert pattern.step(shape) == len(
        set(reference.columns(shape, *how(pattern)[:2], pattern.axes))
    )
    scores = data.draw(hnp.arrays(np.float32, shape, elements=st.one_of(whole, odd)))
    mask = pattern.select(scores, each * pattern.step(shape)).numpy()
    expected = reference.fan_in_mask(scores, each, *how(pattern))
    np.testing.assert_array_equal(mask, expected)

    more = data.draw(st.integers(each, down))
    dropped = data.draw(st.integers(0, each * pattern.step(shape)))
    scores = data.draw(hnp.arrays(np.float32, shape, elements=whole))
    kept = pattern.keep(scores, each * pattern.step(shape) - dropped, tf.constant(mask)).numpy()
    best = reference.block_mask(
        scores, each * pattern.step(shape) - dropped, *how(pattern), among=mask
    )
    np.testing.assert_array_equal(kept, best)
    scores = data.draw(hnp.arrays(np.float32, shape, elements=st.one_of(whole, odd)))
    count = (more - each) * pattern.step(shape) + dropped
    grown = pattern.select(scores, count, kept=tf.constant(kept)).numpy()
    np.testing.assert_array_equal(
        grown, reference.fan_in_mask(scores, more, *how(pattern), kept=kept)
    )
    assert not (grown & kept).any()


@many
@given(st.data())
def test_the_lowest_integer_is_a_score_like_any_other(data):
    """Units of one entry: of larger ones sums of draws may wrap around."""
    shape = data.draw(hnp.array_shapes(min_dims=2, max_dims=2, max_side=6))
    pattern = Block(1, 1, constant_fan_in=True)
    kept = np.zeros(shape, bool)
    kept[data.draw(st.integers(0, shape[0] - 1))] = True
    each = data.draw(st.integers(1, shape[0]))
    scores = data.draw(hnp.arrays(np.int32, shape, elements=drawn))
    # As for unstructured masks, the two lowest integers count as one.
    same = np.maximum(scores, -(2**31) + 1)
    grown = pattern.select(tf.constant(scores), (each - 1) * shape[1], kept=tf.constant(kept))
    expected = reference.fan_in_mask(same, each, 1, 1, kept=kept)
    np.testing.assert_array_equal(grown, expected)


@some
@given(st.data())
def test_an_update_of_rigl_is_that_of_the_loop(data):
    pattern, shape, each = data.draw(patterns())
    count = each * pattern.step(shape)
    mask = reference.fan_in_mask(
        data.draw(hnp.arrays(np.float32, shape, elements=whole)), each, *how(pattern)
    )
    weight = np.where(mask, data.draw(hnp.arrays(np.float32, shape, elements=whole)), 0)
    gradient = data.draw(hnp.arrays(np.float32, shape, elements=whole))
    weight = weight.astype("float32")
    keep = data.draw(st.integers(0, count))
    new_mask, new_weight = methods.RigL().update(
        *map(tf.constant, (weight, gradient, mask)),
        keep,
        count - keep,
        pattern,
        tf.constant([0, 0]),
    )
    kept = reference.block_mask(np.abs(weight), keep, *how(pattern), among=mask)
    grown = reference.fan_in_mask(np.abs(gradient), each, *how(pattern), kept=kept)
    np.testing.assert_array_equal(new_mask, kept | grown)
    np.testing.assert_array_equal(new_weight, np.where(new_mask, weight, 0))
