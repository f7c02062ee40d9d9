"""Factorized layers: a kernel is the product of two small ones, from the first step on."""

from tf_rigl._base import backend  # noqa: F401, first: registers our Keras classes
from tf_rigl.factorized.attention import MultiHeadAttention
from tf_rigl.factorized.converting import factorize, merge
from tf_rigl.factorized.convolution import Conv2D
from tf_rigl.factorized.dense import Dense, EinsumDense

__all__ = ["Conv2D", "Dense", "EinsumDense", "MultiHeadAttention", "factorize", "merge"]
