"""What happens on the host around the compiled steps of a `SparseModel`.

The step counter is a Python integer: from it the host chooses, for each batch, which of
the compiled steps to run, so none of them holds a conditional.
"""

import dataclasses
import warnings

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import reduce_per_replica

from tf_rigl import _tensors, optimizers
from tf_rigl.masked_layer import MaskedLayer


@dataclasses.dataclass
class Run:
    """What a model knows of the present run of `fit`; nothing of it is saved."""

    first_step: int = 0
    steps: int | None = None  # How many it will have in all, if that is known.
    items: list = dataclasses.field(default_factory=list)  # The masked weights.
    active: list | None = None  # Units active in each masked weight; None: to be counted.
    slots: dict = dataclasses.field(default_factory=dict)  # id(weight) -> list of Slot.
    seen: tf.Variable | None = None  # Batches seen by executions of several steps at once.


class RunLength(keras.callbacks.Callback):
    """Tells the model how many steps `fit` will run."""

    def __init__(self, initial_epoch):
        super().__init__()
        self.initial_epoch = initial_epoch

    def on_train_begin(self, logs=None):
        model, steps = self.model, self.params.get("steps")
        if steps is None:
            model._run.steps = None
            if model.method.needs_length:
                raise ValueError(
                    "A float `end_step` needs a data set of known length. Pass `end_step` as an "
                    "integer, a step, or give `steps_per_epoch` to `fit`. "
                    f"Received: method={model.method!r}"
                )
            return
        # Epochs that an earlier run has done belong to the same schedule. Keras keeps in
        # `_initial_epoch` where `BackupAndRestore` goes on.
        initial_epoch = getattr(model, "_initial_epoch", None) or self.initial_epoch
        model._run.first_step = max(0, model.step - initial_epoch * steps)
        model._run.steps = self.params["epochs"] * steps
        method, run = model.method, model._run
        if not method.needs_length or model.step > run.first_step:
            return
        if method.next_update(model.step, run.first_step, run.steps) is None:
            warnings.warn(
                f"The masks will not change in this run of {run.steps} steps: it ends before "
                "the first update. Train longer, or pass a smaller `update_interval` (for "
                f"pruning: `frequency`). Received: method={method!r}",
                stacklevel=2,
            )


def train_function(model, several=None):
    """The function that `fit` calls for each execution.

    Args:
        model: a compiled `tf_rigl.SparseModel`.
        several: the function that runs `steps_per_execution` ordinary steps at once, or
            None.

    Returns:
        A function of an iterator over batches that returns logs.
    """
    model._run.active = None  # There may be a new optimizer.
    steps = _Steps(model)

    def execute(iterator):
        run = model._run
        if run.active is None:
            iterator = _begin(model, iterator)
        numbers = range(model.step, model.step + model.steps_per_execution)
        if several is not None and all(_is_ordinary(model, step) for step in numbers):
            before = int(run.seen)
            try:
                return several(iterator)
            finally:
                model._step += int(run.seen) - before
        logs = None
        for step in numbers:
            try:
                logs = steps.run(iterator, step)
            except (StopIteration, tf.errors.OutOfRangeError):
                if logs is None:
                    raise
                break
            model._step = step + 1
        return logs

    return execute


class _Steps:
    """The compiled steps of a model, one of which is run on each batch."""

    def __init__(self, model):
        self.model = model
        self.ordinary = _compiled(model, model.train_step)
        self.observing = _compiled(model, model.observing_step)
        self.update = _compiled(model, model.update_step)

    def run(self, iterator, step):
        """Runs the step of this number on the next batch; returns its logs."""
        run = self.model._run
        counts, observation = _plan(self.model, step), _observation(self.model, step)
        factors = () if observation is None else (tf.constant(observation, tf.float32),)
        if counts is None:
            return self.observing(iterator, *factors) if factors else self.ordinary(iterator)
        numbers = tf.constant(counts, tf.int32), tf.constant(step, tf.int32)
        logs = self.update(iterator, *numbers, *factors)
        planned = [sum(each) for each in counts]
        # Where counts change, frozen weights keep theirs, and a common pool divides anew.
        run.active = planned if planned == run.active else _count_active(run.items)
        return logs


def _plan(model, step):
    run = model._run
    return model.method.plan(step, run.active, run.first_step, run.steps, run.items)


def _observation(model, step):
    run = model._run
    return model.method.observation(step, run.first_step, run.steps)


def _is_ordinary(model, step):
    return _plan(model, step) is None and _observation(model, step) is None


def _count_active(items):
    return [int(item.pattern.active(tf.convert_to_tensor(item.mask))) for item in items]


def _compiled(model, step_function):
    """A function that takes a batch off an iterator and runs a step on it."""

    def on_batch(data, *args):
        strategy = model.distribute_strategy
        outputs = strategy.run(step_function, args=(data, *args))
        return reduce_per_replica(outputs, strategy, reduction="auto")

    def on_iterator(iterator, *args):
        return on_batch(_tensors.without_optionals(iterator.get_next()), *args)

    if not model.run_eagerly:
        on_batch = tf.function(
            on_batch, autograph=False, reduce_retracing=True, jit_compile=model.jit_compile
        )
        on_iterator = tf.function(on_iterator, autograph=False, reduce_retracing=True)

    def run(iterator, *args):
        if isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
            return on_iterator(iterator, *args)
        return on_batch(_tensors.without_optionals(next(iterator)), *args)

    return run


def _begin(model, iterator):
    """What has to stand before the first step of a run; returns the iterator."""
    run, method = model._run, model.method
    if not model.built:
        iterator = _build_on(model, iterator)
    run.items = items = model.masked_weights
    if not items:
        raise ValueError(
            "The model has no masked weights: wrap layers in `tf_rigl.MaskedLayer`, or make "
            "the model with `tf_rigl.sparsify`."
        )
    if method.needs_length and run.steps is None:
        raise ValueError(
            "A float `end_step` needs a training run of known length: `fit` with a data set "
            "whose number of batches is known (or `steps_per_epoch`). Pass `end_step` as an "
            f"integer, a step, instead. Received: method={method!r}"
        )
    if method.begins_dense:
        _check_begins_dense(model)
    with model.distribute_strategy.scope():
        if not model.optimizer.built:
            model.optimizer.build(model.trainable_variables)
        for masks in model._mask_layers():
            masks.add_state(method.state_names)
    trainable = {id(w) for w in model.trainable_variables}
    run.slots = optimizers.find_slots(model.optimizer, model.trainable_variables)
    # Weights may have been set, and the optimizer used, since the last run.
    for item in items:
        if id(item.weight) in trainable and item.is_sparse:
            item.zero_masked(item.weight)
            for slot in run.slots.get(id(item.weight), ()):
                item.zero_masked(*slot)
    run.active = _count_active(items)
    return iterator


def _build_on(model, iterator):
    """Builds a model on the form of the first batch; returns the iterator."""
    if isinstance(iterator, tf.data.Iterator):
        data = iterator.element_spec
    else:
        data = next(iterator)
        rest = iterator
        iterator = (batch for source in ([data], rest) for batch in source)
    x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
    model(_tensors.symbolic(x))
    return iterator


def _check_begins_dense(model):
    """Raises if a layer drew a random mask where the method has to begin with all weights."""
    for layer in model._flatten_layers():
        if isinstance(layer, MaskedLayer) and layer.initial_mask != "ones":
            raise ValueError(
                f"{type(model.method).__name__} begins with dense weights, but the mask of layer "
                f"{layer.name!r} was drawn at random when it was built. Pass "
                "`initial_mask='ones'` to `tf_rigl.MaskedLayer`."
            )
