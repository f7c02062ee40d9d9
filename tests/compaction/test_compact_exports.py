"""Exports and the command line use the compact form where blocks allow it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter

import tf_rigl
from tests.compaction.test_compacting import L, pruned
from tf_rigl.compaction import examining
from tf_rigl.experiments import cli
from tf_rigl.patterns import Block


@pytest.fixture(autouse=True)
def fresh_start():
    """Replaces that of conftest.py: names of layers are given here."""
    keras.utils.set_random_seed(0)


@pytest.fixture(scope="module", name="sparse")
def make_sparse():
    inputs = keras.Input((8, 8, 32), name="pictures")
    x = L.Conv2D(64, 3, padding="same", activation="relu", name="first")(inputs)
    x = L.GlobalAveragePooling2D()(L.Conv2D(64, 3, use_bias=False, name="second")(x))
    model = keras.Model(inputs, L.Dense(5, name="head")(x))
    return tf_rigl.sparsify(
        model, sparsity=0.875, pattern="channels_1x32", distribution="uniform_all",
        exclude=["head"], seed=0,
    )  # fmt: skip


def data(size=8):
    return np.random.default_rng(0).normal(size=(size, 8, 8, 32)).astype("float32")


@pytest.mark.parametrize("quantization", [None, "float16"])
def test_a_litert_file_is_about_as_small_as_the_density(sparse, quantization, tmp_path):
    options = {"quantization": quantization, "check_data": data()}
    infos = {
        compute: tf_rigl.export_tflite(sparse, tmp_path / compute, compute=compute, **options)
        for compute in ("auto", "dense")
    }
    assert infos["auto"].bytes < 0.4 * infos["dense"].bytes
    assert infos["auto"].dense_bytes == pytest.approx(infos["dense"].dense_bytes, rel=0.15)


def test_encoded_files_are_those_of_before(sparse, tmp_path):
    info = tf_rigl.export_tflite(sparse, tmp_path / "encoded", compute="encoded", check_data=data())
    dense = tf_rigl.export_tflite(sparse, tmp_path / "dense", packed=False, check_data=data())
    assert info.dense_bytes == dense.bytes


def test_a_saved_model_is_compact_too(sparse, tmp_path):
    tf_rigl.export_saved_model(sparse, tmp_path / "compact", check_data=data())
    dense = tf_rigl.export_saved_model(
        sparse, tmp_path / "dense", compute="dense", packed=False, check_data=data()
    )
    loaded = tf.saved_model.load(str(tmp_path / "compact"))
    np.testing.assert_allclose(loaded.serve(data()), sparse(data()), atol=1e-5)
    count = sum(int(tf.size(variable)) for variable in loaded.variables)
    assert count < 0.2 * sparse.count_params()
    assert dense.bytes > 4 * 0.9 * 9 * 64 * 96


def test_what_cannot_be_compact_is_told_or_stays_dense(tmp_path):
    inputs = keras.Input((80,))
    model = keras.Model(inputs, L.Dense(64, name="single")(inputs))
    sparse = tf_rigl.sparsify(model, sparsity=0.8, seed=0)
    with pytest.raises(ValueError, match=r"no layer of which .*\n.*\n.*\n.*single"):
        tf_rigl.export_tflite(sparse, tmp_path / "a.tflite", compute="compact")
    with pytest.raises(ValueError, match=r"`compute` must be.*Received: compute='encoded'"):
        tf_rigl.export_saved_model(sparse, tmp_path / "a", compute="encoded")
    assert not list(tmp_path.iterdir())
    info = tf_rigl.export_tflite(sparse, tmp_path / "a.tflite")
    assert info.bytes < info.dense_bytes


@pytest.mark.parametrize(
    ("quantization", "rows", "forms"),
    [(None, 1, {"wide": "matmul", "taps": "split"}),
     ("float32", 1, {"wide": "grouped", "taps": "grouped"}),
     ("dynamic", 8, {"wide": "grouped", "taps": "grouped"}),
     ("dynamic", 1, {"wide": "grouped", "taps": "dense"}),
     ("int8", 8, {"wide": "grouped", "taps": "grouped"}),
     ("int8", 1, {"wide": "grouped", "taps": "dense"})],
)  # fmt: skip
def test_where_quantized_kernels_are_slow_layers_stay_dense(quantization, rows, forms, tmp_path):
    inputs = keras.Input((4, 4, 128))
    x = L.GlobalAveragePooling2D()(L.Conv2D(64, 2, name="taps")(inputs))
    model = keras.Model(inputs, L.Dense(128, name="wide")(x))
    columns = {"taps": (rows, 32), "wide": (8, 64)}
    for name, (height, width) in columns.items():
        pattern = Block(height, width, constant_fan_in=True, taps="all")
        kernel = model.get_layer(name).kernel
        scores = np.random.default_rng(0).random(kernel.shape)
        kernel.assign(kernel * pattern.select(scores, pattern.units(kernel.shape) // 4))
    entries = examining.examine(model, quantization=quantization)
    assert {entry.path: entry.form for entry in entries} == forms
    quantization = None if quantization == "float32" else quantization
    x = np.random.default_rng(0).normal(size=(16, 4, 4, 128)).astype("float32")
    more = {"representative_dataset": x} if quantization == "int8" else {"check_data": x}
    info = tf_rigl.export_tflite(model, tmp_path / "a", quantization=quantization, **more)
    assert info.bytes < info.dense_bytes


def test_the_command_line_makes_models_compact(tmp_path, capsys):
    inputs = keras.Input((64,))
    model = keras.Model(inputs, L.Dense(128, name="wide")(inputs))
    pruned(model.get_layer("wide"), 8, 32, 0.2)
    model.save(tmp_path / "model.keras")
    small = tmp_path / "small.keras"
    assert cli.main(["compact", str(tmp_path / "model.keras"), str(small)]) == 0
    assert "wide" in capsys.readouterr().out
    x = np.ones((2, 64), "float32")
    np.testing.assert_allclose(keras.models.load_model(small)(x), model(x), atol=1e-5)
    arguments = ["export", str(tmp_path / "model.keras"), str(tmp_path / "m.tflite")]
    assert cli.main([*arguments, "--compute", "compact"]) == 0
    assert "outputs within" in capsys.readouterr().out


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
@pytest.mark.parametrize("compute", ["compact", "dense"])
def test_models_in_half_precision_compute_in_float32_in_litert(policy, compute, tmp_path):
    inputs = keras.Input((8, 8, 32))
    x = L.Conv2D(64, 3, padding="same", name="conv", dtype=policy)(inputs)
    x = L.Activation("relu", dtype=policy)(L.BatchNormalization(dtype=policy)(x))
    x = L.Dense(64, name="dense", dtype=policy)(L.GlobalAveragePooling2D(dtype=policy)(x))
    model = keras.Model(inputs, L.Dense(5, name="head", dtype="float32")(x))
    sparse = tf_rigl.sparsify(
        model, sparsity=0.8, pattern="channels_1x32", distribution="uniform_all",
        exclude=["head"], seed=0,
    )  # fmt: skip
    given = [sparse, tf_rigl.compact(sparse)] if compute == "compact" else [sparse]
    for number, each in enumerate(given):
        path = str(tmp_path / f"{number}.tflite")
        info = tf_rigl.export_tflite(each, path, compute="auto" if number else compute)
        assert 0 < info.max_abs_error < 2e-2  # Of the model as it is.
        run = Interpreter(path).get_signature_runner()
        (output,) = run(input_0=data()[:1]).values()
        np.testing.assert_allclose(output, each(data()[:1]), atol=2e-2)
        assert {layer.dtype_policy.name for layer in each.layers} == {"float32", policy}


@keras.saving.register_keras_serializable(package="tests")
class Halves(keras.layers.Layer):
    """A layer whose sublayers take the global policy, as those of keras.io do."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.attention, self.dense = L.MultiHeadAttention(2, 32), L.Dense(64, "relu")

    def call(self, inputs):
        return self.dense(inputs + self.attention(inputs, inputs))


@pytest.mark.parametrize("pattern", ["unstructured", "channels_1x32"])
def test_a_global_policy_of_half_precision(pattern, tmp_path):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        inputs = keras.Input((6, 64))
        x = L.MultiHeadAttention(2, 64)(*[Halves()(inputs)] * 2)
        model = keras.Model(inputs, L.Dense(5, dtype="float32")(L.Dense(256)(x)))
        sparse = tf_rigl.sparsify(model, "static", 0.8, pattern=pattern, seed=0)
        infos = [
            tf_rigl.export_tflite(sparse, tmp_path / compute, compute=compute)
            for compute in ("auto", "encoded", "dense")
        ]
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert all(0 < info.max_abs_error < 2e-2 for info in infos)
    assert infos[0].bytes < 0.5 * infos[2].bytes


def test_weights_in_half_precision_have_no_litert_file(tmp_path):
    model = keras.Sequential([keras.Input((8,)), L.Dense(4, dtype="float16", name="half")])
    with pytest.raises(ValueError, match=r"Layer 'half' has dtype 'float16'.*'mixed_float16'"):
        tf_rigl.export_tflite(model, tmp_path / "file")
    assert model.layers[0].dtype_policy.name == "float16"
    assert not list(tmp_path.iterdir())


def test_zeros_are_either_removed_or_not(sparse, tmp_path):
    for compute in ("compact", "encoded"):
        with pytest.raises(ValueError, match="`packed` must be True with compute"):
            tf_rigl.export_tflite(sparse, tmp_path / "file", packed=False, compute=compute)
    assert not list(tmp_path.iterdir())


def test_normalisation_that_stores_half_precision_still_has_a_file(tmp_path):
    inputs = keras.Input((8,))
    x = L.BatchNormalization(dtype="float16")(L.Dense(64)(inputs))
    with pytest.warns(UserWarning, match="no zeros to remove"):
        info = tf_rigl.export_tflite(keras.Model(inputs, L.Dense(4)(x)), tmp_path / "file")
    assert info.max_abs_error < 1e-2


@keras.saving.register_keras_serializable(package="tests")
class OwnStep(keras.Model):
    """A graph whose class has a step of its own."""

    def train_step(self, data):
        return super().train_step(data)


def test_a_loaded_graph_of_an_own_class_has_a_file(tmp_path):
    """Nothing has called the loaded model yet."""
    inputs = keras.Input((64,))
    model = OwnStep(inputs, L.Dense(4, name="head")(L.Dense(128, activation="relu")(inputs)))
    sparse = tf_rigl.sparsify(
        model, "static", 0.75, "uniform_all", "channels_8x32", exclude=["head"], seed=0
    )
    sparse.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    info = tf_rigl.export_tflite(loaded, tmp_path / "file", compute="compact")
    assert info.max_abs_error < 1e-5
