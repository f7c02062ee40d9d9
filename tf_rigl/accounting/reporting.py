"""The cost of a sparse model or a plan: parameters, FLOPs and bytes.

FLOPs are per example and forward pass. Each use of a nonzero kernel entry counts as two FLOPs, a
multiplication and an addition; that includes biases, see `Report`. Activations, one operation per
output, are counted separately. Normalisation is assumed to be folded into kernels and biases. These
are not counted: pooling, additions and other merging, softmax, dropout, embedding look-ups, and
operations outside layers, such as `keras.ops.relu`. Products (`@`, `einsum`, convolutions) in the
`call` of a custom layer or between layers are counted, except in loops: see `Report.uncounted`.

Bytes follow the RigL paper: 4 bytes for each nonzero kernel entry, one bit for each entry of
a kernel with zeros, and 4 bytes for each output channel. Normalisation parameters are folded.
A block-sparse layer counts as the kernel that it represents, however it is stored.

Reference:

- [Rigging the Lottery](https://arxiv.org/abs/1911.11134), appendices on FLOPs and sizes.
"""

import math

import keras
import numpy as np

from tf_rigl import distributions, methods, patterns
from tf_rigl._base.arguments import check_sparsity, unknown_name
from tf_rigl.accounting.calls import prepare
from tf_rigl.accounting.counting import MaskInfo, assemble
from tf_rigl.accounting.rows import LayerReport, Report
from tf_rigl.block_sparse import conversion
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

    The products that a custom layer runs are counted one by one. Only if it has
    `get_prunable_weights()`, each of these weights counts as used once at every position of the
    output, `prod(output.shape[1:-1])` times. If a `call` runs layers in its own loop
    (`keras.ops.while_loop`, `scan`), they count as often as Keras traces them; products of the
    loop itself are left out, and `Report.uncounted` names the layer.

    A model without `call`, such as a GAN, counts as one pass through each network in it.

    Frozen weights without zeros do not count in the sparsity. `Report.unmasked` names them, and
    other weights that have no mask.

    Args:
        model: a `keras.Model`, sparse or not. It is not changed.
        input_shape: tuple of int without the batch axis. For several inputs, a list or a dict
            of such tuples; the keys are the names of the inputs or of the arguments of
            `call`. Needed if the model is not built. Defaults to the shape that the model was
            built for. Axes that this leaves free (`None`) count as 224 in images (inputs of
            four axes), else as 128; `Report.assumed_shapes` says so.

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
        weights = masks.find(model)
        masks.warn_of_strays(weights, stacklevel=2)
        for item in weights:
            info = MaskInfo(item.present(), item.compute, item.pattern, item.path)
            infos[id(item.weight)] = info
    else:
        for found in maskable.find(model, include_self=False):
            values = keras.ops.convert_to_numpy(found.weight)
            nnz = int(np.count_nonzero(values))
            if values.size - nnz < _CHANCE * values.size:
                nnz = values.size
            if nnz < values.size or not found.is_frozen:
                infos[id(found.weight)] = MaskInfo(nnz)
    return assemble(model, inner, arguments, input_shape, infos)


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
            infos[id(each.weight)] = MaskInfo(nonzeros, actual, target.pattern)
    return assemble(model, inner, arguments, input_shape, infos)


def train_flops(report, method="rigl", *, steps=None) -> float:
    """Returns the FLOPs of one training step on one example, by the RigL paper's formulas.

    A backward pass costs twice as much as a forward pass. Activations do not count.

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


def _check_model(model):
    if not isinstance(model, keras.Model):
        raise ValueError(
            "Argument `model` must be a `keras.Model`. "
            f"Received: model={model!r} (of type {type(model)})"
        )
