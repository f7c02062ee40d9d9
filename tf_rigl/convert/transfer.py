"""Copies what layers hold to layers of the same configuration.

That is the values of variables, which of them are frozen, LoRA adapters, and what layers of
preprocessing have learned: vocabularies, means.
"""

import pathlib
import tempfile

import keras
import numpy as np

from tf_rigl._base.keras_internals import all_layers, own_variables, set_own_trainable
from tf_rigl.weights import adapters
from tf_rigl.weights.masked_layer import MaskedLayer
from tf_rigl.weights.masks import Masks


class CannotCopyError(Exception):
    """Keras cannot clone a custom model or layer. The message says why."""


def copy_state(original, copy):
    """Copies all that a layer and its sublayers hold.

    Args:
        original: a `keras.layers.Layer` or model.
        copy: another one, made of its configuration.

    Raises:
        CannotCopyError: if the copy has other layers or variables.
    """
    pairs = paired(original, copy)
    for source, target in pairs:
        adapters.enable_as(source, target)
    variables = _paired_variables(original, copy)
    for source, target in pairs:
        _copy_own(source, target)
        set_own_trainable(target, source.trainable)
    for source, target in variables:
        target.assign(source)
        target.trainable = source.trainable


def copy_preprocessing(original, copy):
    """Copies what the layers without trained weights hold beside their variables."""
    for source, target in paired(original, copy):
        if not source.trainable_variables:
            _copy_own(source, target)


def paired(original, copy):
    """Returns pairs of each layer of a model and its twin in a copy, without masks.

    Layers without variables may lack a twin: some are made when a model is first used.

    Raises:
        CannotCopyError: if the copy has other layers.
    """
    pairs, rest = [], iter(own_layers(original))
    for target in own_layers(copy):
        source = next((each for each in rest if _is_twin(each, target)), None)
        if source is None:
            raise CannotCopyError(f"the copy of {original.name!r} has other layers")
        pairs.append((source, target))
    known = {id(source) for source, _ in pairs}
    alone = [each for each in own_layers(original) if id(each) not in known]
    if lost := [each for each in alone if _own(each) or hasattr(each, "save_assets")]:
        raise CannotCopyError(f"the copy of {original.name!r} lacks the layer {lost[0].name!r}")
    return pairs


def _is_twin(layer, other):
    return type(layer) is type(other) and len(_own(layer)) == len(_own(other))


def _own(layer):
    """Returns the variables of a layer alone, without those of LoRA."""
    left_out = {id(variable) for variable in adapters.are_all(layer)}
    return [variable for variable in own_variables(layer) if id(variable) not in left_out]


def _paired_variables(original, copy):
    old, new = state(original), state(copy)
    if len(old) != len(new):
        raise CannotCopyError(
            f"the copy of {original.name!r} has {len(new)} variables, the original {len(old)}"
        )
    pairs = list(zip(old, new, strict=True))
    for one, other in pairs:
        if tuple(one.shape) != tuple(other.shape) or one.dtype != other.dtype:
            raise CannotCopyError(
                f"{one.path!r} of shape {tuple(one.shape)} and type {one.dtype} has the shape "
                f"{tuple(other.shape)} and the type {other.dtype} in the copy"
            )
    return pairs


def _copy_own(source, target):
    """Has a layer load what its twin would store in a file."""
    try:
        if type(source).load_own_variables is not keras.layers.Layer.load_own_variables:
            store = {}
            source.save_own_variables(store)
            target.load_own_variables({key: _array(value) for key, value in store.items()})
        if hasattr(source, "save_assets"):
            _copy_assets(source, target)
    except Exception as error:  # A user's class may raise any.
        raise CannotCopyError(
            f"{source.name!r} (of type {type(source).__name__}) cannot load what it stores: {error}"
        ) from error


def _copy_assets(source, target):
    with tempfile.TemporaryDirectory() as old, tempfile.TemporaryDirectory() as new:
        source.save_assets(old)
        try:
            target.load_assets(old)
        except Exception:
            # Keras cannot load the vocabulary of a layer that was never adapted.
            target.save_assets(new)
            if _contents(old) != _contents(new):
                raise


def _contents(folder):
    files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def _array(value):
    """Returns a value as a file would give it back."""
    if isinstance(value, keras.Variable):
        value = keras.ops.convert_to_tensor(value)
    # NumPy would warn of how tensors are copied.
    return value.numpy() if hasattr(value, "numpy") else np.asarray(value)


def own_layers(layer):
    """Returns a layer and all its sublayers, without masks and `MaskedLayer` wrappers."""
    return [each for each in all_layers(layer) if not isinstance(each, (Masks, MaskedLayer))]


def state(layer):
    """Returns the variables of a layer, without those of masks and metrics."""
    ignored = {id(v) for metric in getattr(layer, "metrics", ()) for v in metric.variables}
    for inner in all_layers(layer):
        if isinstance(inner, Masks):
            ignored |= {id(v) for v in inner.variables}
    return [v for v in layer.variables if id(v) not in ignored]
