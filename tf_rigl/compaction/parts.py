"""`Part`: what the compact form of a layer needs to know of it, whatever its class is."""

import dataclasses
from typing import Any

import keras

from tf_rigl._base.keras_internals import nodes_of
from tf_rigl.block_sparse import conversion
from tf_rigl.compaction.columns import Columns
from tf_rigl.weights import maskable

# Activations that work entry by entry: columns may apply them one by one.
_NAMES: tuple[str, ...] = (
    "elu",
    "gelu",
    "leaky_relu",
    "linear",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
)
_NAMES += ("softplus", "softsign", "tanh", "hard_sigmoid", "hard_swish", "mish", "exponential")
_ENTRYWISE = {getattr(keras.activations, name) for name in _NAMES}


@dataclasses.dataclass
class Part:
    """A layer and its kernel in columns.

    Attributes:
        layer: the `keras.layers.Layer` to replace.
        columns: `Columns` of its kernel.
        bias: flat array of the outputs, or None.
    """

    layer: keras.layers.Layer
    columns: Columns
    bias: Any = None

    @property
    def name(self) -> str:
        """The layer's name, which its compact form gets."""
        return self.layer.name

    @property
    def options(self) -> dict:
        """The arguments of the layers of the compact form, but for names and sizes."""
        options = {
            "use_bias": self.bias is not None,
            "kernel_regularizer": self.layer.kernel_regularizer,
            "activation": self.layer.activation if self.activates_entries else None,
            "dtype": self.layer.dtype_policy,
        }
        if self.bias is not None:
            options["bias_regularizer"] = self.layer.bias_regularizer
        return options

    @property
    def activates_entries(self) -> bool:
        """Whether the activation works entry by entry."""
        return self.layer.activation in _ENTRYWISE

    @property
    def taps(self) -> tuple:
        """The sizes of the kernel's spatial axes; empty for a matrix."""
        return self.columns.columns[0].kernel.shape[:-2]

    @property
    def is_pointwise(self) -> bool:
        """Whether the layer is a convolution that multiplies the channels by a matrix."""
        return self.has_one_tap and self.layer.data_format == "channels_last"

    @property
    def has_one_tap(self) -> bool:
        """Whether the layer is a 1x1 convolution; its strides only leave places out."""
        return bool(self.taps) and set(self.taps) == {1}

    def sampled(self, inputs):
        """Leaves out the places that the strides of a 1x1 convolution pass over."""
        if not self.has_one_tap or set(self.layer.strides) == {1}:
            return inputs
        places = [slice(None, None, stride) for stride in self.layer.strides]
        last = self.layer.data_format == "channels_last"
        return inputs[(slice(None), *places) if last else (slice(None), slice(None), *places)]

    def activated(self, outputs):
        """Applies an activation that needs all outputs together."""
        if self.activates_entries:
            return outputs
        return keras.layers.Activation(
            self.layer.activation, name=f"{self.name}_activation", dtype=self.layer.dtype_policy
        )(outputs)

    def input(self):
        """Returns a symbolic input of the shape that the layer is called with."""
        tensors = [keras.tree.flatten(node.input_tensors)[0] for node in nodes_of(self.layer)]
        return common_input(tensors)


def common_input(tensors):
    """Returns a symbolic input of the shape that all of the tensors have in common."""
    sizes = zip(*[tuple(tensor.shape) for tensor in tensors], strict=True)
    shape = [each[0] if len(set(each)) == 1 else None for each in sizes]
    # Half precision is left to the layers within: of a policy they can be given another, as
    # exports do, an input has its type for good.
    half = tensors[0].dtype in ("float16", "bfloat16")
    return keras.Input(batch_shape=shape, dtype="float32" if half else tensors[0].dtype)


def obstacle(layer, trainable):
    """Returns which setting of a layer its compact form would lose, or None.

    Args:
        layer: a built layer with a kernel.
        trainable: bool, whether the compact form will be trainable.
    """
    for name in ("kernel_constraint", "bias_constraint", "activity_regularizer"):
        if getattr(layer, name, None) is not None:
            return f"a {name.replace('_', ' ')}"
    for name in ("kernel_regularizer", "bias_regularizer"):
        found = getattr(layer, name, None)
        if found is not None and type(found) not in conversion.ENTRYWISE_REGULARIZERS:
            return f"a {name.replace('_', ' ')} that is not a sum over entries"
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return "LoRA or quantization"
    variables = [maskable.stored(layer, "kernel")[0], getattr(layer, "bias", None)]
    if any(v is not None and v.trainable != trainable for v in variables):
        return "a variable that is frozen by itself"
    return None


def bias_of(layer):
    """Returns the bias of a layer as a flat array, or None."""
    bias = getattr(layer, "bias", None)
    return None if bias is None else bias.numpy().ravel()
