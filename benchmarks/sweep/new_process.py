"""Loads the files of a row in a new process, and compares what they predict.

First `plain.keras`, while tf_rigl cannot be imported; then `sparse.keras`, with tf_rigl.
"""

import pathlib
import pickle
import sys

import keras
import numpy as np

from benchmarks.sweep import case as cases
from benchmarks.sweep import rows


def compare(expected, received, which, tolerance=1e-5):
    """Raises if two lists of arrays differ by more than a fraction of their largest magnitude."""
    if len(expected) != len(received):
        raise AssertionError(f"{which}: {len(received)} outputs in place of {len(expected)}")
    for one, other in zip(expected, received, strict=True):
        one, other = np.asarray(one, "float64"), np.asarray(other, "float64")
        if one.shape != other.shape:
            raise AssertionError(f"{which}: shape {other.shape} in place of {one.shape}")
        scale = max(1.0, float(np.abs(one).max(initial=0)))
        difference = float(np.abs(one - other).max(initial=0)) / scale
        if not difference <= tolerance:
            raise AssertionError(f"{which}: outputs differ by {difference:.2g} of {scale:.2g}")


def main(module, folder):
    """Loads and compares, in this process."""
    if "tf_rigl" in sys.modules:
        raise AssertionError("tf_rigl is imported before the row's own module")
    sys.modules["tf_rigl"] = None  # To import it is an error.
    rows.load(module)
    folder = pathlib.Path(folder)
    expected = pickle.loads((folder / "expected.pickle").read_bytes())
    keras.config.set_dtype_policy(expected["policy"])  # As for layers that were made under it.
    plain = keras.models.load_model(folder / "plain.keras")
    outputs = cases.predictions(plain, expected["part"], expected["inputs"])
    compare(expected["outputs"], outputs, "the stripped model, loaded")

    del sys.modules["tf_rigl"]
    import tf_rigl  # noqa: F401

    sparse = keras.models.load_model(folder / "sparse.keras")
    outputs = cases.predictions(sparse, expected["part"], expected["inputs"])
    compare(expected["outputs"], outputs, "the sparse model, loaded")
    if sparse.step != expected["step"]:
        raise AssertionError(f"loaded at step {sparse.step}, saved at {expected['step']}")
    masks = list(sparse.masks.values())
    if len(masks) != len(expected["masks"]):
        raise AssertionError(f"{len(masks)} masks are loaded, {len(expected['masks'])} saved")
    for one, other in zip(expected["masks"].values(), masks, strict=True):
        np.testing.assert_array_equal(one, other)
