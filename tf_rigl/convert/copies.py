"""Copies of models and layers: with their weights, without them, or with other layers in places."""

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

# What a user's class may raise when it is made from its configuration.
_CLONE_ERRORS = (NotImplementedError, TypeError, ValueError, AttributeError, KeyError)


class CannotCopyError(Exception):
    """Keras cannot clone a model or layer of a user's own."""


def is_graph(model):
    """Whether the model is a graph of layers, and nothing more."""
    if not model.built:
        return False
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call and bool(model.inputs)
    return isinstance(model, Functional) and type(model).call is Functional.call


def ends(model):
    """The symbolic inputs and outputs of a graph, in their own structure."""
    if isinstance(model, keras.Sequential):
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def fresh_copy(model):
    """A copy of a model without its weights: they are drawn anew.

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
        raise _not_clonable(model, error) from error
    return copy


def copied(model, makers=None):
    """A copy of a dense model with its weights.

    Args:
        model: a `keras.Model`.
        makers: dict of id(layer) to a function that returns a new layer for its place and a
            function that fills it, for a graph of layers.

    Raises:
        ValueError: if Keras cannot clone the model.
    """
    with model.distribute_strategy.scope():
        try:
            return attempt(model, makers)
        except CannotCopyError as error:
            raise _not_clonable(model, error) from error


def attempt(model, makers=None):
    """As `copied`, but raises `CannotCopyError`."""
    return _copy_graph(model, makers) if is_graph(model) else _copy_subclassed(model)


def _not_clonable(model, error):
    return ValueError(
        f"Argument `model` must be one that Keras can clone. Received: model={model!r} ({error})"
    )


def twin(layer, **changes):
    """A new layer of the same configuration, and a function that copies the weights.

    Args:
        layer: a `keras.layers.Layer` without masks.
        **changes: to its configuration.

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
    """A copy of a graph of layers, with masked layers replaced by what they wrap.

    Args:
        model: a graph of layers.
        makers: dict of id(layer) to a function that returns a new layer for its place and
            a function that fills it. By default block-sparse layers become ordinary ones.
    """
    if makers is None:
        makers = {
            id(layer): functools.partial(conversion.ordinary, layer)
            for layer in conversion.replacements(model)
        }
    pairs, fillings = [], []

    def copy_operation(operation):
        if not isinstance(operation, keras.layers.Layer):
            return type(operation).from_config(operation.get_config())
        original = operation.layer if isinstance(operation, MaskedLayer) else operation
        if id(original) in makers:
            new, fill = makers[id(original)]()
            fillings.append(fill)
            return new
        if any(id(layer) in makers for layer in all_layers(original)):
            # That is so in what was made by hand only.
            if not isinstance(original, keras.Model) or not is_graph(original):
                raise CannotCopyError(
                    f"{original.name!r} is no graph of layers and holds block-sparse ones"
                )
            return _copy_graph(original, makers)
        pairs.append((original, clone(original)))
        return pairs[-1][1]

    with _not_compiled(model):
        copy = keras.models.clone_model(model, clone_function=copy_operation)
    for original, twin in pairs:
        _copy_state(original, twin)
    for fill in fillings:
        fill()
    set_own_trainable(copy, model.trainable)
    # Shared across the border of a nested model. (Block-sparse layers have a variable more,
    # wrappers are a layer more.)
    counts = (state, _layers) if fillings else (state,)
    if all(len(count(copy)) != len(count(model)) for count in counts):
        raise CannotCopyError(f"the copy of {model.name!r} does not share the same layers")
    return copy


@contextlib.contextmanager
def _not_compiled(model):
    """Keeps Keras from compiling a clone, for which it would have to clone losses and metrics."""
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
    """A new layer of the same configuration, without masks inside."""
    # Whatever goes wrong here, goes wrong in the configuration of a user's class.
    try:
        with allow_lambdas():  # Lambdas: the configuration comes from a live object.
            return type(layer).from_config(_without_masks(layer.get_config()))
    except _CLONE_ERRORS as error:
        raise CannotCopyError(str(error)) from error


def _without_masks(config):
    """A configuration in which wrapped layers stand in place of `MaskedLayer`."""
    if isinstance(config, dict):
        if config.get("registered_name") == "tf_rigl>MaskedLayer":
            # What a graph says of the wrapper, its name and connections, it says of the layer.
            graph = {k: config[k] for k in ("name", "inbound_nodes") if k in config}
            return {**_without_masks(config["config"]["layer"]), **graph}
        return {key: _without_masks(value) for key, value in config.items()}
    if isinstance(config, (list, tuple)):
        return type(config)(_without_masks(value) for value in config)
    return config


def _copy_state(original, copy):
    """Copies weights, the states of random seeds, and which layers are frozen."""
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
    """A layer and all its sublayers, but for the masks and what holds them."""
    return [each for each in all_layers(layer) if not isinstance(each, (Masks, MaskedLayer))]


def state(layer):
    """The variables of a layer, but for masks and metrics."""
    left_out = {id(v) for metric in getattr(layer, "metrics", ()) for v in metric.variables}
    for inner in all_layers(layer):
        if isinstance(inner, Masks):
            left_out |= {id(v) for v in inner.variables}
    return [v for v in layer.variables if id(v) not in left_out]
