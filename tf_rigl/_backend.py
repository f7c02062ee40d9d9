"""Importing this module checks that Keras runs on TensorFlow."""

import keras

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        "tf_rigl trains on the TensorFlow backend of Keras. Set the environment variable "
        "KERAS_BACKEND=tensorflow before Keras is imported (or `backend` in keras.json). "
        f"Received: keras.backend.backend()={keras.backend.backend()!r}"
    )
