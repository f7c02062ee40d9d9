"""The figures of a report, and how they are printed."""

import dataclasses

from tf_rigl._base import tables


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What one kernel costs.

    Attributes:
        name: str, the path of the weight, as in `SparseModel.masked_weights`. Products of
            activations, which have no weight, are named after their layer:
            "attention/products".
        shape: tuple of int, the shape of the weight; () for products.
        sparsity: float, the fraction of zeros.
        params: int, entries.
        nnz: int, entries that are not zero.
        flops: per example and forward pass, those of entries that are not zero.
        dense_flops: those of all entries.
        bytes: float, with the bias of the layer; a kernel with zeros is stored sparse.
        dense_bytes: float, stored dense.
        bias_flops: one for each output of the layer, in the row of its last kernel.
        masked: bool, whether the weight counts in the sparsity of the model.
        pattern: str, which entries are zero together, such as "block_16x1"; "dense" where
            none is.
        compute: str, "sparse" where only the entries that are there are stored and
            computed, "masked" where there are zeros among them, "dense" where not.
        obstacle: str, with a constant fan-in: why the layer cannot have `compute="sparse"`;
            "" where it can, and with other patterns.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    params: int
    nnz: int
    flops: float
    dense_flops: float
    bytes: float
    dense_bytes: float
    bias_flops: float
    masked: bool
    pattern: str
    compute: str
    obstacle: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a model costs, sparse and dense; `print` shows it as a table.

    Attributes:
        layers: list of `LayerReport`, in model order.
        sparsity: float, zeros over the entries of all masked weights.
        params: int, all parameters but the zeros, those of normalisation included.
        dense_params: int, all parameters, as `count_params()` counts.
        flops: per example and forward pass, without biases and activations.
        dense_flops: the same of the dense model.
        bytes: float, of kernels and biases.
        dense_bytes: float, the same of the dense model.
        bias_flops: additions of biases; sparsity does not change them.
        activation_flops: operations of activations; nor these.
    """

    layers: list[LayerReport]
    sparsity: float
    params: int
    dense_params: int
    flops: float
    dense_flops: float
    bytes: float
    dense_bytes: float
    bias_flops: float
    activation_flops: float

    def to_dict(self) -> dict:
        """Everything in dicts, lists, strings and numbers, ready for JSON."""
        result = dataclasses.asdict(self)
        for row in result["layers"]:
            row["shape"] = list(row["shape"])
        return result

    def __str__(self):
        unit, size = ("MB", 1e6) if self.dense_bytes >= 1e6 else ("kB", 1e3)
        header = ("weight", "shape", "sparsity", "params", "nnz", "dense FLOPs", "FLOPs", unit)
        rows = [
            _cells(row.name, "x".join(map(str, row.shape)), row.sparsity, row.params, row, size)
            for row in self.layers
        ]
        params = sum(row.params for row in self.layers)
        rows.append(_cells("total", "", self.sparsity, params, self, size))
        patterns = [row.pattern if row.pattern != "dense" else "" for row in self.layers]
        structured = sorted({*patterns} - {"", "unstructured"})
        if structured:
            header = (*header, "pattern")
            rows = [(*row, name) for row, name in zip(rows, [*patterns, ""], strict=True)]
        if any(name.startswith("constant_fan_in") for name in structured):
            header = (*header, "compute")
            rows = [
                (*r, how) for r, how in zip(rows, [*map(_compute, self.layers), ""], strict=True)
            ]
        rest = self.bias_flops + self.activation_flops
        flops, dense = self.flops + rest, self.dense_flops + rest
        lines = tables.text(header, rows, left={0, 1, 8, 9})
        lines.insert(-1, lines[1])
        lines += [
            "",
            f"parameters: {self.params:,} of {self.dense_params:,}"
            f"{_ratio(self.params, self.dense_params)}",
            f"FLOPs: {self.flops:.4g} of {self.dense_flops:.4g}"
            f"{_ratio(self.flops, self.dense_flops)}; with biases and activations: "
            f"{flops:.4g} of {dense:.4g}{_ratio(flops, dense)}",
            f"size: {self.bytes / size:.3f} {unit} of {self.dense_bytes / size:.3f} {unit}"
            f"{_ratio(self.bytes, self.dense_bytes)}",
        ]
        if any(name.startswith("block") for name in structured):
            lines.append(
                "LiteRT runs matrices in blocks of 4 or 16 inputs by 1 output fast; elsewhere "
                "zeros make its file smaller only"
            )
        if any(not row.masked for row in self.layers):
            note = "(total sparsity: of the weights that are masked or can be)"
            lines.insert(len(rows) + 4, note)
        return "\n".join(lines)


def _cells(name, shape, sparsity, params, row, size):
    nnz = row.nnz if isinstance(row, LayerReport) else sum(each.nnz for each in row.layers)
    return (
        name,
        shape,
        f"{sparsity:.4f}",
        f"{params:,}",
        f"{nnz:,}",
        f"{row.dense_flops:,}",
        f"{row.flops:,}",
        f"{row.bytes / size:.3f}",
    )


def _compute(row):
    """How a layer computes, and what keeps it from doing so with blocks alone."""
    if row.compute == "dense":
        return ""
    return f"{row.compute} ({row.obstacle})" if row.obstacle else row.compute


def _ratio(part, whole):
    return f" ({part / whole:.3f}x)" if whole else ""
