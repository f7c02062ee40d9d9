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


def runs(kinds):
    """Returns the runs of equal numbers, as a list of (number, begin, end)."""
    ends = [*(np.flatnonzero(np.diff(kinds)) + 1).tolist(), len(kinds)]
    begins = [0, *ends[:-1]]
    return [(int(kinds[begin]), begin, end) for begin, end in zip(begins, ends, strict=True)]


def of_array(kind):
    """Returns the activation of a number in `NAMES` as a function of NumPy arrays."""
    return ACTIVATIONS[NAMES[kind]][0]


def of_tensor(kind):
    """Returns the activation of a number in `NAMES` as a function of tensors."""
    return ACTIVATIONS[NAMES[kind]][1]
