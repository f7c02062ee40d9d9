"""A LiteRT file computes what the Keras model does, smaller, and is written whole or not at all."""

import os
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert import schema_py_generated as schema
from ai_edge_litert.interpreter import Interpreter
from ai_edge_litert.tools import flatbuffer_utils

from tests.helpers import MODEL_KINDS, model_data, random_data, sparsify
from tf_rigl.export import _encoding, latency, tflite
from tf_rigl.export.tflite import export_tflite

FLOAT = 1e-4
OP = schema.BuiltinOperator


def dense_stack(units=(64, 32), inputs=64):
    layers = [keras.layers.Dense(n, activation="relu") for n in units]
    return keras.Sequential([keras.Input((inputs,)), *layers, keras.layers.Dense(3, name="head")])


def cnn():
    return keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            keras.layers.Conv2D(16, 3, activation="relu"),
            keras.layers.BatchNormalization(),
            keras.layers.SeparableConv2D(16, 3, activation="relu"),
            keras.layers.Conv2DTranspose(8, 2),
            keras.layers.Flatten(),
            keras.layers.Dense(3),
        ]
    )


def sparse_stack(pattern="block_16x1", sparsity=0.9, **kwargs):
    return sparsify(dense_stack(**kwargs), "static", sparsity, pattern=pattern)


def images(size=8):
    return random_data((8, 8, 3), batches=1, batch=size)[0]


def rows(size=8, features=64, seed=0):
    return random_data((features,), batches=1, batch=size, seed=seed)[0]


def run(path, *inputs):
    """The outputs of a file by name; inputs in the order of their names."""
    runner = Interpreter(str(path), num_threads=1).get_signature_runner()
    names = sorted(runner.get_input_details())
    return runner(**dict(zip(names, inputs, strict=True)))


def operators(path):
    """The kinds of operators in a file, and the types of its sparse weights."""
    model = flatbuffer_utils.convert_bytearray_to_object(bytearray(path.read_bytes()))
    kinds = [model.operatorCodes[op.opcodeIndex].builtinCode for op in model.subgraphs[0].operators]
    return kinds, [t.type for t in model.subgraphs[0].tensors if t.sparsity is not None]


def close(expected, received, tolerance=FLOAT):
    expected = keras.ops.convert_to_numpy(expected)
    largest = np.abs(expected).max()
    np.testing.assert_allclose(received, expected, rtol=0, atol=tolerance * largest)


@pytest.mark.parametrize("pattern", ["unstructured", "block_4x1", "block_16x1", "2:4", "litert"])
def test_dense_layers_give_the_same_outputs_whatever_the_pattern(pattern, tmp_path):
    """In a layer of 30 inputs no block of LiteRT fits, in others it does."""
    model = sparse_stack(pattern, 0.8, units=(64, 30, 32))
    x = rows()
    info = export_tflite(model, tmp_path / "m.tflite", check_data=x)
    close(model(x), run(info.path, x)["output_0"])
    assert info.bytes == os.path.getsize(info.path) < info.dense_bytes
    assert info.max_abs_error < FLOAT


def test_blocks_run_on_sparse_kernels_and_other_weights_are_unpacked(tmp_path):
    path = tmp_path / "m.tflite"
    export_tflite(sparse_stack("block_4x1"), path)
    assert operators(path) == ([OP.FULLY_CONNECTED] * 3, [schema.TensorType.FLOAT32] * 3)
    export_tflite(sparse_stack("block_4x1", inputs=30), path)
    assert operators(path)[0] == [OP.DENSIFY] + [OP.FULLY_CONNECTED] * 3


def test_file_is_a_third_of_the_dense_one_at_nine_tenths_zeros(tmp_path):
    model = sparse_stack(units=(256, 256))
    info = export_tflite(model, tmp_path / "m.tflite")
    assert info.bytes < info.dense_bytes / 3
    dense = dense_stack(units=(256, 256))
    with pytest.warns(UserWarning, match="no zeros"):
        other = export_tflite(dense, tmp_path / "d.tflite")
    assert other.bytes == other.dense_bytes == pytest.approx(info.dense_bytes, rel=0.01)


def test_convolutions_give_the_same_outputs_and_shrink(tmp_path):
    model = sparsify(cnn(), "static", 0.9)
    info = export_tflite(model, tmp_path / "m.tflite")
    x = images(3)
    close(model(x), run(info.path, x)["output_0"])
    assert info.bytes < info.dense_bytes


@pytest.mark.parametrize("kind", ["multi-input", "multi-output", "dict", "shared", "composite"])
def test_every_input_and_output_is_where_it_belongs(kind, tmp_path):
    model = sparsify(MODEL_KINDS[kind][0](), "static", 0.5)
    x, _ = model_data(kind, batches=1)
    info = export_tflite(model, tmp_path / "m.tflite")
    received = run(info.path, *keras.tree.flatten(x))
    expected = model(x)
    if not isinstance(expected, dict):
        expected = {f"output_{n}": y for n, y in enumerate(keras.tree.flatten(expected))}
    assert received.keys() == expected.keys()
    for name, output in expected.items():
        close(output, received[name])


def test_subclassed_model_of_dicts_is_exported_by_name(tmp_path):
    make, _ = MODEL_KINDS["subclassed-dict"]
    model = sparsify(make(), "static", 0.5)
    x, _ = model_data("subclassed-dict", batches=1)
    model(x)
    info = export_tflite(model, tmp_path / "m.tflite")
    received = Interpreter(info.path).get_signature_runner()(**x)
    for name, output in model(x).items():
        close(output, received[name])


@pytest.mark.parametrize(
    ("quantization", "tolerance"), [("float16", 1e-2), ("dynamic", 0.1), ("int8", 0.1)]
)
@pytest.mark.parametrize("pattern", ["unstructured", "block_4x1", "block_16x1"])
@pytest.mark.filterwarnings("ignore:.*stored dense")
def test_quantized_files_give_nearly_the_same_outputs(quantization, tolerance, pattern, tmp_path):
    """In a layer of 40 inputs blocks of 16 do not fit."""
    model = sparse_stack(pattern, units=(64, 40, 32))
    x = rows(32)
    data = {"representative_dataset": x} if quantization == "int8" else {}
    info = export_tflite(model, tmp_path / "m.tflite", quantization=quantization, **data)
    close(model(x), run(info.path, x)["output_0"], tolerance)
    assert info.bytes <= info.dense_bytes


def test_int8_runs_blocks_of_sixteen_sparse_with_float_inputs_and_outputs(tmp_path):
    path = tmp_path / "m.tflite"
    model = sparse_stack(units=(64,))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        info = export_tflite(model, path, quantization="int8", representative_dataset=rows())
    assert info.bytes < info.dense_bytes
    assert operators(path)[1] == [schema.TensorType.INT8] * 2
    interpreter = Interpreter(info.path)
    details = interpreter.get_input_details() + interpreter.get_output_details()
    assert {each["dtype"] for each in details} == {np.float32}


def test_int8_convolutions_are_stored_sparse(tmp_path):
    layers = [keras.Input((8, 8, 16)), keras.layers.Conv2D(64, 3), keras.layers.Conv2D(64, 1)]
    model = sparsify(keras.Sequential(layers), "static", 0.9)
    x = random_data((8, 8, 16), batches=1)[0]
    info = export_tflite(
        model, tmp_path / "m.tflite", quantization="int8", representative_dataset=x
    )
    close(model(x), run(info.path, x)["output_0"], 0.1)
    assert info.bytes < 0.8 * info.dense_bytes


def test_float16_halves_what_is_left(tmp_path):
    sparse, half = (
        export_tflite(sparse_stack(units=(256, 256)), tmp_path / "m.tflite", quantization=q)
        for q in (None, "float16")
    )
    assert half.bytes < 0.75 * sparse.bytes


def test_half_precision_transposed_convolutions_keep_no_other_weight_dense(tmp_path):
    layers = [keras.Input((8, 8, 3)), keras.layers.Conv2DTranspose(8, 3), keras.layers.Flatten()]
    model = sparsify(keras.Sequential([*layers, keras.layers.Dense(16)]), "static", 0.9)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        sizes = [
            export_tflite(model, tmp_path / "m", quantization="float16", batch_size=size).bytes
            for size in (None, 1)
        ]
        dense = export_tflite(model, tmp_path / "m", quantization="float16").dense_bytes
    assert sizes[1] < sizes[0] < 0.5 * dense


@pytest.mark.parametrize("quantization", ["dynamic", "int8"])
def test_weights_that_cannot_run_sparse_stay_dense_with_a_warning(quantization, tmp_path):
    data = rows() if quantization == "int8" else None
    with pytest.warns(UserWarning, match="with zeros are stored dense"):
        info = export_tflite(
            sparse_stack("unstructured", units=(256, 256)),
            tmp_path / "m.tflite",
            quantization=quantization,
            representative_dataset=data,
        )
    assert info.bytes > 0.9 * info.dense_bytes  # The small head is float, and sparse.


def _generator():
    for x in rows(4):
        yield [x[None]]


@pytest.mark.parametrize(
    "data",
    [
        rows(),
        [rows()],
        (rows(), np.zeros(8)),
        tf.data.Dataset.from_tensor_slices(rows()).batch(3),
        tf.data.Dataset.from_tensor_slices((rows(), np.zeros(8))).batch(3).repeat(),
        _generator,
    ],
    ids=["array", "list", "tuple", "dataset", "endless dataset with labels", "function"],
)
def test_representative_data_come_as_keras_and_tensorflow_take_them(data, tmp_path):
    info = export_tflite(
        sparse_stack(units=(16,)),
        tmp_path / "m.tflite",
        quantization="int8",
        representative_dataset=data,
    )
    assert info.max_abs_error > 0


@pytest.mark.parametrize("as_function", [False, True])
def test_representative_data_of_several_inputs(as_function, tmp_path):
    model = sparsify(MODEL_KINDS["dict"][0](), "static", 0.5)
    x, _ = model_data("dict", batches=1)
    flat = keras.tree.flatten(x)
    data = (lambda: ([a[:1], b[:1]] for a, b in [flat] * 9)) if as_function else x
    path = tmp_path / "m.tflite"
    export_tflite(model, path, quantization="int8", representative_dataset=data)
    assert path.exists()


def test_batch_axis_is_free_or_fixed(tmp_path):
    model = sparse_stack()
    free, fixed = tmp_path / "free", tmp_path / "fixed"
    export_tflite(model, free)
    export_tflite(model, fixed, batch_size=4)
    for size in (1, 5):
        close(model(rows(size)), run(free, rows(size))["output_0"])
    interpreter = Interpreter(str(free))
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], (3, 64))
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], rows(3))
    interpreter.invoke()
    output = interpreter.get_tensor(interpreter.get_output_details()[0]["index"])
    close(model(rows(3)), output)
    assert list(Interpreter(str(fixed)).get_input_details()[0]["shape_signature"]) == [4, 64]
    close(model(rows(4)), run(fixed, rows(4))["output_0"])


def test_recurrent_layer_asks_for_a_fixed_batch(tmp_path):
    path = tmp_path / "m.tflite"
    layers = [keras.Input((4, 8)), keras.layers.LSTM(16), keras.layers.Dense(3)]
    model = sparsify(keras.Sequential(layers), "static", 0.9)
    with pytest.raises(ValueError, match="Pass `batch_size`"):
        export_tflite(model, path)
    assert not list(tmp_path.iterdir())
    info = export_tflite(model, path, batch_size=2)
    x = random_data((4, 8), batches=1, batch=2)[0]
    close(model(x), run(path, x)["output_0"])
    assert info.bytes < info.dense_bytes
    with pytest.raises(ValueError, match="recurrent layers that loop"):
        export_tflite(model, path, quantization="int8", representative_dataset=x, batch_size=1)


@pytest.mark.parametrize(("quantization", "tolerance"), [(None, FLOAT), ("float16", 1e-2)])
def test_attention_and_embeddings_give_the_same_outputs(quantization, tolerance, tmp_path):
    ids = keras.Input((6,), dtype="int32")
    x = keras.layers.Embedding(9, 16)(ids)
    x = keras.layers.Flatten()(keras.layers.MultiHeadAttention(2, 16)(x, x))
    model = sparsify(
        keras.Model(ids, keras.layers.Dense(3)(x)), "static", 0.9, pattern="block_16x1"
    )
    info = export_tflite(model, tmp_path / "m.tflite", quantization=quantization)
    x = random_data((6,), batches=1, dtype="int32")[0]
    close(model(x), run(info.path, x)["output_0"], tolerance)
    assert info.bytes < info.dense_bytes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"quantization": "flaot16"}, "Did you mean 'float16'"),
        ({"quantization": "int8"}, "`representative_dataset` must be given"),
        ({"quantization": ["int8"]}, "`quantization` must be one of"),
        ({"quantization": "int8", "representative_dataset": 3}, "`representative_dataset` must be"),
        ({"representative_dataset": rows()}, "`representative_dataset` must be given"),
        ({"batch_size": 0}, "`batch_size` must be an integer of at least 1"),
        ({"check_data": rows(features=3)}, "`check_data` must hold batches of the model's inputs"),
        ({"check_data": rows(0)}, "`check_data` must hold at least one example"),
        (
            {"quantization": "int8", "representative_dataset": [rows(), rows()]},
            "`representative_dataset` must hold batches",
        ),
    ],
)
def test_bad_arguments_are_refused(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_tflite(sparse_stack(units=()), tmp_path / "m.tflite", **arguments)
    assert not list(tmp_path.iterdir())


def test_bad_places_are_refused(tmp_path):
    model = sparse_stack(units=())
    with pytest.raises(ValueError, match="folder of `path` does not exist"):
        export_tflite(model, tmp_path / "none" / "m.tflite")
    with pytest.raises(ValueError, match="must not be a folder"):
        export_tflite(model, tmp_path)
    with pytest.raises(ValueError, match="must be a path"):
        export_tflite(model, 3)
    assert not list(tmp_path.iterdir())


class Unsupported(keras.layers.Layer):
    def call(self, x):
        return tf.math.igamma(keras.ops.abs(x), keras.ops.abs(x))


def test_operator_that_litert_lacks_is_named(tmp_path):
    layers = [keras.Input((8,)), Unsupported(), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.layers[-1].kernel.assign(np.eye(8, 3))
    with pytest.raises(ValueError, match=r"no operator for tf\.Igamma.*export_saved_model"):
        export_tflite(model, tmp_path / "m.tflite")
    assert not list(tmp_path.iterdir())


def _wrong(content, batch, run=tflite._run):
    return {name: output + 1 for name, output in run(content, batch).items()}


def _no_room(*_, **__):
    raise OSError("no room")


def _no_room_for_tensorflow(*_, **__):
    raise tf.errors.ResourceExhaustedError(None, None, "no room")


def _no_run(*_, **__):
    raise RuntimeError("no room for tensors")


@pytest.mark.parametrize(
    ("place", "function", "error"),
    [
        ("tf_rigl.export.tflite._run", _wrong, "does not reproduce the model's outputs"),
        ("ai_edge_litert.interpreter.Interpreter", _no_run, "LiteRT cannot run .* no room"),
        ("tensorflow.saved_model.save", _no_room_for_tensorflow, "cannot be written: no room"),
        ("pathlib.Path.write_bytes", _no_room, "no room"),
        ("os.replace", _no_room, "no room"),
    ],
)
def test_failure_leaves_what_was_there(place, function, error, monkeypatch, tmp_path):
    path = tmp_path / "m.tflite"
    path.write_bytes(b"older")
    model = sparse_stack(units=(16,))
    monkeypatch.setattr(place, function)
    with pytest.raises((ValueError, OSError), match=error):
        export_tflite(model, path)
    monkeypatch.undo()
    assert path.read_bytes() == b"older"
    assert os.listdir(tmp_path) == ["m.tflite"]


def test_sparse_weights_that_run_wrong_are_never_written(monkeypatch, tmp_path):
    """The converter's own pass puts blocks into layers that they do not divide."""

    def blocks_anywhere(content):
        model = flatbuffer_utils.convert_bytearray_to_object(bytearray(content))
        for buffer in model.buffers:
            if buffer.data is not None and len(buffer.data) > 1000:
                buffer.data = np.roll(buffer.data, 4)
        return bytes(flatbuffer_utils.convert_object_to_bytearray(model))[:-8], 0

    monkeypatch.setattr(_encoding, "encode", blocks_anywhere)
    model, x = sparse_stack(), rows()
    with pytest.warns(UserWarning, match="does not run this model right"):
        info = export_tflite(model, tmp_path / "m.tflite")
    assert info.bytes == info.dense_bytes
    close(model(x), run(info.path, x)["output_0"])


def test_a_file_may_keep_its_zeros(tmp_path):
    model = sparse_stack()
    packed = export_tflite(model, tmp_path / "packed.tflite")
    whole = export_tflite(model, tmp_path / "whole.tflite", packed=False)
    assert packed.bytes < whole.bytes == whole.dense_bytes


def test_latency_is_measured_for_each_file(tmp_path):
    paths = [tmp_path / "a.tflite", tmp_path / "b.tflite"]
    for path in paths:
        export_tflite(sparse_stack(), path)
    for xnnpack in (True, False):
        seconds = latency(paths, rounds=2, batch_size=3, xnnpack=xnnpack)
        assert len(seconds) == 2
        assert min(seconds) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"paths": "model.tflite"}, "`paths` must be a list"),
        ({"paths": ["missing.tflite"]}, "hold LiteRT files.*There is no file 'missing.tflite'"),
        ({"paths": [None]}, "`paths` must hold LiteRT files.*There is no file 'None'"),
        ({"paths": None}, "`paths` must be a list of files.*paths=None"),
        ({"paths": [__file__]}, r"LiteRT files\. '.*\.py' is another kind of file"),
        ({"paths": [], "rounds": 0}, "`rounds`"),
        ({"paths": [], "batch_size": 0}, "`batch_size`"),
    ],
)
def test_latency_names_what_is_wrong(arguments, message):
    with pytest.raises(ValueError, match=message):
        latency(**arguments)
