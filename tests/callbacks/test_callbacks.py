"""`SparsityLogger` and `SparsityMonitor`: what they write, and what they stop."""

import csv
import json
import math
import os
import pathlib
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    FEATURES,
    METHODS,
    CheckEveryStep,
    compiled,
    detached_mlp,
    layer_model,
    mlp,
    random_data,
    rigl,
    sparsify,
)
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tf_rigl.callbacks import BackupAndRestore, SparsityError, SparsityLogger, SparsityMonitor

EAGER = {"run_eagerly": True}


def train(model, x, y, callbacks, **kwargs):
    arguments = {"batch_size": BATCH, "shuffle": False, "verbose": 0, "callbacks": callbacks}
    return model.fit(x, y, **{**arguments, **kwargs})


def read(path):
    """The rows of a CSV file, numbers as floats, without those of all weights."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    return [{k: _number(v) for k, v in row.items()} for row in rows]


def _number(text):
    try:
        return float(text)
    except ValueError:
        return text


def of(rows, weight):
    return [row for row in rows if row["weight"] == weight]


# What the figures are.


def changed(one, other):
    """Entries active in one of two masks alone, over those of the one plus those of the other."""
    one, other = set(np.flatnonzero(one)), set(np.flatnonzero(other))
    return len(one ^ other) / (len(one) + len(other))


def union(masks, weight):
    """The entries of a weight that are active in one mask at least."""
    return np.any([each[weight] for each in masks], axis=0)


def explored(masks):
    """The share of them among the entries of all weights."""
    return np.mean(np.concatenate([union(masks, weight).ravel() for weight in masks[0]]))


COSINE = {"drop_fraction": 0.6, "update_interval": 3, "end_step": 7, "decay": "cosine"}
# The method, its updates in the first eight steps, and its drop fraction at a step.
FIGURES = {
    "rigl": (
        lambda: tf_rigl.methods.RigL(**COSINE),
        [3, 6],
        lambda step: 0.3 * (1 + math.cos(math.pi * step / 7)) if step < 7 else 0.0,
    ),
    "snip": (METHODS["snip"], [0], lambda step: ""),
    "magnitude": (METHODS["magnitude"], [2, 4, 5], lambda step: ""),
    "static": (METHODS["static"], [], lambda step: ""),
}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_those_that_numpy_counts(name, tmp_path):
    method, updates, fraction = FIGURES[name]
    model = compiled(sparsify(mlp(), method(), sparsity=0.8), **EAGER)
    masks, check = [model.masks], CheckEveryStep()
    path = tmp_path / "sparsity.csv"
    train(model, *random_data(), [check, SparsityLogger(csv=path, update_freq=1)])
    masks += check.masks
    rows = read(path)
    assert len(rows) == 8 * 3
    for step in range(1, 9):
        last = max((update for update in updates if update < step), default=None)
        now, total = masks[step], np.zeros(2)
        for weight, mask in now.items():
            (row,) = (r for r in of(rows, weight) if r["step"] == step)
            since = 0.0 if last is None else changed(masks[last][weight], masks[last + 1][weight])
            dead = sum(not mask[:, unit].any() for unit in range(mask.shape[1]))
            assert row == {
                "epoch": 0,
                "step": step,
                "weight": weight,
                "sparsity": pytest.approx(np.mean(~mask), abs=1e-6),
                "changed_since_start": pytest.approx(changed(masks[0][weight], mask), abs=1e-6),
                "changed_since_update": pytest.approx(since, abs=1e-6),
                "drop_fraction": fraction(step) and pytest.approx(fraction(step), abs=1e-6),
                "dead_units": dead,
                "units": mask.shape[1],
                "explored": pytest.approx(np.mean(union(masks[: step + 1], weight)), abs=1e-6),
            }
            total += dead, mask.shape[1]
        (row,) = (r for r in of(rows, "(all)") if r["step"] == step)
        first, every = (np.concatenate([m.ravel() for m in d.values()]) for d in (masks[0], now))
        assert row["sparsity"] == pytest.approx(1 - every.mean(), abs=1e-6)
        assert row["changed_since_start"] == pytest.approx(changed(first, every), abs=1e-6)
        assert [row["dead_units"], row["units"]] == total.tolist()
        assert row["explored"] == pytest.approx(explored(masks[: step + 1]), abs=1e-6)


# Which entries of each weight lead to one output, and how many outputs there are.
UNITS = {
    "Dense": [(np.s_[:, 3], 8)],
    "EinsumDense": [(np.s_[:, 3], 8)],
    "Conv2D": [(np.s_[..., 1], 4)],
    "Conv2DTranspose": [(np.s_[:, :, 1, :], 4)],
    "SeparableConv2D": [(np.s_[..., 5], 8)],
    "Embedding": [(np.s_[:, 2], 6)],
    "LSTM": [(np.s_[:, 9], 16), (np.s_[:, 9], 16)],
    "MultiHeadAttention": [(np.s_[:, 1, 2], 6)] * 3 + [(np.s_[:, :, 4], 6)],
    "get_prunable_weights": [(np.s_[:, 0], 8)],
}


def last_rows(model, x, y, path):
    """The figures after one batch."""
    train(compiled(model, **EAGER), x, y, [SparsityLogger(csv=path)])
    return {row["weight"]: row for row in read(path)}


@pytest.mark.parametrize("case", UNITS)
def test_a_unit_is_dead_if_nothing_leads_to_it(case, tmp_path):
    dense, shape, dtype, paths = layer_model(case)
    model = sparsify(dense, "static")
    for item, (entries, _) in zip(model.masked_weights, UNITS[case], strict=False):
        mask = np.ones(item.shape, bool)
        mask[entries] = False
        item.set_mask(mask)
    rows = last_rows(model, *random_data(shape, batches=1, dtype=dtype), tmp_path / "s.csv")
    found = [(rows[path]["dead_units"], rows[path]["units"]) for path in paths]
    assert found == [(1, units) for _, units in UNITS[case]]


def test_each_matrix_of_a_stack_has_its_own_units(tmp_path):
    inputs = keras.Input((4, 6))
    x = keras.layers.EinsumDense("abc,bcd->abd", (4, 5), name="stack")(inputs)
    outputs = keras.layers.Dense(3, name="head")(keras.layers.Flatten()(x))
    model = sparsify(keras.Model(inputs, outputs), "static")
    mask = np.ones((4, 6, 5), bool)
    mask[1, :, 2] = False
    model.masked_weights[0].set_mask(mask)
    rows = last_rows(model, *random_data((4, 6), batches=1), tmp_path / "s.csv")
    assert rows["stack/kernel"]["dead_units"] == 1
    assert rows["stack/kernel"]["units"] == 20


def block_sparse(units=16):
    layers = [keras.layers.Dense(units, name=name) for name in ("one", "two")]
    dense = keras.Sequential([keras.Input((FEATURES,)), *layers])
    return sparsify(dense, rigl(), pattern="block_2x4", compute="sparse")


@pytest.mark.parametrize("units", [16, 15, 13])  # Blocks of 2x4 reach beyond 15 and 13.
def test_block_sparse_weights_are_seen_as_the_kernels_they_stand_for(units, tmp_path):
    model = compiled(block_sparse(units), **EAGER)
    assert all(isinstance(item, BlockSparseWeight) for item in model.masked_weights)
    before, path = model.masks, tmp_path / "s.csv"
    train(model, *random_data(), [SparsityLogger(csv=path), SparsityMonitor(1)])
    for weight, mask in model.masks.items():
        (row,) = of(read(path), weight)
        assert row["sparsity"] == pytest.approx(np.mean(~mask), abs=1e-6)
        assert row["changed_since_start"] == pytest.approx(changed(before[weight], mask), abs=1e-6)
        assert row["changed_since_start"] > 0
        assert (row["dead_units"], row["units"]) == (0, units)


def test_no_dense_mask_of_block_sparse_weights_is_made(monkeypatch, tmp_path):
    def dense(self):
        raise AssertionError("a dense mask")

    model = compiled(block_sparse(), **EAGER)
    monkeypatch.setattr(BlockSparseWeight, "mask", property(dense))
    train(model, *random_data(), [SparsityLogger(csv=tmp_path / "s.csv"), SparsityMonitor(1)])


# When they are written.


def test_by_default_there_are_figures_after_each_epoch_and_in_its_logs(tmp_path):
    model = compiled(sparsify(mlp(), rigl()), **EAGER)
    path = tmp_path / "runs" / "s.csv"
    history = train(model, *random_data(), [SparsityLogger(csv=path)], epochs=2).history
    rows = of(read(path), "(all)")
    assert [(row["epoch"], row["step"]) for row in rows] == [(0, 8), (1, 16)]
    for name, column in (
        ("sparsity", "sparsity"),
        ("masks_changed", "changed_since_start"),
        ("dead_units", "dead_units"),
        ("explored", "explored"),
    ):
        assert history[name] == pytest.approx([row[column] for row in rows], abs=1e-6)


@pytest.mark.parametrize(("freq", "steps"), [("update", [3, 5, 7]), (3, [3, 6]), (100, [])])
def test_how_often_figures_are_written_can_be_said(freq, steps, tmp_path):
    model, path = compiled(sparsify(mlp(), rigl()), **EAGER), tmp_path / "s.csv"
    train(model, *random_data(), [SparsityLogger(csv=path, update_freq=freq)])
    assert [row["step"] for row in of(read(path), "(all)")] == steps


def test_executions_of_several_steps_are_seen_at_their_ends(tmp_path):
    model = compiled(sparsify(mlp(), rigl(update_interval=3)), steps_per_execution=4)
    check, path = CheckEveryStep(), tmp_path / "s.csv"
    before = model.masks
    callbacks = [check, SparsityLogger(csv=path, update_freq=2), SparsityMonitor(frequency=2)]
    train(model, *random_data(), callbacks)
    rows = of(read(path), "hidden/kernel")
    masks = [before["hidden/kernel"], *(m["hidden/kernel"] for m in check.masks)]
    assert [row["step"] for row in rows] == [4, 8]
    for row, last, mask in zip(rows, masks, masks[1:], strict=False):
        assert row["changed_since_start"] == pytest.approx(changed(masks[0], mask), abs=1e-6)
        assert row["changed_since_update"] == pytest.approx(changed(last, mask), abs=1e-6)


@pytest.mark.parametrize("name", ["rigl", "snip"])
def test_a_model_that_is_built_by_its_first_batch(name, tmp_path):
    layers = [keras.layers.Dense(8, name="hidden"), keras.layers.Dense(3, name="head")]
    model = compiled(sparsify(keras.Sequential(layers), METHODS[name]()), **EAGER)
    path = tmp_path / "s.csv"
    train(model, *random_data(), [SparsityLogger(csv=path, update_freq="update")])
    steps = {"rigl": [3, 5, 7], "snip": [1]}[name]
    rows = of(read(path), "hidden/kernel")
    assert [row["step"] for row in rows] == steps
    # From 80 to 40 active entries; or half of 40 moved.
    expected = {"rigl": 0.5, "snip": 40 / 120}[name]
    assert 0 < rows[0]["changed_since_start"] <= expected + 1e-6
    assert rows[0]["changed_since_update"] == rows[0]["changed_since_start"]


# Several runs, and one file.


def test_several_runs_of_one_model_are_one_history(tmp_path):
    model, path = compiled(sparsify(mlp(), rigl()), **EAGER), tmp_path / "s.csv"
    masks, x, y = [model.masks], *random_data()
    for _ in range(3):
        train(model, x, y, [SparsityLogger(csv=path)])
        masks.append(model.masks)
    rows = of(read(path), "hidden/kernel")
    assert [row["step"] for row in rows] == [8, 16, 24]
    expected = [changed(masks[0]["hidden/kernel"], m["hidden/kernel"]) for m in masks[1:]]
    assert [row["changed_since_start"] for row in rows] == pytest.approx(expected, abs=1e-6)


class Kill(keras.callbacks.Callback):
    """Ends a run at a step, as a failure would."""

    def __init__(self, step, path):
        super().__init__()
        self.step, self.path = step, path

    def on_train_batch_end(self, batch, logs=None):
        if self.model.step == self.step:
            with self.path.open("a") as file:
                file.write("1,14,hidden/ker")
            raise KeyboardInterrupt


@pytest.mark.parametrize("freq", ["epoch", "update"])
def test_a_run_that_is_taken_up_again_writes_the_file_of_one_left_alone(freq, tmp_path):
    data = random_data()

    def run(path, *others):
        keras.utils.set_random_seed(0)
        model = compiled(sparsify(mlp(), rigl()), **EAGER)
        logger = SparsityLogger(csv=path, update_freq=freq)
        train(model, *data, [logger, *others], epochs=3)

    whole, path = tmp_path / "whole.csv", tmp_path / "killed.csv"
    run(whole)
    for step in (14, 22):
        # The last backup is of step 12, then of step 20.
        backup = BackupAndRestore(tmp_path / "backup", save_freq=4)
        with pytest.raises(KeyboardInterrupt):
            run(path, backup, Kill(step, path))
    run(path, BackupAndRestore(tmp_path / "backup", save_freq=4))
    assert path.read_text() == whole.read_text()


def test_a_new_model_begins_the_file_anew(tmp_path):
    path = tmp_path / "s.csv"
    for _ in range(2):
        model = compiled(sparsify(mlp(), rigl()), **EAGER)
        train(model, *random_data(), [SparsityLogger(csv=path)])
    assert [row["step"] for row in of(read(path), "(all)")] == [8]


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_where_the_masks_of_the_start_are_lost_changes_count_from_now(damage, tmp_path):
    path, data = tmp_path / "s.csv", random_data()
    model = compiled(sparsify(mlp(), rigl()), **EAGER)
    train(model, *data, [SparsityLogger(csv=path)])
    start = tmp_path / "s.csv.start.npz"
    if damage == "cut":
        start.write_bytes(start.read_bytes()[:100])
    else:
        model.seed += 1
    middle = model.masks["hidden/kernel"]
    with pytest.warns(UserWarning, match="changes count from step 8 on"):
        train(model, *data, [SparsityLogger(csv=path)])
    row = of(read(path), "hidden/kernel")[1]
    assert row["changed_since_start"] == pytest.approx(
        changed(middle, model.masks["hidden/kernel"]), abs=1e-6
    )


def test_other_peoples_files_are_left_alone(tmp_path):
    path = tmp_path / "thesis.csv"
    path.write_text("all of it")
    model = compiled(sparsify(mlp(), rigl()), **EAGER)
    with pytest.raises(ValueError, match=r"`csv` must be a new file.*thesis\.csv"):
        train(model, *random_data(), [SparsityLogger(csv=path)])
    assert path.read_text() == "all of it"
    assert model.step == 0


def test_tensorboard_gets_the_same_figures_as_scalars(tmp_path):
    model, path = compiled(sparsify(mlp(), rigl()), **EAGER), tmp_path / "s.csv"
    logger = SparsityLogger(log_dir=tmp_path / "logs", csv=path, update_freq=4)
    train(model, *random_data(), [logger])
    found = {}
    (events,) = (tmp_path / "logs").glob("*tfevents*")
    for record in tf.data.TFRecordDataset(str(events)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found[event.step, value.tag] = float(tf.make_ndarray(value.tensor))
    names = ["sparsity", "changed_since_start", "changed_since_update", "drop_fraction"]
    expected = {
        (row["step"], f"{name}/{row['weight']}"): row[name]
        for row in read(path)
        for name in [*names, "dead_units", "explored"]
    }
    assert len(expected) == 2 * 3 * 6
    assert found == pytest.approx(expected, abs=1e-6)


# Arguments.


@pytest.mark.parametrize("freq", [0, -1, 1.5, True, None, "batch"])
def test_wrong_frequencies_are_named(freq):
    with pytest.raises(ValueError, match=r"`update_freq` must be 'epoch', 'update' or an integer"):
        SparsityLogger(update_freq=freq)
    with pytest.raises(ValueError, match=r"`frequency` must be 'epoch' or an integer"):
        SparsityMonitor(frequency=freq)


@pytest.mark.parametrize("callback", [SparsityLogger, SparsityMonitor])
def test_models_without_masks_are_refused(callback):
    with pytest.raises(TypeError, match=f"{callback.__name__} is for a `tf_rigl.SparseModel`"):
        train(compiled(mlp()), *random_data(), [callback()])


# The monitor.


@pytest.mark.parametrize("name", METHODS)
def test_sound_training_passes(name):
    model = compiled(sparsify(mlp(), METHODS[name]()), keras.optimizers.Adam(0.01), **EAGER)
    train(model, *random_data(), [SparsityMonitor(frequency=1)])
    assert model.step == 8


def loss_scaling():
    """Gradients overflow until the scale has come down."""
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = sparsify(mlp(), rigl())
    finally:
        keras.config.set_dtype_policy("float32")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1), initial_scale=2**20)
    return compiled(model, optimizer, **EAGER)


def frozen():
    model = sparsify(mlp(), METHODS["magnitude"]())
    model.get_layer("hidden").trainable = False
    return compiled(model, **EAGER)


@pytest.mark.filterwarnings("ignore:Gradients do not exist")
@pytest.mark.parametrize(
    "make",
    [
        loss_scaling,
        frozen,
        lambda: compiled(sparsify(detached_mlp(), METHODS["snip"]()), **EAGER),
        lambda: compiled(sparsify(mlp(), rigl(), pattern="2:4"), **EAGER),
        lambda: compiled(sparsify(mlp(), rigl()), keras.optimizers.SGD(0.1, use_ema=True), **EAGER),
    ],
    ids=["loss scaling", "frozen", "no gradient", "2:4", "averages"],
)
def test_what_is_sound_but_not_usual_passes(make):
    model = make()
    for _ in range(2):
        train(model, *random_data(), [SparsityMonitor(frequency=1)])


def set_weight(value, where):
    def fault(item):
        weight = item.weight.numpy()
        weight.flat[np.flatnonzero(item.mask.numpy() == where)[0]] = value
        item.weight.assign(weight)

    return fault


def drop_one(item):
    mask = item.mask.numpy()
    mask.flat[np.flatnonzero(mask)[0]] = False
    item.set_mask(mask)


def add_one(item):
    mask = item.mask.numpy()
    mask.flat[np.flatnonzero(~mask)[0]] = True
    item.mask.assign(mask)


FAULTS = {
    "stray": (set_weight(0.5, False), "1 weights are not zero where the mask is 0"),
    "stray NaN": (set_weight(np.nan, False), "1 of 80 weights are not finite; .*1 weights are not"),
    "NaN": (set_weight(np.nan, True), "1 of 80 weights are not finite"),
    "infinite": (set_weight(-np.inf, True), "1 of 80 weights are not finite"),
    "fewer": (drop_one, "39 units are active, the method has planned 40"),
    "more": (add_one, "41 units are active, the method has planned 40"),
}


class Break(keras.callbacks.Callback):
    """Does something to the first masked weight after a step."""

    def __init__(self, fault, step):
        super().__init__()
        self.fault, self.step = fault, step

    def on_train_batch_end(self, batch, logs=None):
        if self.model.step == self.step:
            self.fault(self.model.masked_weights[0])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", ["rigl", "magnitude"])
def test_the_monitor_stops_at_the_step_and_names_the_layer(name, fault):
    """Step 7 is behind the last pruning, and of no update."""
    change, message = FAULTS[fault]
    model = compiled(sparsify(mlp(), METHODS[name]()), **EAGER)
    with pytest.raises(SparsityError, match=f"At step 7: 'hidden/kernel': {message}") as error:
        train(model, *random_data(), [Break(change, 7), SparsityMonitor(frequency=1)])
    assert "head" not in str(error.value)
    assert model.step == 7


@pytest.mark.parametrize(("frequency", "step"), [(1, 2), (5, 5), (6, 6), ("epoch", 8), (100, 8)])
def test_the_monitor_looks_as_often_as_it_is_asked_to(frequency, step):
    model = compiled(sparsify(mlp(), "static"), **EAGER)
    with pytest.raises(SparsityError, match=f"At step {step}:"):
        train(model, *random_data(), [Break(drop_one, 2), SparsityMonitor(frequency)])


def test_a_block_sparse_weight_with_a_block_twice_is_found():
    def double(item):
        places = item.layer.places.numpy()
        places[0] = places[0, 0]
        item.layer.places.assign(places)

    model = compiled(block_sparse(), **EAGER)
    with pytest.raises(
        SparsityError, match=r"At step 1: 'one/kernel': the places of blocks do not"
    ):
        train(model, *random_data(), [Break(double, 1), SparsityMonitor(1)])


# Several devices.

SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
import tf_rigl
from tests.helpers import compiled, mlp, random_data, rigl, sparsify

with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    model = compiled(sparsify(mlp(), rigl()))
logger = tf_rigl.callbacks.SparsityLogger(sys.argv[1], sys.argv[2], update_freq=4)
data = tf.data.Dataset.from_tensor_slices(random_data()).batch(8)
before = model.masks
model.fit(data, verbose=0, callbacks=[logger, tf_rigl.callbacks.SparsityMonitor(1)])
after = model.masks
print(json.dumps([[m[path].ravel().tolist() for path in m] for m in (before, after)]))
model.masked_weights[1].weight.assign(np.full((8, 3), np.nan))
try:
    model.fit(data, verbose=0, callbacks=[tf_rigl.callbacks.SparsityMonitor(1)])
except tf_rigl.callbacks.SparsityError as error:
    print(error)
"""


def test_two_replicas_are_watched_as_one_device_is(tmp_path):
    root = str(pathlib.Path(__file__).parents[2])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": root}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "logs"), str(tmp_path / "s.csv")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, masks, error = done.stdout.splitlines()
    before, after = (list(map(np.array, each)) for each in json.loads(masks))
    rows = read(tmp_path / "s.csv")
    assert [row["step"] for row in rows] == [4] * 3 + [8] * 3
    for row, one, other in zip(rows[3:], before, after, strict=False):
        assert row["changed_since_start"] == pytest.approx(changed(one, other), abs=1e-6)
    assert len(list((tmp_path / "logs").glob("*tfevents*"))) == 1
    assert error.startswith("At step 9: 'head/kernel': ")
    assert "of 24 weights are not finite" in error
