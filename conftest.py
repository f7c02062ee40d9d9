"""What every docstring example finds: the packages, a small model, data, and a fresh start.

The names are `tf_rigl`, `keras`, `np` and `tf`; `model`, a dense Keras model with the layers
"hidden" and "output"; `sparse`, the same at 0.9 sparsity, compiled; `x` and `y`, a small data set.
"""

import re

import pytest


@pytest.fixture(autouse=True)
def names_for_doctests(request):
    """Seeds everything and supplies the names, for docstring examples only."""
    if not isinstance(request.node, pytest.DoctestItem):
        return
    import keras
    import numpy as np
    import tensorflow as tf

    import tf_rigl

    keras.backend.clear_session(free_memory=False)
    keras.utils.set_random_seed(0)
    names = {"tf_rigl": tf_rigl, "keras": keras, "np": np, "tf": tf}
    text = "".join(example.source for example in request.node.dtest.examples)
    if re.search(r"\b(model|sparse|x|y)\b", text):
        names.update(_model_and_data(tf_rigl, keras, np))
    request.getfixturevalue("doctest_namespace").update(names)
    # Examples may write files.
    request.getfixturevalue("monkeypatch").chdir(request.getfixturevalue("tmp_path"))


def _model_and_data(tf_rigl, keras, np):
    layers = [
        keras.Input((16,)),
        keras.layers.Dense(32, activation="relu", name="hidden"),
        keras.layers.Dense(4, name="output"),
    ]
    model = keras.Sequential(layers)
    sparse = tf_rigl.sparsify(model, sparsity=0.9, seed=0)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    sparse.compile("sgd", loss, metrics=["accuracy"])
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(64, 16)).astype("float32"), rng.integers(0, 4, 64)
    return {"model": model, "sparse": sparse, "x": x, "y": y}
