"""Counts parameters, FLOPs and bytes of a model, weight by weight."""

import collections
import math
from typing import NamedTuple

import keras

from tf_rigl.accounting import custom, free_axes, operations
from tf_rigl.accounting.rows import LayerReport, Report
from tf_rigl.block_sparse import conversion
from tf_rigl.patterns.base import Pattern
from tf_rigl.weights import maskable, masks, products, tracing, unmasked


class MaskInfo(NamedTuple):
    """The mask of a weight, or the mask that a plan gives it."""

    nonzeros: int
    compute: str = "masked"
    pattern: Pattern | None = None
    path: str | None = None  # None: the path of `maskable.find`.


def assemble(model, inner, arguments, input_shape, infos):
    """Makes the report.

    Args:
        model: the model, with its masks.
        inner: the model to call, without the wrapper that holds the masks.
        arguments: its arguments, as `prepare` returns them.
        input_shape: the user's argument, for messages.
        infos: dict of id(weight) to `MaskInfo`, for each masked weight.
    """
    walked = list(maskable.walk(inner))
    variables = custom.variables([layer for layer, _, _ in walked])
    counts, assumed = _counted(inner, arguments, input_shape, variables)
    found = maskable.find(inner, include_self=False)
    names = {id(m.weight): m.path for m in found}
    names |= {key: info.path for key, info in infos.items() if info.path is not None}
    obstacles = _obstacles(inner, found, infos)
    taken, rows, seen, params = set(names.values()), [], set(), _parameters(model)
    uncounted = []
    for layer, route, _ in walked:
        _check_not_quantized(layer)
        for kernel in operations.kernels(layer) + _custom_kernels(layer, counts, infos):
            key = id(kernel.weight)
            if key in seen:
                continue
            seen.add(key)
            if key not in names:
                names[key] = maskable.unique("/".join((*route, kernel.name)), taken)
            # A block-sparse kernel counts with all its entries, also those it does not store.
            params += math.prod(kernel.shape) - math.prod(kernel.weight.shape)
            used = counts.uses.get(key, 0), counts.biases.get(key, 0)
            rows.append(_row(kernel, names[key], infos.get(key), used, obstacles.get(key, "")))
        if flops := counts.products.get(id(layer)):
            name = maskable.unique("/".join((*route, "products")), taken)
            rows.append(
                LayerReport(name, (), 0.0, 0, 0, flops, flops, 0.0, 0.0, 0, False, "dense", "dense")
            )
        if id(layer) in counts.uncounted:
            uncounted.append("/".join(route) or layer.name)
    masked = [kernel for kernel in inner.weights if id(kernel) in infos]
    entries = sum(row.params for row in rows if row.masked)
    active = sum(row.nnz for row in rows if row.masked)
    return Report(
        layers=rows,
        sparsity=1 - active / entries if entries else 0.0,
        params=params - entries + active,
        dense_params=params,
        flops=sum(row.flops for row in rows),
        dense_flops=sum(row.dense_flops for row in rows),
        bytes=sum((row.bytes for row in rows), 0.0),
        dense_bytes=sum((row.dense_bytes for row in rows), 0.0),
        bias_flops=sum(row.bias_flops for row in rows),
        activation_flops=counts.activations,
        unmasked=unmasked.find(inner, masked),
        uncounted=uncounted,
        assumed_shapes=assumed,
    )


def _custom_kernels(layer, counts, infos):
    """Returns the kernels of a custom layer, as `operations.kernels` does those of others."""
    found = [w for w in products.candidates(layer) if id(w) in counts.kernels or id(w) in infos]
    return [operations.Kernel(w, w.name, tuple(w.shape), w.shape[-1]) for w in found]


def _row(kernel, name, info, counts, obstacle):
    """Makes the row of a weight.

    Args:
        kernel: `operations.Kernel`.
        name: str, its path.
        info: `MaskInfo`, or None if the weight is not masked.
        counts: the number of uses of each entry, and the operations of the bias.
        obstacle: str, the reason why it is not stored as blocks.
    """
    entries = math.prod(kernel.shape)
    is_masked, info = info is not None, info or MaskInfo(entries)
    nnz, (used, bias_flops) = int(info.nonzeros), counts
    is_sparse = nnz < entries
    dense_bytes = 4 * (entries + kernel.channels)
    mask_bytes = entries / 8 if is_sparse else 0
    return LayerReport(
        name=name,
        shape=kernel.shape,
        sparsity=1 - nnz / entries if entries else 0.0,
        params=entries,
        nnz=nnz,
        flops=2 * nnz * used,
        dense_flops=2 * entries * used,
        bytes=float(dense_bytes - 4 * (entries - nnz) + mask_bytes),
        dense_bytes=float(dense_bytes),
        bias_flops=bias_flops,
        masked=is_masked,
        pattern=str(info.pattern or "unstructured") if is_sparse else "dense",
        compute=info.compute if is_sparse or info.compute == "sparse" else "dense",
        obstacle=obstacle if is_sparse else "",
    )


def _obstacles(model, found, infos):
    """Returns why weights with a constant fan-in cannot be stored as blocks, by id(weight)."""
    attentions, result = conversion.by_projection(model), {}
    for each in found:
        info = infos.get(id(each.weight))
        pattern = None if info is None else info.pattern
        if pattern is not None and pattern.constant_fan_in:
            obstacle = conversion.obstacle_in_place(each, pattern, attentions)
            result[id(each.weight)] = obstacle or ""
    return result


def _check_not_quantized(layer):
    if getattr(layer, "quantization_mode", None) is not None:
        raise ValueError(
            "Argument `model` must hold no quantized layers: their weights are packed. "
            f"Received: layer {layer.name!r} with quantization_mode={layer.quantization_mode!r}"
        )


class _Counts(NamedTuple):
    """The operations of a forward pass of one example."""

    uses: dict  # id(weight) -> how often each entry is used.
    biases: dict  # id(weight) -> the additions of a bias.
    products: dict  # id(layer) -> FLOPs of products without a kernel.
    activations: float
    kernels: set  # id of each kernel of a custom layer.
    uncounted: set  # id of each layer with products that cannot be counted.


def _counted(model, arguments, input_shape, variables):
    """Counts as `_count`, with sizes for free axes if the count depends on them.

    Returns:
        The `_Counts`, and the list of shapes that were assumed for the inputs, or None.
    """
    if isinstance(arguments, list):  # The networks in a model without `call`.
        return _summed([_counted(*part, input_shape, variables) for part in arguments])
    full, shapes = free_axes.filled(arguments) if input_shape is None else (None, None)
    try:
        counts = _count(model, arguments, input_shape, variables)
        if full is None or not counts.uncounted:
            return counts, None
    except ValueError as error:
        if full is None or not isinstance(error.__cause__, operations.UnknownSizeError):
            raise
    return _count(model, full, input_shape, variables), shapes


def _summed(parts):
    """Adds up results of `_counted`."""
    counts, assumed = zip(*parts, strict=True)
    uses, biases, flops, activations, kernels, uncounted = zip(*counts, strict=True)
    dicts = (
        dict(sum(map(collections.Counter, each), collections.Counter()))
        for each in (uses, biases, flops)
    )
    shapes = [shape for each in assumed for shape in each or ()]
    sets = (set().union(*each) for each in (kernels, uncounted))
    return _Counts(*dicts, sum(activations), *sets), shapes or None


def _count(model, arguments, input_shape, variables) -> _Counts:
    """Counts the operations of a model; `variables` are those of its custom layers."""
    args, kwargs, batch = arguments
    try:
        trace = tracing.trace(model, args, kwargs, variables)
    except tracing.NotBuiltError as error:
        raise ValueError(
            f"Argument `model` holds a layer that is not built, {str(error)!r}: call the model on "
            f"data first. Received: model={model!r}"
        ) from error
    # Any error here comes from the model's own `call` on this shape.
    except Exception as error:
        shapes = keras.tree.map_structure(lambda x: tuple(x.shape), (args, kwargs))
        raise ValueError(
            "Argument `input_shape` must be a shape that the model can be called on, without the "
            f"batch axis. Received: input_shape={input_shape!r}; the call with shapes {shapes} "
            f"failed: {error}"
        ) from error
    own = custom.count(trace, variables)
    uses, biases, flops = map(collections.Counter, (own.uses, own.outputs, own.products))
    activations = 0
    for call in trace.calls:
        try:
            counted = operations.count(call)
        except operations.UnknownSizeError as error:
            shapes = keras.tree.map_structure(lambda x: tuple(x.shape), (args, kwargs))
            raise ValueError(
                "Argument `input_shape` must give every axis a size (a tuple of integers without "
                "the batch axis; a list or dict of them for several inputs): the size of an axis "
                f"in layer {call.layer.name!r} is unknown. Received: input_shape={input_shape!r}, "
                f"inputs with the batch axis: {shapes}"
            ) from error
        uses.update(counted.uses)
        biases.update(counted.bias)
        flops[id(call.layer)] += counted.products
        activations += counted.activations

    def per_example(number):
        return number // batch if number % batch == 0 else number / batch

    used, added, rest = (
        {key: per_example(n) for key, n in each.items()} for each in (uses, biases, flops)
    )
    return _Counts(used, added, rest, per_example(activations), own.kernels, own.uncounted)


def _parameters(model):
    """Counts the stored parameters, without masks and the positions of blocks."""
    ignored = {id(v) for layer in masks.layers(model) for v in layer.variables}
    blocks = filter(lambda layer: hasattr(layer, "places"), conversion.replacements(model))
    ignored |= {id(layer.places) for layer in blocks}
    return sum(math.prod(w.shape) for w in model.weights if id(w) not in ignored)
