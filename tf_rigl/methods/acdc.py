"""AC/DC: sparse and dense phases in turn."""

import keras

from tf_rigl import schedules
from tf_rigl._base.arguments import check_integer
from tf_rigl.methods.pruning import Pruning

_FRACTIONS = "a fraction of the steps that `fit` runs"


@keras.saving.register_keras_serializable(package="tf_rigl")
class ACDC(Pruning):
    """Alternates between dense training and training of what magnitude pruning leaves.

    Training begins dense. From `warm_up` on, sparse and dense phases take turns until the last
    dense phase, and after that the model is sparse to the end. A sparse phase begins with pruning
    by magnitude, in one step, to the target sparsity. A dense phase begins with masks of ones:
    restored weights begin at 0, and so do their optimizer slots. In a dense phase the model is
    dense, and costs as much.

    Each time is an integer, a number of steps, or a float in (0, 1], a fraction of the steps that
    `fit` runs.

    Args:
        scope: str, "global": the magnitudes of all weights are compared, as in the paper.
            "layer": each weight is pruned to its own sparsity.
        warm_up: when the first sparse phase begins.
        phase: the length of a phase.
        last_dense: pair, when the last dense phase begins and ends.

    Raises:
        ValueError: if `scope` is unknown, or a time is out of range or not in order.

    Example:

    >>> method = ACDC(warm_up=10, phase=5, last_dense=(30, 40))
    >>> [method.is_dense(step) for step in (0, 10, 15, 20, 30, 39, 40)]
    [True, False, True, False, True, True, False]

    Reference:

    - [AC/DC](https://arxiv.org/abs/2106.12379), algorithm 1 and section 4.1.
    """

    order = "before"
    keeps_counts = False

    def __init__(self, scope="global", warm_up=0.1, phase=0.05, last_dense=(0.75, 0.85)):
        super().__init__(scope)
        self.warm_up = schedules.check_end_step(warm_up, "warm_up")
        self.phase = schedules.check_end_step(phase, "phase")
        try:
            begin, end = last_dense
        except (TypeError, ValueError):
            raise ValueError(
                "Argument `last_dense` must be a pair of times, its begin and its end. "
                f"Received: last_dense={last_dense!r}"
            ) from None
        ends = [schedules.check_end_step(each, "last_dense") for each in (begin, end)]
        self.last_dense = tuple(ends)
        for name, value, least in [("warm_up", self.warm_up, 0), ("phase", self.phase, 1)]:
            if not isinstance(value, float):
                check_integer(name, value, least)
        kinds = {type(each) for each in (self.warm_up, *ends)}
        if len(kinds) > 1 or not self.warm_up <= ends[0] <= ends[1]:
            raise ValueError(
                "Arguments `warm_up` and `last_dense` must be in order, and all of them steps or "
                f"all {_FRACTIONS}. Received: warm_up={warm_up!r}, last_dense={last_dense!r}"
            )

    @property
    def needs_length(self):
        """True if a time is a fraction of the steps that `fit` runs."""
        return any(isinstance(each, float) for each in (self.warm_up, self.phase))

    def _steps(self, first_step, run_steps):
        """Returns the times of a run as steps: warm-up, phase, and the last dense one."""
        warm_up, begin, end = (
            schedules.step_at(each, first_step, run_steps)
            for each in (self.warm_up, *self.last_dense)
        )
        return warm_up, max(1, schedules.step_at(self.phase, 0, run_steps)), begin, end

    def is_dense(self, step, first_step=0, run_steps=None) -> bool:
        """Returns whether the model is dense at a step. Arguments are those of `plan`."""
        warm_up, phase, begin, end = self._steps(first_step, run_steps)
        if begin <= step < end or step < warm_up:
            return True
        return step < begin and (step - warm_up) // phase % 2 == 1

    def next_update(self, step, first_step=0, run_steps=None):
        """Returns the first step from `step` on at which a phase begins, or None."""
        warm_up, phase, begin, end = self._steps(first_step, run_steps)
        if step <= warm_up < begin:
            return warm_up
        following = warm_up + -(-(step - warm_up) // phase) * phase
        if step < begin and following < begin:
            return following
        # Two dense phases may meet.
        if step <= begin and begin > 0 and not self.is_dense(begin - 1, first_step, run_steps):
            return begin
        return end if step <= end else None

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        """Returns what each weight keeps and grows at the begin of a phase; see `Method.plan`."""
        dense = self.is_dense(step, first_step, run_steps)
        if step > first_step and dense == self.is_dense(step - 1, first_step, run_steps):
            return None
        counts = []
        for item, n in zip(items, active, strict=True):
            keep, grow = n, 0
            if item.is_sparse and item.weight.trainable:
                if dense:
                    grow = item.pattern.units(item.shape) - n
                else:
                    most = item.target_active()
                    keep = most if self.scope == "global" else min(n, most)
            counts.append((keep, grow))
        changes = sum(keep + grow for keep, grow in counts) - sum(active)
        return counts if (changes > 0 if dense else changes < 0) else None

    def share(self, counts, scored, patterns):
        """Divides what a sparse phase keeps among the weights by magnitude."""
        shared = super().share(counts, scored, patterns)
        return [(keep, grow) for (keep, _), (_, grow) in zip(shared, counts, strict=True)]

    def update(self, weight, gradient, mask, keep, grow, pattern, seed):
        """Prunes, or makes a mask of ones if anything is to grow; see `Method.update`."""
        kept, value = super().update(weight, gradient, mask, keep, grow, pattern, seed)
        return kept | (grow > 0), value

    def cautions(self, first_step=0, run_steps=None):
        """Warns if the run is too short for phases of a step each."""
        short = isinstance(self.phase, float) and run_steps and self.phase * run_steps < 1
        if not short:
            return []
        return [
            f"A phase of AC/DC takes at least one step, which is more than {self.phase:g} of this "
            f"run of {run_steps} steps. Train longer, or pass a larger `phase`. "
            f"Received: method={self!r}"
        ]

    def train_flops(self, report, steps=None):
        """Averages dense and sparse steps: `3 f_D` and `3 f_S`.

        Raises:
            ValueError: if `steps` is not an integer of at least 1.
        """
        check_integer("steps", steps, 1)
        dense = sum(self.is_dense(step, 0, steps) for step in range(steps))
        return 3.0 * (report.dense_flops * dense + report.flops * (steps - dense)) / steps

    def get_config(self):
        times = {"warm_up": self.warm_up, "phase": self.phase, "last_dense": self.last_dense}
        return {**super().get_config(), **times}
