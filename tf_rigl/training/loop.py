"""The host side of training: it chooses and runs the compiled steps of a `SparseModel`.

The step counter is a Python integer. For each batch the host chooses a compiled step by it,
so no compiled step holds a conditional.
"""

import functools
import weakref

import keras
import tensorflow as tf

from tf_rigl._base import keras_internals, notices, tensors
from tf_rigl.training import cautions, sharing
from tf_rigl.training.begin import begin, check_length, run_step
from tf_rigl.training.moment import ORDINARY, Moment
from tf_rigl.training.plan import Length
from tf_rigl.training.step import Traces


class Loop:
    """The training state of a model; only `steps_taken` is saved.

    Attributes:
        steps_taken: int, the batches that training has seen: `SparseModel.step`.
        length: `Length` of the present run of `fit`.
        plan: `Plan` of the run; None until its first step, or if masks were set since.
        step: `Step` that the compiled functions trace, or None before the first step.
        traces: `Traces` of the compiled functions.
        updates: int, the update steps so far in this process.
        callbacks: list of callbacks of the library that `fit` appends to the user's.
        seen: `tf.Variable` that counts batches if several steps run at once, or None.
        compiled_for: list, the optimizers and settings of the train function of a wrapped model.
        loading: bool, whether a file is being loaded: masks may not fit the weights yet.
        optimizers: `weakref.WeakSet` of the optimizers that have trained the model.
        warns_of_others: bool, whether to warn of a loop of others that trains block-sparse weights.
        listeners: list of functions that are called after each update of this run of `fit`, with
            the number of steps taken by then.
    """

    def __init__(self):
        self.steps_taken = 0
        self.length = Length()
        self.plan = None
        self.step = None
        self.traces = Traces()
        self.updates = 0
        self.callbacks = []
        self.seen = None
        self.loading = False
        self.compiled_for = []
        self.optimizers = weakref.WeakSet()
        self.warns_of_others = True
        self.listeners = []

    def fresh(self):
        """Forgets plan, step and traces: there may be a new optimizer or method."""
        self.plan, self.step, self.traces = None, None, Traces()


def of(model) -> Loop:
    """Returns the loop of a `SparseModel`."""
    return model._sparse_loop


class RunLength(keras.callbacks.Callback):
    """Sets the length of the run in the model's loop."""

    def __init__(self, initial_epoch):
        super().__init__()
        self.initial_epoch = initial_epoch

    def on_train_begin(self, logs=None):
        """Computes the first step and the number of steps of the run, and warns if it is short."""
        self._set_length()
        cautions.before(self.model)

    def on_train_end(self, logs=None):
        """Warns if the run ended before the model was pruned."""
        cautions.after(self.model)

    def _set_length(self):
        model, steps = self.model, self.params.get("steps")
        length = of(model).length
        if steps is None:
            length.steps = None
            check_length(model)
            return
        # Epochs that an earlier run has done belong to the same schedule.
        initial_epoch = keras_internals.initial_epoch(model) or self.initial_epoch
        done = initial_epoch * steps + length.skip
        length.first_step = max(0, model.step - done)
        length.steps = self.params["epochs"] * steps
        method = model.method
        if not method.needs_length or model.step > length.first_step:
            return
        if method.next_update(model.step, length.first_step, length.steps) is None:
            notices.warn(
                f"The masks will not change in this run of {length.steps} steps: it ends before "
                "the first update. Train longer, or pass a smaller `update_interval` (for "
                f"pruning: `frequency`). Received: method={method!r}"
            )


def with_own(callbacks, model, initial_epoch):
    """Returns the callbacks of a call of `fit`, with those that the model adds.

    Args:
        callbacks: the argument of `fit`.
        model: `tf_rigl.SparseModel`.
        initial_epoch: int, the argument of `fit`.
    """
    of(model).listeners.clear()
    own, watcher = of(model).callbacks, RunLength(initial_epoch)
    if not isinstance(callbacks, keras.callbacks.CallbackList):
        return [*(keras.tree.flatten(callbacks) if callbacks else []), *own, watcher]
    watcher.set_model(model)
    watcher.set_params(callbacks.params)
    # The list may come from an earlier run: its `RunLength` is replaced.
    others = [c for c in callbacks.callbacks if not isinstance(c, RunLength)]
    own = [c for c in own if c not in others]
    for callback in own:
        callback.set_model(model)
    callbacks.callbacks[:] = [*others, *own, watcher]
    return callbacks


def train_function(model, several=None):
    """Makes the function that `fit` calls for each execution.

    Args:
        model: a compiled `tf_rigl.SparseModel`.
        several: the function that runs `steps_per_execution` ordinary steps at once, or
            None.

    Returns:
        A function of an iterator over batches that returns logs.
    """
    loop = of(model)
    loop.fresh()
    # If the graph takes the batch itself and the data have ended, the rest of the graph may
    # still have run. Ordinary steps of Keras have that problem too.
    ahead = model.steps_per_execution > 1
    run = functools.partial(run_step, model)
    steps = Steps(model, run, functools.partial(_compiled, model), ahead)

    def execute(iterator):
        if loop.plan is None:
            iterator = begin(model, iterator)
        left = _skip(loop.length, iterator, model.steps_per_execution)
        if not left:
            return model.get_metrics_result()  # Callbacks need the names of the metrics.
        numbers = range(model.step, model.step + left)
        whole = several is not None and left == model.steps_per_execution
        if whole and all(map(loop.plan.is_ordinary, numbers)):
            before = _number(loop.seen)
            try:
                return several(iterator)
            finally:
                loop.steps_taken += _number(loop.seen) - before
        return _each(numbers, lambda step: steps.run(iterator, step), loop)

    return execute


def _number(variable):
    """Returns the value of an integer variable, which may lie on several replicas."""
    return int(tf.convert_to_tensor(variable))


def _skip(length, iterator, left):
    """Skips batches that an earlier run has trained on; returns how many of `left` remain."""
    while length.skip and left:
        try:
            next(iterator)
        except (StopIteration, tf.errors.OutOfRangeError):
            length.skip = 0  # The skipped batches belong to this epoch only.
            raise
        length.skip, left = length.skip - 1, left - 1
    return left


def _each(numbers, run, loop=None):
    """Runs steps one by one, and returns the logs of the last one before the data ended."""
    logs = None
    for number in numbers:
        try:
            logs = run(number)
        except (StopIteration, tf.errors.OutOfRangeError):
            if logs is None:
                raise
            break
        if loop is not None:
            loop.steps_taken = number + 1
    return logs


def one_by_one(model, step_function):
    """Makes a function that runs the steps of an execution one by one.

    TensorFlow cannot run a loop of steps that sum over several processes.
    """
    run = _compiled(model, step_function, ahead=True)

    def execute(iterator):
        return _each(range(model.steps_per_execution), lambda _: run(iterator))

    return execute


class Steps:
    """The compiled steps of a model: each batch goes through one of them.

    Args:
        model: `tf_rigl.SparseModel`.
        compiled: function of a step (itself a function of a batch and further tensors) and
            `ahead`, see `_compiled`, that returns the compiled step.
        ahead: bool, of ordinary steps.
    """

    def __init__(self, model, run, compiled, ahead=True):
        self.model = model
        self.ordinary = compiled(lambda data: run(data, ORDINARY), ahead)
        self.observing = compiled(lambda data, past: run(data, Moment(past=past)), ahead)
        self.update = compiled(lambda data, *numbers: run(data, Moment(*numbers)), True)
        self.constants = {}

    def _constant(self, number):
        """Returns a number as a tensor, cached: a method uses few different numbers."""
        if number not in self.constants:
            self.constants[number] = tf.constant(number, tf.float32)
        return self.constants[number]

    def run(self, batch, step):
        """Runs step number `step` on a batch, or on the next batch of an iterator."""
        loop = of(self.model)
        plan = loop.plan
        counts, observation = plan.counts(step), plan.observation(step)
        if counts is not None and observation is None and "gradient" in self._state_names:
            observation = 0.5  # A late update uses the running mean and its own gradient.
        if counts is None and self.model.method.trained_state is None:
            return self._without_update(batch, observation)
        with sharing.followed(loop):
            if counts is None:
                return self._without_update(batch, observation)
            past = () if observation is None else (self._constant(observation),)
            numbers = tf.constant(counts, tf.int32), tf.constant(step, tf.int32)
            logs = self.update(batch, *numbers, *past)
        loop.updates += 1
        plan.updated(counts)
        for listen in loop.listeners:
            listen(step + 1)
        return logs

    def _without_update(self, batch, observation):
        if observation is None:
            return self.ordinary(batch)
        return self.observing(batch, self._constant(observation))

    @property
    def _state_names(self):
        return self.model.method.state_names


def _compiled(model, step_function, ahead):
    """Makes a function that takes a batch from an iterator and runs a step on it.

    Args:
        model: `tf_rigl.SparseModel`.
        step_function: function of a batch.
        ahead: bool, whether to take the batch before calling the compiled function.
    """

    def on_batch(data, *args):
        strategy = model.distribute_strategy
        outputs = strategy.run(step_function, args=(data, *args))
        return tensors.mean_over_replicas(outputs, strategy)

    def on_iterator(iterator, *args):
        return on_batch(tensors.without_optionals(iterator.get_next()), *args)

    if not model.run_eagerly:
        # TensorFlow counts traces by the code of a function. It would add up the traces of all
        # models, and warn of too many. A partial has no code.
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
