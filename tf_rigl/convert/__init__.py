"""Converts ordinary Keras models to sparse ones, and back."""

from tf_rigl._base import backend  # noqa: F401, first: registers all our classes
from tf_rigl.convert.sparsifying import is_sparse, sparsify, strip, with_masks

__all__ = ["is_sparse", "sparsify", "strip", "with_masks"]
