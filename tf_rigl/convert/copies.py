"""Copies models and layers: with weights, without them, or with some layers replaced."""

import contextlib
import functools

import keras

from tf_rigl._base.keras_internals import (
    Functional,
    all_layers,
    allow_lambdas,
    is_constructed_as_graph,
    set_own_trainable,
)
from tf_rigl.block_sparse import conversion
from tf_rigl.block_sparse.attention import tensors_of_call
from tf_rigl.convert.own_training import own_parts
from tf_rigl.convert.transfer import (
    CannotCopyError,
    copy_preprocessing,
    copy_state,
    own_layers,
    paired,
    state,
)
from tf_rigl.weights.masked_layer import MaskedLayer

# Errors that a user's class may raise in `get_config` or `from_config`.
_CLONE_ERRORS = (NotImplementedError, TypeError, ValueError, AttributeError, KeyError)
_GRAPH_CONFIGS = (Functional.get_config, keras.Sequential.get_config)
# What `compile` and Keras itself set, of the attributes that `_copy_settings` may meet.
_NOT_SETTINGS = {"built", "compiled", "loss", "steps_per_execution", "stop_training"}


def is_graph(model):
    """Returns whether a model is a built graph of layers, without a `call` of its own."""
    if not model.built:
        return False
    if isinstance(model, keras.Sequential):
        return type(model).call is keras.Sequential.call and bool(model.inputs)
    return isinstance(model, Functional) and type(model).call is Functional.call


def is_plain_graph(model):
    """Returns whether a model is a graph of layers of which its class knows no more than Keras.

    Others have a constructor or a `get_config` of their own, such as the backbones of KerasHub.
    """
    cls = type(model)
    plain = cls is keras.Sequential or is_constructed_as_graph(cls)
    return is_graph(model) and plain and cls.get_config in _GRAPH_CONFIGS


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
        if is_plain_graph(model):
            with allow_lambdas(), _not_compiled(model):
                copy = keras.models.clone_model(model)
        else:
            copy = clone(model)
        if not copy.built:
            copy.build_from_config(model.get_build_config())
        if [tuple(v.shape) for v in copy.weights] != [tuple(v.shape) for v in model.weights]:
            raise CannotCopyError(f"the copy of {model.name!r} has other weights")
        copy_preprocessing(model, copy)
    except (*_CLONE_ERRORS, CannotCopyError) as error:
        raise _clone_error(model, error) from error
    return copy


def copied(model, makers=None, exact=True):
    """Returns a copy of a dense model with its weights.

    Args:
        model: a `keras.Model`.
        makers: for a graph of layers, a dict of id(layer) to a function that returns a new
            layer in its place, and a function that sets the weights of the new layer.
        exact: as in `try_copy`.

    Raises:
        ValueError: if Keras cannot clone the model.
    """
    with model.distribute_strategy.scope():
        try:
            return try_copy(model, makers, exact)
        except CannotCopyError as error:
            raise _clone_error(model, error) from error


def try_copy(model, makers=None, exact=True):
    """Returns the copy that `copied` returns, but raises `CannotCopyError`.

    Args:
        model, makers: as in `copied`.
        exact: bool, whether the new layers hold as many variables or layers as the old ones.
    """
    copy = _copy(model, makers, exact)
    if type(copy) is type(model):
        _copy_settings(model, copy)
    return copy


def _copy(model, makers, exact=True):
    if not is_graph(model):
        return _copy_by_config(model)
    if makers is None and not is_plain_graph(model) and not conversion.replacements(model):
        try:
            return _copy_by_config(model)
        except CannotCopyError:
            if own_parts(model):
                raise  # A graph of the same layers would train in another way.
    return _copy_graph(model, makers, exact)


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
    return new, functools.partial(copy_state, layer, new)


def _copy_graph(model, makers=None, exact=True):
    """Returns a copy of a graph, with the wrapped layers in place of `MaskedLayer`s.

    Args:
        model: a graph of layers.
        makers: as in `copied`. By default block-sparse layers become ordinary ones.
        exact: as in `try_copy`.
    """
    if makers is None:
        makers = {
            id(layer): functools.partial(conversion.ordinary, layer)
            for layer in conversion.replacements(model)
        }
    pairs, weight_setters, twins, graphs = [], [], {}, set()

    def copy_operation(operation):
        if id(operation) in twins:
            return twins[id(operation)]
        if not isinstance(operation, keras.layers.Layer):
            return type(operation).from_config(operation.get_config())
        original = operation.layer if isinstance(operation, MaskedLayer) else operation
        if id(original) in makers:
            new, set_weights = makers[id(original)]()
            weight_setters.append(set_weights)
            if isinstance(new, keras.Model) and len(new.inputs) > 1:
                graphs.add(id(new))
            return new
        if any(id(layer) in makers for layer in all_layers(original)):
            # `sparsify` makes no such models; users can.
            if not isinstance(original, keras.Model) or not is_graph(original):
                raise CannotCopyError(
                    f"{original.name!r} holds block-sparse layers, but is no graph of layers"
                )
            weight_setters.append(lambda: None)  # It has set those of its layers already.
            return _copy_graph(original, makers, exact)
        new = clone(original)
        # Layers that draw their values at length (factorized ones) need not.
        getattr(new, "set_later", lambda: None)()
        pairs.append((original, new))
        return new

    with _not_compiled(model):
        for operation in _with_shared_layers(model):
            new = copy_operation(operation)
            twins[id(operation)] = new
            twins |= {id(layer): copy for layer, copy in paired(operation, new)}
        may_call = makers and not isinstance(model, keras.Sequential)
        options = {"call_function": functools.partial(_call, graphs)} if may_call else {}
        copy = keras.models.clone_model(model, clone_function=copy_operation, **options)
    for original, twin in pairs:
        copy_state(original, twin)
    for set_weights in weight_setters:
        set_weights()
    set_own_trainable(copy, model.trainable)
    # Replaced layers change the number of variables (block-sparse layers have one more) or of
    # layers (wrappers).
    counts = (state, own_layers) if weight_setters else (state,)
    if exact and all(len(count(copy)) != len(count(model)) for count in counts):
        raise CannotCopyError(
            f"two models in {model.name!r} share a layer, which their copies would not do"
        )
    return copy


def _call(graphs, layer, *args, **kwargs):
    """Calls a layer; a graph in the place of attention gets its tensors as a list."""
    if id(layer) not in graphs:
        return layer(*args, **kwargs)
    return layer([*tensors_of_call(args, kwargs).values()])


def _with_shared_layers(model):
    """Returns the layers of a graph that hold other layers which the graph calls by itself.

    A language model may call the embedding of its backbone once more, as its last layer.
    """
    own = {id(layer) for layer in model.layers}
    return [
        layer
        for layer in model.layers
        if own & {id(inner) for inner in all_layers(layer, include_self=False)}
        and not isinstance(layer, MaskedLayer)
    ]


def check_sharing(graph):
    """Raises `CannotCopyError` if two models in a graph share a layer, which copies would not."""
    seen = set()
    for inner in [layer for layer in graph.layers if isinstance(layer, keras.Model)]:
        held = {id(each) for each in own_layers(inner) if each.weights}
        if held & seen:
            raise CannotCopyError(
                f"{inner.name!r} shares a layer with another model in {graph.name!r}"
            )
        seen |= held
        if is_graph(inner):
            check_sharing(inner)


@contextlib.contextmanager
def _not_compiled(model):
    """Keeps Keras from compiling a clone: it would have to clone losses and metrics."""
    compiled, model.compiled = model.compiled, False
    try:
        yield
    finally:
        model.compiled = compiled


def _copy_by_config(model):
    copy = clone(model)
    if model.built and not copy.built:
        copy.build_from_config(model.get_build_config())
        copy.built = True
    if model.weights:  # A model that is not built may hold layers that are.
        copy_state(model, copy)
    return copy


def _copy_settings(model, copy):
    """Copies numbers, flags and strings that are attributes of a model, such as a temperature.

    The configuration of a user's class may lack them.
    """
    for name, value in vars(model).items():
        plain = isinstance(value, (bool, int, float, str)) and not name.startswith("_")
        if plain and name not in _NOT_SETTINGS and vars(copy).get(name) != value:
            setattr(copy, name, value)


def clone(layer):
    """Returns a new layer of the same configuration, without masks."""
    cls = type(layer)
    try:
        config = _without_masks(layer.get_config())
    except Exception as error:  # A user's class may raise any.
        raise CannotCopyError(f"`get_config` of {cls.__name__} fails: {_cause(error)}") from error
    try:
        # Safe: the configuration comes from an object of this process.
        with allow_lambdas(), keras.saving.custom_object_scope(_classes(layer)):
            return cls.from_config(config)
    except Exception as error:
        raise CannotCopyError(f"`from_config` of {cls.__name__} fails: {_cause(error)}") from error


def _cause(error):
    """Returns the message of an error, without what Keras puts around it."""
    message = str(error).rpartition("Error encountered during deserialization:")[2]
    for rest in ("Full object config", "\nExample"):
        message = message.partition(rest)[0]
    return " ".join(message.split()) or type(error).__name__


def _classes(layer):
    """Returns the classes of a layer and its sublayers that Keras does not know, by name."""
    classes = {type(each) for each in all_layers(layer)}
    unknown = [each for each in classes if not each.__module__.startswith("keras.")]
    return {keras.saving.get_registered_name(each): each for each in unknown}


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
