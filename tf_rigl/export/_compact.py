"""The compact form of a model that is exported, see `tf_rigl.compact`."""

import keras

from tf_rigl._base.arguments import unknown_name
from tf_rigl.compaction import compacting


def attempted(model, compute, allowed, quantization=None):
    """Returns the compact model to export, or None for the ordinary one.

    Args:
        model: the model that the user exports.
        compute: str, the user's argument.
        allowed: tuple of str, its values.
        quantization: str or None, see `tf_rigl.compact`.

    Returns:
        A `keras.Model` and the number of entries that it does not store, or (None, 0).

    Raises:
        ValueError: if `compute` is unknown, or is "compact" and no layer can be.
    """
    if compute not in allowed:
        raise unknown_name("compute", compute, allowed, or_object=False)
    built = isinstance(model, keras.Model) and model.built
    if compute not in ("auto", "compact") or not built:
        return None, 0
    if compute == "compact":
        compacting.compact(model, quantization=quantization)  # It says why it cannot.
    elif not compacting.can_be_tried(model):
        return None, 0
    small, entries = compacting.attempt(model, quantization=quantization)
    parts = [entry.part.columns for entry in entries if entry.part is not None]
    return small, sum(columns.size - columns.stored for columns in parts)
