"""Blocks move by scores of strips: the same blocks as by the dense gradient, never stored."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from references import patterns_numpy as reference

from tests.block_sparse.test_block_sparse_properties import FIXED, built, placed
from tf_rigl import block_sparse, methods
from tf_rigl._base import tensors
from tf_rigl.block_sparse import drawing, strips
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.weights.sparse_weight import Slot

some = settings(max_examples=25, **FIXED)


def whole_numbers(rng, *shape):
    """Small whole numbers, of which sums and products are exact in any order."""
    return tf.constant(rng.integers(-3, 4, shape), tf.float32)


@pytest.fixture
def limit(monkeypatch):
    """Returns a function that sets how many entries a strip has at most."""
    return lambda entries: monkeypatch.setattr(strips, "LIMIT", entries)


def heard(layer, passes):
    """The dense gradient of a loss with the given gradients, one for each pass."""
    weight = BlockSparseWeight("kernel", layer)
    with weight.probe() as probe, tf.GradientTape() as tape:
        tape.watch(probe.watched)
        losses = [tf.reduce_sum(layer(x) * dy) for x, dy in passes]
        loss = tf.add_n([*losses, 0.0])
    return weight, probe.found(tape.gradient(loss, probe.watched))


@some
@given(placed(), st.integers(1, 200), st.integers(1, 3), st.integers(0, 99))
def test_a_gradient_in_strips_is_the_dense_one(case, entries, passes, seed):
    geometry, places = case
    rng, layer = np.random.default_rng(seed), built(geometry, places)
    pairs = [
        (whole_numbers(rng, n, geometry.inputs), whole_numbers(rng, n, geometry.outputs))
        for n in range(1, passes + 1)
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "LIMIT", entries)
        _, gradient = heard(layer, pairs)
        scaled = gradient.divided(tf.constant(4.0)).dense()
        dense, finite = gradient.dense(), gradient.is_finite()
    expected = sum(x.numpy().T @ dy.numpy() for x, dy in pairs)
    np.testing.assert_array_equal(dense, expected)
    np.testing.assert_array_equal(scaled, expected / 4)
    assert finite


@some
@given(placed(), st.integers(1, 200), st.data())
def test_blocks_move_as_by_the_dense_gradient(case, entries, data):
    """RigL, by loops in plain Python: blocks, values and slots."""
    geometry, places = case
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    layer, (rows, cols) = built(geometry, places), (geometry.rows, geometry.cols)
    mask = BlockSparseWeight("kernel", layer).mask.numpy()
    shape = geometry.inputs, geometry.outputs
    kernel = np.where(mask, whole_numbers(rng, *shape), 0)
    layer.values.assign(geometry.pack(kernel, layer.places.value))
    slot = keras.Variable(layer.values.numpy() + 10 * np.asarray(geometry.inside(places)))
    x, dy = whole_numbers(rng, 3, shape[0]), whole_numbers(rng, 3, shape[1])
    blocks = geometry.across * geometry.active
    keep = data.draw(st.integers(0, blocks))
    counts = tf.constant(keep), tf.constant(blocks - keep)
    method = methods.RigL(grow_initializer=data.draw(st.sampled_from(["zeros", "ones"])))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "LIMIT", entries)
        weight, gradient = heard(layer, [(x, dy)])
        seed = tf.constant([3, 4])
        for variable, value in weight.changes(method, counts, gradient, seed, [Slot(slot)]):
            variable.assign(value)
    kept = reference.block_mask(np.abs(kernel), keep, rows, cols, among=mask)
    scores = np.abs(x.numpy().T @ dy.numpy())
    new = kept | reference.fan_in_mask(scores, geometry.active, rows, cols, kept=kept)
    begun = 0.0 if method.begins_at_zero else 1.0
    np.testing.assert_array_equal(weight.mask, new)
    np.testing.assert_array_equal(weight.dense(), np.where(new, np.where(mask, kernel, begun), 0))
    np.testing.assert_array_equal(weight.dense(slot), np.where(new & mask, kernel + 10, 0))


def test_nothing_changes_where_gradients_overflowed(limit):
    limit(1)
    layer = block_sparse.Dense(12, block_size=2, density=0.4, seed=0)
    x, dy = tf.constant(np.eye(10, dtype="float32")), tf.fill([10, 12], np.float32("inf"))
    layer(x)
    weight, gradient = heard(layer, [(x, dy)])
    assert not gradient.is_finite()
    before, values = weight.mask.numpy(), weight.weight.numpy()
    counts, usable = (tf.constant(0), tf.constant(weight.active())), tf.constant(False)
    changes = weight.changes(methods.SET(), counts, gradient, tf.constant([0, 1]), usable=usable)
    for variable, value in changes:
        variable.assign(value)
    np.testing.assert_array_equal(weight.mask, before)
    np.testing.assert_array_equal(weight.weight, values)


@pytest.mark.parametrize("entries", [1, 10**6])
def test_random_growth_reaches_every_block_and_has_exact_counts(limit, entries):
    limit(entries)
    layer = block_sparse.Dense(12, block_size=2, density=0.4, seed=0)
    layer.build((None, 10))
    weight, reached = BlockSparseWeight("kernel", layer), np.zeros((10, 12), bool)
    for step in range(30):
        counts = tf.constant(0), tf.constant(weight.active())
        for variable, value in weight.changes(methods.SET(), counts, None, tf.constant([7, step])):
            variable.assign(value)
        mask = weight.mask.numpy()
        assert reference.kept_in_columns(mask, 2, 2) == [2] * 6
        reached |= mask
    assert reached.all()


def test_passes_in_loops_and_inner_functions_are_heard():
    """They cannot be heard outside, so they are as if zeros were added."""
    layer = block_sparse.Dense(6, block_size=2, density=0.5, seed=0)
    x, dy = whole_numbers(np.random.default_rng(0), 4, 8), tf.ones([4, 6])
    layer(x)
    weight = BlockSparseWeight("kernel", layer)
    inner = tf.function(lambda x: layer(x))

    @tf.function
    def step(x):
        with weight.probe() as probe, tf.GradientTape() as tape:
            tape.watch(probe.watched)
            total = tf.zeros([])
            for n in tf.range(3):
                total += tf.reduce_sum(layer(x * tf.cast(n, tf.float32)) * dy)
            loss = total + tf.reduce_sum(inner(x) * dy) + tf.reduce_sum(layer(x) * dy)
        return probe.found(tape.gradient(loss, probe.watched)).dense()

    np.testing.assert_array_equal(step(x), (0 + 1 + 2 + 1 + 1) * x.numpy().T @ dy.numpy())


def test_a_loss_that_does_not_reach_the_layer_is_told():
    layer = block_sparse.Dense(6, block_size=2, density=0.5)
    layer.build((None, 8))
    _, gradient = heard(layer, [])
    assert gradient is None


# Drawing without the dense kernel.

LARGE = (4096, 2048)  # More entries than a strip has.


@pytest.mark.parametrize(
    "initializer",
    ["glorot_uniform", "he_normal", "lecun_uniform", "random_normal", "zeros", "ones"],
)
def test_values_of_large_kernels_have_the_distribution_of_the_dense_ones(initializer):
    initializer = keras.initializers.get(initializer)
    layer = block_sparse.Dense(
        LARGE[1], block_size=64, density=0.125, kernel_initializer=initializer, seed=0
    )
    layer.build((None, LARGE[0]))
    values = layer.values.numpy()
    dense = keras.ops.convert_to_numpy(initializer(LARGE))
    deviation, mean, highest = (float(f(dense)) for f in (np.std, np.mean, _highest))
    assert float(values.std()) == pytest.approx(deviation, rel=0.02)
    assert float(values.mean()) == pytest.approx(mean, abs=0.02 * deviation + 1e-6)
    assert _highest(values) == pytest.approx(highest, rel=0.15)


def _highest(array):
    return float(np.abs(array).max())


def test_places_are_drawn_alike_in_pieces(monkeypatch):
    geometry = block_sparse.layers.Geometry(300, 200, 3, 7, 9)
    whole = drawing.places(geometry, 5)
    monkeypatch.setattr(drawing, "LIMIT", 250)
    np.testing.assert_array_equal(drawing.places(geometry, 5), whole)
    assert (np.diff(whole) > 0).all()


def test_a_large_kernel_is_never_dense(monkeypatch):
    """Building, an update, the report and files make nothing of the dense size."""
    size = 2048
    layer = block_sparse.Dense(size, block_size=32, density=1 / 64, seed=0)
    monkeypatch.setattr(strips, "LIMIT", 2**18)
    layer.build((None, size))
    weight = BlockSparseWeight("kernel", layer)

    @tf.function
    def update(x, keep, grow):
        with weight.probe() as probe, tf.GradientTape() as tape:
            tape.watch(probe.watched)
            loss = tf.reduce_sum(layer(x) ** 2)
        gradient = probe.found(tape.gradient(loss, probe.watched))
        return [v for _, v in weight.changes(methods.RigL(), (keep, grow), gradient, [0, 1])]

    spec = tf.TensorSpec([4, size]), tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.int32)
    concrete = update.get_concrete_function(*spec)
    used = _needed(concrete.graph)
    largest = max((t.shape.num_elements() or 0) for op in used for t in op.outputs)
    assert largest <= 2**19


def _needed(graph):
    """The operations that the outputs of a graph need, with those of inner functions."""
    todo, found = [t.op for t in graph.outputs], {}
    while todo:
        op = todo.pop()
        if op.name not in found:
            found[op.name] = op
            todo += [t.op for t in op.inputs] + list(op.control_inputs)
    inner = [
        each
        for op in found.values()
        for key in ("body", "cond", "f")
        if key in op.node_def.attr and op.node_def.attr[key].HasField("func")
        for each in _needed(_function(graph, op.get_attr(key).name))
    ]
    return [*found.values(), *inner]


def _function(graph, name):
    return graph._get_function(name).graph


def test_dense_gradients_are_told_from_factors():
    assert tensors.whole([1.0]).shape == (1,)
    assert not tensors.is_finite(tf.constant([1.0, float("nan")]))
    assert tensors.divided(tf.constant([4.0]), tf.constant(2.0), tf.float32).numpy() == [2.0]
