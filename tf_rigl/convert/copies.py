"""Copies models and layers: with weights, without them, or with some layers replaced."""

import contextlib
import functools

import keras

from tf_rigl._base.keras_internals import (
    Functional,
    all_layers,
    allow_lambdas,
    set_own_trainable,
)
from tf_rigl.block_sparse import conversion
from tf_rigl.weights.masked_layer import MaskedLayer
from tf_rigl.weights.masks import Masks

# Errors that a user's class may raise in `get_config` or `from_config`.
_CLONE_ERRORS = (NotImplementedError, TypeError, ValueError, AttributeError, KeyError)


class CannotCopyError(Exception):
    """Keras cannot clone a custom model or layer."""


def is_graph(model):
    """Returns whether a model is a built graph of layers, without a `call` of its own."""
    if not model.built:
        return False
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call and bool(model.inputs)
    return isinstance(model, Functional) and type(model).call is Functional.call


def ends(model):
    """Returns the symbolic inputs and outputs of a graph, in their structures."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def fresh_copy(model):
    """Returns a copy of a model with new initial weights.

    Raises:
        ValueError: if Keras cannot clone the model.
    """
    try:
        with allow_lambdas(), _not_compiled(model):
            copy = keras.models.clone_model(model)
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        if [tuple(v.shape) for v in copy.weights] != [tuple(v.shape) for v in model.weights]:
            raise CannotCopyError(f"the copy of {model.name!r} has other weights")
    except (*_CLONE_ERRORS, CannotCopyError) as error:
        raise _clone_error(model, error) from error
    return copy


def copied(model, makers=None):
    """Returns a copy of a dense model with its weights.

    Args:
        model: a `keras.Model`.
        makers: for a graph of layers, a dict of id(layer) to a function that returns a new
            layer in its place, and a function that sets the weights of the new layer.

    Raises:
        ValueError: if Keras cannot clone the model.
    """
    with model.distribute_strategy.scope():
        try:
            return try_copy(model, makers)
        except CannotCopyError as error:
            raise _clone_error(model, error) from error


def try_copy(model, makers=None):
    """Returns the copy that `copied` returns, but raises `CannotCopyError`."""
    return _copy_graph(model, makers) if is_graph(model) else _copy_subclassed(model)


def _clone_error(model, error):
    return ValueError(
        f"Argument `model` must be a model that Keras can clone. Received: model={model!r} "
        f"({error})"
    )


def twin(layer, **changes):
    """Returns a new layer of the same configuration, and a function that copies the weights.

    Args:
        layer: a `keras.layers.Layer` without masks.
        **changes: values that replace those of the configuration.

    Raises:
        ValueError: if Keras cannot clone the layer.
    """
    try:
        with allow_lambdas():
            new = type(layer).from_config({**layer.get_config(), **changes})
    except _CLONE_ERRORS as error:
        raise ValueError(f"Keras cannot clone the layer {layer.name!r}: {error}") from error
    return new, functools.partial(_copy_state, layer, new)


def _copy_graph(model, makers=None):
    """Returns a copy of a graph, with the wrapped layers in place of `MaskedLayer`s.

    Args:
        model: a graph of layers.
        makers: as in `copied`. By default block-sparse layers become ordinary ones.
    """
    if makers is None:
        makers = {
            id(layer): functools.partial(conversion.ordinary, layer)
            for layer in conversion.replacements(model)
        }
    pairs, weight_setters = [], []

    def copy_operation(operation):
        if not isinstance(operation, keras.layers.Layer):
            return type(operation).from_config(operation.get_config())
        original = operation.layer if isinstance(operation, MaskedLayer) else operation
        if id(original) in makers:
            new, set_weights = makers[id(original)]()
            weight_setters.append(set_weights)
            return new
        if any(id(layer) in makers for layer in all_layers(original)):
            # `sparsify` makes no such models; users can.
            if not isinstance(original, keras.Model) or not is_graph(original):
                raise CannotCopyError(
                    f"{original.name!r} holds block-sparse layers, but is no graph of layers"
                )
            return _copy_graph(original, makers)
        pairs.append((original, clone(original)))
        return pairs[-1][1]

    with _not_compiled(model):
        copy = keras.models.clone_model(model, clone_function=copy_operation)
    for original, twin in pairs:
        _copy_state(original, twin)
    for set_weights in weight_setters:
        set_weights()
    set_own_trainable(copy, model.trainable)
    # A layer that a model shares with a nested model is copied twice. Replaced layers change
    # the number of variables (block-sparse layers have one more) or of layers (wrappers).
    counts = (state, _layers) if weight_setters else (state,)
    if all(len(count(copy)) != len(count(model)) for count in counts):
        raise CannotCopyError(f"the copy of {model.name!r} does not share the same layers")
    return copy


@contextlib.contextmanager
def _not_compiled(model):
    """Keeps Keras from compiling a clone: it would have to clone losses and metrics."""
    compiled, model.compiled = model.compiled, False
    try:
        yield
    finally:
        model.compiled = compiled


def _copy_subclassed(model):
    copy = clone(model)
    if model.built:
        if not copy.built:
            copy.build_from_config(model.get_build_config())
            copy.built = True
        _copy_state(model, copy)
    return copy


def clone(layer):
    """Returns a new layer of the same configuration, without masks."""
    # Any error here comes from the configuration of a user's class.
    try:
        with allow_lambdas():  # Safe: the configuration comes from an object of this process.
            return type(layer).from_config(_without_masks(layer.get_config()))
    except _CLONE_ERRORS as error:
        raise CannotCopyError(str(error)) from error


def _without_masks(config):
    """Returns a configuration with the wrapped layers in place of `MaskedLayer`s."""
    if isinstance(config, dict):
        if config.get("registered_name") == "tf_rigl>MaskedLayer":
            # The layer takes over the wrapper's name and connections in the graph.
            graph = {k: config[k] for k in ("name", "inbound_nodes") if k in config}
            return {**_without_masks(config["config"]["layer"]), **graph}
        return {key: _without_masks(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_masks(value) for value in config)
    return config


def _copy_state(original, copy):
    """Copies weights, the states of random seeds, and `trainable` of layers and variables."""
    old, new = state(original), state(copy)
    layers, twins = _layers(original), _layers(copy)
    if [tuple(v.shape) for v in old] != [tuple(v.shape) for v in new] or len(layers) != len(twins):
        raise CannotCopyError(f"the copy of {original.name!r} has other weights than the original")
    for source, target in zip(old, new, strict=True):
        target.assign(source)
        target.trainable = source.trainable
    for source, target in zip(layers, twins, strict=True):
        set_own_trainable(target, source.trainable)


def _layers(layer):
    """Returns a layer and all its sublayers, without masks and `MaskedLayer` wrappers."""
    return [each for each in all_layers(layer) if not isinstance(each, (Masks, MaskedLayer))]


def state(layer):
    """Returns the variables of a layer, without those of masks and metrics."""
    ignored = {id(v) for metric in getattr(layer, "metrics", ()) for v in metric.variables}
    for inner in all_layers(layer):
        if isinstance(inner, Masks):
            ignored |= {id(v) for v in inner.variables}
    return [v for v in layer.variables if id(v) not in ignored]
