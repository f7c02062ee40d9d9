"""Warnings of `fit`: runs that are too short for their method, and runs that end before it has."""

import warnings

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import BATCH, compiled, mlp, random_data, rigl, sparsify
from tf_rigl.methods import SNIP, MagnitudePruning, RigL
from tf_rigl.schedules import ConstantSparsity, PolynomialDecay

SINGLE, UNPRUNED, UNTRAINED = "in a single step", "not pruned to its target", "Nothing is trained"
ALL = (SINGLE, UNPRUNED, UNTRAINED, "will not change")


def said(method, batches=8, layers=(), **kwargs):
    """Which of the warnings a new model gives in a run; it returns the model too."""
    model = compiled(sparsify(mlp(), method), run_eagerly=True)
    for name in layers:
        model.get_layer(name).trainable = False
    return _said(model, batches, **kwargs), model


def _said(model, batches=8, **kwargs):
    x, y = random_data(batches=batches)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x, y, batch_size=BATCH, verbose=0, **kwargs)
    texts = [str(each.message) for each in caught]
    return [name for name in ALL if any(name in text for text in texts)]


def pruning(**kwargs):
    return MagnitudePruning(PolynomialDecay(**kwargs))


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (pruning(), [SINGLE]),  # Its end at step 6 alone.
        (pruning(frequency=3), []),
        (pruning(begin_step=1, end_step=6), [SINGLE]),  # At step 1 its sparsity is 0.
        (pruning(begin_step=1, end_step=6, frequency=5, initial_sparsity=0.1), []),
        (pruning(begin_step=6, end_step=6), []),  # One step was asked for.
        (MagnitudePruning(ConstantSparsity(begin_step=2)), []),
        (pruning(end_step=30, frequency=10), [UNPRUNED]),
        (MagnitudePruning(ConstantSparsity(begin_step=9)), [UNPRUNED]),
        (MagnitudePruning(lambda step: (True, min(0.5, step / 100))), [UNPRUNED]),
        (SNIP(batches=2), []),
        (SNIP(batches=9), [UNPRUNED]),
        (RigL(update_interval=1), [UNTRAINED]),
        (RigL(update_interval=1, apply_optimizer_on_update=True), []),
        (rigl(), []),
        ("rigl", ["will not change"]),
        ("static", []),
    ],
)
def test_what_a_run_of_eight_steps_is_told(method, expected):
    assert said(method)[0] == expected


def test_nothing_is_trained_where_each_step_is_an_update():
    _, model = said(RigL(update_interval=1, end_step=1.0))
    assert int(model.optimizer.iterations) == 1  # Step 0 only.


class Stop(keras.callbacks.Callback):
    """Stops after a number of batches, as early stopping does."""

    def on_train_batch_end(self, batch, logs=None):
        if batch == 3:
            self.model.stop_training = True


@pytest.mark.parametrize("how", ["stopped", "generator"])
def test_a_run_that_ends_before_pruning_has(how):
    """The float end is one of the planned run; the model has less sparsity than it was to have."""
    model = compiled(sparsify(mlp(), pruning(frequency=2)), run_eagerly=True)
    x, y = random_data(batches=4)
    arguments = {"x": x, "y": y, "batch_size": BATCH, "epochs": 2, "callbacks": [Stop()]}
    if how == "generator":
        batches = zip(np.split(x, 4), np.split(y, 4), strict=True)
        arguments = {"x": (batch for batch in batches), "steps_per_epoch": 8}
    message = r"its sparsity is 0\.\d+, not 0\.5\. The run ended at step 4"
    with pytest.warns(UserWarning, match=message):
        model.fit(**arguments, verbose=0)
    assert 0 < model.sparsity < 0.5


def test_restored_weights_of_an_earlier_epoch_are_noticed():
    """Pruning was over, but the best epoch came before."""

    class Worse(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            logs["rising"] = epoch

    best = keras.callbacks.EarlyStopping("rising", 0, 1, mode="min", restore_best_weights=True)
    method = pruning(begin_step=1, end_step=14, frequency=4)
    found, model = said(method, epochs=4, callbacks=[Worse(), best])
    assert found == [UNPRUNED]
    assert model.sparsity < 0.5


def test_later_runs_go_on_without_a_warning_until_they_are_stopped():
    """With an end as a step, the first run tells; with frozen layers only the others count."""
    method = pruning(begin_step=1, end_step=20, frequency=2)
    found, model = said(method)
    assert found == [UNPRUNED]
    assert _said(model) == []
    assert _said(model, 8) == []
    found, model = said(pruning(frequency=2), layers=["hidden"])
    assert found == []
    assert model.sparsity < 0.2


def test_weights_that_were_frozen_and_train_now_are_named():
    dense = mlp()
    dense.get_layer("hidden").trainable = False
    sparse = compiled(sparsify(dense, rigl()))
    assert [item.path for item in sparse.masked_weights] == ["head/kernel"]
    said = "weights were frozen when the model was made sparse"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=f".*{said}")
        sparse.fit(*random_data(), batch_size=BATCH, verbose=0)
    sparse.get_layer("hidden").trainable = True
    compiled(sparse)
    with pytest.warns(UserWarning, match=f"1 {said}, .*'hidden/kernel'"):
        sparse.fit(*random_data(), batch_size=BATCH, verbose=0)


@pytest.mark.parametrize("compute", ["masked", "sparse"])
@pytest.mark.parametrize(
    ("initializer", "bias", "warns"),
    [("zeros", -1.0, True), ("zeros", 1.0, False), ("glorot_normal", -1.0, False)],
)
def test_units_that_moved_blocks_left_without_weights_are_told(initializer, bias, warns, compute):
    """With a bias below zero such units get no gradient; they have weights again with one above."""
    layers = [keras.Input((32,)), keras.layers.Dense(32, "relu", name="hidden")]
    model = keras.Sequential([*layers, keras.layers.Dense(4, name="head")])
    model.get_layer("hidden").bias.assign(np.full(32, bias))
    method = RigL(update_interval=2, drop_fraction=0.5, grow_initializer=initializer)
    pattern = "block_8x8" if compute == "sparse" else "constant_fan_in_8x8"
    arguments = {"exclude": ["head"], "seed": 1, "compute": compute}
    x = np.random.default_rng(0).normal(size=(192, 32)).astype("float32")
    y = np.random.default_rng(0).integers(0, 4, 192)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sparse = tf_rigl.sparsify(model, method, 0.75, "uniform_all", pattern, **arguments)
        compiled(sparse).fit(x, y, batch_size=8, verbose=0)
    kernel = tf_rigl.strip(sparse).get_layer("hidden").kernel.numpy()
    idle = int((kernel == 0).all(axis=0).sum())
    assert (idle > 0) == warns
    assert any(f"'hidden/kernel' ({idle} of 32)" in str(each.message) for each in caught) == warns
