"""Sparse Networks From Scratch: grow where the momentum of the gradient is largest."""

import numbers

import keras
import tensorflow as tf

from tf_rigl.methods.set import SET


@keras.saving.register_keras_serializable(package="tf_rigl")
class SNFS(SET):
    """Drops the smallest weights and grows those whose dense gradient has most momentum.

    The momentum m of the dense gradient g of every weight, masked or not, is kept from
    the first step to the last update: `m = momentum * m + (1 - momentum) * g`.
    That costs a dense backward pass at every step. As in the RigL paper's comparison,
    sparsity is not moved between layers.

    Args:
        drop_fraction, update_interval, start_step, end_step, decay, grow_initializer,
            apply_optimizer_on_update: those of `SET`.
        momentum: float in [0, 1).

    Raises:
        ValueError: as for `SET`, and if `momentum` is out of range.

    Example:

    >>> SNFS(momentum=0.9).momentum
    0.9

    Reference:

    - [Sparse Networks from Scratch](https://arxiv.org/abs/1907.04840), section 3, in the
      form of [Rigging the Lottery](https://arxiv.org/abs/1911.11134), table 1.
    """

    state_names = ("gradient",)

    def __init__(
        self,
        drop_fraction=0.3,
        update_interval=100,
        start_step=None,
        end_step=0.75,
        decay="cosine",
        grow_initializer="zeros",
        apply_optimizer_on_update=False,
        momentum=0.9,
    ):
        super().__init__(
            drop_fraction,
            update_interval,
            start_step,
            end_step,
            decay,
            grow_initializer,
            apply_optimizer_on_update,
        )
        if (
            isinstance(momentum, bool)
            or not isinstance(momentum, numbers.Real)
            or not 0 <= momentum < 1
        ):
            raise ValueError(
                f"Argument `momentum` must be a number in [0, 1). Received: momentum={momentum!r}"
            )
        self.momentum = float(momentum)

    def observation(self, step, first_step=0, run_steps=None):
        """Every batch, as long as there is an update to come."""
        if self.next_update(step, first_step, run_steps) is None:
            return None
        return self.momentum

    def grow_scores(self, weight, gradient, mask, seed):
        """The magnitude of the momentum, which is what `observation` puts for the gradient."""
        del weight, mask, seed
        return tf.abs(gradient)

    def train_flops(self, report, steps=None):
        """The dense gradient is computed at every step."""
        del steps
        return 2.0 * report.flops + report.dense_flops

    def get_config(self):
        return {**super().get_config(), "momentum": self.momentum}
