"""Attention, which is a factorization already: query by key, and value by output."""

import keras
import numpy as np
import tensorflow as tf

from tf_rigl._base.arguments import check_number
from tf_rigl.factorized import products


@keras.saving.register_keras_serializable(package="tf_rigl.factorized")
class MultiHeadAttention(keras.layers.MultiHeadAttention):
    """`keras.layers.MultiHeadAttention` with Frobenius decay on the products of its projections.

    For each head, query and key are factors of `Q K^T`, value and output of `V O`. The loss gets
    `decay / 2` times the squared Frobenius norms of these products, in place of weight decay on
    the projections.

    Args:
        *args, **kwargs: arguments of `keras.layers.MultiHeadAttention`.
        decay: float, at least 0.

    Raises:
        ValueError: if `decay` is out of range, or a `kernel_regularizer` is given beside it.

    Example:

    >>> layer = tf_rigl.factorized.MultiHeadAttention(2, 8, decay=1e-3)
    >>> x = np.ones((1, 3, 16), "float32")
    >>> layer(x, x).shape, len(layer.losses)
    (TensorShape([1, 3, 16]), 2)

    Reference:

    - [Initialization and Regularization of Factorized Neural
      Layers](https://arxiv.org/abs/2105.01029), section 5.
    """

    def __init__(self, *args, decay=0.0, **kwargs):
        if decay and kwargs.get("kernel_regularizer") is not None:
            raise ValueError(
                "Only one of the arguments `decay` and `kernel_regularizer` may be given. "
                f"Received: decay={decay}, kernel_regularizer={kwargs['kernel_regularizer']!r}"
            )
        super().__init__(*args, **kwargs)
        self.decay = check_number("decay", decay, at_least=0)

    def build(self, query_shape, value_shape, key_shape=None):
        super().build(query_shape, value_shape, key_shape)
        if self.decay:
            pairs = (self.query_dense, self.query_key), (self.value_dense, self.value_output)
            for layer, factors in pairs:
                layer.kernel.regularizer = products.FrobeniusDecay(self.decay, factors)

    def query_key(self):
        """Returns Q and K^T of all heads: tensors of (heads, d, key_dim), (heads, key_dim, d)."""
        query, key = (tf.convert_to_tensor(x.kernel) for x in (self.query_dense, self.key_dense))
        return tf.transpose(query, (1, 0, 2)), tf.transpose(key, (1, 2, 0))

    def value_output(self):
        """Returns V and O of all heads: tensors of (heads, d, value_dim), (heads, value_dim, n)."""
        value, output = (
            tf.convert_to_tensor(x.kernel) for x in (self.value_dense, self.output_dense)
        )
        sizes = output.shape
        output = tf.reshape(output, (sizes[0], sizes[1], -1))
        return tf.transpose(value, (1, 0, 2)), output

    def balance(self):
        """Sets the projections to the balanced factors of the products that they have.

        Biases of the projections stay, so outputs are the same only if query and key have none.
        """
        first, second = self._balanced(*self.query_key())
        self.query_dense.kernel.assign(np.transpose(first, (1, 0, 2)))
        self.key_dense.kernel.assign(np.transpose(second, (2, 0, 1)))
        first, second = self._balanced(*self.value_output())
        self.value_dense.kernel.assign(np.transpose(first, (1, 0, 2)))
        self.output_dense.kernel.assign(np.reshape(second, self.output_dense.kernel.shape))

    def _balanced(self, first, second):
        first, second = (np.asarray(each, np.float64) for each in (first, second))
        return products.split(first @ second, first.shape[-1])

    def get_config(self):
        return {**super().get_config(), "decay": self.decay}
