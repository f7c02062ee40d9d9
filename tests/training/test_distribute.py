"""Training under `MirroredStrategy`: the masks are those of one device, on every replica."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from tests.soak import record, times

# Logical devices have to be made before TensorFlow starts: hence a process of its own.
SCRIPT = """
import json, sys
import keras, numpy as np, tensorflow as tf
REPLICAS, NAMES = int(sys.argv[2]), sys.argv[3:]
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * REPLICAS
)
import tf_rigl
from tf_rigl.block_sparse.weight import BlockSparseWeight
from tests.helpers import compiled, mlp, random_data, sparsify

STEPS = 12
# TensorFlow mixes up the sums of a second strategy over the same devices with those of the first.
MIRRORED = tf.distribute.MirroredStrategy([f"CPU:{n}" for n in range(REPLICAS)])
x, y = random_data(batches=STEPS)


def copies(variable):
    return [v.numpy() for v in getattr(variable.value, "values", [variable.value])]


class Record(keras.callbacks.Callback):
    def __init__(self, replicas):
        super().__init__()
        self.replicas, self.masks = replicas, []

    def on_train_batch_end(self, batch, logs=None):
        for item in self.model.masked_weights:
            weights = copies(item.weight)
            masks = [] if isinstance(item, BlockSparseWeight) else copies(item.mask)
            assert len(weights) == self.replicas
            for weight in weights:
                np.testing.assert_array_equal(weight, weights[0])
            if isinstance(item, BlockSparseWeight):
                for places in copies(item.layer.places):
                    np.testing.assert_array_equal(places, item.layer.places.numpy())
                continue
            assert len(masks) == self.replicas
            for mask, weight in zip(masks, weights):
                np.testing.assert_array_equal(mask, masks[0])
                assert (weight[~mask] == 0).all()
        self.masks.append(self.model.masks)


@keras.saving.register_keras_serializable(package="tests")
class HandmadeStep(keras.Model):
    def train_step(self, data):
        with tf.GradientTape() as tape:
            loss = self.compute_loss(data[0], data[1], self(data[0], training=True))
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply(gradients, self.trainable_weights)
        return {"loss": loss}


def train(strategy, method, optimizer, own=None, **kwargs):
    keras.utils.set_random_seed(0)
    with strategy.scope():
        eager = strategy is not MIRRORED  # Where it can be: compiling takes its time.
        model = mlp()
        model = HandmadeStep(model.inputs, model.outputs) if own == "step" else model
        model = compiled(sparsify(model, method, **kwargs), optimizer(), run_eagerly=eager)
    record = Record(strategy.num_replicas_in_sync)
    if own == "loop":
        return by_hand(strategy, model, record)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    model.fit(data, verbose=0, callbacks=[record])
    assert model.step == STEPS
    return record.masks, [w.numpy() for w in model.trainable_weights]


def by_hand(strategy, model, record):
    def on_replica(x, y):
        with tf.GradientTape() as tape:
            loss = model.compute_loss(x, y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_weights)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_weights))

    with strategy.scope():
        model.optimizer.build(model.trainable_weights)
    step = lambda batch: strategy.run(on_replica, args=batch)
    step = tf_rigl.training_step(model, step, model.optimizer)
    record.set_model(model)
    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(8)
    for batch in strategy.experimental_distribute_dataset(data):
        step(batch)
        record.on_train_batch_end(model.step)
    return record.masks, [w.numpy() for w in model.trainable_weights]


def compare(method, optimizer, **kwargs):
    masks, weights = train(tf.distribute.get_strategy(), method, optimizer, **kwargs)
    other_masks, other_weights = train(MIRRORED, method, optimizer, **kwargs)
    same = lambda a, b: all((a[path] == b[path]).all() for path in a)
    return {
        "updates": [t for t in range(1, STEPS) if not same(masks[t - 1], masks[t])],
        "equal": sum(same(a, b) for a, b in zip(masks, other_masks)),
        "difference": max(float(np.abs(a - b).max()) for a, b in zip(weights, other_weights)),
    }


def load_outside(path):  # With two replicas.
    # Into layers wrapped by hand, for which state may be made where the file is read.
    models = []
    for strategy in (tf.distribute.get_strategy(), MIRRORED):
        with strategy.scope():
            inputs = keras.Input((x.shape[1],))
            outputs = tf_rigl.MaskedLayer(keras.layers.Dense(3), 0.5, seed=len(models))(inputs)
            model = tf_rigl.SparseModel(inputs, outputs, method=m.SNFS(**often), seed=0)
            models.append(compiled(model, sgd(), run_eagerly=strategy is not MIRRORED))
    one, other = models
    one.fit(x[:32], y[:32], batch_size=8, shuffle=False, verbose=0)
    one.save_weights(path)
    other.load_weights(path)
    (a,), (b,) = one.masked_weights, other.masked_weights
    for first, second in ((a.mask, b.mask), (a.state["gradient"], b.state["gradient"])):
        for copy in (*copies(first), *copies(second)):
            np.testing.assert_array_equal(copy, copies(first)[0])
    record = Record(2)
    other.fit(x[32:], y[32:], batch_size=8, shuffle=False, verbose=0, callbacks=[record])
    masks = [next(iter(each.values())) for each in record.masks]
    return [other.step, sum(bool((p != q).any()) for p, q in zip(masks, masks[1:]))]


sgd, adam = lambda: keras.optimizers.SGD(0.1, momentum=0.9), lambda: keras.optimizers.Adam(0.01)
often = {"drop_fraction": 0.5, "update_interval": 3, "end_step": STEPS}
always = {**often, "decay": "constant"}  # Where there are few units.
m, s = tf_rigl.methods, tf_rigl.schedules
runs = {
    "rigl": lambda: compare(m.RigL(**often), sgd),
    "set": lambda: compare(m.SET(**often), adam),
    "snfs": lambda: compare(m.SNFS(**often), adam),
    "rigl-batches": lambda: compare(m.RigL(**often, gradient_batches=2), sgd),
    "rigl-blocks": lambda: compare(m.RigL(**always), adam, pattern="block_2x1"),
    "rigl-sparse": lambda: compare(m.RigL(**always), adam, pattern="block_2x2", compute="sparse"),
    "set-2:4": lambda: compare(m.SET(**always), sgd, pattern="2:4"),
    "snip": lambda: compare(m.SNIP(scope="global", batches=2), sgd),
    "magnitude": lambda: compare(m.MagnitudePruning(s.PolynomialDecay(
        begin_step=2, end_step=10, frequency=4), scope="global"), sgd),
    "edge-popup": lambda: compare(m.EdgePopup(), lambda: keras.optimizers.Adam(0.3)),
    "own-step": lambda: compare(m.RigL(**often), sgd, own="step"),
    "own-loop": lambda: compare(m.SNFS(**often), adam, own="loop"),
    "loaded": lambda: load_outside(sys.argv[1]),
}
print(json.dumps({name: runs[name]() for name in NAMES}))
"""

# The batches, counted from 0, at which masks of the method change.
UPDATES = {
    "rigl": [3, 6, 9],
    "set": [3, 6, 9],
    "snfs": [3, 6, 9],
    "rigl-batches": [3, 6, 9],
    "rigl-blocks": [3, 6, 9],
    "rigl-sparse": [3, 6, 9],
    "set-2:4": [3, 6, 9],
    "snip": [1],
    "magnitude": [5, 9],
    "own-step": [3, 6, 9],
    "own-loop": [3, 6, 9],
    "edge-popup": [1, 2, 3, 4, 5, 6, 7, 8, 10, 11],
}


FOUR = times(["rigl"], list(UPDATES))


@pytest.mark.parametrize(("replicas", "names"), [(2, [*UPDATES, "loaded"]), (4, FOUR)])
def test_replicas_have_the_masks_of_one_device(replicas, names, tmp_path):
    """At each of 12 steps, for every method; weights are equal up to the order of sums."""
    root = str(pathlib.Path(__file__).parents[2])
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": root}
    arguments = [str(tmp_path / "model.weights.h5"), str(replicas), *names]
    command = [sys.executable, "-c", SCRIPT, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout.splitlines()[-1])
    if "loaded" in results:
        assert results.pop("loaded") == [12, 2]  # Steps, and updates: at 6 and 9.
    for name, result in results.items():
        assert result["updates"] == UPDATES[name]
        assert result["equal"] == 12, name
        assert result["difference"] < 1e-4, name
    record("replicas", replicas=replicas, configurations=len(results), steps=12)
