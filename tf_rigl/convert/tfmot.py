"""From tensorflow-model-optimization (tfmot), which prunes `tf_keras` models, to Keras 3.

Schedules need no conversion: `tf_rigl.methods.MagnitudePruning` takes any tfmot
`PruningSchedule` as it is. `docs/migrating.md` puts the two libraries side by side.
"""

import json
import pathlib
import tempfile
import warnings

import h5py
import keras
import numpy as np

from tf_rigl import methods
from tf_rigl._base.keras_internals import all_layers
from tf_rigl.convert import sparsifying
from tf_rigl.methods.magnitude import MagnitudePruning
from tf_rigl.training import loop
from tf_rigl.weights import maskable


def from_tfmot(model, method=None, *, seed=None, custom_objects=None):
    """Makes a Keras 3 `SparseModel` of a `tf_keras` model that tfmot prunes.

    Weights, masks and the step counter are taken over, so pruning can go on where it
    stood; the optimizer's state is not. The model that is passed in is left as it is.

    Args:
        model: a `tf_keras` model, Sequential or functional, with layers wrapped by
            `tfmot.sparsity.keras.prune_low_magnitude`.
        method: str or `tf_rigl.methods.Method`, how masks go on: "static" keeps them,
            "rigl" moves them. Defaults to `MagnitudePruning` by the model's own
            pruning schedule.
        seed: int, as in `tf_rigl.sparsify`.
        custom_objects: dict of name to the Keras 3 class or function that stands for a
            custom one of the model, as in `keras.models.load_model`.

    Returns:
        A `tf_rigl.SparseModel` with the same weights, masks and outputs, to be compiled.

    Raises:
        ValueError: if nothing in the model is wrapped, its layers have different
            schedules or patterns other than single weights (then pass `method`), or
            Keras 3 cannot read it.

    Example:

    >>> pruned = tfmot.sparsity.keras.prune_low_magnitude(tf_keras_model)
    >>> sparse = tf_rigl.interop.from_tfmot(pruned)
    >>> sparse.compile("adam", "mse")
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

    if not isinstance(model, tf_keras.Model):
        raise ValueError(
            "Argument `model` must be a `tf_keras` model that tfmot prunes; `tf_rigl.sparsify` "
            f"takes those of Keras 3. Received: model={model!r} (of type {type(model)})"
        )
    wrappers = _routes(model, pruning_wrapper.PruneLowMagnitude)
    if not wrappers:
        raise ValueError(
            "Argument `model` must have layers wrapped by `prune_low_magnitude`. "
            f"Received: a model with the layers {[layer.name for layer in model.layers]}"
        )
    method = _schedule_of(list(wrappers.values())) if method is None else methods.get(method)

    dense = _to_keras_3(tfmot.sparsity.keras.strip_pruning(model), custom_objects)
    pairs = _pairs(wrappers, dense)
    # Methods that begin sparse draw a mask, and set weights under it to zero.
    found = maskable.find(dense, include_self=False)
    values = {m.path: keras.ops.convert_to_numpy(m.weight) for m in found}
    sparse = sparsifying.sparsify(
        dense,
        method=method,
        distribution={path: _final_sparsity(*pair) for path, pair in pairs.items()},
        seed=seed,
    )
    for item in sparse.masked_weights:
        if item.path in pairs:
            item.weight.assign(values[item.path])
            item.set_mask(pairs[item.path][1])
    # A layer that is called several times counts every call.
    steps = [int(wrapper.pruning_step.numpy()) for wrapper in wrappers.values()]
    loop.of(sparse).steps_taken = max(0, min(steps))
    return sparse


def _routes(layer, cls, route=()):
    """The wrappers with something to prune in a model, by the names of the layers on the way."""
    routes = {}
    inner = getattr(layer, "layers", None)
    for child in all_layers(layer, include_self=False, recursive=False) if inner is None else inner:
        # tfmot wraps layers without anything to prune, too.
        if isinstance(child, cls) and child.pruning_vars:
            routes[(*route, child.layer.name)] = child
        elif not isinstance(child, cls):
            routes |= _routes(child, cls, (*route, child.name))
    return routes


def _pairs(wrappers, dense):
    """The wrapper and the mask of each weight of the Keras 3 model, by path."""
    pairs = {}
    found = maskable.find(dense, include_self=False)
    for route, wrapper in wrappers.items():
        for weight, mask, _ in wrapper.pruning_vars:
            name = weight.name.split("/")[-1].split(":")[0]
            paths = [
                m.path
                for m in found
                if m.layers[: len(route)] == route
                and m.weight.name == name
                and tuple(m.weight.shape) == tuple(weight.shape)
            ]
            if len(paths) > 1:
                raise ValueError(
                    f"The mask of {'/'.join((*route, name))!r} fits several weights: {paths}."
                )
            if not paths:
                warnings.warn(
                    f"tf_rigl does not mask {'/'.join((*route, name))!r}: its zeros are kept, and "
                    "may be trained away.",
                    stacklevel=4,
                )
            for path in paths:
                pairs[path] = wrapper, np.asarray(mask) != 0
    return pairs


def _schedule_of(wrappers):
    """Pruning by the schedule that all wrappers share."""
    for wrapper in wrappers:
        if tuple(wrapper.block_size) != (1, 1) or wrapper.sparsity_m_by_n:
            raise ValueError(
                f"Layer {wrapper.layer.name!r} is pruned in blocks or m by n, and to go on so is "
                "not supported. Pass `method='static'` to keep its mask. Received: "
                f"block_size={wrapper.block_size}, sparsity_m_by_n={wrapper.sparsity_m_by_n}"
            )
    schedules = {repr(wrapper.pruning_schedule.get_config()) for wrapper in wrappers}
    if len(schedules) > 1:
        raise ValueError(
            "The layers have different pruning schedules. Pass `method`, for example "
            f"`method='static'` to keep the masks as they are. Received: {sorted(schedules)}"
        )
    return MagnitudePruning(wrappers[0].pruning_schedule)


def _final_sparsity(wrapper, mask):
    """Where the schedule ends, or, where it does not say, where the mask is."""
    final = MagnitudePruning(wrapper.pruning_schedule).final_sparsity
    return 1 - np.mean(mask) if final is None else final


def _to_keras_3(model, custom_objects):
    """The same model in Keras 3, by way of the file format that both know."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.h5"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Keras says that this format is an old one.
                model.save(path, include_optimizer=False)
            with h5py.File(path, "r+") as file:
                config = json.loads(file.attrs["model_config"])
                file.attrs["model_config"] = json.dumps(_without_given_up(config))
            # Lambdas are no danger: what is read is a model of this process.
            return keras.models.load_model(
                path, custom_objects=custom_objects, compile=False, safe_mode=False
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"Keras 3 cannot read the model {model.name!r}: {error}. Custom layers need their "
                "Keras 3 form in `custom_objects`."
            ) from error


# Arguments that `tf_keras` writes and Keras 3 does not read, by layer, with the only value
# that means the same without them; None for those that never mean anything.
_NO_GROUPS = {"groups": 1}
_SEPARABLE = dict.fromkeys(("kernel_initializer", "kernel_regularizer", "kernel_constraint"))
_DROPOUT = dict.fromkeys(("noise_shape", "trainable"))
_RECURRENT = {"time_major": False}
_MODELS = ("Functional", "Model", "Sequential")
_GIVEN_UP = {
    "DepthwiseConv1D": _NO_GROUPS,
    "DepthwiseConv2D": _NO_GROUPS,
    "Conv1DTranspose": _NO_GROUPS,
    "Conv2DTranspose": _NO_GROUPS,
    "Conv3DTranspose": _NO_GROUPS,
    "SeparableConv1D": _NO_GROUPS | _SEPARABLE,
    "SeparableConv2D": _NO_GROUPS | _SEPARABLE,
    "LSTM": _RECURRENT,
    "GRU": _RECURRENT,
    "SimpleRNN": _RECURRENT,
    "RNN": _RECURRENT,
    "SpatialDropout1D": _DROPOUT,
    "SpatialDropout2D": _DROPOUT,
    "SpatialDropout3D": _DROPOUT,
}


def _without_given_up(config):
    """A configuration, and all within it, without the arguments that Keras 3 gave up."""
    if isinstance(config, list):
        return [_without_given_up(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: _without_given_up(value) for key, value in config.items()}
    inner = config.get("config")
    if isinstance(inner, dict):
        name = config.get("class_name")
        for key, allowed in _GIVEN_UP.get(name, {}).items():
            value = inner.pop(key, allowed)
            if allowed is not None and value != allowed:
                raise ValueError(f"{name} of Keras 3 has no `{key}`. Received: {key}={value!r}")
        _renumber_calls_of_models(inner)
    return config


def _renumber_calls_of_models(graph):
    """Counts calls of models inside a graph from 0, as Keras 3 does.

    `tf_keras` counts the call on the model's own input first.
    """
    layers = graph.get("layers", ())
    models = [layer for layer in layers if layer["class_name"] in _MODELS]
    names = {layer["config"]["name"] for layer in models}

    def renumber(value):
        if isinstance(value, dict):
            return {key: renumber(inner) for key, inner in value.items()}
        if not isinstance(value, list):
            return value
        if len(value) >= 3 and isinstance(value[0], str) and value[0] in names:
            return [value[0], value[1] - 1, *(renumber(inner) for inner in value[2:])]
        return [renumber(inner) for inner in value]

    if names:
        for layer in layers:
            if "inbound_nodes" in layer:
                layer["inbound_nodes"] = renumber(layer["inbound_nodes"])
        for key in ("input_layers", "output_layers"):
            if key in graph:
                graph[key] = renumber(graph[key])
