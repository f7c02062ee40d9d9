"""What a ticket is compared with. Each control is one function: a ticket in, another one out."""

import dataclasses

import keras
import numpy as np

from tf_rigl import convert
from tf_rigl.lottery.ticket import values


def reinitialised(ticket, model, seed=0):
    """The same mask with new random weights.

    Args:
        ticket: `Ticket`.
        model: the dense `keras.Model` that was searched; its initializers draw the weights.
        seed: int, by which they draw.

    Returns:
        A `Ticket` that begins at step 0.

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 2.
    """
    # Not the number itself: the model may have been made by the same one.
    keras.utils.set_random_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    weights = values(convert.fresh_copy(model).weights)
    pairs = zip(weights, values(model.weights), strict=True)
    if all(np.array_equal(new, old) for new, old in pairs):
        raise ValueError(
            "Argument `model` draws the same weights again: its initializers have seeds of their "
            f"own. Received: model={model!r}"
        )
    return _changed(ticket, weights=weights, rewind_step=0)


def random_mask(ticket, seed=0):
    """A random mask with as many weights in each layer, from the same initial weights."""
    rng = np.random.default_rng(seed)
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


@keras.saving.register_keras_serializable(package="tf_rigl")
class WarmUp(keras.optimizers.schedules.LearningRateSchedule):
    """What `warm_up` makes."""

    def __init__(self, schedule, steps):
        self.schedule, self.steps = schedule, int(steps)

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        return rate * keras.ops.minimum(1.0, (step + 1) / max(1, self.steps))

    def get_config(self):
        return {"schedule": self.schedule, "steps": self.steps}

    @classmethod
    def from_config(cls, config):
        schedule = config["schedule"]
        if isinstance(schedule, dict):
            schedule = keras.saving.deserialize_keras_object(schedule)
        return cls(schedule, config["steps"])


def warm_up(schedule, steps):
    """A learning rate that rises in equal steps, and then is what it was.

    Args:
        schedule: float or `keras.optimizers.schedules.LearningRateSchedule`.
        steps: int, after how many steps it is in force.

    Example:

    >>> optimizer = keras.optimizers.SGD(warm_up(0.1, steps=1000), momentum=0.9)
    """
    return WarmUp(schedule, steps)


def _changed(ticket, **changes):
    """A ticket that has not been trained yet."""
    return dataclasses.replace(ticket, history={}, trained=None, **changes)
