"""What the training step has to know of an optimizer: its slots, and how it moves weights."""

from collections import defaultdict
from typing import NamedTuple

import keras
from keras import optimizers

from tf_rigl._base import keras_internals

# Built-in optimizers that work entry by entry: one of zero gradient and zero slots stays
# as it is, whatever the others are. (Muon orthogonalises whole matrices; Lamb and
# Adafactor scale by norms, which a NaN anywhere carries everywhere.)
_NAMES = "Adadelta Adagrad Adam AdamW Adamax Ftrl Lion Nadam RMSprop SGD ScheduleFreeAdamW"
_BY_GRADIENT = {getattr(optimizers, name, None) for name in _NAMES.split()} - {None}


class Slot(NamedTuple):
    """A variable that an optimizer keeps for a weight, of the weight's shape."""

    variable: keras.Variable
    empty: float  # What it holds for an entry that was never trained.


def moves_only_by_gradient(optimizer) -> bool:
    """Whether an entry of zero gradient and zero slots stays as it is.

    Args:
        optimizer: a `keras.optimizers.Optimizer`.

    Returns:
        True for built-in optimizers that are known to; False for all others, users'
        own subclasses included, with clipping by norm, and with an epsilon of zero.
    """
    optimizer = getattr(optimizer, "inner_optimizer", optimizer)
    by_norm = optimizer.clipnorm is not None or optimizer.global_clipnorm is not None
    divides_by_zero = getattr(optimizer, "epsilon", None) == 0
    return type(optimizer) in _BY_GRADIENT and not by_norm and not divides_by_zero


def find_slots(optimizer, weights) -> dict[int, list]:
    """Finds the slots of each weight: moments, velocities, accumulators, averages.

    Keras names a slot after the path of its weight (`add_variable_from_reference`),
    which holds for built-in optimizers and for users' own, wrapped ones included.

    Args:
        optimizer: a built `keras.optimizers.Optimizer`.
        weights: the variables it was built with, in that order.

    Returns:
        A dict of `id(weight)` to the list of its `Slot`s: those of the weight's shape.
        (Adafactor's row and column statistics belong to no single entry.) An empty slot
        is zero, but for the accumulators of Ftrl, which divides by them.
    """
    parts = [getattr(optimizer, "inner_optimizer", optimizer)]
    parts += getattr(optimizer, "optimizers", [])
    empty = {
        id(accumulator): part.initial_accumulator_value
        for part in parts
        if isinstance(part, optimizers.Ftrl)
        for accumulator in keras_internals.ftrl_accumulators(part)
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
        # Weights in layers of the same name share a path; their slots come in order.
        sharing = by_prefix[prefix]
        weight = sharing[seen[variable.path] % len(sharing)]
        seen[variable.path] += 1
        if tuple(variable.shape) == tuple(weight.shape):
            slots[id(weight)].append(Slot(variable, empty.get(id(variable), 0.0)))
    return dict(slots)
