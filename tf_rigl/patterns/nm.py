"""N:M sparsity: at most n of every m."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_integer
from tf_rigl.patterns.layout import Layout, as_axes
from tf_rigl.patterns.selection import ordered_integers
from tf_rigl.patterns.unstructured import Unstructured


@keras.saving.register_keras_serializable(package="tf_rigl")
class NM(Unstructured):
    """At most `n` of every `m` entries in a row along a kernel's input axis are kept.

    At a sparsity of 1 - n/m it is exactly n where m divides the inputs; above it, fewer; a
    sparse weight cannot have less. "2:4" is `NM(2, 4)`. A method that begins dense takes
    away first what is not among the n best of its group, so that at most n are left as
    soon as the sparsity is 1 - n/m.

    Args:
        n: int, how many may be kept.
        m: int, of how many; more than `n`.
        axes: as for `tf_rigl.patterns.Block`.

    Raises:
        ValueError: if the numbers are not integers, or not 1 <= n < m.

    Example:

    >>> mask = NM(2, 4).select(tf.constant([[1.0], [4.0], [2.0], [3.0]]), 2)
    >>> mask.numpy().ravel()
    array([False,  True, False,  True])

    Reference:

    - [Learning N:M Fine-grained Structured Sparse Neural Networks From
      Scratch](https://arxiv.org/abs/2102.04010), section 3.
    """

    def __init__(self, n, m, axes=None):
        self.n = check_integer("n", n, 1)
        self.m = check_integer("m", m, 2)
        if n >= m:
            raise ValueError(f"Argument `n` must be less than `m`. Received: n={n}, m={m}")
        self.axes = as_axes(axes)

    @property
    def min_sparsity(self) -> float:
        """1 - n/m."""
        return 1 - self.n / self.m

    def fitted(self, layer, shape, axes):
        """The same groups along the input axes of the weight."""
        del layer, shape
        return type(self)(self.n, self.m, axes)

    def first(self, scores, allowed, kept, shape):
        """The best of each group, as many as there is room for beside what is kept."""
        layout = Layout(tuple(shape), self.axes)
        keys = ordered_integers(scores)
        keys = self._groups(tf.where(allowed, keys, keys.dtype.min), layout, keys.dtype.min)
        allowed = self._groups(allowed, layout, False)
        kept = self._groups(kept, layout, False)
        room = self.n - tf.reduce_sum(tf.cast(kept, tf.int32), axis=2, keepdims=True)
        # How many of its group go before each: the better ones, of equals those above.
        position = tf.reshape(tf.range(self.m), [1, 1, self.m, 1])
        ahead = tf.zeros_like(keys, tf.int32)
        for other in range(self.m):
            key, present = keys[:, :, other : other + 1], allowed[:, :, other : other + 1]
            before = (key > keys) | ((key == keys) & (other < position))
            ahead += tf.cast(present & before, tf.int32)
        best = allowed & (ahead < room)
        matrices, inputs, outputs = layout.size
        best = tf.reshape(best, [matrices, -1, outputs])[:, :inputs]
        return tf.reshape(layout.restore(best), [-1])

    def _groups(self, flat, layout, filling):
        """A flat tensor of the weight as (matrices, groups, m, outputs)."""
        tensor = layout.matrices(tf.reshape(flat, layout.shape))
        matrices, inputs, outputs = layout.size
        groups = -(-inputs // self.m)
        missing = groups * self.m - inputs
        if missing:
            tensor = tf.pad(tensor, [[0, 0], [0, missing], [0, 0]], constant_values=filling)
        return tf.reshape(tensor, [matrices, groups, self.m, outputs])

    def get_config(self):
        return {"n": self.n, "m": self.m, "axes": self.axes}

    def __str__(self):
        return f"{self.n}:{self.m}"
