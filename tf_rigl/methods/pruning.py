"""What methods that prune a dense network share."""

import tensorflow as tf

from tf_rigl._base.arguments import unknown_name
from tf_rigl.methods.base import Method
from tf_rigl.patterns.selection import top_k_mask

SCOPES = ("layer", "global")


class Pruning(Method):
    """Begins with all weights and only ever takes away those of the lowest score.

    Args:
        scope: str, "layer": each weight is pruned to its own sparsity. "global": scores of
            all masked weights are compared with each other, so that layer sparsities
            come out of them.

    Raises:
        ValueError: if `scope` is unknown.
    """

    begins_dense = True

    def __init__(self, scope="layer"):
        if scope not in SCOPES:
            raise unknown_name("scope", scope, SCOPES, or_object=False)
        self.scope = scope

    def initial_mask(self, item, seed, index):
        """All ones."""
        del seed, index
        return tf.ones(item.weight.shape, tf.bool)

    def share(self, counts, scored, patterns):
        """With a global scope, as many units for each weight as it has in the best of all."""
        if self.scope == "layer" or not counts:
            return counts
        parts = [
            pattern.candidates(self.drop_scores(*arguments), among=arguments[2])
            for arguments, pattern in zip(scored, patterns, strict=True)
        ]
        scores, present, first = zip(*parts, strict=True)
        wide = tf.float64 if any(part.dtype == tf.float64 for part in scores) else tf.float32
        scores = [tf.cast(part, wide) for part in scores]
        total = tf.add_n([keep for keep, _ in counts])
        if all(part is None for part in first):
            first = None
        else:
            first = [p if f is None else f for p, f in zip(present, first, strict=True)]
            first = tf.concat(first, 0)
        chosen = top_k_mask(tf.concat(scores, 0), total, tf.concat(present, 0), first)
        sizes = [part.shape[0] for part in scores]
        return [
            (tf.math.count_nonzero(part, dtype=tf.int32), tf.constant(0))
            for part in tf.split(chosen, sizes)
        ]

    def update(self, weight, gradient, mask, keep, grow, pattern, seed):
        """Drops; nothing grows."""
        del grow
        kept = pattern.select(self.drop_scores(weight, gradient, mask, seed), keep, among=mask)
        return kept, tf.where(kept, weight, tf.zeros([], weight.dtype))

    def get_config(self):
        return {"scope": self.scope}
