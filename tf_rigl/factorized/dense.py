"""Factorized layers that multiply by a matrix."""

import keras
import numpy as np
import tensorflow as tf

from tf_rigl.factorized.base import Factorized


@keras.saving.register_keras_serializable(package="tf_rigl.factorized")
class Dense(Factorized):
    """`keras.layers.Dense` whose kernel is a product: `activation((x U) V + b)`.

    Args:
        units: int, the number of outputs.
        *args, **kwargs: further arguments of `keras.layers.Dense`, and `rank`, `scale`,
            `initialization` and `decay`, see `Factorized`.

    Raises:
        ValueError: as for `Factorized`.

    Example:

    >>> layer = tf_rigl.factorized.Dense(64, scale=0.25, decay=1e-4)
    >>> layer.build((None, 100))
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(100, 16), (16, 64), (64,)]

    Reference:

    - [Initialization and Regularization of Factorized Neural
      Layers](https://arxiv.org/abs/2105.01029), section 3.
    """

    ordinary = keras.layers.Dense

    def kernel_shape(self, input_shape) -> tuple:
        """Returns (inputs, units)."""
        return input_shape[-1], self._options["units"]

    def matrix(self, kernel):
        """Returns the kernel, which is a matrix."""
        return kernel

    kernel_of = matrix

    def parts(self, rank, first, second):
        """Returns two dense layers."""
        units = self._options["units"]
        return keras.layers.Dense(rank, use_bias=False, **first), keras.layers.Dense(
            units, **second
        )

    def factor(self, number, kernel):
        """Returns the kernel, which is a matrix."""
        return kernel

    def kernel_of_factor(self, number, factor, shape):
        """Returns the factor, which is a kernel."""
        return factor

    def product_call(self, inputs, kernel):
        """Multiplies by a kernel."""
        return keras.ops.matmul(inputs, keras.ops.cast(kernel, self.compute_dtype))


@keras.saving.register_keras_serializable(package="tf_rigl.factorized")
class EinsumDense(Factorized):
    """`keras.layers.EinsumDense` whose kernel is a product, for each index of shared axes.

    Axes of the kernel that the inputs have are its inputs, those that the outputs have its
    outputs; an axis that both have (such as the experts of a mixture) numbers matrices.

    Args:
        equation, output_shape, *args, **kwargs: those of `keras.layers.EinsumDense`, and `rank`,
            `scale`, `initialization` and `decay`, see `Factorized`.

    Raises:
        ValueError: as for `Factorized`; or if the kernel has no inputs or no outputs.

    Example:

    >>> layer = tf_rigl.factorized.EinsumDense("abc,cde->abde", (None, 4, 8), rank=2)
    >>> layer.build((None, 5, 16))
    >>> [tuple(weight.shape) for weight in layer.weights]
    [(16, 2), (2, 4, 8)]

    Reference:

    - [Initialization and Regularization of Factorized Neural
      Layers](https://arxiv.org/abs/2105.01029), section 3.
    """

    ordinary = keras.layers.EinsumDense

    def _check(self, template):
        super()._check(template)
        spec, outputs = template.equation.replace(" ", "").split("->")
        self._x, self._k = spec.split(",")
        self._y = outputs
        self._shared = "".join(c for c in self._k if c in self._x and c in self._y)
        self._in = "".join(c for c in self._k if c not in self._y)
        self._out = "".join(c for c in self._k if c not in self._x)
        if not self._in or not self._out:
            raise ValueError(
                "Argument `equation` must sum over at least one axis of the kernel, and give the "
                f"outputs at least another one. Received: equation={template.equation!r}"
            )

    def kernel_shape(self, input_shape) -> tuple:
        """Returns the shape that `keras.layers.EinsumDense` gives its kernel."""
        template = self.ordinary.from_config(self._options)
        template.build(input_shape)
        self._sizes = dict(zip(self._k, template.kernel.shape, strict=True))
        return tuple(template.kernel.shape)

    def _size(self, letters):
        return int(np.prod([self._sizes[c] for c in letters], initial=1))

    def matrix(self, kernel):
        """Brings shared axes first, then all inputs, then all outputs."""
        order = [self._k.index(c) for c in self._shared + self._in + self._out]
        stack = [self._sizes[c] for c in self._shared]
        moved = np.transpose(kernel, order)
        return moved.reshape(*stack, self._size(self._in), self._size(self._out))

    def kernel_of(self, matrix):
        """Makes matrices a kernel."""
        letters = self._shared + self._in + self._out
        matrix = tf.reshape(matrix, [self._sizes[c] for c in letters])
        return tf.transpose(matrix, [letters.index(c) for c in self._k])

    def parts(self, rank, first, second):
        """Returns two layers; between them, the axis of the rank is the last one."""
        name = next(c for c in "rstuvwz" if c not in self._x + self._k + self._y)
        between = "".join(c for c in self._x if c not in self._in) + name
        one = f"{self._x},{self._shared}{self._in}{name}->{between}"
        other = f"{between},{self._shared}{name}{self._out}->{self._y}"
        free = between.replace("...", "")[(0 if between.startswith("...") else 1) : -1]
        options = self._options
        target, bias = options["output_shape"], options["bias_axes"]
        ends = [target] if isinstance(target, int) else target
        letters = self._y.replace("...", "")[-len(ends) :]
        sizes = {**dict(zip(letters, ends, strict=True)), **self._sizes}
        shape = (*(sizes.get(c) for c in free), rank)
        return (
            keras.layers.EinsumDense(one, shape, **first),
            keras.layers.EinsumDense(other, target, bias_axes=bias, **second),
        )

    def factor(self, number, kernel):
        """Makes the kernel of a part matrices."""
        stack = [self._sizes[c] for c in self._shared]
        sides = [self._size(self._in), self.kernel_rank]
        if number:
            sides = [self.kernel_rank, self._size(self._out)]
        return tf.reshape(kernel, [*stack, *sides])

    def kernel_of_factor(self, number, factor, shape):
        """Makes a factor the kernel of a part."""
        return np.reshape(factor, shape)

    def product_call(self, inputs, kernel):
        """Runs the equation with a kernel."""
        equation = self._options["equation"]
        return keras.ops.einsum(equation, inputs, keras.ops.cast(kernel, self.compute_dtype))
