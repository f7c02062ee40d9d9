"""Which variables of an optimizer belong to which weight."""

from collections import defaultdict


def find(optimizer, weights) -> dict[int, list]:
    """Finds the slots of each weight: moments, velocities, accumulators, averages.

    Keras names a slot after the path of its weight (`add_variable_from_reference`),
    which holds for built-in optimizers and for users' own, wrapped ones included.

    Args:
        optimizer: a built `keras.optimizers.Optimizer`.
        weights: the variables it was built with, in that order.

    Returns:
        A dict of `id(weight)` to the list of its slots that have the weight's shape.
        (Adafactor's row and column statistics have not: they belong to no single
        entry.)
    """
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
            slots[id(weight)].append(variable)
    return dict(slots)
