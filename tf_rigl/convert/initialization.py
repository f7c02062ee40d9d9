"""Initial weights that suit a mask: each unit's variance by the inputs that it really has."""

import keras
import numpy as np
import tensorflow as tf
from keras import initializers

from tf_rigl._base import notices
from tf_rigl.convert import trained
from tf_rigl.weights import maskable
from tf_rigl.weights.sparse_weight import set_all

KINDS = ("model", "sparse")


def scale(model):
    """Scales the random weights of a new sparse model to the fan-in that each unit has.

    A weight is left as it is if it does not look random, or if its initializer is not one of
    `keras.initializers.VarianceScaling` (Glorot, He, LeCun).

    Args:
        model: `tf_rigl.SparseModel`, whose masks are those of its beginning.
    """
    changed, left = False, []
    for item in model.masked_weights:
        if not item.is_sparse:
            continue
        initializer = trained.initializer_of(item)
        if not isinstance(initializer, initializers.VarianceScaling):
            left.append(f"{item.path!r} (no initializer with a fan)")
        elif trained.is_trained(item):
            left.append(f"{item.path!r} (trained)")
        else:
            mask = keras.ops.convert_to_numpy(item.mask)
            factors = np.broadcast_to(_factors(item, mask, initializer.mode), mask.shape)
            changed |= bool(np.any(factors[mask] != 1))
            value = item.dense() * tf.cast(factors, item.weight.dtype)
            set_all(item.replaced(tf.constant(mask), tf.constant(mask), value))
    if not changed:
        shown = f" Left as they are: {', '.join(left[:3])}." if left else ""
        notices.warn(
            "Argument `initialization='sparse'` changed no weight: it scales random weights under "
            f"masks with zeros, drawn by Glorot's, He's or LeCun's initializers.{shown}"
        )


def _factors(item, mask, mode):
    """Returns by what each entry of a weight is multiplied, an array that broadcasts to it.

    Args:
        item: `tf_rigl.weights.sparse_weight.SparseWeight`.
        mask: boolean array.
        mode: str, "fan_in", "fan_out" or "fan_avg".
    """
    sums = maskable.input_axes(item.layer, item.shape)
    found = maskable.axes(item.layer, item.shape) or ((-2,), (-1,))
    inputs = {axis % mask.ndim for axis in found[0]} if mask.ndim > 1 else {0}
    # An input feeds the outputs of all taps, but not those of other experts.
    outputs = tuple(axis for axis in range(mask.ndim) if axis not in inputs)
    taps = set(sums) - inputs
    fed = tuple(axis for axis in outputs if axis in taps or axis not in sums)
    stacked = set() if hasattr(item.layer, "kernel_size") else _stacked(mask.ndim, found)
    fed = tuple(axis for axis in fed if axis not in stacked)
    fan_in, fan_out = (np.sum(mask, axis=axes, keepdims=True) for axes in (sums, fed))
    dense_in, dense_out = (
        np.prod([mask.shape[axis] for axis in axes], dtype=float) for axes in (sums, fed)
    )
    if mode == "fan_in":
        return np.sqrt(dense_in / np.maximum(1, fan_in))
    if mode == "fan_out":
        return np.sqrt(dense_out / np.maximum(1, fan_out))
    return np.sqrt((dense_in + dense_out) / np.maximum(1, fan_in + fan_out))


def _stacked(rank, found):
    """Returns the axes that are neither inputs nor outputs."""
    return set(range(rank)) - {axis % rank for group in found for axis in group}
