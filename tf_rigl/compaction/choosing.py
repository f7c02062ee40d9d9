"""Which form of a layer is fastest, by its kind and its columns.

The rules are from measurements in LiteRT on a CPU (one thread, batches of one), which
`benchmarks/export.py` repeats: what the kernels need is width of the outputs. Columns of 32
outputs are enough for dense layers and for convolutions of several taps, even if each input is
chosen singly. A 1x1 convolution does little with what it gathers, so it needs wider columns or
runs of inputs.
"""

from tf_rigl.compaction import convolutions, matrices

_SMALL = 2**12  # Entries below which the steps around a product cost more than it.


def possible(part) -> dict:
    """Returns the forms that a layer can have: name -> function of the `Part`."""
    same_width = len({column.outputs for column in part.columns.columns}) == 1
    if not part.taps:  # A matrix.
        forms = {"split": matrices.split}
        free = sum(size is None for size in part.input().shape[1:-1])
        return {"matmul": matrices.matmul, **forms} if same_width and free < 2 else forms
    forms = {"split": convolutions.split}
    if same_width:
        forms["grouped"] = convolutions.grouped
    if part.is_pointwise and same_width and None not in part.input().shape[1:-1]:
        forms["matmul"] = matrices.matmul
    return forms


def fastest(part, forms, products=True):
    """Returns the name of the form that is fastest, or None and the reason why none gains.

    Args:
        part: `Part`.
        forms: the result of `possible`.
        products: bool, whether products of several matrices at once are fast; those of int8
            are not.
    """
    columns = part.columns
    if columns.size < _SMALL:
        return None, f"small: {columns.size} entries"
    if len(columns.columns) == 1 and len(columns.columns[0].inputs) == columns.inputs:
        return None, "no zeros that form blocks"
    least = 16 if not part.is_pointwise else (32 if columns.rows >= 8 else 64)
    if columns.width < least:
        return None, f"its blocks have {columns.width} outputs; {least} or more gain"
    most = 0.3 if part.is_pointwise and columns.rows < 8 else 0.6
    if columns.density > most:
        return None, f"density {columns.density:.2f}; {most} or less gains"
    if part.taps or "matmul" not in forms or not products:
        return "split", ""
    padded = max(len(column.inputs) for column in columns.columns) / columns.inputs
    return ("matmul" if padded <= 1.25 * columns.density else "split"), ""
