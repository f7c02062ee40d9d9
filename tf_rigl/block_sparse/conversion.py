"""Conversion of dense layers to block-sparse layers, and back."""

import math

import keras
import tensorflow as tf

from tf_rigl._base import keras_internals
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.block_sparse import convolutions, layers, reach
from tf_rigl.block_sparse.attention import PROJECTIONS, MultiHeadAttention
from tf_rigl.block_sparse.weight import check_method
from tf_rigl.patterns.block import Block
from tf_rigl.patterns.compact import Compact
from tf_rigl.weights import maskable, targets
from tf_rigl.weights.masks import MaskedWeight

# Keras class -> block-sparse class.
_BLOCK_SPARSE = {
    keras.layers.Dense: layers.Dense,
    keras.layers.EinsumDense: layers.EinsumDense,
    keras.layers.Conv1D: convolutions.Conv1D,
    keras.layers.Conv2D: convolutions.Conv2D,
    keras.layers.Conv3D: convolutions.Conv3D,
}
# Regularizers that sum over entries: zeros add nothing, so they need not be stored.
ENTRYWISE_REGULARIZERS = (keras.regularizers.L1, keras.regularizers.L2, keras.regularizers.L1L2)


def obstacle(layer, shape, pattern):
    """Returns the reason why a layer cannot store its kernel as blocks, or None if it can.

    Args:
        layer: `keras.layers.Layer`.
        shape: tuple of int, the shape of the kernel.
        pattern: `tf_rigl.patterns.Pattern`, that of the kernel.
    """
    if not isinstance(pattern, Block):
        return f"pattern '{pattern}', which has no blocks"
    # Subclasses are left out: their `call` may use the kernel in another way.
    if type(layer) not in _BLOCK_SPARSE:
        return f"no block-sparse form of {type(layer).__name__}"
    if isinstance(layer, keras.layers.EinsumDense) and not layers.projects_last_axes(layer):
        return "it does not project last axes"
    if getattr(layer, "groups", 1) > 1:
        return "its channels are in groups"
    if math.prod(getattr(layer, "kernel_size", ())) > 1 and pattern.taps == "each":
        return f"blocks of single taps; pattern 'channels_{pattern.rows}x{pattern.cols}' has none"
    if getattr(layer, "kernel_constraint", None) is not None:
        return "a kernel constraint"
    # Other regularizers may need the whole kernel.
    regularizer = getattr(layer, "kernel_regularizer", None)
    if regularizer is not None and type(regularizer) not in ENTRYWISE_REGULARIZERS:
        return f"a kernel regularizer {type(regularizer).__name__}"
    if getattr(layer, "lora_enabled", False) or getattr(layer, "quantization_mode", None):
        return "LoRA or quantization"
    matrix = pattern.layout(shape).size
    if matrix[1] < pattern.height(shape) or matrix[2] < pattern.cols:
        return "smaller than a block"
    return None


def obstacle_in_place(found, pattern, attentions):
    """Returns the reason why a weight of a model cannot be stored as blocks, or None if it can.

    It considers where the weight is in the model, then the layer as `obstacle` does.

    Args:
        found: `tf_rigl.maskable.Maskable`.
        pattern: `tf_rigl.patterns.Pattern`, that of the weight.
        attentions: the result of `by_projection` for the model.
    """
    inside = found.layers[:-1] if id(found.layer) in attentions else found.layers
    if found.owner != inside:
        return "inside another layer"
    return obstacle(found.layer, tuple(found.weight.shape), pattern)


def check(pattern, method):
    """Returns the pattern with a constant fan-in; raises if `compute="sparse"` is impossible."""
    if not isinstance(pattern, (Block, Compact)):
        raise ValueError(
            "Argument `compute='sparse'` needs a pattern of blocks, such as "
            "pattern='block_32x32', 'channels_1x32' or 'compact'. "
            f"Received: pattern={pattern!r}"
        )
    check_method(method, "Argument `compute='sparse'` needs a method")
    return type(pattern)(**{**pattern.get_config(), "constant_fan_in": True})


def plan(model, recipe, method, seed, factors=lambda item, mask: None):
    """Decides for each weight of a functional model whether to store it as blocks or mask it.

    Args:
        model: `keras.Model` that is a graph of layers.
        recipe: dict, arguments of `targets.resolve`.
        method: `tf_rigl.methods.Method`.
        seed: int, for the initial masks.
        factors: function of a `MaskedWeight` and its initial mask that returns what to multiply
            each entry by, an array of the kernel's shape, or None.

    Returns:
        A dict of id(layer) to (layer, blocks) for each layer to replace, where `blocks` is the
        argument of `replacement`; a dict of path to (number, `Target`) for each weight to mask;
        and the `maskable.names` of all weights that stay as they are.
    """
    found = maskable.find(model, include_self=False)
    wanted = targets.resolve(found, **recipe, scope=method.scope)
    by_path = {each.path: each for each in found}
    attentions = by_projection(model)
    replaced, masked, parts, moved, single = {}, {}, [], set(), []
    for number, (path, target) in enumerate(wanted.items()):
        each = by_path[path]
        asked = kept = 1 - target.sparsity
        reason = obstacle_in_place(each, target.pattern, attentions) if asked < 1 else "dense"
        holder = attentions.get(id(each.layer), each.layer)
        if reason is None:
            given = target.sparsity, target.pattern, each.layer
            item = MaskedWeight(path, each.weight, None, *given)
            mask = method.initial_mask(item, seed, number)
            _, blocks = replaced.setdefault(id(holder), (holder, {}))
            blocks[each.layer.name] = (target.pattern, mask, factors(item, mask))
            moved.add(path)
            active = int(target.pattern.active(mask))
            kept = active / target.pattern.units(tuple(mask.shape))
            if active == target.pattern.step(tuple(mask.shape)):
                single.append(path)
        else:
            masked[path] = (number, target)
        entries = math.prod(each.weight.shape)
        parts.append(reach.Part(path, reason, entries, reach.positions(holder), asked, kept))
    reach.warn(parts)
    if method.changes_masks and getattr(method, "begins_at_zero", False):
        reach.warn_of_single_blocks(single)
    return replaced, masked, maskable.names([m for m in found if m.path not in moved])


def by_projection(model):
    """Returns a dict of id(projection) to the attention layer that the projection belongs to."""
    return {
        id(projection): layer
        for layer in all_layers(model)
        if type(layer) in (keras.layers.MultiHeadAttention, MultiHeadAttention)
        for projection in all_layers(layer, include_self=False, recursive=False)
        if projection.name in PROJECTIONS
    }


def replacement(layer, blocks):
    """Makes the block-sparse layer that replaces a dense one.

    Args:
        layer: a built `keras.layers.Layer`.
        blocks: dict of the layer's name, or the names of its projections, to three things of
            the kernel: its `Block`; its mask, a boolean tensor; and what to multiply its entries
            by, an array, or None.

    Returns:
        The new layer, not built, and a function that fills its variables after it is built.
    """
    own = {}
    for name, (pattern, mask, _) in blocks.items():
        shape = tuple(mask.shape)
        density = int(pattern.active(mask)) / pattern.units(shape)
        own[name] = {"block_size": (pattern.rows, pattern.cols), "density": density, "seed": 0}
    if type(layer) is keras.layers.MultiHeadAttention:
        new = MultiHeadAttention.from_config({**layer.get_config(), "blocks": own})
    else:
        new = _BLOCK_SPARSE[type(layer)].from_config({**layer.get_config(), **own[layer.name]})
    return new, lambda: _fill(new, layer, {name: given for name, (_, *given) in blocks.items()})


def ordinary(layer):
    """Makes the dense layer that replaces a block-sparse one; returns as `replacement` does."""
    new = layer.ordinary()
    return new, lambda: _fill(new, layer)


def replacements(model) -> list:
    """Returns the layers of `tf_rigl.block_sparse` in a model, attention included."""
    kinds = layers.BlockSparseLayer, MultiHeadAttention
    return [layer for layer in all_layers(model) if isinstance(layer, kinds)]


def _fill(new, old, masks=None):
    """Copies variables and `trainable` from a layer and its sublayers to another layer.

    Args:
        new: a built layer.
        old: the dense or block-sparse layer that it replaces.
        masks: dict of layer name to the mask of each kernel that becomes block-sparse, and to
            what to multiply its entries by, or None.
    """
    for target, source in zip(all_layers(new), all_layers(old), strict=True):
        keras_internals.set_own_trainable(target, source.trainable)
        packed = isinstance(target, layers.BlockSparseLayer)
        if not packed and not isinstance(source, layers.BlockSparseLayer):
            for variable, value in zip(_own(target), _own(source), strict=True):
                variable.assign(value)
            continue
        kernel = tf.convert_to_tensor(source.kernel)
        if packed:
            mask, factors = masks[target.name]
            if factors is not None:
                kernel = tf.cast(tf.cast(kernel, factors.dtype) * factors, kernel.dtype)
            target.places.assign(target.geometry.places(target.as_matrix(mask)))
            kernel = target.geometry.pack(target.as_matrix(kernel), target.places.value)
        values, old = (maskable.stored(layer, "kernel")[0] for layer in (target, source))
        values.assign(kernel)
        values.trainable = old.trainable
        if source.bias is not None:
            target.bias.assign(source.bias)
            target.bias.trainable = source.bias.trainable


def _own(layer):
    """Returns the variables of a layer without those of its sublayers."""
    return [*keras_internals.own_variables(layer), *keras_internals.seed_states(layer)]
