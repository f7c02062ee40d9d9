"""Checks the model and makes the step and the plan, before the first step of a run of `fit`."""

import functools
import warnings

import tensorflow as tf

from tf_rigl._base import keras_internals, workers
from tf_rigl.training import sharing, slots
from tf_rigl.training.moment import set_now
from tf_rigl.training.own_step import OwnStep, optimizers_of, without_decorator
from tf_rigl.training.plan import Plan
from tf_rigl.training.step import Record, Step
from tf_rigl.weights import ends
from tf_rigl.weights.masked_layer import MaskedLayer


def begin(model, iterator):
    """Checks a model and makes its step and its plan; returns an iterator over all batches."""
    if not model.built:
        iterator = _build_on(model, iterator)
    start(model, functools.partial(any_step, model))
    return iterator


def start(model, make):
    """Checks a built model, and sets the step and the plan of its loop.

    Args:
        model: `tf_rigl.SparseModel`.
        make: function of the list of the model's sparse weights that returns a `Step` or an
            `OwnStep`.
    """
    loop = model._sparse_loop
    weights = model.masked_weights
    if not weights:
        raise ValueError(
            "The model has no masked weights: wrap layers in `tf_rigl.MaskedLayer`, or make "
            "the model with `tf_rigl.sparsify`. (A copy by `keras.models.clone_model` has none: "
            "save and load the model instead.)"
        )
    check_length(model)
    _check_initial_masks(model, weights)
    _check_goes_with_method(model.method, weights)
    workers.check_equal(model)
    model._add_state()
    step = make(weights)
    cautions = (weight.caution(each) for weight in weights for each in step.optimizers)
    for caution in dict.fromkeys(cautions):
        if caution is not None:
            warnings.warn(caution, stacklevel=2)
    # Weights may have been set, and the optimizer used, since the last run.
    for record in step.records:
        record.weight.zero_masked(record.weight.weight)
        for slot in record.slots:
            record.weight.zero_masked(slot.variable, slot.empty)
    step.settle()
    sharing.join(loop, step)
    loop.step = step
    loop.plan = Plan(model.method, ends.marked(model, weights), loop.length, loop.traces.unreached)


def run_step(model, data, moment):
    """Runs the `train_step` of a model on a batch, ordinarily or as an update.

    Args:
        model: a compiled `tf_rigl.SparseModel`.
        data: a batch.
        moment: `tf_rigl.training.moment.Moment`.

    Returns:
        What `train_step` returns.
    """
    with set_now(model, moment):
        if not model._has_own_step:
            return model.train_step(data)
        step = model._sparse_loop.step or any_step(model, model.masked_weights)
        return step.run(without_decorator(model.train_step), (data,), moment)


def any_step(model, weights):
    """Makes the step of a compiled model: an `OwnStep` if its class defines `train_step`."""
    if not model._has_own_step:
        return make_step(model, weights)
    model._check_own_step()
    optimizers = optimizers_of(model)
    if not optimizers:
        raise ValueError(
            "No optimizer was found in the attributes of the model, so its own `train_step` "
            f"cannot train sparse. Compile it with an optimizer. Received: model={model!r}"
        )
    return OwnStep(weights, model.method, optimizers, model.seed, model._sparse_loop.traces)


def make_step(model, weights=None) -> Step:
    """Makes the step of a compiled and built model, and builds its optimizer if needed."""
    weights = model.masked_weights if weights is None else weights
    optimizer = model.optimizer
    # Within a replica of a strategy the optimizer builds itself when it is applied.
    within = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
    if not within:
        model.build_optimizer()
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
    if not isinstance(step, Step):
        return False
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
    model._build_on(data)
    return iterator


def check_length(model):
    """Raises if the method needs the length of the run, and it is unknown."""
    if model.method.needs_length and model._sparse_loop.length.steps is None:
        raise ValueError(
            "A float `end_step` needs a training run of known length: `fit` with a data set "
            "whose number of batches is known (or `steps_per_epoch`). Pass `end_step` as an "
            f"integer, a step, instead. Received: method={model.method!r}"
        )


def _check_initial_masks(model, weights):
    """Raises if masks start dense and the method sparse, or the reverse."""
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
    units = {weight.path: weight.pattern.units(weight.shape) for weight in weights}
    thinned = [weight for weight in weights if weight.target_active() < units[weight.path]]
    if thinned and not whole and all(each.active() == units[each.path] for each in thinned):
        raise ValueError(
            f"{name} begins with sparse weights, but all masks of the model are ones, as in a copy "
            "by `keras.models.clone_model`. Make the model with `tf_rigl.sparsify`, or load a file."
        )


def _check_goes_with_method(method, weights):
    """Raises if the method cannot change the masks of layers made by hand."""
    for weight in weights:
        weight.check(method)
        suited = method.suited(weight.pattern) if weight.is_sparse else weight.pattern
        if str(suited) != str(weight.pattern):
            raise ValueError(
                f"Argument `pattern` must be '{suited}' with {type(method).__name__}. Received: "
                f"pattern='{weight.pattern}' of {weight.path!r}"
            )
    if method.scope != "global":
        return
    found = {weight.pattern for weight in weights if weight.is_sparse}
    names = sorted({str(pattern) for pattern in found})
    if len(names) > 1 or any(pattern.constant_fan_in for pattern in found):
        raise ValueError(
            "Argument `pattern` must be the same in all weights, and without a constant fan-in, "
            f"with `scope='global'`. Received: {names}"
        )
