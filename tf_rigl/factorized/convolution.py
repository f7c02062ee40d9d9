"""Factorized convolutions: along rows, then along columns."""

import keras
import numpy as np
import tensorflow as tf

from tf_rigl.factorized.base import Factorized


@keras.saving.register_keras_serializable(package="tf_rigl.factorized")
class Conv2D(Factorized):
    """`keras.layers.Conv2D` as a convolution of 1 x width to few channels, then height x 1.

    The kernel is a matrix of (width * channels in) by (height * channels out).

    Args:
        filters, kernel_size, *args, **kwargs: those of `keras.layers.Conv2D`, with `groups=1`;
            and `rank`, `scale`, `initialization` and `decay`, see `Factorized`.

    Raises:
        ValueError: as for `Factorized`, or if `groups` is not 1.

    Example:

    >>> layer = tf_rigl.factorized.Conv2D(64, 3, scale=0.1, padding="same", use_bias=False)
    >>> layer.build((None, 28, 28, 32))
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(1, 3, 32, 10), (3, 1, 10, 64)]

    Reference:

    - [Initialization and Regularization of Factorized Neural
      Layers](https://arxiv.org/abs/2105.01029), section 3.
    """

    ordinary = keras.layers.Conv2D

    def _check(self, template):
        super()._check(template)
        if template.groups != 1:
            raise ValueError(f"Argument `groups` must be 1. Received: groups={template.groups}")

    def kernel_shape(self, input_shape) -> tuple:
        """Returns (height, width, channels in, channels out)."""
        axis = 1 if self._options["data_format"] == "channels_first" else -1
        self._sides = *self._options["kernel_size"], input_shape[axis], self._options["filters"]
        return self._sides

    def matrix(self, kernel):
        """Returns a matrix of (width, channels in) by (height, channels out)."""
        height, width, inputs, outputs = self._sides
        return np.transpose(kernel, (1, 2, 0, 3)).reshape(width * inputs, height * outputs)

    def kernel_of(self, matrix):
        """Makes a matrix a kernel."""
        height, width, inputs, outputs = self._sides
        return tf.transpose(tf.reshape(matrix, (width, inputs, height, outputs)), (2, 0, 1, 3))

    def parts(self, rank, first, second):
        """Returns a convolution along rows and one along columns."""
        options = self._options
        both = {"padding": options["padding"], "data_format": options["data_format"]}
        (height, width), (down, along) = options["kernel_size"], options["strides"]
        dilations = options["dilation_rate"]
        return (
            keras.layers.Conv2D(
                rank,
                (1, width),
                strides=(1, along),
                dilation_rate=(1, dilations[1]),
                use_bias=False,
                **both,
                **first,
            ),
            keras.layers.Conv2D(
                options["filters"],
                (height, 1),
                strides=(down, 1),
                dilation_rate=(dilations[0], 1),
                **both,
                **second,
            ),
        )

    def factor(self, number, kernel):
        """Makes the kernel of a part a matrix."""
        height, width, inputs, outputs = self._sides
        if number == 0:
            return tf.reshape(kernel, (width * inputs, -1))
        return tf.reshape(tf.transpose(kernel[:, 0], (1, 0, 2)), (-1, height * outputs))

    def kernel_of_factor(self, number, factor, shape):
        """Makes a factor the kernel of a part."""
        if number == 0:
            return np.reshape(factor, shape)
        height, _, _, outputs = self._sides
        return np.transpose(factor.reshape(-1, height, outputs), (1, 0, 2))[:, None]

    def product_call(self, inputs, kernel):
        """Runs one convolution."""
        options = self._options
        return keras.ops.conv(
            inputs,
            keras.ops.cast(kernel, self.compute_dtype),
            strides=options["strides"],
            padding=options["padding"],
            dilation_rate=options["dilation_rate"],
            data_format=options["data_format"],
        )

    def with_bias(self, outputs, bias):
        """Adds the bias to each channel."""
        is_first = self._options["data_format"] == "channels_first"
        return outputs + (keras.ops.reshape(bias, (1, -1, 1, 1)) if is_first else bias)
