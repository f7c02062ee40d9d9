"""Importing this module checks that Keras runs on TensorFlow."""

import os
import sys

ADVICE = (
    "tf_rigl trains on the TensorFlow backend of Keras. Set the environment variable "
    "KERAS_BACKEND=tensorflow before Keras is imported (or `backend` in keras.json). Received: "
)

# Before Keras is imported: with another backend that import may fail in ways of its own.
if "keras" not in sys.modules and os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
    raise ImportError(f"{ADVICE}KERAS_BACKEND={os.environ['KERAS_BACKEND']!r}")

import keras  # noqa: E402

if keras.backend.backend() != "tensorflow":
    raise ImportError(f"{ADVICE}keras.backend.backend()={keras.backend.backend()!r}")
