"""Compact forms of layers that multiply the last axis by a matrix."""

import keras
import numpy as np

LETTERS = "abdefg"


def matmul(part):
    """Gathers the inputs of all columns, and multiplies all columns at once.

    Columns with fewer inputs than others get an input more, with weights of zero.

    Args:
        part: `tf_rigl.compaction.parts.Part`; its columns have as many outputs.

    Returns:
        A `keras.Model` and a function that sets its weights.
    """
    columns, width = part.columns.columns, part.columns.width
    rows, places = part.columns.rows, places_of(part)
    kernel = np.zeros((*places.shape, width), columns[0].kernel.dtype)
    for number, column in enumerate(columns):
        kernel[number, : len(column.inputs)] = column.kernel.reshape(-1, width)
    inputs = part.input()
    x = part.sampled(inputs)
    lead, sizes = LETTERS[: len(x.shape) - 1], x.shape[1:-1]
    x = gathered(x, places, rows)
    layer = keras.layers.EinsumDense(
        f"{lead}nk,nkc->{lead}nc",
        (*sizes, len(columns), width),
        name=f"{part.name}_blocks",
        bias_axes=None if part.bias is None else "nc",
        **{key: value for key, value in part.options.items() if key != "use_bias"},
    )
    target = (*_sizes(sizes), len(columns) * width)
    outputs = keras.layers.Reshape(target, dtype=part.layer.dtype_policy)(layer(x))
    model = keras.Model(inputs, part.activated(outputs), name=part.name)

    def fill():
        weights = [kernel] if part.bias is None else [kernel, part.bias.reshape(-1, width)]
        layer.set_weights(weights)

    return model, fill


def grouped(part):
    """Gathers the inputs of all columns, for one convolution with groups over one place.

    LiteRT multiplies groups of int8 matrices fast, and batches of them slowly.

    Args:
        part: `Part`; its columns have as many outputs.

    Returns:
        A `keras.Model` and a function that sets its weights.
    """
    places, rows, outputs = places_of(part), part.columns.rows, part.columns.outputs
    inputs = part.input()
    x = gathered(inputs, places.ravel(), rows)
    is_row = len(inputs.shape) == 2  # A convolution needs a place.
    if is_row:
        x = keras.layers.Reshape((1, places.size), dtype=x.dtype)(x)
    kind = keras.layers.Conv1D if len(x.shape) == 3 else keras.layers.Conv2D
    groups = {"groups": len(places), "name": f"{part.name}_blocks"}
    layer = kind(outputs, 1, **groups, **part.options)
    x = layer(x)
    x = keras.layers.Reshape((outputs,), dtype=part.layer.dtype_policy)(x) if is_row else x
    model = keras.Model(inputs, part.activated(x), name=part.name)

    def fill():
        kernel = in_groups(part, places.shape[1]).reshape(layer.kernel.shape)
        layer.set_weights([kernel] if part.bias is None else [kernel, part.bias])

    return model, fill


def places_of(part):
    """Returns the inputs of each column, filled up to as many: shape (columns, inputs)."""
    columns, rows = part.columns.columns, part.columns.rows
    most = max(rows, *(len(column.inputs) for column in columns))
    return np.stack([_filled(column.inputs, most, rows) for column in columns])


def _filled(chosen, most, rows):
    """Fills up the inputs of a column to a number, by whole runs of inputs."""
    missing = (most - len(chosen)) // rows
    return np.concatenate([chosen, np.tile(np.arange(rows), missing)]).astype(int)


def in_groups(part, most):
    """Returns the kernel of a convolution with a group for each column, of `most` inputs."""
    columns = part.columns.columns
    taps = columns[0].kernel.shape[:-2]
    kernel = np.zeros((*taps, most, part.columns.outputs), columns[0].kernel.dtype)
    for number, column in enumerate(columns):
        outputs = slice(number * column.outputs, (number + 1) * column.outputs)
        kernel[..., : len(column.inputs), outputs] = column.kernel
    return kernel


def gathered(x, places, rows, axis=-1):
    """Gathers inputs, by whole runs where it can.

    Args:
        x: symbolic tensor.
        places: int array, the inputs along the axis, in runs of `rows` along its last axis.
        rows: int.
        axis: int, the axis of the inputs.

    Returns:
        A symbolic tensor in which the axes of `places` take the place of the axis.
    """
    if axis != -1 or rows == 1 or x.shape[1:-1].count(None) > 1:
        return keras.ops.take(x, places, axis=axis)
    lead = _sizes(x.shape[1:-1])
    runs = keras.layers.Reshape((*lead, x.shape[-1] // rows, rows), dtype=x.dtype)(x)
    runs = keras.ops.take(runs, places[..., ::rows] // rows, axis=-2)
    return keras.layers.Reshape((*lead, *places.shape), dtype=x.dtype)(runs)


def _sizes(lead):
    """Returns axes for a `Reshape`, which can leave one of them free."""
    return tuple(-1 if size is None else size for size in lead)


def split(part):
    """Multiplies each column by itself, and joins the results."""

    def make(number, column):
        return keras.layers.Dense(column.outputs, name=f"{part.name}_{number}", **part.options)

    return in_columns(part, make, -1)


def in_columns(part, make, axis):
    """Makes the form with a layer for each column.

    Args:
        part: `Part`.
        make: function of the number of a column and the `Column` that returns its layer.
        axis: int, the axis of the channels.

    Returns:
        A `keras.Model` and a function that sets its weights.
    """
    inputs, columns = part.input(), part.columns.columns
    layers = [make(number, column) for number, column in enumerate(columns)]
    take = _Taker(part.sampled(inputs), part.columns.rows, axis)
    found = [layer(take(column.inputs)) for layer, column in zip(layers, columns, strict=True)]
    joined = keras.layers.Concatenate(axis=axis, dtype=part.layer.dtype_policy)
    outputs = found[0] if len(found) == 1 else joined(found)
    model = keras.Model(inputs, part.activated(outputs), name=part.name)

    def fill():
        first = 0
        for layer, column in zip(layers, columns, strict=True):
            kernel, bias = column.kernel, None
            if not len(column.inputs):  # A layer needs an input: it is there, and not used.
                kernel = np.zeros((*kernel.shape[:-2], 1, column.outputs), kernel.dtype)
            if part.bias is not None:
                bias = part.bias[first : first + column.outputs]
                first += column.outputs
            layer.set_weights([kernel.reshape(layer.kernel.shape), *([bias] * (bias is not None))])

    return model, fill


class _Taker:
    """Takes channels of a tensor: runs of them by splitting it once, single ones by gathering."""

    def __init__(self, x, rows, axis):
        self.x, self.rows, self.axis = x, rows, axis
        count = x.shape[axis]
        whole = rows >= 8 and count > rows
        self.runs = keras.ops.split(x, count // rows, axis=axis) if whole else None

    def __call__(self, chosen):
        count = self.x.shape[self.axis]
        if len(chosen) == count:
            return self.x
        chosen = chosen if len(chosen) else np.array([0])
        if self.runs is None or len(chosen) % self.rows:
            return keras.ops.take(self.x, chosen, axis=self.axis)
        runs = [self.runs[number] for number in chosen[:: self.rows] // self.rows]
        return runs[0] if len(runs) == 1 else keras.ops.concatenate(runs, axis=self.axis)
