"""MEST: drops by weight and gradient, and keeps the memory of a sparse model."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_flag, check_integer, check_number
from tf_rigl._base.rounding import floor_product
from tf_rigl.methods.set import SET


@keras.saving.register_keras_serializable(package="tf_rigl")
class MEST(SET):
    """Drops by `|weight| + gradient_weight * |gradient|` and grows at random, elastically.

    The steps until `end_step` are divided into as many equal parts as there are `margins`. In a
    part with the margin p, with n the units of a weight at its target sparsity, an update moves
    `k = floor(p * n)` of them:

    - it prunes to `n - k` units and grows back to n;
    - with `soft=True` it prunes to n units and grows to `n + k`, so that k more train until the
      next update decides which n stay. The last update moves nothing.

    At an update that moves nothing the optimizer is applied as at any other step.

    The gradient of an entry that is active is all that it needs, so no step costs more than a
    sparse one, apart from the further units of `soft=True`.

    Args:
        update_interval, start_step, end_step, grow_initializer, apply_optimizer_on_update,
            slots: as for `SET`.
        margins: sequence of float in [0, 1), in parts of the active units. The last one must be 0
            with `soft=True`. The paper's are shares of all entries: 0.02, 0.01 and 0 at a
            sparsity of 0.9, which are 0.2, 0.1 and 0 of the active ones.
        gradient_weight: float, how much the gradient counts.
        soft: bool, whether the bound on the number of units is soft.

    Raises:
        ValueError: as for `SET`; or if an argument is out of range; or with `soft=True` and a
            pattern of a constant fan-in.

    Example:

    >>> MEST(margins=(0.2, 0.1, 0.0), end_step=3000).fraction(1000, 3000)
    0.1

    Reference:

    - [MEST](https://arxiv.org/abs/2110.14032), section 3.
    """

    def __init__(
        self,
        update_interval=100,
        start_step=None,
        end_step=0.75,
        grow_initializer="zeros",
        apply_optimizer_on_update=False,
        slots="zero",
        margins=(0.2, 0.1, 0.0),
        gradient_weight=0.01,
        soft=False,
    ):
        super().__init__(
            update_interval=update_interval,
            start_step=start_step,
            end_step=end_step,
            grow_initializer=grow_initializer,
            apply_optimizer_on_update=apply_optimizer_on_update,
            slots=slots,
        )
        self.soft = check_flag("soft", soft)
        self.keeps_counts = not self.soft
        if not isinstance(margins, (list, tuple)) or not margins:
            raise ValueError(
                "Argument `margins` must be a sequence of numbers in [0, 1), one for each part of "
                f"the run. Received: margins={margins!r}"
            )
        self.margins = tuple(
            check_number(f"margins[{number}]", margin, at_least=0, below=1)
            for number, margin in enumerate(margins)
        )
        if self.soft and self.margins[-1]:
            raise ValueError(
                "Argument `margins` must end with 0 if `soft=True`: the model would keep more "
                f"weights than its target sparsity leaves. Received: margins={margins!r}"
            )
        self.gradient_weight = check_number("gradient_weight", gradient_weight, at_least=0)

    def suited(self, pattern):
        """Returns the pattern; raises for a constant fan-in that could not be kept."""
        if self.soft and getattr(pattern, "constant_fan_in", False):
            raise ValueError(
                "Argument `pattern` must not have a constant fan-in with `MEST(soft=True)`: the "
                "units that it drops are chosen in the whole layer, whatever their output. "
                f"Received: pattern={pattern!r}"
            )
        return pattern

    def fraction(self, step, end_step):
        """Returns the margin at a step: the fraction of the units at the target that move."""
        last = len(self.margins) - 1
        return self.margins[min(step * len(self.margins) // max(1, end_step), last)]

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        """Returns the units to keep and to grow in each weight, or None; see `Method.plan`."""
        if super().plan(step, [1], first_step, run_steps) is None:
            return None
        margin, counts = self._margin(step, first_step, run_steps), []
        if self.soft and self.next_update(step + 1, first_step, run_steps) is None:
            margin = 0.0  # Else what it adds would stay.
        for item, n in zip(items, active, strict=True):
            target = min(n, item.target_active())
            room = item.pattern.units(item.shape) - target
            moved = int(floor_product(margin, target)) if item.is_sparse else 0
            if self.soft:  # Patterns may allow some numbers only.
                step_of = item.pattern.step(item.shape)
                moved = min(moved, room) // step_of * step_of
                counts.append((target, moved))
            else:
                counts.append((target - moved, moved))
        same = all(not grow and keep == n for (keep, grow), n in zip(counts, active, strict=True))
        return None if same else counts

    def _margin(self, step, first_step, run_steps):
        """Returns the margin at a step of a run."""
        begin = first_step if self.needs_length else 0
        return self.fraction(step - begin, self.last_step(first_step, run_steps) - begin)

    def drop_scores(self, weight, gradient, mask, seed):
        """Returns `|weight| + gradient_weight * |gradient|`."""
        del mask, seed
        scale = tf.constant(self.gradient_weight, weight.dtype)
        return tf.abs(weight) + scale * tf.abs(tf.cast(gradient, weight.dtype))

    def train_flops(self, report, steps=None):
        """Returns `3 f_S`; with `soft=True`, f_S counts the further units while they train.

        Raises:
            ValueError: if `soft` is True and `steps` is not an integer of at least 1.
        """
        if not self.soft:
            return 3.0 * report.flops
        more = extra = 0.0
        for step in range(check_integer("steps", steps, 1)):
            if self.next_update(step, 0, steps) == step:
                extra = self._margin(step, 0, steps)
            more += extra
        return 3.0 * report.flops * (1 + more / steps)

    def get_config(self):
        config = super().get_config()
        for name in ("drop_fraction", "decay"):  # The margins take their place.
            del config[name]
        own = {"margins": self.margins, "gradient_weight": self.gradient_weight, "soft": self.soft}
        return {**config, **own}

    @classmethod
    def from_config(cls, config):
        """Creates the method from the result of `get_config`."""
        return cls(**config)
