"""`Guard`: a constraint that keeps a masked weight sparse in training loops of others."""

import contextlib
import threading
import warnings

import tensorflow as tf

from tf_rigl._base import tensors

_local = threading.local()  # Each replica of a strategy has a thread of its own.


class Guard:
    """The constraint of a sparse weight: zeros where the mask is 0.

    Keras applies constraints after each optimizer step. So the weight stays sparse in any loop
    that applies a Keras optimizer: the `fit` of a model around it, a step of the user's own, a
    loop with `tf.GradientTape`. A `SparseModel` masks gradients itself, and does without.

    Args:
        inner: the constraint that the variable had before, or None.
        mask: boolean `keras.Variable`; None if the variable stores active entries only.
        path: str, the name of the weight in a warning.
        holder: the object that holds the mask. It has the attribute `warns_of_others`.
    """

    def __init__(self, inner, mask, path, holder):
        self.inner = inner
        self.mask = mask
        self.path = path
        # Functions, as Keras would track a layer.
        self._holder = lambda: holder

    def __call__(self, value):
        value = tf.convert_to_tensor(value if self.inner is None else self.inner(value))
        if is_inside():
            return value
        if self._holder().warns_of_others:
            self._holder().warns_of_others = False
            warnings.warn(
                f"Sparse weights, such as {self.path!r}, are trained by a loop that does not move "
                "masks: they stay sparse, but their masks do not change. To have masks change, "
                "sparsify the whole model that you train (`tf_rigl.sparsify`), or make the step of "
                "your own loop with `tf_rigl.training_step`.",
                stacklevel=2,
            )
        return value if self.mask is None else tensors.where(self.mask, value)


def add(variable, mask, path, holder):
    """Gives a variable a guard, around the constraint that it has."""
    variable.constraint = Guard(constraint_of(variable), mask, path, holder)


def constraint_of(variable):
    """Returns the constraint that the user gave a variable, or None."""
    constraint = variable.constraint
    return constraint.inner if isinstance(constraint, Guard) else constraint


def is_inside() -> bool:
    """Returns whether a sparse training step applies an optimizer now: it masks by itself."""
    return getattr(_local, "inside", False)


@contextlib.contextmanager
def inside(variables):
    """Marks, within this context, that a sparse training step applies an optimizer.

    Args:
        variables: list of `keras.Variable`. Their guards are taken off meanwhile: a constraint
            costs a pass over the weight.
    """
    guards = [(v, v.constraint) for v in variables if isinstance(v.constraint, Guard)]
    before, _local.inside = is_inside(), True
    for variable, guard in guards:
        variable.constraint = guard.inner
    try:
        yield
    finally:
        for variable, guard in guards:
            variable.constraint = guard
        _local.inside = before
