"""Weights and their masks: which can be masked, how sparse each becomes, and who holds them."""

from tf_rigl._base import backend  # noqa: F401, first: Keras then knows all our classes
