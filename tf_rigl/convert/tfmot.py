"""Converts `tf_keras` models that tensorflow-model-optimization (tfmot) prunes to Keras 3.

Schedules need no conversion: `tf_rigl.methods.MagnitudePruning` takes any tfmot
`PruningSchedule`. `docs/migrating.md` compares the two libraries.
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
from tf_rigl.convert import sparsifying, trained
from tf_rigl.methods.magnitude import MagnitudePruning
from tf_rigl.training import loop
from tf_rigl.weights import maskable


def from_tfmot(model, method=None, *, seed=None, custom_objects=None):
    """Makes a Keras 3 `SparseModel` of a `tf_keras` model that tfmot prunes.

    The new model has the weights, the masks and the step counter, so pruning can continue.
    The optimizer's state is not converted. The original model is not changed.

    Args:
        model: a `tf_keras` model, Sequential or functional, with layers wrapped by
            `tfmot.sparsity.keras.prune_low_magnitude`.
        method: str or `tf_rigl.methods.Method`, how masks change from now on: "static" keeps
            them, "rigl" moves them. Defaults to `MagnitudePruning` with the model's own
            pruning schedule.
        seed: int, as in `tf_rigl.sparsify`.
        custom_objects: dict of name to the Keras 3 class or function that replaces a
            custom one of the model, as in `keras.models.load_model`.

    Returns:
        A `tf_rigl.SparseModel` with the same weights, masks and outputs, not compiled.

    Raises:
        ValueError: if no layer is wrapped, if layers have different schedules, blocks or
            m by n patterns (then pass `method`), or if Keras 3 cannot read the model.

    Example:

    >>> import tf_keras
    >>> import tensorflow_model_optimization as tfmot
    >>> layers = [tf_keras.Input((16,)), tf_keras.layers.Dense(4)]
    >>> pruned = tfmot.sparsity.keras.prune_low_magnitude(tf_keras.Sequential(layers))
    >>> sparse = tf_rigl.interop.from_tfmot(pruned)
    >>> sparse.method  # doctest: +ELLIPSIS
    MagnitudePruning(...)
    >>> sparse.compile("adam", "mse")
    """
    import tensorflow_model_optimization as tfmot
    import tf_keras
    from tensorflow_model_optimization.python.core.sparsity.keras import pruning_wrapper

    if not isinstance(model, tf_keras.Model):
        raise ValueError(
            "Argument `model` must be a `tf_keras` model that tfmot prunes. For Keras 3 models, "
            f"use `tf_rigl.sparsify`. Received: model={model!r} (of type {type(model)})"
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
    # A method that starts sparse draws a mask and sets weights to zero, so keep their values.
    found = maskable.find(dense, include_self=False)
    values = {m.path: keras.ops.convert_to_numpy(m.weight) for m in found}
    sparsities = {path: _final_sparsity(*pair) for path, pair in pairs.items()}
    with trained.expected():
        sparse = sparsifying.sparsify(dense, method=method, distribution=sparsities, seed=seed)
    for item in sparse.masked_weights:
        if item.path in pairs:
            item.weight.assign(values[item.path])
            item.set_mask(pairs[item.path][1])
    # The counter of a layer that is called several times in a step is too high.
    steps = [int(wrapper.pruning_step.numpy()) for wrapper in wrappers.values()]
    loop.of(sparse).steps_taken = max(0, min(steps))
    return sparse


def _routes(layer, cls, route=()):
    """Returns a model's wrappers that prune a weight, by route: the names of layers above it."""
    routes = {}
    inner = getattr(layer, "layers", None)
    for child in all_layers(layer, include_self=False, recursive=False) if inner is None else inner:
        # tfmot also wraps layers without prunable weights.
        if isinstance(child, cls) and child.pruning_vars:
            routes[(*route, child.layer.name)] = child
        elif not isinstance(child, cls):
            routes |= _routes(child, cls, (*route, child.name))
    return routes


def _pairs(wrappers, dense):
    """Returns the wrapper and the mask of each weight of the Keras 3 model, by path."""
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
                    f"tf_rigl does not mask {'/'.join((*route, name))!r}: it keeps its zeros now, "
                    "but training may change them.",
                    stacklevel=4,
                )
            for path in paths:
                pairs[path] = wrapper, np.asarray(mask) != 0
    return pairs


def _schedule_of(wrappers):
    """Returns pruning with the schedule that all wrappers share, or raises."""
    for wrapper in wrappers:
        if tuple(wrapper.block_size) != (1, 1) or wrapper.sparsity_m_by_n:
            raise ValueError(
                f"Layer {wrapper.layer.name!r} is pruned in blocks or m by n, which tf_rigl cannot "
                "continue. Pass `method='static'` to keep its mask. Received: "
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
    """Returns the final sparsity of the schedule; if it has none, the sparsity of the mask."""
    final = MagnitudePruning(wrapper.pruning_schedule).final_sparsity
    return 1 - np.mean(mask) if final is None else final


def _to_keras_3(model, custom_objects):
    """Returns the model in Keras 3. It goes through a file in a format that both know."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "model.h5"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # Keras warns that this format is old.
                model.save(path, include_optimizer=False)
            with h5py.File(path, "r+") as file:
                config = json.loads(file.attrs["model_config"])
                file.attrs["model_config"] = json.dumps(_without_old_arguments(config))
            # Lambdas are safe here: the model comes from this process.
            return keras.models.load_model(
                path, custom_objects=custom_objects, compile=False, safe_mode=False
            )
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"Keras 3 cannot read the model {model.name!r}: {error}. Pass the Keras 3 classes "
                "of custom layers in `custom_objects`."
            ) from error


# Layer -> arguments that `tf_keras` writes and Keras 3 does not read, each with the only value
# that Keras 3 can drop; None if it can drop any value.
_NO_GROUPS = {"groups": 1}
_SEPARABLE = dict.fromkeys(("kernel_initializer", "kernel_regularizer", "kernel_constraint"))
_DROPOUT = dict.fromkeys(("noise_shape", "trainable"))
_RECURRENT = {"time_major": False}
_MODELS = ("Functional", "Model", "Sequential")
_OLD_ARGUMENTS = {
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


def _without_old_arguments(config):
    """Returns a configuration without the arguments that Keras 3 does not read, at all levels."""
    if isinstance(config, list):
        return [_without_old_arguments(value) for value in config]
    if not isinstance(config, dict):
        return config
    config = {key: _without_old_arguments(value) for key, value in config.items()}
    inner = config.get("config")
    if isinstance(inner, dict):
        name = config.get("class_name")
        for key, allowed in _OLD_ARGUMENTS.get(name, {}).items():
            value = inner.pop(key, allowed)
            if allowed is not None and value != allowed:
                raise ValueError(
                    f"{name} of Keras 3 has no argument `{key}`. Received: {key}={value!r}"
                )
        _renumber_calls_of_models(inner)
    return config


def _renumber_calls_of_models(graph):
    """Numbers the calls of nested models from 0, as Keras 3 does.

    `tf_keras` numbers them from 1: its call 0 is the one on the nested model's own input.
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
