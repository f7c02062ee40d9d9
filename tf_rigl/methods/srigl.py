"""SRigL: RigL with the same number of inputs for each output, which can lose outputs."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_number
from tf_rigl._base.rounding import floor_product
from tf_rigl.methods.rigl import RigL
from tf_rigl.patterns.fan_in import ConstantFanIn
from tf_rigl.patterns.selection import best_of_columns, top_k_mask
from tf_rigl.patterns.unstructured import Unstructured


@keras.saving.register_keras_serializable(package="tf_rigl")
class SRigL(RigL):
    """RigL with a constant fan-in, which ablates the outputs that have few salient entries.

    An update of a layer with n outputs of f inputs each, of which k at a time move:

    - Salient are the entries that RigL would keep, the largest `|w|` of the layer, and the k of
      largest gradient.
    - An output with fewer than `max(1, floor(gamma * floor(T / n)))` salient entries is ablated,
      where T is what the target sparsity leaves in the layer: it gets no entries, and
      `tf_rigl.remove_channels` can remove it. So many stay that the others can hold all entries,
      and layers that give the outputs of the model keep all of theirs.
    - Each other output then has `floor(T / outputs)` entries, at most f and at least one. It keeps
      its entries among the largest `|w|`, and is filled up by those of its largest gradients.

    The threshold is a fraction of the fan-in that the target leaves, as in the authors' training.
    As a fraction of all inputs f, it would ablate nearly all outputs at high sparsity.

    Args:
        *args, **kwargs: the arguments of `RigL`.
        gamma: float in [0, 1], the fraction of the entries of an output that has to be salient.
            0.3 for convolutional networks and 0.95 for vision transformers in the paper.

    Raises:
        ValueError: as for `RigL`; or if `gamma` is out of range.
        TypeError: if an argument does not exist.

    Example:

    >>> SRigL(gamma=0.5).suited(tf_rigl.patterns.get("unstructured"))
    ConstantFanIn(taps=True)

    Reference:

    - [Dynamic Sparse Training with Structured Sparsity](https://arxiv.org/abs/2305.02299),
      section 3.1.
    """

    keeps_counts = False

    def __init__(self, *args, gamma=0.3, **kwargs):
        super().__init__(*args, **kwargs)
        self.gamma = check_number("gamma", gamma, at_least=0, at_most=1)

    def suited(self, pattern):
        """Returns the pattern of a constant fan-in; raises if another one is asked for."""
        if isinstance(pattern, ConstantFanIn):
            return pattern
        if isinstance(pattern, Unstructured):
            return ConstantFanIn()
        raise ValueError(
            "Argument `pattern` must be 'constant_fan_in' or left out with SRigL, which decides by "
            f"single entries how many inputs an output has. Received: pattern={pattern!r}"
        )

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        """Returns what moves, what the target leaves, and what an output needs to stay.

        Returns:
            None, or a list of `(keep, grow, left, needed)`.
        """
        counts = super().plan(step, active, first_step, run_steps)
        if counts is None:
            return None
        last = {n for n, item in enumerate(items) if item.gives_output}
        if not last:  # The model is no graph: it does not tell.
            last = {max((n for n, item in enumerate(items) if item.is_sparse), default=0)}
        rows = []
        for number, (item, (keep, grow)) in enumerate(zip(items, counts, strict=True)):
            units = item.pattern.units(item.shape)
            left = int(floor_product(1 - item.target_sparsity, units))
            fan_in = left // item.pattern.step(item.shape)
            needed = max(1, int(floor_product(self.gamma, fan_in)))
            rows.append((keep, grow, left, 0 if number in last else needed))
        return rows

    def update(self, weight, gradient, mask, keep, grow, left, needed, pattern, seed):
        """Ablates outputs and gives the others as many entries each; see `Method.update`.

        Args:
            left: int32 scalar tensor, the entries that the target sparsity leaves in the weight.
            needed: int32 scalar tensor, the salient entries that an output needs to stay.
        """
        layout = pattern.layout(weight.shape)
        inputs = layout.size[1]
        magnitude = layout.matrices(tf.abs(weight))
        slope = layout.matrices(tf.abs(gradient))
        present = layout.matrices(mask)

        salient = top_k_mask(magnitude, keep, present) | top_k_mask(slope, grow)
        number = tf.math.count_nonzero(salient, axis=1, keepdims=True, dtype=tf.int32)
        stays = self._outputs_that_stay(number, inputs, left, needed)
        survivors = present & stays
        most = tf.minimum(keep, tf.math.count_nonzero(survivors, dtype=tf.int32))
        survivors = top_k_mask(magnitude, most, survivors)

        each = left // tf.math.count_nonzero(stays, dtype=tf.int32)
        each = tf.where(stays, tf.clip_by_value(each, 1, inputs), 0)
        kept = best_of_columns(magnitude, each, survivors) & survivors
        missing = each - tf.math.count_nonzero(kept, axis=1, keepdims=True, dtype=tf.int32)
        grown = best_of_columns(slope, missing, ~kept)
        new_mask = layout.restore(kept | grown)
        old_values = tf.where(mask, weight, self.new_values(weight, seed))
        return new_mask, tf.where(new_mask, old_values, tf.zeros([], weight.dtype))

    def _outputs_that_stay(self, salient, inputs, left, needed):
        """Returns which outputs stay: a boolean tensor of the shape of `salient`.

        Args:
            salient: int32 tensor of shape (matrices, 1, outputs), salient entries of each output.
            inputs: int, the inputs of an output.
            left, needed: as for `update`.
        """
        least = tf.maximum(1, -(-left // inputs))
        enough = salient >= needed
        best = top_k_mask(salient, least)
        some = tf.math.count_nonzero(enough, dtype=tf.int32) >= least
        return tf.where(some, enough, best)

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {**super().get_config(), "gamma": self.gamma}
