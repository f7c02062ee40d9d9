"""Files that are read without tf_rigl: the error says what to import."""

import sys

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import FEATURES, MODEL_KINDS, sparsify


def by_hand(cls):
    inputs = keras.Input((FEATURES,))
    layer = tf_rigl.MaskedLayer(keras.layers.Dense(3), sparsity=0.5, seed=0)
    return cls(inputs, layer(inputs))


def without_tf_rigl(monkeypatch):
    """As in a process that has not imported tf_rigl."""
    known = keras.saving.get_custom_objects()
    for name in [name for name in known if name.startswith("tf_rigl")]:
        monkeypatch.delitem(known, name)


@pytest.mark.parametrize("kind", ["functional", "subclassed", "by hand", "in a plain model"])
def test_the_error_without_tf_rigl_names_it(kind, monkeypatch, tmp_path):
    x = np.ones((2, FEATURES), "float32")
    if kind in MODEL_KINDS:
        model = sparsify(MODEL_KINDS[kind][0]())
    else:
        model = by_hand(tf_rigl.SparseModel if kind == "by hand" else keras.Model)
    path = tmp_path / "model.keras"
    model.save(path)
    with monkeypatch.context() as patch:
        without_tf_rigl(patch)
        with pytest.raises(TypeError) as error:
            keras.models.load_model(path)
    assert "Could not locate class 'tf_rigl." in str(error.value)
    np.testing.assert_array_equal(keras.models.load_model(path)(x), model(x))


def test_the_names_of_classes_are_shown_and_stored():
    layer = tf_rigl.MaskedLayer(keras.layers.Dense(3, name="dense"))
    assert repr(layer) == "<tf_rigl.MaskedLayer name=masked_dense, built=False>"
    stored = keras.saving.serialize_keras_object(layer)
    assert stored["registered_name"] == "tf_rigl>MaskedLayer"
    # Keras 3.10 imports the module of a class that it does not know, and looks there.
    module = sys.modules[stored["module"]]
    assert vars(module)[stored["class_name"]] is tf_rigl.MaskedLayer
