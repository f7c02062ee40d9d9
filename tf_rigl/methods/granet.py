"""GraNet: prunes gradually, and lets as many connections grow again."""

import fractions

import keras
import tensorflow as tf

from tf_rigl import distributions, schedules
from tf_rigl._base.arguments import check_integer, check_sparsity
from tf_rigl.methods.pruning import kept_of_all
from tf_rigl.methods.rigl import RigL

_MOST = 2**31 - 1  # Fits into an int32.


@keras.saving.register_keras_serializable(package="tf_rigl")
class GraNet(RigL):
    """Prunes to the target sparsity step by step, and regrows at each of these steps.

    An update at step t first prunes by magnitude, over all masked weights together, to the
    overall sparsity

    `s_t = s_i + (s_f - s_i) * (1 - (1 - (t - t_0) / (t_1 - t_0))^3)`

    with s_i the `initial_sparsity`, s_f the target, t_0 the `start_step` and t_1 the `prune_end`.
    Then each weight drops the fraction r_t of its entries of smallest magnitude, and grows as many
    where the gradient is largest, as RigL does. The optimizer is applied before.

    Magnitudes decide how sparse each layer becomes. The distribution that `tf_rigl.sparsify` gets
    decides it for the beginning only.

    Args:
        *args, **kwargs: the arguments of `RigL`, with other defaults: drop_fraction=0.5,
            end_step=1.0, apply_optimizer_on_update=True.
        initial_sparsity: float in [0, 1), the overall sparsity s_i at which training begins.
        prune_end: int, the step t_1 from which the target is reached; or float in (0, 1], that
            fraction of the steps that `fit` runs. The target is reached at the first update from
            there on. If there is none, `fit` warns when it ends.

    Raises:
        ValueError: as for `RigL`; or if `initial_sparsity` or `prune_end` is out of range.
        TypeError: if an argument does not exist.

    Example:

    >>> method = GraNet(initial_sparsity=0.5, start_step=0, prune_end=1000)
    >>> [round(method.sparsity(step, 0.9, 0, 2000), 3) for step in (0, 500, 1000)]
    [0.5, 0.85, 0.9]

    Reference:

    - [GraNet](https://arxiv.org/abs/2106.10404), section 4.
    """

    scope = "global"
    keeps_counts = False
    pruning_ends = "prune_end"

    def __init__(
        self,
        drop_fraction=0.5,
        *args,
        end_step=1.0,
        apply_optimizer_on_update=True,
        initial_sparsity=0.5,
        prune_end=0.7,
        **kwargs,
    ):
        self.prune_end = schedules.check_end_step(prune_end, "prune_end")
        super().__init__(
            drop_fraction,
            *args,
            end_step=end_step,
            apply_optimizer_on_update=apply_optimizer_on_update,
            **kwargs,
        )
        self.initial_sparsity = check_sparsity("initial_sparsity", initial_sparsity)
        if not isinstance(self.prune_end, float):
            check_integer("prune_end", self.prune_end, 1)
        if type(self.prune_end) is type(self.end_step) and self.prune_end > self.end_step:
            raise ValueError(
                "Argument `prune_end` must not be after `end_step`: updates prune. Received: "
                f"prune_end={self.prune_end}, end_step={self.end_step}"
            )
        self.begins_dense = self.initial_sparsity == 0

    @property
    def needs_length(self):
        """True if `end_step` or `prune_end` is a fraction of the steps that `fit` runs."""
        return super().needs_length or isinstance(self.prune_end, float)

    def sparsity(self, step, target, first_step=0, run_steps=None) -> float:
        """Returns the overall sparsity to which an update at a step prunes.

        Args:
            step: int.
            target: float, the overall sparsity to end at.
            first_step, run_steps: as for `Method.plan`.
        """
        begin = self._start + (first_step if isinstance(self.prune_end, float) else 0)
        length = schedules.step_at(self.prune_end, first_step, run_steps) - begin
        left = 1 - (step - begin) / length if length > 0 else 0.0
        return target + (self.initial_sparsity - target) * min(1.0, max(0.0, left)) ** 3

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        """Returns what each weight keeps if all are pruned alike, and the fraction that moves.

        Returns:
            None, or a list of `(keep, 0, numerator, denominator)`: `share` divides the sum of all
            `keep` by magnitude, and then `numerator / denominator` of the units of a weight move.
        """
        moving = super().plan(step, [1], first_step, run_steps)
        if moving is None:
            return None
        end = self.last_step(first_step, run_steps)
        first = first_step if super().needs_length else 0
        part = fractions.Fraction(self.fraction(step - first, end - first))
        part = part.limit_denominator(_MOST)
        keep = self._pruned(step, active, first_step, run_steps, items)
        return [(n, 0, part.numerator, part.denominator) for n in keep]

    def _pruned(self, step, active, first_step, run_steps, items):
        """Returns numbers of units to keep whose sum is that of the schedule."""
        numbers = [n for n, item in enumerate(items) if item.is_sparse and item.weight.trainable]
        units = {n: items[n].pattern.units(items[n].shape) for n in numbers}
        total = sum(units.values())
        zeros = sum(int(distributions.zeros(items[n].target_sparsity, units[n])) for n in numbers)
        target = zeros / total if total else 0.0
        sparsity = self.sparsity(step, target, first_step, run_steps)
        left = total - int(distributions.zeros(sparsity, total))
        keep, begin = list(active), 0
        present = sum(active[n] for n in numbers)
        surplus = max(0, present - left)
        # Each weight loses its part: an optimizer that steps some of the weights prunes no more.
        for number in numbers:
            end = begin + active[number]
            keep[number] -= surplus * end // present - surplus * begin // present
            begin = end
        return keep

    def share(self, counts, scored, patterns):
        """Prunes over all weights together, then says how many units of each weight move."""
        if not counts:
            return counts
        total = tf.add_n([keep for keep, *_ in counts])
        shares = []
        for left, (*_, numerator, denominator) in zip(
            kept_of_all(self, total, scored, patterns), counts, strict=True
        ):
            wide = [tf.cast(each, tf.int64) for each in (left, numerator, denominator)]
            moved = tf.cast(wide[0] * wide[1] // wide[2], tf.int32)
            shares.append((left - moved, moved))
        return shares

    def train_flops(self, report, steps=None):
        """Averages the cost over training, with a dense gradient at each update.

        With s(t) the overall sparsity at step t, S the target, f_D the FLOPs of a dense forward
        pass and f_S those at the target, step t costs `3 (f_D - s(t) / S (f_D - f_S))`: the cost
        of a layer is taken to fall in proportion, as with `MagnitudePruning`.

        Raises:
            ValueError: if `steps` is not an integer of at least 1.
        """
        check_integer("steps", steps, 1)
        if self.initial_sparsity > report.sparsity + 1e-6:
            raise ValueError(
                f"Argument `report` must be of a sparsity of at least {self.initial_sparsity}, the "
                f"`initial_sparsity` of {self!r}. Received: a sparsity of {report.sparsity:.4g}"
            )
        dense, saved = report.dense_flops, report.dense_flops - report.flops
        sparsity = reached = self.initial_sparsity
        total = 0.0
        for step in range(steps):
            if self.next_update(step, 0, steps) == step:
                reached = max(reached, self.sparsity(step, report.sparsity, 0, steps))
                # Masks are pruned after the step: what is dense is the gradient alone.
                total += saved * sparsity / report.sparsity if report.sparsity else 0.0
            total += 3 * dense
            total -= 3 * saved * sparsity / report.sparsity if report.sparsity else 0.0
            sparsity = reached
        return total / steps

    def get_config(self):
        return {
            **super().get_config(),
            "initial_sparsity": self.initial_sparsity,
            "prune_end": self.prune_end,
        }
