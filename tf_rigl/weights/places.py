"""The places of variables in a model, by which files know masked weights again.

Paths are for people: Keras gives a layer without a name a new one in each process, and the new name
may be the old one of another layer. Nor do files depend on which weights can be masked: later
versions may mask more kinds.
"""

import keras

from tf_rigl._base import keras_internals
from tf_rigl.weights import adapters, held, maskable
from tf_rigl.weights.masks import Masks


def entries(model, items) -> list[dict]:
    """Returns what a file stores of masked weights: dicts of a path, a place and a shape.

    Args:
        model: `keras.Model` that holds the weights.
        items: list of `tf_rigl.weights.masked_weight.MaskedWeight`.
    """
    held.check(model, items)
    places = {id(each.weight): place for place, each in enumerate(_all(model))}
    return [
        {"path": item.path, "place": places[id(item.weight)], "shape": list(item.weight.shape)}
        for item in items
    ]


def find(model, stored) -> list[maskable.Maskable]:
    """Finds the weights that a file means, by place and shape; else by path and shape.

    Args:
        model: `keras.Model` of the file.
        stored: list of dict, as `entries` returns. Older files have a "number" in place of a
            "place": the number among the weights that could be masked then.

    Raises:
        ValueError: if the model has no such weight.
    """
    variables = _all(model)
    numbered = [each for each in maskable.find(model, False, follow=False) if not _is_new(each)]
    found = []
    for entry in stored:
        at = numbered[entry["number"] :] if "number" in entry else variables[entry["place"] :]
        same_path = [each for each in variables if each.path == entry["path"]]
        fitting = [e for e in at[:1] + same_path if list(e.weight.shape) == entry["shape"]]
        if not fitting:
            raise ValueError(
                f"The file holds a mask for {entry['path']!r}, but the model has no such weight. "
                f"Its maskable weights: {[m.path for m in maskable.find(model, False)]}"
            )
        found.append(fitting[0])
    return found


def _all(model) -> list[maskable.Maskable]:
    """Returns all variables of a model, each once, without those of masks and of LoRA.

    A file may be read into layers that have no LoRA yet.
    """
    found: list = []
    seen: set = set()
    paths: set = set()
    for layer, route, owner in maskable.walk(model):
        if isinstance(layer, Masks):
            continue
        # A model that makes its layers by itself makes them without adapters.
        seen |= {id(variable) for variable in adapters.are_all(layer)}
        for variable in keras_internals.own_variables(layer):
            if id(variable) not in seen and not variable.name.startswith("lora_"):
                seen.add(id(variable))
                path = maskable.unique("/".join((*route, variable.name)), paths)
                found.append(maskable.Maskable(path, route, owner or route, variable, layer))
    return found


def _is_new(found):
    """Returns whether a weight could not be masked when files stored numbers."""
    reverse = getattr(found.layer, "reverse_embeddings", None)
    is_reverse = isinstance(found.layer, keras.layers.Embedding) and found.weight is reverse
    return is_reverse or isinstance(found.layer, keras_internals.ConvLSTMCell)
