"""Layers whose compute and memory shrink with their density."""

from tf_rigl.block_sparse.attention import MultiHeadAttention
from tf_rigl.block_sparse.layers import Conv2D, Dense, EinsumDense
from tf_rigl.block_sparse.tuning import tune

__all__ = ["Conv2D", "Dense", "EinsumDense", "MultiHeadAttention", "tune"]
