"""Products of two matrices: what a spectral initialisation draws, and the Frobenius decay."""

import keras
import numpy as np
import tensorflow as tf


def split(matrix, rank):
    """Returns the two balanced factors of the best approximation of a rank.

    With the singular value decomposition `W = P S Q^T` they are `P_r sqrt(S_r)` and
    `sqrt(S_r) Q_r^T`.

    Args:
        matrix: float array of shape (..., inputs, outputs).
        rank: int. Beyond the number of inputs or that of outputs, factors are filled by zeros.

    Returns:
        Two float64 arrays of shapes (..., inputs, rank) and (..., rank, outputs).
    """
    left, values, right = np.linalg.svd(np.asarray(matrix, np.float64), full_matrices=False)
    root = np.sqrt(values[..., :rank])
    first, second = left[..., :rank] * root[..., None, :], root[..., None] * right[..., :rank, :]
    still, gap = [(0, 0)] * (first.ndim - 1), (0, max(0, rank - values.shape[-1]))
    return np.pad(first, [*still, gap]), np.pad(second, [*still[1:], gap, (0, 0)])


def squared_norm(first, second):
    """Returns the squared Frobenius norm of a product without making it.

    `||U V||^2 = trace((U^T U) (V V^T))`, which takes O(r^2 (m + n)) operations.

    Args:
        first: tensor U of shape (..., m, r).
        second: tensor V of shape (..., r, n).

    Returns:
        A scalar tensor, the sum over all matrices.
    """
    return tf.reduce_sum(
        tf.matmul(first, first, transpose_a=True) * tf.matmul(second, second, transpose_b=True)
    )


@keras.saving.register_keras_serializable(package="tf_rigl")
class FrobeniusDecay(keras.regularizers.Regularizer):
    """`decay / 2 * ||U V||^2` of two kernels, as a regularizer of the first of them.

    Layers make it when they are built; its configuration is that of a part.

    Args:
        decay: float.
        factors: function without arguments that returns U and V as tensors.
    """

    def __init__(self, decay=0.0, factors=None):
        self.decay, self._factors = decay, factors

    def __call__(self, x):
        del x  # It is one of the factors.
        if self._factors is None:
            return 0.0
        return self.decay / 2 * squared_norm(*self._factors())

    def get_config(self):
        return {"decay": self.decay}


class Draw:
    """A kernel that an initializer draws once, for the initializers of its two factors.

    Args:
        initializer: `keras.initializers.Initializer`.
        shape: tuple of int, of the kernel.
        matrix: function that makes a NumPy kernel a stack of matrices.
        rank: int.
    """

    def __init__(self, initializer, shape, matrix, rank):
        self._initializer, self._shape, self._matrix = initializer, shape, matrix
        self._rank, self._factors = rank, None

    def factor(self, number):
        """Returns the first factor for 0, the second for 1, as a NumPy array."""
        if self._factors is None:
            with tf.init_scope():  # Layers may be built while a graph is traced.
                kernel = keras.ops.convert_to_numpy(self._initializer(self._shape, "float32"))
            self._factors = split(self._matrix(kernel), self._rank)
        return self._factors[number]


@keras.saving.register_keras_serializable(package="tf_rigl")
class FactorOf(keras.initializers.Initializer):
    """Takes a factor of a `Draw`, in the shape of the kernel of a part."""

    def __init__(self, draw=None, number=0, restore=None):
        self._draw, self._number, self._restore = draw, number, restore

    def __call__(self, shape, dtype=None):
        factor = self._restore(self._draw.factor(self._number), shape)
        return tf.constant(factor, dtype or keras.config.floatx())

    def get_config(self):
        return {"number": self._number}
