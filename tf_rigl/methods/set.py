"""Sparse Evolutionary Training: drop the smallest weights, grow at random."""

import numbers

import keras
import tensorflow as tf

from tf_rigl import schedules
from tf_rigl._base.arguments import check_integer
from tf_rigl.methods.base import Method, deserialize_function, serialize_function


@keras.saving.register_keras_serializable(package="tf_rigl")
class SET(Method):
    """Drops the active weights of smallest magnitude and grows as many at random.

    At step t, counted in batches from 0, masks change when
    `start_step <= t < end_step` and t is a multiple of `update_interval`, instead of
    an optimizer step. A layer with n active entries drops and grows
    `int(drop_fraction * decay(t, end_step) * n)` of them.

    Args:
        drop_fraction: float in (0, 1], the fraction of active entries that move at
            step 0, before decay.
        update_interval: int, steps between changes.
        start_step: int, the first step at which masks may change. Defaults to
            `update_interval`.
        end_step: int, the step from which masks stay as they are; or float in
            (0, 1], that fraction of the steps that `fit` will run.
        decay: "cosine", "constant", "linear", "inverse_power", or a function of
            `(step, end_step)` that returns a factor in [0, 1]. Functions are saved by
            name: register them with `keras.saving.register_keras_serializable`.
        grow_initializer: str or `keras.initializers.Initializer`, the values at which
            newly grown entries start: "zeros", "random_normal", ...
        apply_optimizer_on_update: bool, whether the optimizer is applied on update steps
            too, before masks change. The paper's algorithm leaves it out there.

    Raises:
        ValueError: if an argument is out of range, or `decay` is unknown.

    Example:

    >>> SET(update_interval=50).plan(100, active=[1000], first_step=0, run_steps=400)
    [(775, 225)]

    Reference:

    - [SET](https://arxiv.org/abs/1707.04780); drop fraction and schedule after
      [Rigging the Lottery](https://arxiv.org/abs/1911.11134), algorithm 1.
    """

    def __init__(
        self,
        drop_fraction=0.3,
        update_interval=100,
        start_step=None,
        end_step=0.75,
        decay="cosine",
        grow_initializer="zeros",
        apply_optimizer_on_update=False,
    ):
        if not _is_number(drop_fraction) or not 0 < drop_fraction <= 1:
            raise ValueError(
                "Argument `drop_fraction` must be a number in (0, 1]. "
                f"Received: drop_fraction={drop_fraction!r}"
            )
        self.drop_fraction = float(drop_fraction)
        self.update_interval = check_integer("update_interval", update_interval, 1)
        self.start_step = None if start_step is None else check_integer("start_step", start_step, 0)
        if isinstance(end_step, numbers.Integral):
            self.end_step = check_integer("end_step", end_step, 0)
        elif _is_number(end_step) and 0 < end_step <= 1:
            self.end_step = float(end_step)
        else:
            raise ValueError(
                "Argument `end_step` must be an integer (a step) or a float in (0, 1] "
                f"(a fraction of the steps that `fit` runs). Received: end_step={end_step!r}"
            )
        self._start = self.update_interval if self.start_step is None else self.start_step
        self.decay = decay
        self._decay = schedules.get_decay(decay)
        self.grow_initializer = _seeded(keras.initializers.get(grow_initializer))
        self.apply_optimizer_on_update = bool(apply_optimizer_on_update)
        self.order = "after" if apply_optimizer_on_update else "instead"

    @property
    def needs_length(self) -> bool:
        return isinstance(self.end_step, float)

    def last_step(self, first_step=0, run_steps=None) -> int:
        """The step from which masks stay as they are."""
        if not self.needs_length:
            return self.end_step
        return first_step + int(self.end_step * run_steps)

    def next_update(self, step, first_step=0, run_steps=None):
        following = -(-max(self._start, step) // self.update_interval) * self.update_interval
        return following if following < self.last_step(first_step, run_steps) else None

    def fraction(self, step, end_step) -> float:
        """The fraction of active entries that move at a step."""
        return self.drop_fraction * self._decay(step, end_step)

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        del items
        end = self.last_step(first_step, run_steps)
        if not schedules.is_update_step(step, self._start, end, self.update_interval):
            return None
        # A length of `fit` counts from its beginning, and so does the decay.
        first_step = first_step if self.needs_length else 0
        fraction = self.fraction(step - first_step, end - first_step)
        if not 0 <= fraction <= 1:
            raise ValueError(
                "Argument `decay` must return a factor in [0, 1]. Received: "
                f"decay({step}, {end})={fraction / self.drop_fraction!r}"
            )
        moved = [int(fraction * n) for n in active]
        return [(n - k, k) for n, k in zip(active, moved, strict=True)]

    def grow_scores(self, weight, gradient, mask, seed):
        """Random scores: every entry that is not kept is as likely as any other."""
        del gradient, mask
        # Named, Philox is the same everywhere, and fast: XLA's own choice on CPUs is not.
        return tf.random.stateless_uniform(weight.shape, seed, None, None, tf.int32, alg="philox")

    def new_values(self, weight, seed):
        values = tf.cast(self.grow_initializer(weight.shape), weight.dtype)
        if hasattr(self.grow_initializer, "seed"):
            # A Keras initializer draws the same each time: another place to begin reading
            # makes other values of them at each update.
            flat = tf.reshape(values, [-1])
            shift = tf.random.stateless_uniform([], seed, 0, flat.shape[0], tf.int32, "philox")
            values = tf.reshape(tf.roll(flat, shift, 0), weight.shape)
        return values

    def get_config(self):
        return {
            "drop_fraction": self.drop_fraction,
            "update_interval": self.update_interval,
            "start_step": self.start_step,
            "end_step": self.end_step,
            "decay": serialize_function(self.decay),
            "grow_initializer": keras.initializers.serialize(self.grow_initializer),
            "apply_optimizer_on_update": self.apply_optimizer_on_update,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "decay": deserialize_function(config["decay"])})


def _seeded(initializer):
    """An initializer that draws the same in each process.

    What tells its draws apart is the model's seed: see `SET.new_values`.
    """
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    if "seed" in config and config["seed"] is None:
        return type(initializer).from_config({**config, "seed": 0})
    return initializer


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
