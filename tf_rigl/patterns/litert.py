"""The pattern that LiteRT has fast kernels for, layer by layer."""

import keras

from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.block import Block
from tf_rigl.patterns.layout import Layout
from tf_rigl.patterns.unstructured import Unstructured

# Layers whose kernel LiteRT multiplies by as a matrix of inputs by outputs.
MATRICES = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.SimpleRNNCell,
    keras.layers.GRUCell,
    keras.layers.LSTMCell,
)


@keras.saving.register_keras_serializable(package="tf_rigl")
class LiteRT(Pattern):
    """For each layer the pattern that LiteRT runs fast, where there is one.

    Layers that multiply by a matrix (`Dense`, `EinsumDense`, the projections of attention
    and recurrent cells) get blocks of 16 inputs, or of 4 where 16 does not divide their
    inputs. All other weights, and those whose inputs 4 does not divide, are unstructured,
    which makes the file smaller but no faster. `tf_rigl.report` shows which got which.

    Example:

    >>> layer = keras.layers.Dense(10)
    >>> str(LiteRT().fitted(layer, (300, 10), ((0,), (1,))))
    'block_4x1'
    """

    def fitted(self, layer, shape, axes):
        """The pattern for one weight."""
        if isinstance(layer, MATRICES):
            matrices, inputs, _ = Layout(tuple(shape), axes).size
            for rows in (16, 4):
                if matrices == 1 and inputs % rows == 0:
                    return Block(rows, 1).fitted(layer, shape, axes)
        return Unstructured()

    def __str__(self):
        return "litert"
