"""Checks, when it is imported, that Keras runs on TensorFlow."""

import os
import sys

ADVICE = (
    "tf_rigl trains on the TensorFlow backend of Keras. Set the environment variable "
    "KERAS_BACKEND=tensorflow before Keras is imported (or `backend` in keras.json). Received: "
)

# Checked before Keras is imported: with another backend, that import may fail by itself.
asked = os.environ.get("KERAS_BACKEND") or "tensorflow"
if "keras" not in sys.modules and asked != "tensorflow":
    raise ImportError(f"{ADVICE}KERAS_BACKEND={asked!r}")

import keras  # noqa: E402

if keras.backend.backend() != "tensorflow":
    raise ImportError(f"{ADVICE}keras.backend.backend()={keras.backend.backend()!r}")
