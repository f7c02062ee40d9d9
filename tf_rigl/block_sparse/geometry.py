"""A matrix of which only some blocks are there, the same number in each column of blocks."""

import dataclasses

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of a block-sparse matrix, and its way to a dense one and back.

    Packed, it is `values` of shape (across, active, rows, cols), and `places` of shape
    (across, active): which block row each of them is of, in ascending order.

    Attributes:
        inputs, outputs: int, the sizes of the dense matrix.
        rows, cols: int, those of a block.
        active: int, blocks in each column of blocks.
    """

    inputs: int
    outputs: int
    rows: int
    cols: int
    active: int

    @property
    def down(self) -> int:
        """How many block rows there are; the last may stand out over the matrix."""
        return -(-self.inputs // self.rows)

    @property
    def across(self) -> int:
        """How many block columns there are."""
        return -(-self.outputs // self.cols)

    @property
    def values_shape(self):
        return (self.across, self.active, self.rows, self.cols)

    def blocks(self, matrix):
        """A dense matrix as all its blocks: (across, down, rows, cols)."""
        beyond = [self.down * self.rows - self.inputs, self.across * self.cols - self.outputs]
        if any(beyond):
            matrix = tf.pad(matrix, [[0, n] for n in beyond])
        blocks = tf.reshape(matrix, [self.down, self.rows, self.across, self.cols])
        return tf.transpose(blocks, [2, 0, 1, 3])

    def matrix(self, blocks):
        """The inverse of `blocks`."""
        matrix = tf.transpose(blocks, [1, 2, 0, 3])
        matrix = tf.reshape(matrix, [self.down * self.rows, self.across * self.cols])
        return matrix[: self.inputs, : self.outputs]

    def pack(self, matrix, places):
        """The values of a dense matrix in the blocks at `places`."""
        return tf.gather(self.blocks(matrix), places, batch_dims=1)

    def unpack(self, values, places):
        """The dense matrix, zero where no block is."""
        columns = tf.range(self.across)[:, None] + tf.zeros_like(places)
        indices = tf.stack([columns, places], axis=-1)
        shape = [self.across, self.down, self.rows, self.cols]
        return self.matrix(tf.scatter_nd(indices, values, shape))

    def places(self, mask):
        """Where the blocks of a dense mask are, which has the right number in each column."""
        kept = tf.reduce_any(self.blocks(mask), axis=(2, 3))
        # Of equals the stable sort keeps the order: blocks that are kept, from the top.
        order = tf.argsort(tf.cast(~kept, tf.int32), axis=1, stable=True)
        return order[:, : self.active]

    def mask(self, places):
        """The dense mask."""
        kept = tf.reduce_any(tf.one_hot(places, self.down, True, False, dtype=tf.bool), axis=1)
        shape = [self.across, self.down, self.rows, self.cols]
        return self.matrix(tf.broadcast_to(kept[:, :, None, None], shape))
