"""Tensor operations of the training step."""

import functools
import math

import keras
import tensorflow as tf

from tf_rigl._base import workers

_COMPILED_FROM = 2**16  # Entries of a weight from which XLA pays.


def where(mask, value, empty=0.0):
    """Returns `value` where the mask is 1, `empty` where it is 0."""
    return tf.where(tf.convert_to_tensor(mask), value, tf.constant(empty, value.dtype))


def mean_where(mask, value):
    """Returns the mean of `value` where a boolean tensor is True; 0 if that is nowhere."""
    number = tf.math.count_nonzero(mask, dtype=tf.int64)
    wide = tf.cast(value, tf.float32) if value.dtype.size < 4 else value
    total = tf.reduce_sum(where(mask, wide))
    return tf.cast(tf.math.divide_no_nan(total, tf.cast(number, wide.dtype)), value.dtype)


def masked_gradient(gradient, mask):
    """Returns a gradient with zeros where the mask is 0.

    Args:
        gradient: tensor, or `tf.IndexedSlices` (the gradient of an embedding).
        mask: boolean tensor or variable of the weight's shape.
    """
    if isinstance(gradient, tf.IndexedSlices):
        rows = tf.gather(tf.convert_to_tensor(mask), gradient.indices)
        return tf.IndexedSlices(
            where(rows, gradient.values), gradient.indices, gradient.dense_shape
        )
    return where(mask, gradient)


def compiled_if_large(function, entries):
    """Returns a function of tensors, compiled by XLA if weights have enough entries to pay."""
    if entries >= _COMPILED_FROM and tf.test.is_built_with_xla():
        # TensorFlow counts traces by the code of a function, and would add up the traces of
        # all models. A partial has no code.
        function = functools.partial(function)
        return tf.function(function, autograph=False, jit_compile=True)
    return function


class Compiled:
    """A cache of functions of weights, each compiled once for all weights of a shape.

    XLA takes seconds to compile: a model of sixteen equal layers waits only once.
    """

    def __init__(self):
        self._functions = {}

    def __call__(self, function, shape):
        """Returns `function`, compiled if that is faster for weights of this shape.

        Args:
            function: function or bound method of tensors.
            shape: tuple of int.
        """
        key = function, tuple(shape)
        if key not in self._functions:
            self._functions[key] = compiled_if_large(function, math.prod(shape))
        return self._functions[key]


def mix(variables, values, past):
    """Sets Keras variables to `past * variable + (1 - past) * value`, from a replica context.

    Args:
        variables: list of `keras.Variable`.
        values: list of tensors of their shapes.
        past: float32 scalar tensor.
    """

    def mix_one(variable, value):
        # Saves one pass and one buffer, compared with computing the sum and assigning it.
        rate = tf.cast(1 - past, value.dtype)
        tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.handle, alpha=rate, delta=variable.value() - value
        )

    def mix_each(strategy, *values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable.value, mix_one, args=(value,), group=False)

    if variables:
        tf.distribute.get_replica_context().merge_call(mix_each, args=tuple(values))


class InFactors:
    """Base class of dense gradients that are kept as factors and not as tensors."""

    def over_replicas(self):
        """Returns the sum over replicas, from a replica context."""
        raise NotImplementedError

    def is_finite(self):
        """Returns a boolean scalar tensor, True if all entries are finite."""
        raise NotImplementedError

    def divided(self, scale):
        """Returns the gradient divided by a scalar tensor."""
        raise NotImplementedError


def whole(gradient):
    """Returns a gradient as a tensor, unless it is `InFactors`."""
    return gradient if isinstance(gradient, InFactors) else tf.convert_to_tensor(gradient)


def is_finite(gradient):
    """Returns a boolean scalar tensor, True if a gradient (tensor or `InFactors`) is finite."""
    if isinstance(gradient, InFactors):
        return gradient.is_finite()
    return tf.reduce_all(tf.math.is_finite(gradient))


def divided(gradient, scale, dtype):
    """Returns a gradient (tensor or `InFactors`) in a dtype, divided by a loss scale or None."""
    if isinstance(gradient, InFactors):
        return gradient if scale is None else gradient.divided(scale)
    gradient = tf.cast(gradient, dtype)
    return gradient if scale is None else gradient / tf.cast(scale, dtype)


def all_reduce(gradients):
    """Sums gradients over replicas. (The loss of each was divided by their number.)

    Args:
        gradients: list of tensors or `InFactors`.
    """
    context = tf.distribute.get_replica_context()
    if not gradients or context.num_replicas_in_sync == 1:
        return gradients
    plain = [gradient for gradient in gradients if not isinstance(gradient, InFactors)]
    sums = iter(context.all_reduce(tf.distribute.ReduceOp.SUM, plain) if plain else ())
    return [g.over_replicas() if isinstance(g, InFactors) else next(sums) for g in gradients]


def mean_over_replicas(values, strategy):
    """Returns the mean of metrics over all replicas; for use outside of replicas.

    Args:
        values: the structure that `strategy.run` returned.
        strategy: `tf.distribute.Strategy`.
    """

    def mean(value):
        if workers.are_several(strategy):
            return strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
        if not isinstance(value, tf.distribute.DistributedValues):
            return value
        local = strategy.experimental_local_results(value)
        # The replicas of a TPU already have the same value.
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        return local[0] if is_tpu else tf.reduce_mean(local, axis=0)

    return keras.tree.map_structure(mean, values)


def all_finite(gradients):
    """Returns a boolean tensor, True if gradients are finite on all replicas.

    Args:
        gradients: list of tensors, `tf.IndexedSlices` or None.
    """
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    finite = [tf.reduce_all(tf.math.is_finite(value)) for value in values if value is not None]
    (wrong,) = all_reduce([tf.cast(~tf.reduce_all(finite), tf.int32)])
    return wrong == 0


def assign(pairs):
    """Assigns values to Keras variables, from a replica context.

    Args:
        pairs: iterable of (variable, tensor). The tensor is equal on all replicas.
    """
    variables, values = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())

    def set_each(strategy, *values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(
                variable.value, lambda v, new: v.assign(new), args=(value,), group=False
            )

    if variables:
        tf.distribute.get_replica_context().merge_call(set_each, args=tuple(values))


def present_graph():
    """Returns the graph that is traced now, or None."""
    return None if tf.executing_eagerly() else tf.compat.v1.get_default_graph()


def contributing(tensor, candidates) -> list:
    """Finds what a tensor is computed from, in the graph that is traced now.

    Args:
        tensor: tensor, or `tf.IndexedSlices`.
        candidates: list of pairs of a tensor and any value.

    Returns:
        The values of those pairs whose tensor the given one is computed from.
    """
    todo = [tensor.values if isinstance(tensor, tf.IndexedSlices) else tensor]
    seen, wanted, found = set(), {mark.ref(): value for mark, value in candidates}, []
    while todo and wanted:
        each = todo.pop()
        if each.ref() in seen:
            continue
        seen.add(each.ref())
        if each.ref() in wanted:
            found.append(wanted.pop(each.ref()))
        todo += each.op.inputs
    return found


def without_optionals(data):
    """Returns a batch with None for each empty `tf.experimental.Optional`.

    Keras passes None through `tf.data` as such an object.
    """
    return keras.tree.map_structure(
        lambda i: None if isinstance(i, tf.experimental.Optional) else i, data
    )


def symbolic(structure):
    """Returns a `keras.KerasTensor` for each array or tensor, with a free batch size."""

    def convert(x):
        if isinstance(x, keras.KerasTensor) or not hasattr(x, "shape") or not hasattr(x, "dtype"):
            return x
        shape = tuple(x.shape)
        return keras.KerasTensor((None, *shape[1:]) if shape else shape, x.dtype)

    return keras.tree.map_structure(convert, structure)
