"""A block-sparse kernel in strips: some columns of blocks at a time, as dense matrices.

So the update of a kernel that would be too large as a dense matrix needs the memory of a strip.
The RigL paper names the way: where the full gradient is too large to store, compute it online and
keep the largest.
"""

import dataclasses

import tensorflow as tf

from tf_rigl.patterns.block import Block

LIMIT = 2**22  # Entries of a strip; a smaller kernel is one strip.
_STRIDE = -1640531527  # Odd, so that no two strips of a kernel have the same seed.


class Strips:
    """The strips of the kernel of a layer.

    Args:
        layer: a built block-sparse layer.

    Attributes:
        width: int, the columns of blocks in a strip.
        number: int, the number of strips; the last one may extend beyond the kernel.
    """

    def __init__(self, layer):
        self.layer = layer
        self.geometry = geometry = layer.geometry
        entries = geometry.down * geometry.rows * geometry.cols
        self.width = min(geometry.across, max(1, LIMIT // entries))
        self.number = -(-geometry.across // self.width)

    @property
    def part(self):
        """The `Geometry` of a strip."""
        if self.number == 1:
            return self.geometry
        return dataclasses.replace(self.geometry, outputs=self.width * self.geometry.cols)

    def map(self, function):
        """Calls a function for each strip and joins the results.

        Args:
            function: function of the first column of blocks and the strip's `Geometry`. It
                returns a structure of tensors whose first axis is the columns of blocks.
        """
        head = function(0, self.part)
        if self.number == 1:
            return head
        rest = tf.map_fn(
            lambda number: function(number * self.width, self.part),
            tf.range(1, self.number),
            fn_output_signature=tf.nest.map_structure(lambda tensor: tensor.dtype, head),
            parallel_iterations=1,  # Each takes the memory of a strip.
        )
        return tf.nest.map_structure(self._joined, head, rest)

    def _joined(self, head, rest):
        """Joins tensors of shapes (width, ...) and (number - 1, width, ...) to one."""
        rest = tf.reshape(rest, [(self.number - 1) * self.width, *head.shape[1:]])
        return tf.concat([head, rest], axis=0)[: self.geometry.across]

    def cut(self, tensor, first):
        """Returns the columns of blocks of a strip, from a tensor whose first axis they are."""
        if self.number == 1:
            return tensor
        beyond = self.number * self.width - self.geometry.across
        if beyond:
            tensor = tf.pad(tensor, [[0, beyond]] + [[0, 0]] * (len(tensor.shape) - 1))
        return tensor[first : first + self.width]

    def columns(self, matrix, first, part):
        """Returns the columns of a strip from a matrix of shape (inputs, outputs)."""
        if self.number == 1:
            return matrix
        beyond = self.number * part.outputs - matrix.shape[1]
        matrix = tf.pad(matrix, [[0, 0], [0, beyond]]) if beyond else matrix
        start = first * self.geometry.cols
        return tf.slice(matrix, [0, start], [matrix.shape[0], part.outputs])

    def unpacked(self, values, first, part):
        """Returns the dense matrix of a strip, from a tensor of the stored values' shape."""
        places = self.cut(tf.convert_to_tensor(self.layer.places), first)
        return part.unpack(self.cut(values, first), places)

    def mask(self, first, part):
        """Returns the mask of a strip, a boolean matrix."""
        return part.mask(self.cut(tf.convert_to_tensor(self.layer.places), first))

    def seed(self, seed, first):
        """Returns the seed of the random numbers of a strip."""
        if self.number == 1:
            return seed
        return seed + tf.stack([first * tf.constant(_STRIDE), 0])  # It wraps around.

    def shaped(self, matrix):
        """Returns a strip in the shape that methods see: a single strip is the kernel."""
        return self.layer.as_kernel(matrix) if self.number == 1 else matrix

    def flat(self, tensor):
        """Returns what `shaped` has changed as a matrix again."""
        return self.layer.as_matrix(tensor) if self.number == 1 else tensor

    def unit_scores(self, scores, part, pattern):
        """Returns the scores of the blocks of a strip, of shape (columns of blocks, down)."""
        if self.number > 1:
            pattern = Block(part.rows, part.cols, pattern.score)
        flat = pattern.unit_scores(scores)
        return tf.transpose(tf.reshape(flat, [part.down, part.across]))
