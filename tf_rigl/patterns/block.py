"""Rectangular blocks."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_integer, unknown_name
from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.layout import Layout, as_axes
from tf_rigl.patterns.selection import ordered_integers

SCORES = ("sum", "mean", "max")


@keras.saving.register_keras_serializable(package="tf_rigl")
class Block(Pattern):
    """Blocks of `rows` inputs by `cols` outputs, which live and die as a whole.

    Rows run along a kernel's input axis, columns along its output axis; each spatial
    position of a convolution has blocks of its own. Where a size does not divide, the last
    block is smaller. "block_16x1" is `Block(16, 1)`, the blocks that LiteRT runs fastest.

    Args:
        rows: int, inputs in a block.
        cols: int, outputs in a block.
        score: str, the score of a block from those of its entries: "sum", "mean" or
            "max". They differ in the choice of blocks, "sum" and "mean" only where blocks
            are of several sizes. A block with a NaN has the lowest score.
        constant_fan_in: bool, whether each column of blocks keeps the same number of them,
            at least one, so that every output has as many inputs. The sparsity of a
            weight is then rounded to that.
        axes: the weight's input axes and its output axes, two tuples of int. Defaults to
            the last but one and the last. `tf_rigl.sparsify` sets it for layers whose
            kernels are laid out otherwise.

    Raises:
        ValueError: if a size is not a positive integer, or `score` is unknown.

    Example:

    >>> Block(16, 1).units((784, 300))
    14700
    """

    def __init__(self, rows, cols, score="sum", axes=None, constant_fan_in=False):
        self.rows = check_integer("rows", rows, 1)
        self.cols = check_integer("cols", cols, 1)
        if score not in SCORES:
            raise unknown_name("score", score, SCORES, or_object=False)
        self.score = score
        self.axes = as_axes(axes)
        self.constant_fan_in = bool(constant_fan_in)

    def fitted(self, layer, shape, axes):
        """The same blocks along the axes of the weight."""
        del layer, shape
        return type(self)(**{**self.get_config(), "axes": axes})

    def layout(self, shape) -> Layout:
        """How a weight of this shape is seen as matrices."""
        return Layout(tuple(shape), self.axes)

    def _grid(self, shape):
        """Matrices, block rows and block columns."""
        matrices, inputs, outputs = self.layout(shape).size
        return matrices, -(-inputs // self.rows), -(-outputs // self.cols)

    def units(self, shape) -> int:
        """The number of blocks."""
        matrices, down, across = self._grid(shape)
        return matrices * down * across

    def step(self, shape) -> int:
        """With a constant fan-in the number of block columns."""
        matrices, _, across = self._grid(shape)
        return matrices * across if self.constant_fan_in else 1

    def select(self, scores, count, among=None, kept=None):
        """See `Pattern.select`; with a constant fan-in every column of blocks is filled up.

        What is chosen makes, with what is kept, as many blocks in each column: `count` more
        in all, or the nearest number that makes them as many.
        """
        if not self.constant_fan_in:
            return super().select(scores, count, among, kept)
        scores = tf.convert_to_tensor(scores)
        flat, allowed, _ = self.candidates(scores, among, kept)
        if kept is None:
            kept = tf.zeros(scores.shape, tf.bool)
        kept = tf.cast(tf.reshape(self.unit_mask(kept), self._grid(scores.shape)), tf.int32)
        total = tf.cast(count, tf.int32) + tf.reduce_sum(kept)
        # Rounded as `possible` does; but of nothing nothing is made.
        each = tf.cast(tf.round(total / self.step(scores.shape)), tf.int32)
        room = tf.maximum(each, tf.minimum(total, 1)) - tf.reduce_sum(kept, axis=1, keepdims=True)
        keys = ordered_integers(flat)
        if flat.dtype.is_integer:  # Floats leave the lowest integer free.
            keys = tf.maximum(keys, keys.dtype.min + 1)
        # Turned round, so that the stable sort has the upper one of equals first.
        keys = tf.where(allowed, ~keys, keys.dtype.max)
        keys = tf.reshape(keys, self._grid(scores.shape))
        order = tf.argsort(keys, axis=1, stable=True)
        rank = tf.argsort(order, axis=1, stable=True)
        chosen = rank < room
        return self.expand(tf.reshape(chosen, [-1]), scores.shape)

    def keep(self, scores, count, mask):
        """The best blocks of a mask, whatever their columns: growing fills these up."""
        return super().select(scores, count, among=mask)

    def _blocks(self, tensor, filling):
        """The entries of each block on the axes 2 and 4, those that it lacks filled in."""
        layout = self.layout(tensor.shape)
        (_, inputs, outputs), (matrices, down, across) = layout.size, self._grid(tensor.shape)
        tensor = layout.matrices(tensor)
        missing = [down * self.rows - inputs, across * self.cols - outputs]
        if any(missing):
            padding = [[0, 0], *([0, n] for n in missing)]
            tensor = tf.pad(tensor, padding, constant_values=filling)
        return tf.reshape(tensor, [matrices, down, self.rows, across, self.cols])

    def unit_scores(self, scores):
        """The score of each block; the sum of integers, which methods draw at random."""
        if scores.dtype.is_integer:
            # Sums may wrap around, and are as random as the draws; the mean or the highest
            # would prefer blocks of one size to those of another.
            return tf.reshape(tf.reduce_sum(self._blocks(scores, 0), axis=(2, 4)), [-1])
        if scores.dtype.size < 4:
            scores = tf.cast(scores, tf.float32)
        if self.score == "max":
            highest = tf.reduce_max(self._blocks(scores, float("-inf")), axis=(2, 4))
            # Not every device lets NaN through.
            bad = tf.reduce_any(self._blocks(tf.math.is_nan(scores), False), axis=(2, 4))
            nan = tf.constant(float("nan"), highest.dtype)
            return tf.reshape(tf.where(bad, nan, highest), [-1])
        total = tf.reduce_sum(self._blocks(scores, 0), axis=(2, 4))
        if self.score == "mean":
            ones = self._blocks(tf.ones(scores.shape, scores.dtype), 0)
            total /= tf.reduce_sum(ones, axis=(2, 4))
        return tf.reshape(total, [-1])

    def unit_mask(self, mask):
        """Which blocks are kept."""
        return tf.reshape(tf.reduce_any(self._blocks(mask, False), axis=(2, 4)), [-1])

    def expand(self, units, shape):
        """Each unit's block."""
        layout = self.layout(shape)
        (_, inputs, outputs), (matrices, down, across) = layout.size, self._grid(shape)
        blocks = tf.reshape(units, [matrices, down, 1, across, 1])
        blocks = tf.broadcast_to(blocks, [matrices, down, self.rows, across, self.cols])
        blocks = tf.reshape(blocks, [matrices, down * self.rows, across * self.cols])
        return layout.restore(blocks[:, :inputs, :outputs])

    def get_config(self):
        config = {"rows": self.rows, "cols": self.cols, "score": self.score, "axes": self.axes}
        if self.constant_fan_in:
            config["constant_fan_in"] = True
        return config

    def __str__(self):
        kind = "constant_fan_in" if self.constant_fan_in else "block"
        return f"{kind}_{self.rows}x{self.cols}"
