"""Layers that store and compute only their active blocks."""

from tf_rigl._base import (
    backend,  # noqa: F401, first: it registers our classes with Keras
    old_names,
)
from tf_rigl.block_sparse.attention import MultiHeadAttention
from tf_rigl.block_sparse.convolutions import Conv1D, Conv2D, Conv3D
from tf_rigl.block_sparse.layers import Dense, EinsumDense

__all__ = ["Conv1D", "Conv2D", "Conv3D", "Dense", "EinsumDense", "MultiHeadAttention", "tune"]


def __getattr__(name):
    return old_names.attribute(__name__, name)  # `tune`
