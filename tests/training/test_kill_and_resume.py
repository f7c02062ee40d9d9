"""A run that is killed at any moment and started again ends as one that was left alone."""

import functools
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

import tf_rigl
from tests.helpers import (
    BATCH,
    CLASSES,
    FEATURES,
    METHODS,
    check_equal_models,
    compiled,
    random_data,
    rigl,
    sparsify,
)
from tests.soak import record, times

BATCHES, EPOCHS = 60, 3
X, Y = random_data(batches=BATCHES)

# Arguments of a method, and of `compile`.
RUNS = {
    # Its schedule is a fraction of the run: a run that goes on has to know the whole of it.
    "rigl": (lambda: rigl(end_step=0.75, decay="cosine", update_interval=5), {}),
    "snfs": (METHODS["snfs"], {}),
    "magnitude": (METHODS["magnitude"], {}),
    "executions": (lambda: rigl(update_interval=5), {"steps_per_execution": 4}),
}


def network(run, **kwargs):
    """A sparse model with dropout, statistics of batches and an optimizer that has slots."""
    method, arguments = RUNS[run]
    keras.utils.set_random_seed(7)
    layers = [
        keras.Input((FEATURES,)),
        keras.layers.Dense(16, activation="relu", name="hidden"),
        keras.layers.BatchNormalization(name="norm"),
        keras.layers.Dropout(0.3, name="dropout"),
        keras.layers.Dense(CLASSES, name="head"),
    ]
    model = sparsify(keras.Sequential(layers), method())
    return compiled(model, keras.optimizers.Adam(0.01), **arguments, **kwargs)


def train(model, callbacks=(), epochs=EPOCHS, data=(X, Y)):
    model.fit(
        *data, batch_size=BATCH, shuffle=False, epochs=epochs, verbose=0, callbacks=[*callbacks]
    )


def everything(model):
    """All that a run ends with, as arrays."""
    variables = [*model.weights, *model.optimizer.variables]
    variables += [s.state for layer in model._flatten_layers() for s in layer._seed_generators]
    return [*map(keras.ops.convert_to_numpy, variables), np.array(model.step)]


def check_equal(received, expected):
    for one, other in zip(received, expected, strict=True):
        np.testing.assert_array_equal(one, other)


# What the processes do.


def process(work):
    """Does a piece of work in a process of its own, and returns its number.

    What is forked has imported TensorFlow, which takes longest, but not used it yet: there is
    but one thread.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
        os._exit(0)
    except BaseException as error:
        print(repr(error), file=sys.stderr, flush=True)
    finally:
        os._exit(1)


def run_to_end(run, folder, backed_up):
    """Begins a run, or goes on with it, and writes what it ends with."""
    tf.config.experimental.enable_op_determinism()
    backup = tf_rigl.callbacks.BackupAndRestore(folder / "backup", save_freq=2)
    model = network(run)
    train(model, [backup] if backed_up else [])
    with tf_rigl.files.beside(folder / "end.npz") as path:
        np.savez(path, *everything(model))


def parts(folder):
    """What of backups is half-written."""
    try:
        return set((folder / "backup").glob(".*"))
    except FileNotFoundError:  # Deleted just now, at the end of a run.
        return set()


def wait(pid, rng, folder):
    """Waits for a random moment, or the end of a process; every other is within a backup."""
    until, seen = time.monotonic() + rng.uniform(0.5, 5), set()
    within = rng.randrange(1, BATCHES) if rng.random() < 0.5 else None
    while within is not None or time.monotonic() < until:
        seen |= parts(folder)
        if within is not None and len(seen) > within:
            return
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        time.sleep(0.001)


def kill_and_resume(run, folder, kills):
    """Has processes killed, until a run ends; as many runs as there are to be kills.

    Returns:
        A dict of what was seen.
    """
    rng = random.Random(run)
    assert len(os.listdir("/proc/self/task")) == 1, "only a process of one thread may be forked"
    (folder / "alone").mkdir(parents=True)
    alone = process(lambda: run_to_end(run, folder / "alone", backed_up=False))
    assert os.waitpid(alone, 0)[1] == 0
    seen = {"kills": 0, "within_backups": 0, "runs": 0, "resumed_at": []}
    while seen["kills"] < kills or not seen["runs"]:
        place = folder / f"run{seen['runs']}"
        place.mkdir()
        while not (place / "end.npz").exists():
            pid = process(lambda place=place: run_to_end(run, place, backed_up=True))
            if seen["kills"] < kills:
                wait(pid, rng, place)
                os.kill(pid, signal.SIGKILL)
            status = os.waitpid(pid, 0)[1]
            assert status in (0, signal.SIGKILL), status
            if status:
                seen["kills"] += 1
                seen["within_backups"] += bool(parts(place))
                seen["resumed_at"].append(position(place / "backup" / "latest.weights.h5"))
        assert not (place / "backup").exists()
        seen["runs"] += 1
    return seen


def position(path):
    """The epoch and the batches in it after which a run will go on."""
    if not path.exists():
        return [0, 0]
    with h5py.File(path) as file:
        return [int(file.attrs[name]) for name in ("epoch", "batches")]


def load(path):
    with np.load(path) as file:
        return [file[f"arr_{n}"] for n in range(len(file))]


@pytest.mark.parametrize(
    "kills", times([{"rigl": 2, "snfs": 1}], [{run: 30} for run in RUNS]), ids=" ".join
)
def test_a_run_that_is_killed_ends_as_one_that_was_left_alone(kills, tmp_path):
    """To the bit: weights, masks, the optimizer's state, random states and the step."""
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.training.test_kill_and_resume",
            str(tmp_path),
            json.dumps(kills),
        ],
        cwd=pathlib.Path(__file__).parents[2],
        # Threads of these libraries would begin at their import.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    assert results.keys() == kills.keys()
    for run, seen in results.items():
        expected = load(tmp_path / run / "alone" / "end.npz")
        assert expected[-1] == BATCHES * EPOCHS
        for number in range(seen["runs"]):
            received = load(tmp_path / run / f"run{number}" / "end.npz")
            check_equal(received, expected)
        assert seen["kills"] == kills[run]
        record("kills", run=run, **seen)


# In one process: runs that an error ends.

SHORT = random_data(batches=10)
EAGER = {"run_eagerly": True}


class Fail(keras.callbacks.Callback):
    """Fails after a step."""

    def __init__(self, step):
        super().__init__()
        self.at = step

    def on_train_batch_end(self, batch, logs=None):
        if self.model.step >= self.at:
            raise RuntimeError("the power fails")


class Steps(keras.callbacks.Callback):
    """Keeps the numbers of the steps that are run."""

    def on_train_begin(self, logs=None):
        self.before, self.seen = self.model.step, []

    def on_train_batch_end(self, batch, logs=None):
        self.seen += range(self.before + 1, self.model.step + 1)
        self.before = self.model.step


def backup(folder, save_freq=3, **kwargs):
    return tf_rigl.callbacks.BackupAndRestore(folder / "backup", save_freq, **kwargs)


def fail(folder, step, save_freq=3, **kwargs):
    """A run of three epochs of ten batches that fails after a step."""
    callbacks = [backup(folder, save_freq, **kwargs), Fail(step)]
    with pytest.raises(RuntimeError, match="the power fails"):
        train(network("rigl", **EAGER), callbacks, data=SHORT)
    return folder / "backup" / "latest.weights.h5"


@functools.cache
def alone():
    """What that run ends with if it does not fail."""
    model = network("rigl", **EAGER)
    train(model, data=SHORT)
    return everything(model)


@pytest.mark.parametrize(
    ("save_freq", "step", "last"),
    # The backup at the last batch of an epoch waits until the epoch has ended.
    [(3, 2, 0), (5, 11, 10), (5, 10, 5), (3, 29, 27), ("epoch", 29, 20)],
)
def test_a_run_that_fails_goes_on_after_its_last_backup(save_freq, step, last, tmp_path):
    path = fail(tmp_path, step, save_freq)
    epoch, batches = position(path)
    assert 10 * epoch + batches == last
    steps, model = Steps(), network("rigl", **EAGER)
    train(model, [backup(tmp_path, save_freq), steps], data=SHORT)
    assert steps.seen == list(range(last + 1, 31))
    check_equal(everything(model), alone())
    assert not path.parent.exists()


def test_executions_of_several_steps_go_on_after_a_backup_too(tmp_path):
    """Eight of ten batches are left before the first one that is trained on."""
    expected, model, steps = *(network("executions", **EAGER) for _ in range(2)), Steps()
    train(expected, data=SHORT)
    with pytest.raises(RuntimeError, match="the power fails"):
        train(network("executions", **EAGER), [backup(tmp_path, 4), Fail(18)], data=SHORT)
    assert position(tmp_path / "backup" / "latest.weights.h5") == [1, 8]
    train(model, [backup(tmp_path, 4), steps], data=SHORT)
    assert steps.seen == list(range(19, 31))
    check_equal_models(model, expected)


def test_data_of_unknown_length_go_on_in_the_middle_of_an_epoch(tmp_path):
    data = tf.data.Dataset.from_tensor_slices(SHORT).batch(BATCH).filter(lambda *_: True)

    def fit(*callbacks):
        model = network("snfs", **EAGER)
        model.fit(data, shuffle=False, verbose=0, callbacks=[*callbacks])
        return model

    expected = fit()
    with pytest.raises(RuntimeError, match="the power fails"):
        fit(backup(tmp_path), Fail(8))
    check_equal_models(fit(backup(tmp_path)), expected)


def test_an_execution_that_the_end_of_an_epoch_cuts_is_counted_as_it_was(tmp_path):
    """Where its length is unknown; nothing of the next epoch is left out."""
    data = tf.data.Dataset.from_tensor_slices(SHORT).batch(BATCH).filter(lambda *_: True)

    def fit(*callbacks):
        model = network("executions", **EAGER)
        model.fit(data, epochs=3, shuffle=False, verbose=0, callbacks=[*callbacks])
        return model

    expected = fit()
    with pytest.raises(RuntimeError, match="the power fails"):
        fit(backup(tmp_path, 4), Fail(20))
    model = fit(backup(tmp_path, 4))
    assert model.step == 30
    check_equal_models(model, expected)


def test_callbacks_find_their_logs_where_batches_are_left_out(tmp_path):
    fail(tmp_path, 8)
    seen = []
    watcher = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda _, logs: seen.append(logs["loss"])
    )
    train(network("rigl", **EAGER), [backup(tmp_path), watcher], data=SHORT)
    assert len(seen) == 30


def test_the_good_backup_is_not_replaced_by_the_damaged_one(tmp_path):
    path = fail(tmp_path, 8, double_checkpoint=True)
    damage(path)
    with (
        pytest.warns(UserWarning, match="last backup is damaged"),
        pytest.raises(RuntimeError, match="the power fails"),
    ):
        train(
            network("rigl", **EAGER),
            [backup(tmp_path, double_checkpoint=True), Fail(5)],
            data=SHORT,
        )
    assert [each.name for each in path.parent.iterdir()] == ["previous.weights.h5"]
    steps = Steps()
    train(network("rigl", **EAGER), [backup(tmp_path), steps], data=SHORT)
    assert steps.seen[0] == 4


def test_a_run_that_is_over_before_it_begins_keeps_its_backup(tmp_path):
    path = fail(tmp_path, 25)
    train(network("rigl", **EAGER), [backup(tmp_path)], epochs=2, data=SHORT)
    assert path.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gs://bucket/run",), "`backup_dir` must be the path of a folder"),
        ((None,), "`backup_dir` must be the path of a folder"),
        (("backup", 0), "`save_freq` must be 'epoch' or an integer of at least 1"),
        (("backup", "batch"), "`save_freq` must be 'epoch' or an integer"),
    ],
)
def test_arguments_that_cannot_be_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        tf_rigl.callbacks.BackupAndRestore(*arguments)


def test_a_dense_model_is_refused(tmp_path):
    model = compiled(keras.Sequential([keras.Input((10,)), keras.layers.Dense(3)]))
    with pytest.raises(ValueError, match=r"is for a `tf_rigl.SparseModel`"):
        model.fit(*SHORT, verbose=0, callbacks=[backup(tmp_path)])


def test_later_runs_of_a_model_that_went_on_begin_at_their_first_epoch(tmp_path):
    fail(tmp_path, 15)
    model = network("rigl", **EAGER)
    train(model, [backup(tmp_path)], data=SHORT)
    train(model, epochs=1, data=SHORT)
    assert model.step == 40


def test_a_damaged_backup_is_passed_over_for_the_one_before(tmp_path):
    path = fail(tmp_path, 8, double_checkpoint=True)
    damage(path)
    steps, model = Steps(), network("rigl", **EAGER)
    with pytest.warns(UserWarning, match="last backup is damaged; `fit` uses the one before"):
        train(model, [backup(tmp_path), steps], data=SHORT)
    assert steps.seen[0] == 4


def test_a_run_does_not_begin_anew_where_all_backups_are_damaged(tmp_path):
    path = fail(tmp_path, 8, double_checkpoint=True)
    for each in path.parent.iterdir():
        damage(each)
    model = network("rigl", **EAGER)
    model.optimizer.build(model.trainable_variables)
    before = everything(model)
    with (
        pytest.warns(UserWarning, match="last backup is damaged"),
        pytest.raises(ValueError, match=r"previous.*cannot be used: it is damaged, or belongs to"),
    ):
        train(model, [backup(tmp_path)], data=SHORT)
    check_equal(everything(model), before)
    assert len(list(path.parent.iterdir())) == 2


def test_what_a_killed_process_has_left_half_written_goes(tmp_path):
    path = fail(tmp_path, 8)
    (path.parent / ".half.weights.h5").write_bytes(b"half")
    train(network("rigl", **EAGER), [backup(tmp_path, delete_checkpoint=False)], data=SHORT)
    assert [each.name for each in path.parent.iterdir()] == ["latest.weights.h5"]


def damage(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


if __name__ == "__main__":
    place, numbers = pathlib.Path(sys.argv[1]), json.loads(sys.argv[2])
    print(json.dumps({name: kill_and_resume(name, place / name, n) for name, n in numbers.items()}))
