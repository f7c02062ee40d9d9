"""Several processes that train one model: masks are those of one process."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests.soak import record, times

ROOT = pathlib.Path(__file__).parents[2]
# One process trains alone; several take their shares of the same batches.
SCRIPT = """
import json, os, pathlib, sys
import keras, numpy as np, tensorflow as tf
options = json.loads(sys.argv[1])
several = "TF_CONFIG" in os.environ
strategy = tf.distribute.MultiWorkerMirroredStrategy() if several else tf.distribute.get_strategy()
import tf_rigl
from tests.helpers import METHODS, compiled, mlp, random_data, sparsify

STEPS, BATCH = 12, 12
x, y = random_data(batches=STEPS, batch=BATCH)


class Record(keras.callbacks.Callback):
    def __init__(self):
        super().__init__()
        self.masks = {}

    def on_train_batch_end(self, batch, logs=None):
        for item in self.model.masked_weights:
            assert (item.dense().numpy()[~np.asarray(item.mask)] == 0).all()
        packed = [np.packbits(mask) for mask in self.model.masks.values()]
        self.masks[self.model.step] = np.concatenate(packed).tobytes().hex()


class Slow(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        import time
        if (strategy.cluster_resolver.task_id if several else 0) == 0:
            path = pathlib.Path(options["output"], "steps")
            path.write_text(str(self.model.step))
        time.sleep(options["pause"])


def train(name, method, optimizer="sgd", **arguments):
    # Without a seed of their own: the chief's counts.
    keras.utils.set_random_seed(0 if options["seeded"] else os.getpid())
    with strategy.scope():
        pattern = arguments.pop("pattern", "unstructured")
        compute = arguments.pop("compute", "masked")
        seed = 0 if options["seeded"] else None
        model = sparsify(mlp(), method, pattern=pattern, compute=compute, seed=seed)
        compiled(model, optimizer, metrics=["accuracy"], **arguments)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH)
    seen = Record()
    callbacks = [seen]
    if options.get("backup"):
        callbacks += [tf_rigl.callbacks.BackupAndRestore(options["backup"], save_freq=2), Slow()]
    history = model.fit(
        data, epochs=options["epochs"], verbose=0, callbacks=callbacks,
        validation_data=data if options["evaluate"] else None,
    )
    result = {"masks": seen.masks, "step": model.step, "history": history.history}
    result["weights"] = [w.numpy().ravel().tolist() for w in model.trainable_weights]
    if options["evaluate"]:
        predictions = model.predict(x[:24], batch_size=BATCH, verbose=0)
        result["predictions"] = np.asarray(predictions).tolist()
    return result


results = {}
for name in options["methods"]:
    method, _, rest = name.partition("|")
    arguments = json.loads(rest) if rest else {}
    results[name] = train(name, METHODS[method](), **arguments)
task = strategy.cluster_resolver.task_id if several else 0
pathlib.Path(options["output"], f"{task}.json").write_text(json.dumps(results))
"""
SOME = [
    "snfs",
    "snip-global",
    'rigl|{"pattern": "block_2x2", "compute": "sparse"}',
    'rigl|{"optimizer": "adam", "steps_per_execution": 4}',
]
EVERY = [
    *SOME,
    "static",
    "set",
    "magnitude",
    "rigl",
    "rigl-after",
    "rigl-batches",
    "magnitude-global",
    'rigl|{"pattern": "block_2x1"}',
    'set|{"pattern": "2:4"}',
]


def free_ports(number):
    sockets = [socket.socket() for _ in range(number)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def arguments(output, **options):
    """What the script is called with; makes the folder of its output."""
    output.mkdir(exist_ok=True)
    options = {"seeded": True, "epochs": 1, "evaluate": False, "pause": 0.2, **options}
    return json.dumps({**options, "output": str(output)})


def alone(output, monkeypatch, **options):
    """The results of one process: of this one, which has imported TensorFlow already."""
    assert "TF_CONFIG" not in os.environ
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", arguments(output, **options)])
        exec(compile(SCRIPT, "alone", "exec"), {"__name__": "alone"})
    return json.loads((output / "0.json").read_text())


def start(workers, **options):
    """Starts the processes."""
    argument = arguments(**options)
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(ROOT)}
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    processes = []
    for index in range(workers):
        task = {"type": "worker", "index": index}
        config = {"cluster": {"worker": addresses}, "task": task}
        processes.append(
            subprocess.Popen(
                [sys.executable, "-c", SCRIPT, argument],
                env={**environment, "TF_CONFIG": json.dumps(config)},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return processes


def finish(processes, output):
    """Waits for processes; returns the results of each."""
    try:
        errors = [process.communicate(timeout=300)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, error in zip(processes, errors, strict=True):
        assert process.returncode == 0, error[-3000:]
    return [
        json.loads(pathlib.Path(output, f"{index}.json").read_text())
        for index in range(len(processes))
    ]


def check_same(one, workers):
    """All have the same masks after each step, and about the same weights."""
    for name, expected in one.items():
        for found in (worker[name] for worker in workers):
            assert found["masks"] == expected["masks"], name
            assert found["step"] == expected["step"]
            for one, other in zip(expected["weights"], found["weights"], strict=True):
                np.testing.assert_allclose(one, other, atol=1e-4, err_msg=name)
            np.testing.assert_allclose(
                found["history"]["loss"], expected["history"]["loss"], rtol=1e-4, err_msg=name
            )
        first, *others = [worker[name]["weights"] for worker in workers]
        assert all(first == other for other in others), name


@pytest.mark.parametrize("workers", times([2], [2, 3]))
def test_workers_have_the_masks_of_one_process(workers, tmp_path, monkeypatch):
    """At every step, with validation and predictions on the way."""
    methods = times(SOME, EVERY)
    settings = {"methods": methods, "evaluate": True}
    together = start(workers, output=tmp_path / "together", **settings)
    try:
        expected = alone(tmp_path / "alone", monkeypatch, **settings)
    finally:
        results = finish(together, tmp_path / "together")
    check_same(expected, results)
    for name, own in expected.items():
        changes = len(set(own["masks"].values()))
        assert (changes > 1) == (name != "static"), name
        np.testing.assert_allclose(
            results[0][name]["predictions"], own["predictions"], atol=1e-4, err_msg=name
        )
        np.testing.assert_allclose(
            results[0][name]["history"]["val_loss"], own["history"]["val_loss"], rtol=1e-4
        )
    record("workers", workers=workers, configurations=len(methods), steps=12)


def test_workers_without_seeds_take_those_of_the_first(tmp_path):
    processes = start(times(2, 3), output=tmp_path, methods=["rigl"], seeded=False)
    first, *others = finish(processes, tmp_path)
    assert all(other["rigl"]["masks"] == first["rigl"]["masks"] for other in others)
    assert all(other["rigl"]["weights"] == first["rigl"]["weights"] for other in others)


@pytest.mark.parametrize("victim", times([1], [0, 1]))
def test_workers_go_on_after_one_was_killed(victim, tmp_path, monkeypatch):
    """The masks of the end are those of a run that nobody disturbed."""
    settings = {"methods": ["rigl"], "epochs": 2}
    output = tmp_path / "together"
    backup = str(tmp_path / "backup")
    processes = start(2, output=output, backup=backup, **settings)
    deadline = time.monotonic() + 120
    steps = output / "steps"
    while not (steps.exists() and steps.read_text() and int(steps.read_text()) >= 7):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[victim].send_signal(signal.SIGKILL)
    for process in processes:  # The other one cannot go on alone: whoever runs them ends it.
        process.kill()
        process.communicate()
    processes = start(2, output=output, backup=backup, pause=0, **settings)
    try:
        expected = alone(tmp_path / "alone", monkeypatch, **settings)
    finally:
        results = finish(processes, output)
    for result in results:
        assert result["rigl"]["step"] == expected["rigl"]["step"] == 24
        masks = result["rigl"]["masks"]
        assert 0 < len(masks) < 24  # It did go on from a backup.
        assert masks == {step: expected["rigl"]["masks"][step] for step in masks}
        for one, other in zip(expected["rigl"]["weights"], result["rigl"]["weights"], strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    record("worker killed and restarted", victim=victim, workers=2)
    assert not pathlib.Path(backup).exists()
