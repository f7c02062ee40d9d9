"""Checks the model and makes the step and the plan, before the first step of a run of `fit`."""

import warnings

import keras
import tensorflow as tf

from tf_rigl._base import keras_internals, tensors, workers
from tf_rigl.training import slots
from tf_rigl.training.plan import Plan
from tf_rigl.training.step import Record, Step
from tf_rigl.weights.masked_layer import MaskedLayer


def begin(model, iterator):
    """Checks a model and makes its step and its plan; returns an iterator over all batches."""
    loop = model._sparse_loop
    if not model.built:
        iterator = _build_on(model, iterator)
    weights = model.masked_weights
    if not weights:
        raise ValueError(
            "The model has no masked weights: wrap layers in `tf_rigl.MaskedLayer`, or make "
            "the model with `tf_rigl.sparsify`."
        )
    check_length(model)
    _check_initial_masks(model)
    _check_goes_with_method(model.method, weights)
    workers.check_equal(model)
    for caution in dict.fromkeys(weight.caution(model.optimizer) for weight in weights):
        if caution is not None:
            warnings.warn(caution, stacklevel=2)
    model._add_state()
    step = make_step(model, weights)
    # Weights may have been set, and the optimizer used, since the last run.
    for record in step.records:
        record.weight.zero_masked(record.weight.weight)
        for slot in record.slots:
            record.weight.zero_masked(*slot)
    step.settle()
    loop.step = step
    loop.plan = Plan(model.method, weights, loop.length, loop.traces.unreached)
    return iterator


def make_step(model, weights=None) -> Step:
    """Makes the step of a compiled and built model, and builds its optimizer if needed."""
    weights = model.masked_weights if weights is None else weights
    optimizer = model.optimizer
    # Within a replica of a strategy the optimizer builds itself when it is applied.
    within = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    if not optimizer.built and not within:
        with model.distribute_strategy.scope():
            optimizer.build(model.trainable_variables)
    variables = model._differentiated()
    places = {id(variable): place for place, variable in enumerate(variables)}
    found = slots.find_slots(optimizer, model.trainable_variables)
    records = [
        Record(number, weight, tuple(found.get(id(weight.weight), ())), places[id(weight.weight)])
        for number, weight in enumerate(weights)
        if weight.is_sparse and id(weight.weight) in places
    ]
    traces = model._sparse_loop.traces
    return Step(
        model._sparse_forward, model.method, variables, records, optimizer, model.seed, traces
    )


def is_current(step, model) -> bool:
    """Returns True if a step trains what the model trains now, by its method and optimizer."""
    variables = model._differentiated()
    same = step.optimizer is model.optimizer and step.method is model.method
    return (
        same
        and len(variables) == len(step.variables)
        and all(one is other for one, other in zip(variables, step.variables, strict=True))
    )


def _build_on(model, iterator):
    """Builds a model for the shapes of the first batch; returns an iterator over all batches."""
    if isinstance(iterator, tf.data.Iterator):
        data = iterator.element_spec
    else:
        data = next(iterator)
        rest = iterator
        iterator = (batch for source in ([data], rest) for batch in source)
    x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    model(tensors.symbolic(x))
    return iterator


def check_length(model):
    """Raises if the method needs the length of the run, and it is unknown."""
    if model.method.needs_length and model._sparse_loop.length.steps is None:
        raise ValueError(
            "A float `end_step` needs a training run of known length: `fit` with a data set "
            "whose number of batches is known (or `steps_per_epoch`). Pass `end_step` as an "
            f"integer, a step, instead. Received: method={model.method!r}"
        )


def _check_initial_masks(model):
    """Raises if layers wrapped by hand start dense and the method sparse, or the reverse."""
    method = model.method
    name, whole = type(method).__name__, method.begins_dense or method.trained_state is not None
    for layer in keras_internals.all_layers(model):
        if not isinstance(layer, MaskedLayer) or layer.sparsity == 0:
            continue
        if whole and layer.initial_mask != "ones":
            raise ValueError(
                f"{name} begins with dense weights, but the mask of layer {layer.name!r} was "
                "drawn at random when it was built. Pass `initial_mask='ones'` to "
                "`tf_rigl.MaskedLayer`."
            )
        dense = model.sparsity == 0  # Otherwise the layers have been pruned by now.
        if not whole and layer.initial_mask == "ones" and dense:
            raise ValueError(
                f"{name} begins with sparse weights, but layer {layer.name!r} is dense: it was "
                "made with `initial_mask='ones'`, which is for methods that prune."
            )


def _check_goes_with_method(method, weights):
    """Raises if the method cannot change the masks of layers made by hand."""
    for weight in weights:
        weight.check(method)
    if method.scope != "global":
        return
    found = {weight.pattern for weight in weights if weight.is_sparse}
    names = sorted({str(pattern) for pattern in found})
    if len(names) > 1 or any(pattern.constant_fan_in for pattern in found):
        raise ValueError(
            "Argument `pattern` must be the same in all weights, and without a constant fan-in, "
            f"with `scope='global'`. Received: {names}"
        )
