"""STE and SR-STE: dense weights that stay alive, of which the largest are used."""

import keras
import tensorflow as tf

from tf_rigl._base import tensors
from tf_rigl._base.arguments import check_number
from tf_rigl.methods.base import Method


@keras.saving.register_keras_serializable(package="tf_rigl")
class STE(Method):
    """Trains dense weights, and uses those of largest magnitude.

    After each step the mask of a weight holds the units of largest magnitude among its dense
    weights v, as many as its target sparsity leaves, and the weight is v under the mask, else 0.
    The gradient of v is that of the weight, also where the mask is 0 ("straight through").

    `item.state["dense"]` of each of `SparseModel.masked_weights` holds v; it is saved with the
    model, and `trainable_weights` are these. A step needs the dense gradient.

    Example:

    >>> model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(4)])
    >>> sparse = tf_rigl.sparsify(model, "ste", 0.5, "uniform_all", pattern="2:4")
    >>> [variable.name for variable in sparse.trainable_weights]
    ['0_dense', 'bias']

    Reference:

    - [Learning N:M Fine-grained Structured Sparse Neural Networks From
      Scratch](https://arxiv.org/abs/2102.04010), section 3.1.
    """

    trained_state = "dense"
    regularizes_masked = True
    state_names = ("dense",)
    decay = 0.0

    def initial_mask(self, item, seed, index):
        """Takes the model's weights as dense ones, and returns the mask of the largest."""
        del seed, index
        if not item.is_sparse:
            return tf.ones(item.shape, tf.bool)
        dense = item.state["dense"]
        dense.assign(item.weight)
        return item.pattern.select(tf.abs(tf.convert_to_tensor(dense.value)), item.target_active())

    def trained_gradient(self, weight, gradient):
        """Returns the dense gradient: it goes straight through the mask."""
        del weight
        return gradient

    def added_gradient(self, weight):
        """Returns the gradient of the decay of dense weights that are not used, or None."""
        if not self.decay:
            return None
        dense = tf.convert_to_tensor(weight.state["dense"].value)
        return self.decay * tensors.where(~tf.convert_to_tensor(weight.mask), dense)

    def after_optimizer(self, weights, compiled):
        """Sets masks to the largest of the dense weights, and weights to these under the mask."""
        pairs = []
        for weight in weights:
            dense = tf.convert_to_tensor(weight.state["dense"].value)
            choose = compiled(self._choose, weight.shape)
            # An int, by which patterns know that all groups are full.
            mask, value = choose(dense, weight.target_active(), weight.pattern)
            pairs += [(weight.mask, mask), (weight.weight, value)]
        return pairs

    def _choose(self, dense, count, pattern):
        """Returns the mask of the `count` units of largest magnitude, and the weight under it."""
        mask = pattern.select(tf.abs(dense), count)
        return mask, tensors.where(mask, dense)

    def train_flops(self, report, steps=None):
        """Returns `2 f_S + f_D`: dense weights need the dense gradient at every step."""
        del steps
        return 2.0 * report.flops + report.dense_flops


@keras.saving.register_keras_serializable(package="tf_rigl")
class SRSTE(STE):
    """STE that shrinks the dense weights which are not used, so that fewer of them change places.

    To the gradient of the dense weights v it adds `decay * (1 - mask) * v`.

    Args:
        decay: float, at least 0.

    Raises:
        ValueError: if `decay` is out of range.

    Example:

    >>> SRSTE()
    SRSTE(decay=0.0002)

    Reference:

    - [Learning N:M Fine-grained Structured Sparse Neural Networks From
      Scratch](https://arxiv.org/abs/2102.04010), section 3.2.
    """

    def __init__(self, decay=2e-4):
        self.decay = check_number("decay", decay, at_least=0)

    def get_config(self):
        return {"decay": self.decay}
