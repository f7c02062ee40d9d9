"""Block-sparse layers and models: what they compute, and that they train as masked ones do."""

import contextlib
import functools
import itertools
import json
import os
import pathlib
import subprocess
import sys

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from references import patterns_numpy as reference

import tf_rigl
from tests.helpers import Detached, compiled, equal_masks, mlp, random_data, sparsify, uniform
from tf_rigl import block_sparse, methods
from tf_rigl.accounting import reporting
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.experiments import runs
from tf_rigl.patterns import Block
from tf_rigl.training.slots import find_slots
from tf_rigl.weights import maskable

# What the layers compute.

LAYERS = {
    "Dense": (lambda **k: block_sparse.Dense(13, activation="tanh", **k), (21,)),
    "Dense of rank 3": (lambda **k: block_sparse.Dense(13, **k), (4, 21)),
    "Dense of rank 4": (lambda **k: block_sparse.Dense(13, use_bias=False, **k), (2, 3, 21)),
    "EinsumDense ab,bc->ac": (lambda **k: einsum("ab,bc->ac", (13,), **k), (21,)),
    "EinsumDense abc,cd->abd": (lambda **k: einsum("abc,cd->abd", (4, 13), **k), (4, 21)),
    "EinsumDense ...x,xy->...y": (lambda **k: einsum("...x,xy->...y", (4, 13), **k), (4, 21)),
    "EinsumDense abc,cde->abde": (lambda **k: einsum("abc,cde->abde", (4, 3, 5), **k), (4, 21)),
    "EinsumDense abcd,cde->abe": (lambda **k: einsum("abcd,cde->abe", (4, 13), **k), (4, 3, 7)),
    "EinsumDense abc,dc->abd": (lambda **k: einsum("abc,dc->abd", (4, 13), **k), (4, 21)),
    "Conv2D": (lambda **k: block_sparse.Conv2D(13, 1, activation="relu", **k), (3, 2, 21)),
    **{
        f"{kind} {arguments}": (
            functools.partial(getattr(block_sparse, kind), 13, **arguments),
            shape,
        )
        for kind, shape, arguments in [
            ("Conv1D", (6, 9), {"kernel_size": 3, "padding": "causal", "dilation_rate": 2}),
            ("Conv1D", (9, 6), {"kernel_size": 2, "data_format": "channels_first"}),
            ("Conv2D", (5, 6, 9), {"kernel_size": (3, 2), "padding": "same", "strides": 2}),
            ("Conv2D", (5, 6, 9), {"kernel_size": 1, "strides": 2, "use_bias": False}),
            ("Conv2D", (9, 5, 6), {"kernel_size": 3, "data_format": "channels_first"}),
            ("Conv2D", (7, 7, 9), {"kernel_size": 3, "dilation_rate": 2, "activation": "softmax"}),
            ("Conv3D", (3, 4, 5, 9), {"kernel_size": 2, "padding": "same"}),
        ]
    },
}


def einsum(equation, shape, **kwargs):
    bias_axes = equation[-2:] if equation.endswith("de") else equation[-1]
    return block_sparse.EinsumDense(equation, shape, bias_axes=bias_axes, **kwargs)


def compute(layer, x, direction):
    """Outputs, and the gradients of inputs, bias, and the kernel: of what is stored, and whole."""
    sparse = hasattr(layer, "values")
    weights = [BlockSparseWeight("kernel", layer)] if sparse else []
    variables = [layer.bias.value] if layer.bias is not None else []
    variables.append((layer.values if sparse else layer.kernel).value)
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(weight.probe()) for weight in weights]
        tape = stack.enter_context(tf.GradientTape())
        tape.watch([x, *(probe.watched for probe in probes)])
        y = layer(x)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * direction)
    *gradients, kernel, whole = tape.gradient(
        loss, [x, *variables, probes[0].watched if sparse else variables[-1]]
    )
    return (y, *gradients), kernel, probes[0].found(whole).dense() if sparse else whole


@pytest.mark.parametrize("mode", ["eager", "graph", "free batch", "jit", "mixed_float16"])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_what_the_dense_one_does(name, mode):
    make, shape = LAYERS[name]
    dtype = mode if mode == "mixed_float16" else "float32"
    layer = make(block_size=(4, 3), density=0.4, dtype=dtype)
    x = tf.constant(np.random.default_rng(0).normal(size=(5, *shape)), layer.compute_dtype)
    layer.build((None, *shape))
    dense = layer.ordinary()
    assert type(dense).__module__.startswith("keras.")
    dense.build((None, *shape))
    dense.kernel.assign(layer.kernel)
    if layer.bias is not None:
        values = np.random.default_rng(1).normal(size=layer.bias.shape)
        layer.bias.assign(values)
        dense.bias.assign(values)
    direction = tf.constant(np.random.default_rng(2).normal(size=layer(x).shape), tf.float32)

    def call(layer):
        step = lambda x, direction: compute(layer, x, direction)  # noqa: E731
        if mode in ("graph", "jit"):
            step = tf.function(step, jit_compile=mode == "jit")
        if mode == "free batch":
            free = [tf.TensorSpec((None, *a.shape[1:]), a.dtype) for a in (x, direction)]
            step = tf.function(step, input_signature=free)
        return step(tf.cast(x, layer.compute_dtype), direction)

    if mode == "mixed_float16":
        # Of float16, TensorFlow 2.21 computes "...x,xy->...y" wrongly on processors with
        # AVX512-FP16, and no convolution with channels first on those without.
        precise = type(dense).from_config({**dense.get_config(), "dtype": "float32"})
        precise.build((None, *shape))
        for variable, value in zip(precise.weights, dense.weights, strict=True):
            variable.assign(value)
        dense = precise

    def check(one, other):
        # Sums of float16 are off by so much of their largest terms.
        least = 0.01 * np.abs(other).max() + 0.05 if mode == "mixed_float16" else 1e-5
        rtol = 0.02 if mode == "mixed_float16" else 1e-4
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=rtol, atol=least)

    (ours, stored, whole), (theirs, kernel, _) = call(layer), call(dense)
    dtypes = [layer.compute_dtype] * 2 + ["float32"]
    for one, other, like in zip(ours, theirs, dtypes, strict=False):  # Some have no bias.
        assert one.dtype == like
        check(one, other)
    check(whole, kernel)
    places = tf.constant(layer.places)
    check(stored, layer.geometry.pack(layer.as_matrix(kernel), places))


def test_nothing_of_dense_size_is_stored():
    layer = block_sparse.Dense(64, block_size=16, density=0.25)
    layer.build((None, 128))
    assert [tuple(w.shape) for w in layer.weights] == [(4, 2, 16, 16), (64,), (4, 2)]
    assert int(np.count_nonzero(layer.kernel)) == 128 * 64 // 4


def test_a_layer_comes_back_from_its_configuration():
    layer = block_sparse.Dense(13, block_size=(4, 3), density=0.4, seed=7)
    copy = type(layer).from_config(json.loads(json.dumps(layer.get_config())))
    for each in (layer, copy):
        each.build((None, 21))
    assert copy.get_config() == layer.get_config()
    np.testing.assert_array_equal(copy.places, layer.places)


# Training.

INTERVAL = 10
OFTEN = {"update_interval": INTERVAL, "drop_fraction": 0.5, "decay": "constant", "end_step": 999}
METHODS = {
    "static": lambda **k: methods.Static(),
    "set": lambda **k: methods.SET(**OFTEN, **k),
    "rigl": lambda **k: methods.RigL(**OFTEN, **k),
}
OPTIMIZERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9),
    "adam": lambda: keras.optimizers.Adam(0.003),
}
SIZES = {"whole": (16, 24, 16), "rest": (21, 26, 13)}
BLOCKS = (4, 5)


def network(sizes="rest"):
    keras.utils.set_random_seed(1)
    features, *hidden = SIZES[sizes]
    layers = [keras.layers.Dense(n, activation="relu", name=f"l{n}") for n in hidden]
    return keras.Sequential([keras.Input((features,)), *layers, keras.layers.Dense(3, name="head")])


def made(compute, method="rigl", model=None, blocks=BLOCKS, sparsity=0.7, pattern=None, **kwargs):
    """A model and its twin differ in `compute` alone."""
    return tf_rigl.sparsify(
        network() if model is None else model,
        METHODS[method]() if isinstance(method, str) else method,
        sparsity=sparsity,
        distribution=uniform,
        pattern=pattern or Block(*blocks, constant_fan_in=True),
        seed=3,
        compute=compute,
        **kwargs,
    )


def slots(model):
    """The optimizer's slots of each masked weight, dense."""
    result = {}
    found = find_slots(model.optimizer, model.trainable_variables)
    for item in model.masked_weights:
        of_weight = found.get(id(item.weight), ())
        result[item.path] = [item.dense(slot.variable).numpy() for slot in of_weight]
    return result


class Record(keras.callbacks.Callback):
    """Masks and slots as they are after every update."""

    def __init__(self):
        super().__init__()
        self.masks, self.slots = [], []

    def on_train_begin(self, logs=None):
        self.masks.append(self.model.masks)

    def on_train_batch_end(self, batch, logs=None):
        if self.model.step % INTERVAL == 1:  # The update was the step before.
            self.masks.append(self.model.masks)
            self.slots.append(slots(self.model))

    def on_train_end(self, logs=None):
        self.masks.append(self.model.masks)


def train(model, optimizer="adam", steps=300, x=None, y=None, **kwargs):
    """Trains for so many batches of 8; returns what was recorded, and losses."""
    compiled(model, OPTIMIZERS[optimizer](), **kwargs)
    if x is None:
        x, y = random_data(model.input_shape[1:], batches=20)
    record = Record()
    history = model.fit(
        x, y, batch_size=8, epochs=steps // 20, shuffle=False, verbose=0, callbacks=[record]
    )
    return record, history.history["loss"]


def check_same(one, other, close=2e-4):
    """Two runs chose the same blocks at every update, and lost the same; returns how many."""
    (ours, losses), (theirs, others) = one, other
    assert len(ours.masks) == len(theirs.masks)
    assert all(equal_masks(a, b) for a, b in zip(ours.masks, theirs.masks, strict=True))
    np.testing.assert_allclose(losses, others, rtol=close, atol=close)
    for a, b in zip(ours.slots, theirs.slots, strict=True):
        for path in a:
            for mine, twin in zip(a[path], b[path], strict=True):
                np.testing.assert_allclose(mine, twin, rtol=1e-2, atol=close)
    return sum(not equal_masks(a, b) for a, b in itertools.pairwise(ours.masks))


@pytest.mark.parametrize(
    ("method", "optimizer", "sizes", "jit"),
    [
        # Each method with each optimizer; sizes and compilation with the ones and the others.
        ("static", "sgd", "rest", False),
        ("static", "adam", "rest", False),
        ("set", "adam", "rest", False),
        ("set", "sgd", "whole", True),
        ("rigl", "sgd", "rest", False),
        ("rigl", "adam", "whole", False),
        ("rigl", "adam", "rest", True),
    ],
)
def test_300_steps_are_those_of_the_masked_model(method, optimizer, sizes, jit):
    models = [made(how, method, network(sizes)) for how in ("masked", "sparse")]
    assert equal_masks(models[0].masks, models[1].masks)
    assert [isinstance(item, BlockSparseWeight) for item in models[1].masked_weights] == [
        True,
        True,
        False,
    ]
    runs = [train(model, optimizer, jit_compile=jit) for model in models]
    moved = check_same(*runs)
    assert (moved > 10) == (method != "static")
    for one, other in zip(*(model.masked_weights for model in models), strict=True):
        np.testing.assert_allclose(one.dense(), other.dense(), rtol=1e-2, atol=1e-3)
        assert one.active() == other.active() == one.target_active()


@pytest.mark.parametrize("method", ["set", "rigl"])
def test_slots_travel_with_blocks_and_begin_at_zero(method):
    model = made("sparse", method)
    record, _ = train(model, steps=100)
    for before, after, kept in zip(record.masks, record.masks[1:], record.slots, strict=False):
        for path, (first, second) in kept.items():
            new = after[path] & ~before[path]
            assert not first[new].any()
            assert not second[new].any()
    stays = record.masks[-1]["l26/kernel"]
    assert slots(model)["l26/kernel"][0][stays].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_optimizer_can_be_applied_at_updates_too(optimizer):
    method = METHODS["rigl"](apply_optimizer_on_update=True)
    runs = [train(made(how, method), optimizer, 100) for how in ("masked", "sparse")]
    assert check_same(*runs) > 3


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("regularizer", ["l1", "l2"])
def test_a_regularizer_counts_when_a_block_that_was_dropped_could_grow_again(regularizer, seed):
    def regularized():
        keras.utils.set_random_seed(seed)
        strong = {"l1": keras.regularizers.L1(0.01), "l2": keras.regularizers.L2(0.1)}
        own = {"kernel_regularizer": strong[regularizer], "name": "hidden"}
        hidden = keras.layers.Dense(24, "relu", **own)
        return keras.Sequential([keras.Input((16,)), hidden, keras.layers.Dense(3, name="head")])

    x, y = random_data((16,), batches=20, seed=seed)
    models = [made(how, model=regularized(), blocks=(4, 4)) for how in ("masked", "sparse")]
    runs = [train(model, "sgd", 100, x, y) for model in models]
    assert check_same(*runs) > 1


def test_several_steps_at_an_execution_are_those_one_by_one():
    models = [made("sparse", "rigl") for _ in range(2)]
    losses = [
        train(m, steps=100, steps_per_execution=n)[1] for m, n in zip(models, (1, 4), strict=True)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert models[0].step == models[1].step == 100
    assert equal_masks(models[0].masks, models[1].masks)


def test_half_precision_trains_as_masked():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        models = [made(how, "set", network()) for how in ("masked", "sparse")]
    finally:
        keras.config.set_dtype_policy("float32")
    runs = [train(model, "sgd", steps=40) for model in models]
    assert check_same(*runs, close=0.05) > 2


def test_new_values_are_those_of_the_masked_model():
    method = METHODS["rigl"](grow_initializer="random_normal")
    models = [made(how, method) for how in ("masked", "sparse")]
    check_same(*(train(model, "sgd", 100) for model in models))


def test_frozen_layers_keep_their_blocks():
    model = made("sparse", "rigl")
    model.get_layer("l26").trainable = False
    before, places = model.masks, np.array(model.get_layer("l26").places)
    train(model, steps=40)
    np.testing.assert_array_equal(model.get_layer("l26").places, places)
    assert not equal_masks(model.masks, before)
    frozen = network()
    frozen.get_layer("l26").trainable = False
    arguments = {"pattern": "block_4x4", "compute": "sparse"}
    sparse = tf_rigl.sparsify(frozen, "static", distribution={"l26": 0.7}, **arguments)
    named = sparse.get_layer("l26")
    assert isinstance(named, block_sparse.Dense)  # Frozen layers become sparse if they are named.
    assert not named.trainable


def test_layers_without_a_gradient_keep_their_blocks():
    inputs = keras.Input((21,))
    x = Detached()(keras.layers.Dense(26, name="l26")(inputs))
    x = keras.layers.Dense(13, name="l13")(x)
    model = made("sparse", "rigl", keras.Model(inputs, keras.layers.Dense(3, name="head")(x)))
    before = model.masks
    with pytest.warns(UserWarning, match="Gradients do not exist"):
        train(model, steps=40)
    np.testing.assert_array_equal(model.masks["l26/kernel"], before["l26/kernel"])
    assert (model.masks["l13/kernel"] != before["l13/kernel"]).any()


def test_gradients_that_are_nan_keep_the_counts():
    model = made("sparse", "rigl")
    x, y = random_data((21,), batches=20)
    x[8 * INTERVAL : 8 * INTERVAL + 8] = np.nan  # The batch of the first update.
    active = {item.path: item.active() for item in model.masked_weights}
    train(model, steps=20, x=x, y=y)
    for item in model.masked_weights:
        mask = item.mask.numpy()
        assert item.pattern.active(mask) == active[item.path] == item.active()
        assert np.isfinite(item.dense()).all()
        if isinstance(item, BlockSparseWeight):
            assert (np.diff(item.layer.places, axis=1) > 0).all()


def test_weights_set_from_a_list_are_used():
    one, other = made("sparse", "rigl"), made("sparse", "static")
    train(one, steps=40)
    other.set_weights(one.get_weights())
    assert equal_masks(one.masks, other.masks)
    x, _ = random_data((21,), batches=1)
    np.testing.assert_array_equal(one(x), other(x))


# Models.


def nested():
    inputs = keras.Input((21,))
    inner = keras.Sequential(
        [keras.Input((21,)), keras.layers.Dense(26, activation="relu", name="a")], name="inner"
    )
    x = keras.layers.Dense(21, activation="relu", name="b")(inner(inputs))
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(inner(x)))


def shared():
    inputs = keras.Input((20,))
    layer = keras.layers.Dense(20, activation="tanh", name="shared")
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(layer(layer(inputs))))


def pictures():
    inputs = keras.Input((5, 5, 8))
    x = keras.layers.Conv2D(8, 3, activation="relu", name="wide")(inputs)
    x = keras.layers.BatchNormalization(name="norm")(x)
    x = keras.layers.Conv2D(20, 1, activation="relu", name="pointwise")(x)
    x = keras.layers.Reshape((9, 20))(x)
    x = keras.layers.EinsumDense("abc,cde->abde", (9, 2, 5), bias_axes="de", name="einsum")(x)
    x = keras.layers.MultiHeadAttention(2, 4, name="mha")(*[keras.layers.Reshape((9, 10))(x)] * 2)
    x = keras.layers.TimeDistributed(keras.layers.Dense(8, name="each"), name="every")(x)
    x = keras.layers.Flatten()(x)
    return keras.Model(inputs, keras.layers.Dense(3, name="head")(x))


def seeded(make):
    keras.utils.set_random_seed(1)
    return make()


MODELS = {
    "nested": (nested, {"inner/a/kernel", "b/kernel"}),
    "shared": (shared, {"shared/kernel"}),
    "pictures": (pictures, {"pointwise/kernel", "einsum/kernel"}),
}


@pytest.mark.parametrize("kind", MODELS)
def test_every_layer_that_can_be_is_sparse_and_trains_as_the_masked_one(kind):
    make, packed = MODELS[kind]
    masked, sparse = (made(how, "rigl", seeded(make)) for how in ("masked", "sparse"))
    assert {
        item.path for item in sparse.masked_weights if isinstance(item, BlockSparseWeight)
    } >= packed
    assert "wide/kernel" not in {
        i.path for i in sparse.masked_weights if isinstance(i, BlockSparseWeight)
    }
    assert [i.path for i in masked.masked_weights] == [i.path for i in sparse.masked_weights]
    assert check_same(train(masked, steps=60), train(sparse, steps=60)) > 2


@pytest.mark.parametrize("kind", MODELS)
def test_stripped_it_is_an_ordinary_model_of_the_same_outputs(kind, tmp_path):
    make, _ = MODELS[kind]
    model = made("sparse", "rigl", make())
    x, _ = random_data(model.input_shape[1:], batches=2)
    train(model, steps=20)
    stripped = tf_rigl.strip(model)
    np.testing.assert_allclose(stripped(x), model(x), rtol=1e-4, atol=1e-5)
    assert not isinstance(stripped, tf_rigl.SparseModel)
    assert not any(hasattr(layer, "geometry") for layer in stripped._flatten_layers())
    assert [tuple(w.shape) for w in stripped.weights] == [tuple(w.shape) for w in make().weights]
    for path, mask in model.masks.items():
        owner = stripped
        for name in path.split("/")[:-1]:
            inner = owner.layers if isinstance(owner, keras.Model) else owner._flatten_layers()
            owner = next(layer for layer in inner if layer.name == name)
        assert not np.any(owner.kernel.numpy()[~mask])
    stripped.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), stripped(x))


def by_hand(seed=0):
    inputs = keras.Input((21,))
    layer = block_sparse.Dense(26, activation="relu", block_size=(4, 5), density=0.3, name="hidden")
    outputs = block_sparse.Dense(3, block_size=(4, 1), density=0.5, seed=1, name="head")(
        layer(inputs)
    )
    return tf_rigl.SparseModel(inputs, outputs, method=METHODS["rigl"](), seed=seed)


def test_a_model_made_by_hand_moves_its_blocks(tmp_path):
    model = by_hand()
    before = model.masks
    assert list(before) == ["hidden/kernel", "head/kernel"]
    x, y = random_data((21,), batches=20)
    train(model, steps=60, x=x, y=y)
    assert all((model.masks[path] != before[path]).any() for path in before)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert equal_masks(loaded.masks, model.masks)
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_allclose(tf_rigl.strip(model)(x), model(x), rtol=1e-4, atol=1e-5)


def test_they_are_layers_of_ordinary_models_too(tmp_path):
    layers = [block_sparse.Dense(16, block_size=4, density=0.5), keras.layers.Dense(3)]
    model = compiled(keras.Sequential([keras.Input((10,)), *layers]))
    x, y = random_data((10,))
    before = np.array(layers[0].places)
    losses = model.fit(x, y, epochs=5, verbose=0).history["loss"]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(layers[0].places, before)
    model.save(tmp_path / "model.keras")
    np.testing.assert_array_equal(keras.models.load_model(tmp_path / "model.keras")(x), model(x))
    stripped = tf_rigl.strip(model)
    assert [type(layer) for layer in stripped.layers[-2:]] == [keras.layers.Dense] * 2
    np.testing.assert_allclose(stripped(x), model(x), rtol=1e-4, atol=1e-5)
    assert len(tf_rigl.export.advise(model).layers) == 2


# Files.


@pytest.mark.parametrize("method", ["static", "set", "rigl"])
def test_a_saved_model_goes_on_with_the_same_masks(method, tmp_path):
    model = made("sparse", method, nested())
    train(model, steps=20)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert equal_masks(loaded.masks, model.masks)
    assert loaded.step == model.step == 20
    x, y = random_data((21,), batches=20, seed=1)
    records = []
    for each in (model, loaded):
        record = Record()
        each.fit(x, y, batch_size=8, epochs=3, shuffle=False, verbose=0, callbacks=[record])
        records.append(record)
    one, other = (record.masks for record in records)
    assert all(equal_masks(a, b) for a, b in zip(one, other, strict=True))
    assert equal_masks(one[0], one[-1]) == (method == "static")
    np.testing.assert_array_equal(model(x), loaded(x))


def test_weights_go_to_a_model_of_other_blocks(tmp_path):
    one, other = made("sparse", "rigl"), made("sparse", "rigl")
    train(one, steps=20)
    one.save_weights(tmp_path / "w.weights.h5")
    other.load_weights(tmp_path / "w.weights.h5")
    assert equal_masks(one.masks, other.masks)
    assert one.step == other.step


@pytest.mark.parametrize("fault", ["too high", "negative", "twice", "descending"])
def test_a_file_with_places_that_cannot_be_is_refused(fault, tmp_path):
    model = made("sparse", "rigl")
    path = tmp_path / "w.weights.h5"
    model.save_weights(path)

    def spoil(_, dataset):
        if not isinstance(dataset, h5py.Dataset) or dataset.dtype != "int32" or dataset.ndim != 2:
            return
        places = dataset[...]
        places[0] = {
            "too high": [*places[0][:-1], 99],
            "negative": [-1, *places[0][1:]],
            "twice": [places[0][0]] * len(places[0]),
            "descending": places[0][::-1],
        }[fault]
        dataset[...] = places

    with h5py.File(path, "r+") as file:
        file.visititems(spoil)
    with pytest.raises(ValueError, match="invalid places of blocks for layer"):
        made("sparse", "rigl").load_weights(path)


@pytest.mark.parametrize("write", [tf_rigl.export_tflite, tf_rigl.export_saved_model])
def test_a_block_sparse_model_is_exported(write, tmp_path):
    model = made("sparse", "rigl")
    train(model, steps=20)
    x, _ = random_data((21,), batches=1)
    if write is tf_rigl.export_tflite:
        write(model, tmp_path / "model.tflite")
        interpreter = tf.lite.Interpreter(str(tmp_path / "model.tflite"))
        interpreter.allocate_tensors()
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x[:1])
        interpreter.invoke()
        outputs = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
        x = x[:1]
    else:
        write(model, tmp_path / "saved")
        loaded = tf.saved_model.load(tmp_path / "saved")
        outputs = loaded.serve(x)
    np.testing.assert_allclose(outputs, model(x), rtol=1e-3, atol=1e-4)


# Reports.


def rows(report):
    """The rows, but for `compute`; and that."""
    result = report.to_dict()
    return result, [row.pop("compute") for row in result["layers"]]


@pytest.mark.parametrize("kind", MODELS)
def test_a_report_is_that_of_the_masked_model(kind):
    make, packed = MODELS[kind]
    masked, sparse = (made(how, "static", make()) for how in ("masked", "sparse"))
    (ours, how), (theirs, masked_how) = rows(tf_rigl.report(sparse)), rows(tf_rigl.report(masked))
    assert ours == theirs
    assert set(masked_how) <= {"masked", "dense"}
    names = [row["name"] for row in ours["layers"]]
    assert {n for n, c in zip(names, how, strict=True) if c == "sparse"} >= packed
    assert ours["dense_params"] == make().count_params()
    stripped, _ = rows(tf_rigl.report(tf_rigl.strip(sparse)))
    for row in (*ours["layers"], *stripped["layers"]):
        del row["pattern"], row["obstacle"]
    assert stripped == ours
    for method in ("static", "set", "rigl"):
        flops = [tf_rigl.train_flops(tf_rigl.report(model), method) for model in (masked, sparse)]
        assert flops[0] == flops[1]


def test_a_row_counts_entries_inside_the_matrix():
    model = made("sparse", "static")
    row = tf_rigl.report(model).layers[0]
    mask = model.masks["l26/kernel"]
    nnz = int(mask.sum())
    assert (row.name, row.shape, row.params, row.nnz) == ("l26/kernel", (21, 26), 21 * 26, nnz)
    assert row.nnz < model.get_layer("l26").values.numpy().size  # Blocks stand out.
    assert (row.flops, row.dense_flops) == (2 * nnz, 2 * 21 * 26)
    assert row.bytes == 4 * nnz + 21 * 26 / 8 + 4 * 26
    assert row.sparsity == 1 - nnz / (21 * 26)
    assert (row.pattern, row.compute) == ("constant_fan_in_4x5", "sparse")


def test_a_plan_says_which_layers_will_be_sparse():
    sizes = {"blocks": (4, 5), "sparsity": 0.5}
    sparse = made("sparse", "static", pictures(), **sizes, exclude=["head"])
    planned = tf_rigl.plan(
        pictures(), 0.5, uniform, exclude=["head"], pattern=Block(4, 5), compute="sparse"
    )
    assert [(r.name, r.compute, r.obstacle) for r in planned.layers] == [
        (r.name, r.compute, r.obstacle) for r in tf_rigl.report(sparse).layers
    ]
    whole = {"blocks": (4, 4), "sparsity": 0.6}
    sparse = made("sparse", "static", shared(), **whole, exclude=["head"])
    planned = tf_rigl.plan(
        shared(), 0.6, uniform, exclude=["head"], pattern=Block(4, 4), compute="sparse"
    )
    assert planned.to_dict() == tf_rigl.report(sparse).to_dict()


def test_a_table_says_why_a_layer_is_masked():
    model = made("sparse", "static", pictures())
    lines = str(tf_rigl.report(model)).splitlines()
    assert lines[0].endswith("compute")
    said = {line.split()[0]: line for line in lines if "/" in line}
    assert said["wide/kernel"].endswith("'channels_4x5' has none)")
    assert said["pointwise/kernel"].endswith("constant_fan_in_4x5  sparse")
    assert said["every/each/kernel"].endswith("masked (inside another layer)")
    assert said["head/kernel"].endswith("masked (smaller than a block)")
    assert "compute" not in str(tf_rigl.report(sparsify(mlp(), pattern="block_4x1")))
    report = tf_rigl.report(made("masked", "static", pictures()))
    assert {row.name: row.obstacle for row in report.layers}["pointwise/kernel"] == ""


def test_an_ordinary_model_with_block_sparse_layers_is_reported():
    layer = block_sparse.Dense(16, block_size=4, density=0.5, name="hidden")
    model = keras.Sequential([keras.Input((8,)), layer, keras.layers.Dense(3, name="head")])
    report = tf_rigl.report(model)
    assert [(r.name, r.compute, r.nnz) for r in report.layers] == [
        ("hidden/kernel", "sparse", 64),
        ("head/kernel", "dense", 48),
    ]
    assert report.dense_params == 8 * 16 + 16 + 16 * 3 + 3


def test_a_run_counts_whole_kernels():
    masked, sparse = (runs._sizes(made(how, "static"), True) for how in ("masked", "sparse"))
    for result in (masked, sparse):
        for layer in result["layers"]:
            del layer["target_sparsity"]  # That of the blocks that there are.
    assert sparse == masked


def test_the_sparsity_of_a_model_is_that_of_its_kernels():
    masked, sparse = (made(how, "static") for how in ("masked", "sparse"))
    assert sparse.sparsity == masked.sparsity == pytest.approx(reporting.report(sparse).sparsity)


# Masked, with the same pattern.


@pytest.mark.parametrize(
    "method",
    [
        methods.SNIP(),
        methods.MagnitudePruning(
            tf_rigl.schedules.PolynomialDecay(begin_step=1, end_step=18, frequency=3)
        ),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_prune_end_with_a_constant_fan_in(method):
    model = made("masked", method, sparsity=0.95)  # Fewer than a block for each column.
    train(model, steps=40)
    for item in model.masked_weights:
        kept = reference.kept_in_columns(item.mask.numpy(), *BLOCKS)
        assert set(kept) == {item.target_active() // item.pattern.step(item.shape)}


@pytest.mark.parametrize(
    "method", [methods.SNIP(scope="global"), methods.MagnitudePruning(scope="global")]
)
def test_weights_that_share_a_pool_have_no_constant_fan_in(method):
    with pytest.raises(ValueError, match=r"constant fan-in.*scope='global'.*Received"):
        tf_rigl.sparsify(network(), method, pattern="constant_fan_in_4x5")


def test_a_layer_that_keeps_all_its_blocks_trains():
    models = [made(how, "rigl", sparsity=0.05) for how in ("masked", "sparse")]
    assert [item.active() for item in models[0].masked_weights] == [
        item.active() for item in models[1].masked_weights
    ]
    assert models[1].masked_weights[0].is_sparse is False
    check_same(*(train(model, steps=40) for model in models))


# What cannot be.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "unstructured"}, "needs a pattern of blocks"),
        ({"pattern": "2:4"}, "needs a pattern of blocks"),
        ({"pattern": "litert"}, "needs a pattern of blocks"),
        ({"method": "snip"}, "needs a method that begins sparse"),
        ({"method": "magnitude"}, "needs a method that begins sparse"),
        ({"method": "snfs"}, "needs a method that begins sparse"),
        ({"method": methods.RigL(gradient_batches=2)}, "needs a method that begins sparse"),
        ({"compute": "sparce"}, "Argument `compute` .*Did you mean 'sparse'.*compute='sparce'"),
        ({"compute": None}, "Argument `compute` .*compute=None"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(arguments, message):
    given = {"method": "rigl", "pattern": "block_4x4", "compute": "sparse", **arguments}
    with pytest.raises(ValueError, match=message):
        tf_rigl.sparsify(network(), **given)


def test_a_density_that_blocks_cannot_reach_is_told():
    with pytest.warns(UserWarning, match="l24/kernel 0.5 for 0.1.*Smaller blocks"):
        made("sparse", model=network("whole"), blocks=(8, 8), sparsity=0.9)


def test_that_no_layer_can_store_blocks_is_told():
    layer = keras.layers.Dense(24, kernel_constraint="max_norm", name="l24")
    model = keras.Sequential([keras.Input((16,)), layer])
    with pytest.warns(UserWarning, match=r"No layer can store.*l24/kernel \(a kernel constraint\)"):
        made("sparse", model=model)


def test_an_optimizer_that_divides_by_zero_is_told():
    model = compiled(made("sparse"), keras.optimizers.Adafactor())
    x, y = random_data(model.input_shape[1:], batches=1)
    with pytest.warns(UserWarning, match="Make it with .*`epsilon_1=1e-12`.*Received: epsilon_1="):
        model.fit(x, y, batch_size=8, verbose=0)


def test_a_model_that_is_no_graph_is_refused():
    class Own(keras.Model):
        def call(self, x):
            return x

    unbuilt = keras.Sequential([keras.layers.Dense(8)])
    for model in (Own(), unbuilt):
        with pytest.raises(ValueError, match=r"graph of layers.*Received"):
            tf_rigl.sparsify(model, pattern="block_4x4", compute="sparse")


def test_a_model_that_is_sparse_already_is_refused():
    with pytest.raises(ValueError, match="sparse already"):
        tf_rigl.sparsify(made("sparse"), pattern="block_4x4", compute="sparse")
    layers = [keras.Input((8,)), block_sparse.Dense(8, block_size=4)]
    with pytest.raises(ValueError, match="sparse already"):
        tf_rigl.sparsify(keras.Sequential(layers))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: block_sparse.Dense(8, block_size=0), "`block_size`.*block_size=0"),
        (lambda: block_sparse.Dense(8, block_size=(1, 2, 3)), r"`block_size`.*\(1, 2, 3\)"),
        (lambda: block_sparse.Dense(8, density=0), "`density`.*density=0"),
        (lambda: block_sparse.Dense(8, density=1.5), "`density`.*density=1.5"),
        (lambda: block_sparse.Dense(8, density=True), "`density`.*density=True"),
        (lambda: block_sparse.Dense(8, density="all"), "`density`.*density='all'"),
        (lambda: block_sparse.Dense(8, seed=-1), "`seed`.*seed=-1"),
        (lambda: block_sparse.Dense(8, kernel_constraint="non_neg"), "`kernel_constraint`"),
        (lambda: einsum("abc,bd->adc", (8, 8)).build((None, 8, 8)), "`equation`.*abc,bd->adc"),
        (lambda: einsum("abc,acd->abd", (8, 8)).build((2, 8, 8)), "`equation`.*abc,acd->abd"),
        (lambda: block_sparse.Conv2D(8, 1, groups=2), "`groups` must be 1.*groups=2"),
    ],
)
def test_layers_that_cannot_be_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def _sharing():
    shared = keras.layers.Dense(8)
    inputs = keras.Input((8,))
    inner = keras.Model(inputs, shared(inputs))
    outer = keras.Input((8,))
    return keras.Model(outer, keras.layers.Dense(8)(shared(inner(outer))))


def test_a_layer_shared_with_a_nested_model_is_not_doubled():
    with pytest.raises(ValueError, match="no layer may be shared with a nested model"):
        tf_rigl.sparsify(_sharing(), pattern="block_4x4", compute="sparse", sparsity=0.5)


def test_a_model_that_keras_cannot_clone_is_refused():
    class Own(keras.layers.Layer):
        def __init__(self, inner):
            super().__init__()

        def call(self, x):
            return x

    inputs = keras.Input((8,))
    model = keras.Model(inputs, keras.layers.Dense(8)(Own(object())(inputs)))
    with pytest.raises(ValueError, match="needs a model that Keras can clone"):
        tf_rigl.sparsify(model, pattern="block_4x4", compute="sparse", sparsity=0.5)


def test_a_block_sparse_layer_within_a_wrapper_cannot_be_stripped():
    layer = keras.layers.TimeDistributed(block_sparse.Dense(8, block_size=4, density=0.5))
    inputs = keras.Input((5, 8))
    with pytest.raises(ValueError, match=r"cannot be stripped.*is no graph of layers"):
        tf_rigl.strip(tf_rigl.SparseModel(inputs, layer(inputs)))


def test_a_layer_has_no_lora():
    layer = block_sparse.Dense(8, block_size=4)
    layer.build((None, 8))
    with pytest.raises(ValueError, match="cannot have LoRA"):
        layer.enable_lora(2)


def test_frozen_variables_stay_frozen():
    model = network()
    variables = [layer.bias for layer in model.layers if getattr(layer, "use_bias", False)]
    variables[0].trainable = False
    sparse = tf_rigl.sparsify(model, pattern="block_4x4", compute="sparse", sparsity=0.5)
    for each in (sparse, tf_rigl.strip(sparse)):
        assert len(each.trainable_weights) == len(model.trainable_weights)


def test_a_regularizer_of_the_whole_kernel_stays_masked():
    whole = keras.regularizers.OrthogonalRegularizer()
    layers = [keras.layers.Dense(8, kernel_regularizer=r) for r in (whole, "l2")]
    model = keras.Sequential([keras.Input((8,)), *layers])
    sparse = tf_rigl.sparsify(model, "static", 0.5, uniform, "block_4x4", compute="sparse")
    rows = tf_rigl.report(sparse).layers
    assert rows[0].obstacle == "a kernel regularizer OrthogonalRegularizer"
    assert rows[1].compute == "sparse"


def test_a_layer_with_a_constraint_stays_masked():
    model = keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(8, kernel_constraint="non_neg", name="d")]
    )
    model.add(keras.layers.Dense(8, name="e"))
    sparse = tf_rigl.sparsify(model, "static", 0.5, uniform, "block_4x4", compute="sparse")
    assert {r.name: (r.compute, r.obstacle) for r in tf_rigl.report(sparse).layers} == {
        "d/kernel": ("masked", "a kernel constraint"),
        "e/kernel": ("sparse", ""),
    }


# Several devices.

# Logical devices have to be made before TensorFlow starts: hence a process of its own.
SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from tests.helpers import compiled, random_data
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tests.block_sparse.test_block_sparse import made, network, of_images

MIRRORED = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
make = {
    "dense": lambda: made("sparse", "rigl", network()),
    "images": of_images,
    "half": lambda: of_images("mixed_bfloat16"),
}[sys.argv[1]]
x, y = random_data(make().input_shape[1:], batches=25)


def train(strategy):
    with strategy.scope():
        model = compiled(make(), keras.optimizers.Adam(0.003))
    before = model.masks
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(data, epochs=2, verbose=0)
    for item in model.masked_weights:
        if not isinstance(item, BlockSparseWeight):
            continue
        for variable in (item.weight, item.layer.places):
            copies = [v.numpy() for v in getattr(variable.value, "values", [variable.value])]
            assert len(copies) == strategy.num_replicas_in_sync
            assert all((copy == copies[0]).all() for copy in copies)
    return model, before


(one, before), (other, _) = train(tf.distribute.get_strategy()), train(MIRRORED)
print(json.dumps({
    "moved": [path for path in before if (one.masks[path] != before[path]).any()],
    "equal": all((one.masks[path] == other.masks[path]).all() for path in before),
    "difference": float(np.abs(one(x) - other(x)).max()),
}))
"""


def of_images(dtype=None):
    """A block-sparse model of convolutions, one of several taps."""
    keras.utils.set_random_seed(1)
    layers = [
        keras.Input((6, 6, 8)),
        keras.layers.Conv2D(12, 3, activation="relu", name="taps", dtype=dtype),
        keras.layers.Conv2D(12, 1, activation="relu", name="point", dtype=dtype),
        keras.layers.Flatten(),
        keras.layers.Dense(3, name="head"),
    ]
    pattern = Block(2, 3, taps="all", constant_fan_in=True)
    return made("sparse", "rigl", keras.Sequential(layers), pattern=pattern)


@pytest.mark.parametrize(
    ("kind", "moving"),
    [("dense", {"l26/kernel", "l13/kernel"}), ("images", {"taps/kernel", "point/kernel"})],
)
def test_two_replicas_have_the_blocks_of_one_device(kind, moving):
    result = on_two_replicas(kind)
    assert moving <= {*result["moved"]}
    assert result["equal"]
    assert result["difference"] < 1e-3


def test_two_replicas_train_in_bfloat16():
    """TensorFlow cannot gather such numbers; what each replica rounds differs from one device."""
    assert on_two_replicas("half")["moved"]


def on_two_replicas(kind):
    root = pathlib.Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests")])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, kind],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_integers_are_taken_as_by_layers_of_keras():
    model = keras.Sequential([keras.Input((16,), dtype="int32"), keras.layers.Dense(16, name="d")])
    sparse = tf_rigl.sparsify(model, "static", 0.5, uniform, "block_4x4", compute="sparse", seed=0)
    x = np.arange(32).reshape(2, 16).astype("int32")
    np.testing.assert_allclose(tf_rigl.strip(sparse)(x), sparse(x), rtol=1e-5)


def test_layers_made_by_hand_have_blocks_in_other_places():
    """Equal layers one after the other would otherwise use the same inputs again and again."""
    layers = [block_sparse.Dense(64, block_size=4, density=0.25) for _ in range(2)]
    own = {"block_size": 4, "density": 0.25}
    attention = block_sparse.MultiHeadAttention(4, 16, blocks={"query": own, "key": own})
    attention.build((None, 3, 64), (None, 3, 64))
    layers += [attention.query_dense, attention.key_dense]
    for layer in layers[:2]:
        layer.build((None, 64))
    places = [layer.places.numpy() for layer in layers]
    assert not np.array_equal(places[0], places[1])
    assert not np.array_equal(places[2], places[3])
    again = block_sparse.Dense.from_config(layers[0].get_config())
    again.build((None, 64))
    np.testing.assert_array_equal(again.places.numpy(), places[0])


def test_weights_of_the_dense_model_go_into_the_blocks(tmp_path):
    dense, sparse = network(), made("sparse")
    before = sparse.masks
    dense.save_weights(tmp_path / "dense.weights.h5")
    sparse.load_weights(tmp_path / "dense.weights.h5")
    for found, item in zip(maskable.find(dense), sparse.masked_weights, strict=True):
        np.testing.assert_array_equal(item.mask, before[item.path])
        np.testing.assert_array_equal(item.dense(), found.weight.numpy() * before[item.path])
    for layer in dense.layers:
        np.testing.assert_array_equal(sparse.get_layer(layer.name).bias, layer.bias)
