"""How Keras finds our models in files, and what it says if it does not."""

import contextlib
import sys
import threading

import keras

from tf_rigl._base.keras_internals import all_layers

_saving = threading.RLock()


def model(cls):
    """Registers a class of models with Keras, also under the name that `shown` gives it.

    Keras 3.10 imports the module of a class that it does not know, and looks for the name there.

    Args:
        cls: class of models.

    Returns:
        The class.
    """
    keras.saving.register_keras_serializable(package="tf_rigl")(cls)
    vars(sys.modules[cls.__module__])[_shown_name(cls)] = cls
    return cls


@contextlib.contextmanager
def shown(saved):
    """Lets the file of a model that is saved in this context say what to import.

    Keras looks a class up by its registered name, "tf_rigl>Name". If tf_rigl is not imported,
    Keras does not know that name, and its error begins with the class's `__name__` in the file.
    Weights of layers in lists are stored under that name too, so it changes meanwhile only.

    Args:
        saved: the `keras.Model`.
    """
    cls = type(saved)
    inner = all_layers(saved, include_self=False)
    if not hasattr(sys.modules[cls.__module__], _shown_name(cls)) or cls in map(type, inner):
        yield
        return
    with _saving:
        name, cls.__name__ = cls.__name__, _shown_name(cls)
        try:
            yield
        finally:
            cls.__name__ = name


def _shown_name(cls):
    return f"tf_rigl.{cls.__name__}"
