"""Optimizer slots of weights, and whether an optimizer moves weights without a gradient."""

from collections import defaultdict

from keras import optimizers

from tf_rigl._base import keras_internals
from tf_rigl.weights.sparse_weight import Slot

# Built-in optimizers that work entry by entry: an entry with zero gradient and zero slots
# keeps its value, whatever the others are. (Muon orthogonalises whole matrices; Lamb and
# Adafactor scale by norms, so that one NaN spreads to all entries.)
_NAMES = "Adadelta Adagrad Adam AdamW Adamax Ftrl Lion Nadam RMSprop SGD ScheduleFreeAdamW"
# How Keras names second moments, in this order of Adam, AMSGrad, Adamax, Adagrad and Adadelta.
_SQUARES = ("_velocity", "_velocity_hat", "_norm", "_accumulator", "_accumulated_grad")
_SUMS = "_gradient_accumulator"  # Of `gradient_accumulation_steps`.
_BY_GRADIENT = {getattr(optimizers, name, None) for name in _NAMES.split()} - {None}


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


def find_slots(optimizer, weights=None) -> dict[int, list]:
    """Finds the slots of each weight: moments, velocities, accumulators, averages.

    An optimizer of Keras keeps slots in lists, and looks them up by the index of the weight
    among the variables that it was built with. Slots that an optimizer keeps elsewhere have
    names: Keras names them after the path of the weight (`add_variable_from_reference`).

    Args:
        optimizer: a `keras.optimizers.Optimizer`; it may wrap others.
        weights: list of `keras.Variable`, or None for all that the optimizer was built with.

    Returns:
        A dict of `id(weight)` to the list of its `Slot`s, only those of the weight's shape.
        (Adafactor's row and column statistics belong to no single entry.) The dict lacks
        weights that the optimizer was not built with. Slots of optimizers that are not of Keras
        count as zero at first.
    """
    slots, seen = defaultdict(list), set()
    for part in reversed(_parts(optimizer)):  # A wrapper also lists the variables of its parts.
        own = {id(each): each for each in part.variables if id(each) not in seen}
        seen |= set(own)
        empty = _empty_values(part)
        for weight, variable in _pairs(part, own):
            if tuple(variable.shape) == tuple(weight.shape):
                squares = variable.name.endswith(_SQUARES) and not variable.name.endswith(_SUMS)
                slots[id(weight)].append(Slot(variable, empty.get(id(variable), 0.0), squares))
    if weights is None:
        return dict(slots)
    found = {id(weight): slots.get(id(weight)) for weight in weights}
    return {key: value for key, value in found.items() if value}


def _parts(optimizer) -> list:
    """Returns an optimizer and the optimizers that it wraps, each once."""
    found, left = {}, [optimizer]
    while left:
        part = left.pop()
        found[id(part)] = part
        for value in vars(part).values():
            values = value.values() if isinstance(value, dict) else value
            values = values if isinstance(value, (dict, list, tuple)) else [value]
            inner = [each for each in values if isinstance(each, optimizers.Optimizer)]
            left += [each for each in inner if id(each) not in found]
    return list(found.values())


def _empty_values(part) -> dict:
    """Returns the empty values of the slots of an optimizer that are not 0, by `id`.

    See `Slot`. Averages of weights count as copies: Keras begins them at the first weights.
    """
    values = {id(copy): None for copy in keras_internals.copies_of_weights(part)}
    if isinstance(part, (optimizers.Adagrad, optimizers.Ftrl)) and part.built:
        start = part.initial_accumulator_value
        values |= {id(accumulator): start for accumulator in keras_internals.accumulators(part)}
    return values


def _pairs(part, own) -> list:
    """Returns pairs (weight, variable) of an optimizer that belong together.

    Args:
        part: an optimizer.
        own: dict of `id` to variable, those of the optimizer, in its order.
    """
    weights, pairs = keras_internals.built_on(part), []
    for values in vars(part).values():
        if isinstance(values, list) and len(values) == len(weights):
            ids = [id(value) for value in values]
            # The list of all its variables may have that length too.
            if ids != list(own) and all(v is None or id(v) in own for v in values):
                pairs += [pair for pair in zip(weights, values, strict=True) if pair[1] is not None]
    listed = {id(variable) for _, variable in pairs}
    return pairs + _pairs_by_name(weights, [v for key, v in own.items() if key not in listed])


def _pairs_by_name(weights, variables) -> list:
    """Returns pairs (weight, variable), where the name begins with the path of the weight."""
    by_prefix = defaultdict(list)
    for weight in weights:
        by_prefix[weight.path.replace("/", "_") + "_"].append(weight)
    prefixes = sorted(by_prefix, key=len, reverse=True)
    pairs: list = []
    seen: dict = defaultdict(int)
    for variable in variables:
        prefix = next((p for p in prefixes if variable.name.startswith(p)), None)
        # Weights of layers with the same name share a path; their slots are in the order in
        # which the optimizer was built.
        shape = tuple(variable.shape)
        sharing = [w for w in by_prefix.get(prefix, ()) if tuple(w.shape) == shape]
        if sharing:
            key = variable.path, shape
            pairs.append((sharing[seen[key] % len(sharing)], variable))
            seen[key] += 1
    return pairs
