"""Rectangular blocks."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_flag, check_integer, unknown_name
from tf_rigl.patterns.base import Pattern
from tf_rigl.patterns.layout import Layout, as_axes
from tf_rigl.patterns.selection import evenly

SCORES = ("sum", "mean", "max")
TAPS = ("each", "all")


@keras.saving.register_keras_serializable(package="tf_rigl")
class Block(Pattern):
    """Blocks of `rows` inputs by `cols` outputs, kept or dropped as a whole.

    Rows run along a kernel's input axis, columns along its output axis. If a size does not
    divide its axis, the last block is smaller. A weight of I inputs and O outputs has
    `ceil(I / rows) * ceil(O / cols)` blocks. "block_16x1" is `Block(16, 1)`.

    In a convolution, either each spatial position ("tap") has its own blocks, or a block covers
    all taps: `rows` input channels by `cols` output channels. "channels_1x32" is
    `Block(1, 32, taps="all")`: each group of 32 outputs chooses its own input channels. Such
    blocks can be computed by ordinary dense operators, so they are fast everywhere.

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
        taps: str, "each" or "all": whether a block of a convolution covers one tap or all. For
            other layers the two are the same.

    Raises:
        ValueError: if a size is not a positive integer, or `score` or `taps` is unknown.

    Example:

    >>> Block(16, 1).units((784, 300))
    14700
    >>> scores = tf.constant([[9.0, 1.0], [8.0, 1.0], [7.0, 2.0], [6.0, 2.0]])
    >>> Block(2, 1, constant_fan_in=True).select(scores, 2).numpy()
    array([[ True, False],
           [ True, False],
           [False,  True],
           [False,  True]])
    >>> Block(16, 32, taps="all").units((3, 3, 64, 128))
    16
    """

    def __init__(self, rows, cols, score="sum", axes=None, constant_fan_in=False, taps="each"):
        self.rows = check_integer("rows", rows, 1)
        self.cols = check_integer("cols", cols, 1)
        if score not in SCORES:
            raise unknown_name("score", score, SCORES, or_object=False)
        self.score = score
        self.axes = as_axes(axes)
        self.constant_fan_in = check_flag("constant_fan_in", constant_fan_in)
        if taps not in TAPS:
            raise unknown_name("taps", taps, TAPS, or_object=False)
        self.taps = taps

    def fitted(self, layer, shape, axes):
        """Returns the same blocks along the axes of the weight."""
        del shape
        # What is stacked elsewhere, such as the experts of a layer, is no tap.
        taps = self.taps if hasattr(layer, "kernel_size") else "each"
        return type(self)(**{**self.get_config(), "axes": axes, "taps": taps})

    def layout(self, shape) -> Layout:
        """Returns the layout of a weight of this shape as matrices of inputs by outputs."""
        return Layout(tuple(shape), self.axes, self.taps == "all")

    def height(self, shape) -> int:
        """Returns the number of rows that a block has in a matrix of `layout`."""
        return self.rows * self.layout(shape).taps

    def grid(self, shape) -> tuple[int, int, int]:
        """Returns the numbers of matrices, of block rows and of block columns."""
        matrices, inputs, outputs = self.layout(shape).size
        return matrices, -(-inputs // self.height(shape)), -(-outputs // self.cols)

    def units(self, shape) -> int:
        """Returns the number of blocks."""
        matrices, down, across = self.grid(shape)
        return matrices * down * across

    def step(self, shape) -> int:
        """Returns the number of block columns if the fan-in is constant, else 1."""
        matrices, _, across = self.grid(shape)
        return matrices * across if self.constant_fan_in else 1

    def select_units(self, scores, count, allowed, kept, shape):
        """Selects the `count` blocks of highest score; see `Pattern.select_units`.

        With a constant fan-in, selected and kept blocks together give each column the same
        number of blocks. The total is `count` more than are kept, or the nearest number that
        divides evenly among the columns.
        """
        if not self.constant_fan_in:
            return super().select_units(scores, count, allowed, kept, shape)
        return evenly(scores, count, allowed, kept, self.grid(shape))

    def keep(self, scores, count, mask):
        """Selects the best blocks of a mask, whatever their columns; growing fills the columns."""
        scores = tf.convert_to_tensor(scores)
        present, shape = self.unit_mask(mask), scores.shape
        units = self.keep_units(self.unit_scores(scores), count, present, shape)
        return self.expand(units, shape)

    def keep_units(self, scores, count, mask, shape):
        """Does what `keep` does, with scores and a mask of shape (units,)."""
        return super().select_units(scores, count, mask, tf.zeros_like(mask), shape)

    def _blocks(self, tensor, filling):
        """Splits a tensor of the weight's shape into blocks.

        Returns:
            A tensor of shape (matrices, block rows, height, block columns, cols). `filling` pads
            smaller blocks.
        """
        layout = self.layout(tensor.shape)
        (_, inputs, outputs), (matrices, down, across) = layout.size, self.grid(tensor.shape)
        tensor = layout.matrices(tensor)
        height = self.height(layout.shape)
        missing = [down * height - inputs, across * self.cols - outputs]
        if any(missing):
            padding = [[0, 0], *([0, n] for n in missing)]
            tensor = tf.pad(tensor, padding, constant_values=filling)
        return tf.reshape(tensor, [matrices, down, height, across, self.cols])

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
        (_, inputs, outputs), (matrices, down, across) = layout.size, self.grid(shape)
        blocks = tf.reshape(units, [matrices, down, 1, across, 1])
        height = self.height(shape)
        blocks = tf.broadcast_to(blocks, [matrices, down, height, across, self.cols])
        blocks = tf.reshape(blocks, [matrices, down * height, across * self.cols])
        return layout.restore(blocks[:, :inputs, :outputs])

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        config = {"rows": self.rows, "cols": self.cols, "score": self.score, "axes": self.axes}
        if self.constant_fan_in:
            config["constant_fan_in"] = True
        if self.taps == "all":
            config["taps"] = "all"
        return config

    def __str__(self):
        kinds = [] if not self.constant_fan_in else ["constant_fan_in"]
        kinds += ["channels"] if self.taps == "all" else []
        return f"{'_'.join(kinds) or 'block'}_{self.rows}x{self.cols}"
