"""Sparse Evolutionary Training: drop the smallest weights, grow others at random."""

import keras
import numpy as np
import tensorflow as tf

from tf_rigl import schedules
from tf_rigl._base.arguments import (
    check_flag,
    check_integer,
    check_number,
    unknown_arguments,
    unknown_name,
)
from tf_rigl._base.rounding import floor_product
from tf_rigl.methods.base import Method, deserialize_function, serialize_function

SLOTS = ("zero", "mean")


@keras.saving.register_keras_serializable(package="tf_rigl")
class SET(Method):
    """Drops the active weights of smallest magnitude and grows as many at random.

    Steps t count batches from 0. Step t is an update step if
    `start_step <= t < end_step` and t is a multiple of `update_interval`. On an update step the
    masks change and the optimizer is not applied. A weight with n active units drops and grows
    k of them:

    `k = floor(drop_fraction * decay(t, end_step) * n)`

    A product that rounding puts just below a whole number counts as that number.

    Args:
        drop_fraction: float in (0, 1], the fraction of active units that move if the decay
            is 1.
        update_interval: int, steps between two updates.
        start_step: int, the first step at which masks may change. Defaults to
            `update_interval`.
        end_step: int, the step from which masks no longer change; or float in (0, 1], that
            fraction of the steps that `fit` runs.
        decay: "cosine", "constant", "linear", "inverse_power", or a function of
            `(step, end_step)` that returns a factor in [0, 1]. Functions are saved by name:
            register yours with `keras.saving.register_keras_serializable`.
        grow_initializer: str or `keras.initializers.Initializer`, the initial values of grown
            weights: "zeros", "random_normal", ...
        apply_optimizer_on_update: bool, whether update steps apply the optimizer too, before
            masks change. The paper's algorithm does not.
        slots: str, what the second moments of an optimizer such as Adam begin at for grown
            entries: "zero", as in the paper, or "mean", their mean over the entries of the
            weight that stay. Adam corrects its moments for the steps of the whole training, so
            that an entry which begins at zero moves several times the learning rate at first.

    Raises:
        ValueError: if an argument is out of range, or `decay` is unknown.
        TypeError: if an argument does not exist.

    Example:

    >>> SET(decay="constant").plan(100, active=[1000], run_steps=400)
    [(700, 300)]

    Reference:

    - [SET](https://arxiv.org/abs/1707.04780); drop fraction and schedule from
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
        slots="zero",
        **unknown,
    ):
        if unknown:  # Subclasses pass everything on that they do not take themselves.
            raise unknown_arguments(type(self), unknown)
        self.drop_fraction = check_number("drop_fraction", drop_fraction, above=0, at_most=1)
        self.update_interval = check_integer("update_interval", update_interval, 1)
        self.start_step = None if start_step is None else check_integer("start_step", start_step, 0)
        self.end_step = schedules.check_end_step(end_step)
        if not self.needs_length:
            check_integer("end_step", self.end_step, 0)
        self._start = self.update_interval if self.start_step is None else self.start_step
        self.decay = decay
        self._decay = schedules.get_decay(decay)
        self.grow_initializer = _seeded(_initializer(grow_initializer))
        flag = check_flag("apply_optimizer_on_update", apply_optimizer_on_update)
        self.apply_optimizer_on_update = flag
        self.order = "after" if flag else "instead"
        if slots not in SLOTS:
            raise unknown_name("slots", slots, SLOTS, or_object=False)
        self.slots = slots

    @property
    def needs_length(self) -> bool:
        """True if `end_step` is a fraction of the steps that `fit` runs."""
        return isinstance(self.end_step, float)

    @property
    def begins_at_zero(self) -> bool:
        """True if newly grown entries start at zero."""
        own = type(self).new_values is not SET.new_values
        return not own and isinstance(self.grow_initializer, keras.initializers.Zeros)

    def last_step(self, first_step=0, run_steps=None) -> int:
        """Returns the step from which masks no longer change."""
        return schedules.step_at(self.end_step, first_step, run_steps)

    def next_update(self, step, first_step=0, run_steps=None):
        """Returns the first update step from `step` on, or None; see `Method.next_update`."""
        following = -(-max(self._start, step) // self.update_interval) * self.update_interval
        return following if following < self.last_step(first_step, run_steps) else None

    def fraction(self, step, end_step) -> float:
        """Returns the fraction of active units that move at a step."""
        return self.drop_fraction * self._decay(step, end_step)

    def plan(self, step, active, first_step=0, run_steps=None, items=None):
        """Returns the units to keep and to grow in each weight, or None; see `Method.plan`."""
        del items
        end = self.last_step(first_step, run_steps)
        if not schedules.is_update_step(step, self._start, end, self.update_interval):
            return None
        # If the end is a fraction of this run, the decay starts with the run too.
        first_step = first_step if self.needs_length else 0
        fraction = self.fraction(step - first_step, end - first_step)
        if not 0 <= fraction <= 1:
            raise ValueError(
                "Argument `decay` must return a factor in [0, 1]. Received: "
                f"decay({step}, {end})={fraction / self.drop_fraction!r}"
            )
        moved = [int(floor_product(fraction, n)) for n in active]
        return [(n - k, k) for n, k in zip(active, moved, strict=True)]

    def cautions(self, first_step=0, run_steps=None):
        """Warns if masks change at each step, so that the optimizer never runs."""
        del first_step, run_steps
        if self.update_interval > 1 or self.order != "instead":
            return []
        return [
            "Nothing is trained while masks change: with `update_interval=1`, each step changes "
            "masks instead of applying the optimizer. Pass a larger `update_interval` (100 by "
            "default), or `apply_optimizer_on_update=True`. "
            f"Received: method={self!r}"
        ]

    def grow_scores(self, weight, gradient, mask, seed):
        """Returns random scores: every entry that is not kept is equally likely to grow."""
        del gradient, mask
        # Philox is the same on every device, and fast. XLA's default on CPUs is slow.
        return tf.random.stateless_uniform(weight.shape, seed, None, None, tf.int32, alg="philox")

    def new_values(self, weight, seed):
        """Returns values drawn from `grow_initializer`, different ones at each update."""
        values = tf.cast(self.grow_initializer(weight.shape), weight.dtype)
        if hasattr(self.grow_initializer, "seed"):
            # A Keras initializer returns the same values each time. Rolling them by a random
            # offset gives each entry another value at each update.
            flat = tf.reshape(values, [-1])
            shift = tf.random.stateless_uniform([], seed, 0, flat.shape[0], tf.int32, "philox")
            values = tf.reshape(tf.roll(flat, shift, 0), weight.shape)
        return values

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {
            "drop_fraction": self.drop_fraction,
            "update_interval": self.update_interval,
            "start_step": self.start_step,
            "end_step": self.end_step,
            "decay": serialize_function(schedules.name_of_decay(self.decay)),
            "grow_initializer": keras.initializers.serialize(self.grow_initializer),
            "apply_optimizer_on_update": self.apply_optimizer_on_update,
            "slots": self.slots,
        }

    @classmethod
    def from_config(cls, config):
        """Creates the method from the result of `get_config`."""
        return cls(**{**config, "decay": deserialize_function("decay", config["decay"])})


def _initializer(identifier):
    """Returns an initializer as Keras does, but the error names the argument."""
    try:
        found = keras.initializers.get(identifier)
    except (ValueError, TypeError):
        found = None
    if found is None or isinstance(identifier, np.generic):  # Keras takes a number for an array.
        raise ValueError(
            "Argument `grow_initializer` must be the name of a Keras initializer, such as 'zeros' "
            f"or 'random_normal', or an object. Received: grow_initializer={identifier!r}"
        )
    return found


def _seeded(initializer):
    """Returns an initializer that draws the same values in each process.

    `SET.new_values` then varies them by the model's seed.
    """
    config = initializer.get_config() if hasattr(initializer, "get_config") else {}
    if "seed" in config and config["seed"] is None:
        return type(initializer).from_config({**config, "seed": 0})
    return initializer
