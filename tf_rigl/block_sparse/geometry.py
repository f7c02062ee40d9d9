"""The sizes of a block-sparse matrix with the same number of blocks in each column of blocks."""

import dataclasses

import numpy as np
import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The sizes of a block-sparse matrix, and its conversion from and to a dense matrix.

    The stored form is `values` of shape (across, active, rows, cols), and `places` of shape
    (across, active): the block row of each block, in ascending order.

    Attributes:
        inputs, outputs: int, the sizes of the dense matrix.
        rows, cols: int, the sizes of a block.
        active: int, the number of stored blocks in each column of blocks.
    """

    inputs: int
    outputs: int
    rows: int
    cols: int
    active: int

    @property
    def down(self) -> int:
        """The number of block rows; the last one may extend beyond the matrix."""
        return -(-self.inputs // self.rows)

    @property
    def across(self) -> int:
        """The number of block columns; the last one may extend beyond the matrix."""
        return -(-self.outputs // self.cols)

    @property
    def values_shape(self):
        return (self.across, self.active, self.rows, self.cols)

    def blocks(self, matrix):
        """Splits a dense matrix into all its blocks, of shape (across, down, rows, cols)."""
        beyond = [self.down * self.rows - self.inputs, self.across * self.cols - self.outputs]
        if any(beyond):
            matrix = tf.pad(matrix, [[0, n] for n in beyond])
        blocks = tf.reshape(matrix, [self.down, self.rows, self.across, self.cols])
        return tf.transpose(blocks, [2, 0, 1, 3])

    def matrix(self, blocks):
        """Joins blocks to a dense matrix; the inverse of `blocks`."""
        matrix = tf.transpose(blocks, [1, 2, 0, 3])
        matrix = tf.reshape(matrix, [self.down * self.rows, self.across * self.cols])
        return matrix[: self.inputs, : self.outputs]

    def pack(self, matrix, places):
        """Returns the values of a dense matrix in the blocks at `places`."""
        return tf.gather(self.blocks(matrix), places, batch_dims=1)

    def unpack(self, values, places):
        """Returns the dense matrix, with zeros where no block is stored."""
        columns = tf.range(self.across)[:, None] + tf.zeros_like(places)
        indices = tf.stack([columns, places], axis=-1)
        shape = [self.across, self.down, self.rows, self.cols]
        return self.matrix(tf.scatter_nd(indices, values, shape))

    def places(self, mask):
        """Returns the places of the blocks that a mask keeps.

        Args:
            mask: boolean tensor of shape (inputs, outputs) that keeps `active` whole blocks in
                each column of blocks.
        """
        return self.places_of(tf.reduce_any(self.blocks(mask), axis=(2, 3)))

    def places_of(self, units):
        """Returns the places of blocks.

        Args:
            units: boolean tensor of shape (across, down), True for `active` blocks of each
                column.
        """
        # The stable sort puts the kept blocks first, and in ascending order.
        order = tf.argsort(tf.cast(~units, tf.int32), axis=1, stable=True)
        return order[:, : self.active]

    def units(self, places):
        """Returns the inverse of `places_of`: a boolean tensor of shape (across, down)."""
        columns = tf.range(self.across)[:, None] + tf.zeros_like(places)
        indices = tf.stack([columns, places], axis=-1)
        ones = tf.ones_like(places, tf.int32)
        return tf.scatter_nd(indices, ones, [self.across, self.down]) > 0

    def mask(self, places):
        """Returns the mask of the dense matrix, True in the blocks at `places`."""
        kept = self.units(places)
        shape = [self.across, self.down, self.rows, self.cols]
        return self.matrix(tf.broadcast_to(kept[:, :, None, None], shape))

    def sizes(self):
        """Returns the entries of each block, without those beyond: shape (across, down)."""
        rows = np.minimum(self.rows, self.inputs - np.arange(self.down) * self.rows)
        cols = np.minimum(self.cols, self.outputs - np.arange(self.across) * self.cols)
        return cols[:, None] * rows

    def entries(self, places) -> int:
        """Returns the number of entries in the blocks at `places`, without those beyond."""
        return int(np.take_along_axis(self.sizes(), np.asarray(places), axis=1).sum())

    def fault(self, places):
        """Returns what is wrong with places of blocks, a str, or None."""
        ascending = np.all(np.diff(places) > 0)
        if ascending and places.min() >= 0 and places.max() < self.down:
            return None
        return (
            f"the places of blocks do not ascend from 0 to at most {self.down - 1} in each column "
            "of blocks"
        )

    def inside(self, places):
        """Returns a boolean tensor of the values' shape: False for what is beyond the matrix."""
        row = places[:, :, None] * self.rows + tf.range(self.rows)
        col = tf.range(self.across)[:, None] * self.cols + tf.range(self.cols)
        return (row < self.inputs)[:, :, :, None] & (col < self.outputs)[:, None, None, :]
