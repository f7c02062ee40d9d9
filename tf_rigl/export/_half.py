"""Models that compute in half precision, for files that compute in float32."""

import contextlib

import keras

from tf_rigl._base.keras_internals import all_layers

_HALF = ("float16", "bfloat16")


@contextlib.contextmanager
def in_float32(*models):
    """Has the layers of models compute in float32 within this context.

    LiteRT has few operators for half precision.

    Args:
        *models: `keras.Model`s. What is compiled already stays.

    Raises:
        ValueError: if a layer stores its variables in half precision too.
    """
    layers = {id(layer): layer for model in models for layer in all_layers(model)}.values()
    policies = [(layer, layer.dtype_policy) for layer in layers if _computes_half(layer)]
    for layer, policy in policies:
        if any(str(variable.dtype) in _HALF for variable in layer.weights):
            raise ValueError(
                f"Argument `model` has a layer {layer.name!r} of dtype {policy.name!r}, for which "
                "LiteRT has no operators. Build the model with 'mixed_float16' or "
                f"'mixed_bfloat16', whose weights are float32. Received: model={models[0]!r}"
            )
    try:
        for layer, _ in policies:
            layer.dtype_policy = "float32"
        yield
    finally:
        for layer, policy in policies:
            layer.dtype_policy = policy


def _computes_half(layer):
    policy = layer.dtype_policy
    return type(policy) is keras.DTypePolicy and policy.compute_dtype in _HALF
