"""Numbers that go wrong: masks stay masks, with the counts that were planned."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    METHODS,
    check_pruned,
    compiled,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tests.soak import record, times
from tf_rigl import patterns
from tf_rigl.callbacks import SparsityError, SparsityMonitor
from tf_rigl.methods import SET, SNFS, SNIP, MagnitudePruning

every_method = pytest.mark.parametrize("name", METHODS)
STEPS = 7  # Pruning is over by then, and updates were at 2, 4 and 6 (or 3 and 6).


class Hold(keras.callbacks.Callback):
    """After every step: masks are boolean, weights under them 0.0, counts as they have to be."""

    def on_train_batch_end(self, batch, logs=None):
        for item in self.model.masked_weights:
            weight, mask = keras.ops.convert_to_numpy(item.weight), item.mask.numpy()
            assert mask.dtype == bool
            np.testing.assert_array_equal(weight[~mask], 0)
        method = self.model.method
        if method.keeps_counts and not method.begins_dense:
            check_pruned(self.model, finite=False)


def train(model, x, y, callbacks=()):
    """A run in order and in silence, with all steps checked, and the counts at the end."""
    callbacks = [*callbacks, Hold()]
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0, callbacks=callbacks)
    check_pruned(model, finite=False)


def eager(model, rate=0.1, **kwargs):
    return compiled(model, keras.optimizers.SGD(rate, momentum=0.9), run_eagerly=True, **kwargs)


# Gradients and weights that are NaN or infinite.


@keras.saving.register_keras_serializable(package="tests")
class Backward(keras.layers.Layer):
    """Passes values on, and gradients times a factor."""

    def build(self, input_shape):
        self.factor = self.add_weight(shape=(), initializer="ones", trainable=False)

    def call(self, x):
        factor = tf.convert_to_tensor(self.factor)
        return tf.custom_gradient(lambda x: (tf.identity(x), lambda dy: dy * factor))(x)


class Spoil(keras.callbacks.Callback):
    """Multiplies the gradients of one step by a number."""

    def __init__(self, step, value):
        super().__init__()
        self.step, self.value = step, value

    def on_train_batch_begin(self, batch, logs=None):
        factor = self.value if self.model.step == self.step else 1.0
        self.model.get_layer("backward").factor.assign(factor)


class SpoilWeights(Spoil):
    """Sets every other active weight of "hidden" to a number before a step."""

    def on_train_batch_begin(self, batch, logs=None):
        if self.model.step == self.step:
            spoil(self.model.masked_weights[0], self.value)


def spoil(item, value):
    weight = item.weight.numpy()
    weight.flat[np.flatnonzero(item.mask.numpy())[::2]] = value
    item.weight.assign(weight)


def spoiled_model(behind, method):
    """The usual model with a `Backward` behind one of its layers."""
    x = inputs = keras.Input((FEATURES,))
    for name, units in (("hidden", 8), ("head", CLASSES)):
        x = keras.layers.Dense(units, name=name)(x)
        if name == behind:
            x = Backward(name="backward")(x)
    return eager(sparsify(keras.Model(inputs, x), method))


# The first update is at step 2 (with means of three batches at 3), or at 0 for SNIP.
ALL_STEPS = [(value, step) for value in (np.nan, np.inf, -np.inf) for step in range(STEPS)]


@pytest.mark.parametrize(("value", "step"), times([(np.nan, 0), (np.inf, 2)], ALL_STEPS))
@every_method
def test_counts_hold_whatever_gradients_are(name, value, step):
    model = spoiled_model("head", METHODS[name]())
    train(model, *random_data(batches=STEPS), [Spoil(step, value)])
    record("bad gradients", method=name, value=str(value), step=step)


@pytest.mark.parametrize(("value", "step"), times([(np.nan, 2), (-np.inf, 1)], ALL_STEPS))
@every_method
def test_counts_hold_whatever_weights_are(name, value, step):
    model = eager(sparsify(mlp(), METHODS[name]()))
    train(model, *random_data(batches=STEPS), [SpoilWeights(step, value)])
    record("bad weights", method=name, value=str(value), step=step)


@pytest.mark.parametrize("name", ["set", "rigl", "snfs"])
def test_an_update_step_of_bad_gradients_leaves_weights_finite(name):
    model = spoiled_model("head", METHODS[name]())
    train(model, *random_data(batches=3), [Spoil(2, np.nan)])
    assert all(np.isfinite(item.weight.numpy()).all() for item in model.masked_weights)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_monitor_names_the_layer_that_bad_gradients_reach(value):
    """What is behind the fault, "head", has the gradients that it should."""
    model, data = spoiled_model("hidden", rigl()), random_data(batches=STEPS)
    callbacks = [Spoil(3, value), SparsityMonitor(frequency=1)]
    with pytest.raises(SparsityError, match=r"At step 4: 'hidden/kernel': .*not finite") as error:
        train(model, *data, callbacks)
    assert "head" not in str(error.value)


# Weights, gradients and layers that leave no choice.


def sum_of_outputs(y_true, y_pred):
    """A loss that has the same gradient for all outputs."""
    return tf.reduce_sum(y_pred, axis=-1)


def equal_gradients(method):
    """A model in which all entries of the weight have the same gradient, whatever the batch."""
    inputs = keras.Input((FEATURES,))
    outputs = keras.layers.Dense(8, name="hidden")(inputs * 0 + 1)
    model = sparsify(keras.Model(inputs, outputs), method)
    model.compile(keras.optimizers.SGD(0.1), sum_of_outputs, run_eagerly=True)
    return model


def constant_weights(value):
    def make(method):
        inputs = keras.Input((FEATURES,))
        fill = {"kernel_initializer": keras.initializers.Constant(value)}
        x = keras.layers.Dense(8, name="hidden", **fill)(inputs)
        outputs = keras.layers.Dense(CLASSES, name="head", **fill)(x)
        return eager(sparsify(keras.Model(inputs, outputs), method))

    return make


def float16_ties(method):
    """Weights of float16 with few values."""
    keras.config.set_dtype_policy("float16")
    try:
        inputs = keras.Input((FEATURES,))
        x = keras.layers.Dense(8, kernel_initializer=few_values, name="hidden")(inputs)
        outputs = keras.layers.Dense(CLASSES, kernel_initializer=few_values, name="head")(x)
        model = sparsify(keras.Model(inputs, outputs), method)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.masked_weights[0].weight.dtype == "float16"
    return eager(model, rate=2**-12)  # A step of the smallest weights, none of the others.


@keras.saving.register_keras_serializable(package="tests")
def few_values(shape, dtype=None):
    return tf.cast(np.random.default_rng(0).integers(-2, 3, shape), dtype) / 4


def tiny(sparsity):
    """A layer of one entry before one of three."""

    def make(method):
        inputs = keras.Input((FEATURES,))
        x = keras.layers.Dense(1, name="one")(inputs[:, :1])
        outputs = keras.layers.Dense(CLASSES, name="head")(x)
        return eager(sparsify(keras.Model(inputs, outputs), method, sparsity))

    return make


def almost_empty(kept):
    """Of "hidden" so many entries are left; a fraction just below 1 leaves none."""
    sparsity = 1 - kept / (8 * FEATURES) if kept else 1 - 1e-13

    def make(method):
        sparsities = {"hidden": sparsity, "head": 0.5}
        model = eager(tf_rigl.sparsify(mlp(), method, distribution=sparsities, seed=0))
        if isinstance(model.masked_weights[0].pattern, patterns.Unstructured):
            assert model.masked_weights[0].target_active() == kept
        return model

    return make


CASES = {
    "equal gradients": equal_gradients,
    "weights of 1": constant_weights(1.0),
    "weights of 0": constant_weights(0.0),
    "float16 ties": float16_ties,
    "a layer of one entry": tiny(0.9),
    "one entry left": almost_empty(1),
    "no entry left": almost_empty(0),
}


@pytest.mark.parametrize("case", CASES)
@every_method
def test_counts_hold_where_there_is_no_choice(name, case):
    model = CASES[case](METHODS[name]())
    train(model, *random_data(batches=STEPS), [SparsityMonitor(frequency=1)])
    record("no choice", method=name, case=case)


def test_of_equal_gradients_the_first_entries_grow():
    model = equal_gradients(rigl())
    train(model, *random_data(batches=2))
    (item,) = model.masked_weights
    weight, mask = item.weight.numpy().reshape(-1), item.mask.numpy().reshape(-1)
    train(model, *random_data(batches=1))
    kept = best(np.abs(weight), 20, mask)
    expected = kept | best(np.zeros(80), 20, ~kept)
    assert (expected & ~mask).any()
    np.testing.assert_array_equal(item.mask.numpy().reshape(-1), expected)


# One update at a time, against NumPy.


def best(scores, count, among):
    """The highest scores; of equal ones the first; NaN below all others."""
    order = np.lexsort((np.arange(scores.size), -scores, np.isnan(scores)))
    chosen = np.zeros(scores.size, bool)
    chosen[order[among[order]][:count]] = True
    return chosen


VALUES = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 0.5, 2.0]
ONE_AT_A_TIME = {
    "set": (SET(), lambda w, g: np.abs(w), None),
    "rigl": (rigl(), lambda w, g: np.abs(w), lambda g: np.abs(g)),
    "snfs": (SNFS(), lambda w, g: np.abs(w), lambda g: np.abs(g)),
    "snip": (SNIP(), lambda w, g: np.abs(w * g), None),
    "magnitude": (MagnitudePruning(), lambda w, g: np.abs(w), None),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_updates_are_those_of_numpy_on_the_worst_numbers(name, dtype):
    method, drop, grow = ONE_AT_A_TIME[name]
    rng = np.random.default_rng(list(map(ord, name + dtype)))
    trials = times(5, 1000)
    for _ in range(trials):
        size = int(rng.integers(1, 40))
        weight, gradient = rng.choice(VALUES[: rng.integers(1, 10)], (2, size))
        mask = rng.random(size) < rng.random()
        weight[~mask] = 0
        keep = int(rng.integers(0, mask.sum() + 1))
        more = 0 if method.begins_dense else int(mask.sum()) - keep
        new_mask, new_weight = method.update(
            tf.constant(weight, dtype),
            tf.constant(gradient, dtype),
            tf.constant(mask),
            tf.constant(keep),
            tf.constant(more),
            patterns.Unstructured(),
            tf.constant([1, 2]),
        )
        new_mask, new_weight = new_mask.numpy(), tf.cast(new_weight, tf.float64).numpy()
        with np.errstate(invalid="ignore"):
            kept = best(drop(weight, gradient), keep, mask)
        assert new_mask.sum() == keep + more
        assert new_mask[kept].all()
        if more and grow is not None:
            np.testing.assert_array_equal(new_mask, kept | best(grow(gradient), more, ~kept))
        np.testing.assert_array_equal(new_weight, np.where(new_mask & mask, weight, 0))
    record("worst numbers", method=name, dtype=dtype, updates=trials)
