"""Ordinary Keras models that store and compute only the blocks that are there."""
