"""LoRA adapters on top of masked weights: the weight is frozen, its zeros stay, adapters train.

Keras stores the sum of a kernel and its adapters in place of the kernel. That sum is dense. So the
file of a sparse model holds the kernel and the adapters too, beside the masks.
"""

import keras
import numpy as np

from tf_rigl._base import keras_internals

_ATTRIBUTES = ("kernel", "embeddings")


def of(layer, weight):
    """Returns the two factors that LoRA adds to a weight, or None.

    Args:
        layer: the `keras.layers.Layer` that holds the weight.
        weight: `keras.Variable`.
    """
    if not getattr(layer, "lora_enabled", False):
        return None
    for name in _ATTRIBUTES:
        if hasattr(layer, f"lora_{name}_a"):
            base = keras_internals.stored_variable(layer, name)
            factors = [getattr(layer, f"lora_{name}_{factor}") for factor in "ab"]
            return factors if base is weight else None
    return None


def are_all(layer) -> list:
    """Returns the variables of a layer alone that belong to LoRA."""
    names = [f"lora_{name}_{factor}" for name in _ATTRIBUTES for factor in "ab"]
    return [getattr(layer, name) for name in names if hasattr(layer, name)]


def config(item) -> dict:
    """Returns the rank and alpha of the adapters of an item, as a part of a configuration."""
    has_none = of(item.layer, item.weight) is None
    return {} if has_none else {"lora": _rank_and_alpha(item.layer)}


def enable(layer, rank, alpha):
    """Gives a layer adapters, if it has none yet, and sets their scale."""
    if not getattr(layer, "lora_enabled", False):
        layer.enable_lora(rank)
    if alpha is not None:
        layer.lora_alpha = alpha  # A layer that Keras makes of its configuration forgets it.


def enable_as(source, target):
    """Gives a layer adapters if another one of the same configuration has some.

    The configuration of a layer holds those of LoRA. But a model with a constructor of its own may
    make its layers without.
    """
    if getattr(source, "lora_enabled", False):
        enable(target, *_rank_and_alpha(source))


def _rank_and_alpha(layer):
    return [layer.lora_rank, getattr(layer, "lora_alpha", None)]  # Older Keras has no alpha.


def stored(item):
    """Returns what a file stores of an item: arrays by name.

    Args:
        item: `tf_rigl.weights.masked_weight.MaskedWeight`.
    """
    factors = of(item.layer, item.weight)
    if factors is None:
        return {}
    named = _named(item.weight, factors).items()
    return {name: keras.ops.convert_to_numpy(variable) for name, variable in named}


def restore(item, arrays):
    """Restores a result of `stored`.

    Raises:
        ValueError: if the model has no such adapters.
    """
    if not arrays:
        return
    factors = of(item.layer, item.weight)
    shapes = [np.shape(arrays[name]) for name in ("lora_a", "lora_b")]
    if factors is None or [tuple(each.shape) for each in factors] != shapes:
        rank = shapes[1][0]
        raise ValueError(
            f"The file holds adapters of LoRA for {item.path!r}, but the model has none of rank "
            f"{rank}. Before you load the weights, call `enable_lora({rank})` of the layer "
            f"{item.layer.name!r}."
        )
    for name, variable in _named(item.weight, factors).items():
        variable.assign(arrays[name])


def _named(weight, factors):
    return dict(zip(("lora_base", "lora_a", "lora_b"), (weight, *factors), strict=True))
