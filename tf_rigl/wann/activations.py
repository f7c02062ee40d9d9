"""The activations that nodes choose from, for arrays and for tensors of Keras."""

import keras
import numpy as np

# Name: function of a NumPy array, function of a tensor.
ACTIVATIONS = {
    "linear": (lambda x: x, lambda x: x),
    "step": (lambda x: (x > 0).astype(x.dtype), lambda x: keras.ops.cast(x > 0, x.dtype)),
    "sin": (lambda x: np.sin(np.pi * x), lambda x: keras.ops.sin(np.pi * x)),
    "gaussian": (lambda x: np.exp(-(x**2) / 2), lambda x: keras.ops.exp(-(x**2) / 2)),
    "tanh": (np.tanh, keras.ops.tanh),
    "sigmoid": (lambda x: 0.5 + 0.5 * np.tanh(x / 2), keras.ops.sigmoid),
    "inverse": (np.negative, keras.ops.negative),
    "absolute": (np.abs, keras.ops.absolute),
    "relu": (lambda x: np.maximum(x, 0), keras.ops.relu),
    "cos": (lambda x: np.cos(np.pi * x), lambda x: keras.ops.cos(np.pi * x)),
}
NAMES = tuple(ACTIVATIONS)
LINEAR = NAMES.index("linear")


def apply(values, kinds):
    """Applies to each row its activation, in place.

    Args:
        values: float array of shape (rows, examples).
        kinds: int array of shape (rows,), numbers in `NAMES`.
    """
    for kind in np.unique(kinds):
        if kind != LINEAR:
            rows = kinds == kind
            values[rows] = ACTIVATIONS[NAMES[kind]][0](values[rows])
