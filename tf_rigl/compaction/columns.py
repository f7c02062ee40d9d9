"""A kernel as columns: groups of outputs that use the same inputs."""

import dataclasses
import math

import numpy as np

_WIDTHS = (128, 64, 32, 16)  # Narrower columns are never fast.
_HEIGHTS = (64, 32, 16, 8, 4, 2)
_SLACK = 1.1  # Wider columns may store so many times the least: trained blocks hold zeros too.


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a kernel.

    Attributes:
        outputs: int, how many outputs it has.
        inputs: int array, the input channels that it uses, in ascending order.
        kernel: array of shape (*taps, inputs, outputs).
    """

    outputs: int
    inputs: np.ndarray
    kernel: np.ndarray


@dataclasses.dataclass(frozen=True)
class Columns:
    """A kernel in columns, in the order of their outputs.

    Attributes:
        columns: list of `Column`.
        inputs: int, how many input channels the layer has.
        rows: int, the largest number of which all runs of inputs are multiples.
        active: int, how many entries of the kernel are not zero, or may become so.
    """

    columns: list[Column]
    inputs: int
    rows: int
    active: int

    @property
    def outputs(self) -> int:
        """How many outputs the kernel has."""
        return sum(column.outputs for column in self.columns)

    @property
    def stored(self) -> int:
        """How many entries of the kernel the columns hold."""
        return sum(column.kernel.size for column in self.columns)

    @property
    def padded(self) -> int:
        """The entries that columns would hold if all had as many inputs as the longest."""
        most = max(len(column.inputs) for column in self.columns)
        return math.prod(self.columns[0].kernel.shape[:-2]) * most * self.outputs

    @property
    def density(self) -> float:
        """The stored entries, over those of the dense kernel."""
        return self.stored / self.size

    @property
    def itemsize(self) -> int:
        """The bytes of an entry."""
        return self.columns[0].kernel.itemsize

    @property
    def width(self) -> int:
        """The outputs of a column; of the widest, if they differ."""
        return max(column.outputs for column in self.columns)

    @property
    def are_equal(self) -> bool:
        """Whether all columns have as many inputs and outputs."""
        sizes = {(len(column.inputs), column.outputs) for column in self.columns}
        return len(sizes) == 1

    @property
    def size(self) -> int:
        """The entries of the dense kernel."""
        return math.prod(self.columns[0].kernel.shape[:-2]) * self.inputs * self.outputs


def of_zeros(kernel, mask=None) -> Columns:
    """Finds the columns of a kernel by its zeros: the widest that store hardly more than needed.

    Args:
        kernel: array of shape (*taps, inputs, outputs).
        mask: boolean array of this shape, where entries may be other than zero; None if only the
            kernel tells. Training leaves zeros where a mask is 1, too.
    """
    inputs, outputs = kernel.shape[-2:]
    mask = kernel != 0 if mask is None else mask
    used = np.any(mask, axis=tuple(range(kernel.ndim - 2)))
    widths = [width for width in _WIDTHS if width <= outputs] or [outputs]
    stored = {width: _stored(used, width) for width in widths}
    least = min(stored.values())
    width = next(w for w, n in stored.items() if n <= _SLACK * least)
    columns = []
    for first in range(0, outputs, width):
        chosen = np.flatnonzero(used[:, first : first + width].any(axis=1))
        part = kernel[..., chosen, first : first + width]
        columns.append(Column(part.shape[-1], chosen, part))
    return Columns(columns, inputs, _rows(columns, inputs), int(np.count_nonzero(mask)))


def _stored(used, width):
    """Returns how many entries columns of a width store."""
    starts = np.arange(0, used.shape[1], width)
    widths = np.diff([*starts, used.shape[1]])
    return int((np.logical_or.reduceat(used, starts, axis=1).sum(axis=0) * widths).sum())


def of_blocks(layer) -> Columns:
    """Returns the columns of a block-sparse layer, from what it stores.

    Args:
        layer: a built layer of `tf_rigl.block_sparse`.
    """
    geometry, taps = layer.geometry, layer.taps
    values, places = (v.numpy() for v in (layer.values, layer.places))
    height, channels = geometry.rows // taps, geometry.inputs // taps
    columns = []
    for number in range(geometry.across):
        outputs = min(geometry.cols, geometry.outputs - number * geometry.cols)
        chosen = (places[number][:, None] * height + np.arange(height)).ravel()
        part = values[number].reshape(-1, taps, geometry.cols)[:, :, :outputs]
        inside = chosen < channels
        kernel = part[inside].transpose(1, 0, 2).reshape(*layer.tap_shape, inside.sum(), outputs)
        columns.append(Column(outputs, chosen[inside], kernel))
    active = sum(column.kernel.size for column in columns)
    columns = _joined(columns, -(-_WIDTHS[-1] // geometry.cols))
    return Columns(columns, channels, _rows(columns, channels), active)


def _joined(columns, number):
    """Joins so many neighbours at a time: narrower columns are never fast."""
    return [_one(columns[first : first + number]) for first in range(0, len(columns), number)]


def _one(columns):
    """Returns a column of the outputs of several, which uses the inputs of all."""
    if len(columns) == 1:
        return columns[0]
    inputs = np.unique(np.concatenate([column.inputs for column in columns]))
    outputs = sum(column.outputs for column in columns)
    taps = columns[0].kernel.shape[:-2]
    kernel, first = np.zeros((*taps, len(inputs), outputs), columns[0].kernel.dtype), 0
    for column in columns:
        places = np.searchsorted(inputs, column.inputs)
        kernel[..., places, first : first + column.outputs] = column.kernel
        first += column.outputs
    return Column(outputs, inputs, kernel)


def _rows(columns, inputs):
    """Returns the largest height of which all runs of inputs are multiples, and in places."""
    for rows in _HEIGHTS:
        if inputs % rows == 0 and all(_in_runs(column.inputs, rows) for column in columns):
            return rows
    return 1


def _in_runs(chosen, rows):
    if len(chosen) % rows:
        return False
    runs = chosen.reshape(-1, rows)
    return bool(np.all(runs[:, 0] % rows == 0) and np.all(np.diff(runs, axis=1) == 1))
