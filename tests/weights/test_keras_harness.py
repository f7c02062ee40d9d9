"""Keras's own test of layers, and its tests of wrappers, on `MaskedLayer`."""

import keras
import numpy as np
import pytest
from keras.src import testing

from tf_rigl import MaskedLayer

k = keras.layers


class Harness(testing.TestCase):
    """The test case of Keras; pytest does not collect it, as its name says no test."""

    def runTest(self):
        """`unittest` needs it to make an object."""


@pytest.fixture(name="harness")
def make_harness():
    case = Harness()
    case.setUp()
    yield case
    case.doCleanups()
    keras.config.enable_traceback_filtering()


def nested():
    inputs = keras.Input((6,))
    x = k.Dense(8, activation="relu", name="hidden")(inputs)
    return keras.Model(inputs, k.Dense(4, name="out")(x))


# The layer, the shape of its input, of its output, the numbers of its weights, of its masks, and
# further arguments of the harness.
LAYERS = {
    "Dense": (lambda: k.Dense(8), (2, 6), (2, 8), 2, 1, {}),
    "EinsumDense": (lambda: k.EinsumDense("ab,bc->ac", 8), (2, 6), (2, 8), 1, 1, {}),
    "Conv1D": (lambda: k.Conv1D(4, 3), (2, 6, 3), (2, 4, 4), 2, 1, {}),
    "Conv2D": (lambda: k.Conv2D(4, 3), (2, 6, 6, 3), (2, 4, 4, 4), 2, 1, {}),
    "Conv2DTranspose": (lambda: k.Conv2DTranspose(4, 3), (2, 3, 3, 3), (2, 5, 5, 4), 2, 1, {}),
    "SeparableConv2D": (lambda: k.SeparableConv2D(4, 3), (2, 6, 6, 3), (2, 4, 4, 4), 3, 1, {}),
    "Embedding": (
        lambda: k.Embedding(9, 6, mask_zero=True),
        (2, 5),
        (2, 5, 6),
        1,
        1,
        {"input_dtype": "int32", "supports_masking": True, "expected_mask_shape": (2, 5)},
    ),
    "LSTM": (lambda: k.LSTM(4), (2, 5, 6), (2, 4), 3, 2, {"supports_masking": True}),
    "GRU": (lambda: k.GRU(4, return_sequences=True), (2, 5, 6), (2, 5, 4), 3, 2, {}),
    "SimpleRNN": (lambda: k.SimpleRNN(4), (2, 5, 6), (2, 4), 3, 2, {}),
    "Bidirectional": (lambda: k.Bidirectional(k.LSTM(4)), (2, 5, 6), (2, 8), 6, 4, {}),
    "TimeDistributed": (lambda: k.TimeDistributed(k.Dense(3)), (2, 5, 6), (2, 5, 3), 2, 1, {}),
    "MultiHeadAttention": (
        lambda: k.MultiHeadAttention(2, 3),
        {"query_shape": (2, 5, 6), "value_shape": (2, 4, 6)},
        (2, 5, 6),
        8,
        4,
        {"run_training_check": False},  # Keras passes a dict as one argument there.
    ),
    "GroupQueryAttention": (
        lambda: k.GroupQueryAttention(3, 4, 2),
        {"query_shape": (2, 5, 6), "value_shape": (2, 4, 6)},
        (2, 5, 6),
        8,
        4,
        {"run_training_check": False},
    ),
    "model": (nested, (2, 6), (2, 4), 4, 2, {}),
}


# The harness trains layers in an ordinary model: masks stay there, and a warning says so.
@pytest.mark.filterwarnings("ignore:.*does not move masks")
@pytest.mark.parametrize(
    ("name", "shares"),
    [*((name, False) for name in LAYERS), ("Dense", True), ("LSTM", True), ("Embedding", True)],
)
def test_layer(harness, name, shares):
    """Also of several `MaskedLayer`s around one layer, which is built by the first."""
    make, shape, output, trainable, masks, extra = LAYERS[name]
    shared = make()

    def layer(**kwargs):
        return MaskedLayer(shared if shares else make(), **kwargs)

    harness.run_layer_test(
        layer,
        init_kwargs={"sparsity": 0.5, "seed": 1},
        input_shape=shape,
        expected_output_shape=output,
        expected_num_trainable_weights=trainable,
        expected_num_non_trainable_weights=masks,
        **extra,
    )


# What Keras tests of a wrapper (keras/src/layers/core/wrapper_test.py), of this one.


@pytest.mark.filterwarnings("ignore:.*does not move masks")
@pytest.mark.parametrize(
    ("layer", "own", "losses"),
    [
        ({}, {}, 0),
        ({"activity_regularizer": "l2"}, {}, 1),
        ({}, {"activity_regularizer": "l2"}, 1),
        ({"activity_regularizer": "l2"}, {"activity_regularizer": "l2"}, 2),
        ({"kernel_regularizer": "l2"}, {}, 1),
    ],
)
def test_wrapper_basics(harness, layer, own, losses):
    harness.run_layer_test(
        MaskedLayer,
        init_kwargs={"layer": k.Dense(2, **layer), "sparsity": 0.5, "seed": 1, **own},
        input_shape=(2, 3),
        expected_output_shape=(2, 2),
        expected_num_trainable_weights=2,
        expected_num_non_trainable_weights=1,
        expected_num_seed_generators=0,
        expected_num_losses=losses,
        supports_masking=True,
    )


@pytest.mark.filterwarnings("ignore:.*does not move masks")
def test_wrapper_of_a_layer_with_seeds(harness):
    harness.run_layer_test(
        MaskedLayer,
        init_kwargs={"layer": k.LSTM(4, dropout=0.5), "sparsity": 0.5, "seed": 1},
        input_shape=(2, 5, 6),
        expected_output_shape=(2, 4),
        expected_num_seed_generators=1,
    )


def test_wrapper_invalid_layer():
    with pytest.raises(ValueError, match=r"must be a `keras\.layers\.Layer`"):
        MaskedLayer("This is not a valid Keras layer.")


@pytest.mark.filterwarnings("ignore:.*does not move masks")
def test_weights_of_the_wrapped_layer_stay_zero(harness):
    """The harness trains the layer in an ordinary model."""
    layer = MaskedLayer(k.Dense(8), sparsity=0.5, seed=1)
    layer.build((None, 6))
    mask = layer.weights[-1].numpy()
    harness.run_layer_test(
        lambda **_: layer, {}, input_shape=(2, 6), run_mixed_precision_check=False
    )
    np.testing.assert_array_equal(layer.weights[-1], mask)
    assert (layer.layer.kernel.numpy()[~mask] == 0).all()
