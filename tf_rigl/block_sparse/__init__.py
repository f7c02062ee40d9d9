"""Layers whose compute and memory shrink with their density."""

import importlib

from tf_rigl._base import backend  # noqa: F401, first: Keras then knows all our classes
from tf_rigl.block_sparse.attention import MultiHeadAttention
from tf_rigl.block_sparse.layers import Conv2D, Dense, EinsumDense

__all__ = ["Conv2D", "Dense", "EinsumDense", "MultiHeadAttention", "tune"]


def __getattr__(name):
    # `tune` makes sparse models, which this room knows nothing of: it is only shown here.
    if name == "tune":
        return importlib.import_module("tf_rigl.accounting.tuning").tune
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
