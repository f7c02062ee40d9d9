"""What a ticket is compared with. Each control is one function: a ticket in, another one out."""

import dataclasses

import keras
import numpy as np

from tf_rigl._base.arguments import check_integer
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.convert import copies
from tf_rigl.lottery.ticket import values
from tf_rigl.weights import maskable


def reinitialised(ticket, model, seed=0):
    """The same mask with new random weights.

    Weights that are not trained (those of frozen or preprocessing layers) are the model's; the
    statistics of a `BatchNormalization` that is trained begin anew.

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


def shuffled(ticket, model, seed=0):
    """Each unit's connections at random, as many as it had: the mask is shuffled along its inputs.

    In `random_mask` the numbers of each unit are random too. In weights of one axis each entry is
    one unit's, so they are shuffled as a whole.

    Args:
        ticket: `Ticket`.
        model: the dense `keras.Model` that was searched; its layers say which axes are units.
        seed: int.
    """
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    layers = {each.path: each.layer for each in maskable.find(model, include_self=False)}
    unknown = [path for path in ticket.masks if path not in layers]
    if unknown:
        raise ValueError(
            f"Argument `model` must be the one that was searched: it has no weights {unknown}. "
            f"Received: model={model!r}"
        )
    masks = {path: _shuffle(rng, mask, layers[path]) for path, mask in ticket.masks.items()}
    return _changed(ticket, masks=masks)


def _shuffle(rng, mask, layer):
    """A mask whose entries are permuted among those of the same unit."""
    if mask.ndim == 1:
        return rng.permutation(mask)
    found = maskable.axes(layer, mask.shape)
    units = sorted(axis % mask.ndim for axis in ((-1,) if found is None else found[1]))
    first = np.moveaxis(mask, units, range(len(units)))
    rows = first.reshape(int(np.prod(first.shape[: len(units)])), -1)
    return np.moveaxis(rng.permuted(rows, axis=1).reshape(first.shape), range(len(units)), units)


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
    return FromStep(schedule, check_integer("step", step, 0))


def redrawn(model, seed):
    """A copy of a model with new random weights, see `reinitialised`."""
    check_integer("seed", seed, 0)
    # Not the number itself: the model may have been made by the same one.
    keras.utils.set_random_seed(int(np.random.SeedSequence([seed, 1]).generate_state(1)[0]))
    copy = copies.fresh_copy(model)
    fresh = _statistics(copy)
    same, other = [], []
    for old, new in zip(model.weights, copy.weights, strict=True):
        if not old.trainable:
            if id(new) not in fresh:
                new.assign(old)
        elif np.ptp(values([new])[0]) > 0:
            (same if np.array_equal(*values([old, new])) else other).append(old.path)
    # Initializers such as an LSTM's forget gate of ones are no chance, and need no seed.
    if same and (not other or _has_seeds(model)):
        raise ValueError(
            "Argument `model` draws the same weights again: initializers have seeds of their own. "
            f"Received: model={model!r}, weights {same}"
        )
    return copy


def _statistics(model):
    """The ids of the statistics of all `BatchNormalization` layers that are trained."""
    norms = (keras.layers.BatchNormalization,)
    layers = [each for each in all_layers(model) if isinstance(each, norms)]
    trained = [each for each in layers if each.trainable]
    return {id(v) for each in trained for v in (each.moving_mean, each.moving_variance)}


def _has_seeds(model):
    """Whether an initializer of a layer has a seed of its own."""
    for layer in all_layers(model, include_self=False):
        try:
            config = layer.get_config()
        except NotImplementedError:  # Of a class of the user's; what is in it comes by itself.
            continue
        if _seeded(config):
            return True
    return False


def _seeded(config):
    if isinstance(config, dict):
        own = config.get("config")
        if config.get("module") == "keras.initializers" and isinstance(own, dict):
            return own.get("seed") is not None
        return any(map(_seeded, config.values()))
    return isinstance(config, (list, tuple)) and any(map(_seeded, config))


def _changed(ticket, **changes):
    """A ticket that has not been trained yet."""
    return dataclasses.replace(ticket, history={}, trained=None, **changes)
