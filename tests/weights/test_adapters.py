"""LoRA on top of a frozen sparse kernel: zeros stay, adapters train, files hold both."""

import keras
import numpy as np
import pytest

import tf_rigl
from tests.helpers import (
    CLASSES,
    FEATURES,
    check_invariants,
    compiled,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl.convert import copies


def words():
    """A model of an embedding and two kernels."""
    inputs = keras.Input((4,), dtype="int32")
    x = keras.layers.Embedding(9, 8, name="table")(inputs)
    x = keras.layers.EinsumDense("abc,cd->abd", (None, 8), bias_axes="d", name="mixing")(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


LAYERS = ("table", "mixing", "head")


def adapted(names=LAYERS, fits=False, **kwargs):
    """A sparse model with adapters, trained before it got them if it `fits`; with data."""
    x, y = random_data((4,), dtype="int32")
    sparse = compiled(sparsify(words(), **kwargs), "adam", run_eagerly=not fits)
    if fits:
        sparse.fit(x, y, batch_size=8, verbose=0)
    for name in names:
        sparse.get_layer(name).enable_lora(2)
        sparse.get_layer(name).lora_alpha = 6
    return compiled(sparse, "adam", run_eagerly=not fits), x, y


def kernels(sparse):
    return {item.path: item.weight.numpy() for item in sparse.masked_weights}


def test_adapters_train_and_the_kernel_below_stays(tmp_path):
    sparse, x, y = adapted(fits=True)
    before, masks = kernels(sparse), sparse.masks
    sparse.fit(x, y, batch_size=8, epochs=2, verbose=0)
    assert sparse.optimizer.iterations == 16  # No step is spent on masks that cannot change.
    np.testing.assert_equal(kernels(sparse), before)
    np.testing.assert_equal(sparse.masks, masks)
    check_invariants(sparse)
    assert all(np.any(sparse.get_layer(n).lora_kernel_b) for n in ("mixing", "head"))
    assert np.any(sparse.get_layer("table").lora_embeddings_b)
    expected = sparse(x)

    stripped = tf_rigl.strip(sparse)
    np.testing.assert_array_equal(stripped(x), expected)
    assert stripped.get_layer("head").lora_enabled
    np.testing.assert_array_equal(stripped.get_layer("head")._kernel, before["head/kernel"])

    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), expected)
    np.testing.assert_equal(kernels(loaded), before)
    loaded.fit(x, y, batch_size=8, verbose=0)
    np.testing.assert_equal(kernels(loaded), before)
    assert loaded.optimizer.iterations == 24

    assert "mixing/kernel" in str(tf_rigl.report(sparse))
    tf_rigl.export_tflite(sparse, tmp_path / "model.tflite", check_data=x[:2])


def test_masks_of_other_layers_go_on_changing():
    sparse, x, y = adapted(["table"])
    before, masks = kernels(sparse), sparse.masks
    sparse.fit(x, y, batch_size=8, verbose=0)
    check_invariants(sparse)
    same = {path: np.array_equal(sparse.masks[path], mask) for path, mask in masks.items()}
    assert same == {"table/embeddings": True, "mixing/kernel": False, "head/kernel": False}
    np.testing.assert_array_equal(kernels(sparse)["table/embeddings"], before["table/embeddings"])


def test_weights_need_the_adapters_that_the_file_holds(tmp_path):
    sparse, x, y = adapted(["head"])
    sparse.fit(x, y, batch_size=8, verbose=0)
    path = tmp_path / "model.weights.h5"
    sparse.save_weights(path)
    other = sparsify(words(), seed=1)
    with pytest.raises(ValueError, match=r"call `enable_lora\(2\)` of the layer 'head'"):
        other.load_weights(path)
    other.get_layer("head").enable_lora(2)
    other.get_layer("head").lora_alpha = 6
    other.load_weights(path)
    np.testing.assert_array_equal(other(x), sparse(x))
    check_invariants(other)


def test_merged_adapters_are_no_sparse_weight(tmp_path):
    sparse, x, y = adapted(["head"])
    sparse.fit(x, y, batch_size=8, verbose=0)
    head = sparse.get_layer("head")
    head._kernel.assign(head.kernel)
    with pytest.raises(ValueError, match=r"cannot be saved: .*'head/kernel'"):
        sparse.save(tmp_path / "model.keras")
    with pytest.raises(ValueError, match=r"cannot be stripped: .*'head/kernel'"):
        tf_rigl.strip(sparse)


def test_a_method_that_trains_scores_alone_refuses():
    sparse, x, y = adapted(["head"], method="edge_popup")
    with pytest.raises(ValueError, match=r"EdgePopup .*LoRA in layer 'head' would not be trained"):
        sparse.fit(x, y, verbose=0)


def test_a_wrapped_layer_has_adapters_too(tmp_path):
    inputs = keras.Input((FEATURES,))
    layer = tf_rigl.MaskedLayer(keras.layers.Dense(8, name="hidden"), 0.5, seed=0)
    outputs = keras.layers.Dense(CLASSES)(layer(inputs))
    model = compiled(tf_rigl.SparseModel(inputs, outputs, method=rigl()))
    layer.layer.enable_lora(2)
    x, y = random_data()
    compiled(model).fit(x, y, verbose=0)
    check_invariants(model)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    np.testing.assert_equal(loaded.masks, model.masks)


def test_the_scale_of_adapters_is_copied():
    """Keras makes a layer of its configuration with another scale."""
    model = mlp()
    model.get_layer("head").enable_lora(2, lora_alpha=6)
    model.get_layer("head").lora_kernel_b.assign(np.ones((2, CLASSES)))
    x, _ = random_data()
    np.testing.assert_array_equal(copies.copied(model)(x), model(x))


def test_the_products_with_adapters_count():
    inputs = keras.Input((5,))
    model = keras.Model(inputs, keras.layers.Dense(4, use_bias=False, name="head")(inputs))
    sparse = tf_rigl.sparsify(model, sparsity=0.5, distribution="uniform_all", seed=0)
    before = tf_rigl.report(sparse)
    sparse.get_layer("head").enable_lora(2)
    after = tf_rigl.report(sparse)
    assert before.dense_flops == 2 * 5 * 4
    assert after.dense_flops - before.dense_flops == 2 * 2 * (5 + 4)
    assert after.flops - before.flops == 2 * 2 * (5 + 4)
    assert after.dense_params - before.dense_params == 2 * (5 + 4)
