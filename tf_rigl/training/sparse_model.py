"""`SparseModel`: a Keras model that trains sparse."""

import functools
import inspect
import math

import keras
import numpy as np
import tensorflow as tf

from tf_rigl import methods
from tf_rigl._base import keras_internals, registering, tensors, workers
from tf_rigl._base.arguments import unknown_arguments
from tf_rigl._base.keras_internals import Functional
from tf_rigl.training import checkpoint, loop, moment
from tf_rigl.training.begin import is_current, make_step, run_step
from tf_rigl.training.integrity import Seal
from tf_rigl.training.trained import TrainedByMethod
from tf_rigl.weights import guard, held, masks
from tf_rigl.weights.sparse_weight import SparseWeight

_OF_GRAPHS = ("inputs", "outputs", "name", "trainable", "dtype")


@keras.saving.register_keras_serializable(package="tf_rigl")
class SparseModel(TrainedByMethod, keras_internals.BuildsOnWorkers, keras.Model):
    """A `keras.Model` whose training step keeps weights sparse and moves their masks.

    `tf_rigl.sparsify` makes one from any model. By hand, build a functional model of
    layers wrapped in `tf_rigl.MaskedLayer`; or subclass `SparseModel`, and call
    `super().__init__(method=...)`.

    A weight is exactly 0.0 wherever its mask is 0, after construction and after every
    training step. Forward passes therefore cost what they cost in Keras, and their gradient
    is the dense gradient. At an ordinary step it is masked before the optimizer sees it; at
    an update step the masks change *instead* of an optimizer step.

    Args:
        inputs, outputs, name: as in `keras.Model`, for a functional model.
        method: str or `tf_rigl.methods.Method`, how masks begin and change: "static",
            "set", "rigl", "snfs", "snip", "magnitude", "edge_popup".
        seed: int, for the random numbers of the method. Defaults to one drawn from
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
        unknown = {name: value for name, value in kwargs.items() if name not in _OF_GRAPHS}
        if unknown and isinstance(self, Functional):  # Keras ignores them there.
            raise unknown_arguments(SparseModel, unknown, (*_OF_GRAPHS, "method", "seed"))
        method = methods.get(method)
        super().__init__(*args, **kwargs)
        self.method = method
        self.seed = workers.resolve_seed(seed)
        self._sparse_loop = loop.Loop()
        # Keras saves and loads attributes in the order of their names: this name comes after
        # all attributes with weights. `object.__setattr__` keeps Keras from tracking the seal
        # as a layer of the model.
        object.__setattr__(self, "_seal", Seal(self))
        checkpoint.join_tensorflow(self)
        self._add_state()

    # Masks.

    @property
    def masked_weights(self) -> list[SparseWeight]:
        """The masked weights with their masks, in model order."""
        return masks.find(self)

    def _add_state(self):
        """Adds the method's variables to each weight that lacks them."""
        method, start, first = self.method, None, 0
        if method.trained_state is not None:
            start = functools.partial(method.initial_mask, seed=self.seed)
        with self.distribute_strategy.scope():
            for layer in masks.layers(self):
                layer.add_state(method.state_names, start, first)
                if start is not None:
                    layer.settle()
                if not method.changes_masks:
                    layer.warns_of_others = False
                first += len(layer.items)
            if masks.stores_sparse(self):  # Masks bring guards of their own.
                self._sparse_loop.warns_of_others &= method.changes_masks
                for item in self.masked_weights:
                    if item.compute == "sparse":
                        guard.add(item.weight, None, item.path, self._sparse_loop)

    @property
    def masks(self) -> dict[str, np.ndarray]:
        """The masks as boolean arrays, by path."""
        return {item.path: item.mask.numpy() for item in self.masked_weights}

    def __dir__(self):
        """Leaves out dense masks of weights that store none: Keras computes all that is listed."""
        items = getattr(self, "masked_weights", ())  # None yet while the model is made.
        sparse = any(item.compute == "sparse" for item in items)
        return [name for name in super().__dir__() if name != "masks" or not sparse]

    @property
    def sparsity(self) -> float:
        """The fraction of zeros now in all maskable weights that were not excluded."""
        weights = self.masked_weights
        if not weights and not self.built:
            raise ValueError(
                "The model is not built, so it has no masks yet. Call it on data, or train it, "
                f"first. Received: sparsity of {self!r}"
            )
        if not self._sparse_loop.loading:  # Keras reads all properties when it loads a file.
            masks.warn_of_strays(weights, stacklevel=2)
        entries = sum(math.prod(item.shape) for item in weights)
        active = sum(item.present() for item in weights)
        return 1 - active / entries if entries else 0.0

    def apply_masks(self):
        """Sets all weights to zero where their mask is 0.

        Training does so by itself. Call it if you have assigned to single weights.
        """
        for item in self.masked_weights:
            item.zero_masked(item.weight)

    @property
    def step(self) -> int:
        """The number of batches that training has seen; saved and restored with the model."""
        return self._sparse_loop.steps_taken

    # Training.

    def fit(self, *args, **kwargs):
        """Trains the model; the arguments are those of `keras.Model.fit`."""
        bound = inspect.signature(super().fit).bind(*args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        given["callbacks"] = loop.with_own(given["callbacks"], self, given["initial_epoch"])
        self._begin_run()
        history = super().fit(*bound.args, **bound.kwargs)
        self._end_run()
        return history

    def build_optimizer(self):
        """Builds the optimizer of the compiled model, so that its state can be loaded."""
        optimizer = getattr(self, "optimizer", None)
        if optimizer is not None and not optimizer.built:
            with self.distribute_strategy.scope():
                optimizer.build(self.trainable_variables)

    def _begin_run(self):
        self._sparse_loop.plan, self._sparse_loop.length.skip = None, 0
        keras_internals.set_initial_epoch(self, None)  # A restored backup may have set it.

    def _end_run(self):
        step = self._sparse_loop.step
        if step is not None:
            step.settle()  # The optimizer may have replaced variables by averages.

    def _build_on(self, data):
        """Builds the model for the shapes of a batch."""
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        self(tensors.symbolic(x))

    def train_step(self, data):
        """Runs a step on a batch: gradients are masked before the optimizer sees them.

        At an update step masks change, by default instead of an optimizer step. A subclass may
        define its own `train_step`: its gradients are masked, and masks change, where it applies
        an optimizer.
        """
        metrics = self._current_step().run(data, moment.now(self))
        if self._sparse_loop.seen is not None:
            self._sparse_loop.seen.assign_add(1)
        return metrics

    @property
    def _has_own_step(self):
        return type(self).train_step is not SparseModel.train_step

    def _check_own_step(self):
        """Raises if the method and a `train_step` of a subclass do not go together."""
        if self.method.trained_state is not None:
            raise ValueError(
                f"{type(self.method).__name__} trains other variables than the weights, for which "
                f"{type(self).__name__} must not define `train_step`."
            )

    def observing_step(self, data, observation):
        """Runs `train_step` as one at which the method observes the dense gradient.

        Args:
            data: a batch, as for `train_step`.
            observation: float32 scalar tensor, see `Method.observation`.

        Returns:
            The metrics, as `train_step` does.
        """
        return run_step(self, data, moment.Moment(past=observation))

    def update_step(self, data, counts, step, observation=None):
        """Runs `train_step` as an update step.

        Args:
            data: a batch, as for `train_step`.
            counts: int32 tensor of shape (masked weights, 2): units to keep and to grow.
            step: int32 scalar tensor, the number of the step, for random numbers.
            observation: as for `observing_step`, or None.

        Returns:
            The metrics, as `train_step` does.
        """
        return run_step(self, data, moment.Moment(counts, step, observation))

    def _current_step(self):
        """Returns the step of this run of `fit`; outside of `fit`, a new step."""
        step = self._sparse_loop.step
        return step if step is not None and is_current(step, self) else make_step(self)

    def _sparse_forward(self, data):
        """Runs a batch forward, as `keras.Model.train_step` does.

        Returns:
            The loss, and a function that returns the metrics after the step.
        """
        x, y, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
        y_pred = self(x, training=True)
        loss = keras_internals.compute_loss(self, x, y, y_pred, sample_weight)
        replicas = tf.distribute.get_strategy().num_replicas_in_sync
        batch_size = tf.shape(next(i for i in keras.tree.flatten(x) if i is not None))[0]
        keras_internals.loss_metric(self).update_state(loss * replicas, sample_weight=batch_size)
        return loss, lambda: self.compute_metrics(x, y, y_pred, sample_weight=sample_weight)

    def test_step(self, data):
        """Evaluates a batch, as `keras.Model.test_step` does."""
        metrics = super().test_step(data)
        if not workers.are_several():
            return metrics
        # With several processes, Keras averages metrics along an axis, which scalars lack.
        return keras.tree.map_structure(lambda value: tf.reshape(value, [1]), metrics)

    def make_train_function(self, force=False):
        """Compiles an ordinary and an update step; the host chooses between them.

        The step counter is a Python integer, so neither graph holds a conditional and
        the ordinary step carries nothing of the update.
        """
        if self.train_function is not None and not force:
            return self.train_function
        several = None
        # A `train_step` of its own does not count the steps that run at once.
        at_once = not self._has_own_step and not workers.are_several(self.distribute_strategy)
        if self.steps_per_execution > 1 and at_once:
            with self.distribute_strategy.scope():
                self._sparse_loop.seen = tf.Variable(
                    0, dtype=tf.int64, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
                )
            super().make_train_function(force=True)
            several = self.train_function
        self.train_function = loop.train_function(self, several)
        return self.train_function

    def make_test_function(self, force=False):
        """Compiles the evaluation of a batch, or of several at once."""
        several = self.steps_per_execution > 1
        if not several or not workers.are_several(self.distribute_strategy):
            return super().make_test_function(force)
        if self.test_function is None or force:
            self.test_function = loop.one_by_one(self, self.test_step)
        return self.test_function

    # Files.

    quantize = held.refuse_for_model

    def save(self, filepath, overwrite=True, zipped=None, **kwargs):
        """Saves the model as `keras.Model.save` does, but never leaves an incomplete file."""
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(f"{checkpoint.NO_HDF5} Received: filepath={str(filepath)!r}")
        masks.check_strays(self.masked_weights, "saved")
        wanted = overwrite and zipped is not False
        written = checkpoint.written_whole(filepath, ".keras", wanted)
        with written as path, registering.shown(self):
            try:
                super().save(path, overwrite=overwrite, zipped=zipped, **kwargs)
            except NotImplementedError as error:  # By the `get_config` of a layer or model.
                raise ValueError(
                    "The model cannot be saved as a `.keras` file: a layer or model in it has no "
                    "`get_config` that returns the arguments of its constructor. Define one, or "
                    f"use `save_weights`. ({str(error).strip().partition('.')[0]})"
                ) from error

    def save_weights(self, filepath, overwrite=True, max_shard_size=None):
        """Saves weights, masks and the optimizer's state; never leaves an incomplete file."""
        masks.check_strays(self.masked_weights, "saved")
        wanted = overwrite and max_shard_size is None
        with checkpoint.written_whole(filepath, ".weights.h5", wanted, seals=True) as path:
            super().save_weights(path, overwrite=overwrite, max_shard_size=max_shard_size)

    def set_weights(self, weights):
        """Sets all weights and masks, in the order of `get_weights`."""
        if len(weights) != len(self.weights):
            raise ValueError(
                f"Argument `weights` must hold the {len(self.weights)} arrays of `get_weights`, "
                "masks among them. To take the weights of a dense model, load its file with "
                f"`load_weights`. Received: {len(weights)} arrays"
            )
        super().set_weights(weights)
        self.apply_masks()
        self._sparse_loop.plan = None  # The next run then empties the slots of masked entries.

    def save_own_variables(self, store):
        """Stores the step counter, the seed, and states of random seeds, which Keras leaves out."""
        super().save_own_variables(store)
        for name, value in checkpoint.counters(self).items():
            store[name] = value

    def load_own_variables(self, store):
        """Restores the result of `save_own_variables`; the file of a dense model has none."""
        self._sparse_loop.plan, self._sparse_loop.loading = None, True  # Until the seal is loaded.
        checkpoint.forget_refusals(self)
        self._add_state()
        entries = {key: store[key] for key in store.keys()}  # noqa: SIM118, not a dict
        counters = {key: entries.pop(key) for key in checkpoint.COUNTERS if key in entries}
        super().load_own_variables(entries)
        checkpoint.take_counters(self, counters)

    def load_weights(self, filepath, skip_mismatch=False, **kwargs):
        """Loads weights, masks and the optimizer's state.

        Raises:
            ValueError: if the file is damaged, or its model has other shapes, another method
                or other sparsities. The model then stays as it was.
        """
        with checkpoint.undone_on_error(self, filepath):
            super().load_weights(filepath, skip_mismatch=skip_mismatch, **kwargs)
        if skip_mismatch:  # Keras may have loaded weights without their masks.
            self.apply_masks()

    def get_config(self):
        """Returns the arguments of the constructor, for serialisation."""
        return {**super().get_config(), **self._sparse_config()}

    def _sparse_config(self):
        if keras_internals.writes_legacy_file(self):  # `keras.saving.save_model` gets past `save`.
            raise ValueError(checkpoint.NO_HDF5)
        return {"method": keras.saving.serialize_keras_object(self.method), "seed": self.seed}

    @classmethod
    def from_config(cls, config, custom_objects=None):
        """Makes the model from a result of `get_config`."""
        config = dict(config)
        if isinstance(config.get("method"), dict):
            config["method"] = keras.saving.deserialize_keras_object(
                config["method"], custom_objects=custom_objects
            )
        return super().from_config(config, custom_objects=custom_objects)


@registering.model
class FunctionalSparseModel(SparseModel, Functional):
    """A `SparseModel` that is a graph of layers: `SparseModel(inputs, outputs)` makes it."""

    # Keras recognises the constructor of a functional model by `*args, **kwargs`.
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)


def _has_graph(args, kwargs):
    """Returns True if constructor arguments are those of a functional model."""
    return len(args) >= 2 or "outputs" in kwargs
