"""Small operations that the training step is made of."""

import functools
import math

import keras
import tensorflow as tf

from tf_rigl._base import workers

_COMPILED_FROM = 2**16


def where(mask, value, empty=0.0):
    """`value` where the mask is 1, `empty` where it is 0."""
    return tf.where(tf.convert_to_tensor(mask), value, tf.constant(empty, value.dtype))


def masked_gradient(gradient, mask):
    """A gradient, dense or of rows (as embeddings have), zero where the mask is 0."""
    if isinstance(gradient, tf.IndexedSlices):
        rows = tf.gather(tf.convert_to_tensor(mask), gradient.indices)
        return tf.IndexedSlices(
            where(rows, gradient.values), gradient.indices, gradient.dense_shape
        )
    return where(mask, gradient)


def compiled_if_large(function, entries):
    """A function of tensors, compiled by XLA where weights have so many entries that it pays."""
    if entries >= _COMPILED_FROM and tf.test.is_built_with_xla():
        # A partial has no code, by which TensorFlow would count all models' traces as one's.
        function = functools.partial(function)
        return tf.function(function, autograph=False, jit_compile=True)
    return function


class Compiled:
    """Functions of weights, each compiled once for all weights of a shape, and kept.

    XLA takes seconds for each: a model of sixteen equal layers waits for one.
    """

    def __init__(self):
        self._functions = {}

    def __call__(self, function, shape):
        """Returns `function` as it runs fastest on weights of this shape.

        Args:
            function: function or bound method of tensors.
            shape: tuple of int.
        """
        key = function, tuple(shape)
        if key not in self._functions:
            self._functions[key] = compiled_if_large(function, math.prod(shape))
        return self._functions[key]


def mix(variables, values, past):
    """Sets Keras variables to `past * variable + (1 - past) * value`, in place, from a replica."""

    def mix_one(variable, value):
        # One pass and one buffer less than to compute the sum and assign it.
        rate = tf.cast(1 - past, value.dtype)
        tf.raw_ops.ResourceApplyGradientDescent(
            var=variable.handle, alpha=rate, delta=variable.value() - value
        )

    def mix_each(strategy, *values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(variable.value, mix_one, args=(value,), group=False)

    if variables:
        tf.distribute.get_replica_context().merge_call(mix_each, args=tuple(values))


def all_reduce(gradients):
    """Sums over replicas; each one's loss was divided by their number."""
    context = tf.distribute.get_replica_context()
    if not gradients or context.num_replicas_in_sync == 1:
        return gradients
    return context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)


def mean_over_replicas(values, strategy):
    """The metrics of all replicas as one; outside of replicas.

    Args:
        values: structure of what `strategy.run` returned.
        strategy: `tf.distribute.Strategy`.
    """

    def mean(value):
        if workers.are_several(strategy):
            return strategy.reduce(tf.distribute.ReduceOp.MEAN, value, axis=None)
        if not isinstance(value, tf.distribute.DistributedValues):
            return value
        local = strategy.experimental_local_results(value)
        # A TPU's replicas have the same value already.
        is_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
        return local[0] if is_tpu else tf.reduce_mean(local, axis=0)

    return keras.tree.map_structure(mean, values)


def all_finite(gradients):
    """Whether gradients, dense, of rows or None, are finite on all replicas."""
    values = [g.values if isinstance(g, tf.IndexedSlices) else g for g in gradients]
    finite = [tf.reduce_all(tf.math.is_finite(value)) for value in values if value is not None]
    (wrong,) = all_reduce([tf.cast(~tf.reduce_all(finite), tf.int32)])
    return wrong == 0


def assign(pairs):
    """Assigns values, equal on all replicas, to Keras variables from a replica context.

    Args:
        pairs: iterable of (variable, tensor).
    """
    variables, values = zip(*pairs, strict=True) if (pairs := list(pairs)) else ((), ())

    def set_each(strategy, *values):
        for variable, value in zip(variables, values, strict=True):
            strategy.extended.update(
                variable.value, lambda v, new: v.assign(new), args=(value,), group=False
            )

    if variables:
        tf.distribute.get_replica_context().merge_call(set_each, args=tuple(values))


def without_optionals(data):
    """Keras hands None through `tf.data` as an empty `tf.experimental.Optional`."""
    return keras.tree.map_structure(
        lambda i: None if isinstance(i, tf.experimental.Optional) else i, data
    )


def symbolic(structure):
    """The form of arrays and tensors, with a free batch size, for a symbolic call."""

    def convert(x):
        if isinstance(x, keras.KerasTensor) or not hasattr(x, "shape") or not hasattr(x, "dtype"):
            return x
        shape = tuple(x.shape)
        return keras.KerasTensor((None, *shape[1:]) if shape else shape, x.dtype)

    return keras.tree.map_structure(convert, structure)
