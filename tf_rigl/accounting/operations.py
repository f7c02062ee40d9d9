"""Counts the operations of one call of a layer, for each kind of layer."""

import math
from typing import NamedTuple

import keras
from keras import layers

from tf_rigl._base.keras_internals import ConvLSTMCell, all_layers
from tf_rigl.weights import adapters, maskable


class Kernel(NamedTuple):
    """A weight that takes part in products, and the size of its bias."""

    weight: keras.Variable  # For a block-sparse layer: the stored values.
    name: str
    shape: tuple  # Shape of the whole kernel.
    channels: int  # Number of output channels with a bias; 0 for none.


class Count(NamedTuple):
    """The operations of one call of a layer."""

    uses: dict  # id(weight) -> number of multiply-adds of each of its entries.
    bias: dict  # id(weight) -> number of outputs that a bias is added to.
    activations: int  # Number of outputs of activation functions.
    products: int  # FLOPs of products of two activations, and of those with LoRA's factors.


class UnknownSizeError(Exception):
    """The count needs the size of an axis, and it is unknown."""


def kernels(layer) -> list[Kernel]:
    """Returns a layer's own weights that take part in products, maskable or not."""
    attributes, _ = _rule(layer)
    found = [(name, *maskable.stored(layer, name)) for name in attributes]
    found = [each for each in found if each[1] is not None]
    result = []
    for number, (attribute, weight, shape) in enumerate(found, start=1):
        # A weight that is stored in another shape is named after the attribute.
        name = weight.name if shape == tuple(weight.shape) else attribute
        # A layer has one bias: it goes with the last kernel.
        channels = _channels(layer, shape) if number == len(found) else 0
        result.append(Kernel(weight, name, shape, channels))
    for weight in _custom_weights(layer):
        shape = tuple(weight.shape)
        result.append(Kernel(weight, weight.name, shape, shape[-1] if shape else 0))
    return result


def count(call) -> Count:
    """Counts the operations of one call of a layer.

    Args:
        call: `tf_rigl.weights.tracing.Call`.

    Returns:
        A `Count`, over the whole batch.

    Raises:
        UnknownSizeError: if the size of an axis that counts is unknown.
    """
    layer = call.layer
    attributes, rule = _rule(layer)
    uses, bias, lora = {}, {}, 0
    if rule is not None:
        numbers, outputs = rule(call)
        pairs = [
            (maskable.stored(layer, a)[0], n) for a, n in zip(attributes, numbers, strict=True)
        ]
        pairs = [(weight, n) for weight, n in pairs if weight is not None]
        uses = {id(weight): n for weight, n in pairs}
        lora = sum(_lora(layer, weight, n) for weight, n in pairs)
        bias = {id(weight): outputs for weight, _ in pairs[-1:]}
    for weight in _custom_weights(layer):
        uses[id(weight)] = _size(call.output[:-1])
        bias[id(weight)] = uses[id(weight)] * (weight.shape[-1] if weight.shape else 0)
    counted = Count(uses, bias, _activations(call), _products(call) + lora)
    return _multiplied(counted, call.times)


def _lora(layer, weight, uses):
    """Returns the FLOPs of the products with the two factors that LoRA adds to a weight."""
    factors = adapters.of(layer, weight) or ()
    return 2 * uses * sum(math.prod(factor.shape) for factor in factors)


def _multiplied(counted, times):
    """Multiplies a count by the timesteps of the loops around the call."""
    if not (any(counted.uses.values()) or counted.activations or counted.products):
        return counted  # There is nothing to multiply, so unknown timesteps do not matter.
    n = _size(times)
    uses, bias = ({k: n * v for k, v in each.items()} for each in (counted.uses, counted.bias))
    return Count(uses, bias, n * counted.activations, n * counted.products)


# The rules below count over all axes, the batch axis included. So a layer that is called on a
# batch of another size is counted correctly, for example when time is folded into the batch.


def _size(shape):
    if any(n is None for n in shape):
        raise UnknownSizeError(shape)
    return math.prod(shape)


def _positions(layer, shape):
    """Returns the sizes of all axes except the channels."""
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
    # Looking up rows is free. A call in reverse, of layers that have it, multiplies by the
    # embeddings, or by another kernel.
    tied = getattr(call.layer, "tie_weights", None)
    is_reverse = tied is not None and len(call.output) == len(call.input)
    uses = _size(call.input[:-1]) if is_reverse else 0
    return [uses if tied else 0, uses], 0


def _cell(call):
    batch = _size(call.input[:1])
    return [batch, batch], batch * call.layer.kernel.shape[-1]


def _convolution_cell(call):
    uses = _size(_positions(call.layer, call.output))
    return [uses, uses], uses * call.layer.kernel.shape[-1]


_CELL = ("kernel", "recurrent_kernel")
# Layer class -> the attributes that hold its kernels, and a function of a call that returns
# how often each kernel is used, and the number of outputs.
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
    layers.Embedding: (("embeddings", "reverse_embeddings"), _embedding),
    layers.SimpleRNNCell: (_CELL, _cell),
    layers.GRUCell: (_CELL, _cell),
    layers.LSTMCell: (_CELL, _cell),
    ConvLSTMCell: (_CELL, _convolution_cell),
}

# Cell class -> how often it applies `activation` and `recurrent_activation` to its state.
_GATES = {
    layers.SimpleRNNCell: (1, 0),
    layers.GRUCell: (1, 2),
    layers.LSTMCell: (2, 3),
    ConvLSTMCell: (2, 3),
}
_ATTENTION = (layers.MultiHeadAttention, layers.GroupQueryAttention, layers.Attention)
_RECTIFIERS = (layers.ReLU, layers.LeakyReLU, layers.PReLU, layers.ELU)
_NOT_COUNTED = (
    keras.activations.linear,
    keras.activations.softmax,
    keras.activations.log_softmax,
)


def is_known(layer) -> bool:
    """Returns whether `count` counts the products of a layer."""
    has_rule = _rule(layer)[1] is not None or isinstance(layer, _ATTENTION)
    return has_rule or bool(_custom_weights(layer))


def _rule(layer):
    return next((rule for cls, rule in _RULES.items() if isinstance(layer, cls)), ((), None))


def _custom_weights(layer):
    """Returns weights that `get_prunable_weights()` lists and no rule knows."""
    if not hasattr(layer, "get_prunable_weights"):
        return []
    known = {
        id(maskable.stored(each, name)[0]) for each in all_layers(layer) for name in _rule(each)[0]
    }
    return [w for w in maskable.own_weights(layer) if id(w) not in known]


def _channels(layer, shape):
    """Returns the size of a layer's bias, from the shape of its kernel."""
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
    """Returns whether a function counts as one operation per output."""
    if not callable(function) or isinstance(function, keras.layers.Layer):
        return False  # The call of an activation layer is counted by itself.
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
    """Counts FLOPs of attention: queries times keys, and scores times values."""
    layer = call.layer
    if isinstance(layer, layers.MultiHeadAttention):
        query, value = call.arguments["query"][0], call.arguments["value"][0]
        axes = layer.attention_axes  # Keras sets it when the layer is built.
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
