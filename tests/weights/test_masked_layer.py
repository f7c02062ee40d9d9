"""`MaskedLayer`: the wrapped layer's own outputs, a boolean mask, and its configuration."""

import keras
import numpy as np
import pytest

from tests.helpers import (
    CLASSES,
    check_equal_models,
    check_invariants,
    compiled,
    fit,
    random_data,
    rigl,
)
from tf_rigl import MaskedLayer, SparseModel, strip

k = keras.layers
RNG = np.random.default_rng(0)
SEQUENCE = RNG.normal(size=(2, 5, 6)).astype("float32")
STATE = RNG.normal(size=(2, 4)).astype("float32")
STEPS = np.array([[1, 1, 1, 0, 0], [1, 0, 0, 0, 0]], bool)
TOKENS = np.array([[1, 2, 0], [3, 0, 0]])
CAUSAL = np.tril(np.ones((2, 5, 5), bool))

# The layer, then the arguments of its call.
CALLS = {
    "Dense": (lambda: k.Dense(8), (SEQUENCE[:, 0],), {}),
    "Conv2D": (lambda: k.Conv2D(4, 3), (RNG.normal(size=(2, 6, 6, 3)),), {}),
    "Embedding": (lambda: k.Embedding(9, 6, mask_zero=True), (TOKENS,), {}),
    "LSTM": (
        lambda: k.LSTM(4, return_sequences=True),
        (SEQUENCE,),
        {"mask": STEPS, "initial_state": [STATE, STATE]},
    ),
    "LSTM-return_state": (lambda: k.LSTM(4, return_state=True), (SEQUENCE,), {}),
    "Bidirectional": (lambda: k.Bidirectional(k.GRU(4)), (SEQUENCE,), {"mask": STEPS}),
    "TimeDistributed": (lambda: k.TimeDistributed(k.Dense(3)), (SEQUENCE,), {}),
    "MultiHeadAttention": (
        lambda: k.MultiHeadAttention(2, 3),
        (SEQUENCE, SEQUENCE[:, ::-1], SEQUENCE * 2),
        {"attention_mask": CAUSAL},
    ),
    "MultiHeadAttention-keywords": (
        lambda: k.MultiHeadAttention(2, 3),
        (),
        {"query": SEQUENCE, "value": SEQUENCE * 2, "return_attention_scores": True},
    ),
}


def assert_equal(one, other):
    for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(a), keras.ops.convert_to_numpy(b))


@pytest.mark.parametrize("case", CALLS)
def test_gives_what_the_wrapped_layer_gives(case):
    """With any call argument; half of each weight is zero under a boolean mask."""
    make, args, kwargs = CALLS[case]
    masked = MaskedLayer(make(), sparsity=0.5, seed=1)
    outputs = masked(*args, **kwargs)
    assert_equal(outputs, masked.layer(*args, **kwargs))
    items = masked._masks.items
    assert items
    for item in items:
        mask, weight = item.mask.numpy(), item.weight.numpy()
        assert mask.dtype == bool
        assert mask.shape == weight.shape
        assert mask.sum() == mask.size - mask.size // 2
        assert (weight[~mask] == 0).all()


@pytest.mark.parametrize("case", ["Dense", "Conv2D", "Embedding", "Bidirectional"])
def test_symbolic_shapes_are_those_of_the_wrapped_layer(case):
    make, (x,), _ = CALLS[case]
    inputs = keras.Input(x.shape[1:], dtype=str(x.dtype))
    wrapped = make()
    assert MaskedLayer(make())(inputs).shape == wrapped(inputs).shape
    assert MaskedLayer(make()).compute_output_shape(inputs.shape) == wrapped.compute_output_shape(
        inputs.shape
    )


def test_mask_of_an_embedding_reaches_the_next_layer():
    layer = MaskedLayer(k.Embedding(9, 6, mask_zero=True), sparsity=0.5)
    np.testing.assert_array_equal(layer.compute_mask(TOKENS), TOKENS != 0)
    model = keras.Sequential([keras.Input((3,)), layer, k.LSTM(4)])
    padded = np.concatenate([TOKENS, np.zeros((2, 4), int)], axis=1)
    longer = keras.Sequential([keras.Input((7,)), layer, model.layers[1]])
    np.testing.assert_allclose(
        model.predict(TOKENS, verbose=0), longer.predict(padded, verbose=0), rtol=1e-6
    )


def test_inside_time_distributed():
    layer = k.TimeDistributed(MaskedLayer(k.Dense(4), sparsity=0.5))
    inputs = keras.Input((5, 6))
    model = SparseModel(inputs, layer(inputs))
    assert model.sparsity == 0.5
    assert model.predict(SEQUENCE, verbose=0).shape == (2, 5, 4)


def test_dropout_in_the_wrapped_layer_sees_training():
    layer = MaskedLayer(k.LSTM(4, dropout=0.5, recurrent_dropout=0.5))
    quiet = layer(SEQUENCE, training=False)
    assert_equal(layer(SEQUENCE), quiet)
    assert np.abs(layer(SEQUENCE, training=True) - quiet).max() > 0


def test_wraps_a_built_layer_and_keeps_its_weights():
    dense = k.Dense(8)
    dense.build((None, 6))
    kernel = dense.kernel.numpy()
    masked = MaskedLayer(dense, sparsity=0.5)
    (item,) = masked._masks.items
    np.testing.assert_array_equal(dense.kernel.numpy(), kernel * item.mask.numpy())


def test_mixed_precision_of_the_wrapped_layer_holds():
    layer = MaskedLayer(k.Dense(8, dtype="mixed_bfloat16"))
    assert layer(SEQUENCE).dtype == "bfloat16"
    assert layer.layer.kernel.dtype == "float32"


def test_seed_draws_the_same_mask_again():
    def mask(seed):
        layer = MaskedLayer(k.Dense(8), sparsity=0.5, seed=seed)
        layer.build((None, 6))
        return layer._masks.items[0].mask.numpy()

    np.testing.assert_array_equal(mask(3), mask(3))
    assert (mask(3) != mask(4)).any()
    keras.utils.set_random_seed(5)
    drawn = mask(None)
    keras.utils.set_random_seed(5)
    np.testing.assert_array_equal(drawn, mask(None))


def test_config_round_trip():
    layer = MaskedLayer(k.Dense(8, name="dense"), sparsity=0.25, seed=7, name="mine")
    config = layer.get_config()
    copy = MaskedLayer.from_config(config)
    assert copy.get_config() == config
    assert (copy.name, copy.sparsity, copy.seed, copy.layer.units) == ("mine", 0.25, 7, 8)
    assert copy.pattern == layer.pattern


def masked_model():
    """A functional model of masked layers of several kinds."""
    tokens = keras.Input((3,), dtype="int32")
    x = MaskedLayer(k.Embedding(9, 6, mask_zero=True), sparsity=0.5, seed=0)(tokens)
    x = MaskedLayer(k.Bidirectional(k.LSTM(4, return_sequences=True)), sparsity=0.5, seed=1)(x)
    x = MaskedLayer(k.MultiHeadAttention(2, 3), sparsity=0.5, seed=2)(x, x)
    x = MaskedLayer(k.Dense(8), sparsity=0.8, seed=3)(k.Flatten()(x))
    return SparseModel(tokens, k.Dense(CLASSES)(x), method=rigl())


def test_functional_model_of_masked_layers_trains_saves_and_strips(tmp_path):
    model = compiled(masked_model(), run_eagerly=True)
    assert len(model.masked_weights) == 1 + 4 + 4 + 1
    x, y = random_data((3,), batches=3, dtype="int32")
    before = model.masks
    fit(model, x, y)
    assert all((model.masks[path] != before[path]).any() for path in before)

    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    check_invariants(loaded)
    check_equal_models(loaded, model)
    stripped = strip(model)
    expected = model(x)
    np.testing.assert_array_equal(loaded(x), expected)
    np.testing.assert_array_equal(stripped(x), expected)
    assert not any(isinstance(layer, MaskedLayer) for layer in stripped._flatten_layers())


def test_in_an_ordinary_model_saves_and_loads(tmp_path):
    """The wrapper is a layer as any other; only training needs a `SparseModel`."""
    inputs = keras.Input((6,))
    model = keras.Model(inputs, MaskedLayer(k.Dense(8), sparsity=0.5)(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for a, b in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("layer", [None, "dense", 3, k.Dense, np.ones(3)])
def test_refuses_what_is_not_a_layer(layer):
    with pytest.raises(ValueError, match=r"`layer` must be a `keras.layers.Layer`.*Received: lay"):
        MaskedLayer(layer)


def test_refuses_to_mask_twice():
    with pytest.raises(ValueError, match="not yet masked"):
        MaskedLayer(MaskedLayer(k.Dense(3)))


@pytest.mark.parametrize("layer", [k.ReLU(), k.BatchNormalization(), k.DepthwiseConv1D(2)])
def test_refuses_a_layer_with_nothing_to_mask(layer):
    message = f"must have maskable weights.*of type {type(layer).__name__}"
    with pytest.raises(ValueError, match=message):
        MaskedLayer(layer)(SEQUENCE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sparsity": 1}, r"`sparsity` must be .*Received: sparsity=1"),
        ({"sparsity": -0.1}, r"Received: sparsity=-0.1"),
        ({"sparsity": "0.5"}, r"Received: sparsity='0.5'"),
        ({"pattern": "unstructred"}, r"`pattern`.*Did you mean 'unstructured'\?.*'unstructred'"),
        ({"seed": -1}, r"`seed`.*Received: seed=-1"),
        ({"seed": 0.5}, r"`seed`.*Received: seed=0.5"),
    ],
)
def test_names_the_argument_that_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        MaskedLayer(k.Dense(3), **arguments)


def test_a_second_build_makes_no_second_mask():
    layer = MaskedLayer(keras.layers.Dense(8), sparsity=0.5, seed=0)
    layer.build((None, 16))
    mask = layer.variables[-1].numpy()
    layer.build((None, 16))
    assert len(layer.variables) == 3  # Kernel, bias and mask.
    np.testing.assert_array_equal(layer.variables[-1].numpy(), mask)
