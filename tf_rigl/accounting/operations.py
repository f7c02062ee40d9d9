"""What one call of a layer computes, for each kind of layer."""

import math
from typing import NamedTuple

import keras
from keras import layers

from tf_rigl._base.keras_internals import ConvLSTMCell, all_layers
from tf_rigl.weights import maskable


class Kernel(NamedTuple):
    """A weight that takes part in products, and the bias that goes with it."""

    weight: keras.Variable  # Of a block-sparse layer the values that it stores.
    name: str
    shape: tuple  # Of the whole kernel.
    channels: int  # Output channels that have a bias of their own; 0 for none.


class Count(NamedTuple):
    """What one call of a layer computes."""

    uses: dict  # id(weight) -> how often each of its entries is multiplied and added.
    bias: dict  # id(weight) -> outputs to which a bias is added.
    activations: int  # Outputs of activation functions.
    products: int  # FLOPs of products of two activations, which involve no weight.


class UnknownSizeError(Exception):
    """An axis that the count needs has no size."""


def kernels(layer) -> list[Kernel]:
    """The weights of a layer itself that take part in products, maskable or not."""
    attributes, _ = _rule(layer)
    found = [(name, *maskable.stored(layer, name)) for name in attributes]
    found = [each for each in found if each[1] is not None]
    result = []
    for number, (attribute, weight, shape) in enumerate(found, start=1):
        # Stored in another shape, it has the attribute's name; else it keeps its own.
        name = weight.name if shape == tuple(weight.shape) else attribute
        # One bias for a layer: that of its last kernel.
        channels = _channels(layer, shape) if number == len(found) else 0
        result.append(Kernel(weight, name, shape, channels))
    for weight in _own(layer):
        shape = tuple(weight.shape)
        result.append(Kernel(weight, weight.name, shape, shape[-1] if shape else 0))
    return result


def count(call) -> Count:
    """Counts what one call of a layer computes.

    Args:
        call: `tf_rigl.accounting.calls.Call`.

    Returns:
        A `Count`, over the whole batch.

    Raises:
        UnknownSizeError: if an axis that matters has no size.
    """
    layer = call.layer
    attributes, rule = _rule(layer)
    uses, bias = {}, {}
    if rule is not None:
        numbers, outputs = rule(call)
        pairs = [
            (maskable.stored(layer, a)[0], n) for a, n in zip(attributes, numbers, strict=True)
        ]
        pairs = [(weight, n) for weight, n in pairs if weight is not None]
        uses = {id(weight): n for weight, n in pairs}
        bias = {id(weight): outputs for weight, _ in pairs[-1:]}
    for weight in _own(layer):
        uses[id(weight)] = _size(call.output[:-1])
        bias[id(weight)] = uses[id(weight)] * (weight.shape[-1] if weight.shape else 0)
    counted = Count(uses, bias, _activations(call), _products(call))
    return _times(counted, call.times)


def _times(counted, times):
    if not (any(counted.uses.values()) or counted.activations or counted.products):
        return counted  # However often nothing is done.
    n = _size(times)
    uses, bias = ({k: n * v for k, v in each.items()} for each in (counted.uses, counted.bias))
    return Count(uses, bias, n * counted.activations, n * counted.products)


# What is counted. With the batch axis among the others, a layer that is called on a batch
# of another size (as when time is folded into it) is counted as it should be.


def _size(shape):
    if any(n is None for n in shape):
        raise UnknownSizeError(shape)
    return math.prod(shape)


def _positions(layer, shape):
    """All axes but the channels."""
    first = getattr(layer, "data_format", None) == "channels_first"
    return (shape[0], *shape[2:]) if first else shape[:-1]


def _dense(call):
    return [_size(call.input[:-1])], _size(call.output)


def _einsum(call):
    inputs, kernel, _ = maskable.einsum_labels(call.layer)
    before, _, after = inputs.partition("...")
    start, end = len(before), len(call.input) - len(after)
    sizes = [n for i, n in zip(before, call.input[:start], strict=True) if i not in kernel]
    sizes += call.input[start:end]
    sizes += [n for i, n in zip(after, call.input[end:], strict=True) if i not in kernel]
    return [_size(sizes)], _size(call.output)


def _convolution(call):
    return [_size(_positions(call.layer, call.output))], _size(call.output)


def _separable(call):
    return [_size(_positions(call.layer, call.output))] * 2, _size(call.output)


def _transposed(call):
    return [_size(_positions(call.layer, call.input))], _size(call.output)


def _embedding(call):
    del call
    return [0], 0  # Rows are looked up.


def _reversible_embedding(call):
    # In reverse it is a product with the embeddings, or with a kernel of their shape.
    reverse = len(call.output) == len(call.input)
    uses = _size(call.input[:-1]) if reverse else 0
    return [uses if call.layer.tie_weights else 0, uses], 0


def _cell(call):
    batch = _size(call.input[:1])
    return [batch, batch], batch * call.layer.kernel.shape[-1]


def _convolution_cell(call):
    uses = _size(_positions(call.layer, call.output))
    return [uses, uses], uses * call.layer.kernel.shape[-1]


_CELL = ("kernel", "recurrent_kernel")
# Layer class -> the attributes that hold its kernels, and how often a call uses each, with
# the number of outputs of the layer.
_RULES = {
    layers.Dense: (("kernel",), _dense),
    layers.EinsumDense: (("kernel",), _einsum),
    layers.Conv1D: (("kernel",), _convolution),
    layers.Conv2D: (("kernel",), _convolution),
    layers.Conv3D: (("kernel",), _convolution),
    layers.Conv1DTranspose: (("kernel",), _transposed),
    layers.Conv2DTranspose: (("kernel",), _transposed),
    layers.Conv3DTranspose: (("kernel",), _transposed),
    layers.DepthwiseConv1D: (("kernel",), _convolution),
    layers.DepthwiseConv2D: (("kernel",), _convolution),
    layers.SeparableConv1D: (("depthwise_kernel", "pointwise_kernel"), _separable),
    layers.SeparableConv2D: (("depthwise_kernel", "pointwise_kernel"), _separable),
    layers.Embedding: (("embeddings",), _embedding),
    layers.SimpleRNNCell: (_CELL, _cell),
    layers.GRUCell: (_CELL, _cell),
    layers.LSTMCell: (_CELL, _cell),
    ConvLSTMCell: (_CELL, _convolution_cell),
}
if hasattr(layers, "ReversibleEmbedding"):  # It is an `Embedding` too, and goes first.
    reversible = (("embeddings", "reverse_embeddings"), _reversible_embedding)
    _RULES = {layers.ReversibleEmbedding: reversible, **_RULES}

# Cell class -> how often `activation` and `recurrent_activation` are applied to its state.
_GATES = {
    layers.SimpleRNNCell: (1, 0),
    layers.GRUCell: (1, 2),
    layers.LSTMCell: (2, 3),
    ConvLSTMCell: (2, 3),
}
_RECTIFIERS = (layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU)
_ATTENTION = (
    layers.MultiHeadAttention,
    layers.GroupQueryAttention,
    layers.Attention,  # `AdditiveAttention` is one.
)
_NOT_COUNTED = (
    keras.activations.linear,
    keras.activations.softmax,
    keras.activations.log_softmax,
)


def _rule(layer):
    return next((rule for cls, rule in _RULES.items() if isinstance(layer, cls)), ((), None))


def _own(layer):
    """Weights that only `get_prunable_weights()` tells of."""
    if not hasattr(layer, "get_prunable_weights"):
        return []
    known = {
        id(maskable.stored(each, name)[0]) for each in all_layers(layer) for name in _rule(each)[0]
    }
    return [w for w in maskable.own_weights(layer) if id(w) not in known]


def _channels(layer, shape):
    """How many values the bias of a layer has whose kernel is of this shape."""
    if isinstance(layer, layers.Embedding):
        return 0
    if isinstance(layer, (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)):
        return shape[-2]
    if isinstance(layer, (layers.DepthwiseConv1D, layers.DepthwiseConv2D)):
        return shape[-2] * shape[-1]
    if isinstance(layer, layers.EinsumDense):
        _, kernel, output = maskable.einsum_labels(layer)
        return math.prod(n for label, n in zip(kernel, shape, strict=True) if label in output)
    return shape[-1]


def _is_activation(function):
    """Whether a function counts as one operation per output."""
    if not callable(function) or isinstance(function, keras.layers.Layer):
        return False  # A layer is counted when it is called itself.
    return not any(function is each for each in _NOT_COUNTED)


def _activations(call):
    layer = call.layer
    for cls, numbers in _GATES.items():
        if isinstance(layer, cls):
            functions = (layer.activation, getattr(layer, "recurrent_activation", None))
            pairs = zip(functions, numbers, strict=True)
            return _size(call.output) * sum(n for f, n in pairs if _is_activation(f))
    if isinstance(layer, _RECTIFIERS) or _is_activation(getattr(layer, "activation", None)):
        return _size(call.output)
    return 0


def _products(call):
    """FLOPs of scores (queries with keys) and of their products with the values."""
    layer = call.layer
    if isinstance(layer, layers.MultiHeadAttention):
        query, value = call.arguments["query"][0], call.arguments["value"][0]
        axes = layer.attention_axes  # Set when it was built.
        batch = _size([n for axis, n in enumerate(query[:-1]) if axis not in axes])
        pairs = _size([shape[axis] for shape in (query, value) for axis in axes])
        return 2 * batch * pairs * layer.num_heads * (layer.key_dim + layer.value_dim)
    if isinstance(layer, layers.GroupQueryAttention):
        query, value = call.arguments["query"][0], call.arguments["value"][0]
        pairs = _size((query[0], query[1], value[1]))
        return 2 * pairs * layer.num_query_heads * 2 * layer.head_dim
    if isinstance(layer, layers.Attention):
        query, value = call.arguments["inputs"][:2]
        return 2 * _size((*query[:-1], value[-2])) * (_size(query[-1:]) + _size(value[-1:]))
    return 0
