"""How Keras finds our classes in files, and what it says if it does not."""

import sys

import keras


def named(cls):
    """Registers a class that stands at the top of files, under a name that says what to import.

    Keras looks it up as "tf_rigl>Name". If tf_rigl is not imported, Keras does not know that
    name, and its error begins with the class's `__name__`: so that names the package.

    Args:
        cls: class of models or layers.

    Returns:
        The class.
    """
    keras.saving.register_keras_serializable(package="tf_rigl")(cls)
    cls.__name__ = f"tf_rigl.{cls.__name__}"
    # Keras 3.10 imports the module, and looks for this name there.
    vars(sys.modules[cls.__module__])[cls.__name__] = cls
    return cls
