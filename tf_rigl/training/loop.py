"""What happens on the host around the compiled steps of a `SparseModel`.

The step counter is a Python integer: from it the host chooses, for each batch, which of
the compiled steps to run, so none of them holds a conditional.
"""

import dataclasses
import functools
import math
import warnings

import keras
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import reduce_per_replica

from tf_rigl._base import tensors, workers
from tf_rigl.training import slots
from tf_rigl.weights.masked_layer import MaskedLayer

# More than the halvings from the largest loss scale to one that fits.
_ATTEMPTS = 32


@dataclasses.dataclass
class Run:
    """What a model knows of the present run of `fit`; nothing of it is saved."""

    first_step: int = 0
    steps: int | None = None  # How many it will have in all, if that is known.
    skip: int = 0  # Batches to be taken and left: an earlier run has trained on them.
    items: list = dataclasses.field(default_factory=list)  # The masked weights.
    active: list | None = None  # Units active in each masked weight; None: to be counted.
    failures: int = 0  # Updates in a row after which masks were as before.
    slots: dict = dataclasses.field(default_factory=dict)  # id(weight) -> list of Slot.
    updates: int = 0  # Update steps, for callbacks that want to see what they did.
    seen: tf.Variable | None = None  # Batches seen by executions of several steps at once.
    callbacks: list = dataclasses.field(
        default_factory=list
    )  # Of the library, beside those of `fit`.
    seal: keras.layers.Layer | None = None  # Checks what files say of the model.
    compiled: dict = dataclasses.field(default_factory=dict)  # (id(method), shape) -> function.

    def update_function(self, method, shape):
        """`Method.update` for weights of a shape: compiled once for all of them, and for good."""
        key = id(method), shape
        if key not in self.compiled:
            self.compiled[key] = method.update_function(math.prod(shape))
        return self.compiled[key]

    def leave_alone(self, numbers):
        """Has plans made as if these weights stayed dense: no gradient reaches them."""
        for number in numbers:
            self.items[number] = dataclasses.replace(self.items[number], target_sparsity=0.0)


class RunLength(keras.callbacks.Callback):
    """Tells the model how many steps `fit` will run."""

    def __init__(self, initial_epoch):
        super().__init__()
        self.initial_epoch = initial_epoch

    def on_train_begin(self, logs=None):
        model, steps = self.model, self.params.get("steps")
        if steps is None:
            model._run.steps = None
            _check_length(model)
            return
        # Epochs that an earlier run has done belong to the same schedule. Keras keeps in
        # `_initial_epoch` where `BackupAndRestore` goes on.
        initial_epoch = getattr(model, "_initial_epoch", None) or self.initial_epoch
        done = initial_epoch * steps + model._run.skip
        model._run.first_step = max(0, model.step - done)
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
    model._run.active, model._run.compiled = None, {}  # There may be a new optimizer, or method.
    steps = _Steps(model)

    def execute(iterator):
        run = model._run
        if run.active is None:
            iterator = _begin(model, iterator)
        left = model.steps_per_execution
        while run.skip and left:
            try:
                next(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                run.skip = 0  # They are this epoch's.
                raise
            run.skip, left = run.skip - 1, left - 1
        if not left:
            return model.get_metrics_result()  # Callbacks look for their names.
        numbers = range(model.step, model.step + left)
        whole = several is not None and left == model.steps_per_execution
        if whole and all(_is_ordinary(model, step) for step in numbers):
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


def one_by_one(model, step_function):
    """A function that runs the steps of an execution each by itself.

    TensorFlow cannot run a loop of steps at once that sum over several processes.
    """
    run = _compiled(model, step_function, ahead=True)

    def execute(iterator):
        logs = None
        for _ in range(model.steps_per_execution):
            try:
                logs = run(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                if logs is None:
                    raise
                break
        return logs

    return execute


class _Steps:
    """The compiled steps of a model, one of which is run on each batch."""

    def __init__(self, model):
        self.model = model
        # Where the batch is taken within the graph and there is none, the rest of the graph
        # may have run all the same. Keras has that for ordinary steps too.
        ahead = model.steps_per_execution > 1
        self.ordinary = _compiled(model, model.train_step, ahead)
        self.observing = _compiled(model, model.observing_step, ahead)
        self.update = _compiled(model, model.update_step, ahead=True)
        self.constants = {}

    def _constant(self, number):
        """A number as a tensor; the same ones come again and again."""
        if number not in self.constants:
            self.constants[number] = tf.constant(number, tf.float32)
        return self.constants[number]

    def run(self, iterator, step):
        """Runs the step of this number on the next batch; returns its logs."""
        run, method = self.model._run, self.model.method
        counts, observation = _plan(self.model, step), _observation(self.model, step)
        if counts is not None and observation is None and "gradient" in method.state_names:
            observation = 0.5  # An update that is late sees what has been kept as well.
        if counts is None:
            if observation is None:
                return self.ordinary(iterator)
            return self.observing(iterator, self._constant(observation))
        past = () if observation is None else (self._constant(observation),)
        numbers = tf.constant(counts, tf.int32), tf.constant(step, tf.int32)
        logs = self.update(iterator, *numbers, *past)
        run.updates += 1
        planned, before = [sum(each) for each in counts], run.active
        if planned != before:
            # Frozen weights keep theirs, and a common pool divides anew.
            run.active = _count_active(run.items)
            run.failures = run.failures + 1 if run.active == before else 0
            if run.failures == _ATTEMPTS:
                warnings.warn(
                    f"{type(method).__name__} cannot prune the model: no usable gradient has "
                    f"reached the weights in {_ATTEMPTS} attempts. They stay as they are.",
                    stacklevel=2,
                )
        return logs


def _plan(model, step):
    run = model._run
    if run.failures >= _ATTEMPTS:
        return None
    return model.method.plan(step, run.active, run.first_step, run.steps, run.items)


def _observation(model, step):
    run = model._run
    return model.method.observation(step, run.first_step, run.steps)


def _is_ordinary(model, step):
    return _plan(model, step) is None and _observation(model, step) is None


def _count_active(items):
    return [item.active() for item in items]


def _compiled(model, step_function, ahead):
    """A function that takes a batch off an iterator and runs a step on it.

    Args:
        model: the model.
        step_function: function of a batch.
        ahead: bool, whether to take the batch before the compiled function is called.
    """

    def on_batch(data, *args):
        strategy = model.distribute_strategy
        outputs = strategy.run(step_function, args=(data, *args))
        return reduce_per_replica(outputs, strategy, reduction="auto")

    def on_iterator(iterator, *args):
        return on_batch(tensors.without_optionals(iterator.get_next()), *args)

    if not model.run_eagerly:
        # By the code of a function TensorFlow would count all models' traces as one's, and
        # warn of too many; a partial has no code.
        on_batch = tf.function(
            functools.partial(on_batch),
            autograph=False,
            reduce_retracing=True,
            jit_compile=model.jit_compile,
        )
        on_iterator = tf.function(
            functools.partial(on_iterator), autograph=False, reduce_retracing=True
        )

    def run(iterator, *args):
        if not ahead and isinstance(
            iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)
        ):
            return on_iterator(iterator, *args)
        return on_batch(tensors.without_optionals(next(iterator)), *args)

    return run


def _begin(model, iterator):
    """What has to stand before the first step of a run; returns the iterator."""
    run = model._run
    if not model.built:
        iterator = _build_on(model, iterator)
    run.items = items = model.masked_weights
    if not items:
        raise ValueError(
            "The model has no masked weights: wrap layers in `tf_rigl.MaskedLayer`, or make "
            "the model with `tf_rigl.sparsify`."
        )
    _check_length(model)
    _check_initial_masks(model)
    _check_goes_with_method(model.method, items)
    workers.check_equal(model)
    if any(item.is_packed for item in items) and slots.fails_at_zero_blocks(model.optimizer):
        warnings.warn(
            "Adafactor gives NaN where all gradients of a block are zero, unless it is made with "
            "`epsilon_1=1e-12` or so.",
            stacklevel=2,
        )
    model._add_state()
    if not model.optimizer.built:
        with model.distribute_strategy.scope():
            model.optimizer.build(model.trainable_variables)
    trainable = {id(w) for w in model.trainable_variables}
    run.slots = slots.find_slots(model.optimizer, model.trainable_variables)
    # Weights may have been set, and the optimizer used, since the last run.
    for item in items:
        if id(item.weight) in trainable and item.is_sparse:
            item.zero_masked(item.weight)
            for slot in run.slots.get(id(item.weight), ()):
                item.zero_masked(*slot)
    model._follow_scores()
    run.active, run.failures = _count_active(items), 0
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
    model(tensors.symbolic(x))
    return iterator


def _check_length(model):
    """Raises if the method has to know how long the run is, and nobody does."""
    if model.method.needs_length and model._run.steps is None:
        raise ValueError(
            "A float `end_step` needs a training run of known length: `fit` with a data set "
            "whose number of batches is known (or `steps_per_epoch`). Pass `end_step` as an "
            f"integer, a step, instead. Received: method={model.method!r}"
        )


def _check_initial_masks(model):
    """Raises if layers wrapped by hand begin otherwise than the method does."""
    method = type(model.method).__name__
    for layer in model._flatten_layers():
        if not isinstance(layer, MaskedLayer) or layer.sparsity == 0:
            continue
        whole = model.method.begins_dense or model.method.trains_scores
        if whole and layer.initial_mask != "ones":
            raise ValueError(
                f"{method} begins with dense weights, but the mask of layer {layer.name!r} was "
                "drawn at random when it was built. Pass `initial_mask='ones'` to "
                "`tf_rigl.MaskedLayer`."
            )
        dense = model.sparsity == 0  # Otherwise they have been pruned by now.
        if not whole and layer.initial_mask == "ones" and dense:
            raise ValueError(
                f"{method} begins with sparse weights, but layer {layer.name!r} is dense: it was "
                "made with `initial_mask='ones'`, which is for methods that prune."
            )


def _check_goes_with_method(method, items):
    """Raises if layers made by hand are such that the method cannot change their masks."""
    if any(item.is_packed for item in items) and (method.begins_dense or method.state_names):
        raise ValueError(
            "Argument `method` must be one that begins sparse and keeps nothing of gradients "
            "('rigl', 'set' or 'static') where layers store their blocks. "
            f"Received: method={method!r}"
        )
    if method.scope != "global":
        return
    found = {item.pattern for item in items if item.is_sparse}
    names = sorted({str(pattern) for pattern in found})
    if len(names) > 1 or any(getattr(pattern, "constant_fan_in", False) for pattern in found):
        raise ValueError(
            "Argument `pattern` must be the same in all weights, and not one of a constant fan-in, "
            f"with `scope='global'`. Received: {names}"
        )
