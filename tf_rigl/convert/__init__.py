"""From an ordinary Keras model to a sparse one, and back."""

from tf_rigl._base import backend  # noqa: F401, first: Keras then knows all our classes
from tf_rigl.convert.sparsifying import is_sparse, sparsify, strip, with_masks

__all__ = ["is_sparse", "sparsify", "strip", "with_masks"]
