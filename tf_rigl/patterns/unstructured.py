"""Every entry on its own."""

import math

import keras
import tensorflow as tf

from tf_rigl.patterns.base import Pattern


@keras.saving.register_keras_serializable(package="tf_rigl")
class Unstructured(Pattern):
    """Every entry on its own.

    Example:

    >>> Unstructured().units((3, 3, 16, 32))
    4608
    """

    def units(self, shape) -> int:
        """The number of entries."""
        return math.prod(shape)

    def unit_scores(self, scores):
        """The scores themselves."""
        return tf.reshape(scores, [-1])

    def unit_mask(self, mask):
        """The mask itself."""
        return tf.reshape(mask, [-1])

    def expand(self, units, shape):
        """The units themselves."""
        return tf.reshape(units, shape)

    def __str__(self):
        return "unstructured"
