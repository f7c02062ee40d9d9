"""What a compact model must not lose, and where exports take another form instead."""

import keras
import numpy as np
import pytest

import tf_rigl
from tests.compaction.test_compacting import check_same, data_for, pruned
from tf_rigl.compaction import compacting
from tf_rigl.patterns import Block

L = keras.layers


def two(**options):
    """Two wide layers."""
    inputs = keras.Input((256,))
    return keras.Model(inputs, L.Dense(256, name="b")(L.Dense(256, name="a", **options)(inputs)))


def sparsified(model, pattern="channels_1x32", sparsity=0.9, **options):
    return tf_rigl.sparsify(
        model, sparsity=sparsity, pattern=pattern, distribution="uniform_all", seed=0, **options
    )


@pytest.mark.parametrize("pattern", ["litert", "unstructured"])
def test_zeros_that_form_no_blocks_are_encoded(pattern, tmp_path):
    sparse = sparsified(two(), pattern, 0.98)
    sizes = [
        tf_rigl.export_tflite(sparse, tmp_path / "a.tflite", compute=compute).bytes
        for compute in ("auto", "encoded")
    ]
    assert sizes[0] == sizes[1]
    reasons = [entry.reason for entry in compacting.forms(sparse)]
    assert all("form no blocks" in reason or "small" in reason for reason in reasons)


def test_other_weights_of_a_compact_file_are_encoded(tmp_path):
    """The wide layer has blocks, the other single zeros."""
    model = two()
    pruned(model.get_layer("a"), 1, 32, 0.1)
    kernel = model.get_layer("b").kernel
    kernel.assign(kernel * (np.random.default_rng(0).random(kernel.shape) < 0.05))
    x = data_for(model)
    auto, compact = (
        tf_rigl.export_tflite(model, tmp_path / "a.tflite", compute=compute, check_data=x)
        for compute in ("auto", "compact")
    )
    assert auto.bytes < 0.5 * compact.bytes


class Odd(keras.layers.Layer):
    """Cannot be copied: its configuration lacks an argument."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, x):
        return x * self.factor


def test_a_model_that_cannot_be_copied_is_exported_in_another_form(tmp_path):
    inputs = keras.Input((256,))
    model = keras.Model(inputs, Odd(2.0)(L.Dense(256, name="wide")(inputs)))
    pruned(model.get_layer("wide"), 1, 32, 0.1)
    assert tf_rigl.export_tflite(model, tmp_path / "a.tflite").bytes
    assert tf_rigl.export_saved_model(model, tmp_path / "a").bytes
    with pytest.raises(ValueError, match="cannot be made compact: Keras cannot clone"):
        tf_rigl.export_tflite(model, tmp_path / "b.tflite", compute="compact")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"activity_regularizer": "l2"}, "an? activity regularizer"),
        ({"bias_constraint": "non_neg"}, "a bias constraint"),
        ({"kernel_regularizer": keras.regularizers.OrthogonalRegularizer()}, "a kernel regula"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_settings_that_it_would_lose_hold_a_layer_back(options, reason):
    sparse = sparsified(two(**options))
    first, second = compacting.forms(sparse)
    assert first.form == "dense"
    assert first.reason.split(" ", 1)[1].startswith(reason.split(" ", 1)[1])
    assert second.form != "dense"
    small, x = tf_rigl.compact(sparse), data_for(sparse)
    np.testing.assert_allclose(small(x), sparse(x), atol=1e-5)
    np.testing.assert_allclose(sum(small.losses), sum(sparse.losses), rtol=1e-5)


@pytest.mark.parametrize("name", ["kernel", "bias"])
def test_a_variable_that_is_frozen_by_itself_stays_so(name):
    model = two()
    variable = getattr(model.get_layer("a"), name)
    variable.trainable = False
    pruned(model.get_layer("a"), 1, 32, 0.1)
    pruned(model.get_layer("b"), 1, 32, 0.1)
    small = tf_rigl.compact(model)
    assert not getattr(small.get_layer("a"), name).trainable
    assert small.get_layer("b").trainable_weights


def test_a_layer_that_two_models_share_is_not_made_two_of():
    shared, inputs = L.Dense(256, name="shared"), keras.Input((256,))
    parts = [keras.Model(inputs, shared(inputs), name=name) for name in ("one", "other")]
    model = keras.Model(inputs, parts[1](parts[0](inputs)))
    pruned(shared, 1, 32, 0.1)
    with pytest.raises(ValueError, match="shares a layer with another model"):
        tf_rigl.compact(model)


@pytest.mark.parametrize("form", ["matmul", "split"])
def test_float64_stays_exact(form):
    inputs = keras.Input((256,), dtype="float64")
    model = keras.Model(inputs, L.Dense(256, name="a", dtype="float64")(inputs))
    pruned(model.get_layer("a"), 1, 32, 0.1)
    x = data_for(model).astype("float64")
    np.testing.assert_allclose(tf_rigl.compact(model, form=form)(x), model(x), rtol=1e-12)


def test_the_size_that_a_dense_file_would_have(tmp_path):
    """Columns of unequal length are padded in a product."""
    model = two()
    pruned(model.get_layer("a"), 1, 32, 0.1)
    pruned(model.get_layer("b"), 1, 32, 0.1, seed=1)  # LiteRT stores equal weights once.
    dense = tf_rigl.export_tflite(model, tmp_path / "d.tflite", compute="dense")
    small = tf_rigl.export_tflite(model, tmp_path / "c.tflite", compute="compact")
    assert small.dense_bytes == pytest.approx(dense.bytes, rel=0.03)  # Other operators.
    entry = compacting.forms(model)[0]
    compact = tf_rigl.compact(model).get_layer(entry.path)
    assert compact.count_params() == entry.stored + 256
    row = tf_rigl.export.advise(model).layers[0]
    assert row.products == entry.stored / 256**2


def test_narrow_blocks_are_joined():
    """Block-sparse as masked: columns of 8 outputs are never fast, two of them are."""
    pattern = Block(8, 8, constant_fan_in=True)
    counts = []
    for compute in ("masked", "sparse"):
        sparse = sparsified(two(), pattern, compute=compute)
        small = tf_rigl.compact(sparse)
        check_same(sparse, small)
        counts.append(small.count_params())
    assert counts[0] == counts[1]
