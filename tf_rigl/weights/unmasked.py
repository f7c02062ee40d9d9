"""The large weights of a model that have no mask, and why."""

import dataclasses
import math

import keras
from keras import layers

from tf_rigl._base import keras_internals, notices
from tf_rigl.weights import maskable, products
from tf_rigl.weights.masks import Masks
from tf_rigl.weights.sparse_weight import StoresSparse

FROZEN = "frozen"
_LORA = "a kernel with LoRA"
_SHARE = 0.1  # Of the trained parameters; a smaller rest needs no warning.
_SHOWN = 3
_SMALL = ("bias", "gamma", "beta")  # Of attention, biases have two axes.
_DEPTHWISE = (
    *(layers.DepthwiseConv1D, layers.DepthwiseConv2D),
    *(layers.SeparableConv1D, layers.SeparableConv2D),
)


@dataclasses.dataclass(frozen=True)
class Unmasked:
    """A weight of two or more axes that has no mask, though nobody asked for that by name.

    Attributes:
        name: str, the path of the weight.
        shape: tuple of int.
        params: int, the number of entries.
        share: float, the fraction of the model's parameters.
        reason: str: "frozen"; "a kernel with LoRA"; "quantized to int8"; "depthwise"; "not a
            kernel" (a custom layer adds it, looks it up or normalises it); "of unknown use" (Keras
            could not call the layer symbolically).
    """

    name: str
    shape: tuple[int, ...]
    params: int
    share: float
    reason: str

    def __str__(self):
        shape = "x".join(map(str, self.shape))
        return f"{self.name!r} ({shape}, {self.share:.1%} of the parameters, {self.reason})"


def find(model, masked) -> list[Unmasked]:
    """Finds the weights of two or more axes that have no mask, the largest first.

    Weights that can be masked and are not, because of `exclude` or a distribution, are left out.
    So are biases, parameters of normalisation, and what a custom layer leaves out of
    `get_prunable_weights()`.

    Args:
        model: a built `keras.Model`.
        masked: iterable of the `keras.Variable`s that have masks.
    """
    found: list = []
    seen: set = set()
    paths: set = set()
    total = 0
    masked = {id(each) for each in masked}
    known = {id(each.weight) for each in maskable.find(model, include_self=False)}
    for layer, route, _ in maskable.walk(model):
        if isinstance(layer, Masks):
            continue
        for variable in keras_internals.own_variables(layer):
            if id(variable) in seen:
                continue
            seen.add(id(variable))
            params = math.prod(variable.shape)
            total += params
            reason = _reason(layer, variable, id(variable) in known)
            if reason is not None and id(variable) not in masked:
                name = maskable.unique("/".join((*route, variable.name)), paths)
                found.append(Unmasked(name, tuple(variable.shape), params, 0.0, reason))
    found = [dataclasses.replace(each, share=each.params / total) for each in found]
    return sorted(found, key=lambda each: -each.params)


def _reason(layer, variable, is_maskable):
    """Returns why a weight without a mask has none; None if somebody has chosen so."""
    if len(variable.shape) < 2 or isinstance(layer, StoresSparse):
        return None
    if not keras.backend.is_float_dtype(variable.dtype):
        mode = getattr(layer, "quantization_mode", None)
        return None if mode is None else f"quantized to {mode}"
    if not any(each is variable for each in keras_internals.trainable_variables(layer)):
        return None  # It was never meant to be trained.
    if getattr(layer, "lora_enabled", False):
        return None if variable.name.startswith("lora_") else _LORA
    if variable.name in _SMALL:
        return None
    if not variable.trainable:
        return FROZEN
    if is_maskable or hasattr(layer, "get_prunable_weights"):
        return None
    if isinstance(layer, _DEPTHWISE):
        return "depthwise"
    if isinstance(layer, keras.Model):
        return "of unknown use"
    if products.candidates(layer) and not products.is_known(layer, variable):
        return "of unknown use"
    return "not a kernel"


def warn(model, masked):
    """Warns, once, if much of what a model trains has no mask; names the largest of it.

    Args:
        model: a built `keras.Model`.
        masked: iterable of the `keras.Variable`s that have masks.
    """
    found = [each for each in find(model, masked) if each.reason != FROZEN]
    touched = [e for e in found if e.reason == _LORA or e.reason.startswith("quantized")]
    trained = sum(math.prod(each.shape) for each in model.trainable_variables)
    rest = sum(each.params for each in found)
    trained += sum(each.params for each in touched)
    if not touched and rest <= _SHARE * trained:
        return
    shown = ", ".join(map(str, found[:_SHOWN]))
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    advice = ["`tf_rigl.report(model).unmasked` lists them."]
    if touched:
        advice.append("Use LoRA or quantization after training: `tf_rigl.strip` the model first.")
    if len(touched) < len(found):
        advice.append("A custom layer names weights to mask with `get_prunable_weights()`.")
    notices.warn(
        f"Weights with {rest / trained:.0%} of the trained parameters have no masks and stay "
        f"dense: {shown}{more}. {' '.join(advice)}"
    )
