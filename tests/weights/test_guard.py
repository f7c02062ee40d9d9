"""Weights stay sparse in training loops that know nothing of masks, and nothing is silent."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import BATCH, CLASSES, FEATURES, compiled, mlp, random_data, rigl, sparsify

LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
WARNING = "are trained by a loop that does not move masks"


def around(inner):
    """An ordinary model around a model."""
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, inner(keras.layers.Dense(FEATURES)(inputs)))


def zeros_stay(model):
    for item in model.masked_weights:
        weight, mask = item.weight.numpy(), item.mask.numpy()
        assert not weight[~mask].any()
        assert weight[mask].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lion", "adafactor", "muon"])
def test_a_sparse_model_in_an_ordinary_one_stays_sparse_and_says_that_masks_do_not_move(optimizer):
    sparse = sparsify(mlp(), rigl())
    before = sparse.masks
    outer = around(sparse)
    if optimizer == "adafactor":  # At 1e-30, the default, Keras divides by zero.
        optimizer = keras.optimizers.Adafactor(epsilon_1=1e-12)
    outer.compile(optimizer, loss=LOSS)
    with pytest.warns(UserWarning, match=WARNING) as caught:
        outer.fit(*random_data(), batch_size=BATCH, verbose=0)
    assert sum(WARNING in str(each.message) for each in caught) == 1
    zeros_stay(sparse)
    for path, mask in sparse.masks.items():
        np.testing.assert_array_equal(mask, before[path])


def test_a_static_model_in_an_ordinary_one_needs_no_warning():
    sparse = sparsify(mlp(), "static")
    outer = around(sparse)
    outer.compile("adam", loss=LOSS)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{WARNING}")
        outer.fit(*random_data(), batch_size=BATCH, verbose=0)
    zeros_stay(sparse)


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gradient_tape_loop_stays_sparse(compiled):
    sparse = sparsify(mlp(), rigl())
    optimizer = keras.optimizers.Adam(0.01)

    def step(x, y):
        with tf.GradientTape() as tape:
            loss = LOSS(y, sparse(x, training=True))
        gradients = tape.gradient(loss, sparse.trainable_variables)
        optimizer.apply_gradients(zip(gradients, sparse.trainable_variables, strict=True))

    x, y = random_data()
    step = tf.function(step) if compiled else step
    with pytest.warns(UserWarning, match=WARNING):
        step(tf.constant(x), tf.constant(y))
    for _ in range(2):
        step(tf.constant(x), tf.constant(y))
    zeros_stay(sparse)


def test_masked_layers_in_an_ordinary_model():
    layer = tf_rigl.MaskedLayer(keras.layers.Dense(8), sparsity=0.75, seed=0)
    model = keras.Sequential([keras.Input((FEATURES,)), layer, keras.layers.Dense(CLASSES)])
    model.compile("adam", loss=LOSS)
    with pytest.warns(UserWarning, match=WARNING):
        model.fit(*random_data(), batch_size=BATCH, verbose=0)
    assert np.count_nonzero(layer.layer.kernel) == 20
    assert tf_rigl.report(model).sparsity == 0.75


def test_a_constraint_of_the_layer_holds_too():
    layer = keras.layers.Dense(8, kernel_constraint=keras.constraints.MaxNorm(0.1))
    masked = tf_rigl.MaskedLayer(layer, sparsity=0.75, seed=0)
    model = keras.Sequential([keras.Input((FEATURES,)), masked, keras.layers.Dense(CLASSES)])
    model.compile("adam", loss=LOSS)
    with pytest.warns(UserWarning, match=WARNING):
        model.fit(*random_data(), batch_size=BATCH, verbose=0)
    kernel = layer.kernel.numpy()
    assert np.count_nonzero(kernel) == 20
    assert (np.linalg.norm(kernel, axis=0) <= 0.1 + 1e-6).all()
    assert layer.get_config()["kernel_constraint"]["class_name"] == "MaxNorm"


def spoilt():
    """A sparse model with a weight that something else has set."""
    sparse = sparsify(mlp(), "static", sparsity=0.5)
    sparse.get_layer("hidden").kernel.assign(tf.ones([FEATURES, 8]))
    return sparse


def test_figures_and_files_see_weights_that_do_not_fit_their_masks(tmp_path):
    sparse = spoilt()
    head = sparse.masked_weights[1]
    expected = np.count_nonzero(~head.mask.numpy()) / (FEATURES * 8 + 8 * CLASSES)
    for read in (lambda: sparse.sparsity, lambda: tf_rigl.report(sparse).sparsity):
        with pytest.warns(UserWarning, match=r"not zero .* 'hidden/kernel', .* `apply_masks\(\)`"):
            assert read() == pytest.approx(expected)
    for write in (
        lambda: sparse.save(tmp_path / "model.keras"),
        lambda: sparse.save_weights(tmp_path / "model.weights.h5"),
        lambda: tf_rigl.strip(sparse),
        lambda: tf_rigl.export_tflite(sparse, tmp_path / "model.tflite"),
        lambda: tf_rigl.export_saved_model(sparse, tmp_path / "model"),
    ):
        with pytest.raises(ValueError, match=r"cannot be .*'hidden/kernel'.*`apply_masks\(\)`"):
            write()
    assert not list(tmp_path.iterdir())
    sparse.apply_masks()
    assert sparse.sparsity == pytest.approx(0.5, abs=0.01)
    sparse.save(tmp_path / "model.keras")
    zeros_stay(keras.models.load_model(tmp_path / "model.keras"))


def test_training_goes_on_from_where_another_loop_left_off():
    """`fit` of the sparse model itself moves masks as before, and takes the guards off."""
    sparse = sparsify(mlp(), rigl())
    outer = around(sparse)
    outer.compile("adam", loss=LOSS)
    with pytest.warns(UserWarning, match=WARNING):
        outer.fit(*random_data(), batch_size=BATCH, verbose=0)
    before = sparse.masks
    sparse.compile("adam", loss=LOSS)
    sparse.fit(*random_data(), batch_size=BATCH, verbose=0)
    zeros_stay(sparse)
    assert any((before[path] != mask).any() for path, mask in sparse.masks.items())


def test_blocks_that_do_not_move_are_told_too():
    sparse = tf_rigl.sparsify(
        mlp(), rigl(), 0.4, "uniform_all", "block_4x4", ["head"], seed=0, compute="sparse"
    )
    assert {item.compute for item in sparse.masked_weights} == {"sparse"}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{WARNING}")
        compiled(sparse).fit(*random_data(batches=2), batch_size=BATCH, verbose=0)
    outer = around(sparse)
    outer.compile("adam", loss=LOSS)
    with pytest.warns(UserWarning, match=WARNING) as caught:
        outer.fit(*random_data(), batch_size=BATCH, verbose=0)
    assert sum(WARNING in str(each.message) for each in caught) == 1
