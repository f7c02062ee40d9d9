"""Convolutions that store and compute only the active blocks of their kernel."""

import math
from typing import TYPE_CHECKING

import keras
import tensorflow as tf

from tf_rigl.block_sparse import convolution
from tf_rigl.block_sparse.layers import BlockSparseLayer

_ARGUMENTS = """

    A block covers all taps of the kernel: some input channels by some outputs, as in the pattern
    "channels_1x32". Each column of blocks computes as an ordinary convolution over the input
    channels of its blocks; a 1x1 convolution computes as `Dense` does.

    Args:
        *args, **kwargs: arguments of `keras.layers.{name}`, with `groups=1`. A
            `kernel_regularizer` gets the stored values, of shape (columns of blocks, blocks in
            each, rows, columns), where a block has a row for each tap of each channel.
        block_size, density, seed: as for `Dense`; the sizes of a block are in channels.

    Raises:
        ValueError: if `groups` is not 1.
    """


class Convolution(BlockSparseLayer):
    """Mixin of the block-sparse convolutions."""

    if TYPE_CHECKING:  # Of the layer.
        kernel_size: tuple[int, ...]
        data_format: str

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.groups != 1:
            raise ValueError(
                "Argument `groups` must be 1: each column of blocks has input channels of its "
                f"own already. Received: groups={self.groups}"
            )

    @property
    def tap_shape(self):
        """The sizes of the kernel's spatial axes."""
        return self.kernel_shape[:-2]

    @property
    def batch_axis(self):
        """The axis of the batch in what `_heard` gets."""
        return 1 if self.is_product else 0

    @property
    def is_product(self) -> bool:
        """Whether the layer multiplies the channels of each place by a matrix."""
        return math.prod(self.kernel_size) == 1 and self.data_format == "channels_last"

    def call(self, inputs):
        if self.is_product:
            return self._multiply(self._sampled(inputs), 1, [self.filters])
        rank = len(inputs.shape)
        first = self.data_format == "channels_first"
        x = tf.transpose(inputs, [0, *range(2, rank), 1]) if first else inputs
        x = self._padded(x)
        places = tf.convert_to_tensor(self.places)
        values = tf.convert_to_tensor(self.values)
        y = convolution.convolve(x, values, places, self.geometry, self._window)
        y = self._heard(x, y)
        if first:
            y = tf.transpose(y, [0, rank - 1, *range(1, rank - 1)])
        if self.bias is not None:
            # By Keras's own addition: where the last axis of "channels_first" outputs is as long as
            # the channels, Keras 3.15 adds along that one, and a stripped model would differ.
            shape = (1, -1, *[1] * (rank - 2)) if first else (*[1] * (rank - 1), -1)
            y = keras.ops.add(y, keras.ops.reshape(self.bias, shape))
        return self.activation(y)

    def _sampled(self, x):
        """Leaves out the places that the strides of a 1x1 convolution pass over."""
        if max(self.strides) == 1:
            return x
        return x[(slice(None), *(slice(None, None, stride) for stride in self.strides))]

    def _padded(self, x):
        """Pads for "causal", which no operation knows."""
        if self.padding != "causal":
            return x
        return tf.pad(x, [[0, 0], [self.dilation_rate[0] * (self.kernel_size[0] - 1), 0], [0, 0]])

    @property
    def _window(self):
        padding = "SAME" if self.padding == "same" else "VALID"
        return convolution.Window(self.tap_shape, self.strides, self.dilation_rate, padding)

    def gradient_strip(self, features, gradient, first=0, across=None):
        if self.is_product:
            return super().gradient_strip(features, gradient, first, across)
        arguments = features, gradient, self.geometry, self._window
        return convolution.gradient_strip(*arguments, first, across)


def _described(cls):
    name = cls.__name__
    cls.__doc__ = (
        f"A `keras.layers.{name}` that stores and computes only its active blocks."
        + _ARGUMENTS.format(name=name)
    )
    return cls


@keras.saving.register_keras_serializable(package="tf_rigl.block_sparse")
@_described
class Conv1D(Convolution, keras.layers.Conv1D):
    pass


@keras.saving.register_keras_serializable(package="tf_rigl.block_sparse")
@_described
class Conv2D(Convolution, keras.layers.Conv2D):
    pass


@keras.saving.register_keras_serializable(package="tf_rigl.block_sparse")
@_described
class Conv3D(Convolution, keras.layers.Conv3D):
    pass
