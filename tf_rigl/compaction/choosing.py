"""Which form of a layer is fastest, by its kind and its columns.

The rules are from measurements in LiteRT on a CPU (one thread, batches of one), which
`benchmarks/export.py` repeats: what the kernels need is width of the outputs. Columns of 32
outputs are enough for dense layers and for convolutions of several taps, even if each input is
chosen singly. A 1x1 convolution does little with what it gathers, so it needs wider columns or
runs of inputs.
"""

from tf_rigl.compaction import convolutions, matrices
from tf_rigl.patterns.compact import SMALL

# Columns of single entries are mostly zeros, and a sparse-encoded file is smaller. Columns of
# trained blocks hold zeros too: units die, and what has grown begins at zero.
_MOST_STORED = 2


def possible(part) -> dict:
    """Returns the forms that a layer can have: name -> function of the `Part`."""
    same_width = len({column.outputs for column in part.columns.columns}) == 1
    if not part.taps:  # A matrix.
        forms = {"split": matrices.split}
        free = sum(size is None for size in part.input().shape[1:-1])
        return {"matmul": matrices.matmul, **forms} if same_width and free < 2 else forms
    if _confuses_axes(part):
        return {}
    forms = {"split": convolutions.split}
    if same_width:
        forms["grouped"] = convolutions.grouped
    if part.is_pointwise and same_width and None not in part.input().shape[1:-1]:
        forms["matmul"] = matrices.matmul
    return forms


def fastest(part, forms, quantization=None):
    """Returns the name of the form that is fastest, or None and the reason why none gains.

    Args:
        part: `Part`.
        forms: the result of `possible`.
        quantization: str or None, what the model will become in LiteRT.
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
    least = _least_width(part, quantization)
    if least is None:
        return None, f"with quantization={quantization!r} no form of such a convolution gains"
    if columns.width < least:
        return None, f"its blocks have {columns.width} outputs; {least} or more gain"
    most = 0.3 if part.is_pointwise and columns.rows < 8 else 0.6
    if columns.density > most:
        return None, f"density {columns.density:.2f}; {most} or less gains"
    # LiteRT has no fast kernel for several products of int8 matrices at once.
    if part.taps or "matmul" not in forms or quantization == "int8":
        return "split", ""
    padded = max(len(column.inputs) for column in columns.columns) / columns.inputs
    return ("matmul" if padded <= 1.25 * columns.density else "split"), ""


def _confuses_axes(part):
    """Whether Keras takes the last axis of "channels_first" outputs for channels.

    It does to add a bias, where the two are as long: in the layer, or in a column.
    """
    if part.bias is None or part.layer.data_format == "channels_last":
        return False
    last = part.layer.compute_output_shape(part.input().shape)[-1]
    widths = {part.columns.outputs, *(column.outputs for column in part.columns.columns)}
    return last is None or last in widths


def _least_width(part, quantization):
    """Returns the least outputs of blocks that pay; None if no blocks do."""
    rows = part.columns.rows
    if not part.taps:
        int8 = 32 if rows >= 8 else 64
        return {None: 16, "float16": 16, "dynamic": 32, "int8": int8}[quantization]
    if quantization in ("dynamic", "int8"):
        # Activations are quantized anew for each column, or gathered too slowly.
        return None if part.is_pointwise or rows < 32 else 32
    return 16 if not part.is_pointwise else (32 if rows >= 8 else 64)
