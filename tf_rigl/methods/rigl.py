"""RigL: drop the smallest weights, grow where the gradient is largest."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_integer
from tf_rigl.methods.set import SET


@keras.saving.register_keras_serializable(package="tf_rigl")
class RigL(SET):
    """Drops the active weights of smallest magnitude and grows those of largest gradient.

    Args:
        drop_fraction, update_interval, start_step, end_step, decay, grow_initializer,
            apply_optimizer_on_update: those of `SET`.
        gradient_batches: int, from how many batches the gradient is averaged: those up
            to and including the one of the update step. More than one helps where
            batches are small; it costs the dense gradient of as many steps, and memory
            for one number for each weight.

    Raises:
        ValueError: as for `SET`; if `gradient_batches` is more than `update_interval`.

    Example:

    >>> RigL(drop_fraction=0.3, update_interval=100, end_step=25_000).end_step
    25000

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3 and
      algorithm 1.
    """

    def __init__(
        self,
        drop_fraction=0.3,
        update_interval=100,
        start_step=None,
        end_step=0.75,
        decay="cosine",
        grow_initializer="zeros",
        apply_optimizer_on_update=False,
        gradient_batches=1,
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
        self.gradient_batches = check_integer("gradient_batches", gradient_batches, 1)
        if self.gradient_batches > self.update_interval:
            raise ValueError(
                "Argument `gradient_batches` must be at most `update_interval`. Received: "
                f"gradient_batches={gradient_batches}, update_interval={update_interval}"
            )
        if self.gradient_batches > 1:
            self.state_names = ("gradient",)

    def observation(self, step, first_step=0, run_steps=None):
        """The mean over the batches before an update, in equal parts."""
        if self.gradient_batches == 1:
            return None
        following = self.next_update(step, first_step, run_steps)
        if following is None or following - step >= self.gradient_batches:
            return None
        # What an earlier run has left of another window does not belong to the mean.
        seen = step - max(following - self.gradient_batches + 1, first_step)
        return seen / (seen + 1)

    def grow_scores(self, weight, gradient, mask, seed):
        """The magnitude of the dense gradient."""
        del weight, mask, seed
        return tf.abs(gradient)

    def train_flops(self, report, steps=None):
        """The dense gradient is computed once in an interval, or for each batch averaged."""
        del steps
        sparse, dense = report.flops, report.dense_flops
        ordinary = self.update_interval + 1 - self.gradient_batches
        return (3 * sparse * ordinary + (2 * sparse + dense) * self.gradient_batches) / (
            self.update_interval + 1
        )

    def get_config(self):
        return {**super().get_config(), "gradient_batches": self.gradient_batches}
