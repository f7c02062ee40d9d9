"""Predicts which layers LiteRT will run sparse or compact, and advises what to change in others."""

import dataclasses

import keras
import numpy as np
from keras import layers

from tf_rigl._base import tables
from tf_rigl._base.keras_internals import graph_of, history, nodes_of
from tf_rigl.block_sparse import conversion
from tf_rigl.compaction import compacting
from tf_rigl.export import _encoding, _source, sizes
from tf_rigl.patterns.block import Block
from tf_rigl.patterns.litert import MATRICES
from tf_rigl.weights import maskable, masks
from tf_rigl.weights.masked_layer import MaskedLayer

_XNNPACK_FROM = 2 / 3  # XNNPACK runs convolutions with fewer zeros faster dense than sparse.


@dataclasses.dataclass(frozen=True)
class LayerAdvice:
    """How LiteRT will store and run one weight.

    Attributes:
        name: str, the path of the weight.
        shape: tuple of int.
        sparsity: float, the fraction of zeros.
        runs: str, "sparse": a sparse kernel of LiteRT runs it; "xnnpack": XNNPACK may run
            it sparse; "smaller": it is stored sparse and computed dense; "dense": it is
            stored dense.
        why: str, the reason.
        change: str, a change that would make it run sparse, or "".
        compact: str, the form that `tf_rigl.compact` gives the layer, or "".
        products: float, the fraction of products that the compact form computes; 1 without one.
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    runs: str
    why: str
    change: str
    compact: str = ""
    products: float = 1.0


@dataclasses.dataclass(frozen=True)
class Advice:
    """How LiteRT will store and run each weight; `print` shows it as a table.

    Attributes:
        layers: list of `LayerAdvice`, in model order.
        sizes: dict of "float32", "float16", "dynamic" and "int8" to the bytes, about, that the
            weights take in a file of that quantization.
    """

    layers: list[LayerAdvice]
    sizes: dict[str, int] = dataclasses.field(default_factory=dict)

    def to_dict(self) -> dict:
        """Returns the advice as dicts, lists, strings and numbers, ready for JSON."""
        rows = [dataclasses.asdict(row) for row in self.layers]
        layers = [{**row, "shape": list(row["shape"])} for row in rows]
        return {"layers": layers, "sizes": dict(self.sizes)}

    def __str__(self):
        header = ("weight", "shape", "sparsity", "LiteRT", "why", "what to change")
        rows = [
            (row.name, "x".join(map(str, row.shape)), f"{row.sparsity:.4f}")
            + (row.runs, row.why, row.change)
            for row in self.layers
        ]
        lines = tables.text(header, rows, left={0, 1, 3, 4, 5})
        note = "For compute='encoded', float32 and a batch of one. Sparsity counts all zeros."
        lines += ["", note, self._on_compact()]
        if self.sizes:
            listed = ", ".join(f"{name} {size:,}" for name, size in self.sizes.items())
            best = sizes.spelled(min(self.sizes, key=self.sizes.get))
            lines.append(f"Bytes of all weights, about: {listed}.")
            lines.append(f"Smallest: {best}.")
        return "\n".join(lines)

    def _on_compact(self):
        """Returns a line on the layers that have a compact form."""
        found = [row for row in self.layers if row.compact]
        if not found:
            return "Compact: no layer gains. Blocks of outputs would, such as pattern='compact'."
        listed = ", ".join(f"{r.name} ({r.compact}, {r.products:.2f})" for r in found)
        return f"Compact, by compute='auto', and the products left: {listed}."


def advise(model) -> Advice:
    """Predicts which weights LiteRT will run sparse after `tf_rigl.export_tflite`.

    The prediction depends on the zeros in the weights, as the export does, and is for float32.
    Layers with a compact form (see `tf_rigl.compact`) run as ordinary dense operators on the
    blocks that are there, everywhere. The rest is for `compute="encoded"`: LiteRT has sparse
    kernels for layers that multiply by a matrix with blocks of zeros. XNNPACK, which LiteRT uses
    by default, has sparse kernels for 1x1 convolutions between a certain stem and a global
    average, but **not on x86 processors with AVX**, where it switches them off; and it decides for
    all operators in a row together, so a dense head can keep the whole from running sparse.

    Args:
        model: a built `keras.Model`, sparse or not.

    Returns:
        An `Advice`.

    Raises:
        ValueError: if `model` is not a built `keras.Model`.

    Example:

    >>> sparse = tf_rigl.sparsify(model, sparsity=0.9, seed=0)
    >>> print(tf_rigl.export.advise(sparse))
    weight         shape  sparsity  LiteRT   why                            what to change
    -------------  -----  --------  -------  -----------------------------  ----------------
    hidden/kernel  16x32    0.9258  smaller  zeros not in blocks of inputs  pattern='litert'
    output/kernel  32x4     0.7812  smaller  zeros not in blocks of inputs  pattern='litert'
    <BLANKLINE>
    For compute='encoded', float32 and a batch of one. Sparsity counts all zeros.
    Compact: no layer gains. Blocks of outputs would, such as pattern='compact'.
    Bytes of all weights, about: float32 512, float16 308, dynamic 784, int8 784.
    Smallest: quantization='float16'.
    >>> sparse = tf_rigl.sparsify(model, sparsity=0.9, pattern="litert", seed=0)
    >>> [row.runs for row in tf_rigl.export.advise(sparse).layers]
    ['sparse', 'sparse']

    Reference:

    - [Fast Sparse ConvNets](https://arxiv.org/abs/1911.09723), for 1x1 convolutions.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            f"Argument `model` must be a built `keras.Model`. Received: model={model!r}"
        )
    compact = {entry.path: entry for entry in compacting.forms(model) if entry.part is not None}
    if conversion.replacements(model):
        model = _source.ordinary(model)
    items = {id(item.weight): item for item in masks.find(model)}
    graph = _Graph(model)
    rows = []
    for found in maskable.find(model, include_self=False):
        values = keras.ops.convert_to_numpy(found.weight)
        sparsity = 1 - np.count_nonzero(values) / max(1, values.size)
        item = items.get(id(found.weight))
        runs, why, change = _judge(found, values, sparsity, graph, item and item.pattern)
        path = item.path if item else found.path
        entry = compact.get(path.rpartition("/")[0])
        gain = (entry.form, entry.stored / entry.part.columns.size) if entry else ()
        rows.append(LayerAdvice(path, values.shape, float(sparsity), runs, why, change, *gain))
    return Advice(rows, sizes.weight_bytes(model))


def _judge(found, values, sparsity, graph, pattern):
    """Returns `runs`, `why` and `change` of a weight's `LayerAdvice`."""
    layer = found.layer
    if not sparsity:
        return "dense", "no zeros", "sparsity"
    is_matrix = isinstance(layer, MATRICES)
    values = sizes.stored_as(layer, values)
    if values is None:
        kind = f"no sparse form of {type(layer).__name__}"
        return "dense", "a stack of matrices" if is_matrix else kind, ""
    ways = _encoding.encodings(np.asarray(values, np.float32))
    if not any(map(_encoding.is_smaller, ways)):
        return "dense", "too few zeros to be smaller", "more sparsity"
    if is_matrix:
        return _matrix(values, ways, pattern)
    if isinstance(layer, layers.Conv2D):
        return _convolution(layer, sparsity, graph)
    return "smaller", f"no sparse kernel for {type(layer).__name__}", ""


def _matrix(values, ways, pattern):
    """Returns `runs`, `why` and `change` of a matrix.

    Args:
        values: array of shape (outputs, inputs).
        ways: its encodings.
        pattern: its pattern, or None.
    """
    if any(map(_encoding.suits_kernel, ways)):
        return "sparse", "zeros in blocks of inputs", ""
    inputs = values.shape[1]
    if inputs % 4:
        change = f"a multiple of 4 inputs, not {inputs}; then pattern='litert'"
        return "smaller", "no blocks of 4 divide the inputs", change
    zeros, blocks = np.mean(values == 0), ways[1]
    enough = zeros >= _encoding.MIN_ZEROS
    # After a mask update, active blocks hold zeros too.
    declared = isinstance(pattern, Block) and pattern.cols == 1 and pattern.rows % 4 == 0
    if declared or 1 - blocks.values.size / values.size >= _encoding.MIN_PACKED * zeros:
        why = f"in blocks, but under {_encoding.MIN_ZEROS:.0%} zeros dense is faster"
        return "smaller", why, "more sparsity"
    change = "pattern='litert'" if enough else "pattern='litert' and more sparsity"
    return "smaller", "zeros not in blocks of inputs", change


def _convolution(layer, sparsity, graph):
    """Returns `runs`, `why` and `change` of a convolution."""
    if layer.kernel_size != (1, 1):
        return "smaller", "XNNPACK runs only 1x1 convolutions sparse", ""
    if layer.strides != (1, 1) or layer.groups != 1:
        return "smaller", "a 1x1 convolution with strides or groups", "strides=1, groups=1"
    problem = graph.problem(layer)
    if problem:
        return "smaller", *problem
    if sparsity < _XNNPACK_FROM:
        return "smaller", "fewer than 2/3 zeros", "a sparsity above 2/3"
    return "xnnpack", "1x1 convolution between stem and average, without AVX", ""


class _Graph:
    """The layers before and after each layer of a graph, also across nested models."""

    def __init__(self, model):
        self.before, self.after = {}, {}
        self._add(model)

    def _add(self, model):
        graph = graph_of(model)
        for operation in graph.operations if graph is not None else ():
            self._add(operation)
            for node in nodes_of(operation):
                for source in node.parent_nodes:
                    self._connect(source.operation, operation)

    def _connect(self, source, target):
        for first in _borders(target, "inputs"):
            for last in _borders(source, "outputs"):
                self.before.setdefault(id(first), []).append(last)
                self.after.setdefault(id(last), []).append(first)

    def problem(self, layer):
        """Returns why XNNPACK cannot run a 1x1 convolution sparse, and a change; or None."""
        if id(layer) not in self.before:
            return "not in a functional graph", "a functional model"
        return self._walk(layer, self.before, _is_stem, "the start") or self._walk(
            layer, self.after, _is_end, "the end"
        )

    def _walk(self, layer, neighbours, is_border, where):
        todo, seen = list(neighbours.get(id(layer), [])), set()
        if not todo:
            return f"nothing at {where}", _BORDERS[where]
        while todo:
            each = todo.pop()
            if id(each) in seen or is_border(each, self):
                continue
            seen.add(id(each))
            if not self._is_supported(each):
                return f"{_kind(each)} {each.name!r} on the way to {where}", _BORDERS[where]
            further = neighbours.get(id(each), [])
            if not further:
                return f"{_kind(each)} {each.name!r} at {where}", _BORDERS[where]
            todo += further
        return None

    def _is_supported(self, layer):
        if isinstance(layer, _PLAIN):
            return True
        if isinstance(layer, layers.Activation):
            return layer.activation in _ACTIVATIONS
        if isinstance(layer, layers.DepthwiseConv2D):
            return self._has_padding(layer, ((3, 3), (5, 5)), ((1, 1), (2, 2)))
        if isinstance(layer, layers.Conv2D):
            plain = layer.kernel_size == (1, 1) and layer.strides == (1, 1) and layer.groups == 1
            return plain and layer.activation in _ACTIVATIONS
        return False

    def _has_padding(self, layer, sizes, strides):
        """Returns whether the padding of a convolution is half its kernel on every side."""
        if (
            layer.kernel_size not in sizes
            or tuple(layer.strides) not in strides
            or tuple(layer.dilation_rate) != (1, 1)
            or layer.data_format != "channels_last"
        ):
            return False
        if layer.padding == "same":
            return tuple(layer.strides) == (1, 1)  # With strides, padding depends on the size.
        half = layer.kernel_size[0] // 2
        sources = self.before.get(id(layer), [])
        return (
            len(sources) == 1
            and isinstance(sources[0], layers.ZeroPadding2D)
            and sources[0].padding == ((half, half), (half, half))
        )


_PLAIN = (
    layers.InputLayer,  # The input of a nested model.
    layers.BatchNormalization,  # The converter folds it into the convolution before it.
    layers.Add,
    layers.Multiply,
    layers.ZeroPadding2D,
    layers.Dropout,
    layers.ReLU,
    layers.LeakyReLU,
    layers.ELU,
)
_ACTIVATIONS = (
    keras.activations.linear,
    keras.activations.relu,
    keras.activations.relu6,
    keras.activations.elu,
    keras.activations.leaky_relu,
    keras.activations.sigmoid,
    keras.activations.hard_swish,
)
# Where the search for a border ends -> the change that lets XNNPACK run the graph sparse.
_BORDERS = {
    "the start": "begin with ZeroPadding2D(1) and Conv2D(n, 3, strides=2) on 3 channels",
    "the end": "end in GlobalAveragePooling2D",
}


def _is_stem(layer, graph):
    return (
        isinstance(layer, layers.Conv2D)
        and tuple(layer.kernel.shape[:3]) == (3, 3, 3)
        and layer.groups == 1
        and graph._has_padding(layer, ((3, 3),), ((2, 2),))
    )


def _is_end(layer, graph):
    del graph
    return isinstance(layer, layers.GlobalAveragePooling2D)


def _borders(operation, side):
    """Returns the layers at the inputs or outputs of a nested model; for a layer, the layer."""
    graph = graph_of(operation)
    if graph is None:
        return [operation.layer if isinstance(operation, MaskedLayer) else operation]
    ends = [history(tensor).operation for tensor in getattr(graph, side)]
    return [layer for end in ends for layer in _borders(end, side)]


def _kind(operation):
    """Returns the name of an operation's class."""
    return type(operation).__name__
