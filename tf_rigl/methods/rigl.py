"""RigL: drop the smallest weights, grow where the gradient is largest."""

import keras
import tensorflow as tf

from tf_rigl.methods.set import SET


@keras.saving.register_keras_serializable(package="tf_rigl")
class RigL(SET):
    """Drops the active weights of smallest magnitude and grows those of largest gradient.

    The arguments are those of `SET`.

    Example:

    >>> RigL(drop_fraction=0.3, update_interval=100, end_step=25_000).end_step
    25000

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3 and
      algorithm 1.
    """

    def grow_scores(self, weight, gradient, mask, seed):
        """The magnitude of the dense gradient."""
        del weight, mask, seed
        return tf.abs(gradient)
