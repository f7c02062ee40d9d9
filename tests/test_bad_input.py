"""Bad input fails before training, and the message names the argument and what came in."""

import importlib
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    MODEL_KINDS,
    compiled,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl._base import backend
from tf_rigl.experiments import compare, tickets


def raises(message, error=ValueError):
    return pytest.raises(error, match=f"(?s){message}")


@pytest.mark.parametrize("sparsity", [1, 1.0, 1.5, -0.1, float("nan"), "0.9", None, True])
def test_sparsity_outside_its_range(sparsity):
    with raises(rf"`sparsity` must be a number in \[0, 1\).*sparsity={sparsity!r}"):
        tf_rigl.sparsify(mlp(), sparsity=sparsity)


@pytest.mark.parametrize(
    ("argument", "value", "close"),
    [
        ("method", "rigel", "'rigl'"),
        ("method", "RigL", "'rigl'"),
        ("method", "statik", "'static'"),
        ("distribution", "unifrom", "'uniform'"),
        ("distribution", "erdos-renyi", "'erdos_renyi'"),
        ("pattern", "unstructurd", "'unstructured'"),
    ],
)
def test_unknown_names_offer_the_close_ones(argument, value, close):
    with raises(rf"`{argument}` must be one of .*Did you mean {close}.*{argument}={value!r}"):
        tf_rigl.sparsify(mlp(), **{argument: value})


@pytest.mark.parametrize("argument", ["method", "distribution", "pattern"])
@pytest.mark.parametrize("value", [None, 3, ["rigl"]])
def test_what_is_no_name_at_all(argument, value):
    with raises(rf"`{argument}` must be one of .*{argument}="):
        tf_rigl.sparsify(mlp(), **{argument: value})


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("method", tf_rigl.methods.RigL),
        ("method", tf_rigl.methods.MagnitudePruning),
        ("pattern", tf_rigl.patterns.Block),
        ("distribution", dict),
    ],
)
def test_class_in_place_of_an_object(argument, value):
    name = value.__name__
    with raises("`decay` must be .*A class is not an object"):
        tf_rigl.methods.RigL(decay=value)
    with raises(rf"`{argument}` must be .*A class is not an object: pass `{argument}={name}\(.*"):
        tf_rigl.sparsify(mlp(), **{argument: value})


@pytest.mark.parametrize(
    ("argument", "value", "meant"),
    [
        ("method", "gradual", "'magnitude'"),
        ("method", "pruning", "'magnitude'"),
        ("method", "MagnitudePruning", "'magnitude'"),
        ("method", "EdgePopup", "'edge_popup'"),
        ("method", " RigL ", "'rigl'"),
        ("distribution", "erdos_renyi_kernel", "'erk'"),
        ("distribution", "ERK", "'erk'"),
        ("pattern", "block", "'block_4x1'"),
        ("pattern", "nm", "'2:4'"),
        ("pattern", "4:2", "'2:4', at most 2 of every 4"),
    ],
)
def test_other_words_for_a_name_are_understood(argument, value, meant):
    with raises(rf"Argument `{argument}` .*Did you mean {meant}\?.*{argument}={value!r}"):
        tf_rigl.sparsify(mlp(), **{argument: value})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("0:4", "`n` must be an integer of at least 1.*NM"),
        ("4:4", "`n` must be less than `m`.*NM"),
        ("block_0x4", "`rows` must be an integer of at least 1.*Block"),
        ("constant_fan_in_4x0", "`cols` must be an integer of at least 1.*Block"),
    ],
)
def test_numbers_in_a_pattern(name, message):
    with raises(rf"`pattern` has a number that is out of range: {message}") as error:
        tf_rigl.plan(mlp(), pattern=name)
    assert f"pattern={name!r}" in str(error.value)


@pytest.mark.parametrize(
    ("make", "allowed", "unknown"),
    [
        (lambda: tf_rigl.methods.RigL(drop_fration=1), "'drop_fraction'", "drop_fration=1"),
        (lambda: tf_rigl.methods.SNIP(scop=1), "'scope', 'batches'", "scop=1"),
        (lambda: tf_rigl.methods.MagnitudePruning(final=1), "'schedule', 'scope'", "final=1"),
        (lambda: tf_rigl.methods.EdgePopup(weight=1), "'weights'", "weight=1"),
        (lambda: tf_rigl.methods.Static(seed=1), "none", "seed=1"),
        (lambda: tf_rigl.patterns.Block(4, 1, scores=1), "'score'", "scores=1"),
        (lambda: tf_rigl.patterns.Unstructured(n=1), "none", "n=1"),
        (lambda: tf_rigl.schedules.PolynomialDecay(final=1), "'final_sparsity'", "final=1"),
        (lambda: tf_rigl.callbacks.SparsityLogger(cvs=1), "'log_dir', 'csv'", "cvs=1"),
        (lambda: tf_rigl.callbacks.SparsityMonitor(freq=1), "'frequency'", "freq=1"),
        (lambda: tf_rigl.callbacks.BackupAndRestore("b", freq=1), "'backup_dir'", "freq=1"),
        (lambda: tf_rigl.lottery.EarlyBird(0.5, tresh=1), "'threshold'", "tresh=1"),
        (lambda: tf_rigl.schedules.ConstantSparsity(sparsity=1), "'target_sparsity'", "sparsity=1"),
    ],
)
def test_unknown_arguments_of_constructors(make, allowed, unknown):
    with raises(rf"The arguments of `\w+` are .*{allowed}.*Received: {unknown}", TypeError):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda m: tf_rigl.SparseModel(m.inputs, m.outputs, metod="rigl"),
            "`SparseModel` are .*'method', 'seed'. Did you mean 'method'.*metod='rigl'",
        ),
        (
            lambda m: tf_rigl.MaskedLayer(keras.layers.Dense(2), sparcity=0.5),
            "`MaskedLayer` are .*'sparsity'.*Did you mean 'sparsity'.*sparcity=0.5",
        ),
        (
            lambda m: tf_rigl.block_sparse.Dense(2, blocksize=4),
            "`Dense` are .*'block_size', 'density', 'seed'. Did you mean 'block_size'.*blocksize=4",
        ),
    ],
)
def test_unknown_arguments_of_layers_and_models(make, message):
    with raises(message, TypeError):
        make(mlp())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: tf_rigl.methods.SET(grow_initializer="zeroes"),
            "`grow_initializer` must .*'zeroes'",
        ),
        (lambda: tf_rigl.methods.SET(grow_initializer=None), "`grow_initializer` must .*=None"),
        (lambda: tf_rigl.methods.SET(grow_initializer=np.float32(1)), "`grow_initializer` must "),
        (lambda: tf_rigl.methods.SET(decay=None), "`decay` must .*, or a function. .*decay=None"),
        (
            lambda: tf_rigl.methods.RigL(apply_optimizer_on_update="no"),
            "`apply_optimizer_on_update` must be True or False.*'no'",
        ),
        (lambda: tf_rigl.sparsify(mlp(), "dense"), "`method` must .*, or an object. Received: "),
        (lambda: tf_rigl.callbacks.SparsityLogger(csv=3), "`csv` must be a path.*csv=3"),
        (lambda: tf_rigl.callbacks.SparsityLogger(log_dir=""), "`log_dir` must be a path.*''"),
        (lambda: tf_rigl.lottery.find_ticket(mlp(), None), "`fit` must be a function of a model"),
        (
            lambda: tf_rigl.lottery.find_ticket(mlp(), print, folder=3),
            "`folder` must be a path.*folder=3",
        ),
        (
            lambda: sparsify(mlp()).masked_weights[0].set_mask(np.ones((8, 10), bool)),
            r"`mask` must have the shape of 'hidden/kernel', \(10, 8\).*a mask of shape \(8, 10\)",
        ),
        (lambda: tf_rigl.lottery.random_mask(None), "`ticket` must be a .*Ticket.*ticket=None"),
        (lambda: tf_rigl.lottery.reinitialised(3, mlp()), "`ticket` must be a .*Ticket.*ticket=3"),
        (lambda: tf_rigl.lottery.warm_up("0.1", 3), "`schedule` must .*a learning rate, or a"),
        (
            lambda: tf_rigl.lottery.from_step(keras.layers.Identity(), 3),
            "`schedule` must .*Identity",
        ),
        (lambda: compare.cells("rigl", [], [], [], None), "`specs` must be a list.*specs='rigl'"),
        (lambda: compare.cells(["rigl"], [], [], 3, None), "`seeds` must be a list.*seeds=3"),
        (lambda: compare.cells([3], [], [], [], None), "`methods` must hold specs.*Received: 3"),
        (lambda: tickets.tickets(None, folder="x"), "`settings` must be a `TicketSettings`"),
        (lambda: tf_rigl.lottery.EarlyBird(0.5, stop="no"), "`stop` must be True or False"),
        (lambda: tf_rigl.lottery.EarlyBird(1), "`prune_fraction` .*the fraction of channels"),
        (lambda: tf_rigl.export_tflite(mlp(), "x.tflite", packed=1), "`packed` must be True or"),
        (lambda: tf_rigl.export_tflite(mlp(), "x\0.tflite"), "`path` must be a path"),
        (lambda: tf_rigl.export_saved_model(mlp(), ""), "`path` must be a path. Received: path=''"),
        (lambda: tf_rigl.export_saved_model(mlp(), "."), "`path` must not be the current folder"),
        (lambda: tf_rigl.export.latency([], xnnpack=0), "`xnnpack` must be True or False"),
        (
            lambda: tf_rigl.block_sparse.Conv2D(4, 3, groups=2),
            "`groups` must be 1: each column of blocks .*Received: groups=2",
        ),
        (
            lambda: tf_rigl.block_sparse.MultiHeadAttention(2, 4, blocks={"querry": {}}),
            "`blocks` must have names of projections as keys.*Did you mean 'query'",
        ),
        (
            lambda: tf_rigl.strip(sparsify(keras.Sequential([keras.layers.Dense(3)]))),
            "`model` is not built, so it has no masks yet: call it on data first",
        ),
    ],
)
def test_wrong_types_are_named(make, message):
    with raises(message):
        make()


def test_numbers_of_numpy_are_taken_and_stored(tmp_path):
    kind = np.float32, np.float16, np.int64, np.int32, np.float64, np.uint8
    values = [cls(value) for cls, value in zip(kind, (0.25, 0.5, 3, 9, 3, 2), strict=True)]
    schedule = tf_rigl.schedules.PolynomialDecay(*values)
    assert schedule == tf_rigl.schedules.PolynomialDecay(0.25, 0.5, 3, 9, 3, 2)
    method = tf_rigl.methods.MagnitudePruning(schedule)
    sparse = tf_rigl.sparsify(mlp(), method, np.float32(0.5), seed=np.int64(1))
    sparse.save(tmp_path / "model.keras")
    assert keras.models.load_model(tmp_path / "model.keras").method.schedule == schedule
    tf_rigl.lottery.EarlyBird(np.float32(0.5), np.float32(0.25), np.int64(3))
    for flag in (True, np.bool_(True)):
        assert tf_rigl.methods.SET(apply_optimizer_on_update=flag).apply_optimizer_on_update is True


def test_a_sparse_model_in_another_one_is_stripped_too():
    inputs = keras.Input((FEATURES,))
    inner = sparsify(mlp())
    model = keras.Model(inputs, keras.layers.Dense(2)(keras.layers.ReLU()(inner(inputs))))
    stripped = tf_rigl.strip(model)
    homes = {type(layer).__module__.partition(".")[0] for layer in stripped._flatten_layers()}
    assert homes == {"keras"}
    x = random_data()[0]
    np.testing.assert_array_equal(stripped(x), model(x))


def test_blocks_larger_than_a_layer_made_by_hand():
    layer = tf_rigl.block_sparse.Dense(4, block_size=(2, 8), name="small")
    with pytest.warns(UserWarning, match="'small' stores more than .*10 inputs by 4 outputs"):
        layer.build((None, FEATURES))


def test_constructors_of_ones_own_take_what_they_say():
    class Own(tf_rigl.methods.MagnitudePruning):
        def __init__(self, **options):
            super().__init__()
            self.options = options

    class Other(tf_rigl.methods.Static):
        def __init__(self, rate, *, more=1):
            self.rate = rate

    assert Own(anything=1).options == {"anything": 1}
    assert Other(2, more=3).rate == 2
    with raises("The arguments of `Other` are 'rate', 'more'.*Received: mor=3", TypeError):
        Other(2, mor=3)
    with raises("`Static` takes no arguments", TypeError):
        tf_rigl.methods.Static(1)


@pytest.mark.parametrize("exclude", [["hiden"], ["hidden", "xyz.*"], ("dense_[0-9]+",)])
def test_exclude_pattern_that_matches_nothing(exclude):
    with raises(rf"`exclude`: '{re.escape(exclude[-1])}' matches no .*hidden/kernel"):
        tf_rigl.sparsify(mlp(), exclude=exclude)


@pytest.mark.parametrize("exclude", ["hidden", [3], [None], 5, None])
def test_exclude_that_is_no_list_of_names(exclude):
    with raises("`exclude` must be a list or tuple.*exclude="):
        tf_rigl.sparsify(mlp(), exclude=exclude)


def test_exclude_that_is_no_regular_expression():
    with raises(r"`exclude` must hold layer names or .*'\(head'"):
        tf_rigl.sparsify(mlp(), exclude=["(head"])


def test_exclude_that_leaves_nothing():
    with raises("`exclude` must leave at least one maskable layer.*hidden/kernel"):
        tf_rigl.sparsify(mlp(), exclude=[".*"])


def test_model_without_a_maskable_layer():
    inputs = keras.Input((FEATURES,))
    model = keras.Model(inputs, keras.layers.BatchNormalization()(inputs))
    with raises("no maskable layer.*get_prunable_weights"):
        tf_rigl.sparsify(model)


def test_unbuilt_model_without_a_maskable_layer():
    """Seen when the model is built, which is before training."""
    sparse = compiled(sparsify(keras.Sequential([keras.layers.BatchNormalization()])))
    with raises("no maskable layer"):
        sparse.fit(*random_data(), verbose=0)


@pytest.mark.parametrize(
    ("name", "close"), [("hiden", "hidden"), ("hidden/kernal", "hidden/kernel")]
)
def test_distribution_with_an_unknown_layer(name, close):
    for argument, more in (("distribution", {}), ("fixed", {"distribution": "uniform"})):
        message = rf"`{argument}` must have names of layers as keys, and '{name}' is none of them"
        with raises(rf"{message}.*Did you mean .*'{close}'.*{argument}={{'{name}': 0.5}}"):
            tf_rigl.sparsify(mlp(), **{argument: {name: 0.5}}, **more)


@pytest.mark.parametrize("key", [0, None, keras.layers.Dense(1), ("hidden",)])
def test_distribution_with_a_key_that_is_no_name(key):
    with raises("`distribution` must have names of layers as keys.*'head', 'head/kernel'"):
        tf_rigl.sparsify(mlp(), distribution={key: 0.5})


def test_distribution_with_an_excluded_layer():
    with raises("`distribution` must .*'head'"):
        tf_rigl.sparsify(mlp(), distribution={"head": 0.5}, exclude=["head"])


@pytest.mark.parametrize("value", [1.0, -1, "half", None])
def test_distribution_with_a_wrong_sparsity(value):
    with raises(rf"`distribution\['head'\]` must be a number.*{value!r}"):
        tf_rigl.sparsify(mlp(), distribution={"head": value})


@pytest.mark.parametrize(
    "function",
    [
        lambda shapes, sparsity: {},
        lambda shapes, sparsity: None,
        lambda shapes, sparsity: list(shapes),
        lambda shapes, sparsity: {**dict.fromkeys(shapes, 0.5), "more": 0.5},
    ],
)
def test_distribution_function_that_leaves_out_or_adds_layers(function):
    with raises("`distribution` must return a sparsity for each of.*hidden/kernel"):
        tf_rigl.sparsify(mlp(), distribution=function)


def test_distribution_function_that_returns_a_wrong_sparsity():
    with raises(r"distribution\['hidden/kernel'\]` must be a number"):
        tf_rigl.sparsify(mlp(), distribution=lambda shapes, s: dict.fromkeys(shapes, 1.5))


def tiny():
    inputs = keras.Input((1,))
    return keras.Model(inputs, keras.layers.Dense(2)(inputs))


@pytest.mark.parametrize("distribution", ["erk", "erdos_renyi"])
def test_budget_that_cannot_be_met(distribution):
    """Both weights of a 1x2 kernel would have to stay, and so would all of a second one."""
    with raises("cannot be met.*sparsity=0.1"):
        tf_rigl.sparsify(tiny(), sparsity=0.1, distribution=distribution)


def test_uniform_with_one_layer_has_nothing_to_zero():
    """The first layer stays dense, and there is no other."""
    with raises("cannot be met.*distribution='uniform'"):
        tf_rigl.sparsify(tiny(), sparsity=0.5, distribution="uniform")


@pytest.mark.parametrize("interval", [0, -1, 1.5, "10"])
def test_update_interval_below_one(interval):
    with raises(rf"`update_interval` must be an integer of at least 1.*{interval!r}"):
        tf_rigl.methods.RigL(update_interval=interval)


@pytest.mark.parametrize("seed", [-1, 1.5, "0"])
def test_seed_that_is_none(seed):
    with raises(rf"`seed` must be .*seed={seed!r}"):
        tf_rigl.sparsify(mlp(), seed=seed)


@pytest.mark.parametrize("model", [None, "model", keras.layers.Dense(3), keras.Model])
def test_what_is_not_a_model(model):
    with raises("`model` must be a `keras.Model`.*Received: model="):
        tf_rigl.sparsify(model)
    with raises("`model` must be a `tf_rigl.SparseModel`.*Received: model="):
        tf_rigl.strip(model)


def test_dense_model_cannot_be_stripped():
    with raises("`model` must be a `tf_rigl.SparseModel`.*MaskedLayer.*is dense: use it as it is"):
        tf_rigl.strip(mlp())


def test_blocks_larger_than_kernels():
    """None of them: an error. Some of them: a warning that names them."""
    with raises(
        "cannot be met.*'block_32x32' is too large for 'hidden/kernel' of shape \\(10, 8\\)"
    ):
        tf_rigl.sparsify(mlp(), pattern="block_32x32")
    message = (
        "'head/kernel' of shape \\(8, 3\\): a single block .*Pass smaller blocks, or .*exclude"
    )
    with pytest.warns(
        UserWarning, match=f"stay dense.*'block_8x8' is too large for {message}"
    ) as w:
        plan = tf_rigl.plan(mlp(), 0.5, "uniform_all", pattern="block_8x8")
    assert [row.sparsity > 0 for row in plan.layers] == [True, False]
    assert w[0].filename == __file__
    with pytest.warns(UserWarning, match="stay dense"):
        sparse = tf_rigl.sparsify(mlp(), "static", 0.5, "uniform_all", pattern="block_8x8")
    assert sparse.masks["head/kernel"].all()


def test_sparsity_of_a_model_that_is_not_built():
    class Own(tf_rigl.SparseModel):
        def __init__(self):
            super().__init__(method="static")
            self.masked = tf_rigl.MaskedLayer(keras.layers.Dense(3), sparsity=0.5)

        def call(self, x):
            return self.masked(x)

    unbuilt = sparsify(keras.Sequential([keras.layers.Dense(4)]))
    for model in (unbuilt, Own()):
        with raises("The model is not built, so it has no masks yet. Call it on data"):
            _ = model.sparsity
        model(np.ones((1, FEATURES), "float32"))
        assert model.sparsity == 0.5


@pytest.mark.parametrize("kind", ["functional", "subclassed"])
def test_sparse_model_cannot_be_made_sparse_again(kind):
    sparse = sparsify(MODEL_KINDS[kind][0]())
    with raises("`model` is sparse already.*tf_rigl.strip"):
        tf_rigl.sparsify(sparse)


def test_model_of_masked_layers_is_sparse_already():
    """What can be done with it: train it through `SparseModel`, strip it, export it."""
    inputs = keras.Input((FEATURES,))
    layer = tf_rigl.MaskedLayer(keras.layers.Dense(3, name="inner"), sparsity=0.5)
    model = keras.Model(inputs, layer(inputs))
    with raises("sparse already: it holds 'masked_inner'.*`tf_rigl.SparseModel.*tf_rigl.strip"):
        tf_rigl.sparsify(model)
    dense = tf_rigl.strip(model)
    assert [type(each) for each in dense.layers[1:]] == [keras.layers.Dense]
    x = np.ones((2, FEATURES), "float32")
    np.testing.assert_array_equal(dense(x), model(x))
    assert np.count_nonzero(dense.layers[1].kernel) == 15
    assert tf_rigl.report(model).sparsity == tf_rigl.report(dense).sparsity == 0.5
    assert tf_rigl.SparseModel(model.inputs, model.outputs, method="static").sparsity == 0.5


def test_failure_leaves_the_model_as_it_was():
    model = mlp()
    before = model.get_weights()
    with raises("matches no"):
        tf_rigl.sparsify(model, exclude=["nothing"])
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


# At `fit`, before its first step.


def unknown_length():
    return tf.data.Dataset.from_tensor_slices(random_data()).batch(BATCH).filter(lambda *_: True)


def batches():
    yield random_data()


@pytest.mark.parametrize("data", [unknown_length, batches])
def test_float_end_step_without_a_known_length(data):
    sparse = compiled(sparsify(mlp(), rigl(end_step=0.5)), run_eagerly=True)
    before = sparse.get_weights()
    with raises("float `end_step` needs .* known length.*integer.*end_step=0.5"):
        sparse.fit(data(), verbose=0)
    assert sparse.step == 0
    for a, b in zip(sparse.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_float_end_step_in_train_on_batch():
    sparse = compiled(sparsify(mlp(), rigl(end_step=0.5)), run_eagerly=True)
    with raises("float `end_step` needs .* known length.*end_step=0.5"):
        sparse.train_on_batch(*random_data(batches=1))
    assert sparse.step == 0


def test_float_end_step_with_steps_per_epoch_is_fine():
    sparse = compiled(sparsify(mlp(), rigl(end_step=0.5)), run_eagerly=True)
    sparse.fit(unknown_length(), steps_per_epoch=4, verbose=0)
    assert sparse.step == 4


def test_sparse_model_without_masked_layers():
    inputs = keras.Input((FEATURES,))
    model = tf_rigl.SparseModel(inputs, keras.layers.Dense(CLASSES)(inputs), method="static")
    with raises("no masked weights.*tf_rigl.MaskedLayer"):
        compiled(model, run_eagerly=True).fit(*random_data(), verbose=0)


def test_sparse_model_with_an_unknown_method():
    inputs = keras.Input((FEATURES,))
    outputs = tf_rigl.MaskedLayer(keras.layers.Dense(CLASSES))(inputs)
    with raises(r"`method` must be .*Did you mean 'rigl'.*method='riggl'"):
        tf_rigl.SparseModel(inputs, outputs, method="riggl")


def test_subclass_given_inputs_and_outputs():
    class Own(tf_rigl.SparseModel):
        pass

    inputs = keras.Input((FEATURES,))
    with raises("Own is a subclass", TypeError):
        Own(inputs, tf_rigl.MaskedLayer(keras.layers.Dense(CLASSES))(inputs))


def test_fit_before_compile_is_kerass_own_error():
    with raises("call `compile\\(\\)`"):
        sparsify(mlp()).fit(*random_data(), verbose=0)


def run(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_other_backends_are_refused_with_what_to_set():
    """Before Keras looks for its backend; what trains nothing still works."""
    code = """
import tf_rigl
print(tf_rigl.distributions.uniform({"a": (4, 4), "b": (4, 4)}, 0.5)["b"])
for name in ("sparsify", "MaskedLayer", "SparseModel", "methods"):
    try:
        getattr(tf_rigl, name)
    except ImportError as error:
        print("KERAS_BACKEND=tensorflow" in str(error) and "'numpy'" in str(error), error)
"""
    done = run(code, KERAS_BACKEND="numpy")
    assert done.returncode == 0, done.stderr
    first, *refused = done.stdout.splitlines()
    assert first == "0.5"
    assert [line.split()[0] for line in refused] == ["True"] * 4, refused


def test_other_backend_of_a_keras_that_is_there_already(monkeypatch):
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with raises("KERAS_BACKEND=tensorflow.*'jax'", ImportError):
        importlib.reload(backend)


def test_import_is_light():
    """`import tf_rigl` pulls in nothing; what trains pulls in neither tfmot nor data sets.

    Not even the parts that deal with tfmot.
    """
    code = """
import sys, tf_rigl
tf_rigl.distributions
print({"tensorflow", "keras"} & set(sys.modules))
tf_rigl.sparsify
tf_rigl.interop.from_tfmot
tf_rigl.methods.MagnitudePruning(tf_rigl.schedules.PolynomialDecay())
print({"tensorflow_model_optimization", "tf_keras", "tensorflow_datasets"} & set(sys.modules))
"""
    done = run(code, TF_USE_LEGACY_KERAS="")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["set()", "set()"]
