"""Single weights, the same number for each output."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_flag
from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.layout import Layout, as_axes
from tf_rigl.patterns.selection import evenly, top_k_mask


@keras.saving.register_keras_serializable(package="tf_rigl")
class ConstantFanIn(Pattern):
    """Single weights, kept or dropped so that each output has the same number of inputs.

    The inputs of a convolution's output are those of all taps together. The sparsity of a weight
    is rounded to whole numbers of inputs, at least one.

    Args:
        axes: the weight's input axes and its output axes, two tuples of int. Defaults to the
            last axis but one and the last axis. `tf_rigl.sparsify` sets it for layers whose
            kernels have another layout.
        taps: bool, whether all other axes belong to the inputs, as in a convolution. Otherwise
            they count as outputs, as the experts of a layer do.

    Raises:
        ValueError: if `axes` is not two tuples of int, or `taps` is no bool.

    Example:

    >>> scores = tf.constant([[9.0, 1.0], [8.0, 2.0], [7.0, 3.0]])
    >>> ConstantFanIn().select(scores, 2).numpy()
    array([[ True, False],
           [False, False],
           [False,  True]])

    Reference:

    - [Dynamic Sparse Training with Structured Sparsity](https://arxiv.org/abs/2305.02299).
    """

    constant_fan_in = True

    def __init__(self, axes=None, taps=True):
        self.axes = as_axes(axes)
        self.taps = check_flag("taps", taps)

    def fitted(self, layer, shape, axes):
        """Returns the same pattern along the axes of the weight."""
        del shape
        return type(self)(axes, hasattr(layer, "kernel_size"))

    def layout(self, shape) -> Layout:
        """Returns the layout of a weight of this shape as matrices of inputs by outputs."""
        return Layout(tuple(shape), self.axes, self.taps)

    def units(self, shape):
        """Returns the number of entries."""
        matrices, inputs, outputs = self.layout(shape).size
        return matrices * inputs * outputs

    def step(self, shape):
        """Returns the number of outputs."""
        matrices, _, outputs = self.layout(shape).size
        return matrices * outputs

    def select_units(self, scores, count, allowed, kept, shape):
        """Selects the `count` best units, the same number for each output with those kept."""
        return evenly(scores, count, allowed, kept, self.layout(shape).size)

    def keep(self, scores, count, mask):
        """Selects the best units of a mask, whatever their output; growing fills the outputs."""
        return top_k_mask(scores, count, among=mask)

    def unit_scores(self, scores):
        return tf.reshape(self.layout(scores.shape).matrices(scores), [-1])

    def unit_mask(self, mask):
        return tf.reshape(self.layout(mask.shape).matrices(mask), [-1])

    def expand(self, units, shape):
        layout = self.layout(shape)
        return layout.restore(tf.reshape(units, layout.size))

    def get_config(self):
        return {"axes": self.axes, "taps": self.taps}

    def __str__(self):
        return "constant_fan_in"
