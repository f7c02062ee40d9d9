"""What a ticket is compared with. Each control is one function: a ticket in, another one out."""

import dataclasses

import keras
import numpy as np

from tf_rigl import convert
from tf_rigl._arguments import check_integer
from tf_rigl.lottery.ticket import values


def reinitialised(ticket, model, seed=0):
    """The same mask with new random weights.

    Weights that are not trained (those of frozen or preprocessing layers, the statistics of
    normalisation) are the model's.

    Args:
        ticket: `Ticket`.
        model: the dense `keras.Model` that was searched; its initializers draw the weights.
        seed: int, by which they draw: it seeds all generators
            (`keras.utils.set_random_seed`).

    Returns:
        A `Ticket` that begins at step 0.

    Raises:
        ValueError: if the model draws the weights that it has.

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 2.
    """
    return _changed(ticket, weights=values(redrawn(model, seed).weights), rewind_step=0)


def random_mask(ticket, seed=0):
    """A random mask with as many weights in each layer, from the same initial weights."""
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    masks = {}
    for path, mask in ticket.masks.items():
        chosen = np.zeros(mask.size, bool)
        chosen[rng.choice(mask.size, np.count_nonzero(mask), replace=False)] = True
        masks[path] = chosen.reshape(mask.shape)
    return _changed(ticket, masks=masks)


def shuffled(ticket, seed=0):
    """Each unit's connections at random, as many as it had: the mask is shuffled along its inputs.

    The last axis of a weight stays in place; in `random_mask` the numbers of each unit are
    random too.
    """
    rng = np.random.default_rng(seed)
    masks = {
        path: rng.permuted(mask.reshape(-1, mask.shape[-1]), axis=0).reshape(mask.shape)
        for path, mask in ticket.masks.items()
    }
    return _changed(ticket, masks=masks)


def transplanted(ticket, other):
    """The mask of one ticket, found elsewhere, with the initial weights of another.

    Args:
        ticket: `Ticket`, whose weights are used.
        other: `Ticket` of a model of the same shapes, whose masks are used.
    """
    shapes = [[mask.shape for mask in each.masks.values()] for each in (ticket, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Argument `other` must be a ticket of a model with masks of the same shapes. "
            f"Received: other={other!r}"
        )
    masks = dict(zip(ticket.masks, other.masks.values(), strict=True))
    return _changed(ticket, masks=masks, round=other.round)


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate, or another schedule, and a number of steps."""

    def __init__(self, schedule, steps):
        self.schedule, self.steps = schedule, check_integer("steps", steps, 0)

    def rate(self, step):
        return self.schedule(step) if callable(self.schedule) else self.schedule

    def get_config(self):
        return {"schedule": self.schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        schedule = config["schedule"]
        if isinstance(schedule, dict):
            schedule = keras.saving.deserialize_keras_object(schedule)
        return cls(schedule, config["steps"])


@keras.saving.register_keras_serializable(package="tf_rigl")
class WarmUp(_Schedule):
    """What `warm_up` makes."""

    def __call__(self, step):
        share = (keras.ops.cast(step, "float32") + 1) / max(1, self.steps)
        return self.rate(step) * keras.ops.minimum(1.0, share)


@keras.saving.register_keras_serializable(package="tf_rigl")
class FromStep(_Schedule):
    """What `from_step` makes."""

    def __call__(self, step):
        return self.rate(step + self.steps)


def warm_up(schedule, steps):
    """A learning rate that rises in equal steps, and then is what it was.

    Args:
        schedule: float or `keras.optimizers.schedules.LearningRateSchedule`.
        steps: int, after how many steps it is in force.

    Example:

    >>> optimizer = keras.optimizers.SGD(warm_up(0.1, steps=1000), momentum=0.9)

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 4.
    """
    return WarmUp(schedule, steps)


def from_step(schedule, step):
    """A learning rate schedule that begins later on: that of a ticket with trained weights.

    Args:
        schedule: `keras.optimizers.schedules.LearningRateSchedule`.
        step: int, at which it begins, such as `model.step` after rewinding.

    Example:

    >>> schedule = keras.optimizers.schedules.CosineDecay(0.1, 1000)
    >>> float(from_step(schedule, 250)(0)) == float(schedule(250))
    True
    """
    return FromStep(schedule, step)


def redrawn(model, seed):
    """A copy of a model with new random weights, see `reinitialised`."""
    # Not the number itself: the model may have been made by the same one.
    keras.utils.set_random_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    copy = convert.fresh_copy(model)
    same = []
    for old, new in zip(model.weights, copy.weights, strict=True):
        if not old.trainable:
            new.assign(old)
        elif np.array_equal(*values([old, new])) and np.ptp(values([new])[0]) > 0:
            same.append(old.path)
    if same:
        raise ValueError(
            "Argument `model` draws the same weights again: initializers have seeds of their own. "
            f"Received: model={model!r}, weights {same}"
        )
    return copy


def _changed(ticket, **changes):
    """A ticket that has not been trained yet."""
    return dataclasses.replace(ticket, history={}, trained=None, **changes)
