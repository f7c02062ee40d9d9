"""The compact form of a model that is exported, see `tf_rigl.compact`."""

import keras

from tf_rigl._base.arguments import unknown_name
from tf_rigl.compaction import compacting
from tf_rigl.convert.transfer import CannotCopyError
from tf_rigl.weights import masks


def attempted(model, compute, allowed, quantization=None):
    """Returns the compact model to export, or None for the ordinary one.

    Args:
        model: the model that the user exports.
        compute: str, the user's argument.
        allowed: tuple of str, its values.
        quantization: str or None, see `tf_rigl.compact`.

    Returns:
        A `keras.Model`, and the `Entry` of each layer that is compact in it; or None and [].

    Raises:
        ValueError: if `compute` is unknown, or is "compact" and no layer can be.
    """
    if compute not in allowed:
        raise unknown_name("compute", compute, allowed, or_object=False)
    built = isinstance(model, keras.Model) and model.built
    if built:
        masks.check_strays(masks.find(model), "exported")
    if compute not in ("auto", "compact") or not built:
        return None, []
    if compute == "compact":
        small, entries = compacting.required(model, quantization=quantization)
    elif not compacting.can_be_tried(model):
        return None, []
    else:
        try:
            small, entries = compacting.attempt(model, quantization=quantization)
        except CannotCopyError:  # Other forms need no copy.
            return None, []
    return small, [entry for entry in entries if entry.part is not None]


def left_out(entry) -> int:
    """Returns how many entries of a layer's kernel its compact form does not store."""
    return entry.part.columns.size - entry.stored
