"""Block-sparse layers in the place of dense ones, and back."""

import keras
import tensorflow as tf

from tf_rigl import maskable, targets
from tf_rigl.block_sparse import layers
from tf_rigl.masks import MaskedWeight
from tf_rigl.patterns import Block

# Keras class -> the class that takes its place.
_PLACES = {
    keras.layers.Dense: layers.Dense,
    keras.layers.EinsumDense: layers.EinsumDense,
    keras.layers.Conv2D: layers.Conv2D,
}


def obstacle(layer, shape, pattern):
    """Why a layer cannot store its kernel as blocks, or None if it can.

    Args:
        layer: `keras.layers.Layer`.
        shape: tuple of int, that of the kernel.
        pattern: `tf_rigl.patterns.Block`, its own.
    """
    # Not subclasses: their `call` may do something else with the kernel.
    if type(layer) not in _PLACES:
        return f"no block-sparse form of {type(layer).__name__}"
    if isinstance(layer, keras.layers.EinsumDense) and not layers.projects_last_axes(layer):
        return "it does not project last axes"
    if isinstance(layer, keras.layers.Conv2D) and not layers.is_pointwise(layer):
        return "not a 1x1 convolution"
    if getattr(layer, "kernel_constraint", None) is not None:
        return "a kernel constraint"
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return "LoRA or quantization"
    matrix = pattern.layout(shape).size
    if matrix[1] < pattern.rows or matrix[2] < pattern.cols:
        return "smaller than a block"
    return None


def check(pattern, method):
    """The pattern with a constant fan-in; raises if weights cannot be stored as its blocks."""
    if not isinstance(pattern, Block):
        raise ValueError(
            "Argument `compute='sparse'` needs a pattern of blocks, such as "
            f"pattern='block_32x32'. Received: pattern={pattern!r}"
        )
    if method.begins_dense or method.state_names:
        raise ValueError(
            "Argument `compute='sparse'` needs a method that begins sparse and keeps nothing of "
            f"gradients: 'rigl', 'set' or 'static'. Received: method={method!r}"
        )
    return type(pattern)(**{**pattern.get_config(), "constant_fan_in": True})


def plan(model, recipe, method, seed):
    """What each weight of a graph is to become.

    Returns:
        A dict of id(layer) to the function that makes the layer in its place; and a dict of
        path to (number, `Target`) of the weights that are masked.
    """
    found = maskable.find(model, include_self=False)
    wanted = targets.resolve(found, **recipe, scope=method.scope)
    by_path = {each.path: each for each in found}
    replaced, masked = {}, {}
    for number, (path, target) in enumerate(wanted.items()):
        each = by_path[path]
        outermost = each.owner == each.layers  # What is within other layers stays there.
        if (
            target.sparsity > 0
            and outermost
            and obstacle(each.layer, each.weight.shape, target.pattern) is None
        ):
            item = MaskedWeight(path, each.weight, None, target.sparsity, target.pattern)
            mask = method.initial_mask(item, seed, number)
            replaced[id(each.layer)] = (each.layer, target.pattern, mask)
        else:
            masked[path] = (number, target)
    return replaced, masked


def replacement(layer, pattern, mask):
    """The layer that takes the place of a dense one, not built, and what fills it.

    Args:
        layer: a built `keras.layers.Layer`.
        pattern: its `Block`.
        mask: boolean tensor of its kernel's shape.
    """
    shape = tuple(layer.kernel.shape)
    across = pattern.step(shape)
    down = pattern.units(shape) // across
    active = int(pattern.active(mask)) // across
    own = {"block_size": (pattern.rows, pattern.cols), "density": active / down}
    new = _PLACES[type(layer)].from_config({**layer.get_config(), **own})

    def fill():
        new.places.assign(new.geometry.places(new.as_matrix(mask)))
        kernel = tf.convert_to_tensor(layer.kernel)
        new.values.assign(new.geometry.pack(new.as_matrix(kernel), new.places.value))
        _share(layer, new)

    return new, fill


def ordinary(layer):
    """The dense layer in the place of a block-sparse one, not built, and what fills it."""
    new = layer.ordinary()

    def fill():
        new.kernel.assign(layer.kernel)
        _share(layer, new)

    return new, fill


def is_block_sparse(layer) -> bool:
    """Whether a layer is one of `tf_rigl.block_sparse`."""
    return hasattr(layer, "geometry")


def _share(source, target):
    if source.bias is not None:
        target.bias.assign(source.bias)
    target._trainable = source._trainable
