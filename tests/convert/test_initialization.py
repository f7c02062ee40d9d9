"""`sparsify(initialization="sparse")`: random weights fit the entries that are active."""

import itertools
import math
import warnings

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers

import tf_rigl
from tests.helpers import (
    CLASSES,
    FEATURES,
    LAYER_CASES,
    METHODS,
    MODEL_KINDS,
    WithoutConfig,
    compiled,
    layer_model,
    mlp,
    model_data,
    random_data,
    sparsify,
    uniform,
)
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.experiments import runs
from tf_rigl.experiments.settings import Settings
from tf_rigl.experiments.specs import parse

NOTHING = "`initialization='sparse'` has changed nothing"


# The reference: which outputs and inputs an entry connects, by the kind of its layer.


def ends(layer, index):
    """The output and the input of the entry at an index of a kernel; taps are neither."""
    if isinstance(layer, layers.EinsumDense):
        inputs, _, rest = layer.equation.partition(",")
        kernel, _, output = rest.partition("->")
        named = dict(zip(kernel, index, strict=True))
        return tuple(
            tuple(sorted((label, place) for label, place in named.items() if label in side))
            for side in (output, inputs)
        )
    if "Transpose" in type(layer).__name__:
        return index[-2], index[-1]
    return index[-1], index[-2]


def count(layer, mask):
    """The entries of each output and input: all of them, and those that are active."""
    dense, active = ({}, {}), ({}, {})
    for index in itertools.product(*map(range, mask.shape)):
        for side, end in enumerate(ends(layer, index)):
            dense[side][end] = dense[side].get(end, 0) + 1
            active[side][end] = active[side].get(end, 0) + int(mask[index])
    return dense, active


def reference(layer, mode, weight, mask):
    """The scaled weight, entry by entry."""
    dense, active = count(layer, mask)
    result = np.zeros(weight.shape)
    for index in zip(*np.nonzero(mask), strict=True):
        out, into = ends(layer, tuple(map(int, index)))
        (f_in, f_out), (f_in_j, f_out_i) = (
            (fans[0][out], fans[1][into]) for fans in (dense, active)
        )
        factor = {
            "fan_in": math.sqrt(f_in / max(1, f_in_j)),
            "fan_out": math.sqrt(f_out / max(1, f_out_i)),
            "fan_avg": math.sqrt((f_in + f_out) / (f_in_j + f_out_i)),
        }[mode]
        result[index] = weight[index] * factor
    return result


NAMES = ("kernel", "recurrent", "pointwise", "embeddings")


def with_initializers(config, initializer):
    """A configuration in which all maskable weights have an initializer."""
    if isinstance(config, (list, tuple)):
        return type(config)(with_initializers(each, initializer) for each in config)
    if not isinstance(config, dict):
        return config
    given = keras.saving.serialize_keras_object(initializer)
    own = {f"{name}_initializer": given for name in NAMES}
    return {
        key: own.get(key) or with_initializers(value, initializer) for key, value in config.items()
    }


def check(model, mode, **kwargs):
    """Compares a model that is made sparse with and without the reference."""
    kept = sparsify(model, "static", **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "Weights with")  # Of depthwise kernels.
        scaled = sparsify(model, "static", initialization="sparse", **kwargs)
    for before, after in zip(kept.masked_weights, scaled.masked_weights, strict=True):
        mask = after.mask.numpy()
        np.testing.assert_array_equal(mask, before.mask.numpy())
        weight = before.dense().numpy()
        expected = reference(before.layer, mode, weight, mask)
        np.testing.assert_allclose(after.dense().numpy(), expected, rtol=1e-5)
        assert not np.array_equal(expected, weight)
    return scaled


KINDS = sorted(set(LAYER_CASES) - {"custom", "get_prunable_weights"})


@pytest.mark.parametrize("mode", ["fan_in", "fan_out", "fan_avg"])
@pytest.mark.parametrize("case", KINDS)
def test_weights_of_every_kind_are_scaled_as_the_reference_says(case, mode):
    initializer = keras.initializers.VarianceScaling(1.5, mode, "uniform", seed=1)
    config = with_initializers(layer_model(case)[0].get_config(), initializer)
    check(keras.Model.from_config(config), mode)


NAMED = {
    **dict.fromkeys(("he_normal", "he_uniform", "lecun_normal", "lecun_uniform"), "fan_in"),
    **dict.fromkeys(("glorot_normal", "glorot_uniform"), "fan_avg"),
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("pattern", ["unstructured", "block_4x2", "2:4"])
def test_initializers_of_every_name_and_patterns(name, pattern):
    dense = [layers.Dense(8, kernel_initializer=name), layers.Dense(6, kernel_initializer=name)]
    check(keras.Sequential([keras.Input((16,)), *dense]), NAMED[name], pattern=pattern)


EQUATIONS = [
    ("abc,cd->abd", (8, 5), (None, 7)),
    ("abc,cde->abde", (4, 6), (None, 2, 3)),
    ("abcd,cde->abe", (4, 3, 2), (None, 5)),
    ("abc,bcd->abd", (4, 6), (4, 5)),
]


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(EQUATIONS),
    st.sampled_from(["fan_in", "fan_out", "fan_avg"]),
    st.sampled_from([0.1, 0.5, 0.8]),
    st.integers(0, 99),
)
def test_equations_decide_what_an_einsum_sums(case, mode, sparsity, seed):
    equation, shape, output = case
    initializer = keras.initializers.VarianceScaling(1.0, mode, "uniform", seed=seed)
    layer = layers.EinsumDense(equation, output, kernel_initializer=initializer)
    check(keras.Sequential([keras.Input(shape), layer]), mode, sparsity=sparsity, seed=seed)


def test_groups_of_a_convolution_have_their_own_inputs():
    """The kernel has an axis for the channels of one group."""
    initializer = keras.initializers.VarianceScaling(1.0, "fan_in", "uniform", seed=0)
    layer = layers.Conv2D(6, 3, groups=2, kernel_initializer=initializer)
    check(keras.Sequential([keras.Input((5, 5, 4)), layer]), "fan_in", sparsity=0.7)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_other_precisions(dtype):
    layer = layers.Dense(16, kernel_initializer="he_normal", dtype=dtype)
    model = keras.Sequential([keras.Input((64,)), layer])
    kept = sparsify(model, "static", 0.9).masked_weights[0]
    scaled = sparsify(model, "static", 0.9, initialization="sparse").masked_weights[0]
    weight = kept.dense().numpy().astype(float)
    expected = reference(kept.layer, "fan_in", weight, kept.mask.numpy())
    assert str(scaled.weight.dtype) == dtype
    np.testing.assert_allclose(scaled.dense().numpy().astype(float), expected, rtol=1e-2)


# What it is for.


def pre_activations(model, x):
    """The mean square of the inputs of each ReLU of a deep perceptron."""
    found = []
    for layer in model.layers:
        if isinstance(layer, layers.Dense):
            x = layer(x)
            found.append(float(np.mean(np.square(x))))
            x = keras.ops.relu(x)
    return np.array(found)


def test_outputs_of_a_deep_sparse_network_begin_as_large_as_those_of_the_dense_one():
    keras.utils.set_random_seed(0)
    depth, width = 6, 400
    dense = [layers.Dense(width, "relu", kernel_initializer="he_normal") for _ in range(depth)]
    model = keras.Sequential([keras.Input((width,)), *dense])
    x = np.random.default_rng(0).normal(size=(256, width)).astype("float32")
    before = pre_activations(model, x)
    kept, scaled = (
        pre_activations(sparsify(model, "static", 0.95, initialization=name), x) / before
        for name in ("model", "sparse")
    )
    assert ((scaled > 0.5) & (scaled < 2)).all()
    np.testing.assert_allclose(kept, 0.05 ** np.arange(1, depth + 1), rtol=0.9)
    assert kept[-1] < 1e-6


# What stays.


@pytest.mark.parametrize("initializer", ["orthogonal", "random_normal", "random_uniform", "ones"])
def test_initializers_that_count_nothing_keep_their_weights(initializer):
    layer = layers.Dense(8, kernel_initializer=initializer, name="l")
    model = keras.Sequential([keras.Input((16,)), layer])
    with pytest.warns(UserWarning, match=rf"{NOTHING}.*'l/kernel' \(its initializer, ") as caught:
        scaled = sparsify(model, "static", initialization="sparse")
    told = [each.filename for each in caught if each.category is UserWarning]
    assert told == [sparsify.__code__.co_filename]
    kept = sparsify(model, "static")
    np.testing.assert_array_equal(scaled.get_weights()[0], kept.get_weights()[0])


def test_there_is_no_warning_where_some_weights_are_scaled():
    orthogonal = layers.Dense(8, kernel_initializer="orthogonal", name="one")
    model = keras.Sequential([keras.Input((16,)), orthogonal, layers.Dense(8, name="two")])
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        scaled = sparsify(model, "static", initialization="sparse")
    kept = sparsify(model, "static")
    pairs = zip(scaled.masked_weights, kept.masked_weights, strict=True)
    assert [np.array_equal(a.dense(), b.dense()) for a, b in pairs] == [True, False]


@pytest.mark.filterwarnings("ignore:The model is trained already")
def test_trained_weights_are_kept_and_new_ones_beside_them_are_scaled():
    model = mlp()
    x, y = random_data(batches=16)
    compiled(model, "adam", run_eagerly=True).fit(x, y, epochs=2, verbose=0)
    with pytest.warns(UserWarning, match=f"{NOTHING}.*'hidden/kernel' .it is trained already"):
        scaled = sparsify(model, "static", initialization="sparse")
    kept = sparsify(model, "static")
    for one, other in zip(scaled.get_weights(), kept.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)
    stack = keras.Sequential([*model.layers[:2], layers.Dense(40, name="new")])
    scaled = sparsify(stack, "static", initialization="sparse")
    kept = sparsify(stack, "static")
    np.testing.assert_array_equal(scaled.masked_weights[0].dense(), kept.masked_weights[0].dense())
    assert not np.array_equal(scaled.masked_weights[1].dense(), kept.masked_weights[1].dense())


@pytest.mark.parametrize("name", ["snip", "magnitude"])
def test_methods_that_begin_dense_change_nothing(name):
    model = mlp()
    with pytest.warns(UserWarning, match=f"{NOTHING}.*all of its entries are active"):
        scaled = sparsify(model, METHODS[name](), initialization="sparse")
    for one, other in zip(scaled.masked_weights, model.layers[1:], strict=True):
        np.testing.assert_array_equal(one.dense(), other.kernel)


@pytest.mark.parametrize("name", ["static", "set", "rigl", "snfs"])
def test_methods_that_begin_sparse_train_on(name):
    model = compiled(sparsify(mlp(), METHODS[name](), initialization="sparse"))
    model.fit(*random_data(), batch_size=8, verbose=0)
    assert model.step == 8


def test_by_default_weights_are_kept():
    model = mlp()
    one, other = sparsify(model, "static"), sparsify(model, "static", initialization="model")
    for item, layer in zip(one.masked_weights, model.layers[1:], strict=True):
        np.testing.assert_array_equal(item.dense(), layer.kernel * item.mask.numpy())
    np.testing.assert_array_equal(one.get_weights()[0], other.get_weights()[0])


# Blocks that are stored.


def blocks(kind):
    """A model in which all of, or some, layers can store blocks; and the pattern."""
    initializer = keras.initializers.VarianceScaling(1.0, "fan_avg", "uniform", seed=0)
    given = {"kernel_initializer": initializer}
    k = layers
    if kind == "dense":
        return keras.Sequential([keras.Input((18,)), k.Dense(15, **given)]), "block_4x4"
    if kind == "convolution":
        return keras.Sequential([keras.Input((6, 6, 8)), k.Conv2D(8, 3, **given)]), "channels_1x4"
    if kind == "some":
        inner = [k.Dense(16, **given), k.Dense(3, **given)]
        return keras.Sequential([keras.Input((16,)), *inner]), "block_4x4"
    inputs = keras.Input((4, 16))
    attention = k.MultiHeadAttention(2, 8, **given)
    return keras.Model(inputs, attention(inputs, inputs)), "block_4x4"


@pytest.mark.parametrize("kind", ["dense", "convolution", "some", "attention"])
def test_stored_blocks_are_scaled(kind):
    model, pattern = blocks(kind)
    scaled = check(model, "fan_avg", pattern=pattern, compute="sparse")
    stored = [isinstance(item, BlockSparseWeight) for item in scaled.masked_weights]
    assert any(stored)
    assert all(stored) == (kind != "some")


def test_a_warning_where_no_stored_block_is_scaled():
    layer = layers.Dense(16, kernel_initializer="orthogonal", name="l")
    model = keras.Sequential([keras.Input((16,)), layer])
    with pytest.warns(UserWarning, match=f"{NOTHING}.*'l/kernel'"):
        sparsify(model, "static", pattern="block_4x4", compute="sparse", initialization="sparse")


# Models that get their masks later, and files.


@pytest.mark.parametrize("kind", MODEL_KINDS)
def test_models_of_every_kind(kind):
    x, _ = model_data(kind, batches=1)
    made = []
    for name in ("model", "sparse"):
        keras.utils.set_random_seed(3)
        model = sparsify(MODEL_KINDS[kind][0](), "static", initialization=name)
        model(x)
        made.append(model)
    kept, scaled = made
    assert [item.path for item in scaled.masked_weights] == MODEL_KINDS[kind][1]
    for before, after in zip(kept.masked_weights, scaled.masked_weights, strict=True):
        expected = reference(before.layer, "fan_avg", before.dense().numpy(), before.mask.numpy())
        np.testing.assert_allclose(after.dense().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("when", ["fit", "file"])
def test_unbuilt_models_are_scaled_when_the_masks_are_made(when, tmp_path):
    def build():
        kinds = [layers.Dense(8, "tanh", name="hidden"), layers.Dense(CLASSES, name="head")]
        return keras.Sequential(kinds)

    model = sparsify(build(), "static", initialization="sparse")
    if when == "file":
        model.save(tmp_path / "model.keras")
        model = keras.models.load_model(tmp_path / "model.keras")
    seen = []
    set_mask = type(sparsify(mlp(), "static").masked_weights[0]).set_mask

    def spy(item, mask):
        seen.append((item.path, item.dense().numpy(), np.asarray(mask), item.layer))
        set_mask(item, mask)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tf_rigl.weights.masked_weight.MaskedWeight.set_mask", spy)
        compiled(model).fit(*random_data(), batch_size=8, verbose=0)
    assert [path for path, *_ in seen] == ["hidden/kernel", "head/kernel"]
    for _, weight, mask, layer in seen:
        limit = math.sqrt(6 / sum(mask.shape))
        assert np.abs(weight[~mask]).max() <= limit
        factors = reference(layer, "fan_avg", np.ones(mask.shape), mask)
        unscaled = weight[mask] / factors[mask]
        assert np.abs(unscaled).max() <= limit * 1.0001
        assert np.abs(weight[mask]).max() > 0


def test_unbuilt_models_warn_when_the_masks_are_made():
    head = layers.Dense(4, kernel_initializer="orthogonal")
    model = sparsify(keras.Sequential([head]), "static", initialization="sparse")
    with pytest.warns(UserWarning, match=NOTHING):
        model(np.zeros((1, 8), "float32"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model(np.zeros((1, 8), "float32"))


@pytest.mark.filterwarnings("ignore:Keras cannot clone")
def test_models_that_are_changed_in_place():
    model = WithoutConfig(layers.Dense(8, name="hidden"))
    model(np.zeros((1, FEATURES), "float32"))
    before = model.hidden.kernel.numpy()
    sparse = sparsify(model, "static", initialization="sparse")
    item = sparse.masked_weights[0]
    expected = reference(item.layer, "fan_avg", before, item.mask.numpy())
    np.testing.assert_allclose(item.dense().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
@pytest.mark.parametrize("file", ["model.keras", "model.weights.h5"])
def test_files_hold_the_scaled_weights_and_nothing_is_scaled_twice(kind, file, tmp_path):
    make = MODEL_KINDS[kind][0]
    model = sparsify(make(), "static", initialization="sparse")
    if file.endswith(".keras"):
        model.save(tmp_path / file)
        loaded = keras.models.load_model(tmp_path / file)
    else:
        model.save_weights(tmp_path / file)
        loaded = sparsify(make(), "static", initialization="sparse")
        loaded.load_weights(tmp_path / file)
    for one, other in zip(model.get_weights(), loaded.get_weights(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_stripped_models_hold_the_scaled_weights():
    model = sparsify(mlp(), "static", initialization="sparse")
    x, _ = random_data(batches=1)
    np.testing.assert_array_equal(tf_rigl.strip(model)(x), model(x))


# Errors, and the command line.


@pytest.mark.parametrize("value", ["spare", "Sparse", None, 1, ["sparse"]])
def test_unknown_values_are_named(value):
    with pytest.raises(ValueError, match="`initialization` must be one of 'model', 'sparse'") as e:
        sparsify(mlp(), initialization=value)
    assert f"Received: initialization={value!r}" in str(e.value)
    if value in ("spare", "Sparse"):
        assert "Did you mean 'sparse'?" in str(e.value)


def test_it_is_keyword_only():
    given = ("static", 0.5, uniform, "unstructured", (), 0)
    with pytest.raises(TypeError, match="positional"):
        tf_rigl.sparsify(mlp(), *given, "sparse")


def test_methods_with_values_of_their_own_are_refused():
    with pytest.raises(ValueError, match=r"EdgePopup keeps values.*EdgePopup\(scale=True\)"):
        sparsify(mlp(), "edge_popup", initialization="sparse")
    with pytest.raises(ValueError, match=r"EdgePopup keeps values"):
        Settings(method="edge_popup", initialization="sparse")


def test_settings_have_it():
    assert Settings(initialization="sparse").name.endswith("-seed0-initializationsparse")
    assert "initialization" not in Settings().name
    with pytest.raises(ValueError, match="`initialization` must be one of 'model', 'sparse'"):
        Settings(initialization="dense")
    with pytest.raises(ValueError, match="must be 'model' for method 'dense'"):
        Settings(method="dense", initialization="sparse")
    with pytest.raises(ValueError, match="'dense' has no 'initialization'"):
        parse("dense(initialization=sparse)")
    made = parse("rigl(initialization=sparse)").settings(Settings())
    assert made == Settings(initialization="sparse")


def test_runs_pass_it_on():
    given = {"epochs": 1, "method": "static", "sparsity": 0.95}
    data = tf_rigl.data.load("digits", 64)
    kept, scaled = (
        runs.build(Settings(**given, initialization=name), data).masked_weights[0]
        for name in ("model", "sparse")
    )
    expected = reference(kept.layer, "fan_avg", kept.dense().numpy(), kept.mask.numpy())
    np.testing.assert_allclose(scaled.dense().numpy(), expected, rtol=1e-5)
