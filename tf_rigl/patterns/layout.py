"""Weights of any rank as matrices of inputs by outputs."""

import dataclasses
import math

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a weight is seen as a stack of matrices of inputs by outputs.

    Attributes:
        shape: tuple of int, that of the weight.
        axes: its input axes and its output axes, two tuples of int; None for the last but
            one and the last, as in kernels of Dense and convolutions. All other axes, such
            as the spatial ones of a convolution, are stacked.
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def _order(self):
        rank = len(self.shape)
        if self.axes is None:
            groups = [(rank - 2,), (rank - 1,)] if rank > 1 else [tuple(range(rank)), ()]
        else:
            groups = [tuple(axis % rank for axis in group) for group in self.axes]
        inputs, outputs = groups
        stacked = tuple(a for a in range(rank) if a not in inputs + outputs)
        return stacked, inputs, outputs

    @property
    def size(self) -> tuple[int, int, int]:
        """How many matrices there are, and how many inputs and outputs each has."""
        return tuple(math.prod(self.shape[axis] for axis in group) for group in self._order)

    def matrices(self, tensor):
        """The tensor, of the weight's shape, in the shape `size`."""
        order = sum(self._order, ())
        return tf.reshape(_transposed(tensor, order), self.size)

    def restore(self, matrices):
        """The inverse of `matrices`."""
        order = sum(self._order, ())
        tensor = tf.reshape(matrices, [self.shape[axis] for axis in order])
        return _transposed(tensor, [order.index(axis) for axis in range(len(order))])


def _transposed(tensor, order):
    return tensor if list(order) == sorted(order) else tf.transpose(tensor, order)


def as_axes(axes):
    """Axes as two tuples, from what JSON makes of them."""
    return None if axes is None else tuple(tuple(group) for group in axes)
