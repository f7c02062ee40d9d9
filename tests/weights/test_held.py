"""A layer with a masked weight is not quantized: it says so, and what to do."""

import keras
import pytest

import tf_rigl
from tests.helpers import FEATURES, compiled, mlp, random_data, sparsify
from tf_rigl.weights import held

ORDER = r"strip\(model\)\.quantize"


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
def test_quantization_is_refused_at_the_call(mode):
    sparse = sparsify(mlp(), exclude=["hidden"])
    with pytest.raises(ValueError, match=f"model 'mlp' has masked weights.*{ORDER}"):
        sparse.quantize(mode)
    assert sparse.get_layer("hidden").quantization_mode is None  # Nothing was quantized before.
    with pytest.raises(ValueError, match=f"layer 'head' has masked weights.*{ORDER}"):
        sparse.get_layer("head").quantize(mode)
    outer = keras.Sequential([keras.Input((FEATURES,)), sparse])
    with pytest.raises(ValueError, match=ORDER), pytest.warns(UserWarning, match="quantize"):
        outer.quantize(mode)
    sparse.get_layer("hidden").quantize("int8")  # It has no mask.


def test_masks_of_weights_that_are_gone_are_refused_by_every_reader(tmp_path):
    x, y = random_data(batches=2)
    sparse = compiled(sparsify(mlp()))
    hidden = sparse.get_layer("hidden")
    path = tmp_path / "model.keras"
    # As by a class that quantizes in its own way.
    keras.layers.Dense.quantize.__get__(unlocked(hidden))("int8")
    readers = [
        lambda: sparse.save(path),
        lambda: sparse.save_weights(tmp_path / "model.weights.h5"),
        lambda: sparse.fit(x, y, verbose=0),
        lambda: sparse.masks,
        lambda: sparse.sparsity,
        sparse.get_config,
        sparse.apply_masks,
        lambda: tf_rigl.strip(sparse),
        lambda: tf_rigl.report(sparse),
        lambda: tf_rigl.export_saved_model(sparse, tmp_path / "saved"),
        lambda: tf_rigl.export_tflite(sparse, tmp_path / "model.tflite"),
    ]
    for read in readers:
        with pytest.raises(ValueError, match=f"layer 'hidden' was quantized to int8.*{ORDER}"):
            read()
    assert not list(tmp_path.iterdir())


def unlocked(layer):
    """Lets a layer get new variables after it was built; returns it."""
    layer._tracker.unlock()
    return layer


def test_a_variable_in_the_place_of_the_masked_one_is_refused():
    sparse = sparsify(mlp())
    head = sparse.get_layer("head")
    value = head.kernel.numpy()
    del unlocked(head)._kernel
    head._kernel = keras.Variable(value)
    with pytest.raises(ValueError, match="'head' has another variable in its place"):
        held.check(sparse, tf_rigl.SparseModel.masked_weights.fget(sparse))


def test_the_order_that_works(tmp_path):
    sparse = sparsify(mlp())
    plain = tf_rigl.strip(sparse)
    plain.quantize("int8")
    assert plain.get_layer("head").quantization_mode == "int8"
    plain.save(tmp_path / "model.keras")
