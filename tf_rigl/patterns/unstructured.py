"""The unstructured pattern: every entry is a unit of its own."""

import math

import keras
import tensorflow as tf

from tf_rigl.patterns.base import Pattern


@keras.saving.register_keras_serializable(package="tf_rigl")
class Unstructured(Pattern):
    """Keeps or drops every entry by itself.

    Example:

    >>> Unstructured().units((3, 3, 16, 32))
    4608
    """

    def units(self, shape) -> int:
        """Returns the number of entries."""
        return math.prod(shape)

    def unit_scores(self, scores):
        """Returns the scores, flat."""
        return tf.reshape(scores, [-1])

    def unit_mask(self, mask):
        """Returns the mask, flat."""
        return tf.reshape(mask, [-1])

    def expand(self, units, shape):
        """Returns the units in the weight's shape."""
        return tf.reshape(units, shape)

    def __str__(self):
        return "unstructured"
