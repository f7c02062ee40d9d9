"""Weights under a mask stay zero when weights, masks or optimizers change in mid-training."""

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import check_equal_models, compiled, mlp, random_data, rigl, sparsify

EAGER = {"run_eagerly": True}
X, Y = random_data(batches=12)


def train(model, batches, start=0):
    for n in range(start, start + batches):
        model.train_on_batch(X[8 * n : 8 * n + 8], Y[8 * n : 8 * n + 8])
        for item in model.masked_weights:
            assert np.all(item.weight.numpy()[~item.mask.numpy()] == 0)


def test_weights_set_between_batches():
    model = compiled(sparsify(mlp()), keras.optimizers.Adam(0.01))
    train(model, 1)
    weights = model.get_weights()
    train(model, 6, start=1)
    model.set_weights(weights)
    train(model, 4, start=7)


def test_weights_loaded_between_batches(tmp_path):
    path = tmp_path / "other.weights.h5"
    sparsify(mlp(), seed=5).save_weights(path)
    model = compiled(sparsify(mlp()), keras.optimizers.Adam(0.01))
    train(model, 6)
    model.load_weights(path)
    train(model, 5, start=6)


def test_weights_set_by_a_callback():
    class Restore(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.weights = self.model.get_weights()

        def on_epoch_end(self, epoch, logs=None):
            self.model.set_weights(self.weights)

    model = compiled(sparsify(mlp()), keras.optimizers.Adam(0.01))
    model.fit(X, Y, batch_size=8, epochs=3, callbacks=[Restore()], verbose=0)
    train(model, 3)


def test_a_refused_file_leaves_no_weights_under_the_masks(tmp_path):
    path = tmp_path / "fewer.weights.h5"
    sparsify(mlp(), exclude=["head"]).save_weights(path)
    dense = tmp_path / "dense.weights.h5"
    mlp().save_weights(dense)
    model = compiled(sparsify(mlp()))
    with pytest.raises(ValueError, match="holds 1 masks, the model has 2"):
        model.load_weights(path)
    train(model, 3)
    model.load_weights(dense)  # The refusal is that of the other file.
    train(model, 3, start=3)


def test_adam_without_epsilon():
    train(compiled(sparsify(mlp()), keras.optimizers.Adam(0.01, epsilon=0.0)), 6)


def test_averages_of_an_optimizer_that_mixes_entries():
    class Mixing(keras.optimizers.SGD):
        """Moves every entry by the mean gradient, like a caricature of Muon."""

        def update_step(self, gradient, variable, learning_rate):
            shared = keras.ops.mean(gradient) + keras.ops.zeros_like(gradient)
            super().update_step(shared, variable, learning_rate)

    model = compiled(sparsify(mlp()), Mixing(0.1, use_ema=True))
    model.fit(X, Y, batch_size=8, verbose=0)
    for item in model.masked_weights:
        assert np.all(item.weight.numpy()[~item.mask.numpy()] == 0)


def test_nothing_to_train():
    model = sparsify(mlp())
    model.trainable = False
    before = model.get_weights()
    compiled(model).fit(X, Y, batch_size=8, verbose=0)
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)
    assert model.step == 12


def test_what_cannot_be_cloned_cannot_be_stripped():
    class Stubborn(keras.layers.Dense):
        def get_config(self):
            raise NotImplementedError("nope")

    model = keras.Sequential([keras.Input((10,)), Stubborn(3)])
    with pytest.warns(UserWarning, match="changed in place"):
        sparse = sparsify(model)
    with pytest.raises(ValueError, match=r"cannot be stripped.*nope"):
        tf_rigl.strip(sparse)


def test_a_layer_shared_with_a_nested_model_stays_shared():
    shared = keras.layers.Dense(10)
    inner_inputs = keras.Input((10,))
    inner = keras.Model(inner_inputs, shared(inner_inputs))
    inputs = keras.Input((10,))
    model = keras.Model(inputs, shared(inner(inputs)))
    sparse = sparsify(model)  # The warning that it is changed in place would be an error here.
    assert len(sparse.masked_weights) == 1


def test_lambda_layers_are_copied():
    inputs = keras.Input((10,))
    outputs = keras.layers.Dense(3)(keras.layers.Lambda(lambda x: 2 * x)(inputs))
    model = keras.Model(inputs, outputs)
    sparse = sparsify(model)  # The warning that it is changed in place would be an error here.
    assert sparse.layers[-1] is not model.layers[-1]


def test_the_drop_fraction_begins_anew_with_each_fit():
    method = rigl(end_step=1.0, decay="cosine")
    (first,) = method.plan(2, [100], first_step=0, run_steps=8)
    (again,) = method.plan(10, [100], first_step=8, run_steps=8)
    assert first == again


def test_a_random_initializer_draws_other_values_at_each_update():
    method = rigl(grow_initializer=keras.initializers.RandomNormal(seed=1))
    weight = np.zeros((4, 5), "float32")
    draws = [method.new_values(weight, [0, step]).numpy() for step in (2, 4, 6, 8)]
    assert len({draw.tobytes() for draw in draws}) > 1
    for draw in draws:
        np.testing.assert_array_equal(np.sort(draw, axis=None), np.sort(draws[0], axis=None))


def grown(initializer, seed):
    """A model of always the same seed and weights that has grown values under a global seed."""
    keras.utils.set_random_seed(0)
    dense = mlp()
    keras.utils.set_random_seed(seed)
    model = compiled(sparsify(dense, rigl(grow_initializer=initializer), seed=7), **EAGER)
    model.fit(X[:40], Y[:40], batch_size=8, shuffle=False, verbose=0)
    return model


INITIALIZERS = ["random_normal", "orthogonal"]


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_random_initial_values_are_those_of_the_models_seed(initializer):
    one = grown(initializer, 1)
    check_equal_models(one, grown(initializer, 2))
    assert (one.get_weights()[0] != grown("zeros", 1).get_weights()[0]).any()


@pytest.mark.parametrize("initializer", INITIALIZERS)
def test_a_file_goes_on_with_the_same_random_initial_values(initializer, tmp_path):
    whole = grown(initializer, 1)
    whole.save(tmp_path / "model.keras")
    keras.utils.set_random_seed(99)
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    before = whole.masks
    for model in (whole, loaded):
        model.fit(X[40:], Y[40:], batch_size=8, shuffle=False, verbose=0)
    check_equal_models(loaded, whole)
    assert any((whole.masks[path] & ~before[path]).any() for path in before)


def test_a_subclassed_model_of_unnamed_layers_loads_whatever_their_names_are_by_then(tmp_path):
    @keras.saving.register_keras_serializable(package="tests")
    class Unnamed(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.first, self.second = keras.layers.Dense(8), keras.layers.Dense(3)

        def call(self, x):
            return self.second(self.first(x))

        def get_config(self):
            return super().get_config()

    model = compiled(sparsify(Unnamed()))
    model.fit(X, Y, batch_size=8, verbose=0)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model.predict(X, verbose=0), loaded.predict(X, verbose=0))
    for old, new in zip(model.masks.values(), loaded.masks.values(), strict=True):
        np.testing.assert_array_equal(old, new)


def test_a_run_without_any_update_says_so():
    model = compiled(sparsify(mlp(), tf_rigl.methods.RigL()))
    with pytest.warns(UserWarning, match="masks will not change in this run of 12 steps"):
        model.fit(X, Y, batch_size=8, verbose=0)


@pytest.mark.parametrize("how", [EAGER, {"run_eagerly": False}])
def test_weights_bring_the_seed_of_what_is_drawn_later(how, tmp_path):
    """Also to a model that has compiled its steps with a seed of its own."""
    path = tmp_path / "model.weights.h5"
    models = []
    for seed in (0, 1):
        method = tf_rigl.methods.SET(update_interval=2, end_step=1000)
        models.append(compiled(sparsify(mlp(), method, seed=seed), **how))
        models[-1].fit(X[:40], Y[:40], batch_size=8, shuffle=False, verbose=0)
    one, other = models
    one.save_weights(path)
    other.load_weights(path)
    for model in models:
        model.fit(X[40:], Y[40:], batch_size=8, shuffle=False, verbose=0)
    check_equal_models(one, other)
