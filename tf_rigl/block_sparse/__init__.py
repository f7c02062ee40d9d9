"""Layers whose compute and memory shrink with their density."""

from tf_rigl.block_sparse.layers import Conv2D, Dense, EinsumDense

__all__ = ["Conv2D", "Dense", "EinsumDense"]
