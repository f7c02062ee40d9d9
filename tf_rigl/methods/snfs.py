"""Sparse Networks From Scratch: grow where the momentum of the gradient is largest."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_number
from tf_rigl.methods.set import SET


@keras.saving.register_keras_serializable(package="tf_rigl")
class SNFS(SET):
    """Drops the smallest weights and grows those whose gradient has the largest momentum.

    The method keeps a momentum m of the dense gradient g for every entry, masked or not, from
    the first step to the last update:

    `m = momentum * m + (1 - momentum) * g`

    This costs a dense backward pass at every step. As in the RigL paper's comparison, sparsity
    does not move between layers.

    Args:
        *args, **kwargs: the arguments of `SET`: drop_fraction=0.3, update_interval=100,
            start_step=None, end_step=0.75, decay="cosine", grow_initializer="zeros",
            apply_optimizer_on_update=False, slots="zero".
        momentum: float in [0, 1).

    Raises:
        ValueError: as for `SET`; or if `momentum` is out of range.
        TypeError: if an argument does not exist.

    Example:

    >>> SNFS(momentum=0.9).observation(0, run_steps=1000)
    0.9

    Reference:

    - [Sparse Networks from Scratch](https://arxiv.org/abs/1907.04840), section 3, in the
      form of [Rigging the Lottery](https://arxiv.org/abs/1911.11134), table 1.
    """

    state_names = ("gradient",)

    def __init__(self, *args, momentum=0.9, **kwargs):
        super().__init__(*args, **kwargs)
        self.momentum = check_number("momentum", momentum, at_least=0, below=1)

    def observation(self, step, first_step=0, run_steps=None):
        """Returns `momentum` on every step until the last update."""
        if self.next_update(step, first_step, run_steps) is None:
            return None
        return self.momentum

    def grow_scores(self, weight, gradient, mask, seed):
        """Returns the magnitude of the momentum, which `gradient` holds here."""
        del weight, mask, seed
        return tf.abs(gradient)

    def train_flops(self, report, steps=None):
        """Counts a dense gradient at every step."""
        del steps
        return 2.0 * report.flops + report.dense_flops

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {**super().get_config(), "momentum": self.momentum}
