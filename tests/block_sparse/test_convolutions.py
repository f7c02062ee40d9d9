"""Convolutions of blocks: what they compute, how they move, and that they train as masked ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from references import patterns_numpy as reference

import tf_rigl
from tests.block_sparse.test_block_sparse import check_same, compute, made, train
from tests.block_sparse.test_block_sparse_properties import FIXED
from tests.block_sparse.test_strips import whole_numbers
from tests.helpers import equal_masks, random_data
from tf_rigl import block_sparse, methods
from tf_rigl.block_sparse import convolution, strips
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.patterns import Block

some = settings(max_examples=25, **FIXED)
CLASSES = {1: block_sparse.Conv1D, 2: block_sparse.Conv2D, 3: block_sparse.Conv3D}


@st.composite
def convolutions(draw):
    """A layer that is built, and its inputs."""
    rank, side = draw(st.sampled_from([1, 2, 2, 2, 3])), st.integers(1, 3)
    strides, dilation = draw(st.sampled_from([(1, 1), (2, 1), (1, 2)]))
    first = draw(st.booleans())
    causal = ["causal"] if rank == 1 and not first else []
    layer = CLASSES[rank](
        draw(st.integers(1, 9)),
        tuple(draw(side) for _ in range(rank)),
        strides=strides,
        dilation_rate=dilation,
        padding=draw(st.sampled_from(["valid", "same", *causal])),
        data_format="channels_first" if first else "channels_last",
        use_bias=draw(st.booleans()),
        activation=draw(st.sampled_from([None, "relu", "softmax"])),
        block_size=(draw(st.integers(1, 4)), draw(st.integers(1, 4))),
        density=draw(st.sampled_from([0.2, 0.5, 1.0])),
        seed=draw(st.integers(0, 99)),
    )
    channels, sizes = draw(st.integers(1, 9)), [draw(st.integers(5, 7)) for _ in range(rank)]
    shape = [2, channels, *sizes] if first else [2, *sizes, channels]
    layer.build((None, *shape[1:]))
    return layer, np.random.default_rng(draw(st.integers(0, 99))).normal(size=shape)


def runs_in_keras(layer):
    """TensorFlow on CPU has no dense form of some: gradients with dilation in three dimensions."""
    return not (layer.rank == 3 and max(layer.dilation_rate) > 1)


@some
@given(convolutions(), st.sampled_from([0, 256]))
def test_outputs_and_gradients_are_those_of_the_dense_layer(case, few):
    layer, x = case
    if not runs_in_keras(layer):
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convolution, "_FEW", few)  # Gradients are summed by a product, or by index.
        check_dense(layer, x)


def check_dense(layer, x):
    dense, x = layer.ordinary(), tf.constant(x, tf.float32)
    dense.build(x.shape)
    dense.kernel.assign(layer.kernel)
    direction = tf.constant(np.random.default_rng(0).normal(size=dense(x).shape), tf.float32)
    (ours, stored, whole), (theirs, kernel, _) = (
        compute(each, x, direction) for each in (layer, dense)
    )
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(whole, kernel, rtol=1e-4, atol=1e-4)
    packed = layer.geometry.pack(layer.as_matrix(kernel), tf.constant(layer.places))
    np.testing.assert_allclose(stored, packed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize(("rank", "strides"), [(1, 3), (2, 2), (2, (1, 2)), (3, 2)])
def test_strides_of_1x1_convolutions(rank, strides, padding):
    """They leave places out before the product."""
    layer = CLASSES[rank](7, 1, strides=strides, padding=padding, block_size=(2, 3), density=0.5)
    shape = [2, *([6, 7, 8][:rank]), 5]
    layer.build((None, *shape[1:]))
    check_dense(layer, np.random.default_rng(0).normal(size=shape))
    free = layer(keras.Input([None] * rank + [5]))
    assert free.shape == (None, *[None] * rank, 7)


@some
@given(st.integers(1, 400), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99), st.data())
def test_blocks_move_as_by_the_dense_gradient(entries, rows, cols, seed, data):
    """RigL, by loops in plain Python over the kernel as a matrix of channels times taps."""
    rng = np.random.default_rng(seed)
    layer = block_sparse.Conv2D(7, (2, 3), block_size=(rows, cols), density=0.4, seed=seed)
    layer.build((None, 4, 5, 6))
    geometry, weight = layer.geometry, BlockSparseWeight("kernel", layer)
    matrix = lambda kernel: np.asarray(kernel).transpose(2, 0, 1, 3).reshape(36, 7)  # noqa: E731
    mask = matrix(weight.mask)
    layer.values.assign(geometry.pack(np.where(mask, whole_numbers(rng, 36, 7), 0), layer.places))
    kernel = matrix(layer.kernel)
    x, dy = whole_numbers(rng, 2, 4, 5, 6), whole_numbers(rng, 2, 3, 3, 7)
    with tf.GradientTape() as tape:
        dense = tf.zeros(layer.kernel_shape)
        tape.watch(dense)
        loss = tf.reduce_sum(tf.nn.conv2d(x, dense, 1, "VALID") * dy)
    scores = np.abs(matrix(tape.gradient(loss, dense)))
    keep = data.draw(st.integers(0, weight.active()))
    counts = tf.constant(keep), tf.constant(weight.active() - keep)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strips, "LIMIT", entries)
        with weight.probe() as probe, tf.GradientTape() as tape:
            tape.watch(probe.watched)
            loss = tf.reduce_sum(layer(x) * dy)
        gradient = probe.found(tape.gradient(loss, probe.watched))
        for variable, value in weight.changes(
            methods.RigL(), counts, gradient, tf.constant([3, 4])
        ):
            variable.assign(value)
    height = rows * 6
    kept = reference.block_mask(np.abs(kernel), keep, height, cols, among=mask)
    new = kept | reference.fan_in_mask(scores, geometry.active, height, cols, kept=kept)
    np.testing.assert_array_equal(matrix(weight.mask), new)
    np.testing.assert_array_equal(matrix(layer.kernel), np.where(new & mask, kernel, 0))


def residual():
    """Convolutions of several kinds, with a shortcut."""
    inputs = keras.Input((8, 8, 6))
    arguments = {"padding": "same", "use_bias": False}
    x = keras.layers.Conv2D(12, 3, strides=2, name="stem", **arguments)(inputs)
    y = keras.layers.BatchNormalization(name="norm")(x)
    y = keras.layers.Conv2D(12, 3, activation="relu", name="inner", **arguments)(y)
    x = keras.layers.Add()([x, keras.layers.Conv2D(12, 1, name="point")(y)])
    x = keras.layers.Conv2D(10, 1, strides=2, activation="relu", name="strided")(x)
    x = keras.layers.Reshape((4, 10))(x)
    x = keras.layers.Conv1D(10, 3, padding="causal", activation="relu", name="line")(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(keras.layers.Flatten()(x)))


WIDE = Block(2, 3, taps="all", constant_fan_in=True)
NAMES = {f"{name}/kernel" for name in ("stem", "inner", "point", "strided", "line")}


def built(how, method="rigl"):
    keras.utils.set_random_seed(1)
    return made(how, method, residual(), pattern=WIDE)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("method", ["rigl", "set"])
def test_they_train_as_the_masked_ones(method, optimizer):
    masked, sparse = (built(how, method) for how in ("masked", "sparse"))
    packed = {i.path for i in sparse.masked_weights if isinstance(i, BlockSparseWeight)}
    assert packed >= NAMES
    one, other = (train(model, optimizer, steps=60) for model in (masked, sparse))
    assert check_same(one, other) > 2


@pytest.mark.parametrize("jit_compile", [False, True])
def test_files_compacting_and_stripping_keep_the_outputs(tmp_path, jit_compile):
    model = built("sparse")
    train(model, steps=20, jit_compile=jit_compile)
    x, _ = random_data(model.input_shape[1:], batches=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert equal_masks(model.masks, loaded.masks)
    np.testing.assert_array_equal(loaded(x), model(x))
    for other in (tf_rigl.compact(model, form="split"), tf_rigl.strip(model)):
        np.testing.assert_allclose(other(x), model(x), rtol=1e-4, atol=1e-5)


def test_the_pattern_that_chooses_by_layer():
    inputs = keras.Input((8, 8, 32))
    x = keras.layers.Conv2D(64, 3, name="wide")(inputs)
    x = keras.layers.Conv2D(64, 1, name="point")(x)
    x = keras.layers.Conv2D(3, 3, name="narrow")(x)
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    sparse = tf_rigl.sparsify(model, pattern="compact", compute="sparse", sparsity=0.75)
    rows = {row.name: row for row in tf_rigl.report(sparse).layers}
    found = {name: (row.pattern, row.compute) for name, row in rows.items()}
    assert found["wide/kernel"] == ("constant_fan_in_channels_1x32", "sparse")
    assert found["point/kernel"][1] == "sparse"
    assert found["narrow/kernel"] == ("unstructured", "masked")


def test_a_bias_of_channels_first_is_that_of_the_stripped_layer():
    """Where the last axis is as long as the channels, Keras adds it along that one."""
    layer = keras.layers.Conv2D(
        64, 3, padding="same", data_format="channels_first", bias_initializer="normal"
    )
    model = keras.Sequential([keras.Input((32, 5, 64)), layer])
    sparse = tf_rigl.sparsify(
        model, sparsity=0.75, pattern="channels_1x32", compute="sparse",
        distribution="uniform_all", seed=0,
    )  # fmt: skip
    x = np.random.default_rng(0).normal(size=(2, 32, 5, 64)).astype("float32")
    np.testing.assert_allclose(tf_rigl.strip(sparse)(x), sparse(x), atol=1e-5)
