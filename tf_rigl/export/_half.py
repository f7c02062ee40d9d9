"""Models that compute in half precision, for files that compute in float32."""

import contextlib

import keras

from tf_rigl._base.keras_internals import all_layers, own_variables

_HALF = ("float16", "bfloat16")


@contextlib.contextmanager
def in_float32(*models):
    """Has the layers of models compute in float32 within this context.

    LiteRT has few operators for half precision. Layers that store their variables in it stay as
    they are: their variables could not follow.

    Args:
        *models: `keras.Model`s. What is compiled already stays.

    Yields:
        Whether any layer has changed.
    """
    layers = {id(layer): layer for model in models for layer in all_layers(model)}.values()
    chosen = [layer for layer in layers if _computes_half(layer) and not _stores_half(layer)]
    policies = [(layer, layer.dtype_policy) for layer in chosen]
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float32"
        yield bool(policies)
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def advice(model) -> str:
    """Returns what to change if LiteRT refuses a model that stores half precision, or ""."""
    for layer in all_layers(model):
        if _stores_half(layer):
            return (
                f" Layer {layer.name!r} has dtype {layer.dtype_policy.name!r}, for which LiteRT "
                "has few operators. Build the model with 'mixed_float16' or 'mixed_bfloat16': "
                "their weights are float32."
            )
    return ""


def _stores_half(layer):
    return any(str(variable.dtype) in _HALF for variable in own_variables(layer))


def _computes_half(layer):
    policy = layer.dtype_policy
    return type(policy) is keras.DTypePolicy and policy.compute_dtype in _HALF
