"""`tf.train.Checkpoint` of a sparse model: masks, step, seeds and all that training goes on by."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    CLASSES,
    FEATURES,
    METHODS,
    Subclassed,
    check_equal_models,
    check_invariants,
    compiled,
    equal_masks,
    fit,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl import MaskedLayer, SparseModel, block_sparse


def with_dropout(seed):
    """Its seed is drawn anew, so that a restored model differs where the state is lost."""
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="tanh", name="hidden")(inputs)
    x = keras.layers.Dropout(0.5, seed=seed)(x)
    return sparsify(keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x)), seed=seed)


def by_hand(seed):
    inputs = keras.Input((FEATURES,))
    x = MaskedLayer(keras.layers.LSTM(4, name="hidden"), sparsity=0.5, seed=seed)(inputs[:, None])
    return SparseModel(inputs, keras.layers.Dense(CLASSES)(x), method=rigl(), seed=seed)


def nested(seed):
    inputs = keras.Input((FEATURES,))
    inner = keras.Sequential(
        [MaskedLayer(keras.layers.Dense(8, name="hidden"), sparsity=0.5, seed=seed)]
    )
    outputs = keras.layers.Dense(CLASSES)(inner(inputs))
    return SparseModel(inputs, outputs, method=rigl(), seed=seed)


def blocks(seed):
    inputs = keras.Input((FEATURES,))
    x = block_sparse.Dense(8, block_size=2, density=0.4, seed=seed, name="hidden")(inputs)
    return SparseModel(inputs, keras.layers.Dense(CLASSES)(x), method=rigl(), seed=seed)


def of_method(name):
    return lambda seed: sparsify(mlp(), METHODS[name](), seed=seed)


KINDS = {
    "dropout": with_dropout,
    "by hand": by_hand,
    "nested": nested,
    "blocks": blocks,
    "snfs": of_method("snfs"),
    "edge-popup": of_method("edge-popup"),
    "magnitude": of_method("magnitude"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_model_trains_on_as_the_first_does(kind, tmp_path):
    models = [
        compiled(KINDS[kind](seed), keras.optimizers.Adam(0.05), run_eagerly=True)
        for seed in (0, 7)
    ]
    x, y = random_data(batches=9)
    first, other = models
    arguments = {"callbacks": []} if kind in ("blocks", "magnitude") else {}
    fit(first, x[:40], y[:40], **arguments)
    path = tf.train.Checkpoint(model=first).write(tmp_path / "checkpoint")
    status = tf.train.Checkpoint(model=other).read(path)
    check_equal_models(first, other)
    assert other.seed == first.seed
    for model in models:
        fit(model, x[40:], y[40:], **arguments)
    assert first.step == 9
    check_equal_models(first, other)
    for one, two in zip(first.optimizer.variables, other.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, two)
    status.assert_existing_objects_matched().assert_consumed()


class ByHand(SparseModel):
    def __init__(self, seed):
        super().__init__(method=rigl(), seed=seed)
        self.hidden = MaskedLayer(keras.layers.Dense(8), sparsity=0.5, seed=seed)
        self.head = keras.layers.Dense(CLASSES)

    def call(self, x):
        return self.head(self.hidden(x))


@pytest.mark.parametrize("make", [ByHand, lambda seed: sparsify(Subclassed(), seed=seed)])
def test_a_model_must_be_built_first(make, tmp_path):
    """Keras restores nothing in a model that is not built, and says nothing."""
    first, other = (compiled(make(seed), run_eagerly=True) for seed in (0, 7))
    x, y = random_data(batches=3)
    fit(first, x, y)
    path = tf.train.Checkpoint(first).write(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match=r"not built.*by a call on a batch"):
        tf.train.Checkpoint(make(7)).read(path)
    other(x[:1])
    tf.train.Checkpoint(other).read(path)
    np.testing.assert_array_equal(other(x), first(x))
    check_invariants(other)
    for model in (first, other):
        fit(model, x, y)
    for one, two in zip(first.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_layer_in_an_ordinary_model(tmp_path):
    """Its mask is stored; it is drawn anew at build, so it must be built first as well."""

    class Model(keras.Model):
        def __init__(self, seed):
            super().__init__()
            self.dense = MaskedLayer(keras.layers.Dense(8), sparsity=0.5, seed=seed)

        def call(self, x):
            return self.dense(x)

    first, other = Model(0), Model(7)
    x = np.ones((2, 6), "float32")
    first(x)
    path = tf.train.Checkpoint(first).write(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="holds 1 masks, the model has 0"):
        tf.train.Checkpoint(Model(7)).read(path)
    other(x)
    tf.train.Checkpoint(other).read(path).assert_consumed()
    for one, two in zip(first.weights, other.weights, strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_model_restores_itself(tmp_path):
    """To an earlier moment, in the middle of training."""
    model = compiled(sparsify(mlp()), keras.optimizers.Adam(0.05), run_eagerly=True)
    x, y = random_data(batches=6)
    fit(model, x[:24], y[:24])
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(model=model), tmp_path, 2)
    manager.save()
    before = model.masks
    fit(model, x[24:], y[24:])
    after = [w.numpy() for w in model.weights]
    assert not equal_masks(before, model.masks)
    manager.restore_or_initialize()
    assert model.step == 3
    assert equal_masks(before, model.masks)
    check_invariants(model)
    fit(model, x[24:], y[24:])
    for one, other in zip(model.weights, after, strict=True):
        np.testing.assert_array_equal(one, other)


def test_checkpoint_of_a_dense_model(tmp_path):
    """It has weights alone: the masks of the sparse model stay, and apply to them."""
    dense = compiled(mlp())
    path = tf.train.Checkpoint(model=dense).write(tmp_path / "checkpoint")
    sparse = compiled(sparsify(mlp()), run_eagerly=True)
    before = sparse.masks
    tf.train.Checkpoint(model=sparse).read(path).expect_partial()
    sparse.apply_masks()
    assert sparse.step == 0
    assert equal_masks(before, sparse.masks)
    for item in sparse.masked_weights:
        kernel = dense.get_layer(item.path.split("/")[0]).kernel.numpy()
        np.testing.assert_array_equal(item.weight, kernel * item.mask.numpy())
    fit(sparse, *random_data(batches=3))


def test_saved_model_holds_no_python_state(tmp_path):
    sparse = sparsify(mlp())
    tf.saved_model.save(sparse, tmp_path / "saved")
    loaded = tf.saved_model.load(tmp_path / "saved")
    x, _ = random_data(batches=1)
    outputs = loaded.signatures["serving_default"](tf.constant(x))
    np.testing.assert_allclose(next(iter(outputs.values())), sparse(x), rtol=1e-5, atol=1e-6)
    assert isinstance(tf_rigl.strip(sparse), keras.Model)
