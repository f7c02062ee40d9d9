"""Estimates how large a LiteRT file is with each quantization, and which one is the smallest."""

import math

import keras
import numpy as np
from keras import layers

from tf_rigl._base import keras_internals
from tf_rigl.export import _encoding
from tf_rigl.patterns.layout import Layout
from tf_rigl.patterns.litert import MATRICES
from tf_rigl.weights import maskable
from tf_rigl.weights.masks import Masks

# Layers whose sparse weights LiteRT unpacks when it loads a file.
UNPACKED = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.Embedding,
)
# Name -> the type of kernels, and the bytes of an entry of a bias.
_QUANTIZATIONS = {
    "float32": (np.float32, 4),
    "float16": (np.float16, 2),
    "dynamic": (np.int8, 4),
    "int8": (np.int8, 4),
}


def stored_as(layer, values):
    """Returns a weight as LiteRT stores it: a matrix has the shape (outputs, inputs).

    None if LiteRT has no sparse form of it, or if it is a stack of matrices.
    """
    if isinstance(layer, MATRICES):
        matrices = Layout(values.shape, maskable.axes(layer, values.shape)).matrices(values).numpy()
        return np.ascontiguousarray(matrices[0].T) if len(matrices) == 1 else None
    return values if isinstance(layer, UNPACKED) else None


def weight_bytes(model) -> dict[str, int]:
    """Estimates the bytes of a model's weights in a LiteRT file, for each quantization.

    Args:
        model: a built `keras.Model` of ordinary layers.

    Returns:
        A dict of "float32", "float16", "dynamic" and "int8" to a number of bytes.
    """
    found = maskable.find(model, include_self=False)
    known, total = {id(each.weight) for each in found}, dict.fromkeys(_QUANTIZATIONS, 0)
    arrays = [(each.layer, keras.ops.convert_to_numpy(each.weight)) for each in found]
    rest = [variable.shape for variable in _others(model) if id(variable) not in known]
    for name, (dtype, of_bias) in _QUANTIZATIONS.items():
        for layer, values in arrays:
            total[name] += _size(layer, values, name, dtype)
        for shape in rest:
            each = of_bias if len(shape) < 2 else np.dtype(dtype).itemsize
            total[name] += each * math.prod(shape)
    return total


def _others(model):
    """Yields the variables that a file holds; of normalisation, one that folds into a bias."""
    for layer in keras_internals.all_layers(model):
        folds = isinstance(layer, layers.BatchNormalization)
        own = [] if isinstance(layer, Masks) else keras_internals.own_variables(layer)
        own = [each for each in own if keras.backend.is_float_dtype(each.dtype)]
        yield from own[:1] if folds else own


def _size(layer, values, quantization, dtype):
    """Returns the bytes of a weight in a file."""
    # Of int8 weights only the places of zeros are known here, which is enough.
    typed = values.astype(dtype) if quantization.startswith("float") else values != 0
    stored = stored_as(layer, typed.astype(dtype))
    if stored is None or quantization == "dynamic":
        return typed.size * np.dtype(dtype).itemsize
    ways = _encoding.encodings(stored)
    if quantization == "int8" and isinstance(layer, layers.Embedding):
        ways = []
    elif quantization == "int8" and isinstance(layer, MATRICES):
        ways = [way for way in ways if _encoding.suits_kernel(way)]
    return min([way.size for way in ways if _encoding.is_smaller(way)], default=stored.nbytes)


def smallest(model, quantization=None) -> str:
    """Returns a sentence on the smallest file, or "" if a quantization gives it.

    Args:
        model: as for `weight_bytes`.
        quantization: as in `tf_rigl.export_tflite`.
    """
    sizes, own = weight_bytes(model), quantization or "float32"
    best = min(sizes, key=lambda name: sizes[name])
    if sizes[best] == sizes[own]:
        return ""
    return (
        f"The smallest file is that of {spelled(best)}: its weights take about {sizes[best]:,} "
        f"bytes, those of this file {sizes[own]:,}."
    )


def spelled(name) -> str:
    """Returns the argument of `tf_rigl.export_tflite` that a name in `weight_bytes` stands for."""
    return f"quantization={None if name == 'float32' else name!r}"
