"""Convolution of images with a block-sparse kernel, and the gradient of its columns.

A block covers all taps: some input channels by some outputs. So each column of blocks is an
ordinary convolution over the input channels that its blocks cover. Images have their channels
last.
"""

import dataclasses
import math

import tensorflow as tf

from tf_rigl._base.keras_internals import in_xla

_FEW = 256  # Channels up to which a product with zeros and ones is faster than a sum by index.


@dataclasses.dataclass(frozen=True)
class Window:
    """How a kernel moves over images.

    Attributes:
        taps: tuple of int, the sizes of the kernel's spatial axes.
        strides, dilations: tuple of int, one for each of these axes.
        padding: str, "VALID" or "SAME".
    """

    taps: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: str

    def __call__(self, images, kernel):
        """Convolves images of shape (batch, *sizes, inputs) with a dense kernel."""
        # Eager gradients of three-dimensional convolutions need to be told the format.
        order = ("NWC", "NHWC", "NDHWC")[len(self.taps) - 1]
        sizes = self.strides, self.padding, order, self.dilations
        return tf.nn.convolution(images, kernel, *sizes)


def convolve(images, values, places, geometry, window):
    """Convolves images with a block-sparse kernel.

    Args:
        images: float tensor of shape (batch, *sizes, channels).
        values, places: see `Geometry`. A block has `rows` of its channels times the taps, with
            the taps of a channel next to each other.
        geometry: `Geometry`.
        window: `Window`.

    Returns:
        A tensor of shape (batch, *sizes, outputs).
    """
    across = geometry.across
    gathered = _channels(images, places, geometry, geometry.rows // math.prod(window.taps))
    kernels = tf.unstack(_kernels(values, window.taps), axis=0)
    pairs = zip(tf.split(gathered, across, axis=-1), kernels, strict=True)
    columns = [window(*pair) for pair in pairs]
    y = columns[0] if across == 1 else tf.concat(columns, axis=-1)
    return y[..., : geometry.outputs] if y.shape[-1] > geometry.outputs else y


def gradient_strip(images, dy, geometry, window, first=0, across=None):
    """Returns the gradient of some columns of blocks of a dense kernel.

    Args:
        images: float tensor of shape (batch, *sizes, channels).
        dy: float tensor of shape (batch, *sizes, outputs), the gradient of the product.
        geometry: `Geometry`.
        window: `Window`.
        first: int or int32 scalar tensor, the first column of blocks.
        across: int, how many of them; None for all. They may go beyond the kernel.

    Returns:
        A tensor of shape (inputs, across * cols).
    """
    across = geometry.across if across is None else across
    width = across * geometry.cols
    whole = -(-geometry.across // across) * width
    dy = _padded(dy, whole)
    if whole > width:
        dy = tf.gather(dy, first * geometry.cols + tf.range(width), axis=-1)
    channels = images.shape[-1]
    zeros = tf.zeros([*window.taps, channels, width], images.dtype)
    with tf.GradientTape() as tape:
        tape.watch(zeros)
        y = window(images, zeros)
    gradient = tape.gradient(y, zeros, output_gradients=tf.cast(dy, y.dtype))
    rank = len(window.taps)
    gradient = tf.transpose(gradient, [rank, *range(rank), rank + 1])  # Taps after the channel.
    return tf.reshape(gradient, [geometry.inputs, width])


def _kernels(values, taps):
    """Returns the kernels of all columns, a tensor of shape (across, *taps, channels, cols)."""
    across, active, rows, cols = values.shape
    channels, rank = active * rows // math.prod(taps), len(taps)
    kernels = tf.reshape(values, [across, channels, *taps, cols])
    return tf.transpose(kernels, [0, *range(2, rank + 2), 1, rank + 2])


def _channels(images, places, geometry, height):
    """Gathers the channels of all blocks, column by column, along the last axis.

    Args:
        images: tensor of shape (batch, *sizes, channels).
        places: int tensor of shape (across, active), the block row of each block.
        geometry: `Geometry`.
        height: int, the channels of a block.
    """
    lead, channels = tf.shape(images)[:-1], images.shape[-1]
    count = geometry.across * geometry.active

    @tf.custom_gradient
    def gather(images):
        runs = _padded(images, geometry.down * height)
        if height > 1:
            runs = tf.reshape(runs, tf.concat([lead, [geometry.down, height]], 0))
        found = tf.gather(runs, tf.reshape(places, [-1]), axis=len(images.shape) - 1)
        found = tf.reshape(found, tf.concat([lead, [count * height]], 0))

        def gradient(dy):
            parts = tf.reshape(dy, [-1, count * height])
            order = tf.range(height) + tf.reshape(places, [-1, 1]) * height
            total = _sums(parts, tf.reshape(order, [-1]), geometry.down * height)
            return tf.reshape(total[:, :channels], tf.shape(images))

        return found, gradient

    return gather(tf.ensure_shape(images, images.shape))


def _sums(parts, channels, count):
    """Sums columns by the channel that each belongs to; returns `count` columns."""
    if count <= _FEW:
        return tf.matmul(parts, tf.one_hot(channels, count, dtype=parts.dtype))
    parts = tf.transpose(parts)
    if in_xla():
        return tf.transpose(tf.math.unsorted_segment_sum(parts, channels, count))
    order = tf.argsort(channels, stable=True)
    sums = tf.sparse.segment_sum(parts, order, tf.gather(channels, order), num_segments=count)
    return tf.transpose(sums)


def _padded(tensor, size):
    """Pads the last axis of a tensor with zeros up to `size`."""
    beyond = size - tensor.shape[-1]
    return tf.pad(tensor, [[0, 0]] * (len(tensor.shape) - 1) + [[0, beyond]]) if beyond else tensor
