"""Keras's own test of layers, on all block-sparse layers."""

import keras
import numpy as np
import pytest

from tests.weights.test_keras_harness import make_harness  # noqa: F401, a fixture
from tf_rigl import block_sparse

BLOCKS = {"block_size": 2, "density": 0.5, "seed": 0}
ATTENTION = dict.fromkeys(("query", "key", "value", "attention_output"), BLOCKS)

# The class, its arguments, the shapes of input and output, and further arguments of the harness.
LAYERS = {
    "Dense": ("Dense", {"units": 8}, (2, 6), (2, 8), {}),
    "Dense-3d": ("Dense", {"units": 8, "activation": "softmax"}, (2, 5, 6), (2, 5, 8), {}),
    "Dense-no-bias": ("Dense", {"units": 7, "use_bias": False}, (2, 5), (2, 7), {}),
    "Dense-regularized": (
        "Dense",
        {"units": 8, "kernel_regularizer": "l2", "activity_regularizer": "l2"},
        (2, 6),
        (2, 8),
        {"expected_num_losses": 2},
    ),
    "EinsumDense": (
        "EinsumDense",
        {"equation": "abc,cd->abd", "output_shape": (5, 8), "bias_axes": "d"},
        (2, 5, 6),
        (2, 5, 8),
        {},
    ),
    "EinsumDense-heads": (
        "EinsumDense",
        {"equation": "abc,cde->abde", "output_shape": (5, 2, 4)},
        (2, 5, 6),
        (2, 5, 2, 4),
        {},
    ),
    "Conv2D": ("Conv2D", {"filters": 8, "kernel_size": 1}, (2, 5, 5, 6), (2, 5, 5, 8), {}),
    "Conv1D": (
        "Conv1D",
        {"filters": 8, "kernel_size": 3, "padding": "causal", "kernel_regularizer": "l2"},
        (2, 5, 6),
        (2, 5, 8),
        {"expected_num_losses": 1},
    ),
    "Conv2D-3x3": (
        "Conv2D",
        {"filters": 7, "kernel_size": 3, "strides": 2, "padding": "same"},
        (2, 5, 5, 6),
        (2, 3, 3, 7),
        {},
    ),
    "Conv3D": ("Conv3D", {"filters": 8, "kernel_size": 2}, (2, 3, 4, 3, 6), (2, 2, 3, 2, 8), {}),
    "MultiHeadAttention": (
        "MultiHeadAttention",
        {"num_heads": 2, "key_dim": 4, "blocks": ATTENTION},
        {"query_shape": (2, 5, 8), "value_shape": (2, 4, 8)},
        (2, 5, 8),
        {"run_training_check": False, "supports_masking": True},
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(harness, name):
    cls, arguments, shape, output, extra = LAYERS[name]
    own = {} if "blocks" in arguments else BLOCKS
    harness.run_layer_test(
        getattr(block_sparse, cls),
        init_kwargs={**arguments, **own},
        input_shape=shape,
        expected_output_shape=output,
        **extra,
    )


def test_every_layer_is_tested():
    classes = {
        name
        for name, value in vars(block_sparse).items()
        if isinstance(value, type) and issubclass(value, keras.layers.Layer)
    }
    assert classes == {cls for cls, *_ in LAYERS.values()}


def test_expected_output(harness):
    """With a kernel of ones, each output is the sum of the inputs of its blocks."""
    harness.run_layer_test(
        block_sparse.Dense,
        init_kwargs={"units": 2, "kernel_initializer": "ones", **BLOCKS, "density": 1.0},
        input_data=np.arange(8.0, dtype="float32").reshape(2, 4),
        expected_output=keras.ops.convert_to_tensor([[6.0, 6.0], [22.0, 22.0]]),
    )
