"""For each layer, the finest blocks of which the compact form is fast."""

import math

import keras

from tf_rigl._base.arguments import check_flag
from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.block import Block
from tf_rigl.patterns.layout import Layout
from tf_rigl.patterns.unstructured import Unstructured

SMALL = 2**12  # Entries below which the steps around a product cost more than it.
_MATRICES = (keras.layers.Dense, keras.layers.EinsumDense)
_CONVOLUTIONS = (keras.layers.Conv1D, keras.layers.Conv2D, keras.layers.Conv3D)
_WIDTH = 32  # Outputs of a block that the kernels of processors need.
_POINTWISE = (8, 64)  # A 1x1 convolution does too little with an input that it gathers singly.


@keras.saving.register_keras_serializable(package="tf_rigl")
class Compact(Pattern):
    """Gives each layer the finest blocks of which `tf_rigl.compact` makes a fast layer.

    Dense layers and convolutions of several taps get blocks of one input (channel) by 32
    outputs: each group of 32 outputs chooses its inputs singly. 1x1 convolutions get 8 by 64
    channels. Layers that are small, or have fewer outputs than a block, are unstructured, as are
    those without a compact form. The rule is from measurements in LiteRT. `tf_rigl.report` shows
    the pattern of each weight.

    Args:
        constant_fan_in: bool, as for `Block`. `compute="sparse"` sets it.

    Example:

    >>> layer = keras.layers.Conv2D(64, 3)
    >>> str(Compact().fitted(layer, (3, 3, 32, 64), ((2,), (3,))))
    'channels_1x32'
    """

    def __init__(self, constant_fan_in=False):
        self.constant_fan_in = check_flag("constant_fan_in", constant_fan_in)

    def fitted(self, layer, shape, axes):
        """Returns a `Block` or `Unstructured` for one weight; see `Pattern.fitted`."""
        taps = getattr(layer, "kernel_size", ())
        is_pointwise = bool(taps) and math.prod(taps) == 1
        rows, cols = _POINTWISE if is_pointwise else (1, _WIDTH)
        matrices, inputs, outputs = Layout(tuple(shape), axes).size
        plain = isinstance(layer, _MATRICES) and matrices == 1
        plain |= isinstance(layer, _CONVOLUTIONS) and layer.groups == 1 and len(shape) > 2
        if not plain or math.prod(shape) < SMALL or outputs < cols or inputs < 2 * rows:
            return Unstructured()
        blocks = Block(rows, cols, taps="all", constant_fan_in=self.constant_fan_in)
        return blocks.fitted(layer, shape, axes)

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {"constant_fan_in": self.constant_fan_in}

    def __str__(self):
        return "constant_fan_in_compact" if self.constant_fan_in else "compact"
