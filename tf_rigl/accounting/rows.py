"""The numbers in a report, and their table."""

import dataclasses

from tf_rigl._base import tables
from tf_rigl.weights.unmasked import FROZEN, Unmasked


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """The cost of one kernel.

    Attributes:
        name: str, the path of the weight, as in `SparseModel.masked_weights`. Products of
            two activations have no weight; they are named after their layer:
            "attention/products".
        shape: tuple of int, the shape of the weight; () for products.
        sparsity: float, the fraction of zeros.
        params: int, the number of entries.
        nnz: int, the number of nonzero entries.
        flops: FLOPs of the nonzero entries, per example and forward pass.
        dense_flops: FLOPs of all entries.
        bytes: float, with the bias of the layer; a kernel with zeros is stored sparse.
        dense_bytes: float, the bytes of the dense kernel and the bias.
        bias_flops: the additions of the layer's bias, one for each output, in the row of its
            last kernel. `flops` includes them.
        masked: bool, whether the weight counts in the sparsity of the model.
        pattern: str, the pattern of the zeros, such as "block_16x1"; "dense" if the kernel
            has no zeros.
        compute: str, "sparse": only active blocks are stored and computed. "masked": zeros
            are stored and computed. "dense": the kernel has no zeros.
        obstacle: str, why a layer with a constant fan-in cannot have `compute="sparse"`; ""
            if it can, or if the pattern is another one.
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
    """The cost of a model, sparse and dense; `print` shows it as a table.

    A sum of n products takes n multiplications and n - 1 additions, and its bias is the n-th
    addition. So `flops`, two for each use of a nonzero entry, include biases. The RigL paper's
    figures count so, and add one operation for each output, `flops + bias_flops`: a ReLU behind
    each layer. `flops + activation_flops` counts activations where they are.

    Layers that stay dense count with the bytes of their biases, depthwise ones included. Published
    sizes of MobileNets leave the biases of depthwise layers out: MobileNet-v1 at ERK 0.9 has
    2.412 MB here and 2.392 MB there.

    Attributes:
        layers: list of `LayerReport`, in model order.
        sparsity: float, the fraction of zeros over all masked weights.
        params: int, all parameters without the zeros; normalisation is included.
        dense_params: int, all parameters, as `count_params()` counts them.
        flops: per example and forward pass, without activations.
        dense_flops: `flops` of the dense model.
        bytes: float, the size of kernels and biases.
        dense_bytes: float, `bytes` of the dense model.
        bias_flops: the additions of biases; `flops` includes them. Sparsity does not change them.
        activation_flops: the operations of activations. Sparsity does not change them.
        unmasked: list of `tf_rigl.weights.unmasked.Unmasked`, the weights of two or more axes
            that have no mask though nobody asked for that by name, the largest first: frozen
            ones, those that cannot be masked, and those of custom layers that are not known to
            be kernels.
        uncounted: list of str, the layers with products that `flops` leaves out: in loops and
            functions of a custom `call`, or of unknown sizes.
        assumed_shapes: list of tuple of int, the shapes of the inputs without the batch axis, if
            the model leaves axes free that FLOPs depend on, and no `input_shape` says their
            sizes: 224 in images (inputs of four axes), else 128. None: nothing was assumed.
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
    unmasked: list[Unmasked] = dataclasses.field(default_factory=list)
    uncounted: list[str] = dataclasses.field(default_factory=list)
    assumed_shapes: list[tuple[int, ...]] | None = None

    def to_dict(self) -> dict:
        """Returns the report as dicts, lists, strings and numbers, ready for JSON."""
        result = dataclasses.asdict(self)
        for row in (*result["layers"], *result["unmasked"]):
            row["shape"] = list(row["shape"])
        if self.assumed_shapes is not None:
            result["assumed_shapes"] = [list(shape) for shape in self.assumed_shapes]
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
        flops, dense = (n + self.activation_flops for n in (self.flops, self.dense_flops))
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
                "LiteRT runs matrices with blocks of 4 or 16 inputs by 1 output fast; other zeros "
                "only make the file smaller"
            )
        if any(not row.masked for row in self.layers):
            note = "(total sparsity: over masked weights; in a dense model, over maskable ones)"
            lines.insert(len(rows) + 4, note)
        return "\n".join(lines + self._left_out())

    def _left_out(self):
        """Returns lines that name what has no mask, and whose FLOPs are not counted."""
        lines, shown = [], 3
        frozen = [each for each in self.unmasked if each.reason == FROZEN]
        others = [each for each in self.unmasked if each.reason != FROZEN]
        if frozen:
            share = sum(each.share for each in frozen)
            number = f"{len(frozen)} weight{'s' * (len(frozen) > 1)}"
            lines.append(f"frozen, not masked: {number}, {share:.1%} of the parameters")
        if sum(each.share for each in others) >= 0.01:
            more = f", and {len(others) - shown} more" if len(others) > shown else ""
            lines.append(f"not masked: {'; '.join(map(str, others[:shown]))}{more}")
        if self.assumed_shapes is not None:
            shapes = ", ".join(map(str, self.assumed_shapes))
            lines.append(
                f"FLOPs for inputs of shape {shapes}: the model leaves sizes free; `input_shape` "
                "sets them"
            )
        if self.uncounted:
            lines.append(f"FLOPs of products left out, in: {', '.join(self.uncounted)}")
        return lines


def _cells(name, shape, sparsity, params, row, size):
    """Returns the cells of a line: `row` is a `LayerReport`, or the `Report` for the total."""
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
    """Returns the compute of a row, with the obstacle to `compute="sparse"` if there is one."""
    if row.compute == "dense":
        return ""
    return f"{row.compute} ({row.obstacle})" if row.obstacle else row.compute


def _ratio(part, whole):
    return f" ({part / whole:.3f}x)" if whole else ""
