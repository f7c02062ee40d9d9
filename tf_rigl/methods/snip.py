"""SNIP: prune once, before training, the weights to which the loss is least sensitive."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_integer
from tf_rigl.methods.pruning import Pruning


@keras.saving.register_keras_serializable(package="tf_rigl")
class SNIP(Pruning):
    """Keeps the weights of largest |weight x gradient| at initialisation.

    The score of a weight w with loss gradient g is `|w * g|`. `fit` uses its first `batches`
    batches to compute the scores and does not train on them. Then it prunes, and the masks never
    change again. A layer that is frozen at that time is pruned on the first batch after it
    becomes trainable.

    Args:
        scope: str, "layer": each weight gets the sparsity that the distribution gives it.
            "global": the scores of all weights are compared, as in the SNIP paper.
        batches: int, number of batches whose gradients are averaged.

    Raises:
        ValueError: if `scope` is unknown, or `batches` is not an integer of at least 1.

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
        """Prunes each whole weight after the last batch that is scored; see `Method.plan`."""
        del first_step, run_steps
        pairs = list(zip(items, active, strict=True))
        surplus = [n - item.target_active() if _is_whole(item, n) else 0 for item, n in pairs]
        if self.scope == "global":
            # A whole weight may have been pruned already and kept all its units. So the surplus
            # of all weights together decides. A frozen whole weight does not count yet.
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
        if step < self.batches - 1:  # An update that changes nothing: the batch is not trained on.
            keep = active
        # May come later than `batches`: after gradients overflowed, or a layer was frozen.
        return [(n, 0) for n in keep]

    def observation(self, step, first_step=0, run_steps=None):
        """Averages the gradients of the first `batches` batches."""
        del first_step, run_steps
        if self.batches == 1 or step >= self.batches:
            return None
        return step / (step + 1)

    def drop_scores(self, weight, gradient, mask, seed):
        """Returns the sensitivity of the loss to each weight, `|weight * gradient|`."""
        del mask, seed
        return tf.abs(weight * gradient)

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {**super().get_config(), "batches": self.batches}


def _is_whole(item, active):
    """True if a weight is to be pruned, is trainable, and has all its units."""
    return item.is_sparse and item.weight.trainable and _has_all(item, active)


def _has_all(item, active):
    """True if all units of a weight are active."""
    return active == item.pattern.units(item.shape)
