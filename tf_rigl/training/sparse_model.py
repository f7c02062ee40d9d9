"""`SparseModel`: a Keras model that trains sparse."""

import functools
import gc
import inspect

import keras
import numpy as np
import tensorflow as tf
from keras.src.backend.common.stateless_scope import in_stateless_scope
from keras.src.models.functional import Functional

from tf_rigl import methods
from tf_rigl._base import files, tensors, workers
from tf_rigl.block_sparse.layers import Probes
from tf_rigl.training import integrity, loop, slots
from tf_rigl.weights import masks
from tf_rigl.weights.masks import MaskedWeight


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
        method: str or `tf_rigl.methods.Method`, how masks begin and change: "static",
            "set", "rigl", "snfs", "snip", "magnitude", "edge_popup".
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
        self.seed = workers.resolve_seed(seed)
        self._step = 0
        self._run = loop.Run(seal=integrity.Seal(self))
        self._add_state()

    # What the masks are.

    @property
    def masked_weights(self) -> list[MaskedWeight]:
        """The masked weights with their masks, in model order."""
        return masks.find(self)

    def _add_state(self):
        """Makes what the method keeps for each weight, where it is not there yet."""
        method, start, first = self.method, None, 0
        if method.trains_scores:
            start = functools.partial(method.initial_mask, seed=self.seed)
        with self.distribute_strategy.scope():
            for layer in masks.layers(self):
                layer.add_state(method.state_names, start, first)
                if start is not None:
                    layer.settle()
                first += len(layer.items)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks as boolean arrays, by path."""
        return {item.path: item.mask.numpy() for item in self.masked_weights}

    @property
    def sparsity(self) -> float:
        """The fraction of zeros now in all maskable weights that were not excluded."""
        arrays = self.masks.values()
        entries = sum(mask.size for mask in arrays)
        return 1 - sum(map(np.count_nonzero, arrays)) / entries if entries else 0.0

    @property
    def step(self) -> int:
        """How many batches training has seen; saved and restored with the model."""
        return self._step

    # What is trained.

    @property
    def trainable_weights(self):
        """What the optimizer trains: weights, or with some methods scores in their place."""
        return self._in_place(self._learned(super().trainable_weights))

    @property
    def trainable_variables(self):
        """The same as `trainable_weights`."""
        return self._in_place(self._learned(super().trainable_variables))

    @property
    def non_trainable_weights(self):
        """The other weights."""
        return _without(self.weights, self.trainable_weights)

    @property
    def non_trainable_variables(self):
        """The other variables, those of metrics and random seeds included."""
        return _without(self.variables, self.trainable_variables)

    def _trains_scores(self):
        method = getattr(self, "method", None)  # Keras asks before there is one.
        return method is not None and method.trains_scores

    def _learned(self, weights):
        """Of all trainable weights those of which training needs the gradient."""
        if not self._trains_scores() or self.method.train_others:
            return weights
        masked = {id(item.weight) for item in self.masked_weights if item.is_sparse}
        return [w for w in weights if id(w) in masked]

    def _in_place(self, weights):
        """What the optimizer trains in the place of weights."""
        if not self._trains_scores():
            return weights
        items = {id(item.weight): item for item in self.masked_weights}
        missing = any(i.is_sparse and "scores" not in i.state for i in items.values())
        if missing and not in_stateless_scope():
            self._add_state()
        return [items[id(w)].state.get("scores", w) if id(w) in items else w for w in weights]

    # How training runs.

    def fit(self, *args, **kwargs):
        """Trains the model; the arguments are those of `keras.Model.fit`."""
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        bound.apply_defaults()
        watcher = loop.RunLength(bound.arguments["initial_epoch"])
        callbacks = bound.arguments["callbacks"]
        if isinstance(callbacks, keras.callbacks.CallbackList):
            watcher.set_model(self)
            watcher.set_params(callbacks.params)
            # A list may be used again: its watcher of the last run goes.
            others = [c for c in callbacks.callbacks if not isinstance(c, loop.RunLength)]
            own = [c for c in self._run.callbacks if c not in others]
            for callback in own:
                callback.set_model(self)
            callbacks.callbacks[:] = [*others, *own, watcher]
        else:
            callbacks = keras.tree.flatten(callbacks) if callbacks else []
            bound.arguments["callbacks"] = [*callbacks, *self._run.callbacks, watcher]
        self._run.active, self._run.skip = None, 0
        self._initial_epoch = None  # Where a backup of an earlier run went on.
        history = super().fit(*bound.args, **bound.kwargs)
        self._follow_scores()  # The optimizer may have put their averages in.
        return history

    def train_step(self, data):
        """An ordinary step: gradients are masked before the optimizer sees them."""
        return self._one_step(data, train=True)

    def observing_step(self, data, observation):
        """An ordinary step at which the method keeps the dense gradient in mind.

        Args:
            data: a batch, as for `train_step`.
            observation: float32 scalar tensor, see `Method.observation`.

        Returns:
            The metrics, as `train_step` does.
        """
        return self._one_step(data, train=True, observation=observation)

    def update_step(self, data, counts, step, observation=None):
        """An update step: masks change, by default instead of an optimizer step.

        Args:
            data: a batch, as for `train_step`.
            counts: int32 tensor of shape (masked weights, 2): units to keep and to grow.
            step: int32 scalar tensor, for what the method draws at random.
            observation: as for `observing_step`, or None.

        Returns:
            The metrics, as `train_step` does.
        """
        order = self.method.order
        if order == "before":
            self._change_masks([(n, i, None) for n, i in self._trained()], counts, step)
            return self._one_step(data, train=True, observation=observation)
        return self._one_step(data, order == "after", observation, counts, step)

    def _one_step(self, data, train, observation=None, counts=None, step=None):
        """A forward and a backward pass, and what is asked for of the rest."""
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        trained, usable = self._trained(), None
        looks = observation is not None or counts is not None
        packed = [item for _, item in trained if looks and item.is_packed]
        weights = self._learned(super().trainable_weights)
        if not train:
            weights = [item.weight for _, item in trained if not item.is_packed]
        y_pred, gradients, whole = self._gradients(x, y, sample_weight, weights, packed)
        if looks:
            by_weight = {id(w): g for w, g in zip(weights, gradients, strict=True)}
            by_weight |= {id(item.weight): g for item, g in zip(packed, whole, strict=True)}
            reached = [(number, item, by_weight[id(item.weight)]) for number, item in trained]
            # A weight that the loss does not reach has no gradient: its mask stays.
            self._run.leave_alone(number for number, _, g in reached if g is None)
            reached = [entry for entry in reached if entry[2] is not None]
            reached, usable = self._dense_gradients(reached)
            if train and usable is not None:
                usable &= tensors.all_finite(gradients)
        if observation is not None:
            reached = _observe(reached, observation, usable, is_update=counts is not None)
        if train:
            self._train(weights, gradients, usable)
        elif usable is not None:
            # What the optimizer does at an overflow, where it is not asked.
            variables = [self.optimizer.dynamic_scale, self.optimizer.step_counter]
            scale, steps = (tf.convert_to_tensor(variable.value) for variable in variables)
            values = [tf.where(usable, scale, scale / 2), tf.where(usable, steps, 0)]
            tensors.assign(zip(variables, values, strict=True))
        if counts is not None:
            self._change_masks(reached, counts, step, usable)
        return self._logs(self.compute_metrics(x, y, y_pred, sample_weight=sample_weight))

    def test_step(self, data):
        """What `evaluate` does with a batch."""
        return self._logs(super().test_step(data))

    def _logs(self, metrics):
        """Metrics as Keras can average them over replicas: over processes along an axis."""
        if not workers.are_several():
            return metrics
        return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), metrics)

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        """Builds the model on a batch; Keras cannot take one that several processes share."""
        strategy = self._distribute_strategy
        if iterator is not None and strategy is not None and workers.are_several(strategy):
            batch = next(iter(iterator._get_iterator()))
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], batch
            )
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)

    def _trained(self):
        """The masked weights that training may change, with their numbers."""
        trainable = {id(w) for w in super().trainable_weights}
        return [
            (number, item)
            for number, item in enumerate(self.masked_weights)
            if id(item.weight) in trainable and item.is_sparse
        ]

    def _train(self, weights, gradients, usable=None):
        """Applies the optimizer to masked gradients, of which all are usable or none."""
        items = {id(item.weight): item for _, item in self._trained()}
        masked = [
            self._own_gradient(items[id(w)], g) if g is not None and id(w) in items else g
            for g, w in zip(gradients, weights, strict=True)
        ]
        if usable is None and self._asks_one_of_many():
            usable = tensors.all_finite(masked)
        there = [number for number, g in enumerate(masked) if g is not None]
        if usable is not None and there:
            # One gradient is enough to tell the optimizer.
            last = tf.convert_to_tensor(masked[there[-1]])
            masked[there[-1]] = tensors.where(usable, last, float("nan"))
        if weights:
            self.optimizer.apply_gradients(zip(masked, self._in_place(weights), strict=True))
        if self.method.trains_scores:
            tensors.assign(self._by_scores())
            weights = []
        # Some optimizers move weights without a gradient, and so may constraints.
        free = not slots.moves_only_by_gradient(self.optimizer)
        emptied = []
        for item in (items[id(w)] for w in weights if id(w) in items and (free or w.constraint)):
            emptied += item.emptied(self._run.slots.get(id(item.weight), ()))
        tensors.assign(emptied)
        if self._run.seen is not None:
            self._run.seen.assign_add(1)

    def _own_gradient(self, item, gradient):
        """The gradient of what is trained of a masked weight."""
        if self.method.trains_scores:
            values = tf.convert_to_tensor(item.state["values"].value)
            return self.method.score_gradient(gradient, values)
        return item.masked_gradient(gradient)

    def _by_scores(self):
        """Masks and weights, and what they are by the scores."""
        pairs = []
        for _, item in self._trained():
            choose = self._run.update_function(self.method, item.shape)
            state = [tf.convert_to_tensor(item.state[n].value) for n in ("scores", "values")]
            mask, weight = choose(*state, tf.constant(item.target_active()), item.pattern)
            pairs += [(item.mask, mask), (item.weight, weight)]
        return pairs

    def _follow_scores(self):
        """Has masks and weights follow from scores that were set from without."""
        for variable, value in self._by_scores() if self.method.trains_scores else ():
            variable.assign(value)

    def _asks_one_of_many(self):
        """Whether Keras asks only the first of several replicas if its gradients are finite."""
        scaled = isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer)
        return scaled and tf.distribute.get_strategy().num_replicas_in_sync > 1

    def _dense_gradients(self, reached):
        """Gradients over the global batch, and whether none of them overflowed.

        Args:
            reached: list of (number, item, gradient of the scaled loss on this replica).

        Returns:
            The list with gradients of the loss, of the weights' dtypes; and a boolean
            tensor, or None where there is no dynamic loss scaling.
        """
        gradients = tensors.all_reduce([tf.convert_to_tensor(g) for _, _, g in reached])
        usable = None
        if isinstance(self.optimizer, keras.optimizers.LossScaleOptimizer):
            usable = tf.reduce_all([tf.reduce_all(tf.math.is_finite(g)) for g in gradients])
        one = tf.ones([])
        scale = self.optimizer.scale_loss(one)
        dense = []
        for (number, item, _), gradient in zip(reached, gradients, strict=True):
            gradient = tf.cast(gradient, item.weight.value.dtype)
            if scale is not one:
                gradient /= tf.cast(scale, gradient.dtype)
            if item.is_packed and item.weight.regularizer is not None:
                gradient += item.regularizer_gradient()  # The probe sees the product alone.
            dense.append((number, item, gradient))
        return dense, usable

    def _change_masks(self, entries, counts, step, usable=None):
        """Sets new masks, weights under them, and the optimizer's slots.

        Args:
            entries: list of (number, item, gradient); None where no gradient is needed.
            counts, step: as for `update_step`.
            usable: boolean scalar tensor, whether anything may change, or None.
        """
        scored = [  # The arguments of `Method.drop_scores`.
            (
                item.dense(),
                gradient,
                tf.convert_to_tensor(item.mask),
                tf.stack([(self.seed + number) % 2**31, step]),
            )
            for number, item, gradient in entries
        ]
        patterns = [item.pattern for _, item, _ in entries]
        shares = [(counts[number, 0], counts[number, 1]) for number, _, _ in entries]
        shares = self.method.share(shares, scored, patterns)
        changes = []
        for (_, item, _), (weight, gradient, mask, seed), (keep, grow) in zip(
            entries, scored, shares, strict=True
        ):
            update = self._run.update_function(self.method, tuple(weight.shape))
            new_mask, new_weight = update(weight, gradient, mask, keep, grow, item.pattern, seed)
            if usable is not None:
                new_mask = tf.where(usable, new_mask, mask)
                new_weight = tf.where(usable, new_weight, weight)
            slots = self._run.slots.get(id(item.weight), ())
            changes += item.changes(mask, new_mask, new_weight, slots)
        tensors.assign(changes)

    def _gradients(self, x, y, sample_weight, weights, packed):
        """A forward and a backward pass, as in `keras.Model.train_step`.

        Args:
            x, y, sample_weight: a batch.
            weights: list of `keras.Variable`.
            packed: list of `BlockSparseWeight`, of whose whole kernels the gradients are
                wanted too.

        Returns:
            Predictions, the gradients of `weights`, and those of the kernels.
        """
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        with tf.GradientTape() as tape, Probes(packed) as probes:
            tape.watch(probes.zeros)
            y_pred = self(x, training=True)
            loss = self._compute_loss(
                x=x, y=y, y_pred=y_pred, sample_weight=sample_weight, training=True
            )
            batch_size = tf.shape(next(i for i in keras.tree.flatten(x) if i is not None))[0]
            self._loss_tracker.update_state(loss * replicas, sample_weight=batch_size)
            loss = self.optimizer.scale_loss(loss)
        sources = [w.value for w in weights], probes.zeros
        gradients, whole = tape.gradient(loss, sources)
        kernels = [
            None if g is None else item.layer.as_kernel(g)
            for item, g in zip(packed, whole, strict=True)
        ]
        return y_pred, gradients, kernels

    def make_train_function(self, force=False):
        """Compiles an ordinary and an update step; the host chooses between them.

        The step counter is a Python integer, so neither graph holds a conditional and
        the ordinary step carries nothing of the update.
        """
        if self.train_function is not None and not force:
            return self.train_function
        several = None
        # Where a subclass has a step of its own, nothing counts those that run at once.
        own = type(self).train_step is not SparseModel.train_step
        at_once = not own and not workers.are_several(self.distribute_strategy)
        if self.steps_per_execution > 1 and at_once:
            with self.distribute_strategy.scope():
                self._run.seen = tf.Variable(
                    0, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
                )
            super().make_train_function(force=True)
            several = self.train_function
        self.train_function = loop.train_function(self, several)
        return self.train_function

    def make_test_function(self, force=False):
        """Compiles what `evaluate` does with a batch, or with several at once."""
        several = self.steps_per_execution > 1
        if not several or not workers.are_several(self.distribute_strategy):
            return super().make_test_function(force)
        if self.test_function is None or force:
            self.test_function = loop.one_by_one(self, self.test_step)
        return self.test_function

    # What is saved.

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Saves the model as `keras.Model.save` does; a file is there whole or not at all."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "Argument `filepath` must end in `.keras`: sparse models cannot be read from HDF5. "
                f"(`save_weights` writes `.weights.h5`.) Received: filepath={str(filepath)!r}"
            )
        own = overwrite and zipped is not False and str(filepath).endswith(".keras")
        with files.beside_local(filepath, own) as path:
            super().save(path, overwrite=overwrite, zipped=zipped, **kwargs)

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Saves weights, masks and the optimizer's state; whole or not at all."""
        own = overwrite and max_shard_size is None and str(filepath).endswith(".weights.h5")
        with files.beside_local(filepath, own) as path:
            super().save_weights(path, overwrite=overwrite, max_shard_size=max_shard_size)
            if own and "://" not in str(path):
                integrity.close_file(path)

    def set_weights(self, weights):
        """Sets all weights and masks, in the order of `get_weights`."""
        super().set_weights(weights)
        for item in self.masked_weights:
            item.zero_masked(item.weight)
        self._run.active = None  # The slots under other masks are to be emptied.

    def save_own_variables(self, store):
        """Stores the step counter, the seed, and states of random seeds, which Keras leaves out."""
        super().save_own_variables(store)
        store["step"], store["seed"] = np.int64(self._step), np.int64(self.seed)
        seeds = self._seed_states()
        if seeds:
            store["seeds"] = np.stack([seed.numpy() for seed in seeds])

    def load_own_variables(self, store):
        """Restores what `save_own_variables` stored; a dense model's file has none of it."""
        self._run.active = None
        for layer in masks.layers(self):
            layer.refusal = None
        self._add_state()
        entries = {key: store[key] for key in store.keys()}  # noqa: SIM118, not a dict
        step, states = entries.pop("step", None), entries.pop("seeds", ())
        seed = entries.pop("seed", None)
        super().load_own_variables(entries)
        if step is not None:
            self._step = int(np.asarray(step))
        if seed is not None:
            self._set_seed(int(np.asarray(seed)))
        seeds = self._seed_states()
        if len(states) == len(seeds):
            for seed, state in zip(seeds, np.asarray(states), strict=True):
                seed.assign(state)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Loads weights, masks and the optimizer's state.

        Raises:
            ValueError: if the file is damaged, or that of a model of other shapes, with
                another method or other sparsities. The model is then left as it was.
        """
        integrity.check_file(filepath)
        self._add_state()  # What loading would add could not be taken back.
        masks.find(self)  # Masks that are due are drawn.
        variables = [*self.weights, *self._seed_states()]
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None and not optimizer.built:
            with self.distribute_strategy.scope():
                optimizer.build(self.trainable_variables)  # Else its state is left out.
        variables += optimizer.variables if optimizer is not None else []
        before = [(variable, keras.ops.convert_to_numpy(variable)) for variable in variables]
        step, seed = self._step, self.seed
        try:
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        except Exception as error:
            for variable, value in before:
                variable.assign(value)
            self._step = step
            self._set_seed(seed)
            gc.collect()  # Keras leaves the file open, and HDF5 would read it where it was.
            if isinstance(error, (ValueError, OSError)):
                raise
            # Of HDF5, for example.
            raise ValueError(f"The file {str(filepath)!r} is damaged: {error}") from error
        if skip_mismatch:  # Some may be loaded, and their masks not.
            for item in self.masked_weights:
                item.zero_masked(item.weight)

    @property
    def _seal(self):
        # Keras saves and loads what it finds in attributes, in the order of their names: this
        # one after all that has weights.
        return self._run.seal

    def _set_seed(self, seed):
        """Takes a seed, by which later draws are those of the model that had it."""
        if seed != self.seed:
            self.seed = seed
            if self.train_function is not None:
                self.make_train_function(force=True)  # The compiled steps hold the seed.

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


def _without(variables, others):
    """The variables that are not among others."""
    known = {id(v) for v in others}
    return [v for v in variables if id(v) not in known]


def _has_graph(args, kwargs):
    """Whether constructor arguments are those of a functional model."""
    return len(args) >= 2 or "outputs" in kwargs


def _observe(reached, past, usable, is_update):
    """Takes gradients into the means that are kept of them, and puts those in their place.

    Args:
        reached: list of (number, item, dense gradient).
        past: float32 scalar tensor, the weight of what is kept.
        usable: boolean scalar tensor, whether gradients count, or None.
        is_update: bool. What has become infinite or NaN begins anew at an update; at
            each step it would be costly to look.

    Returns:
        The list with means for gradients; at other steps nothing is made of them.
    """
    variables = [item.state["gradient"] for _, item, _ in reached]
    gradients = [g if usable is None else tensors.where(usable, g) for _, _, g in reached]
    if not is_update:
        tensors.mix(variables, gradients, past)
        return reached
    values = []
    for variable, gradient in zip(variables, gradients, strict=True):
        kept = tf.convert_to_tensor(variable.value)
        weight = tf.cast(past, kept.dtype)
        value = weight * kept + (1 - weight) * gradient
        value = tf.where(tf.math.is_finite(value), value, gradient)
        values.append(tensors.where(tf.math.is_finite(value), value))
    tensors.assign(zip(variables, values, strict=True))
    return [(n, item, value) for (n, item, _), value in zip(reached, values, strict=True)]
