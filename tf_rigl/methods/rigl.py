"""RigL: drop the smallest weights, grow where the gradient is largest."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_integer
from tf_rigl.methods.set import SET


@keras.saving.register_keras_serializable(package="tf_rigl")
class RigL(SET):
    """Drops the active weights of smallest magnitude and grows those of largest gradient.

    With the dense gradient g of the loss with respect to the weight w, an update keeps the
    entries of largest |w|, then adds those of largest |g| among all that it did not keep.

    Args:
        *args, **kwargs: the arguments of `SET`: drop_fraction=0.3, update_interval=100,
            start_step=None, end_step=0.75, decay="cosine", grow_initializer="zeros",
            apply_optimizer_on_update=False, slots="zero".
        gradient_batches: int, number of batches whose gradients are averaged: the batch of the
            update step and those just before it. More than one helps if batches are small. It
            costs the dense gradient on as many steps, and memory for one number per weight.

    Raises:
        ValueError: as for `SET`; or if `gradient_batches` is more than `update_interval`.
        TypeError: if an argument does not exist.

    Example:

    >>> RigL(drop_fraction=0.3, update_interval=100, end_step=25_000).end_step
    25000

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3 and
      algorithm 1.
    """

    def __init__(self, *args, gradient_batches=1, **kwargs):
        super().__init__(*args, **kwargs)
        self.gradient_batches = check_integer("gradient_batches", gradient_batches, 1)
        if self.gradient_batches > self.update_interval:
            raise ValueError(
                "Argument `gradient_batches` must be at most `update_interval`. Received: "
                f"gradient_batches={gradient_batches}, update_interval={self.update_interval}"
            )
        if self.gradient_batches > 1:
            self.state_names = ("gradient",)

    def observation(self, step, first_step=0, run_steps=None):
        """Averages the gradients of the last `gradient_batches` batches before an update."""
        if self.gradient_batches == 1:
            return None
        following = self.next_update(step, first_step, run_steps)
        if following is None or following - step >= self.gradient_batches:
            return None
        # The mean starts anew in each run: it leaves out gradients from an earlier run.
        seen = step - max(following - self.gradient_batches + 1, first_step)
        return seen / (seen + 1)

    def grow_scores(self, weight, gradient, mask, seed):
        """Returns the magnitude of the dense gradient."""
        del weight, mask, seed
        return tf.abs(gradient)

    def train_flops(self, report, steps=None):
        """Counts `gradient_batches` dense gradients in each interval.

        With f_S FLOPs of a sparse and f_D of a dense forward pass, an `update_interval` of D
        steps, and b batches: `(3 f_S (D + 1 - b) + (2 f_S + f_D) b) / (D + 1)`.

        This is the paper's formula, for figures that compare with the paper's. It takes an update
        for a step beside D ordinary ones. In algorithm 1, which `plan` follows, an update is one
        of D steps, so that D - 1 are ordinary. For b = 1 the formula is too low by
        `(f_D - f_S) / (D (D + 1))`, a ten-thousandth of the difference at D = 100. It also counts
        updates until the end of training; after `end_step` there are none.

        Reference:

        - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), appendix H.
        """
        del steps
        sparse, dense = report.flops, report.dense_flops
        ordinary = self.update_interval + 1 - self.gradient_batches
        return (3 * sparse * ordinary + (2 * sparse + dense) * self.gradient_batches) / (
            self.update_interval + 1
        )

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {**super().get_config(), "gradient_batches": self.gradient_batches}
