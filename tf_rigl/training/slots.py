"""Optimizer slots of weights, and whether an optimizer moves weights without a gradient."""

from collections import defaultdict
from typing import NamedTuple

import keras
from keras import optimizers

from tf_rigl._base import keras_internals

# Built-in optimizers that work entry by entry: an entry with zero gradient and zero slots
# keeps its value, whatever the others are. (Muon orthogonalises whole matrices; Lamb and
# Adafactor scale by norms, so that one NaN spreads to all entries.)
_NAMES = "Adadelta Adagrad Adam AdamW Adamax Ftrl Lion Nadam RMSprop SGD ScheduleFreeAdamW"
_BY_GRADIENT = {getattr(optimizers, name, None) for name in _NAMES.split()} - {None}


class Slot(NamedTuple):
    """An optimizer variable for a weight, of the weight's shape."""

    variable: keras.Variable
    empty: float  # Its value for an entry that was never trained.


def moves_only_by_gradient(optimizer) -> bool:
    """Returns whether an entry with zero gradient and zero slots keeps its value.

    Args:
        optimizer: a `keras.optimizers.Optimizer`.

    Returns:
        True for built-in optimizers that are known to work so. False for all others, custom
        subclasses included, and with clipping by norm or an epsilon of zero.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    by_norm = optimizer.clipnorm is not None or optimizer.global_clipnorm is not None
    divides_by_zero = getattr(optimizer, "epsilon", None) == 0
    return type(optimizer) in _BY_GRADIENT and not by_norm and not divides_by_zero


def find_slots(optimizer, weights) -> dict[int, list]:
    """Finds the slots of each weight: moments, velocities, accumulators, averages.

    Keras names a slot after the path of its weight (`add_variable_from_reference`), in
    built-in, custom and wrapped optimizers alike.

    Args:
        optimizer: a built `keras.optimizers.Optimizer`.
        weights: list of `keras.Variable`, those it was built with, in the same order.

    Returns:
        A dict of `id(weight)` to the list of its `Slot`s, only those of the weight's shape.
        (Adafactor's row and column statistics belong to no single entry.) The empty value
        is 0, except for the accumulators of Adagrad and Ftrl, which begin at a value of theirs.
    """
    parts = [getattr(optimizer, "inner_optimizer", optimizer)]
    parts += getattr(optimizer, "optimizers", [])
    empty = {
        id(accumulator): part.initial_accumulator_value
        for part in parts
        if isinstance(part, (optimizers.Adagrad, optimizers.Ftrl))
        for accumulator in keras_internals.accumulators(part)
    }
    by_prefix = defaultdict(list)
    for weight in weights:
        by_prefix[weight.path.replace("/", "_") + "_"].append(weight)
    prefixes = sorted(by_prefix, key=len, reverse=True)

    slots, seen = defaultdict(list), defaultdict(int)
    for variable in optimizer.variables:
        prefix = next((p for p in prefixes if variable.name.startswith(p)), None)
        if prefix is None:
            continue
        # Weights of layers with the same name share a path; their slots are in weight order.
        sharing = by_prefix[prefix]
        weight = sharing[seen[variable.path] % len(sharing)]
        seen[variable.path] += 1
        if tuple(variable.shape) == tuple(weight.shape):
            slots[id(weight)].append(Slot(variable, empty.get(id(variable), 0.0)))
    return dict(slots)
