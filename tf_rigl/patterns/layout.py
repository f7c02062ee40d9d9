"""The layout of weights of any rank as matrices of inputs by outputs."""

import dataclasses
import math
import operator

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Layout:
    """Views a weight as a stack of matrices of inputs by outputs.

    Attributes:
        shape: tuple of int, the shape of the weight.
        axes: the weight's input axes and its output axes, two tuples of int. None means the
            last axis but one and the last axis, as in kernels of Dense and convolutions. All
            other axes, such as the spatial axes of a convolution, are stacked.
        joined: bool, whether the stacked axes belong to the inputs instead, after the input
            axes: one matrix, in which the taps of an input channel are next to each other.

    Example:

    >>> Layout((3, 3, 16, 32)).size
    (9, 16, 32)
    >>> Layout((3, 3, 16, 32), joined=True).size
    (1, 144, 32)
    """

    shape: tuple[int, ...]
    axes: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    joined: bool = False

    @property
    def _order(self):
        """The stacked axes, the input axes and the output axes, three tuples of int."""
        rank = len(self.shape)
        if self.axes is None:
            groups = [(rank - 2,), (rank - 1,)] if rank > 1 else [tuple(range(rank)), ()]
        else:
            groups = [tuple(axis % rank for axis in group) for group in self.axes]
        inputs, outputs = groups
        stacked = tuple(a for a in range(rank) if a not in inputs + outputs)
        return ((), inputs + stacked, outputs) if self.joined else (stacked, inputs, outputs)

    @property
    def taps(self) -> int:
        """The number of rows of a matrix that each input has: more than 1 only if joined."""
        if not self.joined:
            return 1
        apart = dataclasses.replace(self, joined=False)
        return math.prod(self.shape[axis] for axis in apart._order[0])

    @property
    def size(self) -> tuple[int, int, int]:
        """The numbers of matrices, of inputs and of outputs."""
        return tuple(math.prod(self.shape[axis] for axis in group) for group in self._order)

    def matrices(self, tensor):
        """Rearranges a tensor of the weight's shape into the shape `size`."""
        order = sum(self._order, ())
        return tf.reshape(_transposed(tensor, order), self.size)

    def restore(self, matrices):
        """Rearranges a tensor of shape `size` into the weight's shape; inverts `matrices`."""
        order = sum(self._order, ())
        tensor = tf.reshape(matrices, [self.shape[axis] for axis in order])
        return _transposed(tensor, [order.index(axis) for axis in range(len(order))])


def _transposed(tensor, order):
    """Transposes a tensor, unless its axes are in order already."""
    return tensor if list(order) == sorted(order) else tf.transpose(tensor, order)


def as_axes(axes):
    """Converts axes to two tuples; JSON makes lists of them. None stays None."""
    if axes is None:
        return None
    try:
        groups = tuple(tuple(operator.index(axis) for axis in group) for group in axes)
    except TypeError:
        groups = ()
    if len(groups) != 2:
        raise ValueError(
            "Argument `axes` must be two tuples of integers, the input axes and the output axes of "
            f"a weight, or None. Received: axes={axes!r}"
        )
    return groups
