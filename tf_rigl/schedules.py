"""When masks are updated, and how much of them; how sparsity grows in gradual pruning.

Plain arithmetic on Python numbers: the step counter lives on the host, so counts are
exact on every device.

Reference:

- [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3 "Update
  schedule" and appendix G (other decays).
- [To prune, or not to prune](https://arxiv.org/abs/1710.01878), section 3 (gradual
  pruning).
"""

import dataclasses
import math
import numbers
from collections.abc import Callable

import numpy as np

from tf_rigl._base.arguments import check_integer, check_sparsity, unknown_name

Decay = Callable[[int, int], float]


def cosine(step: int, end_step: int) -> float:
    """Half a cosine wave, from 1 at step 0 to 0 at `end_step`.

    Args:
        step: int, batches seen so far.
        end_step: int, the step at which updates end.

    Returns:
        The factor on the drop fraction, a float in [0, 1].

    Example:

    >>> round(cosine(50, 100), 3)
    0.5
    """
    return 0.5 * (1 + math.cos(step * math.pi / end_step))


def constant(step: int, end_step: int) -> float:
    """Always 1. Arguments and result are those of `cosine`."""
    del step, end_step
    return 1.0


def linear(step: int, end_step: int) -> float:
    """A straight line from 1 to 0. Arguments and result are those of `cosine`."""
    return 1 - step / end_step


def inverse_power(step: int, end_step: int) -> float:
    """The cube of the straight line. Arguments and result are those of `cosine`."""
    return (1 - step / end_step) ** 3


DECAYS = {
    "cosine": cosine,
    "constant": constant,
    "linear": linear,
    "inverse_power": inverse_power,
}


def get_decay(identifier) -> Decay:
    """Looks up a decay.

    Args:
        identifier: "cosine", "constant", "linear", "inverse_power", or a function of
            `(step, end_step)` that returns the factor on the drop fraction, a float
            in [0, 1].

    Returns:
        The function.

    Raises:
        ValueError: if the name is unknown; the message offers the closest ones.

    Example:

    >>> get_decay("linear")(25, 100)
    0.75
    """
    if callable(identifier):
        return identifier
    if isinstance(identifier, str) and identifier in DECAYS:
        return DECAYS[identifier]
    raise unknown_name("decay", identifier, DECAYS)


def is_update_step(step: int, start_step: int, end_step: int, update_interval: int) -> bool:
    """Whether masks change at `step`, counted in batches from 0.

    Args:
        step: int, batches seen before this one.
        start_step: int, the first step at which masks may change.
        end_step: int, the first step at which they may not any more.
        update_interval: int, steps between changes.

    Returns:
        True when `start_step <= step < end_step` and `step` is a multiple of
        `update_interval`.

    Example:

    >>> [t for t in range(500) if is_update_step(t, 100, 400, 100)]
    [100, 200, 300]
    """
    return start_step <= step < end_step and step % update_interval == 0


@dataclasses.dataclass(frozen=True)
class _PruningSchedule:
    """What pruning schedules share: when to prune.

    Called with the number of a batch, counted from 1, a schedule returns whether to prune
    before it is trained on, and to what sparsity: the protocol, and the count, of
    tensorflow-model-optimization's schedules.
    """

    def __post_init__(self):
        check_integer("begin_step", self.begin_step, 0)
        check_integer("frequency", self.frequency, 1)
        end = self.end_step
        if isinstance(end, numbers.Integral) and not isinstance(end, bool):
            if end != -1 and end < self.begin_step:
                raise ValueError(
                    "Argument `end_step` must not be less than `begin_step`. Received: "
                    f"begin_step={self.begin_step}, end_step={end}"
                )
        elif not isinstance(end, numbers.Real) or isinstance(end, bool) or not 0 < end <= 1:
            raise ValueError(
                "Argument `end_step` must be an integer (a step) or a float in (0, 1] "
                f"(a fraction of the steps that `fit` runs). Received: end_step={end!r}"
            )

    @property
    def needs_length(self) -> bool:
        """Whether the end is a fraction of the steps that `fit` will run."""
        return not isinstance(self.end_step, numbers.Integral)

    def over(self, first_step, run_steps):
        """The schedule with its end as a step, for a run of `fit`.

        Args:
            first_step: int, the step at which the run began, from which a fraction, and
                `begin_step` with it, counts.
            run_steps: int, how many steps the run has.
        """
        if not self.needs_length:
            return self
        begin = first_step + self.begin_step
        end = first_step + int(self.end_step * run_steps)
        if end < begin:
            raise ValueError(
                f"Argument `end_step` is {end} in this run of {run_steps} steps, which must not be "
                f"less than `begin_step`. Received: {self!r}"
            )
        return dataclasses.replace(self, begin_step=begin, end_step=end)

    def next_step(self, step):
        """The first step from `step` on at which to prune, or None."""
        waited = max(0, -(-(step - self.begin_step) // self.frequency))
        following = self.begin_step + waited * self.frequency
        if self.end_step < 0 or following <= self.end_step:
            return following
        return self.end_step if step <= self.end_step and self._ends_pruned else None

    def is_due(self, step) -> bool:
        """Whether to prune before batch `step`."""
        if step < self.begin_step or 0 <= self.end_step < step:
            return False
        return (step - self.begin_step) % self.frequency == 0 or (
            step == self.end_step and self._ends_pruned
        )

    def get_config(self):
        """The arguments of the constructor, for serialisation."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ConstantSparsity(_PruningSchedule):
    """Prunes to the same sparsity every time.

    Args:
        target_sparsity: float in [0, 1), or None for that of `tf_rigl.sparsify`.
        begin_step: int, the first batch before which to prune, counted from 1.
        end_step: int, the last; -1 for no end. Or float in (0, 1], that fraction of the
            steps that `fit` will run.
        frequency: int, batches from one time to the next.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> ConstantSparsity(0.5, begin_step=100)(100)
    (True, 0.5)
    """

    target_sparsity: float | None = None
    begin_step: int = 0
    end_step: int | float = -1
    frequency: int = 100

    _ends_pruned = False  # Nothing changes between times, so nothing is missed.

    def __post_init__(self):
        super().__post_init__()
        if self.target_sparsity is not None:
            check_sparsity("target_sparsity", self.target_sparsity)

    @property
    def final_sparsity(self):
        """`target_sparsity`."""
        return self.target_sparsity

    def __call__(self, step):
        """Whether to prune before batch `step`, and to what sparsity (1: all that is due)."""
        return self.is_due(step), 1.0 if self.target_sparsity is None else self.target_sparsity

    def density(self, step):
        """What is left at `step`, as float32."""
        return np.float32(1) - np.float32(self(step)[1])


@dataclasses.dataclass(frozen=True)
class PolynomialDecay(_PruningSchedule):
    """Raises sparsity along a polynomial: steep at first, then slower and slower.

    `s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** power`, in
    float32 and in the order of tensorflow-model-optimization's compiled graph, so that
    counts agree but for rare ties. Unlike there, the last time is always at `end_step`,
    whether or not `frequency` divides.

    Args:
        initial_sparsity: float in [0, 1), at `begin_step`.
        final_sparsity: float in [0, 1), at `end_step`, or None for that of
            `tf_rigl.sparsify`.
        begin_step: int, the first batch before which to prune, counted from 1.
        end_step: int, the last; or float in (0, 1], that fraction of the steps that `fit`
            will run.
        power: float, the exponent.
        frequency: int, batches from one time to the next.

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> schedule = PolynomialDecay(0.0, 0.8, begin_step=0, end_step=1000)
    >>> [round(schedule(step)[1], 3) for step in (0, 500, 1000)]
    [0.0, 0.7, 0.8]

    Reference:

    - [To prune, or not to prune](https://arxiv.org/abs/1710.01878), equation 1.
    """

    initial_sparsity: float = 0.0
    final_sparsity: float | None = None
    begin_step: int = 0
    end_step: int | float = 0.75
    power: float = 3
    frequency: int = 100

    _ends_pruned = True

    def __post_init__(self):
        super().__post_init__()
        check_sparsity("initial_sparsity", self.initial_sparsity)
        if self.final_sparsity is not None:
            check_sparsity("final_sparsity", self.final_sparsity)
            if self.initial_sparsity > self.final_sparsity:  # What is pruned does not come back.
                raise ValueError(
                    "Argument `initial_sparsity` must not be more than `final_sparsity`. Received: "
                    f"initial_sparsity={self.initial_sparsity}, "
                    f"final_sparsity={self.final_sparsity}"
                )
        if (
            isinstance(self.power, bool)
            or not isinstance(self.power, numbers.Real)
            or not self.power > 0
        ):
            raise ValueError(
                f"Argument `power` must be a positive number. Received: power={self.power!r}"
            )
        if self.end_step == -1:
            raise ValueError("Argument `end_step` must not be -1: the polynomial has an end.")

    def __call__(self, step):
        """Whether to prune before batch `step`, and to what sparsity.

        Without `final_sparsity`, it is the fraction of the way there.
        """
        left, final = self._left(step)
        return self.is_due(step), float(left + np.float32(final))

    def density(self, step):
        """What is left at `step`, as float32."""
        left, final = self._left(step)
        return (np.float32(1) - np.float32(final)) - left

    def _left(self, step):
        """How far sparsity is from the final one (at most 0), and that."""
        final = 1.0 if self.final_sparsity is None else self.final_sparsity
        one, length = np.float32(1), np.float32(max(1, self.end_step - self.begin_step))
        # TensorFlow's graph optimizer makes products of quotients and of whole powers.
        way = np.float32(step - self.begin_step) * (one / length)
        if self.begin_step == self.end_step:
            way = np.float32(step >= self.end_step)  # All at once.
        rest = one - min(one, max(np.float32(0), way))
        if self.power in (1, 2, 3):
            power = (rest, rest * rest, rest * (rest * rest))[int(self.power) - 1]
        else:
            power = np.power(rest, np.float32(self.power), dtype=np.float32)
        return np.float32(self.initial_sparsity - final) * power, final
