"""SNIP: prune once, before training, what the loss is least sensitive to."""

import keras
import tensorflow as tf

from tf_rigl._arguments import check_integer
from tf_rigl.methods.pruning import Pruning

_ATTEMPTS = 32  # More than the halvings from the largest loss scale to one that fits.


@keras.saving.register_keras_serializable(package="tf_rigl")
class SNIP(Pruning):
    """Keeps the weights of largest |weight x gradient| at initialisation.

    The model is dense until the first `batches` batches of `fit` have been scored; they
    are not trained on. After that the mask never changes.

    Args:
        scope: str, "layer" (each weight keeps the sparsity that the distribution gives
            it) or "global" (scores of all weights are compared, as in the SNIP paper).
        batches: int, from how many batches the gradient is averaged.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> SNIP(scope="global")
    SNIP(scope='global', batches=1)

    Reference:

    - [SNIP](https://arxiv.org/abs/1810.02340), section 4; per layer as in
      [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 4.
    """

    def __init__(self, scope="layer", batches=1):
        super().__init__(scope)
        self.batches = check_integer("batches", batches, 1)
        if self.batches > 1:
            self.state_names = ("gradient",)

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        del first_step, run_steps
        pool = [(n, item) for n, item in zip(active, items, strict=True) if _may_be_pruned(item)]
        done = any(n < _units(item) for n, item in pool)
        if not pool or done or step >= self.batches + _ATTEMPTS:
            return None
        if step < self.batches - 1:  # Nothing changes yet, and nothing is trained.
            return [(n, 0) for n in active]
        # At later steps too: with loss scaling, gradients may have overflowed at first.
        return [(min(n, item.target_active()), 0) for n, item in zip(active, items, strict=True)]

    def observation(self, step, first_step=0, run_steps=None):
        """The mean over the first batches, in equal parts."""
        del first_step, run_steps
        if self.batches == 1 or step >= self.batches:
            return None
        return (1.0 if step else 0.0), 1 / self.batches

    def drop_scores(self, weight, gradient, mask, seed):
        """The sensitivity of the loss to the connection."""
        del mask, seed
        return tf.abs(weight * gradient)

    def get_config(self):
        return {**super().get_config(), "batches": self.batches}


def _units(item):
    return item.pattern.units(item.weight.shape)


def _may_be_pruned(item):
    return item.weight.trainable and item.is_sparse and item.target_active() < _units(item)
