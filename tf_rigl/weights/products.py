"""Which variables of custom layers are kernels: only products with data use them.

A custom layer that does not name its weights (`get_prunable_weights`) is judged by what it does.
The model is called symbolically, and each use of each of its variables is followed. A variable is
a kernel if every use is a matrix product, an einsum or a convolution whose other operand depends
on the input of the model. Before the product it may be reshaped, transposed, cut, cast, or
multiplied by something that does not depend on the input: zeros stay zeros then. A variable that
is added, looked up or normalised (positions, class tokens, scales) is none.
"""

import functools
import math
import re
import weakref
from typing import NamedTuple

import keras

from tf_rigl._base import keras_internals
from tf_rigl.weights import kinds, tracing
from tf_rigl.weights.sparse_weight import StoresSparse

# Operation -> the places of its two operands; in convolutions the second one is the kernel.
_MATRIX = {
    "MatMul": (0, 1),
    "BatchMatMul": (0, 1),
    "BatchMatMulV2": (0, 1),
    "BatchMatMulV3": (0, 1),
    "Einsum": (0, 1),
}
_CONVOLUTIONS = {"Conv2D": (0, 1), "Conv3D": (0, 1), "Conv": (0, 1)}
_TRANSPOSED = {
    "Conv2DBackpropInput": (2, 1),
    "Conv2DBackpropInputV2": (2, 1),
    "Conv3DBackpropInputV2": (2, 1),
}
_DEPTHWISE = {"DepthwiseConv2dNative": (0, 1)}
PRODUCTS = {**_MATRIX, **_CONVOLUTIONS, **_TRANSPOSED, **_DEPTHWISE}

# Operations after which a kernel is still the same kernel, in another shape or in part.
_SAME = (
    *("Identity", "Cast", "Reshape", "Transpose", "ExpandDims", "Squeeze", "StopGradient"),
    *("Slice", "StridedSlice", "Split", "SplitV", "Unpack"),
)
_SIZES = ("Shape", "ShapeN", "Size", "Rank")
# Loops are followed by the one step that `tracing` takes outside of them.
_LOOPS = ("While", "StatelessWhile")
# Operations that run functions, which hold operations of their own.
FUNCTIONS = (*_LOOPS, "PartitionedCall", "StatefulPartitionedCall", "If", "StatelessIf", "Case")

# A matrix of relative positions is multiplied with data too, but its rows are looked up by place.
_NOT_KERNELS = re.compile(r"position|pos_emb|relative|rel_|token|codebook", re.IGNORECASE)


class Product(NamedTuple):
    """A product of which at least one operand depends on the input."""

    operation: str  # Its name in the graph.
    variable: int | None  # id of the variable of which the other operand is a form.
    multiply_adds: int | None  # None if a size is unknown.
    outputs: int | None


class Uses(NamedTuple):
    """How a symbolic call uses variables."""

    products: list  # `Product`.
    kernels: set  # id of each variable that products with data use, and nothing else.
    reached: set  # id of each variable that is used.


def candidates(layer) -> list:
    """Returns the variables of a layer that may be kernels, and that no rule knows.

    These are the matrices that a custom layer was built to train, frozen or not.
    """
    package = type(layer).__module__.split(".")[0]
    if package in ("keras", "tf_rigl") or isinstance(layer, (keras.Model, StoresSparse)):
        return []
    if hasattr(layer, "get_prunable_weights"):
        return []
    known = {id(getattr(layer, name, None)) for name in kinds.attributes(layer)}
    variables = keras_internals.trainable_variables(layer)
    return [each for each in variables if is_matrix(each) and id(each) not in known]


def is_matrix(variable) -> bool:
    """Returns whether a variable has floating point numbers and two axes or more."""
    return len(variable.shape) > 1 and keras.backend.is_float_dtype(variable.dtype)


def learn(model, walked) -> dict:
    """Finds the kernels of the custom layers in a model.

    Args:
        model: a built `keras.Model`.
        walked: list of the layers in it.

    Returns:
        A dict of id(layer) to a list of `keras.Variable`.
    """
    own = [(layer, variables) for layer in walked if (variables := candidates(layer))]
    unknown = [v for layer, variables in own for v in variables if not is_known(layer, v)]
    if unknown and _tried.get(model) != {id(each) for each in unknown}:
        known: dict = {}
        _follow(model, unknown, known)
        for layer, variables in own:
            new = {id(v): known[id(v)] for v in variables if id(v) in known}
            _known[layer] = {**_known.get(layer, {}), **new}
        _tried[model] = {id(each) for each in unknown} - set(known)
    found = {}
    for layer, variables in own:
        kernels = [v for v in variables if is_kernel(layer, v)]
        if kernels:
            found[id(layer)] = kernels
    return found


def is_known(layer, variable) -> bool:
    """Returns whether a symbolic call has reached a variable of a layer."""
    return id(variable) in _known.get(layer, ())


def is_kernel(layer, variable) -> bool:
    """Returns whether a variable of a custom layer is a kernel, as far as is known."""
    names = f"{type(layer).__name__}/{variable.name}"
    return _known.get(layer, {}).get(id(variable), False) and not _NOT_KERNELS.search(names)


def _follow(layer, variables, known):
    """Follows variables through a symbolic call of a layer, or else of the layers in it.

    Args:
        layer: `keras.layers.Layer`.
        variables: list of `keras.Variable`, in this layer or in others.
        known: dict of id(variable) to whether it is a kernel, to add to.
    """
    inside = {id(each) for each in layer.variables}
    for arguments in _arguments(layer):
        wanted = [v for v in variables if id(v) in inside and id(v) not in known]
        if not wanted:
            return
        try:
            found = uses(tracing.trace(layer, *arguments, wanted))
        except Exception:  # Of the user's `call`, on arguments that are guessed: try others.
            continue
        known.update((key, key in found.kernels) for key in found.reached)
        break
    for child in keras_internals.all_layers(layer, include_self=False, recursive=False):
        if any(id(v) not in known for v in variables):
            _follow(child, variables, known)


def _arguments(layer) -> list:
    """Returns guesses of arguments to call a layer on: pairs of positional and named ones."""
    graph = keras_internals.graph_of(layer) if isinstance(layer, keras.Model) else None
    if graph is not None:
        return [([keras.tree.map_structure(_symbol, graph.input)], {})]
    try:
        config = (layer.built and layer.get_build_config()) or {}
    except Exception:  # Of the user's `get_build_config`.
        return []
    guesses: list = []
    for dtype in (keras.config.floatx(), "int32"):
        symbols = functools.partial(_symbols, dtype=dtype)
        if config.get("input_shape"):
            guesses.append(([symbols(config["input_shape"])], {}))
        elif isinstance(config.get("shapes_dict"), dict):
            shapes = {key.removesuffix("_shape"): s for key, s in config["shapes_dict"].items()}
            guesses.append(([], {name: symbols(s) for name, s in shapes.items() if s}))
    return guesses


def _symbols(shapes, dtype):
    """Returns symbolic tensors of one example, for shapes in any structure."""
    return keras.tree.map_shape_structure(
        lambda shape: keras.KerasTensor((1, *shape[1:]) if shape else (), dtype), shapes
    )


def _symbol(x):
    """Returns a symbolic tensor of one example, like an input of a graph."""
    shape = (x.shape[0] or 1, *x.shape[1:]) if x.shape else ()
    return keras.KerasTensor(shape, x.dtype, sparse=x.sparse)


def uses(trace) -> Uses:
    """Follows the variables of a trace through its operations.

    Args:
        trace: `tf_rigl.weights.tracing.Trace`, with stand-ins for the variables.
    """
    data = {tensor.name for tensor in trace.inputs}  # Tensors that depend on the input.
    forms = {tensor.name: key for key, tensor in trace.stand_ins.items()}  # And those of variables.
    products, multiplied, otherwise = [], set(), set()
    for operation in trace.operations:
        inputs = [tensor.name for tensor in operation.inputs]
        found = {forms[name] for name in inputs if name in forms}
        depends = operation.type not in _SIZES and any(name in data for name in inputs)
        outputs = [tensor.name for tensor in operation.outputs]
        if operation.name in trace.looped:
            pass
        elif operation.type in PRODUCTS and depends:
            kernel = _kernel_of(operation, inputs, forms, data)
            size = _multiply_adds(operation), _entries(operation.outputs[0])
            products.append(Product(operation.name, kernel, *size))
            multiplied |= {kernel} & found
            otherwise |= found - {kernel}
        elif found and operation.type not in (*_SIZES, *_LOOPS):
            alone = len(found) == 1 and not depends and _keeps(operation, inputs, forms)
            if alone:
                forms.update(dict.fromkeys(outputs, *found))
            else:
                otherwise |= found
        if depends:
            data.update(outputs)
    return Uses(products, multiplied - otherwise, multiplied | otherwise)


def _kernel_of(operation, inputs, forms, data):
    """Returns the id of the variable that an operand of a product is a form of, or None."""
    if operation.type in _DEPTHWISE or len(inputs) <= max(PRODUCTS[operation.type]):
        return None  # Kernels of depthwise convolutions stay dense.
    first, second = (inputs[place] for place in PRODUCTS[operation.type])
    if second in forms and first in data:
        return forms[second]
    if first in forms and second in data and operation.type in _MATRIX:
        return forms[first]
    return None


def _keeps(operation, inputs, forms):
    """Returns whether an operation leaves a variable what it is, its zeros included."""
    if operation.type in _SAME:
        return True
    # A variable that is multiplied with itself is no kernel, nor is what is divided by it.
    if operation.type == "Mul":
        return sum(name in forms for name in inputs) == 1
    return operation.type == "RealDiv" and inputs[1] not in forms


def _multiply_adds(operation):
    """Returns the number of multiplications of a product, or None if a size is unknown."""
    first, second = (operation.inputs[place] for place in PRODUCTS[operation.type])
    if operation.type == "Einsum":
        return _multiply_adds_of_einsum(operation)
    if first.shape.rank is None or second.shape.rank is None:
        return None
    if operation.type in _MATRIX:
        flag = "transpose_a" if operation.type == "MatMul" else "adj_x"
        summed = first.shape[-2 if operation.get_attr(flag) else -1]
        return _product(_entries(operation.outputs[0]), summed)
    kernel = _entries(second)
    if operation.type in _DEPTHWISE:
        *taps, _, _ = second.shape
        return _product(_entries(operation.outputs[0]), *taps)
    # Each position of the output (in transposed convolutions of the input) uses each entry.
    outputs = first if operation.type in _TRANSPOSED else operation.outputs[0]
    positions = _entries(outputs)
    return None if None in (positions, kernel) else positions // second.shape[-1] * kernel


def _multiply_adds_of_einsum(operation):
    """Returns the product of the sizes of all axes."""
    inputs, _, _ = operation.get_attr("equation").decode().replace(" ", "").partition("->")
    sizes, broadcast = {}, []
    for labels, tensor in zip(inputs.split(","), operation.inputs, strict=True):
        if tensor.shape.rank is None:
            return None
        before, dots, after = labels.partition("...")
        shape = list(tensor.shape)
        sizes |= dict(zip(before, shape, strict=False))
        sizes |= dict(zip(reversed(after), reversed(shape), strict=False))
        if dots:
            middle = shape[len(before) : len(shape) - len(after)]
            broadcast = max(broadcast, middle, key=len)
    return _product(*sizes.values(), *broadcast)


def _entries(tensor):
    """Returns the number of entries of a tensor, or None if a size is unknown."""
    return None if tensor.shape.rank is None else _product(*tensor.shape)


def _product(*sizes):
    return None if None in sizes else math.prod(sizes)


# Layer -> id of its variable -> whether that is a kernel. Variables themselves would keep the layer
# alive.
_known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
# Model -> the ids that symbolic calls of it have not reached.
_tried: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
