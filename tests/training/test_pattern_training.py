"""Trainings with patterns: every method, layers of many kinds, files, reports and runs."""

import itertools
import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from references import patterns_numpy as reference

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    LAYER_CASES,
    METHODS,
    check_equal_models,
    compiled,
    equal_masks,
    layer_model,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl import maskable, methods
from tf_rigl.experiments import cli
from tf_rigl.experiments.settings import Settings
from tf_rigl.patterns import NM, Block, LiteRT, Unstructured

EAGER = {"run_eagerly": True}
IMAGE, SEQUENCE = (4, 4, 4), (3, 6)

# Inputs and outputs of the kernels below, from what the layers compute: channels in, channels out.
AXES = {
    "conv/kernel": ((2,), (3,)),
    "up/kernel": ((3,), (2,)),
    "hidden/kernel": ((0,), (1,)),
    "head/kernel": ((0,), (1,)),
    "mha/query/kernel": ((0,), (1, 2)),
    "mha/key/kernel": ((0,), (1, 2)),
    "mha/value/kernel": ((0,), (1, 2)),
    "mha/attention_output/kernel": ((0, 1), (2,)),
    "einsum/kernel": ((1,), (0,)),
    "lstm/lstm_cell/kernel": ((0,), (1,)),
    "lstm/lstm_cell/recurrent_kernel": ((0,), (1,)),
}


def pictures():
    """Convolutions and dense layers; the sizes of no kernel are those of another axis."""
    return keras.Sequential(
        [
            keras.Input(IMAGE),
            keras.layers.Conv2D(8, 2, name="conv"),
            keras.layers.Conv2DTranspose(5, 2, activation="tanh", name="up"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(16, activation="tanh", name="hidden"),
            keras.layers.Dense(CLASSES, name="head"),
        ]
    )


def sequences():
    """Attention, an einsum and a recurrent layer."""
    inputs = keras.Input(SEQUENCE)
    x = keras.layers.MultiHeadAttention(2, 4, name="mha")(inputs, inputs)
    x = keras.layers.EinsumDense("abc,dc->abd", (None, 8), name="einsum")(x)
    x = keras.layers.LSTM(4, name="lstm")(x)
    return keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))


MODELS = {pictures: IMAGE, sequences: SEQUENCE}


def slots(model, weight):
    """Adam's moments of a weight."""
    optimizer = model.optimizer
    if not optimizer.built or model.method.trained_state:  # Scores have no mask.
        return []
    index = optimizer._get_variable_index(weight)
    return [s[index].numpy() for s in (optimizer._momentums, optimizer._velocities)]


def taps_too(pattern, axes):
    """The axes as the reference takes them, for blocks that may cover all taps."""
    return (*(axes or ()), "all") if pattern.taps == "all" else axes


def units_of(pattern, shape, axes):
    if isinstance(pattern, Block):
        return len(reference.members(shape, pattern.rows, pattern.cols, taps_too(pattern, axes)))
    return int(np.prod(shape))


def kept_in(pattern, mask, axes):
    """How many units of a mask are kept, by the reference."""
    if isinstance(pattern, Block):
        return reference.blocks_kept(mask, pattern.rows, pattern.cols, taps_too(pattern, axes))
    return np.count_nonzero(mask)


def holds(pattern, mask, axes):
    """Whether a mask is one of the pattern, by the reference."""
    if isinstance(pattern, Block):
        return reference.are_whole(mask, pattern.rows, pattern.cols, taps_too(pattern, axes))
    if isinstance(pattern, NM):
        return reference.holds_nm(mask, pattern.n, pattern.m, axes)
    return True


def check_masks(model, *, pruning=False):
    """Every mask is one of its pattern, along the axes of its layer; weights are zero under it.

    Returns:
        The units that each weight keeps, by path.
    """
    counts = {}
    for item in model.masked_weights:
        path, mask, axes = item.path, item.mask.numpy(), AXES[item.path]
        counts[path] = count = kept_in(item.pattern, mask, axes)
        weight = item.weight.numpy()
        assert np.isfinite(weight).all()
        assert (weight[~mask] == 0).all(), path
        units = units_of(item.pattern, mask.shape, axes)
        if not pruning:
            target = units - int(np.floor(item.target_sparsity * units + 1e-9))
            assert count == target, path
        room = units
        if pruning and isinstance(item.pattern, NM):
            room = reference.nm_capacity(mask.shape, item.pattern.n, item.pattern.m, axes)
        if count <= room and item.is_sparse:
            assert holds(item.pattern, mask, axes), path
    return counts


class CheckEveryStep(keras.callbacks.Callback):
    """Checks masks, weights and slots after every batch, and keeps the masks of each."""

    def __init__(self):
        super().__init__()
        self.masks = []

    def on_train_batch_end(self, batch, logs=None):
        method = self.model.method
        check_masks(self.model, pruning=method.begins_dense or not method.keeps_counts)
        self.masks.append(self.model.masks)
        for item in self.model.masked_weights:
            for slot in slots(self.model, item.weight):
                assert (slot[~item.mask.numpy()] == 0).all(), item.path
        if method.begins_dense and method.keeps_counts:
            for earlier, later in itertools.pairwise(self.masks[-2:]):
                assert not any((later[path] & ~earlier[path]).any() for path in later)


def fit(model, data, **kwargs):
    """Trains in order, checks every step, and returns the masks of each."""
    check = CheckEveryStep()
    model.fit(*data, batch_size=BATCH, shuffle=False, verbose=0, callbacks=[check], **kwargs)
    return check.masks


def check_end(model, masks):
    """What a method has to have reached after eight batches."""
    if not model.method.begins_dense:
        moved = not equal_masks(masks[0], masks[-1])
        assert moved == (type(model.method) is not tf_rigl.methods.Static)
        return
    counts = check_masks(model, pruning=True)
    asked = {item.path: item.target_active() for item in model.masked_weights}
    if model.method.scope == "global":
        assert sum(counts.values()) == sum(asked.values())
    else:
        assert counts == asked
    for item in model.masked_weights:
        assert holds(item.pattern, item.mask.numpy(), AXES[item.path]), item.path


def trained(make, method, pattern, sparsity=0.5, batches=8, **kwargs):
    model = sparsify(make(), method, sparsity, pattern=pattern)
    compiled(model, keras.optimizers.Adam(0.02), **{**EAGER, **kwargs})
    masks = fit(model, random_data(MODELS[make], batches=batches))
    return model, masks


# Every method with every pattern.


@pytest.mark.parametrize(
    ("name", "pattern", "sparsity"),
    [
        *((name, "block_4x1", 0.5) for name in METHODS if name != "srigl"),  # That has its own.
        *((name, "2:4", 0.5) for name in METHODS if name != "srigl"),
        *((name, "litert", 0.5) for name in ("rigl", "snfs", "snip")),
        *((name, "channels_1x2", 0.5) for name in ("rigl", "snfs", "magnitude", "snip")),
        *((name, Block(3, 2, "max"), 0.6) for name in ("set", "rigl-after", "magnitude-global")),
        *((name, NM(1, 3), 0.8) for name in ("rigl-batches", "snip-global", "magnitude")),
    ],
    ids=str,
)
def test_every_method_trains_with_every_pattern(name, pattern, sparsity):
    model, masks = trained(pictures, METHODS[name](), pattern, sparsity)
    check_end(model, masks)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("rigl", "block_4x1"),
        ("rigl", "2:4"),
        ("set", Block(2, 3, "mean")),
        ("snfs", NM(1, 2)),
        ("snip-global", "block_4x1"),
        ("magnitude", "2:4"),
        ("magnitude-global", "2:4"),
    ],
    ids=str,
)
def test_layers_whose_kernels_are_laid_out_in_other_ways(name, pattern):
    model, masks = trained(sequences, METHODS[name](), pattern)
    check_end(model, masks)
    assert set(model.masks) == {path for path in AXES if path[:3] in ("mha", "ein", "lst", "hea")}


@pytest.mark.parametrize(("name", "pattern"), [("rigl", "block_4x1"), ("magnitude-global", "2:4")])
def test_a_graph_trains_as_single_steps_do(name, pattern):
    one, _ = trained(pictures, METHODS[name](), pattern)
    keras.utils.set_random_seed(0)
    other, masks = trained(pictures, METHODS[name](), pattern, run_eagerly=False)
    check_equal_models(one, other, exact=False)
    check_end(other, masks)


def test_a_large_layer_is_updated_by_xla():
    """Those of 65,536 entries and more are."""
    model = keras.Sequential(
        [
            keras.Input((256,)),
            keras.layers.Dense(260, name="hidden"),
            keras.layers.Dense(CLASSES, name="head"),
        ]
    )
    for pattern in ("block_16x1", "2:4"):
        sparse = compiled(sparsify(model, pattern=pattern), "adam", **EAGER)
        before = sparse.masks
        fit(sparse, random_data((256,), batches=3))
        assert not equal_masks(sparse.masks, before)


# Pruning to n of m.


def test_pruning_ends_at_exactly_two_of_four_everywhere():
    model, masks = trained(sequences, METHODS["magnitude"](), "2:4")
    kept = {path: [mask[path].sum() for mask in masks] for path in masks[0]}
    assert all(len(set(counts)) > 2 for counts in kept.values()), "gradually"
    divided = 0
    for path, mask in model.masks.items():
        groups = reference.kept_in_groups(mask, 4, AXES[path])
        assert all(count <= 2 for count, _ in groups)
        if all(size == 4 for _, size in groups):
            assert all(count == 2 for count, _ in groups)
            divided += 1
    assert divided == 4  # The others have six inputs.


@pytest.mark.parametrize("name", ["magnitude", "magnitude-global", "snip", "magnitude-constant"])
def test_sizes_that_divide_have_exactly_n_in_every_group(name):
    inputs = keras.Input((8,))
    x = keras.layers.Dense(12, activation="tanh", name="hidden")(inputs)
    dense = keras.Model(inputs, keras.layers.Dense(CLASSES, name="head")(x))
    model = compiled(sparsify(dense, METHODS[name](), pattern="2:4"), "adam", **EAGER)
    fit(model, random_data((8,)))
    for mask in model.masks.values():
        assert {kept for kept, _ in reference.kept_in_groups(mask, 4)} == {2}


# Axes, from what layers compute.


def _connected(layer, shape, positions):
    """The input and output channel that each entry of a kernel connects, by trying each."""
    x = tf.Variable(np.random.default_rng(0).normal(size=(1, *shape)).astype("float32"))
    layer(x)
    result = {}
    for index in np.ndindex(*layer.kernel.shape):
        kernel = np.zeros(layer.kernel.shape, "float32")
        kernel[index] = 1.0
        layer.kernel.assign(kernel)
        with tf.GradientTape() as tape:
            y = layer(x)
            total = tf.reduce_sum(y)
        gradient = tape.gradient(total, x)
        channels = []
        for value in (gradient, y):
            value = np.reshape(value, (*value.shape[: 1 + positions], -1))
            (found,) = {place[-1] for place in np.argwhere(value).tolist()}
            channels.append(found)
        result[index] = tuple(channels)
    return result


@pytest.mark.parametrize(
    ("layer", "shape", "positions"),
    [
        (keras.layers.Dense(3, use_bias=False), (4,), 0),
        (keras.layers.Conv1D(3, 2, use_bias=False), (3, 4), 1),
        (keras.layers.Conv2D(3, 2, use_bias=False), (2, 3, 4), 2),
        (keras.layers.Conv1DTranspose(3, 2, use_bias=False), (2, 4), 1),
        (keras.layers.Conv2DTranspose(3, 2, use_bias=False), (2, 2, 4), 2),
        (keras.layers.Conv3DTranspose(2, 1, use_bias=False), (1, 2, 1, 3), 3),
        (keras.layers.EinsumDense("abc,cd->abd", (None, 5)), (2, 4), 1),
        (keras.layers.EinsumDense("abc,dc->abd", (None, 5)), (2, 4), 1),
        (keras.layers.EinsumDense("abc,cde->abde", (None, 2, 3)), (2, 4), 1),  # Query, key, value.
        (keras.layers.EinsumDense("abcd,cde->abe", (None, 5)), (2, 2, 3), 1),  # Their output.
        (keras.layers.EinsumDense("...x,xy->...y", 5), (2, 4), 1),
    ],
    ids=lambda value: getattr(value, "equation", type(value).__name__),
)
def test_inputs_and_outputs_are_those_that_an_entry_connects(layer, shape, positions):
    connected = _connected(layer, shape, positions)
    axes = maskable.axes(layer, tuple(layer.kernel.shape))
    places = reference.places(tuple(layer.kernel.shape), axes)
    assert {index: place[1:] for index, place in places.items()} == connected
    kernel = tf.convert_to_tensor(layer.kernel)
    fitted = Block(2, 2).fitted(layer, tuple(kernel.shape), axes)
    assert fitted.units(kernel.shape) == len(
        {(places[i][0], a // 2, b // 2) for i, (a, b) in connected.items()}
    )
    channels = Block(2, 2, taps="all").fitted(layer, tuple(kernel.shape), axes)
    blocks = {(a // 2, b // 2) for a, b in connected.values()}
    assert channels.units(kernel.shape) == len(blocks)


@pytest.mark.parametrize("make", MODELS)
def test_each_weight_of_a_model_has_its_axes(make):
    model = sparsify(make(), pattern=Block(2, 1))
    for item in model.masked_weights:
        rank = len(item.weight.shape)
        axes = item.pattern.axes or reference.default_axes(rank)
        assert tuple(tuple(a % rank for a in group) for group in axes) == AXES[item.path]


@pytest.mark.parametrize("case", LAYER_CASES)
def test_every_kind_of_layer_begins_with_masks_of_its_pattern(case):
    for pattern in (Block(2, 2), NM(1, 2)):
        model = sparsify(layer_model(case)[0], pattern=pattern, exclude=["head"])
        for item in model.masked_weights:
            mask = item.mask.numpy()
            assert holds(item.pattern, mask, item.pattern.axes)
            units = item.pattern.units(mask.shape)
            assert kept_in(item.pattern, mask, item.pattern.axes) == units - units // 2


# Files.


@pytest.mark.parametrize(
    ("make", "name", "pattern"),
    [
        (pictures, "rigl", "block_4x1"),
        (pictures, "magnitude", "2:4"),
        (sequences, "snfs", "2:4"),
        (sequences, "rigl", Block(3, 2, "max")),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_a_saved_model_keeps_its_patterns_and_goes_on(make, name, pattern, tmp_path):
    x, y = random_data(MODELS[make], batches=6)
    model = compiled(
        sparsify(make(), METHODS[name](), pattern=pattern), keras.optimizers.Adam(0.02), **EAGER
    )
    fit(model, (x[: 3 * BATCH], y[: 3 * BATCH]))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    patterns = [item.pattern for item in model.masked_weights]
    assert [item.pattern for item in loaded.masked_weights] == patterns
    check_equal_models(loaded, model)

    rest = x[3 * BATCH :], y[3 * BATCH :]
    expected, received = fit(model, rest), fit(loaded, rest)
    assert all(equal_masks(a, b) for a, b in zip(expected, received, strict=True))
    assert not equal_masks(received[0], received[-1])
    check_equal_models(loaded, model)

    stripped = tf_rigl.strip(model)
    np.testing.assert_array_equal(stripped(x[:2]), model(x[:2]))
    assert not isinstance(stripped, tf_rigl.SparseModel)


# Layers made by hand.


def by_hand(pattern, sparsity=0.5):
    wrap = {"sparsity": sparsity, "pattern": pattern, "seed": 1}
    inputs = keras.Input(IMAGE)
    x = tf_rigl.MaskedLayer(keras.layers.Conv2DTranspose(5, 2, name="up"), **wrap)(inputs)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = tf_rigl.MaskedLayer(keras.layers.Dense(CLASSES, name="head"), **wrap)(x)
    return tf_rigl.SparseModel(inputs, x, method=rigl(), seed=3)


@pytest.mark.parametrize("pattern", ["block_4x1", NM(2, 4), Block(2, 2, "max")], ids=str)
def test_masked_layers_have_patterns(pattern, tmp_path):
    data = random_data(IMAGE, batches=4)
    model = compiled(by_hand(pattern), keras.optimizers.Adam(0.02), **EAGER)
    masks = fit(model, data)
    assert not equal_masks(masks[0], masks[-1])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    loaded.run_eagerly = True
    patterns = [item.pattern for item in model.masked_weights]
    assert [item.pattern for item in loaded.masked_weights] == patterns
    assert patterns[0].axes == ((-1,), (-2,))
    expected, received = fit(model, data), fit(loaded, data)
    assert all(equal_masks(a, b) for a, b in zip(expected, received, strict=True))


def test_a_masked_layer_chooses_for_litert():
    layer = tf_rigl.MaskedLayer(keras.layers.Dense(3), 0.5, pattern="litert", seed=0)
    layer.build((None, 20))
    (item,) = layer._masks.items
    assert item.pattern == Block(4, 1)
    assert reference.are_whole(item.mask.numpy(), 4, 1)
    assert type(layer).from_config(layer.get_config()).pattern == LiteRT()


# What cannot be.


def test_a_sparsity_below_that_of_n_of_m_is_refused_by_layer():
    with pytest.raises(ValueError, match=r"'2:4' needs .* at least 0\.5.*'conv/kernel'.* be 0\.4"):
        sparsify(pictures(), sparsity=0.4, pattern="2:4")
    distribution = {"hidden": 0.75, "head": 0.5}
    with pytest.raises(ValueError, match=r"'1:4' needs .* at least 0\.75.*'head/kernel'.* be 0\.5"):
        sparsify(pictures(), distribution=distribution, pattern="1:4")
    layer = tf_rigl.MaskedLayer(keras.layers.Dense(3, name="d"), 0.4, pattern="2:4")
    with pytest.raises(ValueError, match=r"'2:4' needs .* at least 0\.5.*'d/kernel'"):
        layer.build((None, 8))
    with pytest.raises(ValueError, match=r"'2:4' needs .* at least 0\.5"):
        tf_rigl.plan(pictures(), 0.4, "uniform", pattern="2:4")


@pytest.mark.parametrize("method", ["rigl", "snip", "magnitude", METHODS["snip-global"]()])
def test_every_method_refuses_it_before_training(method):
    with pytest.raises(ValueError, match=r"'2:4' needs .*'conv/kernel'"):
        sparsify(pictures(), method, sparsity=0.3, pattern="2:4")


def test_dense_layers_are_allowed_beside_n_of_m():
    model = tf_rigl.sparsify(
        pictures(), rigl(), 0.5, "uniform", "2:4", fixed={"head": 0.0}, exclude=["up"], seed=0
    )
    compiled(model, keras.optimizers.Adam(0.02), **EAGER)
    fit(model, random_data(IMAGE, batches=3))
    assert model.masks["conv/kernel"].all()
    assert model.masks["head/kernel"].all()
    assert set(model.masks) == {"conv/kernel", "hidden/kernel", "head/kernel"}


def test_a_little_less_than_needed_is_less():
    """Of 2/3 written to six digits, one entry too many would be left."""
    with pytest.raises(ValueError, match=r"'1:3' .* at least 0\.6666667.* be 0\.666666\."):
        sparsify(pictures(), sparsity=0.666666, pattern="1:3")


def test_exactly_the_least_sparsity_is_allowed():
    for n, m in [(1, 3), (2, 3), (1, 7), (3, 10)]:
        model = sparsify(pictures(), sparsity=1 - n / m, pattern=NM(n, m))
        check_masks(model)


# Reports and runs.


def divisible():
    """A model in which blocks of 16 and groups of 4 go without rest."""
    inputs = keras.Input((8, 8, 16))
    x = keras.layers.Conv2D(16, 3, name="conv")(inputs)
    x = keras.layers.Conv2DTranspose(32, 2, name="up")(x)
    x = keras.layers.GlobalAveragePooling2D()(x)
    x = keras.layers.Dense(48, name="hidden")(x)
    return keras.Model(inputs, keras.layers.Dense(4, name="head")(x))


@pytest.mark.parametrize(
    "pattern", ["unstructured", "block_16x1", "block_4x1", Block(4, 2), "2:4", "litert"], ids=str
)
@pytest.mark.parametrize("distribution", ["erk", "uniform"])
def test_a_plan_is_the_report_of_the_model(pattern, distribution):
    model = divisible()
    fixed = {"head": 0.75}  # ERK alone gives it less than n of m need.
    sparse = tf_rigl.sparsify(model, "static", 0.9, distribution, pattern, seed=0, fixed=fixed)
    planned = tf_rigl.plan(model, 0.9, distribution, fixed, pattern=pattern)
    assert planned.to_dict() == tf_rigl.report(sparse).to_dict()
    assert str(planned) == str(tf_rigl.report(sparse))


def test_a_plan_of_blocks_of_several_sizes_is_near_the_report():
    sparse = sparsify(pictures(), "static", 0.5, pattern="block_4x1")
    planned = tf_rigl.plan(
        pictures(), 0.5, distribution=lambda s, p, **_: dict.fromkeys(s, p), pattern="block_4x1"
    )
    for one, other in zip(planned.layers, tf_rigl.report(sparse).layers, strict=True):
        assert abs(one.nnz - other.nnz) <= 0.2 * one.params
        assert one.pattern == other.pattern


def test_a_report_shows_the_patterns():
    sparse = tf_rigl.sparsify(divisible(), "static", 0.9, "uniform", "litert", seed=0)
    report = tf_rigl.report(sparse)
    patterns = {row.name: row.pattern for row in report.layers}
    assert patterns == {
        "conv/kernel": "dense",
        "up/kernel": "unstructured",
        "hidden/kernel": "block_16x1",
        "head/kernel": "block_16x1",
    }
    lines = str(report).splitlines()
    assert lines[0].split()[-1] == "pattern"
    assert next(line for line in lines if line.startswith("hidden/")).endswith("block_16x1")
    assert json.loads(json.dumps(report.to_dict()))["layers"][2]["pattern"] == "block_16x1"
    plain = tf_rigl.report(tf_rigl.sparsify(divisible(), "static", 0.9, seed=0))
    assert "pattern" not in str(plain)
    assert {row.pattern for row in plain.layers} <= {"unstructured", "dense"}


def test_the_pattern_is_in_the_name_of_a_run():
    assert Settings().name == Settings(pattern="unstructured").name
    name = Settings(pattern="block_4x1", epochs=1).name
    assert name == "digits-lenet-300-100-rigl-0.9-erk-block_4x1-epochs1-seed0"
    assert "-erk-2%3A4-" in Settings(pattern="2:4").name
    assert "block" not in Settings(method="dense", pattern="block_4x1").name


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("block4x1", "Did you mean 'block_4x1'"),
        ("4:2", "`n` must be less than `m`"),
        (Unstructured(), "Argument `pattern` must be one of"),
        (None, "Argument `pattern` must be one of"),
    ],
)
def test_settings_refuse_what_is_no_pattern(pattern, message):
    with pytest.raises(ValueError, match="Received") as error:
        Settings(pattern=pattern)
    assert message in str(error.value)


def test_a_run_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pattern = "block_4x1"
    arguments = ["train", "--epochs", "1", "--batch-size", "256", "--update-interval", "2"]
    arguments += ["--distribution", "uniform"]
    assert cli.main([*arguments, "--pattern", pattern]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert pattern in folder.name
    result = json.loads((folder / "result.json").read_text())
    assert result["settings"]["pattern"] == pattern
    assert folder.name in capsys.readouterr().out
    model = keras.models.load_model(folder / "model.keras")
    for item in model.masked_weights:
        if item.is_sparse:
            assert str(item.pattern) == pattern
            assert holds(item.pattern, item.mask.numpy(), None)


def test_a_comparison_from_the_command_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", "--methods", "static", "dense", "--sparsities", "0.9", "--seeds", "1"]
    arguments += ["--epochs", "1", "--batch-size", "512", "--pattern", "block_4x1"]
    assert cli.main([*arguments, "--output", "out"]) == 0
    assert "static" in capsys.readouterr().out
    runs = [json.loads(path.read_text()) for path in (tmp_path / "out").rglob("result.json")]
    assert {run["settings"]["pattern"] for run in runs} <= {"block_4x1", "unstructured"}


def test_a_pattern_that_is_none_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "--pattern", "block_0x1"]) == 2
    error = capsys.readouterr().err
    assert "`rows` must be an integer of at least 1" in error
    assert "Traceback" not in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", [methods.SNIP, methods.MagnitudePruning])
def test_units_of_several_sizes_are_not_compared_with_each_other(method):
    layers = [keras.Input((32,)), keras.layers.Dense(12), keras.layers.Dense(3)]
    with pytest.raises(ValueError, match="`pattern` must be the same in all weights"):
        tf_rigl.sparsify(keras.Sequential(layers), method(scope="global"), 0.5, pattern="litert")
