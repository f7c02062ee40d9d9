"""For each layer, the pattern for which LiteRT has a fast kernel."""

import keras

from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.block import Block
from tf_rigl.patterns.layout import Layout
from tf_rigl.patterns.unstructured import Unstructured

# Layers for which LiteRT computes a product with a matrix of inputs by outputs.
MATRICES = (
    keras.layers.Dense,
    keras.layers.EinsumDense,
    keras.layers.SimpleRNNCell,
    keras.layers.GRUCell,
    keras.layers.LSTMCell,
)


@keras.saving.register_keras_serializable(package="tf_rigl")
class LiteRT(Pattern):
    """Gives each layer the pattern that LiteRT runs fast, if there is one.

    Layers that multiply by a matrix (`Dense`, `EinsumDense`, the projections of attention and
    recurrent cells) get blocks of 16 inputs by 1 output. If 16 does not divide the number of
    inputs, they get blocks of 4 by 1. All other weights are unstructured: the file becomes
    smaller, but the model does not run faster. `tf_rigl.report` shows the pattern of each weight.

    Example:

    >>> layer = keras.layers.Dense(10)
    >>> str(LiteRT().fitted(layer, (300, 10), ((0,), (1,))))
    'block_4x1'
    """

    def fitted(self, layer, shape, axes):
        """Returns a `Block` or `Unstructured` for one weight; see `Pattern.fitted`."""
        if isinstance(layer, MATRICES):
            matrices, inputs, _ = Layout(tuple(shape), axes).size
            for rows in (16, 4):
                if matrices == 1 and inputs % rows == 0:
                    return Block(rows, 1).fitted(layer, shape, axes)
        return Unstructured()

    def __str__(self):
        return "litert"
