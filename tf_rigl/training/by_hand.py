"""`training_step`: sparse training in a loop that the user writes."""

import keras
import tensorflow as tf

from tf_rigl._base.arguments import check_integer
from tf_rigl.training import cautions, loop
from tf_rigl.training.begin import check_length, start
from tf_rigl.training.own_step import OwnStep, without_decorator
from tf_rigl.training.plan import Length
from tf_rigl.training.sparse_model import SparseModel


def training_step(model, step, optimizer, *, steps=None, run_eagerly=False, jit_compile=None):
    """Makes the step of a training loop of your own keep and move masks.

    The step runs as written. Where it applies the optimizer, the gradients of sparse weights
    are masked; at an update step the masks change there instead, by the method of the model.

    Args:
        model: a built `tf_rigl.SparseModel`.
        step: function of a batch that computes gradients of `model.trainable_variables` and
            applies the optimizer (`apply` or `apply_gradients`). It may be a `tf.function`.
            It is compiled here, once for ordinary steps and once for update steps. It may call
            `strategy.run` of a `tf.distribute` strategy: then first build the optimizer in the
            scope of the strategy.
        optimizer: the `keras.optimizers.Optimizer` that `step` applies, or a list of several.
        steps: int, the number of batches of the run. A method with a float `end_step` needs it.
        run_eagerly: bool, whether to run `step` without compiling it.
        jit_compile: bool, whether XLA compiles the steps. Defaults to what TensorFlow does.

    Returns:
        A function with the arguments and the results of `step`. Each call is one training step
        and adds 1 to `model.step`.

    Raises:
        ValueError: if `model` is not a built `SparseModel`, `optimizer` is not an optimizer, or
            the method needs `steps`.

    Example:

    >>> sparse = tf_rigl.sparsify(model, tf_rigl.methods.RigL(update_interval=5), seed=0)
    >>> optimizer = keras.optimizers.Adam()
    >>> loss_function = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    >>> def step(images, labels):
    ...     with tf.GradientTape() as tape:
    ...         loss = loss_function(labels, sparse(images, training=True))
    ...     gradients = tape.gradient(loss, sparse.trainable_variables)
    ...     optimizer.apply(gradients, sparse.trainable_variables)
    ...     return loss
    >>> train = tf_rigl.training_step(sparse, step, optimizer, steps=20)
    >>> for _ in range(20):
    ...     loss = train(x[:32], y[:32])
    >>> sparse.step
    20

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), algorithm 1.
    """
    optimizers = _check(model, step, optimizer)
    if steps is not None:
        check_integer("steps", steps, 1)
    function = without_decorator(step)
    state = loop.of(model)
    state.fresh()
    first_step = model.step
    state.length = Length(first_step, steps)
    check_length(model)
    cautions.before(model)

    def make(weights):
        return OwnStep(weights, model.method, optimizers, model.seed, state.traces)

    def run(batch, moment):
        arguments, by_name = batch
        return state.step.run(function, arguments, moment, by_name)

    def compiled(body, ahead):
        del ahead
        if run_eagerly:
            return body
        return tf.function(body, autograph=False, jit_compile=jit_compile)

    kinds = loop.Steps(model, run, compiled)
    last = None  # The `OwnStep` that the last call has used.

    def train(*args, **kwargs):
        nonlocal last
        if last is None or state.plan is None or state.step is not last:
            # `fit` may have run since.
            state.length = Length(first_step, steps)
            start(model, make)
            last = state.step
        number = model.step
        result = kinds.run((args, kwargs), number)
        state.steps_taken = number + 1
        return result

    return train


def _check(model, step, optimizer) -> list:
    """Raises if an argument of `training_step` is wrong; returns the optimizers."""
    if not isinstance(model, SparseModel) or not model.masked_weights:
        raise ValueError(
            "Argument `model` must be a `tf_rigl.SparseModel` that is built: make it with "
            f"`tf_rigl.sparsify`, and call it on data. Received: model={model!r}"
        )
    if not callable(step):
        raise ValueError(f"Argument `step` must be a function. Received: step={step!r}")
    optimizers = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    if not optimizers or not all(isinstance(o, keras.optimizers.Optimizer) for o in optimizers):
        raise ValueError(
            "Argument `optimizer` must be a `keras.optimizers.Optimizer`, or a list of them. "
            f"Received: optimizer={optimizer!r}"
        )
    if model.method.trained_state is not None:
        raise ValueError(
            f"{type(model.method).__name__} trains other variables than the weights, which only "
            f"`fit` can do. Received: model={model!r}"
        )
    return optimizers
