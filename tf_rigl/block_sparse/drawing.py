"""The initial places and values of blocks."""

import math

import keras
import numpy as np
import tensorflow as tf

from tf_rigl.block_sparse.strips import LIMIT

# Initializers whose values do not depend on the shape.
_SHAPELESS = (
    keras.initializers.Constant,
    keras.initializers.Ones,
    keras.initializers.RandomNormal,
    keras.initializers.RandomUniform,
    keras.initializers.TruncatedNormal,
    keras.initializers.Zeros,
)
# The standard deviation of a normal distribution that is cut off at two standard deviations.
_CUT_OFF = 0.87962566103423978


def places(geometry, seed) -> np.ndarray:
    """Draws the places of blocks at random, see `Geometry`; `active` in each column."""
    rng = np.random.default_rng(seed)
    found = np.empty((geometry.across, geometry.active), "int32")
    rows = max(1, LIMIT // geometry.down)  # Columns at a time; one after the other draws the same.
    for first in range(0, geometry.across, rows):
        chosen = slice(first, min(first + rows, geometry.across))
        order = np.argsort(rng.random((chosen.stop - first, geometry.down)), axis=1)
        found[chosen] = np.sort(order[:, : geometry.active], axis=1)
    return found


def values(geometry, places, initializer, shape, as_matrix, dtype):
    """Draws the values of blocks, from the distribution that a dense kernel has.

    A small kernel is drawn as a whole. Of a larger one only the blocks are drawn, unless the
    initializer needs the whole (`Orthogonal`, or one that is not of Keras).

    Args:
        geometry: `Geometry`.
        places: int array, see `Geometry`.
        initializer: a Keras initializer.
        shape: tuple of int, the shape of the dense kernel.
        as_matrix: function that makes a matrix of a dense kernel.
        dtype: str.
    """
    own = None if math.prod(shape) <= LIMIT else _of_blocks(initializer, shape)
    if own is None:
        kernel = tf.cast(initializer(shape, dtype=dtype), dtype)
        return geometry.pack(as_matrix(kernel), places)
    drawn = tf.cast(own(geometry.values_shape, dtype=dtype), dtype)
    return tf.where(geometry.inside(places), drawn, tf.zeros([], dtype))


def _of_blocks(initializer, shape):
    """Returns an initializer of the same distribution for any shape, or None."""
    if isinstance(initializer, _SHAPELESS):
        return initializer
    if not isinstance(initializer, keras.initializers.VarianceScaling):
        return None
    field = math.prod(shape[:-2])
    fans = {"fan_in": shape[-2] * field, "fan_out": shape[-1] * field}
    fans["fan_avg"] = sum(fans.values()) / 2
    scale = initializer.scale / max(1.0, fans[initializer.mode])
    seed = initializer.seed
    if initializer.distribution == "uniform":
        limit = math.sqrt(3 * scale)
        return keras.initializers.RandomUniform(-limit, limit, seed=seed)
    if initializer.distribution == "untruncated_normal":
        return keras.initializers.RandomNormal(0.0, math.sqrt(scale), seed=seed)
    return keras.initializers.TruncatedNormal(0.0, math.sqrt(scale) / _CUT_OFF, seed=seed)
