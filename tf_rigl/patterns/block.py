"""Rectangular blocks."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_flag, check_integer, unknown_name
from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.layout import Layout, as_axes
from tf_rigl.patterns.selection import ordered_integers

SCORES = ("sum", "mean", "max")


@keras.saving.register_keras_serializable(package="tf_rigl")
class Block(Pattern):
    """Blocks of `rows` inputs by `cols` outputs, kept or dropped as a whole.

    Rows run along a kernel's input axis, columns along its output axis. Each spatial position of
    a convolution has its own blocks. If a size does not divide its axis, the last block is
    smaller. A weight of I inputs and O outputs has `ceil(I / rows) * ceil(O / cols)` blocks.
    "block_16x1" is `Block(16, 1)`, the blocks that LiteRT runs fastest.

    Args:
        rows: int, number of inputs in a block.
        cols: int, number of outputs in a block.
        score: str, how the scores of the entries give the score of a block: "sum", "mean" or
            "max". "sum" and "mean" select the same blocks if all blocks have one size. A
            block with a NaN has the lowest score.
        axes: the weight's input axes and its output axes, two tuples of int. Defaults to the
            last axis but one and the last axis. `tf_rigl.sparsify` sets it for layers whose
            kernels have another layout.
        constant_fan_in: bool, whether each column of blocks keeps the same number of blocks, at
            least one, so that every output has the same number of inputs. The sparsity of a
            weight is rounded accordingly.

    Raises:
        ValueError: if a size is not a positive integer, or `score` is unknown.

    Example:

    >>> Block(16, 1).units((784, 300))
    14700
    >>> scores = tf.constant([[9.0, 1.0], [8.0, 1.0], [7.0, 2.0], [6.0, 2.0]])
    >>> Block(2, 1, constant_fan_in=True).select(scores, 2).numpy()
    array([[ True, False],
           [ True, False],
           [False,  True],
           [False,  True]])
    """

    def __init__(self, rows, cols, score="sum", axes=None, constant_fan_in=False):
        self.rows = check_integer("rows", rows, 1)
        self.cols = check_integer("cols", cols, 1)
        if score not in SCORES:
            raise unknown_name("score", score, SCORES, or_object=False)
        self.score = score
        self.axes = as_axes(axes)
        self.constant_fan_in = check_flag("constant_fan_in", constant_fan_in)

    def fitted(self, layer, shape, axes):
        """Returns the same blocks along the axes of the weight."""
        del layer, shape
        return type(self)(**{**self.get_config(), "axes": axes})

    def layout(self, shape) -> Layout:
        """Returns the layout of a weight of this shape as matrices of inputs by outputs."""
        return Layout(tuple(shape), self.axes)

    def _grid(self, shape):
        """Returns the numbers of matrices, of block rows and of block columns."""
        matrices, inputs, outputs = self.layout(shape).size
        return matrices, -(-inputs // self.rows), -(-outputs // self.cols)

    def units(self, shape) -> int:
        """Returns the number of blocks."""
        matrices, down, across = self._grid(shape)
        return matrices * down * across

    def step(self, shape) -> int:
        """Returns the number of block columns if the fan-in is constant, else 1."""
        matrices, _, across = self._grid(shape)
        return matrices * across if self.constant_fan_in else 1

    def select(self, scores, count, among=None, kept=None):
        """Selects the `count` blocks of highest score; see `Pattern.select`.

        With a constant fan-in, selected and kept blocks together give each column the same
        number of blocks. The total is `count` more than are kept, or the nearest number that
        divides evenly among the columns.
        """
        if not self.constant_fan_in:
            return super().select(scores, count, among, kept)
        scores = tf.convert_to_tensor(scores)
        flat, allowed, _ = self.candidates(scores, among, kept)
        if kept is None:
            kept = tf.zeros(scores.shape, tf.bool)
        kept = tf.cast(tf.reshape(self.unit_mask(kept), self._grid(scores.shape)), tf.int32)
        total = tf.cast(count, tf.int32) + tf.reduce_sum(kept)
        # Rounds as `possible` does, except that a total of 0 stays 0.
        each = tf.cast(tf.round(total / self.step(scores.shape)), tf.int32)
        room = tf.maximum(each, tf.minimum(total, 1)) - tf.reduce_sum(kept, axis=1, keepdims=True)
        keys = ordered_integers(flat)
        if flat.dtype.is_integer:  # The lowest integer is reserved; floats do not use it.
            keys = tf.maximum(keys, keys.dtype.min + 1)
        # Inverted, so that the stable sort puts the lower index first among equal scores.
        keys = tf.where(allowed, ~keys, keys.dtype.max)
        keys = tf.reshape(keys, self._grid(scores.shape))
        order = tf.argsort(keys, axis=1, stable=True)
        rank = tf.argsort(order, axis=1, stable=True)
        chosen = rank < room
        return self.expand(tf.reshape(chosen, [-1]), scores.shape)

    def keep(self, scores, count, mask):
        """Selects the best blocks of a mask, whatever their columns; growing fills the columns."""
        return super().select(scores, count, among=mask)

    def _blocks(self, tensor, filling):
        """Splits a tensor of the weight's shape into blocks.

        Returns:
            A tensor of shape (matrices, block rows, rows, block columns, cols). `filling` pads
            smaller blocks.
        """
        layout = self.layout(tensor.shape)
        (_, inputs, outputs), (matrices, down, across) = layout.size, self._grid(tensor.shape)
        tensor = layout.matrices(tensor)
        missing = [down * self.rows - inputs, across * self.cols - outputs]
        if any(missing):
            padding = [[0, 0], *([0, n] for n in missing)]
            tensor = tf.pad(tensor, padding, constant_values=filling)
        return tf.reshape(tensor, [matrices, down, self.rows, across, self.cols])

    def unit_scores(self, scores):
        """Returns the score of each block, a tensor of shape (units,).

        Integer scores are random numbers; the score of a block is then always their sum.
        """
        if scores.dtype.is_integer:
            # A sum that wraps around is as random as its terms. A mean or a maximum would
            # prefer blocks of one size.
            return tf.reshape(tf.reduce_sum(self._blocks(scores, 0), axis=(2, 4)), [-1])
        if scores.dtype.size < 4:
            scores = tf.cast(scores, tf.float32)
        if self.score == "max":
            highest = tf.reduce_max(self._blocks(scores, float("-inf")), axis=(2, 4))
            # On some devices `reduce_max` loses NaN.
            bad = tf.reduce_any(self._blocks(tf.math.is_nan(scores), False), axis=(2, 4))
            nan = tf.constant(float("nan"), highest.dtype)
            return tf.reshape(tf.where(bad, nan, highest), [-1])
        total = tf.reduce_sum(self._blocks(scores, 0), axis=(2, 4))
        if self.score == "mean":
            ones = self._blocks(tf.ones(scores.shape, scores.dtype), 0)
            total /= tf.reduce_sum(ones, axis=(2, 4))
        return tf.reshape(total, [-1])

    def unit_mask(self, mask):
        """Tells which blocks a mask keeps, a boolean tensor of shape (units,)."""
        return tf.reshape(tf.reduce_any(self._blocks(mask, False), axis=(2, 4)), [-1])

    def expand(self, units, shape):
        """Returns the mask of the weight's shape that keeps the given blocks."""
        layout = self.layout(shape)
        (_, inputs, outputs), (matrices, down, across) = layout.size, self._grid(shape)
        blocks = tf.reshape(units, [matrices, down, 1, across, 1])
        blocks = tf.broadcast_to(blocks, [matrices, down, self.rows, across, self.cols])
        blocks = tf.reshape(blocks, [matrices, down * self.rows, across * self.cols])
        return layout.restore(blocks[:, :inputs, :outputs])

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        config = {"rows": self.rows, "cols": self.cols, "score": self.score, "axes": self.axes}
        if self.constant_fan_in:
            config["constant_fan_in"] = True
        return config

    def __str__(self):
        kind = "constant_fan_in" if self.constant_fan_in else "block"
        return f"{kind}_{self.rows}x{self.cols}"
