"""Which layers LiteRT will run sparse, why the others not, and what to change."""

import dataclasses

import keras
import numpy as np
from keras import layers

from tf_rigl._base import tables
from tf_rigl._base.keras_internals import graph_of, history, nodes_of
from tf_rigl.block_sparse import conversion
from tf_rigl.export import _encoding, _source
from tf_rigl.patterns.block import Block
from tf_rigl.patterns.layout import Layout
from tf_rigl.patterns.litert import MATRICES
from tf_rigl.weights import maskable, masks
from tf_rigl.weights.masked_layer import MaskedLayer

_XNNPACK_FROM = 2 / 3  # With fewer zeros its sparse convolutions are slower than dense ones.
# What LiteRT unpacks on loading.
_UNPACKED = (
    layers.Conv1D,
    layers.Conv2D,
    layers.Conv2DTranspose,
    layers.SeparableConv1D,
    layers.SeparableConv2D,
    layers.Embedding,
)


@dataclasses.dataclass(frozen=True)
class LayerAdvice:
    """What becomes of one weight.

    Attributes:
        name: str, the path of the weight.
        shape: tuple of int.
        sparsity: float, the fraction of zeros.
        runs: str, "sparse": a sparse kernel of LiteRT runs it; "xnnpack": XNNPACK may run
            it sparse; "smaller": it is stored sparse and computed dense; "dense": it is
            stored dense.
        why: str.
        change: str, what would make it run sparse, or "".
    """

    name: str
    shape: tuple[int, ...]
    sparsity: float
    runs: str
    why: str
    change: str


@dataclasses.dataclass(frozen=True)
class Advice:
    """What LiteRT will do with each weight; `print` shows it as a table.

    Attributes:
        layers: list of `LayerAdvice`, in model order.
    """

    layers: list[LayerAdvice]

    def to_dict(self) -> dict:
        """Everything in dicts, lists, strings and numbers, ready for JSON."""
        rows = [dataclasses.asdict(row) for row in self.layers]
        return {"layers": [{**row, "shape": list(row["shape"])} for row in rows]}

    def __str__(self):
        header = ("weight", "shape", "sparsity", "LiteRT", "why", "what to change")
        rows = [
            (row.name, "x".join(map(str, row.shape)), f"{row.sparsity:.4f}")
            + (row.runs, row.why, row.change)
            for row in self.layers
        ]
        lines = tables.text(header, rows, left={0, 1, 3, 4, 5})
        note = (
            "For float32 and one example at a time; sparsity here is of the weights, in which "
            "active entries may be zero too."
        )
        return "\n".join([*lines, "", note])


def advise(model) -> Advice:
    """Tells which weights LiteRT will run sparse after `tf_rigl.export_tflite`.

    Judged by the zeros that are there, as the export does, and for float32. LiteRT has
    sparse kernels for layers that multiply by a matrix, with zeros in blocks; XNNPACK,
    which LiteRT uses by itself, for 1x1 convolutions between a certain stem and a global
    average (on x86 with LiteRT 2.3 they were seen to be no faster).

    Args:
        model: a built `keras.Model`, sparse or not.

    Returns:
        An `Advice`.

    Raises:
        ValueError: if `model` is not a built `keras.Model`.

    Example:

    >>> sparse = tf_rigl.sparsify(model, sparsity=0.9, pattern="litert")
    >>> print(tf_rigl.export.advise(sparse))

    Reference:

    - [Fast Sparse ConvNets](https://arxiv.org/abs/1911.09723), for 1x1 convolutions.
    """
    if not isinstance(model, keras.Model) or not model.built:
        raise ValueError(
            f"Argument `model` must be a built `keras.Model`. Received: model={model!r}"
        )
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
        rows.append(LayerAdvice(path, values.shape, float(sparsity), runs, why, change))
    return Advice(rows)


def _judge(found, values, sparsity, graph, pattern):
    """What becomes of a weight, why, and what to change."""
    layer = found.layer
    if not sparsity:
        return "dense", "no zeros", "sparsity"
    is_matrix = isinstance(layer, MATRICES)
    if not is_matrix and not isinstance(layer, _UNPACKED):
        return "dense", f"no sparse form of {type(layer).__name__}", ""
    if is_matrix:
        axes = maskable.axes(layer, values.shape)
        matrices = Layout(values.shape, axes).matrices(values).numpy()
        if len(matrices) > 1:
            return "dense", "a stack of matrices", ""
        values = np.ascontiguousarray(matrices[0].T)
    ways = _encoding.encodings(np.asarray(values, np.float32))
    if not any(map(_encoding.is_smaller, ways)):
        return "dense", "too few zeros to be smaller", "more sparsity"
    if is_matrix:
        return _matrix(values, ways, pattern)
    if isinstance(layer, layers.Conv2D):
        return _convolution(layer, sparsity, graph)
    return "smaller", f"no sparse kernel for {type(layer).__name__}", ""


def _matrix(values, ways, pattern):
    """A matrix of outputs by inputs, the ways to encode it, and its pattern, if that is known."""
    if any(map(_encoding.suits_kernel, ways)):
        return "sparse", "zeros in blocks of inputs", ""
    inputs = values.shape[1]
    if inputs % 4:
        change = f"inputs: {inputs} is no multiple of 4; then pattern='litert'"
        return "smaller", "no blocks of 4 divide the inputs", change
    zeros, blocks = np.mean(values == 0), ways[1]
    enough = zeros >= _encoding.MIN_ZEROS
    # After an update of the masks there are zeros within active blocks too.
    declared = isinstance(pattern, Block) and pattern.cols == 1 and pattern.rows % 4 == 0
    if declared or 1 - blocks.values.size / values.size >= _encoding.MIN_PACKED * zeros:
        why = f"in blocks, but under {_encoding.MIN_ZEROS:.0%} zeros dense is faster"
        return "smaller", why, "more sparsity"
    change = "pattern='litert'" if enough else "pattern='litert' and more sparsity"
    return "smaller", "zeros in no blocks of inputs", change


def _convolution(layer, sparsity, graph):
    if layer.kernel_size != (1, 1):
        return "smaller", "XNNPACK runs only 1x1 convolutions sparse", ""
    if layer.strides != (1, 1) or layer.groups != 1:
        return "smaller", "a 1x1 convolution with strides or groups", "strides=1, groups=1"
    problem = graph.problem(layer)
    if problem:
        return "smaller", *problem
    if sparsity < _XNNPACK_FROM:
        return "smaller", "fewer than 2/3 zeros", "a sparsity above 2/3"
    return "xnnpack", "1x1 convolution between stem and average", ""


class _Graph:
    """The layers before and after each layer of a graph, those of nested models included."""

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
        """Why XNNPACK will not run a 1x1 convolution sparse, and what to change; or None."""
        if id(layer) not in self.before:
            return "not in a functional graph that can be read", "a functional model"
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
        """Whether a convolution has half its kernel of padding on every side."""
        if (
            layer.kernel_size not in sizes
            or tuple(layer.strides) not in strides
            or tuple(layer.dilation_rate) != (1, 1)
            or layer.data_format != "channels_last"
        ):
            return False
        if layer.padding == "same":
            return tuple(layer.strides) == (1, 1)  # With strides it depends on the size.
        half = layer.kernel_size[0] // 2
        sources = self.before.get(id(layer), [])
        return (
            len(sources) == 1
            and isinstance(sources[0], layers.ZeroPadding2D)
            and sources[0].padding == ((half, half), (half, half))
        )


_PLAIN = (
    layers.InputLayer,  # Of a nested model.
    layers.BatchNormalization,  # Folded into the convolution before it.
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
    """The layers at the inputs or the outputs of a nested model; of a layer, itself."""
    graph = graph_of(operation)
    if graph is None:
        return [operation.layer if isinstance(operation, MaskedLayer) else operation]
    ends = [history(tensor).operation for tensor in getattr(graph, side)]
    return [layer for end in ends for layer in _borders(end, side)]


def _kind(operation):
    return type(operation).__name__
