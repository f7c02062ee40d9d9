"""Factorized layers in models such as other people have."""

import warnings

import keras
import numpy as np
import pytest

import tf_rigl
from tf_rigl import factorized

L = keras.layers


def randomized(model):
    rng = np.random.default_rng(0)
    model.set_weights([rng.normal(size=w.shape) for w in model.get_weights()])
    return model


@pytest.mark.parametrize("scale", [1.0, 0.25])
@pytest.mark.parametrize("functional", [False, True])
def test_masks_of_keras_go_through(scale, functional):
    tokens = np.array([[3, 7, 0, 0, 0, 0], [1, 2, 3, 4, 5, 0]])

    def network(dense):
        layers = [L.Embedding(20, 8, mask_zero=True), dense, L.GlobalAveragePooling1D()]
        if not functional:
            return keras.Sequential([keras.Input((6,), dtype="int32"), *layers, L.Dense(3)])
        x = inputs = keras.Input((6,), dtype="int32")
        for layer in layers:
            x = layer(x)
        return keras.Model(inputs, L.Dense(3)(x))

    model = randomized(network(L.Dense(16, activation="relu", name="d")))
    small = factorized.factorize(model, scale=scale)
    merged = factorized.merge(small)
    by_hand = network(factorized.Dense(16, activation="relu", scale=scale, name="d"))
    by_hand.set_weights(small.get_weights())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = merged.predict(tokens, verbose=0)
        if scale == 1:
            np.testing.assert_allclose(expected, model.predict(tokens, verbose=0), rtol=1e-3)
        for each in (small, by_hand):
            np.testing.assert_allclose(each.predict(tokens, verbose=0), expected, rtol=1e-3)


@pytest.mark.parametrize("kind", ["Conv2D", "Dense"])
def test_layers_that_are_shared_by_inputs_of_other_sizes(kind):
    if kind == "Conv2D":
        inputs, shared = keras.Input((16, 16, 4)), L.Conv2D(8, 3, padding="same", name="shared")
        pooled, joined = L.AveragePooling2D(2)(inputs), L.GlobalAveragePooling2D()
    else:
        inputs, shared = keras.Input((16, 4)), L.Dense(8, name="shared")
        pooled, joined = L.AveragePooling1D(2)(inputs), L.GlobalAveragePooling1D()
    outputs = L.Dense(3)(L.Concatenate()([joined(shared(inputs)), joined(shared(pooled))]))
    model = keras.Model(inputs, outputs)
    small = factorized.factorize(model, scale=0.25, ends=True, exclude=[model.layers[-1].name])
    x = np.random.default_rng(0).normal(size=(5, *inputs.shape[1:]))
    merged = factorized.merge(small)
    assert len(merged.get_layer("shared").layers) == 2
    np.testing.assert_allclose(merged(x), small(x), rtol=1e-4, atol=1e-5)


def test_attention_with_more_key_dimensions_than_features():
    inputs = keras.Input((5, 6))
    x = L.MultiHeadAttention(2, 16, use_bias=False, name="attention")(inputs, inputs)
    model = keras.Model(inputs, L.Dense(3)(L.Dense(8)(x)))
    small = factorized.factorize(model, scale=1.0, decay=0.1)
    x = np.random.default_rng(0).normal(size=(4, 5, 6)).astype("float32")
    np.testing.assert_allclose(small(x), model(x), rtol=1e-3, atol=1e-5)
    assert float(sum(small.losses)) > 0


@pytest.mark.parametrize("initialization", ["spectral", "layer"])
def test_an_initializer_with_a_seed_draws_two_factors(initialization):
    layer = factorized.Dense(
        16,
        rank=8,
        initialization=initialization,
        kernel_initializer=keras.initializers.GlorotUniform(seed=1),
    )
    layer.build((None, 16))
    one, other = np.ravel(layer.first.kernel), np.ravel(layer.second.kernel)
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.5


@keras.saving.register_keras_serializable(package="tests")
class HolderOfFactors(L.Layer):
    """Holds a factorized layer."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = factorized.Dense(8, rank=1)

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.built = True

    def call(self, x):
        return self.inner(x)


def test_merge_leaves_none_behind():
    model = keras.Sequential([keras.Input((8,)), factorized.Dense(8, rank=1), HolderOfFactors()])
    with pytest.raises(
        ValueError, match=r"inside other layers cannot be merged: .*holder_of_factors"
    ):
        factorized.merge(model)


def test_changed_kernels_are_refused():
    layers = [keras.Input((8,)), L.Dense(16, name="a"), L.Dense(16, name="b"), L.Dense(3)]
    model = keras.Sequential(layers)
    small = factorized.factorize(model, scale=0.25)
    small.get_layer("a").second.enable_lora(2)
    with pytest.raises(ValueError, match="a' has LoRA"):
        factorized.merge(small)
    model.get_layer("b").quantize("int8")
    with pytest.raises(ValueError, match="b' is quantized"):
        factorized.factorize(model, scale=0.25)


def test_all_heads_and_the_first_convolution_stay():
    inputs = keras.Input((8, 8, 3))
    x = L.SeparableConv2D(8, 3, name="stem")(inputs)
    x = L.GlobalAveragePooling2D()(L.Conv2D(8, 3, name="second")(x))
    x = L.Dense(16, name="hidden")(x)
    model = keras.Model(inputs, [L.Dense(10, name="main")(x), L.Dense(5, name="aux")(x)])
    small = factorized.factorize(model, scale=0.25)
    names = [layer.name for layer in small.layers if isinstance(layer, factorized.base.Factorized)]
    assert names == ["second", "hidden"]


def test_frozen_layers_stay_as_they_are():
    layers = [keras.Input((16,)), L.Dense(16, name="a"), L.Dense(16, name="b"), L.Dense(4)]
    model = keras.Sequential(layers)
    model.get_layer("a").trainable = False
    small = factorized.factorize(model, scale=0.25)
    assert type(small.get_layer("a")) is L.Dense
    assert not small.get_layer("a").trainable_weights
    assert isinstance(small.get_layer("b"), factorized.Dense)


def test_factors_that_are_no_smaller_are_told():
    model = keras.Sequential([keras.Input((64,)), L.Dense(64), L.Dense(64), L.Dense(10)])
    with pytest.warns(UserWarning, match="8,192 parameters, no fewer than the 8,192"):
        factorized.factorize(model, scale=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        factorized.factorize(model, scale=0.25)


def test_only_values_that_stay_are_drawn(monkeypatch, tmp_path):
    """The decomposition of a large kernel takes long: copies and files do without."""
    model = keras.Sequential([keras.Input((8,)), L.Dense(16, name="a"), L.Dense(3)])
    small = factorized.factorize(model, scale=0.25)
    small.save(tmp_path / "small.keras")
    x = np.random.default_rng(0).normal(size=(4, 8))

    def refused(*args):
        raise AssertionError("a kernel was drawn")

    monkeypatch.setattr(factorized.products.Draw, "factor", refused)
    again = keras.saving.load_model(tmp_path / "small.keras")
    np.testing.assert_array_equal(again(x), small(x))
    sparse = tf_rigl.sparsify(small, "static", 0.5)
    stripped = tf_rigl.strip(sparse)
    np.testing.assert_allclose(stripped(x), sparse(x), rtol=1e-6)
    factorized.factorize(model, parameters=0.5)
    with pytest.raises(AssertionError, match="was drawn"):
        factorized.Dense(4, rank=1).build((None, 8))


def test_an_activity_regularizer_survives_a_merge():
    regularizer = keras.regularizers.L2(0.1)
    layers = [L.Dense(16, activity_regularizer=regularizer, name="a"), L.Dense(3)]
    model = keras.Sequential([keras.Input((8,)), *layers])
    small = factorized.factorize(model, scale=0.25)
    merged = factorized.merge(small)
    x = np.random.default_rng(0).normal(size=(4, 8))
    for each in (small, merged):
        each(x)
    np.testing.assert_allclose(sum(merged.losses), sum(small.losses), rtol=1e-5)
