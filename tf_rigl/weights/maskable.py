"""Which variables of which Keras layers can be masked.

Kernels and embeddings can; biases, normalisation parameters and depthwise kernels stay dense. A
custom layer names its own with `get_prunable_weights()`. Without that, its kernels are found by
what the layer does: see `tf_rigl.weights.products`.
"""

import math
from typing import NamedTuple

import keras
from keras import layers

from tf_rigl._base.keras_internals import all_layers, stored_variable
from tf_rigl.weights import kinds, products
from tf_rigl.weights.kinds import MASKABLE_ATTRIBUTES  # noqa: F401, users know it here
from tf_rigl.weights.sparse_weight import StoresSparse

_TRANSPOSED = (layers.Conv1DTranspose, layers.Conv2DTranspose, layers.Conv3DTranspose)


class Maskable(NamedTuple):
    """A maskable weight and its place in the model."""

    path: str  # `layers` and the name of the variable, joined by "/".
    layers: tuple[str, ...]  # The names of the layers that contain it, outermost first.
    owner: tuple[str, ...]  # `layers` up to the outermost layer that is not a model.
    weight: keras.Variable
    layer: keras.layers.Layer  # The layer that holds the weight.
    attributes: tuple[str, ...] = ()  # Those of a subclassed model that hold the layer.
    # `layers` up to the outermost layer of Keras that holds it alone: attention is one layer, a
    # custom block of several is not.
    unit: tuple[str, ...] = ()

    @property
    def is_frozen(self) -> bool:
        """Whether the optimizer leaves the weight alone."""
        return not self.weight.trainable


def names(found) -> list:
    """Returns what names each of a list of `Maskable`, and its shape, for `named`."""
    return [(m._replace(weight=None, layer=None), tuple(map(int, m.weight.shape))) for m in found]


def named(found, names) -> list[Maskable]:
    """Gives the weights of a copy the names that they have in the original.

    Layers in custom layers that have no name of their own get a new one in each copy.

    Args:
        found: list of `Maskable`, of the copy.
        names: the result of `names`, of the original.

    Returns:
        `found` as it is, if all paths are the same or the weights are not.
    """
    if {old.path for old, _ in names} == {m.path for m in found}:
        return found
    if [shape for _, shape in names] != [tuple(m.weight.shape) for m in found]:
        return found
    pairs = zip(names, found, strict=True)
    return [old._replace(weight=m.weight, layer=m.layer) for (old, _), m in pairs]


def own_weights(layer, adapted=False) -> list:
    """Returns the maskable variables of a layer itself, without those of its sublayers.

    Args:
        layer: a `keras.layers.Layer`.
        adapted: bool, whether a kernel below LoRA adapters is one of them.

    Returns:
        A list of `keras.Variable`, empty if there are none or the layer is not built.

    Raises:
        ValueError: if `get_prunable_weights()` returns anything but floating point
            variables.
    """
    if hasattr(layer, "get_prunable_weights"):
        weights = list(layer.get_prunable_weights())
        for weight in weights:
            if not isinstance(weight, keras.Variable) or not _is_float(weight):
                raise ValueError(
                    "`get_prunable_weights()` must return floating point variables "
                    f"(`keras.Variable`). Received: {weight!r} from layer {layer.name!r}"
                )
        return weights
    attributes = kinds.attributes(layer)
    found = [getattr(layer, name, None) for name in attributes]
    # A quantized kernel is an integer variable; a kernel with LoRA is a tensor.
    if adapted and getattr(layer, "lora_enabled", False):
        found = [stored(layer, name)[0] for name in attributes]
    return [w for w in found if isinstance(w, keras.Variable) and _is_float(w)]


def find(layer, include_self=True, follow=True, adapted=False) -> list[Maskable]:
    """Finds every maskable weight in a layer and its sublayers, in model order.

    Args:
        layer: a built `keras.layers.Layer` or model.
        include_self: bool, whether paths begin with the name of `layer` itself.
        follow: bool, whether to find the kernels of custom layers in a model by a symbolic call.
        adapted: as for `own_weights`.

    Returns:
        A list of `Maskable` with unique paths. It lists a weight that several layers share
        once.
    """
    found: list = []
    seen: set = set()
    paths: set = set()
    walked = list(walk(layer, (layer.name,) if include_self else ()))
    followed = follow and isinstance(layer, keras.Model)
    learned = products.learn(layer, [each for each, _, _ in walked]) if followed else {}
    attributes = _attributes(vars(layer).get("model", layer))
    of_keras = {route for each, route, _ in walked if _is_of_keras(each)}
    for each, route, owner in walked:
        for weight in own_weights(each, adapted) + learned.get(id(each), []):
            if id(weight) not in seen:
                seen.add(id(weight))
                path = unique("/".join((*route, weight.name)), paths)
                names = tuple(n for n, inside in attributes.items() if id(each) in inside)
                unit = route
                while unit[:-1] in of_keras:
                    unit = unit[:-1]
                found.append(Maskable(path, route, owner or route, weight, each, names, unit))
    return found


def _is_of_keras(layer):
    """Returns whether a layer's class is one of Keras, or derived from one; not so a model."""
    bases = (base for base in type(layer).__mro__ if base is not keras.layers.Layer)
    known = (b for b in bases if issubclass(b, keras.layers.Layer))
    own = any(base.__module__.split(".")[0] == "keras" for base in known)
    return own and not isinstance(layer, keras.Model)


def _attributes(model):
    """Returns the names of attributes that hold layers, with the ids of all layers in each."""
    if not isinstance(model, keras.Model):
        return {}
    held = {n: v for n, v in vars(model).items() if isinstance(v, keras.layers.Layer)}
    return {
        name: {id(layer) for layer in all_layers(value)}
        for name, value in held.items()
        if not name.startswith("_")
    }


def walk(layer, route=()):
    """Visits a layer and all layers in it, each once, in model order.

    Args:
        layer: a `keras.layers.Layer` or model.
        route: tuple of str, the names of the layers from the outermost one to `layer`.

    Yields:
        Tuples of a layer, its route, and the part of the route up to the outermost layer that
        is not a model.
    """
    seen = set()

    def visit(layer, route, owner):
        if id(layer) in seen:
            return
        seen.add(id(layer))
        if owner is None and not isinstance(layer, keras.Model):
            owner = route
        yield layer, route, owner
        for child in sublayers(layer):
            yield from visit(child, (*route, child.name), owner)

    yield from visit(layer, route, None)


def axes(layer, shape):
    """Returns the input axes and the output axes of a weight.

    Args:
        layer: the `keras.layers.Layer` that holds the weight.
        shape: tuple of int, the shape of the weight.

    Returns:
        Two tuples of int; or None if the last axis but one is the input axis and the last
        one the output axis. Other axes, such as the spatial axes of a convolution, are
        neither.
    """
    if isinstance(layer, _TRANSPOSED):
        return (-1,), (-2,)
    if isinstance(layer, layers.EinsumDense):
        inputs, kernel, output = einsum_labels(layer)
        places = [(axis, label in inputs, label in output) for axis, label in enumerate(kernel)]
        summed = tuple(axis for axis, before, after in places if before and not after)
        made = tuple(axis for axis, before, after in places if after and not before)
        rank = len(shape)
        return None if (summed, made) == ((rank - 2,), (rank - 1,)) else (summed, made)
    return None


def input_axes(layer, shape) -> tuple[int, ...]:
    """Returns the axes of a weight over which one output sums; arguments as for `axes`."""
    rank = len(shape)
    if isinstance(layer, layers.EinsumDense):
        _, kernel, output = einsum_labels(layer)
        return tuple(axis for axis, label in enumerate(kernel) if label not in output)
    found = axes(layer, shape)
    outputs = {axis % rank for axis in found[1]} if found else {rank - 1} if rank > 1 else set()
    return tuple(axis for axis in range(rank) if axis not in outputs)


def output_axes(layer, shape) -> tuple[int, ...]:
    """Returns the axes of a weight over which one input is spread; arguments as for `axes`."""
    rank = len(shape)
    if isinstance(layer, layers.EinsumDense):
        inputs, kernel, _ = einsum_labels(layer)
        return tuple(axis for axis, label in enumerate(kernel) if label not in inputs)
    found = axes(layer, shape)
    inputs = {axis % rank for axis in found[0]} if found else {max(rank - 2, 0)}
    return tuple(axis for axis in range(rank) if axis not in inputs)


def fan_in(layer, shape) -> int:
    """Returns the number of entries of a weight that are summed into one output.

    Arguments are those of `axes`.
    """
    if isinstance(layer, layers.EinsumDense):
        _, kernel, output = einsum_labels(layer)
        sizes = zip(kernel, shape, strict=True)
        return math.prod(size for label, size in sizes if label not in output)
    if isinstance(layer, _TRANSPOSED):
        return math.prod(shape) // shape[-2]
    return math.prod(shape[:-1] if len(shape) > 1 else shape)


def stored(layer, attribute):
    """Finds the variable that stores a weight, and the weight's shape.

    Args:
        layer: a built `keras.layers.Layer`. If it has a method `stored`, that one answers.
        attribute: str, the name of the weight, such as "kernel".

    Returns:
        The variable (None if there is none), and the shape of the weight. The shape of the
        variable may differ.
    """
    own = layer.stored(attribute) if isinstance(layer, StoresSparse) else None
    if own is not None:
        return own
    value = getattr(layer, attribute, None)
    if value is not None and not isinstance(value, keras.Variable):
        value = stored_variable(layer, attribute)  # With LoRA the attribute is a sum.
    return value, None if value is None else tuple(value.shape)


def einsum_labels(layer):
    """Returns the axes of input, kernel and output of an `EinsumDense`, one letter each."""
    inputs, _, output = layer.equation.replace(" ", "").partition("->")
    inputs, _, kernel = inputs.partition(",")
    return inputs, kernel, output


def sublayers(layer) -> list:
    """Returns the layers directly inside a layer; those of a model in graph order."""
    if isinstance(layer, keras.Model):
        return layer.layers
    return all_layers(layer, include_self=False, recursive=False)


def unique(path, taken: set) -> str:
    """Returns `path`, with a number appended if it is in `taken`; adds the result to `taken`."""
    candidate, number = path, 0
    while candidate in taken:
        number += 1
        candidate = f"{path}_{number}"
    taken.add(candidate)
    return candidate


def _is_float(variable) -> bool:
    return keras.backend.is_float_dtype(variable.dtype)
