"""SNIP: prune once, before training, what the loss is least sensitive to."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_integer
from tf_rigl.methods.pruning import Pruning


@keras.saving.register_keras_serializable(package="tf_rigl")
class SNIP(Pruning):
    """Keeps the weights of largest |weight x gradient| at initialisation.

    The model is dense until the first `batches` batches of `fit` have been scored; they
    are not trained on. After that the mask never changes. A layer that is frozen by then is
    pruned by the first batch after it is not.

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
        pairs = list(zip(items, active, strict=True))
        surplus = [n - item.target_active() if _is_whole(item, n) else 0 for item, n in pairs]
        if self.scope == "global":
            # A weight may also be whole because it has won all its units: what is left over
            # in all tells. One that is frozen and whole has not been pruned yet.
            excess = sum(
                n - item.target_active()
                for item, n in pairs
                if item.is_sparse and (item.weight.trainable or not _has_all(item, n))
            )
            for number, extra in enumerate(surplus):
                surplus[number] = max(0, min(extra, excess))
                excess -= surplus[number]
        keep = [n - extra for n, extra in zip(active, surplus, strict=True)]
        if keep == active:
            return None
        if step < self.batches - 1:  # Nothing changes yet, and nothing is trained.
            keep = active
        # At later steps too: gradients may have overflowed, or a layer been frozen till now.
        return [(n, 0) for n in keep]

    def observation(self, step, first_step=0, run_steps=None):
        """The mean over the first batches, in equal parts."""
        del first_step, run_steps
        if self.batches == 1 or step >= self.batches:
            return None
        return step / (step + 1)

    def drop_scores(self, weight, gradient, mask, seed):
        """The sensitivity of the loss to the connection."""
        del mask, seed
        return tf.abs(weight * gradient)

    def get_config(self):
        return {**super().get_config(), "batches": self.batches}


def _is_whole(item, active):
    """Whether a weight could be pruned, and has not been."""
    return item.is_sparse and item.weight.trainable and _has_all(item, active)


def _has_all(item, active):
    """Whether all units of a weight are active."""
    return active == item.pattern.units(item.shape)
