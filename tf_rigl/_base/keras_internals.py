"""The one door to private API of Keras and TensorFlow: no other file uses any.

`private_names.NAMES` lists each private name, what it is for, and the versions it was tried with;
the functions below are what the package calls. Where public API does the same, the package uses
that instead. When an upgrade takes a name away, `tests/base/test_keras_internals.py` fails with
that name.
"""

import inspect

import keras
import tensorflow as tf

# What the package uses as it is.
from keras.src.backend import (
    AutocastScope,
    compute_output_spec,  # noqa: F401
)
from keras.src.backend.common import global_state
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


def writes_legacy_file(model) -> bool:
    """Returns whether Keras writes just this model as HDF5 now, its former format.

    A model around it is another matter: its file can be read.
    """
    if not global_state.get_global_attribute("use_legacy_config", False):
        return False
    frames = (each.frame for each in inspect.stack(0))
    return any(
        frame.f_code.co_name == "model_metadata" and frame.f_locals.get("model") is model
        for frame in frames
    )


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
