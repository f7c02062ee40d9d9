"""The pattern that LiteRT has fast kernels for, layer by layer."""

import keras

from tf_rigl.patterns._layout import Layout
from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.block import Block
from tf_rigl.patterns.unstructured import Unstructured


@keras.saving.register_keras_serializable(package="tf_rigl")
class LiteRT(Pattern):
    """For each layer the pattern that LiteRT runs fast, where there is one.

    `Dense` gets blocks of 16 inputs, or of 4 where 16 does not divide its inputs; all other
    weights, and a `Dense` whose inputs 4 does not divide, are unstructured, which makes the
    file smaller but no faster. `tf_rigl.report` shows which got which.

    Example:

    >>> layer = keras.layers.Dense(10)
    >>> str(LiteRT().fitted(layer, (300, 10), ((0,), (1,))))
    'block_4x1'
    """

    def fitted(self, layer, shape, axes):
        """The pattern for one weight."""
        if isinstance(layer, keras.layers.Dense):
            _, inputs, _ = Layout(tuple(shape), axes).size
            for rows in (16, 4):
                if inputs % rows == 0:
                    return Block(rows, 1).fitted(layer, shape, axes)
        return Unstructured()

    def __str__(self):
        return "litert"
