"""Paths between solutions, against NumPy."""

import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import CLASSES, FEATURES, mlp, random_data, rigl, sparsify
from tf_rigl import analysis
from tf_rigl.analysis.curve import Curve

X, Y = random_data(batches=8)
CROSS_ENTROPY = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


def loss(model):
    return float(CROSS_ENTROPY(Y, model(X)))


def trained(seed, make=mlp, method=None, epochs=2):
    keras.utils.set_random_seed(seed)
    model = sparsify(make(), method or rigl(), sparsity=0.6, seed=seed)
    model.compile(keras.optimizers.Adam(0.02), CROSS_ENTROPY)
    model.fit(X, Y, batch_size=8, epochs=epochs, verbose=0)
    return model


def fit(model):
    model.compile(keras.optimizers.Adam(0.02), CROSS_ENTROPY)
    model.fit(X, Y, batch_size=8, epochs=15, verbose=0)


def numpy_loss(weights):
    """Cross entropy of the two dense layers."""
    (kernel, bias), (head, head_bias) = weights[:2], weights[2:]
    logits = np.maximum(X.astype(float) @ kernel + bias, 0) @ head + head_bias
    logits -= logits.max(axis=1, keepdims=True)
    log = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -log[np.arange(len(Y)), Y].mean()


def network():
    inputs = keras.Input((FEATURES,))
    x = keras.layers.Dense(8, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


def test_the_straight_path():
    models = trained(0, network), trained(1, network)
    before = [model.get_weights() for model in models]
    path = analysis.interpolate(*models, loss, points=5)
    ends = [tf_rigl.strip(model).get_weights() for model in models]
    expected = [
        numpy_loss([(1 - t) * one + t * other for one, other in zip(*ends, strict=True)])
        for t in (0, 0.25, 0.5, 0.75, 1)
    ]
    np.testing.assert_allclose(path.losses, expected, rtol=1e-5)
    barrier = max(expected) - max(expected[0], expected[-1])
    np.testing.assert_allclose(path.barrier, barrier, atol=1e-5)
    for model, weights in zip(models, before, strict=True):  # The models do not change.
        for one, other in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("subspace", ["masks", "dense"])
def test_a_trained_curve(subspace):
    models = trained(0, network), trained(1, network)
    straight = analysis.interpolate(*models, loss, points=9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        path = analysis.bezier(*models, fit, loss, subspace=subspace, points=9)
    ends = [tf_rigl.strip(model).get_weights() for model in models]
    np.testing.assert_allclose(path.losses[[0, -1]], straight.losses[[0, -1]], rtol=1e-6)
    assert path.losses.mean() < straight.losses.mean()
    masks = [np.logical_or(*pair) for pair in zip(*(m.masks.values() for m in models), strict=True)]
    outside = [
        np.any(path.control[place][~mask]) for place, mask in zip((0, 2), masks, strict=True)
    ]
    assert all(outside) if subspace == "dense" else not any(outside)
    t = path.positions[3]
    weights = [
        (1 - t) ** 2 * one + 2 * t * (1 - t) * middle + t**2 * other
        for one, other, middle in zip(*ends, path.control, strict=True)
    ]
    np.testing.assert_allclose(path.losses[3], numpy_loss(weights), rtol=1e-5)


def test_statistics_and_dropout_are_no_hindrance():
    def make():
        layers = [keras.Input((FEATURES,)), keras.layers.Dense(8, name="hidden")]
        layers += [keras.layers.BatchNormalization(), keras.layers.Dropout(0.2)]
        return keras.Sequential([*layers, keras.layers.Dense(CLASSES, name="head")])

    models = trained(0, make), trained(1, make, tf_rigl.methods.Static())
    path = analysis.bezier(*models, fit, loss, points=3)
    np.testing.assert_allclose(path.losses[0], loss(tf_rigl.strip(models[0])), rtol=1e-6)
    np.testing.assert_allclose(path.losses[-1], loss(tf_rigl.strip(models[1])), rtol=1e-6)
    assert len(path.control) == len(tf_rigl.strip(models[0]).trainable_weights)


def test_a_picture(tmp_path):
    models = [sparsify(network(), "static", seed=seed) for seed in (0, 1)]
    path = analysis.interpolate(*models, loss, points=3)
    tf_rigl.plots.draw_paths({"straight": path}, tmp_path / "paths.png")
    assert (tmp_path / "paths.png").stat().st_size > 5000
    with pytest.raises(ValueError, match="`paths` must not be empty"):
        tf_rigl.plots.draw_paths({}, tmp_path / "none.png")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda a, b: analysis.interpolate(a, b, loss, points=1), "`points` must be an integer"),
        (lambda a, b: analysis.interpolate(a, mlp(), loss), "`second` must be a `tf_rigl.Sparse"),
        (lambda a, b: analysis.bezier(a, b, fit, loss, "sparse"), "`subspace` must be one of"),
        (
            lambda a, b: analysis.interpolate(
                a,
                sparsify(keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)]), "static"),
                loss,
            ),
            "`second` must be a model of the same architecture",
        ),
    ],
)
def test_bad_arguments_are_refused(call, message):
    models = [sparsify(network(), "static", seed=seed) for seed in (0, 1)]
    with pytest.raises(ValueError, match=message):
        call(*models)


@keras.saving.register_keras_serializable(package="tests")
class BlockOfPaths(keras.layers.Layer):
    """Layers without names of their own."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.layers = [keras.layers.Dense(units, activation="relu"), keras.layers.Dense(units)]

    def build(self, input_shape):
        self.layers[0].build(input_shape)
        self.layers[1].build((*input_shape[:-1], self.units))
        self.built = True

    def call(self, x):
        return self.layers[1](self.layers[0](x))

    def get_config(self):
        return {**super().get_config(), "units": self.units}


@keras.saving.register_keras_serializable(package="tests")
class SubclassedOfPaths(keras.Model):
    """A model that is no graph."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.first, self.head = BlockOfPaths(8), keras.layers.Dense(CLASSES)

    def build(self, input_shape):
        self.first.build(input_shape)
        self.head.build((*input_shape[:-1], 8))
        self.built = True

    def call(self, x):
        return self.head(self.first(x))


def with_block():
    inputs = keras.Input((FEATURES,))
    return keras.Model(inputs, keras.layers.Dense(CLASSES)(BlockOfPaths(8)(inputs)))


def subclassed():
    model = SubclassedOfPaths()
    model.build((None, FEATURES))
    return model


@pytest.mark.parametrize("make", [with_block, subclassed])
@pytest.mark.parametrize("subspace", ["masks", "dense"])
def test_models_of_custom_layers(make, subspace):
    first, second = trained(0, make), trained(1, make)
    path = analysis.bezier(first, second, fit, loss, subspace=subspace, points=3)
    assert np.isfinite(path.losses).all()
    if subspace == "masks":
        union = [
            one | other
            for one, other in zip(first.masks.values(), second.masks.values(), strict=True)
        ]
        kernels = [value for value in path.control if value.ndim == 2]
        for kernel, mask in zip(kernels, union, strict=True):
            np.testing.assert_array_equal(kernel != 0, mask & (kernel != 0))
            assert np.count_nonzero(kernel) > np.count_nonzero(mask) / 2


def ends(make):
    """Two models of one architecture, which are ordinary."""
    keras.utils.set_random_seed(0)
    return make(), make()


def at(curve, t):
    """Has a curve compute at a fixed position."""
    draw = keras.random.uniform
    return lambda *args, **kwargs: (
        keras.ops.convert_to_tensor(t, "float32") if args == ((),) else draw(*args, **kwargs)
    )


def test_a_curve_draws_new_dropout_masks_at_each_call():
    def make():
        inputs = keras.Input((FEATURES,))
        x = keras.layers.Dropout(0.5)(inputs)
        return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))

    model, _ = ends(make)
    curve = Curve(model, model, {})
    one, other = (np.asarray(curve(X, training=True)) for _ in range(2))
    assert np.abs(one - other).max() > 0.1
    compiled = tf.function(lambda: curve(X, training=True))
    assert np.abs(np.asarray(compiled()) - np.asarray(compiled())).max() > 0.1


def test_what_is_not_trained_is_on_the_straight_line(monkeypatch):
    def make():
        inputs = keras.Input((FEATURES,))
        x = keras.layers.Dense(8, trainable=False)(inputs)
        x = keras.layers.BatchNormalization()(x)
        return keras.Model(inputs, keras.layers.Dense(CLASSES)(x))

    first, second = ends(make)
    second(X, training=True)  # Moves the statistics.
    curve = Curve(first, second, {})
    for t, end in ((0.0, first), (1.0, second)):
        expected = end(X)
        monkeypatch.setattr(keras.random, "uniform", at(curve, t))
        np.testing.assert_allclose(curve(X), expected, rtol=1e-5, atol=1e-6)
        monkeypatch.undo()


def test_regularizers_count_on_the_curve():
    def make():
        inputs = keras.Input((FEATURES,))
        layer = keras.layers.Dense(CLASSES, kernel_regularizer=keras.regularizers.L2(10.0))
        return keras.Model(inputs, layer(inputs))

    model, _ = ends(make)
    curve = Curve(model, model, {})
    curve(X)
    np.testing.assert_allclose(curve.losses, model.losses, rtol=1e-5)


def test_a_curve_in_mixed_precision():
    keras.config.set_dtype_policy("mixed_float16")
    try:
        path = analysis.bezier(trained(0), trained(1), fit, loss, points=3)
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(path.losses).all()


def test_what_is_no_function_is_told():
    first, second = trained(0), trained(1)
    for wrong in ("mse", CROSS_ENTROPY, None):
        with pytest.raises(ValueError, match="`loss` must be a function of a Keras model"):
            analysis.interpolate(first, second, wrong)
    with pytest.raises(ValueError, match="`fit` must train the model that it gets"):
        analysis.bezier(first, second, lambda model: None, loss)
