"""Gradual magnitude pruning: from dense to sparse during training."""

import functools
import importlib

import keras
import numpy as np

from tf_rigl import distributions, schedules
from tf_rigl._base.arguments import check_integer
from tf_rigl.methods.base import deserialize_function
from tf_rigl.methods.pruning import Pruning

_OWN = {cls.__name__: cls for cls in (schedules.PolynomialDecay, schedules.ConstantSparsity)}
_TFMOT = "tensorflow_model_optimization.sparsity.keras"
_TFMOT_SCHEDULES = ("ConstantSparsity", "PolynomialDecay")
_LAST_STEP = 2**31 - 1
_EXACT_IN_FLOAT32 = 2**24


@keras.saving.register_keras_serializable(package="tf_rigl")
class MagnitudePruning(Pruning):
    """Prunes the weights of smallest magnitude during training.

    The schedule receives the batch number, starting at 1, and says whether to prune before that
    batch, and to which sparsity s. The batch is then trained on. Pruned weights do not return.
    Steps and counts are those of `prune_low_magnitude` in tensorflow-model-optimization. A
    weight of N units keeps

    - `max(1, round(N * (1 - s)))` units if the schedule has a final sparsity of its own,
    - `N - floor(s * N)` units, as with all methods, if it takes that from `tf_rigl.sparsify`.

    With a global scope, N counts the units of all weights together. (A schedule that takes its
    end from `tf_rigl.sparsify` may keep a unit more for each weight before its end.)

    The schedule sets how sparsity grows, and `tf_rigl.sparsify` how sparse each layer becomes: if
    the schedule is at s and ends at `final`, a layer of target sparsity t is pruned to
    `t * s / final`. So every distribution works with every schedule. If a function gives
    sparsity 0 for the last possible batch, its final sparsity is unknown; then every layer that
    is not dense is pruned to s itself.

    Args:
        schedule: `tf_rigl.schedules.PolynomialDecay` (the default) or `ConstantSparsity`; any
            `PruningSchedule` of tensorflow-model-optimization; or a function of the batch number
            that returns whether to prune, and the sparsity. Its final sparsity, if it has one,
            is the default of `tf_rigl.sparsify`.
        scope: str, "layer": each weight is pruned to its own sparsity. "global": the magnitudes
            of all weights are compared.

    Raises:
        ValueError: if `schedule` is not a pruning schedule, or `scope` is unknown.

    Example:

    >>> schedule = tf_rigl.schedules.PolynomialDecay(end_step=5000)
    >>> MagnitudePruning(schedule).schedule(5000)  # Prune now, all the way to the target.
    (True, 1.0)

    Reference:

    - [To prune, or not to prune](https://arxiv.org/abs/1710.01878).
    """

    order = "before"

    def __init__(self, schedule=None, scope="layer"):
        super().__init__(scope)
        schedule = schedules.PolynomialDecay() if schedule is None else schedule
        if not _is_schedule(schedule):
            raise ValueError(
                "Argument `schedule` must be a pruning schedule: a function of the batch number "
                "that returns whether to prune, and the sparsity, such as "
                "`tf_rigl.schedules.PolynomialDecay()`. "
                f"Received: schedule={schedule!r}"
            )
        self.schedule = schedule

    @property
    def needs_length(self):
        """True if the schedule ends at a fraction of the steps that `fit` runs."""
        return getattr(self.schedule, "needs_length", False)

    @property
    def final_sparsity(self):
        """The sparsity at which the schedule ends, or None if that is unknown."""
        for name in ("final_sparsity", "target_sparsity"):
            if hasattr(self.schedule, name):
                return getattr(self.schedule, name)
        return _read(self.schedule(_LAST_STEP))[1] or None

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        """Returns the units that each weight keeps, or None if nothing is pruned."""
        schedule = _in_run(self.schedule, first_step, run_steps)
        sparsity = _asked(schedule, step + 1)
        if sparsity is None:
            return None
        density = schedule.density(step + 1) if hasattr(schedule, "density") else None
        reached = sparsity, density, self.final_sparsity
        keep, pruned = list(active), {}
        for number, item in enumerate(items):
            if item.is_sparse and item.weight.trainable:
                units = pruned[number] = item.pattern.units(item.shape)
                left = self._left(units, item.target_sparsity, *reached)
                keep[number] = item.pattern.possible(item.shape, left)
        if self.scope == "layer":
            keep = [min(n, now) for n, now in zip(keep, active, strict=True)]
        elif pruned and not self._is_open(self.final_sparsity):
            targets = [items[number].target_sparsity for number in pruned]
            total = self._left_together(list(pruned.values()), targets, *reached)
            _move_to(total, keep, pruned)
        return [(n, 0) for n in keep] if sum(keep) < sum(active) else None

    def _left_together(self, units, targets, sparsity, density, final):
        """Returns the units that all weights keep when the schedule is at `sparsity`.

        Args:
            units: list of int, the units of each weight.
            targets: list of float, its target sparsity.
            sparsity, density, final: as for `_left`.
        """
        total = sum(units)
        zeros = int(distributions.zeros(targets, units).sum())
        asked = final is not None and zeros == distributions.zeros(final, total)
        target = final if asked else zeros / total
        return self._left(total, target, sparsity, density, final)

    def _left(self, units, target, sparsity, density, final):
        """Returns how many of `units` are left when the schedule is at `sparsity`.

        Args:
            units: int.
            target: float, their target sparsity.
            sparsity: float.
            density: float32, 1 - sparsity as the schedule computes it, or None.
            final: float, the sparsity at which the schedule ends, or None.
        """
        if self._is_open(final):  # `sparsity` is the fraction of the target reached so far.
            return units - int(distributions.zeros(target * sparsity, units))
        # Rounds in float32 as tensorflow-model-optimization does, as long as that is exact.
        number = np.float32 if units < _EXACT_IN_FLOAT32 else np.float64
        if final and target != final:
            density = number(1) - number(target * (sparsity / final))
        elif density is None or number is np.float64:
            density = number(1) - number(sparsity)
        return max(1, int(np.round(number(units) * density)))

    def _is_open(self, final):
        """True if the schedule gives fractions of the target that `sparsify` sets."""
        return final is None and type(self.schedule) in _OWN.values()

    def next_update(self, step, first_step=0, run_steps=None):
        """Returns the first step from `step` on that may prune, or None."""
        schedule = _in_run(self.schedule, first_step, run_steps)
        if not hasattr(schedule, "next_step"):
            return step  # A function may prune at any step.
        following = schedule.next_step(step + 1)
        ended = (
            run_steps is not None and following is not None and following > first_step + run_steps
        )
        return None if following is None or ended else following - 1

    @property
    def ends_at_target(self):
        """False if the schedule does not say its end, or ends at 0: weights are then as it says."""
        final = self.final_sparsity
        return bool(final) or self._is_open(final)

    def cautions(self, first_step=0, run_steps=None):
        """Warns if a schedule that rises gradually prunes in a single step."""
        if not self.needs_length:  # The end may lie in a later run.
            first_step, run_steps = 0, None
        schedule = _in_run(self.schedule, first_step, run_steps)
        if not isinstance(schedule, schedules.PolynomialDecay):
            return []
        if schedule.begin_step == schedule.end_step or _prunings(schedule) != 1:
            return []
        where = "" if run_steps is None else f" of this run of {run_steps} steps"
        return [
            f"The model is pruned to its final sparsity in a single step{where}, not gradually: "
            f"`frequency` is {schedule.frequency}, and pruning lasts from step "
            f"{schedule.begin_step} to {schedule.end_step}. Pass a smaller `frequency`, or train "
            f"longer. Received: method={self!r}"
        ]

    def train_flops(self, report, steps=None):
        """Averages the cost over training, which falls as sparsity grows.

        With s(t) the sparsity at step t of T steps, a layer of target sparsity t_l and F_l dense
        FLOPs saves `mean(s(t)) / final * t_l * F_l`. The result is
        `3 * (dense FLOPs - what all layers save)`.

        Raises:
            ValueError: if `steps` is not an integer of at least 1.
        """
        if steps is None:
            raise ValueError(
                "Argument `steps` must be an integer, the number of training steps: the cost of "
                "gradual pruning changes during training. Received: steps=None"
            )
        check_integer("steps", steps, 1)
        final = self.final_sparsity
        as_it_is = final is None and not self._is_open(final)
        schedule = _in_run(self.schedule, 0, steps)
        reached = total = 0.0
        for step in range(1, steps + 1):
            reached = max(reached, _asked(schedule, step) or 0.0)
            total += reached
        mean = total / steps / (final or 1.0)
        pruned = [row for row in report.layers if row.sparsity > 0]
        saved = sum(row.dense_flops * (1 if as_it_is else row.sparsity) for row in pruned)
        return 3.0 * (report.dense_flops - mean * saved)

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {"schedule": _serialize(self.schedule), **super().get_config()}

    @classmethod
    def from_config(cls, config):
        """Creates the method from the result of `get_config`."""
        return cls(**{**config, "schedule": _deserialize(config["schedule"])})


def _is_schedule(schedule):
    """True if an object can be called as a pruning schedule."""
    if isinstance(schedule, type) or not callable(schedule):
        return False
    if type(schedule) in _OWN.values():
        return True
    try:
        _read(schedule(1))
    except (TypeError, ValueError):
        return False
    return True


def _in_run(schedule, first_step, run_steps):
    """Returns the schedule for one run of `fit`: its end is a step, and tfmot's become ours."""
    if getattr(schedule, "needs_length", False):
        return _ended(schedule, first_step, run_steps)
    return _own(schedule) if _is_tfmot(schedule) else schedule


@functools.lru_cache
def _ended(schedule, first_step, run_steps):
    """Returns the schedule with its end as a step, computed once for each run."""
    return schedule.over(first_step, run_steps)


@functools.lru_cache
def _own(schedule):
    """Returns our equivalent of a tfmot schedule, which runs no TensorFlow operations."""
    cls = {"PolynomialDecay": _PolynomialDecay}.get(type(schedule).__name__)
    return (cls or schedules.ConstantSparsity)(**schedule.get_config()["config"])


def _prunings(schedule):
    """Returns in how many steps a schedule with an end prunes, or 2 if there are more."""
    found, step = 0, schedule.next_step(1)
    while step is not None and found < 2:
        found += schedule(step)[1] > 0
        step = schedule.next_step(step + 1)
    return found


def _move_to(total, keep, units):
    """Changes how many units weights keep so that they keep `total` together.

    With a global scope only the total counts: scores divide it.

    Args:
        total: int.
        keep: list of int, which is changed.
        units: dict of the numbers of the weights that may change to their units.
    """
    extra = sum(keep[number] for number in units) - total
    for number, most in units.items():
        less = max(min(extra, keep[number]), keep[number] - most)
        keep[number], extra = keep[number] - less, extra - less


class _PolynomialDecay(schedules.PolynomialDecay):
    """Does not prune at `end_step` if `frequency` does not divide the length, as in tfmot."""

    _ends_pruned = False


def _asked(schedule, step):
    """Returns the sparsity to which a schedule prunes before batch `step`, or None."""
    if hasattr(schedule, "is_due") and not schedule.is_due(step):
        return None
    due, sparsity = _read(schedule(step))
    return sparsity if due else None


def _read(answer):
    """Converts the result of a schedule, which may hold tensors, to a bool and a float."""
    due, sparsity = answer
    return bool(due), float(sparsity)


def _is_tfmot(schedule):
    """True if a schedule is one of tensorflow-model-optimization's own."""
    cls = type(schedule)
    return cls.__module__.startswith("tensorflow_model_optimization") and (
        cls.__name__ in _TFMOT_SCHEDULES
    )


def _serialize(schedule):
    """Returns a schedule as JSON: ours by name, tfmot's as tfmot does, others as Keras does."""
    if type(schedule) in _OWN.values():
        return {"class_name": type(schedule).__name__, "config": schedule.get_config()}
    if _is_tfmot(schedule):
        return {**schedule.get_config(), "module": _TFMOT}
    value = keras.saving.serialize_keras_object(schedule)
    config = value.get("config") if isinstance(value, dict) else None
    if isinstance(config, dict) and set(config) == {"class_name", "config"}:
        value["config"] = config["config"]  # Subclasses of tfmot's base class nest their config.
    return value


def _deserialize(value):
    """The inverse of `_serialize`."""
    if not isinstance(value, dict):
        return value
    name = value.get("class_name")
    if name in _OWN and "module" not in value:
        return _OWN[name](**value["config"])
    if name in _TFMOT_SCHEDULES and value.get("module") == _TFMOT:
        return getattr(importlib.import_module(_TFMOT), name)(**value["config"])
    return deserialize_function("schedule", value)
