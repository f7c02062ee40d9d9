"""Rules of layers: which channels are zero, which are needed, and how to cut a layer to fewer.

A channel is an index of the last axis, or of axis 1 in layers with channels first: `axes` finds
it, and rules get all shapes with the channels last. (Kernels have them last in any case.) Each
kind of layer has a rule; a layer without one keeps all its input and output channels.
"""

import keras
import numpy as np
from keras import layers

from tf_rigl._base import keras_internals


class Rule:
    """The rule of a layer of unknown kind: all channels stay."""

    def __init__(self, layer, sizes):
        self.layer = layer
        self.sizes = sizes  # Channels of each output.

    def zeros(self, inputs):
        """Returns which channels of each output are zero for every input of the model.

        Args:
            inputs: list of boolean arrays, which channels of each input are zero.
        """
        del inputs
        return [np.zeros(size, bool) for size in self.sizes]

    def spread(self, inputs, outputs, zeros):
        """Adds the channels that must be kept because other channels are kept.

        Args:
            inputs, outputs: lists of boolean arrays, the kept channels, changed in place.
            zeros: list of boolean arrays, which channels of the inputs are zero.
        """
        del zeros
        for kept in (*inputs, *outputs):
            kept[:] = True

    def cut(self, inputs, outputs):
        """Cuts the layer to the kept channels.

        Args:
            inputs, outputs: lists of boolean arrays, the kept channels.

        Returns:
            A dict of changes to the layer's configuration, and a dict of attribute to new value
            of its variables, or None if no variable changes.
        """
        del inputs, outputs
        return {}, None

    def _value(self, name):
        variable = getattr(self.layer, name, None)
        return None if variable is None else keras.ops.convert_to_numpy(variable)


class _Alike(Rule):
    """Each output channel is computed from the same channel of all inputs."""

    def __init__(self, layer, sizes, keeps_zero=True, any_zero=False):
        super().__init__(layer, sizes)
        self.keeps_zero, self.any_zero = keeps_zero, any_zero

    def zeros(self, inputs):
        join = np.logical_or if self.any_zero else np.logical_and
        return [join.reduce(inputs) & self.keeps_zero for _ in self.sizes]

    def spread(self, inputs, outputs, zeros):
        together = np.logical_or.reduce([*inputs, *outputs])
        for kept in (*inputs, *outputs):
            kept[:] = together


class _Reshape(_Alike):
    """A reshape that keeps the last axis."""

    def cut(self, inputs, outputs):
        *others, last = self.layer.get_config()["target_shape"]
        last = last if last == -1 else int(np.count_nonzero(outputs[0]))
        return {"target_shape": (*others, last)}, None


class _Normalization(_Alike):
    """Batch normalisation."""

    _NAMES = ("gamma", "beta", "moving_mean", "moving_variance")

    def zeros(self, inputs):
        gamma, beta, mean, _ = (self._value(name) for name in self._NAMES)
        size = self.sizes[0]
        gamma = np.ones(size) if gamma is None else gamma
        beta = np.zeros(size) if beta is None else beta
        return [((gamma == 0) | (inputs[0] & (mean == 0))) & (beta == 0)]

    def cut(self, inputs, outputs):
        values = {name: self._value(name) for name in self._NAMES}
        return {}, {n: v[outputs[0]] for n, v in values.items() if v is not None}


class _PReLU(_Alike):
    def cut(self, inputs, outputs):
        alpha = self._value("alpha")
        shared = alpha.shape[-1] != self.sizes[0]
        return {}, {"alpha": alpha if shared else alpha[..., outputs[0]]}


class _Weighted(Rule):
    """A layer with kernels, an activation function, and perhaps a bias."""

    def __init__(self, layer, sizes):
        super().__init__(layer, sizes)
        self.by_channel = is_by_channel(layer.activation)
        bias = self._value("bias")
        silent = np.ones(sizes[0], bool) if bias is None else bias == 0
        self.silent = silent & (self.by_channel and keeps_zero(layer.activation))

    def _finish(self, kernels, outputs):
        bias = self._value("bias")
        return kernels if bias is None else {**kernels, "bias": bias[outputs[0]]}


class _Matrix(_Weighted):
    """A layer whose outputs are sums over inputs: `Dense` and convolutions."""

    def __init__(self, layer, sizes):
        super().__init__(layer, sizes)
        self.links = self._links()  # (inputs, outputs), True if the output uses the input.

    def _links(self):
        kernel = self._kernel()
        return np.any(kernel != 0, axis=tuple(range(kernel.ndim - 2)))

    def _kernel(self):
        return self._value("kernel")

    def zeros(self, inputs):
        return [~np.any(self.links[~inputs[0]], axis=0) & self.silent]

    def spread(self, inputs, outputs, zeros):
        if not self.by_channel:
            outputs[0][:] = True
        inputs[0] |= np.any(self.links[:, outputs[0]], axis=1) & ~zeros[0]

    def cut(self, inputs, outputs):
        kernel = self._kernel()[..., inputs[0], :][..., outputs[0]]
        return self._changes(outputs), self._finish({"kernel": kernel}, outputs)

    def _changes(self, outputs):
        name = "units" if isinstance(self.layer, layers.Dense) else "filters"
        return {name: int(np.count_nonzero(outputs[0]))}


class _Transposed(_Matrix):
    """A transposed convolution: its kernel has the outputs before the inputs."""

    def _kernel(self):
        return np.swapaxes(self._value("kernel"), -1, -2)

    def cut(self, inputs, outputs):
        changes, values = super().cut(inputs, outputs)
        return changes, {**values, "kernel": np.swapaxes(values["kernel"], -1, -2)}


class _Separable(_Matrix):
    """A separable convolution: a depthwise kernel, then a pointwise one."""

    def _links(self):
        depthwise, pointwise = self._value("depthwise_kernel"), self._value("pointwise_kernel")
        first = np.any(depthwise != 0, axis=tuple(range(depthwise.ndim - 2)))
        second = (pointwise != 0).reshape(*first.shape, -1)
        return np.any(first[:, :, None] & second, axis=1)

    def cut(self, inputs, outputs):
        depthwise, pointwise = self._value("depthwise_kernel"), self._value("pointwise_kernel")
        inner = np.repeat(inputs[0], depthwise.shape[-1])
        kernels = {
            "depthwise_kernel": depthwise[..., inputs[0], :],
            "pointwise_kernel": pointwise[..., inner, :][..., outputs[0]],
        }
        return self._changes(outputs), self._finish(kernels, outputs)


class _Depthwise(_Weighted):
    """A depthwise convolution: the outputs of one input channel are next to each other."""

    def __init__(self, layer, sizes):
        super().__init__(layer, sizes)
        self.times = layer.depth_multiplier

    def zeros(self, inputs):
        kernel = self._value("kernel")
        linked = np.any(kernel != 0, axis=tuple(range(kernel.ndim - 2))).reshape(-1)
        return [(np.repeat(inputs[0], self.times) | ~linked) & self.silent]

    def spread(self, inputs, outputs, zeros):
        if not self.by_channel:
            outputs[0][:] = True
        inputs[0] |= outputs[0].reshape(-1, self.times).any(axis=1)
        outputs[0] |= np.repeat(inputs[0], self.times)

    def cut(self, inputs, outputs):
        kernel = self._value("kernel")[..., inputs[0], :]
        return {}, self._finish({"kernel": kernel}, outputs)


class _Flatten(Rule):
    """The output repeats the channels once for every position."""

    def zeros(self, inputs):
        return [np.tile(inputs[0], self.sizes[0] // inputs[0].size)]

    def spread(self, inputs, outputs, zeros):
        inputs[0] |= outputs[0].reshape(-1, inputs[0].size).any(axis=0)
        outputs[0] |= np.tile(inputs[0], self.sizes[0] // inputs[0].size)


class _Concatenate(Rule):
    """The output has the channels of the inputs one after the other."""

    def zeros(self, inputs):
        return [np.concatenate(inputs)]

    def spread(self, inputs, outputs, zeros):
        parts = np.split(outputs[0], np.cumsum([each.size for each in inputs])[:-1])
        for kept, part in zip(inputs, parts, strict=True):
            kept |= part
        outputs[0] |= np.concatenate(inputs)


# Activations that act on each number alone. Others, such as softmax, may mix channels.
_BY_CHANNEL: tuple[str, ...] = (
    "relu",
    "relu6",
    "leaky_relu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
)
_BY_CHANNEL += ("tanh", "sigmoid", "hard_sigmoid", "hard_silu", "hard_tanh", "softplus")
_BY_CHANNEL += ("softsign", "exponential", "linear", "squareplus", "log_sigmoid", "soft_shrink")
_BY_CHANNEL += ("hard_shrink", "tanh_shrink")
_FUNCTIONS = {id(f) for n in _BY_CHANNEL if (f := getattr(keras.activations, n, None)) is not None}
_ACTIVATIONS = (layers.ReLU, layers.LeakyReLU, layers.ELU)
_DIMENSIONS = ("1D", "2D", "3D")


def _kinds(*stems):
    return tuple(getattr(layers, stem + n) for stem in stems for n in _DIMENSIONS)


_SAME = (
    *(layers.Dropout, layers.GaussianDropout, layers.ActivityRegularization, layers.Identity),
    *_kinds("SpatialDropout", "MaxPooling", "AveragePooling", "GlobalMaxPooling"),
    *_kinds("GlobalAveragePooling", "ZeroPadding", "Cropping", "UpSampling"),
)
_MERGES: tuple[type, ...] = (
    layers.Add,
    layers.Subtract,
    layers.Average,
    layers.Maximum,
    layers.Minimum,
)
_MERGES += (keras_internals.Add, keras_internals.Subtract)
_MERGES += (keras_internals.Maximum, keras_internals.Minimum)
_PRODUCTS = (layers.Multiply, keras_internals.Multiply)
_ONE_INPUT_RULES = {
    layers.Dense: _Matrix,
    **dict.fromkeys(_kinds("Conv"), _Matrix),
    **dict.fromkeys((layers.Conv1DTranspose, layers.Conv2DTranspose), _Transposed),
    layers.Conv3DTranspose: _Transposed,
    **dict.fromkeys((layers.SeparableConv1D, layers.SeparableConv2D), _Separable),
    **dict.fromkeys((layers.DepthwiseConv1D, layers.DepthwiseConv2D), _Depthwise),
    layers.BatchNormalization: _Normalization,
    layers.PReLU: _PReLU,
    layers.Flatten: _Flatten,
    layers.Reshape: _Reshape,
    keras_internals.Relu: _Alike,
    keras_internals.Cast: _Alike,
    **dict.fromkeys(_SAME, _Alike),
}


# Of these, the channels can be on any axis: they work number by number, or on an axis of their own.
_NUMBERWISE: tuple[type, ...] = (
    layers.Dropout,
    layers.GaussianDropout,
    layers.ActivityRegularization,
)
_NUMBERWISE += (layers.Identity, layers.Activation, layers.Concatenate, *_ACTIVATIONS)
_NUMBERWISE += (*_MERGES, *_PRODUCTS, keras_internals.Relu, keras_internals.Cast)


def is_numberwise(operation) -> bool:
    """Returns True if the channels of a layer that has a rule can be on any axis."""
    return type(operation) in _NUMBERWISE


def is_known(operation) -> bool:
    """Returns True if layers of this kind have a rule."""
    return type(operation) in _ONE_INPUT_RULES or is_numberwise(operation)


def rule(operation, inputs, outputs, opaque=False, first=False) -> Rule:
    """Returns the rule for a layer.

    Args:
        operation: `keras.layers.Layer`, or another operation in a graph.
        inputs, outputs: lists of shapes, the channels last.
        opaque: bool, whether to treat the layer as unknown.
        first: bool, whether the channels are on axis 1, in truth.
    """
    sizes = [channels(shape) for shape in outputs]
    unknown = Rule(operation, sizes)
    known = all(len(s) > 1 and isinstance(s[-1], int) for s in (*inputs, *outputs))
    # Only exact types have rules: a subclass may compute something else.
    kind = type(operation)
    if not known or opaque or len(outputs) != 1:
        return unknown
    if kind is layers.Concatenate:
        if _is_channels(operation.axis, len(outputs[0]), first):
            return _Concatenate(operation, sizes)
        return _Alike(operation, sizes)
    if len(inputs) != 1:
        alike = all(len(s) == len(outputs[0]) and s[-1] == outputs[0][-1] for s in inputs)
        if not alike or kind not in (*_MERGES, *_PRODUCTS):
            return unknown
        return _Alike(operation, sizes, any_zero=kind in _PRODUCTS)
    (shape,) = inputs
    if kind in _ACTIVATIONS or (kind is layers.Activation and is_by_channel(operation.activation)):
        return _Alike(operation, sizes, keeps_zero(operation))
    is_norm = kind is layers.BatchNormalization
    refused = (
        (is_norm and not _is_channels(operation.axis, len(shape), first))
        or (kind is layers.Flatten and None in shape[1:])
        or (kind is layers.Reshape and shape[-1] != outputs[0][-1])
        or getattr(operation, "groups", 1) != 1
        or getattr(operation, "lora_enabled", False)
        or getattr(operation, "quantization_mode", None) is not None
    )
    if refused or kind not in _ONE_INPUT_RULES:
        return unknown
    return _ONE_INPUT_RULES[kind](operation, sizes)


def channels(shape) -> int:
    """Returns the number of channels of a tensor; an unknown number counts as 1."""
    return shape[-1] if len(shape) > 1 and isinstance(shape[-1], int) else 1


def is_by_channel(activation) -> bool:
    """Returns True if an activation function is known to act on each number alone."""
    return activation is None or id(activation) in _FUNCTIONS or type(activation) in _ACTIVATIONS


def keeps_zero(activation) -> bool:
    """Returns True if an activation function maps zero to zero."""
    zero = keras.ops.zeros((1, 1))
    return activation is None or float(keras.ops.convert_to_numpy(activation(zero))[0, 0]) == 0


def _is_channels(axis, rank, first):
    """Returns True if an axis is that of the channels."""
    axes = axis if isinstance(axis, (list, tuple)) else [axis]
    return len(axes) == 1 and axes[0] % rank == (1 if first else rank - 1)
