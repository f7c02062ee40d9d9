"""Compact models: the same outputs, of ordinary layers that hold what is there and no more."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tf_rigl
from tf_rigl.compaction import columns, compacting, examining
from tf_rigl.patterns import Block

L = keras.layers
# The same examples everywhere, and no files left behind.
some = settings(max_examples=25, deadline=None, derandomize=True, database=None)


@pytest.fixture(autouse=True)
def fresh_start():
    """Replaces that of conftest.py: names of layers are given here."""
    keras.utils.set_random_seed(0)


def pruned(layer, rows, cols, density, seed=0, empty=False):
    """Sets whole blocks of a layer's kernel to zero, in columns of unequal number."""
    rng = np.random.default_rng(seed)
    kernel = keras.ops.convert_to_numpy(layer.kernel)
    inputs, outputs = kernel.shape[-2:]
    kept = rng.random((-(-inputs // rows), -(-outputs // cols))) < density
    kept[0, 0] = True
    if empty:
        kept[:, -1] = False
    mask = kept.repeat(rows, 0)[:inputs].repeat(cols, 1)[:, :outputs]
    layer.kernel.assign(rng.normal(size=kernel.shape) * mask)
    if layer.bias is not None:
        layer.bias.assign(rng.normal(size=layer.bias.shape))


def graph_of(layer, shape):
    inputs = keras.Input(shape)
    return keras.Model(inputs, layer(inputs), name="graph")


def data_for(model, size=3):
    shape = [n or 7 for n in model.inputs[0].shape[1:]]
    return np.random.default_rng(1).normal(size=(size, *shape)).astype("float32")


def check_same(model, small, tolerance=1e-5):
    x = data_for(model)
    expected, received = (keras.ops.convert_to_numpy(each(x)) for each in (model, small))
    scale = max(1.0, float(np.abs(expected).max()))
    np.testing.assert_allclose(received / scale, expected / scale, atol=tolerance)
    ours = [each for each in small._flatten_layers() if type(each).__module__.startswith("tf_rigl")]
    assert not ours


def check_loads_without_us(small, x, expected, folder):
    """Saves a model, and runs it in a process that has no tf_rigl."""
    small.save(folder / "small.keras")
    np.save(folder / "x.npy", x)
    code = (
        "import sys\nsys.modules['tf_rigl'] = None\nimport keras, numpy as np\n"
        f"model = keras.models.load_model({str(folder / 'small.keras')!r})\n"
        f"np.save({str(folder / 'y.npy')!r}, model(np.load({str(folder / 'x.npy')!r})))"
    )
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(folder / "y.npy"), expected, atol=1e-5)


MATRICES = {
    "dense": lambda: (L.Dense(96, activation="relu", name="a"), (48,)),
    "softmax": lambda: (L.Dense(64, activation="softmax", name="a"), (48,)),
    "sequence": lambda: (L.Dense(64, activation="gelu", name="a"), (None, 48)),
    "no bias": lambda: (L.Dense(64, use_bias=False, name="a"), (5, 48)),
    "einsum": lambda: (L.EinsumDense("abc,cd->abd", (None, 64), bias_axes="d", name="a"), (5, 48)),
    "pointwise": lambda: (L.Conv2D(64, 1, name="a"), (4, 5, 48)),
}
CONVOLUTIONS = {
    "1d": lambda: (L.Conv1D(32, 3, padding="causal", dilation_rate=2, name="a"), (9, 16)),
    "2d": lambda: (L.Conv2D(32, 3, padding="same", activation="relu", name="a"), (6, 7, 16)),
    "strides": lambda: (L.Conv2D(32, (3, 2), strides=2, name="a"), (8, 7, 16)),
    "dilation": lambda: (L.Conv2D(32, 2, dilation_rate=(2, 1), name="a"), (8, 7, 16)),
    "free": lambda: (L.Conv2D(32, 3, padding="same", use_bias=False, name="a"), (None, None, 16)),
    "strided 1x1": lambda: (L.Conv2D(64, 1, strides=2, name="a"), (6, 7, 48)),
    "free strided 1x1": lambda: (
        L.Conv2D(64, 1, strides=2, padding="same", name="a"),
        (None, 6, 48),
    ),
    "channels first": lambda: (
        L.Conv2D(64, 1, strides=2, data_format="channels_first", name="a"),
        (48, 6, 7),
    ),
    "1d strided": lambda: (L.Conv1D(64, 1, strides=3, padding="same", name="a"), (8, 48)),
    "3d": lambda: (L.Conv3D(32, 2, padding="same", name="a"), (3, 4, 3, 16)),
}
ALL = {**MATRICES, **CONVOLUTIONS}


@some
@given(st.data())
def test_outputs_are_those_of_the_dense_kernel(data):
    """Over layers, blocks, densities and forms; columns have unequal numbers of inputs."""
    keras.backend.clear_session(free_memory=False)
    layer, shape = ALL[data.draw(st.sampled_from(sorted(ALL)))]()
    model = graph_of(layer, shape)
    rows, cols = data.draw(st.sampled_from([(1, 32), (4, 16), (16, 16), (8, 32), (1, 64), (3, 24)]))
    density = data.draw(st.sampled_from([0.05, 0.2, 0.4]))
    pruned(layer, rows, cols, density, data.draw(st.integers(0, 9)), data.draw(st.booleans()))
    entries = examining.examine(model)
    forms = examining.choosing.possible(examining._part(layer, {}))
    for form in forms:
        if entries[0].reason.startswith("no zeros"):
            continue
        small = tf_rigl.compact(model, form=form)
        check_same(model, small)
        assert small.get_layer("a").count_params() <= 1.1 * layer.count_params() or form != "split"
    assert entries[0].form in ("dense", *forms)


def network(dtype=None):
    """Convolutions with normalisation and a residual, a nested model and a shared layer."""
    inputs = keras.Input((8, 8, 64), name="pictures")
    shared = L.Conv2D(64, 3, padding="same", use_bias=False, name="shared", dtype=dtype)
    first = L.Conv2D(64, 1, name="first", dtype=dtype)(inputs)
    x = L.ReLU()(L.BatchNormalization()(shared(first)))
    x = L.Add()([L.BatchNormalization()(shared(x)), first])
    inner_inputs = keras.Input((64,))
    hidden = L.Dense(128, "relu", kernel_regularizer="l2", name="hidden")(inner_inputs)
    inner = keras.Sequential([keras.Input((128,)), L.Dense(64, name="deep")], name="sequence")
    inner = keras.Model(inner_inputs, inner(hidden), name="inner")
    outputs = L.Dense(5, name="head")(inner(L.GlobalAveragePooling2D()(x)))
    return keras.Model(inputs, outputs, name="net")


@pytest.mark.parametrize("compute", ["masked", "sparse"])
@pytest.mark.parametrize("pattern", ["channels_4x32", "channels_16x32"])
def test_sparse_models_become_compact(pattern, compute):
    options = {"distribution": "uniform_all", "exclude": ["head"], "seed": 0}
    sparse = tf_rigl.sparsify(network(), sparsity=0.75, pattern=pattern, compute=compute, **options)
    small = tf_rigl.compact(sparse)
    check_same(sparse, small)
    assert type(small).__module__.startswith("keras")
    assert small.name == "net"
    plain = tf_rigl.compact(tf_rigl.strip(sparse))
    check_same(sparse, plain)
    if compute == "masked":
        assert small.count_params() == plain.count_params()
        assert small.get_layer("shared").count_params() == 0.25 * 9 * 64 * 64


def test_a_table_says_what_holds_a_layer_back(capsys):
    model = network()
    sparse = tf_rigl.sparsify(
        model, sparsity=0.75, pattern="channels_1x32", exclude=["head", "inner/sequence"], seed=0
    )
    tf_rigl.compact(sparse, verbose=True)
    text = capsys.readouterr().out
    assert "its blocks have 32 outputs; 64 or more gain" in text  # The 1x1 convolution.
    assert "small: 320 entries" in text
    assert "no zeros that form blocks" in text
    assert "inner/hidden" in text


def test_without_blocks_the_error_says_why_for_each_layer():
    model = network()
    with pytest.raises(ValueError, match=r"no layer of which .*channels_1x32") as error:
        tf_rigl.compact(tf_rigl.sparsify(model, sparsity=0.8, seed=0))
    assert "shared" in str(error.value)
    with pytest.raises(ValueError, match="`form` must be"):
        tf_rigl.compact(model, form="matmull")
    with pytest.raises(ValueError, match=r"`model` must be a `keras.Model`"):
        tf_rigl.compact("model.keras")

    @keras.saving.register_keras_serializable("test_compact")
    class Own(keras.Model):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.dense = L.Dense(64)

        def call(self, x):
            return self.dense(x)

    own = Own()
    own(np.zeros((1, 64)))
    with pytest.raises(ValueError, match="a `call` of its own"):
        tf_rigl.compact(own)


def test_weights_that_are_not_zero_under_their_masks_are_refused():
    sparse = tf_rigl.sparsify(network(), sparsity=0.75, pattern="channels_16x32", seed=0)
    (item,) = [each for each in sparse.masked_weights if each.path == "shared/kernel"]
    item.weight.assign(np.ones(item.shape))
    with pytest.raises(ValueError, match="not zero"):
        tf_rigl.compact(sparse)


def test_layers_that_cannot_be_replaced_stay_as_they_are():
    inputs = keras.Input((6,), dtype="int32")
    x = L.Embedding(20, 64, mask_zero=True, name="table")(inputs)
    masked = L.Dense(64, name="masked")(x)  # The mask of padding passes through it.
    y = L.LSTM(32, name="lstm")(masked)
    free = L.Dense(64, name="free")(y)
    attention = L.MultiHeadAttention(2, 16, name="attention")(masked, masked)
    outputs = L.Dense(64, name="last")(L.Concatenate()([free, attention[:, 0]]))
    model = keras.Model(inputs, outputs)
    for name in ("masked", "free", "last"):
        pruned(model.get_layer(name), 8, 32, 0.3)
    small = tf_rigl.compact(model)
    x = np.random.default_rng(0).integers(0, 20, (4, 6))
    np.testing.assert_allclose(small(x), model(x), atol=1e-5)
    entries = {entry.path: entry for entry in examining.examine(model)}
    assert "mask" in entries["masked"].reason
    assert entries["attention/query"].reason == "a mask of timesteps passes through it"
    assert entries["free"].reason == "small: 2048 entries"
    assert entries["last"].form in ("matmul", "split")


@pytest.mark.parametrize(
    ("layer", "shape", "reason"),
    [
        (L.EinsumDense("abc,cd->abd", (5, 96), bias_axes="bd"), (5, 48), "bias has several axes"),
        (L.EinsumDense("abc,cde->abde", (5, 4, 24)), (5, 48), "several input or output axes"),
        (L.EinsumDense("abc,cd->adb", (96, 5)), (5, 48), "does not project the last axes"),
        (L.Conv2D(64, 3, groups=2), (6, 6, 32), "2 groups"),
        (L.Dense(96, kernel_constraint="non_neg"), (48,), "a kernel constraint"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_ways_to_use_a_kernel_are_left_alone(layer, shape, reason):
    (entry,) = examining.examine(graph_of(layer, shape))
    assert entry.form == "dense"
    assert reason in entry.reason


def test_mixed_precision_and_frozen_layers_stay_so():
    inputs = keras.Input((48,))
    layer = L.Dense(128, activation="relu", name="a", dtype="mixed_float16")
    model = keras.Model(inputs, layer(inputs))
    pruned(layer, 8, 32, 0.3)
    layer.trainable = False
    small = tf_rigl.compact(model)
    assert small.output.dtype == "float16"
    assert not small.trainable_weights
    check_same(model, small, tolerance=2e-3)


@pytest.mark.parametrize("kind", ["convolution", "dense"])
def test_files_load_without_tf_rigl_and_become_litert(kind, tmp_path):
    layer, shape = ALL["2d" if kind == "convolution" else "dense"]()
    model = graph_of(layer, shape)
    pruned(layer, 4, 16, 0.3)
    small, x = tf_rigl.compact(model), data_for(model, 1)
    check_loads_without_us(small, x, model(x), tmp_path)
    tf_rigl.export_tflite(small, tmp_path / "small.tflite", check_data=x)


# Columns.


@some
@given(st.data())
def test_columns_hold_the_kernel_and_nothing_else(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    inputs, outputs = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 40))
    taps = data.draw(st.sampled_from([(), (2,), (2, 3)]))
    pattern = Block(data.draw(st.integers(1, 4)), data.draw(st.integers(1, 8)), taps="all")
    shape = (*taps, inputs, outputs)
    units = rng.random(pattern.units(shape)) < 0.3
    kernel = rng.normal(size=shape) * pattern.expand(units, shape).numpy()
    found = columns.of_zeros(kernel)
    back, first = np.zeros(shape), 0
    for column in found.columns:
        assert (np.diff(column.inputs) > 0).all()
        back[..., column.inputs, first : first + column.outputs] = column.kernel
        first += column.outputs
    np.testing.assert_array_equal(back, kernel)
    assert first == outputs
    used = np.any(kernel != 0, axis=tuple(range(len(taps))))
    assert np.count_nonzero(used) <= found.density * used.size + 1e-9


def test_the_table_reads():
    text = compacting.table(examining.examine(network()))
    assert text.splitlines()[0].split() == ["layer", "form", "blocks", "density", "why"]


def test_what_the_pattern_gives_each_layer_becomes_compact():
    inputs = keras.Input((8, 8, 32))
    x = L.Conv2D(64, 3, name="taps")(inputs)
    x = L.Conv2D(128, 1, name="pointwise")(x)
    x = L.DepthwiseConv2D(3, name="depthwise")(x)
    x = L.Conv2D(128, 3, groups=2, name="groups")(x)
    x = L.Dense(96, name="wide")(L.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, L.Dense(10, name="head")(x))
    sparse = tf_rigl.sparsify(
        model, sparsity=0.8, pattern="compact", distribution="uniform_all", seed=0
    )
    patterns = {item.path: str(item.pattern) for item in sparse.masked_weights}
    assert patterns == {
        "taps/kernel": "channels_1x32",
        "pointwise/kernel": "channels_8x64",
        "groups/kernel": "unstructured",
        "wide/kernel": "block_1x32",
        "head/kernel": "unstructured",
    }
    forms = {entry.path: entry.form for entry in examining.examine(tf_rigl.strip(sparse))}
    assert forms == {
        "taps": "split", "pointwise": "split", "groups": "dense", "depthwise": "dense",
        "wide": "matmul", "head": "dense",
    }  # fmt: skip


def test_blocks_that_hold_some_zeros_are_found():
    """Training leaves zeros in blocks: new ones begin at zero, and units can be dead."""
    rng = np.random.default_rng(0)
    kept = rng.random((256, 8)) < 0.1
    kernel = np.where(kept.repeat(32, axis=1), rng.normal(size=(256, 256)), 0)
    kernel[:, rng.random(256) < 0.05] = 0
    assert columns.of_zeros(kernel).width == 32


def test_the_mask_tells_of_blocks_where_there_is_one():
    """Whatever has become zero within them: here nine tenths of the entries."""
    model = keras.Sequential([keras.Input((128,)), L.Dense(128, name="wide")])
    sparse = tf_rigl.sparsify(model, sparsity=0.75, pattern="channels_1x32", seed=0)
    weight = sparse.masked_weights[0].weight
    kept = np.random.default_rng(0).random((128, 128)) < 0.1
    weight.assign(np.where(kept, weight.numpy(), 0))
    (entry,) = compacting.forms(sparse)
    assert (entry.part.columns.width, entry.part.columns.stored) == (32, 32 * 128)
    x = np.random.default_rng(1).normal(size=(4, 128)).astype("float32")
    np.testing.assert_allclose(tf_rigl.compact(sparse)(x), sparse(x), atol=1e-5)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("use_bias", [True, False])
def test_columns_as_wide_as_the_image_keep_their_bias(use_bias, size):
    """Keras 3.15 adds it along the last axis of "channels_first" outputs of that width."""
    options = {"padding": "same", "data_format": "channels_first", "use_bias": use_bias}
    convolution = L.Conv2D(128, 3, bias_initializer="normal", **options)
    model = keras.Sequential([keras.Input((64, size, size)), convolution])
    sparse = tf_rigl.sparsify(model, sparsity=0.9, pattern="channels_1x32", seed=0)
    (entry,) = compacting.forms(sparse)
    assert (entry.form, "last axis" in entry.reason) == (
        ("dense", True) if use_bias else ("split", False)
    )


def test_a_stripped_model_becomes_as_small():
    """Its zeros tell of the blocks, though units are dead and what has grown is zero still."""
    model = keras.Sequential([keras.Input((256,)), L.Dense(256, name="wide")])
    sparse = tf_rigl.sparsify(
        model, sparsity=0.9, pattern="channels_1x32", distribution="uniform_all", seed=0
    )
    rng = np.random.default_rng(0)
    weight = sparse.masked_weights[0].weight
    weight.assign(weight * (rng.random((256, 256)) < 0.8) * (rng.random(256) < 0.8))
    small, again = tf_rigl.compact(sparse), tf_rigl.compact(tf_rigl.strip(sparse))
    assert again.count_params() == pytest.approx(small.count_params(), rel=0.02)
    check_same(sparse, again)
