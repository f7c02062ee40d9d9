"""Attention whose projections hold blocks becomes a graph of ordinary layers."""

import keras
import numpy as np
import pytest

import tf_rigl
from tests.compaction.test_compacting import check_loads_without_us
from tf_rigl.compaction import compacting

L = keras.layers
KINDS = {
    "self": {},
    "causal": {"causal": True},
    "cross": {"cross": True},
    "dropout": {"dropout": 0.2},
    "shared": {"shared": True},
    "values": {"value_dim": 16},
    "no bias": {"use_bias": False},
    "half": {"dtype": "mixed_float16"},
}


def transformer(causal=False, cross=False, shared=False, value_dim=32, **options):
    """One block, with regularized attention."""
    first = keras.Input((10, 64))
    second = keras.Input((None, 48)) if cross else first
    layer = L.MultiHeadAttention(
        4, 32, value_dim, kernel_regularizer="l2", name="attention", **options
    )
    y = layer(first, value=second, use_causal_mask=True) if causal else layer(first, second)
    if shared:
        y = layer(L.Add()([first, y]), second)
    x = L.Add()([first, y])
    x = L.Dense(128, activation="gelu", name="wide")(L.LayerNormalization()(x))
    outputs = L.Dense(3, name="head")(L.GlobalAveragePooling1D()(x))
    return keras.Model([first, second] if cross else first, outputs)


def sparse_one(compute, **kind):
    sparse = tf_rigl.sparsify(
        transformer(**kind),
        sparsity=0.8,
        pattern="channels_1x32",
        compute=compute,
        distribution="uniform_all",
        exclude=["head"],
        seed=0,
    )
    rng = np.random.default_rng(0)
    for weight in sparse.weights:
        if weight.path.endswith("bias"):
            weight.assign(rng.normal(size=weight.shape))
    return sparse


def data_for(model):
    rng = np.random.default_rng(1)
    shapes = [[2, *(size or 7 for size in each.shape[1:])] for each in model.inputs]
    arrays = [rng.normal(size=shape).astype("float32") for shape in shapes]
    return arrays if len(arrays) > 1 else arrays[0]


@pytest.mark.parametrize("compute", ["masked", "sparse"])
@pytest.mark.parametrize("kind", KINDS)
def test_projections_become_compact(kind, compute):
    sparse = sparse_one(compute, **KINDS[kind])
    small, x = tf_rigl.compact(sparse), data_for(sparse)
    np.testing.assert_allclose(small(x), sparse(x), atol=2e-3 if kind == "half" else 1e-5)
    np.testing.assert_allclose(sum(small.losses), sum(sparse.losses), rtol=1e-5)
    assert small.count_params() < 0.35 * transformer(**KINDS[kind]).count_params()
    forms = {entry.path: entry.form for entry in compacting.forms(sparse)}
    names = ["query", "key", "value", "attention_output"]
    assert all(forms[f"attention/{name}"] != "dense" for name in names)


def test_frozen_attention_stays_frozen():
    sparse = sparse_one("masked")
    sparse.get_layer("attention").trainable = False
    small = tf_rigl.compact(sparse)
    assert not small.get_layer("attention").trainable_weights
    assert small.get_layer("wide").trainable_weights


def test_files_and_litert(tmp_path):
    sparse = sparse_one("sparse")
    x = data_for(sparse)
    small = tf_rigl.compact(sparse)
    check_loads_without_us(small, x, sparse(x), tmp_path)
    info = tf_rigl.export_tflite(sparse, tmp_path / "small.tflite", check_data=x)
    assert info.bytes < 0.35 * info.dense_bytes


def test_what_cannot_be_unfolded_says_why():
    first = keras.Input((10, 64))
    mask = keras.Input((10, 10), dtype="bool")
    masked = L.MultiHeadAttention(4, 32, name="masked")(first, first, attention_mask=mask)
    several = L.MultiHeadAttention(4, 32, dropout=0.1, name="causal")
    y = several(masked, masked, use_causal_mask=True)
    wide = L.Dense(128, name="wide")(y)
    model = keras.Model([first, mask], wide)
    sparse = tf_rigl.sparsify(
        model, sparsity=0.8, pattern="channels_1x32", distribution="uniform_all", seed=0
    )
    reasons = {entry.path: entry.reason for entry in compacting.forms(sparse)}
    assert "a mask" in reasons["masked/query"]
    assert "causal attention with dropout" in reasons["causal/value"]
    small = tf_rigl.compact(sparse)
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(2, 10, 64)).astype("float32"), rng.random((2, 10, 10)) < 0.5]
    np.testing.assert_allclose(small(x), sparse(x), atol=1e-5)


def called(call, **options):
    """Attention that is called in some way, on three tensors of different sizes."""
    x, z, w = (keras.Input((8, size)) for size in (64, 48, 32))
    layer = L.MultiHeadAttention(4, 32, name="attention", **options)
    sparse = tf_rigl.sparsify(
        keras.Model([x, z, w], call(layer, x, z, w)),
        sparsity=0.8,
        pattern="channels_1x32",
        distribution="uniform_all",
        seed=0,
    )
    return sparse


@pytest.mark.parametrize(
    "call",
    [
        lambda layer, x, z, w: layer(query=x, value=z, key=w),
        lambda layer, x, z, w: layer(x, key=w, value=z),
        lambda layer, x, z, w: layer(x, z, w),
        lambda layer, x, z, w: layer(value=z, key=w, query=x, training=True),
    ],
)
def test_tensors_are_known_by_name(call, tmp_path):
    sparse = called(call)
    x = data_for(sparse)
    small = tf_rigl.compact(sparse)
    np.testing.assert_allclose(small(x), sparse(x), atol=1e-5)
    assert small.count_params() < 0.5 * tf_rigl.strip(sparse).count_params()
    tf_rigl.export_tflite(sparse, tmp_path / "a.tflite", check_data=x)
    assert tf_rigl.export.advise(sparse).layers[0].compact


def test_dropout_that_always_acts_stays():
    sparse = called(lambda layer, x, z, w: layer(x, z, w, training=True), dropout=0.5)
    reasons = {entry.path: entry.reason for entry in compacting.forms(sparse)}
    assert "`training`" in reasons["attention/query"]


def test_a_projection_that_is_frozen_by_itself_stays_so():
    sparse = called(lambda layer, x, z, w: layer(x, z, w))
    sparse.get_layer("attention").query_dense.trainable = False
    assert {entry.reason for entry in compacting.forms(sparse)} == {
        "a variable that is frozen by itself"
    }


def test_block_sparse_projections_keep_blocks_that_hold_zeros():
    sparse = sparse_one("sparse")
    before = tf_rigl.compact(sparse).count_params()
    rng = np.random.default_rng(0)
    for item in sparse.masked_weights:
        item.weight.assign(item.weight * (rng.random(item.weight.shape) < 0.3))
    small, x = tf_rigl.compact(sparse), data_for(sparse)
    assert small.count_params() == before
    np.testing.assert_allclose(small(x), sparse(x), atol=1e-5)
