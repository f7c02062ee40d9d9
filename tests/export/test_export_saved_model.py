"""A packed SavedModel gives the outputs of the Keras model, with TensorFlow alone."""

import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import MODEL_KINDS, layer_model, sparsify, uniform
from tf_rigl.export import _source, saved_model
from tf_rigl.export.saved_model import export_saved_model

DATA = "variables/variables.data-00000-of-00001"
k = keras.layers


@pytest.fixture
def pack_all(monkeypatch):
    """Small weights are packed too."""
    monkeypatch.setattr(saved_model, "_OVERHEAD", 0)


def dense(units=96, **kwargs):
    inputs = keras.Input((64,), name="x")
    x = k.Dropout(0.1)(k.Dense(units, activation="relu", name="hidden")(inputs))
    return keras.Model(inputs, k.Dense(64, name="head", **kwargs)(x))


def sparse(model=None, sparsity=0.9, **kwargs):
    return tf_rigl.sparsify(
        dense() if model is None else model, sparsity=sparsity, distribution=uniform, **kwargs
    )


def two_ends():
    one, two = keras.Input((32,), name="b"), keras.Input((6, 16), name="a")
    x = k.Dense(96, name="left")(one) + k.LSTM(96, name="right")(two)
    return keras.Model([one, two], {"y": k.Dense(64, name="y")(x), "z": k.Dense(48, name="z")(x)})


def attention():
    inputs = keras.Input((None, 48))
    x = k.MultiHeadAttention(4, 12)(inputs, inputs)
    return keras.Model(inputs, [k.GlobalAveragePooling1D()(k.LayerNormalization()(x)), x])


def cnn():
    layers = [k.Conv2D(32, 3), k.BatchNormalization(), k.ReLU(), k.Conv2D(32, 3, strides=2)]
    model = keras.Sequential([keras.Input((12, 12, 8)), *layers, k.Flatten(), k.Dense(10)])
    model(np.random.default_rng(0).normal(size=(8, 12, 12, 8)), training=True)
    return model


def mixed():
    return dense(dtype=keras.DTypePolicy("mixed_bfloat16"))


WHOLE = {
    "mlp": lambda: sparse(),
    "cnn": lambda: sparse(cnn(), 0.8),
    "two ends": lambda: sparse(two_ends()),
    "attention": lambda: sparse(attention(), 0.8),
    "blocks": lambda: sparse(pattern="block_4x1"),
    "2:4": lambda: sparse(sparsity=0.5, pattern="2:4"),
    "mixed": lambda: sparse(mixed()),
}

ALONE = """
import sys
sys.modules.update({"keras": None, "tf_rigl": None, "tf_keras": None})
import numpy as np, tensorflow as tf
folder, count = sys.argv[1], int(sys.argv[2])
for n in range(count):
    with np.load(f"{folder}/{n}.npz") as file:
        inputs = {name: file[name] for name in file.files}
    outputs = {}
    serve = tf.saved_model.load(f"{folder}/{n}").signatures["serving_default"]
    for name, value in serve(**{name: tf.constant(x) for name, x in inputs.items()}).items():
        outputs["2" + name] = value.numpy()
    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        meta = tf.compat.v1.saved_model.load(session, ["serve"], f"{folder}/{n}")
        signature = meta.signature_def["serving_default"]
        feed = {signature.inputs[name].name: x for name, x in inputs.items()}
        fetch = {name: tensor.name for name, tensor in signature.outputs.items()}
        for name, value in session.run(fetch, feed).items():
            outputs["1" + name] = value
    outputs = {name: value.astype("float32") for name, value in outputs.items()}
    np.savez(f"{folder}/{n}-outputs.npz", **outputs)
assert not sys.modules["keras"] and not sys.modules["tf_rigl"]
"""


def names(model):
    """The names of a model's inputs, flat."""
    return [x.name for x in keras.tree.flatten(model.inputs)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What a process with TensorFlow alone makes of every model, and the Keras outputs."""
    folder = tmp_path_factory.mktemp("alone")
    expected = {}
    for n, (name, make) in enumerate(WHOLE.items()):
        keras.utils.set_random_seed(n)
        model = make()
        info = export_saved_model(model, folder / str(n))
        batch = _source.check_batch(tf_rigl.strip(model), size=3, seed=1)
        outputs = model(*batch)
        if not isinstance(outputs, dict):
            flat = keras.tree.flatten(outputs)
            outputs = {f"output_{number}": value for number, value in enumerate(flat)}
        expected[name] = {key: np.float32(value) for key, value in outputs.items()}, info, model
        flat = keras.tree.flatten(batch)
        np.savez(folder / f"{n}.npz", **dict(zip(names(model), flat, strict=True)))
    program = [sys.executable, "-c", ALONE, str(folder), str(len(WHOLE))]
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(program, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {
        name: (*expected[name], dict(np.load(folder / f"{n}-outputs.npz")))
        for n, name in enumerate(WHOLE)
    }


@pytest.mark.parametrize("loader", [1, 2])
@pytest.mark.parametrize("name", WHOLE)
def test_tensorflow_alone_gives_the_outputs_of_the_keras_model(alone, name, loader):
    """By the loader of TensorFlow 2, and by that of sessions, which serving uses."""
    expected, _, _, received = alone[name]
    received = {key[1:]: value for key, value in received.items() if key[0] == str(loader)}
    assert received.keys() == expected.keys()
    # The batch is another than that of the check; bfloat16 rounds where graphs are fused.
    atol = 1e-2 if name == "mixed" else 1e-6
    for key, value in expected.items():
        np.testing.assert_allclose(received[key], value, rtol=1e-6, atol=atol)


@pytest.mark.parametrize("name", WHOLE)
def test_variables_take_their_share_of_the_disk(alone, name):
    """Four bytes for a non-zero, a bit for an entry; the graph of objects comes on top."""
    _, info, model, _ = alone[name]
    share = 6000
    for weight in tf_rigl.strip(model).weights:
        value = np.asarray(weight)
        nonzero = np.count_nonzero(value)
        share += min(value.itemsize * nonzero + value.size / 8, value.nbytes)
    assert os.path.getsize(f"{info.path}/{DATA}") <= 1.1 * share
    files = [file for file in pathlib.Path(info.path).rglob("*") if file.is_file()]
    assert info.bytes == sum(file.stat().st_size for file in files) < info.dense_bytes


@pytest.mark.parametrize(
    ("kind", "packed"),
    [
        ("functional", False),
        ("multi-output", True),
        ("dict", True),
        ("shared", True),
        ("sequential-in-functional", True),
        ("composite", True),
        ("subclassed", True),
        ("subclassed-dict", True),
        ("subclassed-dict", False),
    ],
)
def test_every_kind_of_model_has_the_endpoints_that_keras_gives_it(
    kind, packed, pack_all, tmp_path
):
    model = sparsify(MODEL_KINDS[kind][0]())
    info = export_saved_model(model, tmp_path / "ours", packed=packed)
    assert info.max_abs_error < 1e-6
    assert (info.bytes == info.dense_bytes) is not packed
    ordinary = tf_rigl.strip(model)
    ordinary.export(tmp_path / "theirs", verbose=False, input_signature=_source.signature(ordinary))
    ours, theirs = (tf.saved_model.load(str(tmp_path / name)) for name in ("ours", "theirs"))
    assert set(ours.signatures) == set(theirs.signatures) == {"serve", "serving_default"}
    for key in ours.signatures:
        one, other = ours.signatures[key], theirs.signatures[key]
        assert one.structured_input_signature == other.structured_input_signature
        assert one.structured_outputs == other.structured_outputs
    batch = keras.tree.map_structure(tf.constant, _source.check_batch(ordinary, size=5))
    outputs = [tf.nest.flatten(each.serve(*batch)) for each in (ours, theirs)]
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        "SeparableConv2D",
        "Embedding-mask_zero-LSTM",
        "Bidirectional",
        "RNN-cells",
        "MultiHeadAttention",
        "get_prunable_weights",
    ],
)
def test_every_kind_of_layer_reads_its_packed_weights(case, pack_all, tmp_path):
    model, _, _, paths = layer_model(case)
    model = sparsify(model)
    assert export_saved_model(model, tmp_path / "m").max_abs_error < 1e-6
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    shapes = [tuple(value.numpy().shape) for value in loaded.packed_dense]
    for item in model.masked_weights:
        assert tuple(item.weight.shape) in shapes
    assert len(shapes) >= len(paths)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_weights_are_equal_to_the_bit_after_loading(dtype, pack_all, tmp_path):
    model = sparse(dense(dtype=dtype))
    export_saved_model(model, tmp_path / "m", check_data=np.ones((2, 64)))
    received = {v.numpy().tobytes() for v in tf.saved_model.load(str(tmp_path / "m")).packed_dense}
    assert {np.asarray(item.weight).tobytes() for item in model.masked_weights} <= received


def test_check_data_are_arranged_as_the_inputs_of_the_model(tmp_path):
    """A list of one input takes an array, several take a tuple; a wrong structure is named."""
    inner, x = dense(), np.ones((2, 64))
    one = keras.Model([inner.inputs[0]], inner.outputs)
    for data in (x, [x]):
        export_saved_model(one, tmp_path / "m", check_data=data)
    two = [keras.Input((4,)), keras.Input((3,))]
    two = keras.Model(two, k.Concatenate()(two))
    export_saved_model(two, tmp_path / "m", check_data=(np.ones((2, 4)), np.ones((2, 3))))
    with pytest.raises(ValueError, match="list of 2 inputs"):
        export_saved_model(two, tmp_path / "m", check_data=x)
    named = keras.Input((4,), name="a")
    named = keras.Model({"a": named}, k.ReLU()(named))
    for data in (x, {"b": x}):
        with pytest.raises(ValueError, match=r"dict with the keys \['a'\]"):
            export_saved_model(named, tmp_path / "m", check_data=data)


def test_images_are_not_augmented(tmp_path):
    """Layers of augmentation train by default, where a model is called without `training`."""
    layers = [keras.Input((8, 8, 1)), k.RandomFlip(), k.RandomRotation(0.2), k.Flatten()]
    model = keras.Sequential([*layers, k.Dense(3)])
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")
    export_saved_model(model, tmp_path / "m", check_data=x)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    served = loaded.serve(tf.constant(x))
    np.testing.assert_allclose(served, model.predict(x, verbose=0), atol=1e-6)


def test_integers_of_a_model_without_a_graph(tmp_path):
    class Words(keras.Model):
        def __init__(self):
            super().__init__()
            self.table, self.head = k.Embedding(9, 4), k.Dense(3)

        def call(self, x):
            return self.head(self.table(x))

    model, x = Words(), np.array([[1, 2, 8], [3, 4, 0]], "int32")
    model(x)
    export_saved_model(model, tmp_path / "m", check_data=x)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    served = loaded.serve(tf.constant(x))
    np.testing.assert_allclose(served, model(x), atol=1e-6)
    tf_rigl.export_tflite(model, tmp_path / "m.tflite", check_data=x)


def test_weights_are_restored_when_loaded_and_not_at_each_call(tmp_path):
    export_saved_model(sparse(), tmp_path / "m")
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    (serve,) = loaded.serve.concrete_functions
    operations = {node.type for node in serve.graph.get_operations()}
    assert not operations & {"ScatterNd", "Where", "Bitcast", "GatherV2"}
    assert {id(v) for v in serve.variables} >= {id(v) for v in loaded.packed_dense}
    assert not {id(v) for v in serve.variables} & {id(v) for v in loaded.packed_values}


def test_two_versions_are_loaded_beside_each_other(tmp_path):
    """One of them twice, and one goes away again."""
    x = tf.ones((2, 64))
    models = [sparse(seed=n) for n in range(2)]
    for n, model in enumerate(models):
        export_saved_model(model, tmp_path / str(n))
    served = [tf.saved_model.load(str(tmp_path / str(n))) for n in (0, 1, 0)]
    served.pop()
    for loaded, model in zip(served, models, strict=True):
        np.testing.assert_allclose(loaded.serve(x), model(x), rtol=1e-6, atol=1e-6)


def test_keras_takes_it_as_a_layer(tmp_path):
    model, x = sparse(), np.ones((2, 64), "float32")
    export_saved_model(model, tmp_path / "m")
    layer = keras.layers.TFSMLayer(tmp_path / "m", call_endpoint="serve")
    inputs = keras.Input((64,))
    np.testing.assert_allclose(keras.Model(inputs, layer(inputs))(x), model(x), atol=1e-6)


def test_states_are_left_dense_and_go_on(pack_all, tmp_path):
    """A recurrent state that is all zeros at first is written to at each call."""
    inputs = keras.Input(batch_shape=(2, 4, 16))
    model = keras.Model(inputs, k.LSTM(32, stateful=True)(inputs))
    model = tf_rigl.strip(sparse(model, 0.8))
    state = [v.numpy() for v in model.non_trainable_variables]
    export_saved_model(model, tmp_path / "m")
    for before, after in zip(state, model.non_trainable_variables, strict=True):
        np.testing.assert_array_equal(before, after)
    loaded, x = tf.saved_model.load(str(tmp_path / "m")), tf.ones((2, 4, 16))
    assert len(loaded.packed_dense) >= 2
    for _ in range(2):
        np.testing.assert_allclose(loaded.serve(x), model(x), atol=1e-6)


def test_words_and_tables_are_taken_along(pack_all, tmp_path):
    inputs = keras.Input((3,), dtype="string")
    x = k.StringLookup(vocabulary=["a", "b", "c"])(inputs)
    x = k.Flatten()(k.Embedding(4, 64)(x))
    model = sparse(keras.Model(inputs, k.Dense(8)(x)))
    words = tf.constant([["a", "c", "?"]])
    export_saved_model(model, tmp_path / "m", check_data=words)
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    np.testing.assert_allclose(loaded.serve(words), model(words), atol=1e-6)
    with pytest.raises(ValueError, match="pass one as `check_data`"):
        export_saved_model(model, tmp_path / "other")


def test_a_dense_model_warns_and_works(tmp_path):
    model = dense()
    with pytest.warns(UserWarning, match="has no zeros"):
        info = export_saved_model(model, tmp_path / "m")
    assert info.max_abs_error < 1e-6
    assert info.dense_bytes == info.bytes


def test_unusual_arguments_are_refused_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(saved_model, "_write", None)
    model = sparse()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "notes").write_text("mine")
    for path, message in (
        (tmp_path / "file", "must be a folder, not a file"),
        (tmp_path / "folder", "holds something else"),
        (tmp_path / "absent" / "m", "does not exist"),
        (3, "must be a path"),
    ):
        with pytest.raises(ValueError, match=message):
            export_saved_model(model, path)
    with pytest.raises(ValueError, match="`packed` must be"):
        export_saved_model(model, tmp_path / "m", packed="yes")
    for other in (3, keras.Sequential([k.Dense(3)])):
        with pytest.raises(ValueError, match="Argument `model`"):
            export_saved_model(other, tmp_path / "m")
    for data in (np.ones((2, 63)), [np.ones((2, 64))] * 2, "x", np.ones((0, 64))):
        with pytest.raises(ValueError, match="`check_data` must be"):
            export_saved_model(model, tmp_path / "m", check_data=data)
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "folder" / "notes").read_text() == "mine"


def full_disk(*args, **kwargs):
    raise OSError(28, "No space left on device")


def full_disk_of_tensorflow(*args, **kwargs):
    raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")


def half_written(obj, folder, **kwargs):
    (pathlib.Path(folder) / "variables").mkdir()
    (pathlib.Path(folder) / "variables" / "part").write_text("half")
    full_disk()


def second_rename(monkeypatch):
    rename = pathlib.Path.rename

    def fails(self, target):
        return full_disk() if self.name == "new" else rename(self, target)

    monkeypatch.setattr(pathlib.Path, "rename", fails)


def wrong_weights(monkeypatch):
    scatter = tf.scatter_nd
    monkeypatch.setattr(tf, "scatter_nd", lambda *args: 2 * scatter(*args))


FAILURES = {
    "disk": (OSError, lambda patch: patch.setattr(tf.saved_model, "save", half_written)),
    "tensorflow": (
        OSError,
        lambda patch: patch.setattr(tf.saved_model, "save", full_disk_of_tensorflow),
    ),
    "load": (OSError, lambda patch: patch.setattr(tf.saved_model, "load", full_disk)),
    "interrupt": (
        KeyboardInterrupt,
        lambda patch: patch.setattr(saved_model, "_check", interrupted),
    ),
    "rename": (OSError, second_rename),
    "outputs": (ValueError, wrong_weights),
}


def interrupted(*args):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("name", "older"),
    [*((name, True) for name in FAILURES), ("disk", False), ("outputs", False)],
)
def test_a_failure_leaves_nothing_behind_and_the_older_one_as_it_was(
    name, older, tmp_path, monkeypatch
):
    path = tmp_path / "m"
    if older:
        (path / "variables").mkdir(parents=True)
        for file in (path / "saved_model.pb", path / "variables" / "variables.index"):
            file.write_text("older")
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    error, break_it = FAILURES[name]
    break_it(monkeypatch)
    with pytest.raises(error):
        export_saved_model(sparse(seed=2), path)
    assert os.listdir(tmp_path) == (["m"] if older else [])
    assert before == {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_what_the_model_cannot_take_asks_for_check_data(tmp_path):
    lookup = k.IntegerLookup(vocabulary=[50, 60], num_oov_indices=0, output_mode="multi_hot")
    model = sparse(keras.Sequential([keras.Input((4,), dtype="int64"), lookup, k.Dense(64)]))
    with pytest.raises(ValueError, match="pass `check_data`"):
        export_saved_model(model, tmp_path / "m")
    assert not os.listdir(tmp_path)
    export_saved_model(model, tmp_path / "m", check_data=np.full((2, 4), 60))


def test_not_every_infinity_is_the_expected_one():
    ours, theirs = np.array([np.inf, 1.0]), np.array([np.inf, 2.0])
    assert _source.check_outputs([ours], [ours], 1e-5) == 0
    with pytest.raises(ValueError, match="does not reproduce"):
        _source.check_outputs([ours], [theirs], 1e-5)


def test_an_older_one_is_replaced_whole(tmp_path):
    path, x = tmp_path / "m", np.ones((2, 64), "float32")
    path.mkdir()
    export_saved_model(sparse(seed=1), path)
    (path / "assets").mkdir(exist_ok=True)
    (path / "assets" / "old").write_text("old")
    model = sparse(seed=2)
    info = export_saved_model(model, str(path))
    assert info.path == str(path)
    assert os.listdir(tmp_path) == ["m"]
    assert not (path / "assets" / "old").exists()
    loaded = tf.saved_model.load(info.path)
    np.testing.assert_allclose(loaded.serve(x), model(x), atol=1e-6)


def test_a_layer_that_reads_its_weight_in_a_way_of_its_own_stays_dense(pack_all, tmp_path):
    class Own(k.Dense):
        def call(self, inputs):
            return tf.matmul(inputs, self.kernel._value)

    model = keras.Sequential([keras.Input((64,)), Own(96, use_bias=False), k.Dense(64)])
    for weight in model.weights:
        weight.assign(weight * (np.random.default_rng(0).random(weight.shape) < 0.1))
    assert export_saved_model(model, tmp_path / "m").max_abs_error < 1e-6
    loaded = tf.saved_model.load(str(tmp_path / "m"))
    assert [tuple(v.shape) for v in loaded.variables] == [(64, 96)]
    assert [tuple(v.shape) for v in loaded.packed_dense] == [(96, 64), (64,)]
