"""Files that are read without tf_rigl: the error says what to import."""

import json
import sys
import zipfile

import h5py
import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import CLASSES, FEATURES, MODEL_KINDS, sparsify


def by_hand(features=FEATURES):
    inputs = keras.Input((features,))
    layer = tf_rigl.MaskedLayer(keras.layers.Dense(3), sparsity=0.5, seed=0)
    return tf_rigl.SparseModel(inputs, layer(inputs), method="static")


def without_tf_rigl(monkeypatch):
    """As in a process that has not imported tf_rigl."""
    known = keras.saving.get_custom_objects()
    for name in [name for name in known if name.startswith("tf_rigl")]:
        monkeypatch.delitem(known, name)


@pytest.mark.parametrize("kind", ["functional", "subclassed", "by hand"])
def test_the_error_without_tf_rigl_names_it(kind, monkeypatch, tmp_path):
    x = np.ones((2, FEATURES), "float32")
    model = by_hand() if kind == "by hand" else sparsify(MODEL_KINDS[kind][0]())
    path, cls, name = tmp_path / "model.keras", type(model), type(model).__name__
    model.save(path)
    assert cls.__name__ == name
    with monkeypatch.context() as patch:
        without_tf_rigl(patch)
        with pytest.raises(TypeError) as error:
            keras.models.load_model(path)
    assert f"Could not locate class 'tf_rigl.{name}'" in str(error.value)
    np.testing.assert_array_equal(keras.models.load_model(path)(x), model(x))
    # Keras 3.10 imports the module of a class that it does not know, and looks there.
    with zipfile.ZipFile(path) as archive:
        stored = json.loads(archive.read("config.json"))
    assert vars(sys.modules[stored["module"]])[stored["class_name"]] is cls


def test_weights_inside_of_other_models_keep_their_names(tmp_path):
    """The names of layers in a list come from their classes: older files have these names."""
    inputs = keras.Input((FEATURES,))
    inner = sparsify(MODEL_KINDS["functional"][0]())
    outer = tf_rigl.SparseModel(
        inputs, by_hand(CLASSES)(inner(keras.layers.Dense(FEATURES)(inputs)))
    )
    outer.save(tmp_path / "model.keras")
    with zipfile.ZipFile(tmp_path / "model.keras") as archive:
        archive.extract("model.weights.h5", tmp_path)
    with h5py.File(tmp_path / "model.weights.h5") as file:
        assert {"sparsified_graph", "functional_sparse_model"} < set(file["layers"])
    loaded = keras.models.load_model(tmp_path / "model.keras")
    x = np.ones((2, FEATURES), "float32")
    np.testing.assert_array_equal(loaded(x), outer(x))
