"""What a `tf.train.Checkpoint` stores of an object besides the variables in its attributes."""

import tensorflow as tf

from tf_rigl._base import keras_internals

# Keras restores no variable that is made later.
BUILD_FIRST = "Build the model, by a call on a batch for example, before you restore it."
_NAME = "tf_rigl_state"


class _State(tf.train.experimental.PythonState):
    """Bytes that two functions write and read."""

    def __init__(self, write, read):
        self._write, self._read = write, read

    def serialize(self):
        """Returns the bytes to store."""
        return self._write()

    def deserialize(self, string_value):
        """Takes stored bytes; TensorFlow restores variables after that."""
        self._read(string_value)


def store_state(owner, write, read):
    """Has checkpoints of TensorFlow store a Python state of a layer or model.

    Args:
        owner: a `keras.layers.Layer`.
        write: function that returns the state as bytes. It is called before variables are
            stored.
        read: function of these bytes. It is called before variables are restored.
    """
    keras_internals.track(owner, _State(write, read), _NAME)


def store_variable(owner, variable, name):
    """Has checkpoints of TensorFlow store a variable that is in no attribute of a layer."""
    keras_internals.track(owner, variable, name)
