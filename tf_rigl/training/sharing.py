"""Weights that several loops or optimizers train: all slots follow each change of the masks.

Two models may have a layer in common, and a model may be compiled with one optimizer after the
other. Whoever changes a mask then changes the slots of the others too.
"""

import contextlib

from tf_rigl.training.slots import find_slots
from tf_rigl.weights.sparse_weight import set_all


def join(loop, step):
    """Notes that a loop trains the weights of a step by its optimizers."""
    loop.optimizers.update(step.optimizers)
    for record in step.records:
        record.weight.trainers.add(loop)


@contextlib.contextmanager
def followed(loop):
    """Has the slots of other optimizers follow the masks that change within this context.

    Args:
        loop: the `Loop` that changes the masks by its step.
    """
    weights = [record.weight for record in loop.step.records]
    others = set().union(*(weight.trainers for weight in weights)) - {loop}
    optimizers = set(loop.optimizers).union(*(other.optimizers for other in others))
    found = [find_slots(each) for each in optimizers - set(loop.step.optimizers)]
    before = [weight.layout() if found else None for weight in weights]
    yield
    for by_id in found:
        for weight, layout in zip(weights, before, strict=True):
            set_all(weight.followed(layout, by_id.get(id(weight.weight), ())))
    for other in others:
        if other.plan is not None:
            other.plan.recount()
