"""Gradual magnitude pruning: from dense to sparse while training."""

import functools
import importlib

import keras
import numpy as np

from tf_rigl import distributions, schedules
from tf_rigl._base.arguments import check_integer
from tf_rigl.methods.pruning import Pruning

_OWN = {cls.__name__: cls for cls in (schedules.PolynomialDecay, schedules.ConstantSparsity)}
_TFMOT = "tensorflow_model_optimization.sparsity.keras"
_TFMOT_SCHEDULES = ("ConstantSparsity", "PolynomialDecay")
_LAST_STEP = 2**31 - 1
_EXACT_IN_FLOAT32 = 2**24


@keras.saving.register_keras_serializable(package="tf_rigl")
class MagnitudePruning(Pruning):
    """Takes away the weights of smallest magnitude while the network trains.

    Before the batches that the schedule names, counted from 1, each weight is pruned to
    the sparsity that it gives, and then the batch is trained on: the steps, and the
    counts, of `prune_low_magnitude` in tensorflow-model-optimization: at sparsity s a
    weight of N entries keeps `max(1, round(N (1 - s)))` where the schedule names its final
    sparsity, and `N - floor(s N)`, as all methods do, where it leaves that to
    `tf_rigl.sparsify`. What was pruned does not come back.

    A schedule says how sparsity grows, `tf_rigl.sparsify` how sparse each layer becomes: a
    layer of target sparsity t is pruned to `t * s / final` when the schedule, which ends at
    `final`, is at s. So every distribution goes with every schedule. The s of a function
    that gives 0 in the far future is taken as it is in every layer that is not dense.

    Args:
        schedule: `tf_rigl.schedules.PolynomialDecay` (the default) or
            `ConstantSparsity`; any `PruningSchedule` of
            tensorflow-model-optimization; or a function of the number of the batch that
            returns whether to prune and to what sparsity. If it names a sparsity to end
            at, that is the default of `tf_rigl.sparsify`.
        scope: str, "layer" (each weight to its own sparsity) or "global" (magnitudes of
            all weights are compared).

    Raises:
        ValueError: if an argument is out of range.

    Example:

    >>> MagnitudePruning(PolynomialDecay(end_step=5000)).schedule(5000)
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
                "Argument `schedule` must be a pruning schedule: a function of the number of the "
                "batch that returns whether to prune and to what sparsity, such as "
                "`tf_rigl.schedules.PolynomialDecay()`. "
                f"Received: schedule={schedule!r}"
            )
        self.schedule = schedule

    @property
    def needs_length(self):
        return getattr(self.schedule, "needs_length", False)

    @property
    def final_sparsity(self):
        """The sparsity at which the schedule ends, or None if it does not say."""
        for name in ("final_sparsity", "target_sparsity"):
            if hasattr(self.schedule, name):
                return getattr(self.schedule, name)
        return _read(self.schedule(_LAST_STEP))[1] or None

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        schedule = _in_run(self.schedule, first_step, run_steps)
        sparsity = _asked(schedule, step + 1)
        if sparsity is None:
            return None
        final = self.final_sparsity
        density = schedule.density(step + 1) if hasattr(schedule, "density") else None
        keep = [
            self._kept(item, sparsity, density, final)
            if item.is_sparse and item.weight.trainable
            else now
            for now, item in zip(active, items, strict=True)
        ]
        if self.scope == "layer":
            keep = [min(n, now) for n, now in zip(keep, active, strict=True)]
        return [(n, 0) for n in keep] if sum(keep) < sum(active) else None

    def _kept(self, item, sparsity, density, final):
        """How many units of a weight are kept where the schedule is at `sparsity`."""
        return item.pattern.possible(item.shape, self._nearest(item, sparsity, density, final))

    def _nearest(self, item, sparsity, density, final):
        """The same, whatever numbers the pattern allows."""
        units, target = item.pattern.units(item.shape), item.target_sparsity
        if self._is_open(final):  # A fraction of the target, at last the counts of all methods.
            return units - int(distributions.zeros(target * sparsity, units))
        # Rounded as tensorflow-model-optimization does it, while that is exact.
        number = np.float32 if units < _EXACT_IN_FLOAT32 else np.float64
        if final and target != final:
            density = number(1) - number(target * (sparsity / final))
        elif density is None or number is np.float64:
            density = number(1) - number(sparsity)
        return max(1, int(np.round(number(units) * density)))

    def _is_open(self, final):
        """Whether the schedule gives fractions of a target that it leaves to others."""
        return final is None and type(self.schedule) in _OWN.values()

    def next_update(self, step, first_step=0, run_steps=None):
        schedule = _in_run(self.schedule, first_step, run_steps)
        if not hasattr(schedule, "next_step"):
            return step  # Nothing is known of it.
        following = schedule.next_step(step + 1)
        ended = (
            run_steps is not None and following is not None and following > first_step + run_steps
        )
        return None if following is None or ended else following - 1

    def train_flops(self, report, steps=None):
        """The mean over training, layer by layer: dense at first, then ever less."""
        if steps is None:
            raise ValueError(
                "Argument `steps` must be an integer, how many steps training has: the cost of "
                "gradual pruning changes on the way. Received: steps=None"
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
        return {"schedule": _serialize(self.schedule), **super().get_config()}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "schedule": _deserialize(config["schedule"])})


def _is_schedule(schedule):
    """Whether it gives what a pruning schedule gives."""
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
    """The schedule as it is in a run of `fit`: its end a step, tfmot's as our own."""
    if getattr(schedule, "needs_length", False):
        return _ended(schedule, first_step, run_steps)
    return _own(schedule) if _is_tfmot(schedule) else schedule


@functools.lru_cache
def _ended(schedule, first_step, run_steps):
    return schedule.over(first_step, run_steps)


@functools.lru_cache
def _own(schedule):
    """A schedule of tfmot, made of TensorFlow operations, as one that takes no time."""
    cls = {"PolynomialDecay": _PolynomialDecay}.get(type(schedule).__name__)
    return (cls or schedules.ConstantSparsity)(**schedule.get_config()["config"])


class _PolynomialDecay(schedules.PolynomialDecay):
    """tfmot's: it misses the end where `frequency` does not divide."""

    _ends_pruned = False


def _asked(schedule, step):
    """The sparsity to which a schedule prunes before batch `step`, or None."""
    if hasattr(schedule, "is_due") and not schedule.is_due(step):
        return None
    due, sparsity = _read(schedule(step))
    return sparsity if due else None


def _read(answer):
    """What a schedule returns, tensors included, as Python numbers."""
    due, sparsity = answer
    return bool(due), float(sparsity)


def _is_tfmot(schedule):
    cls = type(schedule)
    return cls.__module__.startswith("tensorflow_model_optimization") and (
        cls.__name__ in _TFMOT_SCHEDULES
    )


def _serialize(schedule):
    if type(schedule) in _OWN.values():
        return {"class_name": type(schedule).__name__, "config": schedule.get_config()}
    if _is_tfmot(schedule):
        return {**schedule.get_config(), "module": _TFMOT}
    value = keras.saving.serialize_keras_object(schedule)
    config = value.get("config") if isinstance(value, dict) else None
    if isinstance(config, dict) and set(config) == {"class_name", "config"}:
        value["config"] = config["config"]  # tfmot's convention for schedules of one's own.
    return value


def _deserialize(value):
    if not isinstance(value, dict):
        return value
    name = value.get("class_name")
    if name in _OWN and "module" not in value:
        return _OWN[name](**value["config"])
    if name in _TFMOT_SCHEDULES and value.get("module") == _TFMOT:
        return getattr(importlib.import_module(_TFMOT), name)(**value["config"])
    return keras.saving.deserialize_keras_object(value)
