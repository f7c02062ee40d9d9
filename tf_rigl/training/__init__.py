"""The training of a sparse model: the model, its loop, its step and its files."""

from tf_rigl._base import backend  # noqa: F401, first: it registers our classes with Keras
