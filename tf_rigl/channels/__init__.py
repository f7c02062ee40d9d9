"""Channels instead of single weights: network slimming, Early-Bird tickets and removal."""

from tf_rigl._base import backend  # noqa: F401, first: Keras then knows all our classes
