"""What a sparse model costs: parameters, FLOPs and size, of a model or of a plan.

Counted per example and forward pass, a multiplication and an addition being two FLOPs:
every entry of a kernel that is not zero, as often as it is used. Biases (one addition
per output of each layer with a kernel) and activations (one operation per output) are
counted apart, in `bias_flops` and `activation_flops`; normalisation is taken to be folded
into kernels and biases. Not counted at all: pooling, additions and other merging,
softmax, dropout, look-ups of embeddings, and operations that are no layers, such as
`keras.ops.relu` or `@` in the `call` of a layer of one's own.

Sizes are those of the RigL paper: 4 bytes for each entry of a kernel that is not zero,
one bit for each entry of a kernel that has zeros, and 4 bytes for each output channel;
normalisation parameters are folded. Block-sparse layers are counted as the kernels that
they stand for, however these are stored.

Reference:

- [Rigging the Lottery](https://arxiv.org/abs/1911.11134), appendices on FLOPs and sizes.
"""

import math
from typing import NamedTuple

import keras
import numpy as np

from tf_rigl import distributions, methods, patterns
from tf_rigl._base.arguments import check_sparsity, unknown_name
from tf_rigl.accounting import operations
from tf_rigl.accounting.calls import NotBuiltError, observe, prepare
from tf_rigl.accounting.rows import LayerReport, Report
from tf_rigl.block_sparse import conversion
from tf_rigl.patterns.base import Pattern
from tf_rigl.training.sparse_model import SparseModel
from tf_rigl.weights import maskable, masks, targets

__all__ = ["LayerReport", "Report", "plan", "report", "train_flops"]

# Random initial values are exactly zero once in millions; a mask has more zeros than that.
_CHANCE = 1e-3


def report(model, *, input_shape=None) -> Report:
    """Counts what a model costs, with the masks that it has.

    A model without masks is dense, but for exact zeros in its maskable weights, which
    count as sparsity: `report(tf_rigl.strip(sparse))` is `report(sparse)`, but for the names
    of patterns other than "unstructured", and for `compute`. (Fewer than one zero in a
    thousand are taken for chance. After an update of the masks, active entries that have not
    been trained yet are zero too.)

    A layer of one's own is counted if it has `get_prunable_weights()`: each of those
    weights as used once at every position of the output, `prod(output.shape[1:-1])`.
    Layers that a `call` runs in a loop of its own (`keras.ops.while_loop`, `scan`) are
    counted as often as Keras traces them.

    Args:
        model: a `keras.Model`, sparse or not. It is left as it is.
        input_shape: tuple of int without the batch axis; for several inputs a list or a
            dict of them, the names being those of the inputs, or of the arguments of
            `call`. Needed if the model is not built, or if axes are free (`None`).
            Defaults to what the model was built for.

    Returns:
        A `Report`.

    Raises:
        ValueError: if `input_shape` is needed or does not fit, or layers are not built or
            are quantized.

    Example:

    >>> model = tf_rigl.models.lenet_300_100((28, 28, 1), 10)
    >>> round(tf_rigl.report(tf_rigl.sparsify(model, sparsity=0.9)).sparsity, 3)
    0.9
    >>> tf_rigl.report(model).dense_flops
    532400

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), appendices.
    """
    _check_model(model)
    holds_masks = isinstance(model, SparseModel) or masks.holds_any(model)
    if holds_masks and not model.built:
        raise ValueError(
            "Argument `model` is not built, so it has no masks yet: call it on data first. "
            f"Received: model={model!r}"
        )
    inner, arguments = prepare(model, input_shape)
    model = model if holds_masks else inner
    known = {}
    if holds_masks:
        for item in masks.find(model):
            nonzeros = np.count_nonzero(item.mask.numpy())
            known[id(item.weight)] = _Known(nonzeros, item.compute, item.pattern, item.path)
    else:
        for found in maskable.find(model, include_self=False):
            values = keras.ops.convert_to_numpy(found.weight)
            nnz = np.count_nonzero(values)
            if values.size - nnz < _CHANCE * values.size:
                nnz = values.size
            known[id(found.weight)] = _Known(nnz)
    return _assemble(model, inner, arguments, input_shape, known)


def plan(
    model,
    sparsity=0.9,
    distribution="erk",
    fixed=None,
    exclude=(),
    input_shape=None,
    pattern="unstructured",
    compute="masked",
) -> Report:
    """Counts what a model would cost if it were made sparse; no masks are made.

    Args:
        model: a `keras.Model`. It is left as it is: masks and zeros that it has are not
            looked at, and one that is not built is built on a copy.
        sparsity: float in [0, 1), zeros over all maskable entries.
        distribution: "uniform", "erdos_renyi", "erk", a function, or a mapping of layer
            name to sparsity, as in `tf_rigl.sparsify`.
        fixed: mapping of layer name to a sparsity to keep as given.
        exclude: list or tuple of str, layers kept dense, as in `tf_rigl.sparsify`.
        input_shape: as in `report`.
        pattern: str or `tf_rigl.patterns.Pattern`, as in `tf_rigl.sparsify`.
        compute: str, "masked" or "sparse", as in `tf_rigl.sparsify`.

    Returns:
        A `Report`, equal to that of the model which `tf_rigl.sparsify` makes with these
        arguments (where blocks are of several sizes, that of blocks of the mean size).

    Raises:
        ValueError: as `report` and `tf_rigl.sparsify` do.

    Example:

    >>> model = tf_rigl.models.resnet_50((224, 224, 3), 1000)
    >>> planned = tf_rigl.plan(model, sparsity=0.9, distribution="uniform")
    >>> round(planned.bytes / 1e6, 3), round(planned.flops / planned.dense_flops, 3)
    (13.532, 0.126)

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), figure 2.
    """
    _check_model(model)
    sparsity = check_sparsity("sparsity", sparsity)
    targets.check_distribution(distribution)
    targets.check_exclude(exclude)
    targets.check_fixed(fixed)
    pattern = patterns.get(pattern)
    if compute not in ("masked", "sparse"):
        raise unknown_name("compute", compute, ("masked", "sparse"), or_object=False)
    if compute == "sparse":
        pattern = conversion.check(pattern, methods.get("static"))
    inner, arguments = prepare(model, input_shape)
    model = model if model.built else inner
    found = maskable.find(model, include_self=False)
    planned = targets.resolve(
        found,
        sparsity=sparsity,
        distribution=distribution,
        pattern=pattern,
        exclude=sorted(exclude),
        fixed=fixed,
    )
    known = {}
    attentions = conversion.by_projection(model)
    for each in found:
        if each.path in planned:
            target, entries = planned[each.path], math.prod(each.weight.shape)
            units = target.pattern.units(each.weight.shape)
            active = units - int(distributions.zeros(target.sparsity, units))
            active = target.pattern.possible(each.weight.shape, active)
            nonzeros = entries - round(entries * (units - active) / units)
            reached = "masked"
            if compute == "sparse" and target.sparsity > 0:
                obstacle = conversion.obstacle_in_place(each, target.pattern, attentions)
                reached = "sparse" if obstacle is None else "masked"
            known[id(each.weight)] = _Known(nonzeros, reached, target.pattern)
    return _assemble(model, inner, arguments, input_shape, known)


def train_flops(report, method="rigl", *, steps=None) -> float:
    """FLOPs of one training step on one example, by the formulas of the RigL paper.

    A backward pass costs twice a forward one. Biases and activations are not counted.

    Args:
        report: `Report`, of a sparse model or a plan.
        method: str or `tf_rigl.methods.Method`; or "dense", for dense training.
        steps: int, of the whole training, for methods whose sparsity changes.

    Returns:
        A float, the mean over all steps where they differ.

    Raises:
        ValueError: if `method` is unknown, or `steps` is needed.

    Example:

    >>> planned = tf_rigl.plan(tf_rigl.models.lenet_300_100((28, 28, 1), 10), sparsity=0.9)
    >>> tf_rigl.train_flops(planned, "static") == 3 * planned.flops
    True

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), appendix on FLOPs.
    """
    if not isinstance(report, Report):
        raise ValueError(
            "Argument `report` must be what `tf_rigl.report` or `tf_rigl.plan` returns. "
            f"Received: report={report!r} (of type {type(report)})"
        )
    if isinstance(method, str) and method == "dense":
        return float(3 * report.dense_flops)
    return float(methods.get(method).train_flops(report, steps))


# From a model to its report.


class _Known(NamedTuple):
    """What masks, or a plan of masks, say of a weight."""

    nonzeros: int
    compute: str = "masked"
    pattern: Pattern | None = None
    path: str | None = None  # None: the path of `maskable.find`.


def _assemble(model, inner, arguments, input_shape, known):
    """Makes the report, given what is known of each masked weight.

    Args:
        model: the model, with its masks.
        inner: the model to call, without what holds the masks.
        arguments: its arguments, as `prepare` returns them.
        input_shape: as the user gave it, for messages.
        known: dict of id(weight) to `_Known`.
    """
    uses, biases, products, activations = _count(inner, arguments, input_shape)
    found = maskable.find(model, include_self=False)
    names = {id(m.weight): m.path for m in found}
    names |= {key: each.path for key, each in known.items() if each.path is not None}
    obstacles = _obstacles(model, found, known)
    taken, rows, seen, params = set(names.values()), [], set(), _parameters(model)
    for layer, route, _ in maskable.walk(model):
        _check_not_quantized(layer)
        for kernel in operations.kernels(layer):
            key = id(kernel.weight)
            if key in seen:
                continue
            seen.add(key)
            if key not in names:
                names[key] = maskable.unique("/".join((*route, kernel.name)), taken)
            # Blocks that are not stored count too.
            params += math.prod(kernel.shape) - math.prod(kernel.weight.shape)
            counts = uses.get(key, 0), biases.get(key, 0)
            rows.append(_row(kernel, names[key], known.get(key), counts, obstacles.get(key, "")))
        if products.get(id(layer)):
            name = maskable.unique("/".join((*route, "products")), taken)
            flops = products[id(layer)]
            rows.append(
                LayerReport(name, (), 0.0, 0, 0, flops, flops, 0.0, 0.0, 0, False, "dense", "dense")
            )
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
        activation_flops=activations,
    )


def _row(kernel, name, known, counts, obstacle):
    """The row of a weight.

    Args:
        kernel: `operations.Kernel`.
        name: str, its path.
        known: `_Known`, or None if the weight is not masked.
        counts: how often each entry is used, and the operations of its bias.
        obstacle: str, why it is not stored as blocks.
    """
    entries = math.prod(kernel.shape)
    is_masked, known = known is not None, known or _Known(entries)
    nnz, (used, bias_flops) = int(known.nonzeros), counts
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
        pattern=str(known.pattern or "unstructured") if is_sparse else "dense",
        compute=known.compute if is_sparse or known.compute == "sparse" else "dense",
        obstacle=obstacle if is_sparse else "",
    )


def _obstacles(model, found, known):
    """Why weights with a constant fan-in are not stored as blocks, by id."""
    attentions, result = conversion.by_projection(model), {}
    for each in found:
        of_weight = known.get(id(each.weight))
        pattern = None if of_weight is None else of_weight.pattern
        if pattern is not None and pattern.constant_fan_in:
            obstacle = conversion.obstacle_in_place(each, pattern, attentions)
            result[id(each.weight)] = obstacle or ""
    return result


def _check_not_quantized(layer):
    if getattr(layer, "quantization_mode", None) is not None:
        raise ValueError(
            "Argument `model` must hold no quantized layers: their weights are packed. "
            f"Received: layer {layer.name!r} of quantization_mode={layer.quantization_mode!r}"
        )


def _count(model, arguments, input_shape):
    """How often each weight is used per example, and the FLOPs that belong to no weight."""
    args, kwargs, batch = arguments
    try:
        calls = observe(model, args, kwargs)
    except NotBuiltError as error:
        raise ValueError(
            f"Argument `model` holds a layer that is not built, {str(error)!r}: call the model on "
            f"data first. Received: model={model!r}"
        ) from error
    # Whatever goes wrong here, goes wrong in the `call` of a model on this shape.
    except Exception as error:
        shapes = keras.tree.map_structure(lambda x: tuple(x.shape), (args, kwargs))
        raise ValueError(
            "Argument `input_shape` must be a shape that the model can be called on, without the "
            f"batch axis. Received: input_shape={input_shape!r}; the call with shapes {shapes} "
            f"failed: {error}"
        ) from error
    uses, biases, products, activations = {}, {}, {}, 0
    for call in calls:
        try:
            counted = operations.count(call)
        except operations.UnknownSizeError as error:
            shapes = keras.tree.map_structure(lambda x: tuple(x.shape), (args, kwargs))
            raise ValueError(
                "Argument `input_shape` must give every axis a size (a tuple of integers without "
                "the batch axis; a list or dict of them for several inputs): that of an output of "
                f"layer {call.layer.name!r} is unknown. Received: input_shape={input_shape!r}, "
                f"inputs with the batch axis: {shapes}"
            ) from error
        for total, part in ((uses, counted.uses), (biases, counted.bias)):
            for key, number in part.items():
                total[key] = total.get(key, 0) + number
        products[id(call.layer)] = products.get(id(call.layer), 0) + counted.products
        activations += counted.activations

    def per_example(number):
        return number // batch if number % batch == 0 else number / batch

    uses, biases, products = (
        {key: per_example(number) for key, number in each.items()}
        for each in (uses, biases, products)
    )
    return uses, biases, products, per_example(activations)


def _parameters(model):
    """All parameters that are stored, but for masks and the places of blocks."""
    left_out = {id(v) for layer in masks.layers(model) for v in layer.variables}
    blocks = filter(lambda layer: hasattr(layer, "places"), conversion.replacements(model))
    left_out |= {id(layer.places) for layer in blocks}
    return sum(math.prod(w.shape) for w in model.weights if id(w) not in left_out)


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Argument `model` must be a `keras.Model`. "
            f"Received: model={model!r} (of type {type(model)})"
        )
