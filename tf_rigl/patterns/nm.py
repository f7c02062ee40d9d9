"""N:M sparsity: at most n of every m entries."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_integer
from tf_rigl.patterns.layout import Layout, as_axes
from tf_rigl.patterns.selection import ordered_integers
from tf_rigl.patterns.unstructured import Unstructured


@keras.saving.register_keras_serializable(package="tf_rigl")
class NM(Unstructured):
    """Keeps at most `n` entries in each group of `m` consecutive ones along the input axis.

    The sparsity of a sparse weight is at least `1 - n / m`. At exactly that sparsity each group
    keeps n entries, if m divides the number of inputs; at a higher sparsity some keep fewer.
    "2:4" is `NM(2, 4)`. A method that starts dense first removes entries that are not among the n
    best of their group. So each group has at most n entries once the sparsity is `1 - n / m`.

    Args:
        n: int, number of entries that a group may keep.
        m: int, size of a group; more than `n`.
        axes: as for `tf_rigl.patterns.Block`.

    Raises:
        ValueError: if `n` or `m` is not an integer, or not 1 <= n < m.

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
    def min_sparsity(self) -> float:  # type: ignore[override]
        """The lowest possible sparsity, `1 - n / m`."""
        return 1 - self.n / self.m

    def fitted(self, layer, shape, axes):
        """Returns the same pattern, with groups along the input axes of the weight."""
        del layer, shape
        return type(self)(self.n, self.m, axes)

    def select(self, scores, count, among=None, kept=None):
        """Selects units as every pattern does; faster if `count`, an int, fills all groups."""
        free = among is None and kept is None
        if not free or not isinstance(count, int) or count != self._capacity(scores.shape):
            return super().select(scores, count, among, kept)
        scores = tf.convert_to_tensor(scores)
        flat, taken = self._flat(scores, None)
        return self.expand(self.first(flat, ~taken, taken, scores.shape), scores.shape)

    def _capacity(self, shape):
        """Returns how many units fill all groups."""
        matrices, inputs, outputs = Layout(tuple(shape), self.axes).size
        whole, rest = divmod(inputs, self.m)
        return matrices * outputs * (whole * self.n + min(rest, self.n))

    def first(self, scores, allowed, kept, shape):
        """Tells the best units of each group, up to n per group including the kept ones."""
        layout = Layout(tuple(shape), self.axes)
        keys = ordered_integers(scores)
        keys = self._groups(tf.where(allowed, keys, keys.dtype.min), layout, keys.dtype.min)
        allowed = self._groups(allowed, layout, False)
        kept = self._groups(kept, layout, False)
        room = self.n - tf.reduce_sum(tf.cast(kept, tf.int32), axis=2, keepdims=True)
        # Counts, for each entry, the entries of its group that come before it: those with a
        # higher score, and those with the same score and a lower index.
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
        """Rearranges a flat tensor into shape (matrices, groups, m, outputs), padded."""
        tensor = layout.matrices(tf.reshape(flat, layout.shape))
        matrices, inputs, outputs = layout.size
        groups = -(-inputs // self.m)
        missing = groups * self.m - inputs
        if missing:
            tensor = tf.pad(tensor, [[0, 0], [0, missing], [0, 0]], constant_values=filling)
        return tf.reshape(tensor, [matrices, groups, self.m, outputs])

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {"n": self.n, "m": self.m, "axes": self.axes}

    def __str__(self):
        return f"{self.n}:{self.m}"
