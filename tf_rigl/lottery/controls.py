"""Controls that a ticket is compared with. Each is a function from a ticket to another one."""

import dataclasses

import keras
import numpy as np

from tf_rigl._base.arguments import check_integer, check_number
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.convert import copies
from tf_rigl.lottery.ticket import check_ticket, values
from tf_rigl.weights import maskable


def reinitialised(ticket, model, seed=0):
    """Returns a ticket with the same mask and new random weights.

    Weights that are not trained (those of frozen or preprocessing layers) are copied from the
    model. The statistics of a trained `BatchNormalization` start anew.

    Args:
        ticket: `Ticket`.
        model: the dense `keras.Model` that was searched; its initializers draw the weights.
        seed: int, the seed of the initializers. It seeds all generators
            (`keras.utils.set_random_seed`).

    Returns:
        A `Ticket` that begins at step 0.

    Raises:
        ValueError: if the initializers draw the weights that the model already has.

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 2.
    """
    check_ticket("ticket", ticket)
    return _changed(ticket, weights=values(redrawn(model, seed).weights), rewind_step=0)


def resampled(ticket, model, seed=0):
    """Returns a ticket with the same mask, and weights drawn from those that survived in it.

    In each masked weight, each value that the mask keeps is drawn anew, with replacement, from the
    initial values that the mask keeps there (the distribution D_m). All other weights stay. So
    the control tells whether a ticket needs more than the distribution of its initial weights.

    Args:
        ticket: `Ticket`.
        model: the dense `keras.Model` that was searched; its layers tell which weights have masks.
        seed: int.

    Returns:
        A `Ticket`.

    Raises:
        ValueError: if the model is not the one that was searched.

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), appendix F.3.
    """
    check_ticket("ticket", ticket)
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    found = _searched(ticket, model)
    places = {id(variable): place for place, variable in enumerate(model.weights)}
    weights = list(ticket.weights)
    for path, mask in ticket.masks.items():
        place = places[id(found[path].weight)]
        value = weights[place].copy()
        value[mask] = rng.choice(value[mask], np.count_nonzero(mask))
        weights[place] = value
    return _changed(ticket, weights=weights)


def random_mask(ticket, seed=0):
    """Returns a ticket with random masks of the same densities and the same initial weights."""
    check_ticket("ticket", ticket)
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    masks = {}
    for path, mask in ticket.masks.items():
        chosen = np.zeros(mask.size, bool)
        chosen[rng.choice(mask.size, np.count_nonzero(mask), replace=False)] = True
        masks[path] = chosen.reshape(mask.shape)
    return _changed(ticket, masks=masks)


def shuffled(ticket, model, seed=0):
    """Returns a ticket whose mask is shuffled within each unit, which keeps its number of inputs.

    In `random_mask` the number of inputs of each unit is random too. In a weight of one axis
    each entry is a unit, so the weight is shuffled as a whole.

    Args:
        ticket: `Ticket`.
        model: the dense `keras.Model` that was searched; its layers tell which axes are units.
        seed: int.
    """
    check_ticket("ticket", ticket)
    rng = np.random.default_rng(check_integer("seed", seed, 0))
    found = _searched(ticket, model)
    masks = {path: _shuffle(rng, mask, found[path].layer) for path, mask in ticket.masks.items()}
    return _changed(ticket, masks=masks)


def _searched(ticket, model):
    """Returns the maskable weights of the model that was searched, by path."""
    found = {each.path: each for each in maskable.find(model, include_self=False)}
    unknown = [path for path in ticket.masks if path not in found]
    if unknown:
        raise ValueError(
            f"Argument `model` must be the one that was searched: it has no weights {unknown}. "
            f"Received: model={model!r}"
        )
    return found


def _shuffle(rng, mask, layer):
    """Permutes the entries of a mask within each unit."""
    if mask.ndim == 1:
        return rng.permutation(mask)
    found = maskable.axes(layer, mask.shape)
    units = sorted(axis % mask.ndim for axis in ((-1,) if found is None else found[1]))
    first = np.moveaxis(mask, units, range(len(units)))
    rows = first.reshape(int(np.prod(first.shape[: len(units)])), -1)
    return np.moveaxis(rng.permuted(rows, axis=1).reshape(first.shape), range(len(units)), units)


def transplanted(ticket, other):
    """Returns a ticket with its own initial weights and the masks of another ticket.

    Args:
        ticket: `Ticket` that provides the weights.
        other: `Ticket` of a model of the same shapes, which provides the masks.
    """
    check_ticket("ticket", ticket)
    check_ticket("other", other)
    shapes = [[mask.shape for mask in each.masks.values()] for each in (ticket, other)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            "Argument `other` must be a ticket of a model with masks of the same shapes. "
            f"Received: other={other!r}"
        )
    masks = dict(zip(ticket.masks, other.masks.values(), strict=True))
    return _changed(ticket, masks=masks, round=other.round)


class _Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """A schedule made from a learning rate, or from another schedule, and a number of steps."""

    def __init__(self, schedule, steps):
        if not isinstance(schedule, keras.optimizers.schedules.LearningRateSchedule):
            schedule = check_number(
                "schedule", schedule, at_least=0, what="a learning rate, or a schedule of Keras"
            )
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
    """The schedule that `warm_up` returns."""

    def __call__(self, step):
        share = (keras.ops.cast(step, "float32") + 1) / max(1, self.steps)
        return self.rate(step) * keras.ops.minimum(1.0, share)


@keras.saving.register_keras_serializable(package="tf_rigl")
class FromStep(_Schedule):
    """The schedule that `from_step` returns."""

    def __call__(self, step):
        return self.rate(step + self.steps)


def warm_up(schedule, steps):
    """Returns a schedule that first raises the learning rate from near 0 in equal steps.

    Args:
        schedule: float or `keras.optimizers.schedules.LearningRateSchedule`.
        steps: int, the steps of the warm-up.

    Example:

    >>> rate = tf_rigl.lottery.warm_up(0.1, steps=4)
    >>> [round(float(rate(step)), 3) for step in range(6)]
    [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]
    >>> optimizer = keras.optimizers.SGD(rate, momentum=0.9)

    Reference:

    - [The Lottery Ticket Hypothesis](https://arxiv.org/abs/1803.03635), section 4.
    """
    return WarmUp(schedule, steps)


def from_step(schedule, step):
    """Returns a schedule that starts at a later step, for tickets that start from trained weights.

    Args:
        schedule: `keras.optimizers.schedules.LearningRateSchedule`.
        step: int, the step at which it starts, such as `model.step` after rewinding.

    Example:

    >>> schedule = keras.optimizers.schedules.CosineDecay(0.1, 1000)
    >>> float(from_step(schedule, 250)(0)) == float(schedule(250))
    True
    """
    return FromStep(schedule, check_integer("step", step, 0))


def redrawn(model, seed):
    """Copies a model with new random weights; see `reinitialised`."""
    check_integer("seed", seed, 0)
    # Another seed is derived, because the model may have been made with this one.
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
    # Some initializers are not random, such as the ones of an LSTM's forget gate.
    if same and (not other or _has_seeds(model)):
        raise ValueError(
            "Argument `model` must have initializers without seeds: it draws the same weights "
            "again. "
            f"Received: model={model!r}, weights {same}"
        )
    return copy


def _statistics(model):
    """Returns the ids of the statistics of all trained `BatchNormalization` layers."""
    norms = (keras.layers.BatchNormalization,)
    layers = [each for each in all_layers(model) if isinstance(each, norms)]
    trained = [each for each in layers if each.trainable]
    return {id(v) for each in trained for v in (each.moving_mean, each.moving_variance)}


def _has_seeds(model):
    """Returns True if an initializer of a layer has a seed of its own."""
    for layer in all_layers(model, include_self=False):
        try:
            config = layer.get_config()
        except NotImplementedError:  # A user's class; its sublayers are in the loop too.
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
    """Returns a changed ticket, without the results of training."""
    return dataclasses.replace(ticket, history={}, trained=None, **changes)
