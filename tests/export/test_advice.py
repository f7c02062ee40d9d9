"""What `advise` says of each weight, and that LiteRT does so."""

import json

import keras
import numpy as np
import pytest
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.tools import flatbuffer_utils
from keras import layers

import tf_rigl
from tf_rigl import models
from tf_rigl.export import advise


def by_name(model):
    return {row.name: row for row in advise(model).layers}


def mlp(units=64, inputs=32):
    stack = [keras.Input((inputs,)), layers.Dense(units, name="a"), layers.Dense(10, name="b")]
    return keras.Sequential(stack)


def sparse(model, **kwargs):
    arguments = {"sparsity": 0.8, "distribution": "uniform_all", "seed": 0, **kwargs}
    return tf_rigl.sparsify(model, "static", **arguments)


def graph(stem=None, middle=None, end=None):
    """A network of one 1x1 convolution, as XNNPACK wants it but for what is given."""
    inputs = x = keras.Input((16, 16, 3))
    x = layers.ZeroPadding2D(1)(x)
    x = (stem or layers.Conv2D(16, 3, strides=2))(x)
    x = layers.BatchNormalization()(x)
    x = layers.ReLU()(x)
    if middle is not None:
        x = middle(x)
    x = layers.DepthwiseConv2D(3, padding="same")(x)
    x = layers.Conv2D(32, 1, name="pointwise")(x)
    x = layers.ReLU(6.0)(x)
    x = (end or layers.GlobalAveragePooling2D())(x)
    return keras.Model(inputs, layers.Dense(10)(layers.Flatten()(x)))


@pytest.mark.parametrize("pattern", ["litert", "block_16x1", "block_4x1"])
def test_dense_layers_in_blocks_run_sparse(pattern):
    row = by_name(sparse(mlp(), pattern=pattern))["a/kernel"]
    assert (row.runs, row.change) == ("sparse", "")
    assert row.shape == (32, 64)
    assert row.sparsity == pytest.approx(0.8, abs=0.01)


def test_dense_layers_of_single_entries_are_stored_smaller_only():
    row = by_name(sparse(mlp()))["a/kernel"]
    assert row.runs == "smaller"
    assert "litert" in row.change


def test_columns_are_no_blocks_of_inputs():
    assert by_name(sparse(mlp(), pattern="block_1x4"))["a/kernel"].runs == "smaller"


def test_inputs_that_four_does_not_divide_are_named():
    row = by_name(sparse(mlp(inputs=30), pattern="block_16x1"))["a/kernel"]
    assert row.runs == "smaller"
    assert "30" in row.change


def test_what_compact_would_gain_is_told():
    stack = [keras.Input((8, 8, 32)), layers.Conv2D(64, 3, name="a"), layers.Flatten()]
    model = keras.Sequential([*stack, layers.Dense(10, name="b")])
    for compute in ("masked", "sparse"):
        advice = advise(sparse(model, pattern="channels_1x32", sparsity=0.875, compute=compute))
        rows = {row.name: row for row in advice.layers}
        assert (rows["a/kernel"].compact, rows["b/kernel"].compact) == ("grouped", "")
        assert rows["a/kernel"].products == pytest.approx(0.125)
        assert "a/kernel (grouped, 0.12)" in str(advice)
    assert "no layer gains" in str(advise(sparse(mlp())))


def test_few_zeros_are_not_stored_sparse():
    assert by_name(sparse(mlp(), sparsity=0.2))["a/kernel"].runs == "dense"


def test_blocks_with_under_70_percent_of_zeros_run_dense():
    row = by_name(sparse(mlp(), sparsity=0.5, pattern="block_4x1"))["a/kernel"]
    assert (row.runs, row.change) == ("smaller", "more sparsity")


def test_a_dense_model_has_no_zeros():
    assert all(row.runs == "dense" and "no zeros" in row.why for row in advise(mlp()).layers)


def test_a_stripped_model_gets_the_same_advice():
    model = sparse(mlp(), pattern="litert")
    assert advise(tf_rigl.strip(model)) == advise(model)


def test_1x1_convolutions_between_stem_and_average_run_sparse():
    assert by_name(sparse(graph()))["pointwise/kernel"].runs == "xnnpack"


def test_the_mobilenet_on_offer_runs_sparse():
    rows = advise(sparse(models.small_mobilenet((32, 32, 3), 10), sparsity=0.9)).layers
    assert {row.runs for row in rows if row.name.startswith("pointwise")} == {"xnnpack"}


def test_1x1_convolutions_need_two_thirds_of_zeros():
    row = by_name(sparse(graph(), sparsity=0.6))["pointwise/kernel"]
    assert row.runs == "smaller"
    assert "2/3" in row.why


def _nested(make):
    """A network whose 1x1 convolution is in a model within it."""
    inside = [layers.DepthwiseConv2D(3, padding="same"), layers.Conv2D(32, 1, name="pointwise")]
    inputs = keras.Input((16, 16, 3))
    x = layers.Conv2D(16, 3, strides=2)(layers.ZeroPadding2D(1)(inputs))
    x = make([keras.Input((8, 8, 16)), *inside, layers.ReLU(6.0)])(x)
    return keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))


def _functional(stack):
    x, *others = stack
    inputs = x
    for layer in others:
        x = layer(x)
    return keras.Model(inputs, x, name="inner")


def _in_sequence(stack):
    return keras.Sequential(stack, name="inner")


@pytest.mark.parametrize("make", [_functional, _in_sequence])
def test_nested_models_are_looked_through(make):
    assert by_name(sparse(_nested(make)))["inner/pointwise/kernel"].runs == "xnnpack"


def test_a_sequence_of_layers_is_a_graph():
    stack = [layers.ZeroPadding2D(1), layers.Conv2D(16, 3, strides=2), layers.Conv2D(32, 1)]
    ends = [layers.GlobalAveragePooling2D(), layers.Dense(10)]
    model = keras.Sequential([keras.Input((16, 16, 3)), *stack, *ends])
    for layer in model.layers:
        if layer.weights:
            layer.kernel.assign(np.random.default_rng(0).random(layer.kernel.shape) > 0.8)
    assert [row.runs for row in advise(model).layers] == ["smaller", "xnnpack", "smaller"]


@pytest.mark.parametrize(
    ("changes", "culprit"),
    [
        ({"stem": layers.Conv2D(16, 5, strides=2)}, "Conv2D"),
        ({"stem": layers.Conv2D(16, 3, strides=2, padding="same")}, "conv"),
        ({"middle": layers.MaxPooling2D(2)}, "MaxPooling2D"),
        ({"middle": layers.DepthwiseConv2D(3, 2, "same", name="down")}, "DepthwiseConv2D"),
        ({"middle": layers.Conv2D(16, 3, padding="same")}, "Conv2D"),
        ({"end": layers.GlobalMaxPooling2D()}, "GlobalMaxPooling2D"),
    ],
)
def test_what_keeps_xnnpack_from_it_is_named(changes, culprit):
    row = by_name(sparse(graph(**changes)))["pointwise/kernel"]
    assert row.runs == "smaller"
    assert culprit.lower() in row.why.lower()
    assert row.change


def test_convolutions_larger_than_1x1_are_stored_smaller_only():
    row = by_name(sparse(models.small_cnn((8, 8, 1), 10)))["conv_2/kernel"]
    assert row.runs == "smaller"


def test_layers_that_multiply_by_a_matrix_run_sparse():
    inputs = keras.Input((4, 16))
    x = layers.MultiHeadAttention(2, 8, name="attention")(inputs, inputs)
    model = keras.Model(inputs, layers.LSTM(16, name="lstm")(x))
    rows = by_name(sparse(model, pattern="block_4x1"))
    assert {row.runs for row in rows.values()} == {"sparse"}
    assert len(rows) == 6
    assert {row.runs for row in advise(sparse(model, pattern="litert")).layers} == {"sparse"}


def test_other_layers_stay_dense():
    inputs = keras.Input((4, 4, 4, 2))
    model = keras.Model(inputs, layers.Conv3D(8, 2, name="conv")(inputs))
    assert by_name(sparse(model))["conv/kernel"].runs == "dense"


def test_embeddings_are_stored_smaller():
    inputs = keras.Input((4,), dtype="int32")
    model = keras.Model(inputs, layers.Embedding(50, 16, name="words")(inputs))
    assert by_name(sparse(model))["words/embeddings"].runs == "smaller"


def test_it_is_printed_as_a_table_and_written_as_json():
    advice = advise(sparse(mlp(), pattern="litert"))
    lines = str(advice).splitlines()
    assert len(lines) == 7 + len(advice.layers)
    assert "float32" in lines[-4]
    assert f"int8 {advice.sizes['int8']:,}" in lines[-2]
    assert lines[-1].startswith("Smallest: quantization=")
    assert lines[0].split()[:3] == ["weight", "shape", "sparsity"]
    assert json.loads(json.dumps(advice.to_dict()))["layers"][0]["shape"] == [32, 64]


@pytest.mark.parametrize("model", [None, "model.keras", keras.Sequential([layers.Dense(3)])])
def test_what_is_no_built_model_is_refused(model):
    with pytest.raises(ValueError, match=r"`model` must be a built `keras.Model`"):
        advise(model)


def test_masked_layers_are_looked_into():
    inputs = keras.Input((32,))
    outputs = tf_rigl.MaskedLayer(layers.Dense(16, name="a"), 0.8, "block_16x1", seed=0)(inputs)
    model = tf_rigl.SparseModel(inputs, outputs, method="static")
    assert [row.runs for row in advise(model).layers] == ["sparse"]
    assert np.count_nonzero(model.masked_weights[0].weight) > 0


@pytest.mark.parametrize("pattern", ["unstructured", "litert", "block_4x1"])
def test_the_exported_file_is_as_advised(pattern, tmp_path):
    inputs = keras.Input((8, 8, 4))
    x = layers.Conv2D(16, 3, name="conv")(inputs)
    x = layers.Dense(32, name="a")(layers.Flatten()(x))
    model = sparse(keras.Model(inputs, layers.Dense(10, name="b")(x)), pattern=pattern)
    tf_rigl.export_tflite(model, tmp_path / "model.tflite")
    file = flatbuffer_utils.read_model(str(tmp_path / "model.tflite"))
    (graph,) = file.subgraphs
    codes = [file.operatorCodes[op.opcodeIndex].builtinCode for op in graph.operators]
    unpacked = codes.count(schema.BuiltinOperator.DENSIFY)
    stored = sum(tensor.sparsity is not None for tensor in graph.tensors)
    runs = [row.runs for row in advise(model).layers]
    assert unpacked == runs.count("smaller")
    assert stored - unpacked == runs.count("sparse")
    assert stored == len(runs) - runs.count("dense")
