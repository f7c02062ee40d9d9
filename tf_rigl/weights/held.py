"""Checks that layers still hold the weights that were masked, and refuses to quantize them.

Quantization puts an integer variable in the place of the kernel. The masked variable is then no
part of the model any more: its mask, its sparsity and its file would be those of nothing.
"""

import functools

import keras

from tf_rigl._base import keras_internals

_ORDER = (
    "Make an ordinary model first, then quantize that: `tf_rigl.strip(model).quantize(...)`. "
    "`tf_rigl.export_tflite` quantizes sparse models as they are."
)


def check(model, items):
    """Raises if layers hold other variables than those that have masks.

    Args:
        model: `keras.Model` that holds the layers.
        items: iterable of `tf_rigl.weights.masked_weight.MaskedWeight`.

    Raises:
        ValueError: names the layer, and the order of steps that works.
    """
    for item in items:
        layer = item.layer
        if layer is None or _holds(layer, item.weight) or _holds(model, item.weight):
            continue
        mode = getattr(layer, "quantization_mode", None)
        cause = f"was quantized to {mode}" if mode else "has another variable in its place"
        raise ValueError(
            f"The masked weight {item.path!r} is no part of the model any more: since it got its "
            f"mask, the layer {layer.name!r} {cause}. {_ORDER}"
        )


def _holds(layer, weight):
    own = keras_internals.own_variables(layer)  # Mostly it is here: the others take time.
    return any(each is weight for each in own) or any(each is weight for each in layer.variables)


def refuse_quantization(layer):
    """Has a layer with a masked weight refuse to be quantized."""
    if type(layer).quantize is not keras.layers.Layer.quantize:
        # Keras sets this attribute too. An item of `vars`, as Keras would track an attribute.
        vars(layer)["quantize"] = functools.partial(_refuse, "layer", layer.name)


def refuse_for_model(model, *args, **kwargs):
    """Refuses to quantize a sparse model."""
    del args, kwargs
    _refuse("model", model.name)


def _refuse(kind, name, *args, **kwargs):
    del args, kwargs
    raise ValueError(
        f"The {kind} {name!r} has masked weights, so it cannot be quantized: no mask would fit "
        f"them any more. {_ORDER}"
    )
