"""The base class of methods that start dense and prune."""

import tensorflow as tf

from tf_rigl._base.arguments import unknown_name
from tf_rigl.methods.base import Method
from tf_rigl.patterns.selection import top_k_mask

SCOPES = ("layer", "global")


class Pruning(Method):
    """Starts with all entries active and removes those of lowest score; nothing grows.

    Args:
        scope: str, "layer": each weight is pruned to its own sparsity. "global": the scores of
            all masked weights are compared with each other, and layer sparsities follow from
            the scores.

    Raises:
        ValueError: if `scope` is unknown.
    """

    begins_dense = True

    def __init__(self, scope="layer"):
        if scope not in SCOPES:
            raise unknown_name("scope", scope, SCOPES, or_object=False)
        self.scope = scope

    def share(self, counts, scored, patterns):
        """Divides the total among the weights by score, if the scope is global.

        Each weight then keeps as many units as it has among the best of all weights.
        """
        if self.scope == "layer" or not counts:
            return counts
        total = tf.add_n([keep for keep, *_ in counts])
        return [(keep, tf.constant(0)) for keep in kept_of_all(self, total, scored, patterns)]

    def update(self, weight, gradient, mask, keep, grow, pattern, seed):
        """Drops all but the `keep` best units of the mask; see `Method.update`."""
        del grow
        kept = pattern.select(self.drop_scores(weight, gradient, mask, seed), keep, among=mask)
        return kept, tf.where(kept, weight, tf.zeros([], weight.dtype))

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {"scope": self.scope}


def kept_of_all(method, total, scored, patterns):
    """Returns how many units each weight has among the `total` of highest score of all weights.

    Args:
        method: `Method`, whose `drop_scores` counts.
        total: int32 scalar tensor.
        scored, patterns: as for `Method.share`.

    Returns:
        A list of int32 scalar tensors.
    """
    parts = [
        pattern.candidates(method.drop_scores(*arguments), among=arguments[2])
        for arguments, pattern in zip(scored, patterns, strict=True)
    ]
    scores, present, first = zip(*parts, strict=True)
    wide = tf.float64 if any(part.dtype == tf.float64 for part in scores) else tf.float32
    scores = [tf.cast(part, wide) for part in scores]
    if all(part is None for part in first):
        first = None
    else:
        first = [p if f is None else f for p, f in zip(present, first, strict=True)]
        first = tf.concat(first, 0)
    chosen = top_k_mask(tf.concat(scores, 0), total, tf.concat(present, 0), first)
    sizes = [part.shape[0] for part in scores]
    return [tf.math.count_nonzero(part, dtype=tf.int32) for part in tf.split(chosen, sizes)]
