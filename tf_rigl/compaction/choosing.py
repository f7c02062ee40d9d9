"""Which form of a layer is fastest, by its kind and its columns.

The rules are from measurements on a CPU (one thread, batches of one), which
`benchmarks/compact.py` repeats: what the kernels need is width of the outputs. Columns of 32
outputs are enough for dense layers and for convolutions of several taps, even if each input is
chosen singly. A 1x1 convolution does little with what it gathers, so it needs wider columns or
runs of inputs, and so do convolutions of integers, which are fast when dense.
"""

from tf_rigl.compaction import convolutions, matrices
from tf_rigl.patterns.compact import SMALL

# Columns of single entries are mostly zeros, and a sparse-encoded file is smaller. Columns of
# trained blocks hold zeros too: units die, and what has grown begins at zero.
_MOST_STORED = 2
_MOST_PADDED = 2  # Above it, a layer for each column is smaller, and often as fast.


def possible(part) -> dict:
    """Returns the forms that a layer can have: name -> function of the `Part`."""
    same_width = len({column.outputs for column in part.columns.columns}) == 1
    if not part.taps:  # A matrix.
        forms = {"split": matrices.split}
        shape = part.input().shape
        if same_width and shape[1:-1].count(None) < 2:
            forms["matmul"] = matrices.matmul
        if same_width and len(shape) <= 4:
            forms["grouped"] = matrices.grouped
        return forms
    if _confuses_axes(part):
        return {}
    forms = {"split": convolutions.split}
    if same_width:
        forms["grouped"] = convolutions.grouped
    if part.is_pointwise and same_width and None not in part.input().shape[1:-1]:
        forms["matmul"] = matrices.matmul
    return forms


def fastest(part, forms, target=None):
    """Returns the name of the form that is fastest, or None and the reason why none gains.

    Args:
        part: `Part`.
        forms: the result of `possible`.
        target: str, what the model will become in LiteRT, one of `registry.TARGETS`; or None for
            a model that is trained, or that runs elsewhere.
    """
    columns = part.columns
    if not forms:
        return None, "Keras adds its bias along the last axis, which is as long as the channels"
    if columns.size < SMALL:
        return None, f"small: {columns.size} entries"
    if len(columns.columns) == 1 and len(columns.columns[0].inputs) == columns.inputs:
        return None, "no zeros that form blocks"
    if columns.stored > _MOST_STORED * columns.active:
        times = columns.stored / max(1, columns.active)
        return None, f"its zeros form no blocks: columns would store {times:.1f} times the rest"
    form = _form(part, forms, target)
    least = _least_width(part, form, target)
    if least is None:
        return None, f"with quantization={target!r} no form of such a convolution gains"
    if columns.width < least:
        return None, f"its blocks have {columns.width} outputs; {least} or more gain"
    most = 0.3 if part.is_pointwise and columns.rows < 8 else 0.6
    if columns.density > most:
        return None, f"density {columns.density:.2f}; {most} or less gains"
    return form, ""


def _form(part, forms, target):
    """Returns the fastest form, if any form gains."""
    columns = part.columns
    # LiteRT's kernels of convolutions with groups are the fastest there. TensorFlow's are slow,
    # and the gradients fifty times slower.
    last = not part.taps or part.layer.data_format == "channels_last"
    fits = last and "grouped" in forms and columns.padded <= _MOST_PADDED * columns.stored
    if fits and target is not None:
        return "grouped"
    if part.taps or "matmul" not in forms or target == "int8":
        return "split"
    return "matmul" if columns.padded <= 1.25 * columns.stored else "split"


def _confuses_axes(part):
    """Whether Keras takes the last axis of "channels_first" outputs for channels.

    It does to add a bias, where the two are as long: in the layer, or in a column.
    """
    if part.bias is None or part.layer.data_format == "channels_last":
        return False
    last = part.layer.compute_output_shape(part.input().shape)[-1]
    widths = {part.columns.outputs, *(column.outputs for column in part.columns.columns)}
    return last is None or last in widths


def _least_width(part, form, target):
    """Returns the least outputs of blocks that pay in a form; None if no blocks do."""
    rows, quantized = part.columns.rows, target in ("dynamic", "int8")
    if not part.taps:
        return 32 if quantized and form == "split" else 16
    if not quantized:
        return 16 if not part.is_pointwise else (32 if rows >= 8 else 64)
    # Activations are quantized anew for each column, or gathered too slowly.
    if part.is_pointwise:
        return None
    return 32 if rows >= (8 if form == "grouped" else 32) else 64
