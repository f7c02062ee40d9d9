"""The one door to private API of Keras and TensorFlow: no other file uses any.

`NAMES` lists each private name, what it is for, and the versions it was tried with; the functions
below are what the package calls. Where public API does the same, the package uses that instead.
When an upgrade takes a name away, `tests/base/test_keras_internals.py` fails with that name.
"""

import inspect

import keras
import tensorflow as tf

# What the package uses as it is.
from keras.src.backend import (
    AutocastScope,
    compute_output_spec,  # noqa: F401
)
from keras.src.backend.common.stateless_scope import in_stateless_scope  # noqa: F401
from keras.src.export.export_utils import _infer_input_signature_from_model, get_input_signature
from keras.src.layers.rnn.conv_lstm import ConvLSTMCell  # noqa: F401
from keras.src.models.functional import Functional, functional_like_constructor
from keras.src.ops.core import Cast  # noqa: F401
from keras.src.ops.nn import Relu  # noqa: F401
from keras.src.ops.numpy import Add, Maximum, Minimum, Multiply, Subtract  # noqa: F401
from keras.src.saving.serialization_lib import SafeModeScope
from keras.src.utils.python_utils import default, is_default
from tensorflow.python.ops import control_flow_util

from tf_rigl._base import workers

# Owner -> name -> (what it is for, versions tried). Versions are those of Keras, or of TensorFlow
# where the owner is its. A name that came later than the lowest version that the package allows
# begins with the version that brought it. The test reads this without importing the module.
NAMES = {
    # Layers.
    "keras.layers.Layer": {
        "_flatten_layers": ("lists all layers in a layer", "3.10-3.15"),
        "_layers": ("tracks a layer that is outside the graph of its model", "3.10-3.15"),
        "_trainable": ("freezes a layer without its sublayers", "3.10-3.15"),
        "_trainable_variables": ("lists the variables of a layer alone", "3.10-3.15"),
        "_non_trainable_variables": ("lists the variables of a layer alone", "3.10-3.15"),
        "_seed_generators": ("lists the random seeds of a layer alone", "3.10-3.15"),
        "_inbound_nodes": ("lists the calls of a layer in graphs", "3.10-3.15"),
        "_track_trackable": ("adds to what `tf.train.Checkpoint` stores", "3.10-3.15"),
    },
    "keras.layers.Dense": {"_kernel": ("is the variable that LoRA adds to", "3.10-3.15")},
    "keras.layers.EinsumDense": {"_kernel": ("is the variable that LoRA adds to", "3.10-3.15")},
    "keras.layers.Conv2D": {"_kernel": ("is the variable that LoRA adds to", "3.10-3.15")},
    "keras.layers.Embedding": {"_embeddings": ("is the variable that LoRA adds to", "3.10-3.15")},
    "keras.layers.MultiHeadAttention": {
        "_query_dense": ("holds a projection", "3.10-3.15"),
        "_key_dense": ("holds a projection", "3.10-3.15"),
        "_value_dense": ("holds a projection", "3.10-3.15"),
        "_gate_dense": ("holds a projection", "3.14-3.15"),
        "_output_dense": ("holds a projection", "3.10-3.15"),
        "_use_gate": ("says that there is a gate", "3.14-3.15"),
        "_tracker": ("puts a sublayer in the place of another", "3.10-3.15"),
    },
    "keras.src.layers.rnn.conv_lstm": {"ConvLSTMCell": ("is a kind of layer", "3.10-3.15")},
    "keras.src.utils.python_utils": {
        "default": ("has Keras build a layer by a symbolic call", "3.10-3.15"),
        "is_default": ("says that a layer has nothing to build", "3.10-3.15"),
    },
    # Graphs.
    "keras.src.models.functional": {
        "Functional": ("is the class of graphs", "3.10-3.15"),
        "functional_like_constructor": ("says that a class is made of a graph", "3.10-3.15"),
    },
    "keras.models.Sequential": {"_functional": ("is the graph of its layers", "3.10-3.15")},
    "keras.KerasTensor": {
        "_keras_history": ("is the call that made it", "3.10-3.15"),
        "_keras_mask": ("is the mask of timesteps that goes with it", "3.10-3.15"),
    },
    "keras.Function": {"_nodes_by_depth": ("lists the calls in a graph", "3.10-3.15")},
    "keras.src.backend": {
        "compute_output_spec": ("calls a model without adding to its graph", "3.10-3.15"),
        "AutocastScope": ("reads variables in the type they are stored in", "3.10-3.15"),
    },
    "keras.src.ops.core": {"Cast": ("is an operation in graphs", "3.10-3.15")},
    "keras.src.ops.nn": {"Relu": ("is an operation in graphs", "3.10-3.15")},
    "keras.src.ops.numpy": {
        "Add": ("is an operation in graphs", "3.10-3.15"),
        "Maximum": ("is an operation in graphs", "3.10-3.15"),
        "Minimum": ("is an operation in graphs", "3.10-3.15"),
        "Multiply": ("is an operation in graphs", "3.10-3.15"),
        "Subtract": ("is an operation in graphs", "3.10-3.15"),
    },
    # Variables.
    "keras.Variable": {"_direct_assign": ("writes past a stateless scope", "3.10-3.15")},
    "keras.src.backend.common.stateless_scope": {
        "in_stateless_scope": ("says that no variable can be made now", "3.10-3.15"),
    },
    "keras.optimizers.Optimizer": {
        "_trainable_variables": ("lists what the optimizer was built with", "3.10-3.15"),
        "_model_variables_moving_average": ("lists averages of weights", "3.10-3.15"),
    },
    "keras.optimizers.ScheduleFreeAdamW": {
        "_momentums": ("lists copies of weights that it trains", "3.14-3.15"),
    },
    "keras.optimizers.Adagrad": {"_accumulators": ("lists slots that begin above 0", "3.10-3.15")},
    "keras.optimizers.Ftrl": {"_accumulators": ("lists slots that begin above 0", "3.10-3.15")},
    # Training.
    "keras.Model": {
        "_initial_epoch": ("is the epoch at which `fit` goes on after a backup", "3.10-3.15"),
        "_maybe_symbolic_build": ("builds a model before `fit`", "3.10-3.15"),
        "_distribute_strategy": ("is None where a model has no strategy", "3.10-3.15"),
    },
    "keras.src.backend.tensorflow.trainer.TFEpochIterator": {
        "_get_iterator": ("is the data set of `fit`", "3.10-3.15"),
    },
    # Files.
    "keras.src.saving.serialization_lib": {
        "SafeModeScope": ("lets lambdas be copied", "3.10-3.15"),
    },
    "keras.src.export.export_utils": {
        "get_input_signature": ("says what a model is called on", "3.10-3.15"),
        "_infer_input_signature_from_model": ("the same, if it is only built", "3.10-3.15"),
    },
    "tensorflow.Variable": {
        "_export_to_saved_model_graph": ("copies a variable to a SavedModel", "2.18-2.21"),
        "_serialize_to_tensors": ("says what is stored of a variable", "2.18-2.21"),
    },
    "tensorflow.types.experimental.ConcreteFunction": {
        "_arg_keywords": ("lists the names of inputs in their order", "2.18-2.21"),
    },
    "tensorflow.python.ops.control_flow_util": {
        "GraphOrParentsInXlaContext": ("says that XLA compiles what is traced", "2.18-2.21"),
    },
    # Keras 2, of which tensorflow-model-optimization makes its models.
    "tf_keras.layers.Layer": {"_flatten_layers": ("lists all layers in a layer", "2.18-2.21")},
}


# Layers.


def all_layers(layer, include_self=True, recursive=True) -> list:
    """Returns the layers in a layer, each once, in the order in which files store their seeds.

    Args:
        layer: a `keras.layers.Layer`, or one of Keras 2.
        include_self: bool, whether the layer itself comes first.
        recursive: bool, whether layers in sublayers come too. (`Model.layers` lists the direct
            ones, but a graph leaves out those that it does not call.)
    """
    return list(layer._flatten_layers(include_self=include_self, recursive=recursive))


def track_layer(model, layer):
    """Has a graph save and list a layer that it does not call; newer Keras does by itself."""
    if not any(each is layer for each in model._layers):
        model._layers.append(layer)


def set_own_trainable(layer, trainable):
    """Sets `trainable` of a layer, but neither of its sublayers nor of its variables."""
    layer._trainable = trainable


def own_variables(layer) -> list:
    """Returns the variables of a layer, without those of sublayers, in the order of its file."""
    return [*layer._trainable_variables, *layer._non_trainable_variables]


def trainable_variables(layer) -> list:
    """Returns the variables that a layer was built to train, frozen or not, without sublayers'."""
    return list(layer._trainable_variables)


def seed_states(layer) -> list:
    """Returns the states of the random seeds of a layer, without those of sublayers."""
    return [seed.state for seed in layer._seed_generators]


def stored_variable(layer, name):
    """Returns the variable behind an attribute, which with LoRA is a tensor."""
    return getattr(layer, f"_{name}")


def track(layer, trackable, name):
    """Has a `tf.train.Checkpoint` of a layer store another object too, under a name."""
    layer._track_trackable(trackable, name, overwrite=True)


def default_build(method):
    """Marks a `build`: Keras calls the layer symbolically first, with all arguments of the call."""
    return default(method)


def has_default_build(layer) -> bool:
    """Returns whether a layer has no `build` of its own, or one with the mark."""
    return is_default(layer.build)


# Attention.

PROJECTIONS = {
    "query": "_query_dense",
    "key": "_key_dense",
    "value": "_value_dense",
    "gate": "_gate_dense",
    "attention_output": "_output_dense",
}


def is_gated(attention) -> bool:
    """Returns whether a `keras.layers.MultiHeadAttention` has a gate; older ones never have."""
    return getattr(attention, "_use_gate", False)


def projection(attention, name):
    """Returns a projection of a built `keras.layers.MultiHeadAttention`, by its name."""
    return getattr(attention, PROJECTIONS[name])


def set_projection(attention, name, layer):
    """Puts a layer in the place of a projection, also in the order of sublayers."""
    attention._tracker.replace_tracked_value("layers", projection(attention, name), layer)
    setattr(attention, PROJECTIONS[name], layer)


# Graphs.


def graph_of(model):
    """Returns the graph that a functional or a built Sequential model is or has, or None."""
    graph = getattr(model, "_functional", model)
    return graph if isinstance(graph, Functional) else None


def is_constructed_as_graph(cls) -> bool:
    """Returns whether the constructor of a class of models takes inputs and outputs, as Keras's."""
    return functional_like_constructor(cls)


def history(tensor):
    """Returns the operation that made a symbolic tensor, the number of its call and of the output.

    They are also the attributes `operation`, `node_index` and `tensor_index` of the tuple.
    """
    return tensor._keras_history


def nodes_of(operation) -> list:
    """Returns the calls of a layer or operation in all graphs."""
    return operation._inbound_nodes


def carries_mask(tensor) -> bool:
    """Returns whether a mask of timesteps goes with a symbolic tensor."""
    return getattr(tensor, "_keras_mask", None) is not None


def nodes_in_order(function) -> list:
    """Returns the calls in a `keras.Function`, each after those it depends on."""
    by_depth = sorted(function._nodes_by_depth.items(), reverse=True)
    return [node for _, nodes in by_depth for node in nodes]


# Variables.


def without_autocast():
    """Returns a context in which variables are read in the type that they are stored in."""
    return AutocastScope(None)


def assign_directly(variable, value):
    """Assigns to a `keras.Variable`, even within a `keras.StatelessScope`."""
    variable._direct_assign(value)


def built_on(optimizer) -> list:
    """Returns the weights that an optimizer was built with, in the order of its slots."""
    return list(optimizer._trainable_variables)


def copies_of_weights(optimizer) -> list:
    """Returns the slots of an optimizer that begin as copies of the weights, and averages of them.

    Keras sets averages to the weights at the first step.
    """
    copies = list(getattr(optimizer, "_model_variables_moving_average", ()))
    schedule_free = getattr(keras.optimizers, "ScheduleFreeAdamW", ())  # Older Keras lacks it.
    if isinstance(optimizer, schedule_free) and optimizer.built:
        copies += optimizer._momentums
    return copies


def accumulators(optimizer) -> list:
    """Returns the slots of a built Adagrad or Ftrl that do not begin at 0."""
    return optimizer._accumulators


# Training.


def compute_loss(model, x, y, y_pred, sample_weight, training=True):
    """Returns the loss of a batch by the public `compute_loss`.

    One that a subclass defines may be without the argument `training`.
    """
    takes_training = "training" in inspect.signature(model.compute_loss).parameters
    given = {"training": training} if takes_training else {}
    return model.compute_loss(x, y, y_pred, sample_weight, **given)


def loss_metric(model):
    """Returns the metric in which Keras averages the loss of a compiled model.

    A subclass may define `metrics` anew, so those of `keras.Model` are asked.
    """
    return next(each for each in keras.Model.metrics.fget(model) if each.name == "loss")


def initial_epoch(model):
    """Returns the epoch at which a backup lets `fit` go on, or None."""
    return getattr(model, "_initial_epoch", None)


def set_initial_epoch(model, epoch):
    """Has the present run of `fit` begin at an epoch; None is the one that it was called with."""
    model._initial_epoch = epoch


class InitialEpochOfModel:
    """A base of models whose attribute `model` runs `fit`: a backup sets the epoch of that one."""

    @property
    def _initial_epoch(self):
        return self.model._initial_epoch

    @_initial_epoch.setter
    def _initial_epoch(self, epoch):
        if "model" in vars(self):  # Keras sets a default before the model is there.
            self.model._initial_epoch = epoch


class BuildsOnWorkers:
    """A base of models, before `keras.Model`: several processes build them together.

    Keras cannot take the mean of batches of several processes, so a model is built on one of
    the batches of this process.
    """

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        strategy = self._distribute_strategy
        if iterator is not None and strategy is not None and workers.are_several(strategy):
            batch = next(iter(iterator._get_iterator()))
            data_batch = keras.tree.map_structure(
                lambda value: strategy.experimental_local_results(value)[0], batch
            )
            iterator = None
        super()._maybe_symbolic_build(iterator=iterator, data_batch=data_batch)


def in_xla() -> bool:
    """Returns whether XLA will compile what is traced now."""
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


# Files.


def allow_lambdas():
    """Returns a context in which layers are made from configurations that hold lambdas."""
    return SafeModeScope(False)


def input_signature(model) -> list:
    """Returns the arguments of a model's call, as structures of `keras.InputSpec`.

    Keras wants a subclassed model to have been called; here it may be built, no more.

    Raises:
        ValueError, TypeError: if Keras does not know them.
    """
    is_graph = isinstance(model, (Functional, keras.Sequential))
    if not is_graph and model.built and (specs := _infer_input_signature_from_model(model)):
        return list(specs)
    return list(get_input_signature(model))


def argument_names(function) -> list:
    """Returns the names of the inputs of a concrete function, by which a signature is called."""
    return function._arg_keywords


def leave_value_out(variable):
    """Keeps the value of a `tf.Variable` out of a SavedModel, which has nothing to restore then."""
    export = variable._export_to_saved_model_graph

    def export_without_value(object_map, **kwargs):
        handles = export(object_map=object_map, **kwargs)
        object_map[variable]._serialize_to_tensors = dict
        return handles

    variable._serialize_to_tensors = dict
    variable._export_to_saved_model_graph = export_without_value
