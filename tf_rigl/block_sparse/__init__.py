"""Layers that store and compute only their active blocks."""

from tf_rigl._base import (
    backend,  # noqa: F401, first: it registers our classes with Keras
    old_names,
)
from tf_rigl.block_sparse.attention import MultiHeadAttention
from tf_rigl.block_sparse.layers import Conv2D, Dense, EinsumDense

__all__ = ["Conv2D", "Dense", "EinsumDense", "MultiHeadAttention", "tune"]


def __getattr__(name):
    return old_names.attribute(__name__, name)  # `tune`
