"""`SparseModel`: a Keras model that trains sparse."""

import dataclasses
import inspect
import warnings

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.tensorflow.trainer import reduce_per_replica
from keras.src.models.functional import Functional

from tf_rigl import _tensors, maskable, methods, optimizers
from tf_rigl._arguments import resolve_seed
from tf_rigl.masks import MaskedWeight, Masks


@keras.saving.register_keras_serializable(package="tf_rigl")
class SparseModel(keras.Model):
    """A `keras.Model` whose training step keeps weights sparse and moves their masks.

    `tf_rigl.sparsify` makes one of any model. By hand, build a functional model of
    layers wrapped in `tf_rigl.MaskedLayer`, or subclass it, and call
    `super().__init__(method=...)`.

    A weight is exactly 0.0 wherever its mask is 0, after construction and after every
    training step. Forward passes therefore cost what they cost in Keras, and the
    gradient that comes out of them is the dense gradient. At an ordinary step it is
    masked before the optimizer sees it; at an update step the masks change *instead*
    of an optimizer step.

    Args:
        inputs, outputs, name: as in `keras.Model`, for a functional model.
        method: str or `tf_rigl.methods.Method`, how masks begin and change: "rigl",
            "set", "static".
        seed: int, for whatever the method draws at random. Defaults to one drawn from
            Python's `random`, which `keras.utils.set_random_seed` seeds.

    Example:

    >>> inputs = keras.Input((64,))
    >>> x = tf_rigl.MaskedLayer(keras.layers.Dense(32, activation="relu"))(inputs)
    >>> outputs = keras.layers.Dense(10)(x)
    >>> model = tf_rigl.SparseModel(inputs, outputs, method="rigl")
    >>> model.masked_weights[0].path
    'dense/kernel'

    Reference:

    - [Rigging the Lottery](https://arxiv.org/abs/1911.11134), algorithm 1.
    """

    def __new__(cls, *args, **kwargs):
        if cls is SparseModel and _has_graph(args, kwargs):
            cls = FunctionalSparseModel
        return super().__new__(cls, *args, **kwargs)

    def __init__(self, *args, method="rigl", seed=None, **kwargs):
        if _has_graph(args, kwargs) and not isinstance(self, Functional):
            raise TypeError(
                f"{type(self).__name__} is a subclass of `tf_rigl.SparseModel`: define its `call`, "
                "or pass inputs and outputs to `tf_rigl.SparseModel` itself."
            )
        method = methods.get(method)
        super().__init__(*args, **kwargs)
        self.method = method
        self.seed = resolve_seed(seed)
        self._step = 0
        self._run = _Run()

    # What the masks are.

    @property
    def masked_weights(self) -> list[MaskedWeight]:
        """The masked weights with their masks, in model order."""
        items, taken = [], set()
        for layer in self._flatten_layers(include_self=False):
            if isinstance(layer, Masks):
                layer.settle()
                for item in layer.items:
                    path = maskable.unique(item.path, taken)
                    items.append(dataclasses.replace(item, path=path))
        return items

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks as boolean arrays, by path."""
        return {item.path: item.mask.numpy() for item in self.masked_weights}

    @property
    def sparsity(self) -> float:
        """The fraction of zeros now in all maskable weights that were not excluded."""
        masks = self.masks.values()
        entries = sum(m.size for m in masks)
        return 1 - sum(np.count_nonzero(m) for m in masks) / entries if entries else 0.0

    @property
    def step(self) -> int:
        """How many batches training has seen; saved and restored with the model."""
        return self._step

    # How training runs.

    def fit(self, *args, **kwargs):
        """Trains the model; the arguments are those of `keras.Model.fit`."""
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        bound.apply_defaults()
        watcher = _RunLength(bound.arguments["initial_epoch"])
        callbacks = bound.arguments["callbacks"]
        if isinstance(callbacks, keras.callbacks.CallbackList):
            watcher.set_model(self)
            watcher.set_params(callbacks.params)
            # A list may be used again: its watcher of the last run goes.
            others = [c for c in callbacks.callbacks if not isinstance(c, _RunLength)]
            callbacks.callbacks[:] = [*others, watcher]
        else:
            callbacks = keras.tree.flatten(callbacks) if callbacks else []
            bound.arguments["callbacks"] = [*callbacks, watcher]
        self._run.active = None
        return super().fit(*bound.args, **bound.kwargs)

    def train_step(self, data):
        """An ordinary step: gradients are masked before the optimizer sees them."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        weights = self.trainable_weights
        y_pred, gradients = self._gradients(x, y, sample_weight, weights)
        items = {id(item.weight): item for item in self.masked_weights if _has_zeros(item)}
        masked = [
            _tensors.masked_gradient(g, items[id(w)].mask)
            if g is not None and id(w) in items
            else g
            for g, w in zip(gradients, weights, strict=True)
        ]
        if weights:
            self.optimizer.apply_gradients(zip(masked, weights, strict=True))
        # Some optimizers move weights without a gradient, and so may constraints.
        free = not optimizers.moves_only_by_gradient(self.optimizer)
        variables, values = [], []
        for item in (items[id(w)] for w in weights if id(w) in items and (free or w.constraint)):
            slots = self._run.slots.get(id(item.weight), ())
            for variable, empty in [(item.weight, 0.0), *slots]:
                variables.append(variable)
                value = tf.convert_to_tensor(variable.value)
                values.append(_tensors.where(item.mask, value, empty))
        _tensors.assign(variables, values)
        if self._run.seen is not None:
            self._run.seen.assign_add(1)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def update_step(self, data, counts, step):
        """An update step: masks change, the optimizer is not applied.

        Args:
            data: a batch, as for `train_step`.
            counts: int32 tensor of shape (masked weights, 2): units to keep and to grow.
            step: int32 scalar tensor, for what the method draws at random.

        Returns:
            The metrics, as `train_step` does.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        trainable = {id(w) for w in self.trainable_weights}
        numbered = [
            (number, item)
            for number, item in enumerate(self.masked_weights)
            if id(item.weight) in trainable and _has_zeros(item)
        ]
        weights = [item.weight for _, item in numbered]
        y_pred, gradients = self._gradients(x, y, sample_weight, weights)
        # A weight that the loss does not reach has no gradient: its mask stays.
        reached = [
            (n, i, g) for (n, i), g in zip(numbered, gradients, strict=True) if g is not None
        ]
        gradients = _tensors.all_reduce([tf.convert_to_tensor(g) for _, _, g in reached])
        scale = self.optimizer.scale_loss(tf.ones([]))
        usable = self._usable(gradients)

        variables, values = [], []
        for (number, item, _), gradient in zip(reached, gradients, strict=True):
            weight = tf.convert_to_tensor(item.weight.value)
            mask = tf.convert_to_tensor(item.mask)
            update = self.method.update_function(weight.shape.num_elements())
            new_mask, new_weight = update(
                weight,
                tf.cast(gradient, weight.dtype) / tf.cast(scale, weight.dtype),
                mask,
                counts[number, 0],
                counts[number, 1],
                item.pattern,
                tf.stack([(self.seed + number) % 2**31, step]),
            )
            if usable is not None:
                new_mask = tf.where(usable, new_mask, mask)
                new_weight = tf.where(usable, new_weight, weight)
            variables += [item.mask, item.weight]
            values += [new_mask, new_weight]
            # Slots of dropped entries would go stale; those of new ones start empty.
            for slot, empty in self._run.slots.get(id(item.weight), ()):
                variables.append(slot)
                values.append(
                    _tensors.where(mask & new_mask, tf.convert_to_tensor(slot.value), empty)
                )
        _tensors.assign(variables, values)
        return self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def _gradients(self, x, y, sample_weight, weights):
        """A forward and a backward pass, as in `keras.Model.train_step`."""
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape:
            y_pred = self(x, training=True)
            loss = self._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            )
            batch_size = tf.shape(next(i for i in keras.tree.flatten(x) if i is not None))[0]
            self._loss_tracker.update_state(loss * replicas, sample_weight=batch_size)
            loss = self.optimizer.scale_loss(loss)
        return y_pred, tape.gradient(loss, [w.value for w in weights])

    def _usable(self, gradients):
        """Whether no gradient overflowed under dynamic loss scaling; None without it."""
        if not isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            return None
        return tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])

    def make_train_function(self, force=False):
        """Compiles an ordinary and an update step; the host chooses between them.

        The step counter is a Python integer, so neither graph holds a conditional and
        the ordinary step carries nothing of the update.
        """
        if self.train_function is not None and not force:
            return self.train_function
        self._run.active = None  # There may be a new optimizer.
        several = None
        if self.steps_per_execution > 1:
            with self.distribute_strategy.scope():
                self._run.seen = tf.Variable(
                    0, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
                )
            super().make_train_function(force=True)
            several = self.train_function
        ordinary, update = self._compiled(self.train_step), self._compiled(self.update_step)

        def train_function(iterator):
            if self._run.active is None:
                iterator = self._begin_run(iterator)
            plans = [self._plan(self._step + n) for n in range(self.steps_per_execution)]
            if several is not None and not any(plans):
                before = int(self._run.seen)
                try:
                    return several(iterator)
                finally:
                    self._step += int(self._run.seen) - before
            logs = None
            for plan in plans:
                try:
                    if plan is None:
                        logs = ordinary(iterator)
                    else:
                        counts, step = (
                            tf.constant(plan, tf.int32),
                            tf.constant(self._step, tf.int32),
                        )
                        logs = update(iterator, counts, step)
                        self._run.active = [sum(n) for n in plan]
                except (StopIteration, tf.errors.OutOfRangeError):
                    if logs is None:
                        raise
                    break
                self._step += 1
            return logs

        self.train_function = train_function
        return train_function

    def _compiled(self, step_function):
        """A function that takes a batch off an iterator and runs a step on it."""

        def on_batch(data, *args):
            strategy = self.distribute_strategy
            outputs = strategy.run(step_function, args=(data, *args))
            return reduce_per_replica(outputs, strategy, reduction="auto")

        def on_iterator(iterator, *args):
            return on_batch(_tensors.without_optionals(iterator.get_next()), *args)

        if not self.run_eagerly:
            on_batch = tf.function(
                on_batch, autograph=False, reduce_retracing=True, jit_compile=self.jit_compile
            )
            on_iterator = tf.function(on_iterator, autograph=False, reduce_retracing=True)

        def run(iterator, *args):
            if isinstance(iterator, (tf.data.Iterator, tf.distribute.DistributedIterator)):
                return on_iterator(iterator, *args)
            return on_batch(_tensors.without_optionals(next(iterator)), *args)

        return run

    def _plan(self, step):
        run = self._run
        return self.method.plan(step, run.active, run.first_step, run.steps)

    def _begin_run(self, iterator):
        """What has to stand before the first step of a run; returns the iterator."""
        run = self._run
        if not self.built:
            iterator = self._build_on(iterator)
        items = self.masked_weights
        if not items:
            raise ValueError(
                "The model has no masked weights: wrap layers in `tf_rigl.MaskedLayer`, or make "
                "the model with `tf_rigl.sparsify`."
            )
        if self.method.needs_length and run.steps is None:
            raise ValueError(
                "A float `end_step` needs a training run of known length: `fit` with a data set "
                "whose number of batches is known (or `steps_per_epoch`). Pass `end_step` as an "
                f"integer, a step, instead. Received: method={self.method!r}"
            )
        if not self.optimizer.built:
            with self.distribute_strategy.scope():
                self.optimizer.build(self.trainable_variables)
        trainable = {id(w) for w in self.trainable_variables}
        run.slots = optimizers.find_slots(self.optimizer, self.trainable_variables)
        # Weights may have been set, and the optimizer used, since the last run.
        for item in items:
            if id(item.weight) in trainable and _has_zeros(item):
                item.zero_masked(item.weight)
                for slot in run.slots.get(id(item.weight), ()):
                    item.zero_masked(*slot)
        run.active = [int(item.pattern.active(tf.convert_to_tensor(item.mask))) for item in items]
        return iterator

    def _build_on(self, iterator):
        """Builds the model on the form of the first batch."""
        if isinstance(iterator, tf.data.Iterator):
            data = iterator.element_spec
        else:
            data = next(iterator)
            rest = iterator
            iterator = (batch for source in ([data], rest) for batch in source)
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self(_tensors.symbolic(x))
        return iterator

    # What is saved.

    def set_weights(self, weights):
        """Sets all weights and masks, in the order of `get_weights`."""
        super().set_weights(weights)
        for item in self.masked_weights:
            item.zero_masked(item.weight)
        self._run.active = None  # The slots under other masks are to be emptied.

    def save_own_variables(self, store):
        """Stores the step counter, and the states of random seeds, which Keras leaves out."""
        super().save_own_variables(store)
        store["step"] = np.int64(self._step)
        seeds = self._seed_states()
        if seeds:
            store["seeds"] = np.stack([seed.numpy() for seed in seeds])

    def load_own_variables(self, store):
        """Restores what `save_own_variables` stored; a dense model's file has none of it."""
        self._run.active = None
        for layer in self._flatten_layers():
            if isinstance(layer, Masks):
                layer.refusal = None
        entries = {key: store[key] for key in store.keys()}  # noqa: SIM118, not a dict
        step, states = entries.pop("step", None), entries.pop("seeds", ())
        super().load_own_variables(entries)
        if step is not None:
            self._step = int(np.asarray(step))
        seeds = self._seed_states()
        if len(states) == len(seeds):
            for seed, state in zip(seeds, np.asarray(states), strict=True):
                seed.assign(state)

    def _seed_states(self):
        """The states of the seeds of dropout and the like, in model order."""
        layers = self._flatten_layers()
        return [seed.state for layer in layers for seed in layer._seed_generators]

    def get_config(self):
        """The arguments of the constructor, for serialisation."""
        return {**super().get_config(), **self._sparse_config()}

    def _sparse_config(self):
        return {"method": keras.saving.serialize_keras_object(self.method), "seed": self.seed}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes the model from what `get_config` returned."""
        config = dict(config)
        if isinstance(config.get("method"), dict):
            config["method"] = keras.saving.deserialize_keras_object(
                config["method"], custom_objects=custom_objects
            )
        return super().from_config(config, custom_objects=custom_objects)


@keras.saving.register_keras_serializable(package="tf_rigl")
class FunctionalSparseModel(SparseModel, Functional):
    """A `SparseModel` over a graph of layers: what `SparseModel(inputs, outputs)` makes."""

    # `*args, **kwargs` is how Keras knows a constructor that takes what a graph's does.
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


@dataclasses.dataclass
class _Run:
    """What the model knows of the present run of `fit`; nothing of it is saved."""

    first_step: int = 0
    steps: int | None = None  # How many it will have in all, if that is known.
    active: list | None = None  # Units active in each masked weight; None: to be counted.
    slots: dict = dataclasses.field(default_factory=dict)  # id(weight) -> list of Slot.
    seen: tf.Variable | None = None  # Batches seen by executions of several steps at once.


class _RunLength(keras.callbacks.Callback):
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
                f"the first update. Train longer, or pass a smaller `update_interval`. "
                f"Received: method={method!r}",
                stacklevel=2,
            )


def _has_graph(args, kwargs):
    """Whether constructor arguments are those of a functional model."""
    return len(args) >= 2 or "outputs" in kwargs


def _has_zeros(item):
    """Whether a weight is masked at all: a dense layer costs nothing."""
    return item.target_sparsity > 0
