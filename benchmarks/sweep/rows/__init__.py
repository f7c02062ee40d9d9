"""The models of the sweep, one module for each kind. None of them imports tf_rigl."""

import importlib

MODULES = ("own_steps", "loops", "layers", "graphs", "keras_hub", "applications")


def load(module):
    """Imports the module of that name, which registers its rows and its classes."""
    return importlib.import_module(f"{__name__}.{module}")
