"""Pruning of channels: network slimming, Early-Bird tickets, and removal of channels."""

from tf_rigl._base import backend  # noqa: F401, first: registers our Keras classes
