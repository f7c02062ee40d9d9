"""Attention with block-sparse projections: what it computes, its training, its files."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import CLASSES, compiled, equal_masks, random_data, rigl, sparsify
from tf_rigl import block_sparse
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.patterns import Block

SHAPE = (5, 12)
NAMES = ("query", "key", "value", "attention_output")
PATHS = {f"attention/{name}/kernel" for name in NAMES}
BLOCK = Block(2, 4, constant_fan_in=True)


def model(**kwargs):
    """A classifier of sequences; the key's features are not as many as the query's."""
    arguments = {"num_heads": 2, "key_dim": 8, "value_dim": 4, "dropout": 0.1, "seed": 1}
    inputs = keras.Input(SHAPE)
    attention = keras.layers.MultiHeadAttention(name="attention", **{**arguments, **kwargs})
    x = attention(inputs, inputs[..., :8], inputs[..., 2:], use_causal_mask=True)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


def converted(dense, method="static", **kwargs):
    arguments = {"pattern": BLOCK, "exclude": ["head"], "compute": "sparse", **kwargs}
    return sparsify(dense, method, **arguments)


def test_by_default_every_projection_is_block_sparse():
    x = np.ones((2, *SHAPE), "float32")
    for gate in (False, True):
        layer = block_sparse.MultiHeadAttention(2, 32, use_gate=gate)
        assert layer(x, x).shape == x.shape
        names = {*NAMES, "gate"} if gate else {*NAMES}
        assert set(layer.blocks) == names
        inner = layer._flatten_layers(include_self=False)
        assert {each.name for each in inner if hasattr(each, "geometry")} == names


@pytest.mark.parametrize("use_gate", [False, True])
def test_it_computes_what_dense_attention_does_and_holds_nothing_dense(use_gate):
    dense = model(use_gate=use_gate)
    sparse = converted(dense)
    paths = PATHS | {"attention/gate/kernel"} if use_gate else PATHS
    assert {i.path for i in sparse.masked_weights if isinstance(i, BlockSparseWeight)} == paths
    layer = sparse.get_layer("attention")
    assert type(layer) is block_sparse.MultiHeadAttention
    kernels = sum(np.prod(i.shape) for i in sparse.masked_weights)
    stored = sum(np.prod(i.weight.shape) for i in sparse.masked_weights)
    assert stored < 0.65 * kernels
    floating = [v for v in layer.variables if v.dtype == "float32"]
    biases = sum(np.prod(v.shape) for v in floating if v.name == "bias")
    assert sum(np.prod(v.shape) for v in floating) == stored + biases

    masked = converted(dense, compute="masked")
    x, _ = random_data(SHAPE)
    assert equal_masks(sparse.masks, masked.masks)
    expected = masked.predict(x, verbose=0)
    np.testing.assert_allclose(sparse.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_it_trains_as_masked_attention_does(jit_compile):
    dense, data = model(dropout=0.0), random_data(SHAPE)
    runs = []
    for compute in ("masked", "sparse"):
        sparse = compiled(converted(dense, rigl(), compute=compute), jit_compile=jit_compile)
        before = sparse.masks
        history = sparse.fit(*data, batch_size=8, epochs=2, shuffle=False, verbose=0)
        assert not equal_masks(before, sparse.masks)
        runs.append((sparse.masks, history.history["loss"]))
    assert equal_masks(runs[0][0], runs[1][0])
    np.testing.assert_allclose(runs[0][1], runs[1][1], rtol=1e-5)


def test_files_and_stripping_keep_predictions(tmp_path):
    sparse, (x, y) = compiled(converted(model(), rigl()), "adam"), random_data(SHAPE)
    sparse.fit(x, y, batch_size=8, verbose=0)
    expected = sparse.predict(x, verbose=0)
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert equal_masks(loaded.masks, sparse.masks)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), expected)
    loaded.fit(x, y, batch_size=8, verbose=0)

    stripped = tf_rigl.strip(sparse)
    assert type(stripped.get_layer("attention")) is keras.layers.MultiHeadAttention
    np.testing.assert_allclose(stripped.predict(x, verbose=0), expected, rtol=1e-5, atol=1e-6)
    kernel = stripped.get_layer("attention").query_dense.kernel
    assert np.mean(kernel.numpy() == 0) == pytest.approx(0.5, abs=0.1)


def test_what_is_excluded_or_too_small_for_blocks_stays_as_it_is():
    sparse = converted(model(), exclude=["query", "head"], pattern=Block(10, 4))
    kinds = {i.path: isinstance(i, BlockSparseWeight) for i in sparse.masked_weights}
    # Of 12, 10, 8 and 8 inputs.
    assert kinds == {
        "attention/key/kernel": True,
        "attention/value/kernel": False,
        "attention/attention_output/kernel": False,
    }
    layer = sparse.get_layer("attention")
    assert set(layer.blocks) == {"key"}
    assert type(layer.query_dense) is keras.layers.EinsumDense


def test_frozen_layers_and_random_states_are_taken_over():
    dense = model()
    dense.get_layer("attention").trainable = False
    state = dense.get_layer("attention")._dropout_layer.seed_generator.state
    state.assign(tf.constant([3, 4], state.dtype))
    sparse = converted(dense, distribution={"attention": 0.5})  # It is frozen, so it is named.
    layer = sparse.get_layer("attention")
    assert type(layer) is block_sparse.MultiHeadAttention
    assert layer.trainable_variables == []
    np.testing.assert_array_equal(layer._dropout_layer.seed_generator.state.numpy(), [3, 4])


def test_subclasses_are_left_alone():
    class Own(keras.layers.MultiHeadAttention):
        pass

    inputs = keras.Input(SHAPE)
    x = keras.layers.Flatten()(Own(2, 8, name="own")(inputs, inputs))
    dense = keras.Model(inputs, keras.layers.Dense(8, name="head")(x))
    sparse = converted(dense, exclude=[])
    packed = [i.path for i in sparse.masked_weights if isinstance(i, BlockSparseWeight)]
    assert packed == ["head/kernel"]


def test_unknown_projections_are_refused():
    with pytest.raises(
        ValueError, match=r"Argument `blocks` must have names of .* Did you mean 'query'"
    ):
        block_sparse.MultiHeadAttention(2, 8, blocks={"querry": {}})
    with pytest.raises(ValueError, match="`blocks`"):
        block_sparse.MultiHeadAttention(2, 8, blocks={"gate": {}})
    with pytest.raises(ValueError, match=r"`blocks` must be a dict.*\{'query': 32\}"):
        block_sparse.MultiHeadAttention(2, 8, blocks={"query": 32})


def test_what_a_projection_cannot_have_is_refused_at_once():
    with pytest.raises(ValueError, match=r"`blocks\['query'\]`.*Did you mean 'block_size'"):
        block_sparse.MultiHeadAttention(2, 8, blocks={"query": {"blocksize": 8}})
    with pytest.raises(ValueError, match="`density` must be a number"):
        block_sparse.MultiHeadAttention(2, 8, blocks={"query": {"density": 2}})
