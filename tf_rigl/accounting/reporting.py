"""The cost of a sparse model or a plan: parameters, FLOPs and bytes.

FLOPs are per example and forward pass. Each use of a nonzero kernel entry counts as two
FLOPs, a multiplication and an addition. Biases (one addition per output of each layer with
a kernel) and activations (one operation per output) are counted separately, in `bias_flops`
and `activation_flops`. Normalisation is assumed to be folded into kernels and biases. These
are not counted: pooling, additions and other merging, softmax, dropout, embedding look-ups,
and operations outside layers, such as `keras.ops.relu` or `@` in the `call` of a custom layer.

Bytes follow the RigL paper: 4 bytes for each nonzero kernel entry, one bit for each entry of
a kernel with zeros, and 4 bytes for each output channel. Normalisation parameters are folded.
A block-sparse layer counts as the kernel that it represents, however it is stored.

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

# A smaller fraction of zeros is chance, not sparsity. (About one random initial value in
# millions is exactly zero.)
_CHANCE = 1e-3


def report(model, *, input_shape=None) -> Report:
    """Counts the parameters, FLOPs and bytes of a model with its current masks.

    In a model without masks, exact zeros in maskable weights count as sparsity. So
    `report(tf_rigl.strip(sparse))` equals `report(sparse)`, except for `compute` and the names
    of patterns other than "unstructured". Fewer than one zero in a thousand count as chance.
    After a mask update, grown entries that have not been trained yet are zero too.

    A custom layer is counted if it has `get_prunable_weights()`. Each of these weights counts
    as used once at every position of the output, `prod(output.shape[1:-1])` times. If a `call`
    runs layers in its own loop (`keras.ops.while_loop`, `scan`), they count as often as Keras
    traces them.

    Args:
        model: a `keras.Model`, sparse or not. It is not changed.
        input_shape: tuple of int without the batch axis. For several inputs, a list or a dict
            of such tuples; the keys are the names of the inputs or of the arguments of
            `call`. Needed if the model is not built, or if axes are free (`None`). Defaults
            to the shape that the model was built for.

    Returns:
        A `Report`.

    Raises:
        ValueError: if `input_shape` is missing or does not fit, or if a layer is not built or
            is quantized.

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
    infos = {}
    if holds_masks:
        for item in masks.find(model):
            nonzeros = np.count_nonzero(item.mask.numpy())
            infos[id(item.weight)] = _MaskInfo(nonzeros, item.compute, item.pattern, item.path)
    else:
        for found in maskable.find(model, include_self=False):
            values = keras.ops.convert_to_numpy(found.weight)
            nnz = np.count_nonzero(values)
            if values.size - nnz < _CHANCE * values.size:
                nnz = values.size
            infos[id(found.weight)] = _MaskInfo(nnz)
    return _assemble(model, inner, arguments, input_shape, infos)


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
    """Counts the cost that a model would have after `tf_rigl.sparsify`, without making masks.

    Args:
        model: a `keras.Model`. It is not changed. Its masks and zeros do not matter. A model
            that is not built is built on a copy.
        sparsity: float in [0, 1), the fraction of zeros over all maskable entries.
        distribution: "uniform", "erdos_renyi", "erk", a function, or a mapping of layer
            name to sparsity, as in `tf_rigl.sparsify`.
        fixed: mapping of layer name to the exact sparsity of that layer.
        exclude: list or tuple of str, layers that stay dense, as in `tf_rigl.sparsify`.
        input_shape: as in `report`.
        pattern: str or `tf_rigl.patterns.Pattern`, as in `tf_rigl.sparsify`.
        compute: str, "masked" or "sparse", as in `tf_rigl.sparsify`.

    Returns:
        A `Report`, equal to the report of the model that `tf_rigl.sparsify` makes with these
        arguments. If a weight has blocks of several sizes, the plan counts the mean size.

    Raises:
        ValueError: in the same cases as `report` and `tf_rigl.sparsify`.

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
    infos = {}
    attentions = conversion.by_projection(model)
    for each in found:
        if each.path in planned:
            target, entries = planned[each.path], math.prod(each.weight.shape)
            units = target.pattern.units(each.weight.shape)
            active = units - int(distributions.zeros(target.sparsity, units))
            active = target.pattern.possible(each.weight.shape, active)
            nonzeros = entries - round(entries * (units - active) / units)
            actual = "masked"
            if compute == "sparse" and target.sparsity > 0:
                obstacle = conversion.obstacle_in_place(each, target.pattern, attentions)
                actual = "sparse" if obstacle is None else "masked"
            infos[id(each.weight)] = _MaskInfo(nonzeros, actual, target.pattern)
    return _assemble(model, inner, arguments, input_shape, infos)


def train_flops(report, method="rigl", *, steps=None) -> float:
    """Returns the FLOPs of one training step on one example, by the RigL paper's formulas.

    A backward pass costs twice as much as a forward pass. Biases and activations do not count.

    Args:
        report: `Report` of a sparse model or a plan.
        method: str or `tf_rigl.methods.Method`; or "dense" for dense training.
        steps: int, the number of training steps, for methods whose sparsity changes.

    Returns:
        A float, the mean over all steps.

    Raises:
        ValueError: if `method` is unknown, or `steps` is missing.

    Example:

    >>> planned = tf_rigl.plan(tf_rigl.models.lenet_300_100((28, 28, 1), 10), sparsity=0.9)
    >>> tf_rigl.train_flops(planned, "static") == 3 * planned.flops
    True

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), appendix on FLOPs.
    """
    if not isinstance(report, Report):
        raise ValueError(
            "Argument `report` must be a result of `tf_rigl.report` or `tf_rigl.plan`. "
            f"Received: report={report!r} (of type {type(report)})"
        )
    if isinstance(method, str) and method == "dense":
        return float(3 * report.dense_flops)
    return float(methods.get(method).train_flops(report, steps))


class _MaskInfo(NamedTuple):
    """The mask of a weight, or the mask that a plan gives it."""

    nonzeros: int
    compute: str = "masked"
    pattern: Pattern | None = None
    path: str | None = None  # None: the path of `maskable.find`.


def _assemble(model, inner, arguments, input_shape, infos):
    """Makes the report.

    Args:
        model: the model, with its masks.
        inner: the model to call, without the wrapper that holds the masks.
        arguments: its arguments, as `prepare` returns them.
        input_shape: the user's argument, for messages.
        infos: dict of id(weight) to `_MaskInfo`, for each masked weight.
    """
    uses, biases, products, activations = _count(inner, arguments, input_shape)
    found = maskable.find(model, include_self=False)
    names = {id(m.weight): m.path for m in found}
    names |= {key: info.path for key, info in infos.items() if info.path is not None}
    obstacles = _obstacles(model, found, infos)
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
            # A block-sparse kernel counts with all its entries, also those it does not store.
            params += math.prod(kernel.shape) - math.prod(kernel.weight.shape)
            counts = uses.get(key, 0), biases.get(key, 0)
            rows.append(_row(kernel, names[key], infos.get(key), counts, obstacles.get(key, "")))
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


def _row(kernel, name, info, counts, obstacle):
    """Makes the row of a weight.

    Args:
        kernel: `operations.Kernel`.
        name: str, its path.
        info: `_MaskInfo`, or None if the weight is not masked.
        counts: the number of uses of each entry, and the operations of the bias.
        obstacle: str, the reason why it is not stored as blocks.
    """
    entries = math.prod(kernel.shape)
    is_masked, info = info is not None, info or _MaskInfo(entries)
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


def _count(model, arguments, input_shape):
    """Returns uses and bias FLOPs by weight, FLOPs of products by layer, and activations.

    All are per example; uses say how often a forward pass uses each entry of the weight.
    """
    args, kwargs, batch = arguments
    try:
        calls = observe(model, args, kwargs)
    except NotBuiltError as error:
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
    uses, biases, products, activations = {}, {}, {}, 0
    for call in calls:
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
    """Counts the stored parameters, without masks and the positions of blocks."""
    ignored = {id(v) for layer in masks.layers(model) for v in layer.variables}
    blocks = filter(lambda layer: hasattr(layer, "places"), conversion.replacements(model))
    ignored |= {id(layer.places) for layer in blocks}
    return sum(math.prod(w.shape) for w in model.weights if id(w) not in ignored)


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Argument `model` must be a `keras.Model`. "
            f"Received: model={model!r} (of type {type(model)})"
        )
