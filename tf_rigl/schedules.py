"""Schedules: when masks change and by how much, and how sparsity grows in gradual pruning.

These are plain functions of Python numbers. The step counter is on the host, so counts are exact
on every device.

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
from typing import TYPE_CHECKING, Any

import numpy as np

from tf_rigl._base.arguments import (
    ChecksArguments,
    check_integer,
    check_number,
    check_sparsity,
    unknown_name,
)
from tf_rigl._base.rounding import floor_product

Decay = Callable[[int, int], float]


def cosine(step: int, end_step: int) -> float:
    """Decays from 1 to 0 along half a cosine wave: `(1 + cos(pi * step / end_step)) / 2`.

    Args:
        step: int, batches seen so far.
        end_step: int, the step at which updates end.

    Returns:
        The factor on the drop fraction, a float in [0, 1].

    Example:

    >>> [round(cosine(step, 100), 3) for step in (0, 50, 100)]
    [1.0, 0.5, 0.0]

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), section 3.
    """
    return 0.5 * (1 + math.cos(step * math.pi / end_step))


def constant(step: int, end_step: int) -> float:
    """Does not decay: returns 1. Arguments and result are those of `cosine`."""
    del step, end_step
    return 1.0


def linear(step: int, end_step: int) -> float:
    """Decays linearly, `1 - step / end_step`. Arguments and result are those of `cosine`."""
    return 1 - step / end_step


def inverse_power(step: int, end_step: int) -> float:
    """Decays as `(1 - step / end_step) ** 3`. Arguments and result are those of `cosine`."""
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
        identifier: str, "cosine", "constant", "linear" or "inverse_power"; or a function of
            `(step, end_step)` that returns the factor on the drop fraction, a float in [0, 1].

    Returns:
        The function.

    Raises:
        ValueError: if the name is unknown. The message offers the closest ones.

    Example:

    >>> get_decay("linear")(25, 100)
    0.75
    """
    if callable(identifier) and not isinstance(identifier, type):
        return identifier
    if isinstance(identifier, str) and identifier in DECAYS:
        return DECAYS[identifier]
    raise unknown_name("decay", identifier, DECAYS, or_object="a function")


def name_of_decay(decay):
    """Returns the name of one of our decays, for files; any other decay as it is."""
    return next((name for name, function in DECAYS.items() if function is decay), decay)


def is_update_step(step: int, start_step: int, end_step: int, update_interval: int) -> bool:
    """Tells whether masks change at a step.

    Args:
        step: int, batches seen before this one: the first batch is step 0.
        start_step: int, the first step at which masks may change.
        end_step: int, the step from which masks no longer change.
        update_interval: int, steps between two updates.

    Returns:
        True if `start_step <= step < end_step` and `step` is a multiple of
        `update_interval`.

    Example:

    >>> [t for t in range(500) if is_update_step(t, 100, 400, 100)]
    [100, 200, 300]
    """
    return start_step <= step < end_step and step % update_interval == 0


def check_end_step(value, argument="end_step"):
    """Checks an `end_step`.

    Args:
        value: an integer (a step), or a float in (0, 1] (a fraction of the steps of `fit`).
        argument: str, the name of the argument, for messages.

    Returns:
        The value as an int or a float.

    Raises:
        ValueError: if it is neither.

    Example:

    >>> check_end_step(1), check_end_step(1.0)
    (1, 1.0)
    """
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    try:
        return check_number(argument, value, above=0, at_most=1)
    except ValueError:
        raise ValueError(
            f"Argument `{argument}` must be an integer (a step) or a float in (0, 1] "
            f"(a fraction of the steps that `fit` runs). Received: {argument}={value!r}"
        ) from None


def step_at(when, first_step, run_steps) -> int:
    """Returns a step that is given as one, or as a fraction of a run.

    Args:
        when: int, the step; or float, the fraction.
        first_step: int, the step at which the run begins.
        run_steps: int, the number of its steps; not used if `when` is a step.

    Example:

    >>> step_at(70, 100, 200), step_at(0.7, 100, 200)
    (70, 240)
    """
    if isinstance(when, float):
        return first_step + int(floor_product(when, run_steps))
    return when


@dataclasses.dataclass(frozen=True)
class _PruningSchedule(ChecksArguments):
    """The base class of pruning schedules: it decides when to prune.

    A schedule receives the batch number, starting at 1. It returns whether to prune before that
    batch, and to which sparsity. tensorflow-model-optimization's schedules do the same.
    """

    if TYPE_CHECKING:  # Fields of each subclass, in its own order.

        @property
        def begin_step(self) -> int: ...
        @property
        def end_step(self) -> Any: ...
        @property
        def frequency(self) -> int: ...
        @property
        def _ends_pruned(self) -> bool: ...

    def __post_init__(self):
        self._keep("begin_step", check_integer("begin_step", self.begin_step, 0))
        self._keep("frequency", check_integer("frequency", self.frequency, 1))
        end = self._keep("end_step", check_end_step(self.end_step))
        if isinstance(end, int) and end != -1 and end < self.begin_step:
            raise ValueError(
                "Argument `end_step` must not be less than `begin_step`. Received: "
                f"begin_step={self.begin_step}, end_step={end}"
            )

    def _keep(self, name, value):
        """Keeps a checked value in place of the one given: JSON has no numbers of NumPy."""
        object.__setattr__(self, name, value)
        return value

    @property
    def needs_length(self) -> bool:
        """True if `end_step` is a fraction of the steps that `fit` runs."""
        return not isinstance(self.end_step, numbers.Integral)

    def over(self, first_step, run_steps):
        """Returns this schedule for one run of `fit`, with its end as a step.

        Args:
            first_step: int, the step at which the run began. If `end_step` is a fraction, it
                and `begin_step` count from there.
            run_steps: int, the number of steps of the run.

        Raises:
            ValueError: if the end comes before `begin_step` in this run.
        """
        if not self.needs_length:
            return self
        begin = first_step + self.begin_step
        end = first_step + int(floor_product(self.end_step, run_steps))
        if end < begin:
            raise ValueError(
                f"Argument `end_step` is {end} in this run of {run_steps} steps. It must not be "
                f"less than `begin_step`. Received: {self!r}"
            )
        return dataclasses.replace(self, begin_step=begin, end_step=end)

    def next_step(self, step):
        """Returns the first batch number from `step` on at which to prune, or None."""
        waited = max(0, -(-(step - self.begin_step) // self.frequency))
        following = self.begin_step + waited * self.frequency
        if self.end_step < 0 or following <= self.end_step:
            return following
        return self.end_step if step <= self.end_step and self._ends_pruned else None

    def is_due(self, step) -> bool:
        """Tells whether to prune before batch `step`."""
        if step < self.begin_step or 0 <= self.end_step < step:
            return False
        return (step - self.begin_step) % self.frequency == 0 or (
            step == self.end_step and self._ends_pruned
        )

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class ConstantSparsity(_PruningSchedule):
    """Prunes to the same sparsity every time.

    Args:
        target_sparsity: float in [0, 1), or None for the one given to `tf_rigl.sparsify`.
        begin_step: int, number of the first batch to prune before; the first batch is 1.
        end_step: int, number of the last batch to prune before, or -1 for no end; or float in
            (0, 1], that fraction of the steps that `fit` runs.
        frequency: int, batches between two prunings.

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

    _ends_pruned = False  # The sparsity is constant, so the end needs no pruning of its own.

    def __post_init__(self):
        super().__post_init__()
        if self.target_sparsity is not None:
            value = check_sparsity("target_sparsity", self.target_sparsity)
            self._keep("target_sparsity", value)

    @property
    def final_sparsity(self):
        """`target_sparsity`."""
        return self.target_sparsity

    def __call__(self, step):
        """Returns whether to prune before batch `step`, and the sparsity.

        Without `target_sparsity`, the second number is 1: the fraction of the target to reach.
        """
        return self.is_due(step), 1.0 if self.target_sparsity is None else self.target_sparsity

    def density(self, step):
        """Returns the density at `step`, 1 - sparsity, as float32."""
        return np.float32(1) - np.float32(self(step)[1])


@dataclasses.dataclass(frozen=True)
class PolynomialDecay(_PruningSchedule):
    """Raises sparsity along a polynomial, fast at first and then more and more slowly.

    `s(t) = final + (initial - final) * (1 - (t - begin) / (end - begin)) ** power`

    The formula is computed in float32, in the same order as tensorflow-model-optimization's
    compiled graph, so that counts agree except for rare ties. One thing differs: the last pruning
    is always at `end_step`, even if `frequency` does not divide the length.

    Args:
        initial_sparsity: float in [0, 1), the sparsity at `begin_step`.
        final_sparsity: float in [0, 1), the sparsity at `end_step`, or None for the one given
            to `tf_rigl.sparsify`.
        begin_step: int, number of the first batch to prune before; the first batch is 1.
        end_step: int, number of the last batch to prune before; or float in (0, 1], that
            fraction of the steps that `fit` runs.
        power: float, the exponent, positive.
        frequency: int, batches between two prunings.

    Raises:
        ValueError: if an argument is out of range, if `initial_sparsity` is more than
            `final_sparsity`, or if `end_step` comes before `begin_step`.

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
        value = check_sparsity("initial_sparsity", self.initial_sparsity)
        self._keep("initial_sparsity", value)
        if self.final_sparsity is not None:
            self._keep("final_sparsity", check_sparsity("final_sparsity", self.final_sparsity))
            if self.initial_sparsity > self.final_sparsity:  # Pruned weights do not return.
                raise ValueError(
                    "Argument `initial_sparsity` must not be more than `final_sparsity`. Received: "
                    f"initial_sparsity={self.initial_sparsity}, "
                    f"final_sparsity={self.final_sparsity}"
                )
        power = check_number("power", self.power, above=0, finite=False)
        self._keep("power", int(power) if isinstance(self.power, numbers.Integral) else power)
        if self.end_step == -1:
            raise ValueError(
                "Argument `end_step` must not be -1: the polynomial needs an end. "
                "Received: end_step=-1"
            )

    def __call__(self, step):
        """Returns whether to prune before batch `step`, and the sparsity.

        Without `final_sparsity`, the second number is the fraction of the target to reach.
        """
        left, final = self._left(step)
        return self.is_due(step), float(left + np.float32(final))

    def density(self, step):
        """Returns the density at `step`, 1 - sparsity, as float32."""
        left, final = self._left(step)
        return (np.float32(1) - np.float32(final)) - left

    def _left(self, step):
        """Returns the sparsity at `step` minus the final one (at most 0), and the final one."""
        final = 1.0 if self.final_sparsity is None else self.final_sparsity
        one, length = np.float32(1), np.float32(max(1, self.end_step - self.begin_step))
        # TensorFlow's graph optimizer turns quotients and whole powers into products.
        way = np.float32(step - self.begin_step) * (one / length)
        if self.begin_step == self.end_step:
            way = np.float32(step >= self.end_step)  # All in one step.
        rest = one - min(one, max(np.float32(0), way))
        if self.power in (1, 2, 3):
            power = (rest, rest * rest, rest * (rest * rest))[int(self.power) - 1]
        else:
            power = np.power(rest, np.float32(self.power), dtype=np.float32)
        return np.float32(self.initial_sparsity - final) * power, final
